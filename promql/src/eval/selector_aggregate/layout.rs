//! Where the windows of all steps lie in a column of times. Series of one scrape have the same times, so it is found
//! once for many series.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::SelectorAggregate;
use crate::eval::counts::StepCounts;
use crate::eval::extrapolate::{Change, PlainTiming, RecentTiming};
use crate::eval::window::Slider;

/// Most bytes of layouts that are remembered, roughly; then they are forgotten.
const BYTES_MAX: usize = 16 << 20;

/// One step that sees samples: those at `first..past`, of which `new` were not seen by a step before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) step: u32,
    pub(super) first: u32,
    pub(super) past: u32,
    pub(super) new: u32,
}

impl Sight {
    pub(super) fn range(self) -> Range<usize> {
        self.first as usize..self.past as usize
    }
}

/// The windows over one column of times.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) timestamps: Vec<i64>,
    /// Steps ascending. Of an instant selector, the newest sample is alone in its window.
    pub(super) windows: Vec<Sight>,
    /// For `rate` and the like: parallel to `windows`.
    pub(super) timings: Vec<Option<PlainTiming>>,
    /// How many series had these times whose samples are not counted yet.
    pub(super) series: u64,
}

/// Layouts by a hash of their times.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    known: HashMap<u64, Layout>,
    bytes: usize,
}

impl Layouts {
    /// The layout of these times.
    pub(super) fn of(
        &mut self,
        timestamps: &[i64],
        (plan, change): (&SelectorAggregate, Option<Change>),
        counts: &mut StepCounts,
    ) -> &mut Layout {
        if self.bytes > BYTES_MAX {
            self.finish(counts);
        }
        match self.known.entry(hash_of(timestamps)) {
            Entry::Occupied(known) => {
                let known = known.into_mut();
                if known.timestamps != timestamps {
                    let new = Layout::of(timestamps, plan, change);
                    self.bytes = self.bytes + new.bytes() - known.bytes();
                    std::mem::replace(known, new).count(counts);
                }
                known
            }
            Entry::Vacant(place) => {
                let new = Layout::of(timestamps, plan, change);
                self.bytes += new.bytes();
                place.insert(new)
            }
        }
    }

    /// Forgets all of them, and counts what was seen by them.
    pub(super) fn finish(&mut self, counts: &mut StepCounts) {
        self.known.drain().for_each(|(_, layout)| layout.count(counts));
        self.bytes = 0;
    }
}

/// Targets differ in the offset of their scrapes, and late scrapes are somewhere among the first or last.
fn hash_of(timestamps: &[i64]) -> u64 {
    const SOME: usize = 4;
    let ends = timestamps.iter().take(SOME).chain(timestamps.iter().rev().take(SOME));
    ends.fold(timestamps.len() as u64, |hash, time| {
        (hash.rotate_left(5) ^ time.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

impl Layout {
    fn of(timestamps: &[i64], plan: &SelectorAggregate, change: Option<Change>) -> Self {
        let index = |at: usize| u32::try_from(at).expect("fewer than 2^32 steps and samples are held");
        let (mut windows, mut timings) = (Vec::new(), Vec::new());
        let (mut slider, mut recent) = (Slider::default(), RecentTiming::default());
        for step in 0..plan.grid.count {
            let sight = plan.sight(step);
            let seen = slider.past;
            slider.slide(timestamps, sight.0, sight.1);
            if slider.first == slider.past {
                continue;
            }
            let new = slider.past - seen.max(slider.first);
            let first = match plan.function {
                Some(_) => slider.first,
                None => slider.past - 1,
            };
            let new = if plan.function.is_some() { new } else { new.min(1) };
            let (past, step) = (index(slider.past), index(step));
            windows.push(Sight { step, first: index(first), past, new: index(new) });
            if let Some(change) = change {
                timings.push(recent.of(&timestamps[first..slider.past], sight, change).cloned());
            }
        }
        Self { timestamps: timestamps.to_vec(), windows, timings, series: 0 }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(self.timestamps.as_slice())
            + size_of_val(self.windows.as_slice())
            + size_of_val(self.timings.as_slice())
    }

    /// Counts what its series were looked at for.
    fn count(&self, counts: &mut StepCounts) {
        let series = usize::try_from(self.series).expect("series fit into memory");
        for window in self.windows.iter().filter(|_| series > 0) {
            counts.count(window.step as usize, window.range().len() * series, window.new as usize * series);
        }
    }
}
