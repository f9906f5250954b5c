//! Randomness from one seed: a stream for each part of the simulator, so that one more draw in one part does not
//! change what the others draw. And what is drawn first: the conditions of the run.

use crate::world::Micros;

/// A stream of numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream of this name.
    pub(crate) fn stream(seed: u64, name: &str) -> Self {
        Self(name.bytes().fold(mix(seed ^ 0x5361_7475), |hash, byte| mix(hash ^ u64::from(byte))))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `from` up to and including `to`.
    pub(crate) fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to.saturating_sub(from) + 1)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        (self.next() % len.max(1) as u64) as usize
    }

    /// Whether something of this probability happens.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// From `from` to `to`, small ones as likely as large ones.
    pub(crate) fn scale(&mut self, from: u64, to: u64) -> u64 {
        let (low, high) = ((from.max(1)).ilog2(), to.max(1).ilog2());
        let top = self.range(u64::from(low), u64::from(high));
        let top = 1 << top;
        self.range(top, top * 2).clamp(from, to)
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.index(of.len())]) }
    }
}

/// The conditions of a run. Each feature is off in a good part of the seeds: some flaws only show where others
/// are not in the way.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    pub(crate) shards: u16,
    pub(crate) replication_factor: u8,
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) delay_min: Micros,
    pub(crate) delay_max: Micros,
    pub(crate) fsync_max: Micros,
    /// Whether a few appends take seconds.
    pub(crate) stalls: bool,
    /// Longest time that a replica takes to read a shard.
    pub(crate) read_max: Micros,
    /// Longest time that a node takes to delete a shard.
    pub(crate) drop_max: Micros,
    pub(crate) write_every: Micros,
    pub(crate) read_every: Micros,
    /// Whether nodes become slow for a while.
    pub(crate) slow_nodes: bool,
    pub(crate) partitions: bool,
    pub(crate) one_way: bool,
    pub(crate) crashes: bool,
    pub(crate) lost_disks: bool,
    pub(crate) membership: bool,
    pub(crate) clock_jumps: bool,
    pub(crate) leader_loss: bool,
    pub(crate) false_suspicion: bool,
    /// Whether liveness comes from the real gossip core rather than a simple view.
    pub(crate) gossip: bool,
    /// Mean time between two faults.
    pub(crate) fault_every: Micros,
    /// Mean time between two changes of the member list.
    pub(crate) change_every: Micros,
    /// After how long at most a node hears of a decision.
    pub(crate) apply_max: Micros,
    /// After how long a move goes on without its target.
    pub(crate) gone_after: Micros,
    /// Time between two looks for copies that are not needed any more.
    pub(crate) clean_every: Micros,
    /// Mean time between two deletions, if there are any.
    pub(crate) delete_every: Option<Micros>,
}

const MS: Micros = 1_000;

impl Params {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = Random::stream(seed, "deletions");
        let (deletes, delete_every) = (random.percent(33), random.scale(500 * MS, 15_000 * MS));
        let mut random = Random::stream(seed, "params");
        let replication_factor = if random.percent(10) { 1 } else { 3 };
        let delay_min = random.scale(100, 50 * MS);
        let mut half = || random.percent(50);
        let (partitions, one_way, crashes, lost_disks, clock_jumps) =
            (half(), half(), half(), half(), half());
        let (leader_loss, false_suspicion, lossy, duplicates) = (half(), half(), half(), half());
        let (stalls, slow_nodes) = (half(), half());
        let mut params = Self {
            nodes: random.range(3, 7) as usize,
            zones: random.range(1, 3) as usize,
            shards: random.scale(1, 16) as u16,
            replication_factor,
            loss_percent: if lossy { random.scale(1, 30) } else { 0 },
            duplicate_percent: if duplicates { random.range(1, 10) } else { 0 },
            delay_min,
            delay_max: random.scale(delay_min, 500 * MS),
            fsync_max: random.scale(100, 200 * MS),
            read_max: random.scale(100, 4_000 * MS),
            drop_max: random.scale(MS, 5_000 * MS),
            write_every: random.scale(25 * MS, 200 * MS),
            read_every: random.scale(100 * MS, 800 * MS),
            stalls,
            slow_nodes,
            partitions,
            one_way,
            crashes,
            lost_disks: lost_disks && replication_factor == 3,
            membership: random.percent(90),
            clock_jumps,
            leader_loss,
            false_suspicion,
            gossip: random.percent(12),
            fault_every: random.scale(500 * MS, 8_000 * MS),
            change_every: random.scale(1_000 * MS, 10_000 * MS),
            apply_max: random.scale(10 * MS, 20_000 * MS),
            gone_after: random.scale(1_000 * MS, 20_000 * MS),
            clean_every: random.scale(300 * MS, 15_000 * MS),
            delete_every: deletes.then_some(delete_every),
        };
        // Moves that come and go as fast as they can, which leaves the rarest gaps open.
        if random.percent(25) {
            params.loss_percent = 0;
            params.membership = true;
            params.change_every = 800 * MS;
            params.clean_every = 300 * MS;
            params.drop_max = 4_000 * MS;
            params.read_max = 6_000 * MS;
        }
        params
    }
}
