//! Every order of events of a small model of four nodes, and the story of the first that ends badly.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use saturn_ring::NodeId;

/// The nodes.
pub(crate) const NAMES: [&str; 4] = ["A", "B", "C", "D"];

/// A state before, and what happened then.
type Before<S> = Option<(S, String)>;

/// By its place.
pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(NAMES[index]).expect("valid")
}

/// Those whose bits are set.
pub(crate) fn nodes(mask: u8) -> BTreeSet<NodeId> {
    (0..4).filter(|index| mask & 1 << index != 0).map(node).collect()
}

/// Their bits.
pub(crate) fn mask<'a>(members: impl Iterator<Item = &'a NodeId>) -> u8 {
    let bit = |member: &NodeId| {
        1_u8 << NAMES.iter().position(|name| *name == member.as_str()).expect("one of four")
    };
    members.map(bit).fold(0, |all, bit| all | bit)
}

/// The number of states that can be reached, and the shortest way to one that `verdict` names, if there is one.
///
/// # Panics
/// If there are more than `states_max`: the rules make the search endless.
pub(crate) fn explore<S: Copy + Eq + Hash>(
    first: impl IntoIterator<Item = S>,
    states_max: usize,
    successors: impl Fn(&S, &mut Vec<(S, String)>),
    verdict: impl Fn(&S) -> Option<&'static str>,
) -> (usize, Option<String>) {
    let mut seen: HashMap<S, Before<S>> = first.into_iter().map(|state| (state, None)).collect();
    let mut queue: VecDeque<S> = seen.keys().copied().collect();
    let mut next = Vec::new();
    while let Some(state) = queue.pop_front() {
        assert!(seen.len() < states_max, "the search does not end");
        if let Some(what) = verdict(&state) {
            return (seen.len(), Some(format!("{what}: {}", story(&seen, state))));
        }
        successors(&state, &mut next);
        for (after, step) in next.drain(..) {
            if let Entry::Vacant(entry) = seen.entry(after) {
                entry.insert(Some((state, step)));
                queue.push_back(after);
            }
        }
    }
    (seen.len(), None)
}

fn story<S: Copy + Eq + Hash>(seen: &HashMap<S, Before<S>>, mut state: S) -> String {
    let mut steps = Vec::new();
    while let Some((before, step)) = &seen[&state] {
        steps.push(step.as_str());
        state = *before;
    }
    steps.reverse();
    steps.join("; ")
}
