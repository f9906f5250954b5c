//! Binary operations between vectors: which series belong together, and the set operators.
//!
//! A series' signature (the labels that matching looks at) does not depend on the step, so series are
//! grouped once; within a group each step is decided on its own, because different series
//! may stand for the same signature at different times.
//!
//! Source: `VectorBinop`, `VectorAnd`, `VectorOr`, `VectorUnless`, `resultMetric` of `engine.go`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME};

use crate::ast::{Binary, BinaryOp, Cardinality, VectorMatching};
use crate::error::EvalError;
use crate::eval::binary::{drops_name, element_result};
use crate::eval::block::Block;
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{BlockBuilder, Duplicates, keep_labels, merge_duplicates, without_metadata};
use crate::go_text::quote;

/// The series of both sides that have one signature, as indexes.
#[derive(Default)]
struct Partners {
    /// The side that may have many.
    many: Vec<usize>,
    /// The side that has one at each step.
    one: Vec<usize>,
}

impl Evaluator<'_> {
    pub(super) fn vectors(
        &self,
        binary: &Binary,
        left: &Block,
        right: &Block,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        match binary.op {
            BinaryOp::And | BinaryOp::Unless => self.intersect(binary, left, right),
            BinaryOp::Or => self.unite(&binary.matching, left, right),
            _ => self.pair(binary, left, right, grid),
        }
    }

    /// `and` and `unless`: the left side where the right side has the signature, or has it not.
    fn intersect(&self, binary: &Binary, left: &Block, right: &Block) -> Result<Block, EvalError> {
        let signatures = presence_by_signature(right, &binary.matching);
        let wanted = binary.op == BinaryOp::And;
        let mut result = left.like();
        for (name, row) in left.rows() {
            self.check_cancelled()?;
            let matched = signatures.get(&signature(&name.labels, &binary.matching));
            if matched.is_none() && wanted {
                continue;
            }
            result.push_row(name.clone(), row)?;
            if let Some(matched) = matched {
                let kept = result.row_mut(result.len() - 1);
                kept.present
                    .iter_mut()
                    .zip(matched)
                    .for_each(|(present, other)| *present &= *other == wanted);
            }
        }
        Ok(result)
    }

    /// `or`: the left side, and the right side where the left has not the signature.
    fn unite(&self, matching: &VectorMatching, left: &Block, right: &Block) -> Result<Block, EvalError> {
        let signatures = presence_by_signature(left, matching);
        let mut result = left.like();
        for (name, row) in left.rows() {
            result.push_row(name.clone(), row)?;
        }
        for (name, row) in right.rows() {
            self.check_cancelled()?;
            result.push_row(name.clone(), row)?;
            if let Some(hidden) = signatures.get(&signature(&name.labels, matching)) {
                let kept = result.row_mut(result.len() - 1);
                kept.present.iter_mut().zip(hidden).for_each(|(present, hidden)| *present &= !*hidden);
            }
        }
        merge_duplicates(result, Duplicates::MergeDisjoint)
    }

    /// Arithmetic and comparison: each series with its partner.
    fn pair(&self, binary: &Binary, left: &Block, right: &Block, grid: &Grid) -> Result<Block, EvalError> {
        let swapped = binary.matching.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (right, left) } else { (left, right) };
        let both_sides: Vec<bool> =
            (0..grid.count).map(|step| many.any_at(step) && one.any_at(step)).collect();
        let mut pairing = Pairing {
            binary,
            many,
            one,
            swapped,
            delays_name_removal: self.delays_name_removal(),
            result: BlockBuilder::new(left.like()),
        };
        for (signature, partners) in group_partners(many, one, &binary.matching) {
            self.check_cancelled()?;
            pairing.add(&signature, &partners, &both_sides)?;
        }
        Ok(pairing.result.block)
    }
}

/// The work on one arithmetic or comparison operation.
struct Pairing<'a> {
    binary: &'a Binary,
    many: &'a Block,
    one: &'a Block,
    /// Whether the many side is the right one.
    swapped: bool,
    delays_name_removal: bool,
    result: BlockBuilder,
}

