//! Every order of events of one deletion in a shard of which a slot may move meanwhile: one sample, which was acknowledged
//! before, one read after the deletion was answered, nodes that hear of records when they do, appends that are let in
//! and stored later, replicas that repair each other.
//!
//! The records, fences and conditions are those of the shipped code. A variant leaves a rule out; each rule is there
//! because a sample that was deleted is read again without it.

use std::collections::BTreeSet;

use saturn_model::{Selection, TenantId, TimestampMs};
use saturn_ring::{Access, Epoch, Fence, NodeId, ShardRecord, fence};
use uuid::Uuid;

use crate::search::{self, NAMES, mask, node, nodes};

const D: usize = 3;
/// Bounds the search, should a change of the rules make it endless.
const STATES_MAX: usize = 8_000_000;
/// No request yet.
const NONE: u8 = u8::MAX;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A node deletes before it acts on the record.
    delete_first: bool,
    /// A node that deletes waits for appends that it has let in.
    wait_for_appends: bool,
    /// The request is answered when enough readers know the record, not only enough slots.
    readers_count: bool,
    /// A source gives what it has under exactly the record of who fetches, and a fetch begins anew under a new one.
    same_record: bool,
    /// A node refuses reads of past records.
    read_fence: bool,
}

const SHIPPED: Rules = Rules {
    delete_first: true,
    wait_for_appends: true,
    readers_count: true,
    same_record: true,
    read_fence: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The committed record.
    record: u8,
    /// What each node holds on its disk.
    known: [u8; 4],
    /// Who has done the deletion.
    done: u8,
    /// The record under which the write was sent, to whom it is still on its way, and who has let it in and not stored
    /// it yet.
    write: u8,
    pending: u8,
    admitted: u8,
    /// Who has stored it, until that is enough.
    acks: u8,
    acked: bool,
    /// Who holds the sample.
    holders: u8,
    /// From whom D has fetched.
    sources: u8,
    /// Whether the deletion was answered.
    answered: bool,
    /// The record under which the read was sent, who answered, and whether anybody has found the sample.
    read: u8,
    replies: u8,
    found: bool,
}

/// A record, and how it came about.
struct Step {
    record: ShardRecord,
    /// None of the first one.
    parent: Option<u8>,
    name: &'static str,
    is_deleted: bool,
}

/// All records that there can be: a move in its steps, with the deletion at any time.
struct Table {
    steps: Vec<Step>,
    /// By record: those that it follows, itself included, the first one first.
    pasts: Vec<Vec<u8>>,
}

fn deleted(record: &ShardRecord) -> ShardRecord {
    let (start, end) = (TimestampMs(0), TimestampMs(9));
    let tenant = TenantId::new("demo").expect("valid");
    let selection = Selection { tenant, matchers: Vec::new(), start, end };
    record.delete(Uuid::nil(), vec![selection]).expect("deletes")
}

