//! The cores that queries are evaluated on, shared by all of them.
//!
//! A query always has the thread that it runs on. For parts that can run at the same time it takes what is idle of
//! the others, without waiting; so a busy node evaluates each query on one core, and nested parts cannot block.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use saturn_promql::Executor;

/// Work that is worth a part of its own, in samples and steps: some hundred microseconds, of which starting a thread
/// takes a few tens.
const WORK_PER_PART_MIN: usize = 1 << 17;

/// Threads for parts of queries.
#[derive(Debug)]
pub(crate) struct Cores {
    threads_max: usize,
    /// Threads that may be started now.
    idle: AtomicUsize,
}

/// Threads that were taken, given back on drop.
struct Taken<'a> {
    cores: &'a Cores,
    threads: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.cores.idle.fetch_add(self.threads, Ordering::Relaxed);
    }
}

impl Cores {
    /// At most `threads_max` threads for each query, its own included, and one less than that beside the own ones of
    /// all queries.
    pub(crate) fn new(threads_max: NonZero<usize>) -> Self {
        Self { threads_max: threads_max.get(), idle: AtomicUsize::new(threads_max.get() - 1) }
    }

    fn take(&self, wanted: usize) -> Taken<'_> {
        let mut threads = 0;
        let take = |idle: usize| {
            threads = wanted.min(idle);
            Some(idle - threads)
        };
        let _ = self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        Taken { cores: self, threads }
    }
}

impl Executor for Cores {
    fn parts(&self, work: usize) -> usize {
        (work / WORK_PER_PART_MIN).clamp(1, self.threads_max)
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let run_what_is_left = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= parts {
                    return;
                }
                part(at);
            }
        };
        let taken = self.take(parts.saturating_sub(1));
        thread::scope(|scope| {
            for _ in 0..taken.threads {
                let helper = thread::Builder::new().name("saturn-query".into());
                // Without a thread, this one does the work.
                if helper.spawn_scoped(scope, run_what_is_left).is_err() {
                    break;
                }
            }
            run_what_is_left();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(threads: usize) -> Cores {
        Cores::new(NonZero::new(threads).expect("not 0"))
    }

    #[test]
    fn every_part_runs_once_and_threads_come_back() {
        let cores = cores(4);
        for parts in [0, 1, 3, 100] {
            let runs: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            cores.run(parts, &|at| _ = runs[at].fetch_add(1, Ordering::Relaxed));
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            assert_eq!(cores.idle.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn parts_of_parts_run_even_if_no_thread_is_idle() {
        let cores = cores(2);
        let runs = AtomicUsize::new(0);
        cores.run(3, &|_| cores.run(3, &|_| cores.run(3, &|_| _ = runs.fetch_add(1, Ordering::Relaxed))));
        assert_eq!((runs.into_inner(), cores.idle.load(Ordering::Relaxed)), (27, 1));
    }

    #[test]
    fn little_work_is_not_cut() {
        let cores = cores(4);
        assert_eq!([0, WORK_PER_PART_MIN, 3 * WORK_PER_PART_MIN].map(|work| cores.parts(work)), [1, 1, 3]);
        assert_eq!(cores.parts(usize::MAX), 4);
    }
}
