//! Every order of events of one shard's move: one write, one reader, one node lost for good, coordinators with any
//! record of the past, messages that take any time.
//!
//! The records, fences, quorums and conditions are those of the shipped code, tabulated. A variant leaves a rule out;
//! each rule is there because a counter-example appears without it.

use saturn_ring::{Access, Epoch, Fence, NodeId, ShardRecord, fence};

use crate::search::{self, NAMES, mask, node, nodes};

const C: u8 = 4;
const D: u8 = 8;
/// No record yet.
const NONE: u8 = 9;
/// Stable, begun, activated, finished, and aborted, in this order.
const STABLE: usize = 0;
const BEGUN: usize = 1;
const ACTIVATED: usize = 2;
const FINISHED: usize = 3;
const ABORTED: usize = 4;
/// Bounds the search, should a change of the rules make it endless.
const STATES_MAX: usize = 3_000_000;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A moving slot needs both nodes; else any two of the four.
    pair: bool,
    write_fence: bool,
    read_fence: bool,
    /// The next step waits until enough slots know this one.
    barrier: bool,
    /// Enough sources, all of them fenced; else any one.
    covered: bool,
    /// Activation is a step of its own.
    three_steps: bool,
}

const SHIPPED: Rules = Rules {
    pair: true,
    write_fence: true,
    read_fence: true,
    barrier: true,
    covered: true,
    three_steps: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The committed record.
    record: u8,
    /// What each node holds on its disk.
    known: [u8; 4],
    /// The record under which the write was sent.
    write: u8,
    pending: u8,
    acks: u8,
    acked: bool,
    holders: u8,
    /// From whom D has fetched.
    sources: u8,
    lost: u8,
    /// The record under which the read was sent, and who answered that there is nothing.
    read: u8,
    misses: u8,
}

/// The shipped code's decisions about this move.
struct Table {
    records: [ShardRecord; 5],
    writers: [u8; 5],
    readers: [u8; 5],
    /// By record held, node, record of the request.
    write_refused: [[[bool; 5]; 4]; 5],
    read_refused: [[[bool; 5]; 4]; 5],
}

impl Table {
    fn new() -> Self {
        let stable = ShardRecord::stable(Epoch(1), (0..3).map(node).collect());
        let begun = stable.begin(2, &node(3)).expect("begins");
        let activated = begun.activate(&nodes(7), &nodes(7)).expect("activates");
        let finished = activated.finish(&nodes(7)).expect("finishes");
        let aborted = begun.abort().expect("aborts");
        let records = [stable, begun, activated, finished, aborted];
        // The abort and the activation are alternatives; both follow the same record.
        let refused = |access| {
            std::array::from_fn(|held| {
                std::array::from_fn(|index| {
                    std::array::from_fn(|asked| {
                        let epoch: Epoch = records[asked].epoch;
                        let verdict = fence(Some(&records[held]), &node(index), epoch, access);
                        // Who is behind is handed the newer record, and serves.
                        !matches!(verdict, Fence::Current | Fence::Behind)
                    })
                })
            })
        };
        Self {
            writers: std::array::from_fn(|i| mask(records[i].writers())),
            readers: std::array::from_fn(|i| mask(records[i].readers())),
            write_refused: refused(Access::Write),
            read_refused: refused(Access::Read),
            records,
        }
    }

    fn is_quorum(&self, rules: Rules, record: usize, acks: u8) -> bool {
        let acks = acks & self.writers[record];
        if !rules.pair {
            return acks.count_ones() >= 2;
        }
        let record = &self.records[record];
        let complete = |members: &Vec<&NodeId>| mask(members.iter().copied()) & !acks == 0;
        record.slot_members().filter(complete).count() >= record.quorum()
    }

    /// Whether the step after a record may be committed.
    fn may_advance(&self, rules: Rules, state: &State) -> bool {
        let record = &self.records[state.record as usize];
        let knows = |index: &usize| state.known[*index] >= state.record && state.lost & 1 << index == 0;
        let fenced = if rules.barrier { (0..4).filter(knows).fold(0, |all, i| all | 1 << i) } else { 15 };
        if usize::from(state.record) == BEGUN {
            let sources = if rules.covered || state.sources == 0 { state.sources } else { 15 };
            record.activate(&nodes(fenced), &nodes(sources)).is_ok()
        } else {
            record.finish(&nodes(fenced)).is_ok()
        }
    }
}

/// The records that a coordinator may still act on.
fn past(rules: Rules, record: u8) -> Vec<u8> {
    match usize::from(record) {
        ABORTED => vec![0, 1, 4],
        FINISHED if !rules.three_steps => vec![0, 1, 3],
        _ => (0..=record).collect(),
    }
}

