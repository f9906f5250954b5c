//! `sort`, `sort_desc`, `sort_by_label` and `sort_by_label_desc`.
//!
//! The order of series is part of an instant query's answer only; results of range queries are always
//! ordered by labels.

use std::cmp::Ordering;

use saturn_model::Labels;

use crate::eval::block::Block;
use crate::eval::rank::{ascending, descending};

/// How series are ordered.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// By value.
    Ascending,
    /// By value, largest first.
    Descending,
    /// By these labels in turn, then by all.
    ByLabels(Vec<String>),
    /// The reverse of it.
    ByLabelsDescending(Vec<String>),
}

/// The order of a block's series at its only step, as indexes.
pub(super) fn sorted_indexes(block: &Block, order: &Order) -> Vec<usize> {
    let mut indexes: Vec<usize> = (0..block.len()).filter(|index| block.row(*index).present[0]).collect();
    let value = |index: &usize| block.row(*index).values[0];
    let labels = |index: &usize| &block.names[*index].labels;
    match order {
        Order::Ascending => indexes.sort_by(|a, b| ascending(value(a), value(b))),
        Order::Descending => indexes.sort_by(|a, b| descending(value(a), value(b))),
        Order::ByLabels(names) => indexes.sort_by(|a, b| by_labels(labels(a), labels(b), names)),
        Order::ByLabelsDescending(names) => indexes.sort_by(|a, b| by_labels(labels(b), labels(a), names)),
    }
    indexes
}

fn by_labels(a: &Labels, b: &Labels, names: &[String]) -> Ordering {
    let value = |labels: &Labels, name: &str| labels.get(name).unwrap_or("").to_owned();
    names
        .iter()
        .map(|name| natural_order(&value(a, name), &value(b, name)))
        .find(|order| order.is_ne())
        .unwrap_or_else(|| a.cmp(b))
}

/// Orders texts so that `a2` comes before `a10`: runs of digits are compared as numbers. Source: the Go
/// package `facette/natsort`.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (chunks(a), chunks(b));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                return match (a.parse::<i64>(), b.parse::<i64>()) {
                    (Ok(a_number), Ok(b_number)) if a_number != b_number => a_number.cmp(&b_number),
                    (Ok(_), Ok(_)) => continue,
                    _ => a.cmp(b),
                };
            }
        }
    }
}

/// Runs of digits and runs of anything else.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let digits = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at(end);
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_texts_count_as_numbers() {
        let mut texts = ["a10", "a2", "b", "a", "a2b", "10", "9"];
        texts.sort_by(|a, b| natural_order(a, b));
        assert_eq!(texts, ["9", "10", "a", "a2", "a2b", "a10", "b"]);
    }
}
