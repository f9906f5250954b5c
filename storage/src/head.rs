//! The samples of one shard that are in memory: a slot for each series that has any.
//!
//! A slot is not an ordinal: a series whose samples were flushed, and that gets no more, costs nothing here. A
//! flush takes the whole of it, and a new one begins to fill; so slots are never freed one by one.

use crate::run::Run;

/// Ordinals of one page of the directory. Ordinals are in order of arrival, so series that are active at the same
/// time are near each other; small pages waste little where they are not.
const PAGE: usize = 64;
const NO_SLOT: u32 = u32::MAX;

/// Samples in memory, by ordinal.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadSamples {
    /// By slot.
    slots: Vec<Slot>,
    /// By ordinal: its slot, or [`NO_SLOT`].
    directory: Vec<Option<Box<[u32; PAGE]>>>,
    /// Pages of the directory that are there.
    pages: usize,
    samples: usize,
    /// Of all runs.
    heap_bytes: usize,
}

#[derive(Clone, Debug)]
struct Slot {
    ordinal: u32,
    run: Run,
}

impl HeadSamples {
    /// For about as many series as `other` has.
    pub(crate) fn as_large_as(other: &Self) -> Self {
        let mut new = Self::default();
        new.slots.reserve_exact(other.slots.len() + other.slots.len() / 16);
        new.directory.reserve_exact(other.directory.len());
        new
    }

    /// Adds samples in any order. Returns how many times are new.
    pub(crate) fn append(&mut self, ordinal: u32, timestamps: &[i64], values: &[f64]) -> usize {
        if timestamps.is_empty() {
            return 0;
        }
        let slot = self.slot_or_new(ordinal);
        let run = &mut self.slots[slot].run;
        let before = run.heap_bytes();
        let new = run.append(timestamps, values);
        self.heap_bytes = self.heap_bytes + run.heap_bytes() - before;
        self.samples += new;
        new
    }

    /// The samples of a series, if it has any.
    pub(crate) fn run(&self, ordinal: u32) -> Option<&Run> {
        Some(&self.slots[self.slot(ordinal)?].run)
    }

    /// Ordinals and samples of all series that have any, in the order of their first append.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Run)> {
        self.slots.iter().map(|slot| (slot.ordinal, &slot.run))
    }

    /// How many series have samples.
    pub(crate) fn series(&self) -> usize {
        self.slots.len()
    }

    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.samples
    }

    /// Whether there is no sample.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of memory that the samples take. What is only reserved, and the allocator's own, is not counted.
    pub(crate) fn bytes(&self) -> usize {
        self.heap_bytes + self.slots.len() * size_of::<Slot>() + self.pages * size_of::<[u32; PAGE]>()
    }

    /// Adds all samples of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        let (mut timestamps, mut values) = (Vec::new(), Vec::new());
        for (ordinal, run) in other.iter() {
            timestamps.clear();
            values.clear();
            run.read(i64::MIN, i64::MAX, &mut timestamps, &mut values);
            self.append(ordinal, &timestamps, &values);
        }
    }

    fn slot(&self, ordinal: u32) -> Option<usize> {
        let (page, at) = place(ordinal);
        let slot = self.directory.get(page)?.as_ref()?[at];
        (slot != NO_SLOT).then_some(slot as usize)
    }

    fn slot_or_new(&mut self, ordinal: u32) -> usize {
        let (page, at) = place(ordinal);
        if self.directory.len() <= page {
            self.directory.resize_with(page + 1, || None);
        }
        let page = self.directory[page].get_or_insert_with(|| {
            self.pages += 1;
            Box::new([NO_SLOT; PAGE])
        });
        if page[at] == NO_SLOT {
            page[at] = u32::try_from(self.slots.len()).expect("there are fewer slots than ordinals");
            self.slots.push(Slot { ordinal, run: Run::default() });
        }
        page[at] as usize
    }
}

fn place(ordinal: u32) -> (usize, usize) {
    (ordinal as usize / PAGE, ordinal as usize % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_series_with_samples_have_a_slot() {
        let mut head = HeadSamples::default();
        assert_eq!(head.append(1_000_000, &[], &[]), 0);
        assert!(head.is_empty() && head.run(1_000_000).is_none());
        assert_eq!(head.append(1_000_000, &[1, 2], &[1.0, 2.0]), 2);
        assert_eq!(head.append(3, &[5], &[1.0]), 1);
        assert_eq!(head.append(1_000_000, &[2, 3], &[2.0, 3.0]), 1);
        let found: Vec<_> = head.iter().map(|(ordinal, run)| (ordinal, run.bounds())).collect();
        assert_eq!(found, [(1_000_000, Some((1, 3))), (3, Some((5, 5)))]);
        assert_eq!((head.series(), head.len()), (2, 4));
        assert!(head.run(999_999).is_none() && head.run(u32::MAX).is_none());

        let mut merged = HeadSamples::as_large_as(&head);
        merged.append(3, &[4, 5], &[9.0, 0.0]);
        merged.merge(&head);
        assert_eq!((merged.series(), merged.len()), (2, 5));
        let (mut timestamps, mut values) = (Vec::new(), Vec::new());
        merged.run(3).expect("there").read(0, 9, &mut timestamps, &mut values);
        assert_eq!((timestamps, values), (vec![4, 5], vec![9.0, 1.0]));
        assert!(merged.bytes() > 2 * size_of::<Slot>());
    }
}