fn successors(table: &Table, rules: Rules, s: &State, next: &mut Vec<(State, String)>) {
    if s.write == NONE {
        for view in past(rules, s.record) {
            next.push((
                State { write: view, pending: table.writers[view as usize], ..*s },
                format!("a write is sent under {view}"),
            ));
        }
    }
    for index in 0..4 {
        node_steps(table, rules, s, index, next);
    }
    if s.write != NONE && !s.acked && table.is_quorum(rules, s.write.into(), s.acks) {
        next.push((State { acked: true, ..*s }, "the write is acked".into()));
    }
    if s.acked && s.read == NONE {
        for view in past(rules, s.record) {
            next.push((State { read: view, ..*s }, format!("a read is sent under {view}")));
        }
    }
    let advance =
        |record: usize| (State { record: record as u8, ..*s }, format!("record {record} is committed"));
    match usize::from(s.record) {
        STABLE => next.push(advance(BEGUN)),
        BEGUN => {
            if table.may_advance(rules, s) {
                next.push(advance(if rules.three_steps { ACTIVATED } else { FINISHED }));
            }
            next.push(advance(ABORTED));
        }
        ACTIVATED if table.may_advance(rules, s) => next.push(advance(FINISHED)),
        _ => {}
    }
    if usize::from(s.record) == FINISHED && usize::from(s.known[2]) == FINISHED && s.holders & C != 0 {
        next.push((State { holders: s.holders & !C, ..*s }, "C deletes its copy".into()));
    }
    if usize::from(s.record) == ABORTED && usize::from(s.known[3]) == ABORTED && s.holders & D != 0 {
        next.push((State { holders: s.holders & !D, ..*s }, "D deletes its copy".into()));
    }
}

/// What one node may do next.
fn node_steps(table: &Table, rules: Rules, s: &State, index: usize, next: &mut Vec<(State, String)>) {
    let (bit, name) = (1_u8 << index, NAMES[index]);
    if s.lost & bit != 0 {
        return;
    }
    if s.lost == 0 {
        next.push((State { lost: bit, holders: s.holders & !bit, ..*s }, format!("{name} is lost for good")));
    }
    let learns = |state: &mut State, record: u8| state.known[index] = state.known[index].max(record);
    if s.pending & bit != 0 {
        let mut t = State { pending: s.pending & !bit, ..*s };
        if rules.write_fence && table.write_refused[s.known[index] as usize][index][s.write as usize] {
            next.push((t, format!("{name} refuses the write")));
        } else {
            t.holders |= bit;
            t.acks |= bit;
            if rules.write_fence {
                learns(&mut t, s.write);
            }
            next.push((t, format!("{name} stores the write")));
        }
    }
    if s.known[index] < s.record {
        let mut t = *s;
        t.known[index] = s.record;
        next.push((t, format!("{name} learns record {}", s.record)));
    }
    let asked = s.read != NONE && table.readers[s.read as usize] & bit != 0;
    if asked && (s.misses | s.holders) & bit == 0 {
        let refused = table.read_refused[s.known[index] as usize][index][s.read as usize];
        if !rules.read_fence || !refused {
            let mut t = State { misses: s.misses | bit, ..*s };
            if rules.read_fence {
                learns(&mut t, s.read);
            }
            next.push((t, format!("{name} answers the read with nothing")));
        }
    }
    let fetching = usize::from(s.record) == BEGUN && usize::from(s.known[3]) >= BEGUN && s.lost & D == 0;
    let is_fenced = !rules.write_fence || usize::from(s.known[index]) >= BEGUN;
    if fetching && index < 3 && s.sources & bit == 0 && is_fenced {
        let found = if s.holders & bit != 0 { D } else { 0 };
        next.push((
            State { sources: s.sources | bit, holders: s.holders | found, ..*s },
            format!("D fetches from {name}"),
        ));
    }
}

/// The number of states, and the first way to lose a write or to miss it, if there is one.
fn explore(rules: Rules) -> (usize, Option<String>) {
    let table = Table::new();
    let first = State {
        record: 0,
        known: [0; 4],
        write: NONE,
        pending: 0,
        acks: 0,
        acked: false,
        holders: 0,
        sources: 0,
        lost: 0,
        read: NONE,
        misses: 0,
    };
    let verdict = |s: &State| {
        let lost = s.acked && s.holders & table.writers[s.record as usize] & !s.lost == 0;
        let missed = s.acked && s.misses.count_ones() >= 2;
        lost.then_some("LOST").or(missed.then_some("MISSED"))
    };
    search::explore([first], STATES_MAX, |state, next| successors(&table, rules, state, next), verdict)
}

#[test]
fn the_shipped_protocol_loses_nothing_and_hides_nothing() {
    let (states, counter_example) = explore(SHIPPED);
    assert_eq!(counter_example, None);
    assert!(states > 100_000, "only {states} states were explored");
}

#[test]
fn every_rule_is_needed() {
    for (name, rules) in [
        ("any two of four acks", Rules { pair: false, ..SHIPPED }),
        ("no write fence", Rules { write_fence: false, ..SHIPPED }),
        ("no read fence", Rules { read_fence: false, ..SHIPPED }),
        ("no barrier", Rules { barrier: false, ..SHIPPED }),
        ("one source, whichever", Rules { covered: false, ..SHIPPED }),
        ("no activation", Rules { three_steps: false, ..SHIPPED }),
    ] {
        let (_, counter_example) = explore(rules);
        assert!(counter_example.is_some(), "{name}: no counter-example was found");
    }
}