impl Table {
    fn new() -> Self {
        let stable = ShardRecord::stable(Epoch(1), (0..3).map(node).collect());
        let mut steps = vec![Step { record: stable, parent: None, name: "stable", is_deleted: false }];
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            let (record, is_deleted, all) = (step.record.clone(), step.is_deleted, nodes(15));
            let is_new = record.slots.contains(&node(2)) && step.name != "aborted";
            let mut after = Vec::new();
            if is_new {
                after.extend(record.begin(2, &node(D)).map(|next| (next, "begun", is_deleted)));
            }
            after.extend(record.activate(&all, &all).map(|next| (next, "activated", is_deleted)));
            after.extend(record.finish(&all).map(|next| (next, "finished", is_deleted)));
            after.extend(record.abort().map(|next| (next, "aborted", is_deleted)));
            if !is_deleted {
                let name = if step.name == "aborted" { "aborted" } else { "deleted" };
                after.push((deleted(&record), name, true));
            }
            for (record, name, is_deleted) in after {
                steps.push(Step { record, parent: Some(at as u8), name, is_deleted });
            }
            at += 1;
        }
        let past = |mut at: u8| {
            let mut past = vec![at];
            while let Some(parent) = steps[usize::from(at)].parent {
                past.insert(0, parent);
                at = parent;
            }
            past
        };
        let pasts = (0..steps.len() as u8).map(past).collect();
        Self { steps, pasts }
    }

    fn record(&self, at: u8) -> &ShardRecord {
        &self.steps[usize::from(at)].record
    }

    fn follows(&self, later: u8, earlier: u8) -> bool {
        self.pasts[usize::from(later)].contains(&earlier)
    }

    /// Who knows a record or one that follows it.
    fn fenced(&self, s: &State, at: u8) -> BTreeSet<NodeId> {
        nodes((0..4).filter(|index| self.follows(s.known[*index], at)).fold(0, |all, index| all | 1 << index))
    }

    fn is_quorum(&self, at: u8, acks: u8) -> bool {
        let record = self.record(at);
        let complete = |members: &Vec<&NodeId>| mask(members.iter().copied()) & !acks == 0;
        record.slot_members().filter(complete).count() >= record.quorum()
    }

    /// Whether a node that holds one record serves a request under another, and which record it holds then.
    fn serves(&self, held: u8, index: usize, asked: u8, access: Access) -> Option<u8> {
        let verdict =
            |held: u8| fence(Some(self.record(held)), &node(index), self.record(asked).epoch, access);
        match verdict(held) {
            Fence::Current => Some(held),
            // It is handed the newer record first.
            Fence::Behind => (verdict(asked) == Fence::Current).then_some(asked),
            Fence::Stale(_) | Fence::NotOwner => None,
        }
    }

    /// The node adopts a record, if it may now.
    fn adopt(&self, rules: Rules, s: &State, index: usize, at: u8) -> Option<State> {
        let (bit, mut t) = (1_u8 << index, *s);
        if s.known[index] == at {
            return Some(t);
        }
        t.known[index] = at;
        if index == D {
            t.sources = if rules.same_record { 0 } else { s.sources };
        }
        let done = if s.done & bit != 0 { self.record(at).deleted_through() } else { Epoch(0) };
        if self.record(at).overdue(&node(index), done).is_some() && rules.delete_first {
            if rules.wait_for_appends && s.admitted & bit != 0 {
                return None;
            }
            t.holders &= !bit;
            t.done |= bit;
        }
        Some(t)
    }
}

fn successors(table: &Table, rules: Rules, s: &State, next: &mut Vec<(State, String)>) {
    let past = &table.pasts[usize::from(s.record)];
    if s.write == NONE {
        for view in past {
            let pending = mask(table.record(*view).writers());
            next.push((State { write: *view, pending, ..*s }, format!("a write is sent under {view}")));
        }
    }
    if s.write != NONE && !s.acked && table.is_quorum(s.write, s.acks) {
        next.push((State { acked: true, acks: 0, ..*s }, "the write is acked".into()));
    }
    let deletion = past.iter().find(|at| table.steps[usize::from(**at)].is_deleted);
    if let Some(deletion) = deletion
        && !s.answered
    {
        let fenced = table.fenced(s, *deletion);
        let record = table.record(*deletion);
        let slots = record.slots.iter().filter(|node| fenced.contains(*node)).count();
        if record.is_in_force(&fenced) || !rules.readers_count && slots >= record.barrier() {
            next.push((State { answered: true, ..*s }, "the deletion is answered".into()));
        }
    }
    if s.answered && s.read == NONE {
        for view in past {
            next.push((State { read: *view, ..*s }, format!("a read is sent under {view}")));
        }
    }
    for index in 0..4 {
        node_steps(table, rules, s, index, next);
    }
    let fenced = table.fenced(s, s.record);
    for (at, step) in (0_u8..).zip(&table.steps).filter(|(_, step)| step.parent == Some(s.record)) {
        let now = table.record(s.record);
        let may = match step.name {
            _ if step.is_deleted && !table.steps[usize::from(s.record)].is_deleted => s.acked,
            "activated" => now.activate(&fenced, &nodes(s.sources)).is_ok(),
            "finished" => now.finish(&fenced).is_ok(),
            _ => true,
        };
        if may {
            next.push((State { record: at, ..*s }, format!("record {at} is committed: {}", step.name)));
        }
    }
}

