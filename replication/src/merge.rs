//! Many replicas' answers to one.
//!
//! Pure. The result is the same whatever the order of the answers. Samples that replicas
//! disagree on are settled by the rule of `saturn_model::resolve`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use saturn_model::{Exemplar, Labels, MetricMetadata, SeriesColumns, SeriesExemplars};

use crate::{LabelItems, LabelsAnswer};

/// One series per label set, in any order.
pub(crate) fn merge_series(answers: Vec<Vec<SeriesColumns>>) -> Vec<SeriesColumns> {
    let mut merged: Vec<SeriesColumns> = Vec::with_capacity(answers.first().map_or(0, Vec::len));
    let mut place_of: HashMap<Labels, usize> = HashMap::with_capacity(merged.capacity());
    for series in answers.into_iter().flatten() {
        match place_of.entry(series.labels.clone()) {
            Entry::Occupied(place) => {
                let place = &mut merged[*place.get()];
                place.merge(&series.timestamps, &series.values);
                place.merge_histograms(&series.histograms.timestamps, &series.histograms.values);
            }
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(series);
            }
        }
    }
    merged
}

/// What different shards have, sorted by labels. A series is in several after its tenant was spread over another
/// number of them.
pub(crate) fn join_series(shards: Vec<Vec<SeriesColumns>>) -> Vec<SeriesColumns> {
    let mut joined: Vec<SeriesColumns> = shards.into_iter().flatten().collect();
    joined.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
    joined.dedup_by(|later, first| {
        let same = later.labels == first.labels;
        if same {
            first.merge(&later.timestamps, &later.values);
            first.merge_histograms(&later.histograms.timestamps, &later.histograms.values);
        }
        same
    });
    joined
}

/// Items of a listing, and whether there are more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// Sorted, each once.
    pub items: Vec<T>,
    /// Whether a replica held items back because of the limit.
    pub truncated: bool,
}

/// All texts once, sorted.
pub(crate) fn merge_texts(answers: Vec<LabelsAnswer>) -> Listed<String> {
    merge_listed(answers, |items| match items {
        LabelItems::Texts(texts) => texts,
        _ => Vec::new(),
    })
}

/// All label sets once, sorted.
pub(crate) fn merge_label_sets(answers: Vec<LabelsAnswer>) -> Listed<Labels> {
    merge_listed(answers, |items| match items {
        LabelItems::Series(sets) => sets,
        _ => Vec::new(),
    })
}

/// All metadata once, by metric.
pub(crate) fn merge_metadata(answers: Vec<LabelsAnswer>) -> Listed<MetricMetadata> {
    merge_listed(answers, |items| match items {
        LabelItems::Metadata(metadata) => metadata,
        _ => Vec::new(),
    })
}

/// All exemplars once, by series and time.
pub(crate) fn merge_exemplars(answers: Vec<LabelsAnswer>) -> Vec<SeriesExemplars> {
    let mut merged: BTreeMap<Labels, BTreeSet<Exemplar>> = BTreeMap::new();
    for answer in answers {
        if let LabelItems::Exemplars(series) = answer.items {
            for SeriesExemplars { labels, exemplars } in series {
                merged.entry(labels).or_default().extend(exemplars);
            }
        }
    }
    let series = |(labels, exemplars): (Labels, BTreeSet<Exemplar>)| SeriesExemplars {
        labels,
        exemplars: exemplars.into_iter().collect(),
    };
    merged.into_iter().map(series).collect()
}