impl Pairing<'_> {
    fn add(&mut self, signature: &Labels, partners: &Partners, both_sides: &[bool]) -> Result<(), EvalError> {
        let mut rows = HashMap::new();
        for (step, _) in both_sides.iter().enumerate().filter(|(_, both)| **both) {
            let Some(one) = self.only_one(signature, &partners.one, step)? else {
                continue;
            };
            // Results of this step, to find two of the many side that would be the same.
            let mut used = Vec::new();
            for many in &partners.many {
                if !self.many.row(*many).present[step] {
                    continue;
                }
                let row = match rows.get(&(*many, one)) {
                    Some(row) => *row,
                    None => {
                        let row = self.result_row(*many, one)?;
                        rows.insert((*many, one), row);
                        row
                    }
                };
                self.check_unique(row, &used)?;
                used.push(row);
                self.set(row, step, *many, one)?;
            }
        }
        Ok(())
    }

    /// The series of the one side that is present at `step`; two of them are an error.
    fn only_one(
        &self,
        signature: &Labels,
        candidates: &[usize],
        step: usize,
    ) -> Result<Option<usize>, EvalError> {
        let mut present = candidates.iter().filter(|index| self.one.row(**index).present[step]);
        let first = present.next();
        match (first, present.next()) {
            (Some(first), Some(second)) => {
                let side = if self.swapped { "left" } else { "right" };
                let mut series = [*first, *second].map(|index| describe(&self.one.names[index].labels));
                series.sort();
                Err(EvalError::Execution(format!(
                    "found duplicate series for the match group {} on the {side} hand-side of the operation: \
                     [{}];many-to-many matching not allowed: matching labels must be unique on one side",
                    describe(signature),
                    series.join(", ")
                )))
            }
            _ => Ok(first.copied()),
        }
    }

    fn check_unique(&self, row: usize, used: &[usize]) -> Result<(), EvalError> {
        let one_to_one = self.binary.matching.cardinality == Cardinality::OneToOne;
        if one_to_one && !used.is_empty() {
            return Err(EvalError::Execution(
                "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
                    .into(),
            ));
        }
        if used.contains(&row) {
            return Err(EvalError::Execution(
                "multiple matches for labels: grouping labels must ensure unique matches".into(),
            ));
        }
        Ok(())
    }

    fn set(&mut self, row: usize, step: usize, many: usize, one: usize) -> Result<(), EvalError> {
        let (many, one) = (self.many.row(many).values[step], self.one.row(one).values[step]);
        let (left, right) = if self.swapped { (one, many) } else { (many, one) };
        match element_result(self.binary.op, left, right, self.binary.return_bool) {
            Some(value) => self.result.set(row, step, value),
            None => Ok(()),
        }
    }

    fn result_row(&mut self, many: usize, one: usize) -> Result<usize, EvalError> {
        let (many, one) = (&self.many.names[many], &self.one.names[one]);
        let arithmetic = !self.binary.op.is_comparison();
        let mut labels = result_labels(&many.labels, &one.labels, &self.binary.matching, arithmetic);
        let mut drop_name = many.drop_name && !arithmetic;
        if self.binary.return_bool && drops_name(self.binary) {
            if self.delays_name_removal {
                drop_name = true;
            } else {
                labels = without_metadata(&labels);
            }
        }
        self.result.row(labels, drop_name)
    }
}

/// The labels of a result. Arithmetic makes a new metric: its name goes at once, even where names are
/// otherwise removed in the end.
fn result_labels(many: &Labels, one: &Labels, matching: &VectorMatching, arithmetic: bool) -> Labels {
    let mut labels = if arithmetic { without_metadata(many) } else { many.clone() };
    let is_listed = |name: &str| matching.labels.iter().any(|label| label == name);
    if matching.cardinality == Cardinality::OneToOne {
        labels = keep_labels(&labels, |name| is_listed(name) == matching.on);
    }
    if matching.include.is_empty() {
        return labels;
    }
    let mut builder = labels.to_builder();
    for name in &matching.include {
        builder.set(name, one.get(name).unwrap_or(""));
    }
    builder.build()
}

/// The labels that matching looks at.
fn signature(labels: &Labels, matching: &VectorMatching) -> Labels {
    let is_listed = |name: &str| matching.labels.iter().any(|label| label == name);
    if matching.on {
        keep_labels(labels, is_listed)
    } else {
        keep_labels(labels, |name| name != METRIC_NAME && !is_listed(name))
    }
}

/// At which steps each signature is there.
fn presence_by_signature(block: &Block, matching: &VectorMatching) -> HashMap<Labels, Vec<bool>> {
    let mut signatures: HashMap<Labels, Vec<bool>> = HashMap::new();
    for (name, row) in block.rows() {
        let presence =
            signatures.entry(signature(&name.labels, matching)).or_insert_with(|| vec![false; block.steps()]);
        presence.iter_mut().zip(row.present).for_each(|(any, present)| *any |= *present);
    }
    signatures
}

/// Groups of both sides, in the order in which their first series of the many side appear.
fn group_partners(many: &Block, one: &Block, matching: &VectorMatching) -> Vec<(Labels, Partners)> {
    let mut index_of: HashMap<Labels, usize> = HashMap::new();
    let mut groups: Vec<(Labels, Partners)> = Vec::new();
    let mut place = |labels: &Labels, groups: &mut Vec<(Labels, Partners)>| {
        let signature = signature(labels, matching);
        *index_of.entry(signature.clone()).or_insert_with(|| {
            groups.push((signature, Partners::default()));
            groups.len() - 1
        })
    };
    for (index, name) in many.names.iter().enumerate() {
        let at = place(&name.labels, &mut groups);
        groups[at].1.many.push(index);
    }
    for (index, name) in one.names.iter().enumerate() {
        let at = place(&name.labels, &mut groups);
        groups[at].1.one.push(index);
    }
    groups
}

/// A label set as Go's `labels.String` writes it: the name is a label like the others.
fn describe(labels: &Labels) -> String {
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", quote(value.as_bytes()))).collect();
    format!("{{{}}}", pairs.join(", "))
}