/// What one node may do next.
fn node_steps(table: &Table, rules: Rules, s: &State, index: usize, next: &mut Vec<(State, String)>) {
    let (bit, name) = (1_u8 << index, NAMES[index]);
    if s.pending & bit != 0 {
        let refused = State { pending: s.pending & !bit, ..*s };
        match table.serves(s.known[index], index, s.write, Access::Write) {
            None => next.push((refused, format!("{name} refuses the write"))),
            Some(at) => {
                next.extend(table.adopt(rules, &refused, index, at).map(|t| {
                    (State { admitted: t.admitted | bit, ..t }, format!("{name} lets the write in"))
                }))
            }
        }
    }
    if s.admitted & bit != 0 {
        let acks = if s.acked { 0 } else { s.acks | bit };
        let t = State { admitted: s.admitted & !bit, holders: s.holders | bit, acks, ..*s };
        next.push((t, format!("{name} stores the write")));
    }
    if s.known[index] != s.record {
        let adopted = table.adopt(rules, s, index, s.record);
        next.extend(adopted.map(|t| (t, format!("{name} adopts record {}", s.record))));
    }
    let overdue = table.record(s.known[index]).overdue(&node(index), Epoch(0)).is_some();
    if !rules.delete_first && overdue && s.done & bit == 0 {
        let t = State { holders: s.holders & !bit, done: s.done | bit, ..*s };
        next.push((t, format!("{name} deletes at last")));
    }
    if s.read != NONE && s.replies & bit == 0 && table.record(s.read).is_reader(&node(index)) {
        let at = table.serves(s.known[index], index, s.read, Access::Read);
        let at = if rules.read_fence { at } else { Some(s.known[index]) };
        next.extend(at.and_then(|at| table.adopt(rules, s, index, at)).map(|t| {
            let found = t.found || t.holders & bit != 0;
            (State { replies: t.replies | bit, found, ..t }, format!("{name} answers the read"))
        }));
    }
    take(table, rules, s, index, next);
}

/// D fetches from a node, or another node of the shard repairs from it. What was let in is waited for by who gives.
fn take(table: &Table, rules: Rules, s: &State, from: usize, next: &mut Vec<(State, String)>) {
    let bit = 1_u8 << from;
    for to in (0..4).filter(|to| *to != from) {
        let (mine, theirs) = (table.record(s.known[to]), table.record(s.known[from]));
        let same = s.known[to] == s.known[from] || !rules.same_record;
        if !same || !theirs.slots.contains(&node(from)) || !mine.is_writer(&node(to)) {
            continue;
        }
        let holders = s.holders | if s.holders & bit != 0 { 1 << to } else { 0 };
        if mine.is_fetching(&node(to)) {
            if s.sources & bit == 0 && s.admitted & bit == 0 {
                let t = State { holders, sources: s.sources | bit, ..*s };
                next.push((t, format!("D fetches from {}", NAMES[from])));
            }
        } else if holders != s.holders {
            next.push((State { holders, ..*s }, format!("{} repairs from {}", NAMES[to], NAMES[from])));
        }
    }
}

fn explore(rules: Rules) -> (usize, Option<String>) {
    let table = Table::new();
    let first = State {
        record: 0,
        known: [0; 4],
        done: 0,
        write: NONE,
        pending: 0,
        admitted: 0,
        acks: 0,
        acked: false,
        holders: 0,
        sources: 0,
        answered: false,
        read: NONE,
        replies: 0,
        found: false,
    };
    let verdict = |s: &State| (s.found && s.replies.count_ones() >= 2).then_some("READ AGAIN");
    search::explore([first], STATES_MAX, |state, next| successors(&table, rules, state, next), verdict)
}

#[test]
fn what_was_deleted_is_not_read_again_whatever_moves_meanwhile() {
    let (states, counter_example) = explore(SHIPPED);
    assert_eq!(counter_example, None);
    assert!(states > 100_000, "only {states} states were explored");
}

#[test]
fn every_rule_of_deletions_is_needed() {
    for (name, rules) in [
        ("records first, deletions later", Rules { delete_first: false, ..SHIPPED }),
        ("no wait for appends", Rules { wait_for_appends: false, ..SHIPPED }),
        ("only slots count", Rules { readers_count: false, ..SHIPPED }),
        ("any record of who gives and takes", Rules { same_record: false, ..SHIPPED }),
        ("no read fence", Rules { read_fence: false, ..SHIPPED }),
    ] {
        let (_, counter_example) = explore(rules);
        assert!(counter_example.is_some(), "{name}: no counter-example was found");
    }
}
