//! Tests of the index: postings equal a scan, and memory goes back.

use super::*;
use proptest::prelude::*;
use saturn_model::MatchOp;
use std::collections::BTreeSet;

fn demo() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn labels(set: &[(String, String)]) -> Labels {
    Labels::from_pairs(set.iter().map(|(n, v)| (n.as_str(), v.as_str()))).expect("valid")
}

fn index(sets: &[Vec<(String, String)>]) -> Index {
    let mut index = Index::default();
    let tenant = index.tenant_position(&demo());
    for (set, ordinal) in sets.iter().zip(0..) {
        index.add(tenant, ordinal, Fingerprint(u128::from(ordinal)), &labels(set));
    }
    index
}

fn label_set() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = proptest::sample::select(vec!["a", "b", "__name__"]).prop_map(str::to_owned);
    proptest::collection::btree_map(name, "[xyz]{1,2}", 0..4).prop_map(|m| m.into_iter().collect())
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let op =
        proptest::sample::select(vec![MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex]);
    let value = proptest::sample::select(vec![
        "", "x", "xy", "x|yy|zz", "x.*", ".+", ".*", "(x|)", "x|", "[^x]", "y.*z",
    ]);
    ("[abc]", op, value).prop_map(|(name, op, value)| Matcher::new(&name, op, value).expect("valid"))
}

proptest! {
    #[test]
    fn postings_equal_a_scan(
        sets in proptest::collection::vec(label_set(), 0..12),
        // Above the number of series that are looked at one by one.
        many in prop_oneof![3 => Just(1_usize), 1 => Just(600)],
        gone in proptest::collection::btree_set(0..12_u32, 0..6),
        more in proptest::collection::vec(label_set(), 0..4),
        matchers in proptest::collection::vec(proptest::collection::vec(matcher(), 0..4), 4),
    ) {
        let mut sets: Vec<Option<Vec<(String, String)>>> = sets.iter().cycle().take(sets.len() * many).cloned().map(Some).collect();
        let mut index = index(&sets.iter().flatten().cloned().collect::<Vec<_>>());
        for round in 0..2 {
            for matchers in &matchers {
                let matches = |set: &Vec<(String, String)>| {
                    let labels = labels(set);
                    matchers.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or("")))
                };
                let want: Vec<u32> = sets.iter().zip(0..)
                    .filter(|(set, _)| set.as_ref().is_some_and(matches)).map(|(_, ordinal)| ordinal).collect();
                let got: Vec<u32> = index.matching(&demo(), matchers).into_iter().collect();
                prop_assert_eq!(got, want, "{:?}", matchers);
            }
            for (set, ordinal) in sets.iter().zip(0..) {
                let found = index.get(ordinal).map(|series| (series.labels(), series.fingerprint(), series.key()));
                let fingerprint = Fingerprint(u128::from(ordinal));
                let want = set.as_ref().map(|set| labels(set)).map(|labels| {
                    let key = SeriesKey::new(labels.metric_name(), fingerprint);
                    (labels, fingerprint, key)
                });
                prop_assert_eq!(found, want);
            }
            if round == 1 {
                break;
            }
            let gone: RoaringBitmap = gone.iter().copied().filter(|o| (*o as usize) < sets.len()).collect();
            let removed: Vec<u32> = index.remove(&gone).into_iter().map(|(ordinal, _)| ordinal).collect();
            prop_assert_eq!(removed, gone.iter().collect::<Vec<_>>());
            gone.iter().for_each(|ordinal| sets[ordinal as usize] = None);
            index.optimize();
            for set in &more {
                let ordinal = u32::try_from(sets.len()).expect("small");
                index.add(0, ordinal, Fingerprint(u128::from(ordinal)), &labels(set));
                sets.push(Some(set.clone()));
            }
        }
        let everyone = index.known().clone();
        index.remove(&everyone);
        prop_assert_eq!(index.dictionary.bytes(), 0);
    }
}

#[test]
fn names_and_values_of_some_series() {
    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    let index = index(&[vec![pair("a", "1"), pair("b", "2")], vec![pair("a", "3")]]);
    let second = RoaringBitmap::from_iter([1]);
    let mut names = BTreeSet::new();
    index.tenants[0].names_of(&second, usize::MAX, &mut names);
    assert_eq!(names, BTreeSet::from(["a".to_owned()]));
    let values = |name| {
        let mut values = BTreeSet::new();
        index.tenants[0].values_of(name, &second, usize::MAX, &mut values);
        values
    };
    assert_eq!(values("a"), BTreeSet::from(["3".to_owned()]));
    assert_eq!(values("b"), BTreeSet::new());
}
