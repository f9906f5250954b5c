//! Where independent parts of an evaluation run: this crate has no threads of its own.

/// Runs parts of an evaluation, at the same time if it can. Results do not depend on it.
pub trait Executor: Sync {
    /// Into how many parts work of a size shall be cut, at least 1. A unit is a sample or step of one series that is
    /// looked at: some nanoseconds; `usize::MAX` where the size is not known.
    fn parts(&self, work: usize) -> usize;

    /// Calls `part` once with each number below `parts`, in any order and from any threads, and returns when all calls
    /// have. A part may itself call this.
    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync));
}

/// One part after the other, on the caller's thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequential;

impl Executor for Sequential {
    fn parts(&self, _work: usize) -> usize {
        1
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(part);
    }
}