fn merge_listed<T: Ord>(answers: Vec<LabelsAnswer>, items: fn(LabelItems) -> Vec<T>) -> Listed<T> {
    let truncated = answers.iter().any(|answer| answer.truncated);
    let items = answers.into_iter().flat_map(|answer| items(answer.items)).collect();
    Listed { items: sorted(items), truncated }
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort_unstable();
    items.dedup();
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, samples: &[(i64, f64)]) -> SeriesColumns {
        SeriesColumns::floats(
            Labels::from_pairs([("__name__", name)]).expect("valid"),
            samples.iter().map(|(t, _)| *t).collect(),
            samples.iter().map(|(_, v)| *v).collect(),
        )
    }

    fn view(merged: &[SeriesColumns]) -> Vec<(&str, &[i64], &[f64])> {
        merged.iter().map(|s| (s.labels.metric_name(), &s.timestamps[..], &s.values[..])).collect()
    }

    #[test]
    fn a_series_of_several_shards_is_one() {
        let series = |name: &str, times: &[i64]| {
            let labels = Labels::from_pairs([("__name__", name)]).expect("valid");
            let values = times.iter().map(|time| *time as f64).collect();
            SeriesColumns::floats(labels, times.to_vec(), values)
        };
        let shards = vec![
            vec![series("b", &[1, 3]), series("a", &[7])],
            vec![series("b", &[2, 3])],
            vec![series("c", &[5]), series("b", &[0])],
        ];
        let joined = join_series(shards);
        let found: Vec<_> = joined.iter().map(|s| (s.labels.metric_name(), s.timestamps.clone())).collect();
        assert_eq!(found, [("a", vec![7]), ("b", vec![0, 1, 2, 3]), ("c", vec![5])]);
    }

    #[test]
    fn answers_are_united_in_any_order() {
        let a = vec![series("up", &[(1, 1.0), (3, 3.0)]), series("b", &[(1, 1.0)])];
        let b = vec![series("a", &[(5, 5.0)]), series("up", &[(2, 2.0), (3, 4.0)])];
        let merge = |answers| join_series(vec![merge_series(answers)]);
        let merged = merge(vec![a.clone(), b.clone()]);
        let expected: [(&str, &[i64], &[f64]); 3] =
            [("a", &[5], &[5.0]), ("b", &[1], &[1.0]), ("up", &[1, 2, 3], &[1.0, 2.0, 4.0])];
        assert_eq!(view(&merged), expected);
        assert_eq!(view(&merge(vec![b, a])), expected);
        assert!(merge_series(Vec::new()).is_empty());
    }

    #[test]
    fn exemplars_and_metadata_are_united() {
        let exemplar = |time| Exemplar {
            timestamp: saturn_model::TimestampMs(time),
            value: f64::NAN,
            labels: Labels::empty(),
        };
        let answer = |items| LabelsAnswer { items, truncated: false };
        let of = |name: &str, times: &[i64]| SeriesExemplars {
            labels: Labels::from_pairs([("__name__", name)]).expect("valid"),
            exemplars: times.iter().map(|time| exemplar(*time)).collect(),
        };
        let answers = [vec![of("b", &[2, 3]), of("a", &[1])], vec![of("b", &[1, 3])]];
        let merged = merge_exemplars(answers.map(|all| answer(LabelItems::Exemplars(all))).into());
        assert_eq!(merged, [of("a", &[1]), of("b", &[1, 2, 3])]);

        let metadata = |metric: &str, help: &str| MetricMetadata {
            metric: metric.into(),
            kind: saturn_model::MetricType::Gauge,
            help: help.into(),
            unit: String::new(),
        };
        let answers =
            [vec![metadata("b", "x")], vec![metadata("b", "x"), metadata("a", "y"), metadata("b", "y")]];
        let merged = merge_metadata(answers.map(|all| answer(LabelItems::Metadata(all))).into());
        assert_eq!(merged.items, [metadata("a", "y"), metadata("b", "x"), metadata("b", "y")]);
    }

    #[test]
    fn texts_and_label_sets_are_united() {
        let all = |items| LabelsAnswer { items, truncated: false };
        let texts = |texts: &[&str]| LabelItems::Texts(texts.iter().map(|t| (*t).to_owned()).collect());
        let merged = merge_texts(vec![all(texts(&["b", "a"])), all(texts(&["c", "b"]))]);
        assert_eq!((merged.items.join(""), merged.truncated), ("abc".to_owned(), false));
        let some = LabelsAnswer { items: texts(&["b"]), truncated: true };
        assert!(merge_texts(vec![all(texts(&["a"])), some]).truncated);
        let set = |name: &str| Labels::from_pairs([("__name__", name)]).expect("valid");
        let sets = |names: &[&str]| all(LabelItems::Series(names.iter().map(|name| set(name)).collect()));
        assert_eq!(merge_label_sets(vec![sets(&["b", "a"]), sets(&["b"])]).items, [set("a"), set("b")]);
    }
}
