//! The tests: batches of seeds, and the planted bugs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::marks::Marks;
use crate::planted::Bug;
use crate::world::run;

/// Seeds of `make test`.
const SEEDS: u64 = 150;
/// Seeds that once failed.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn regressions() -> Vec<u64> {
    let lines = REGRESSIONS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.parse().expect("a seed a line")).collect()
}

/// Runs a seed twice; says what was wrong, if anything was.
fn check(seed: u64) -> (Result<u64, String>, Marks) {
    let (first, second) = (run(seed, None, false), run(seed, None, false));
    let replay = format!("SATURN_SEED={seed} SATURN_TRACE=1 make simulate");
    let result = match first.violation {
        Some(text) => Err(format!("seed {seed}: {text}\nreplay it with: {replay}")),
        None if first.hash != second.hash => {
            Err(format!("seed {seed} does not give the same twice: something draws from outside\n{replay}"))
        }
        None => Ok(first.events),
    };
    (result, first.marks)
}

/// Runs seeds on so many threads; fails with the first ones that fail.
fn batch(seeds: &[u64], threads: usize) -> (u64, Marks) {
    let (next, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let (all, failures) = (Mutex::new(Marks::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let (result, marks) = check(*seed);
                    all.lock().expect("no panic").add(&marks);
                    match result {
                        Ok(count) => _ = events.fetch_add(count, Ordering::Relaxed),
                        Err(text) => failures.lock().expect("no panic").push(text),
                    }
                    if failures.lock().expect("no panic").len() >= 5 {
                        break;
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    (events.into_inner(), all.into_inner().expect("no panic"))
}

#[test]
fn no_seed_loses_or_hides_a_write() {
    if let Some(seed) = number("SATURN_SEED") {
        let outcome = run(seed, None, number("SATURN_TRACE").is_some());
        outcome.trace.iter().for_each(|line| report(line));
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let count = number("SATURN_SEEDS");
    let mut seeds = regressions();
    seeds.extend(0..count.unwrap_or(SEEDS));
    seeds.retain(|seed| *seed >= number("SATURN_FROM").unwrap_or(0));
    let threads =
        if count.is_some() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let started = std::time::Instant::now();
    let (events, marks) = batch(&seeds, threads);
    let secs = started.elapsed().as_secs_f64();
    let count = seeds.len();
    report(&format!(
        "{count} seeds, each twice, {events} events each time, {secs:.1} s on {threads} threads"
    ));
    report(&marks.to_string());
    assert_eq!(marks.unseen(), [], "situations that no seed was in");
}

/// For whoever runs this with `--nocapture`.
#[expect(clippy::print_stdout, reason = "tests' output is for people")]
fn report(text: &str) {
    println!("{text}");
}

/// Fails unless one of so many seeds shows the bug in what is lost or hidden.
fn find(bug: Bug, seeds: u64) {
    let seeds = number("SATURN_SEEDS").unwrap_or(seeds);
    let found = (0..seeds).find_map(|seed| Some((seed, run(seed, Some(bug), false).violation?)));
    assert!(found.is_some(), "{bug:?} is not found within {seeds} seeds");
    if let Some((seed, violation)) = found {
        report(&format!("{bug:?}: seed {seed}: {violation}"));
    }
}

#[test]
fn a_skipped_barrier_is_found() {
    find(Bug::SkippedBarrier, 90);
}

#[test]
fn a_skipped_fence_is_found() {
    find(Bug::SkippedFence, 20);
}

#[test]
fn a_move_in_two_steps_is_found() {
    find(Bug::TwoStepMove, 200);
}

#[test]
fn any_two_of_four_is_found() {
    find(Bug::AnyTwoOfFour, 20);
}

#[test]
fn a_source_without_a_fence_is_found() {
    find(Bug::UnfencedSource, 20);
}

#[test]
fn requests_of_past_epochs_is_found() {
    find(Bug::StaleEpochAccepted, 20);
}

#[test]
fn a_source_that_does_not_settle_is_found() {
    find(Bug::UnsettledSource, 60);
}

#[test]
fn an_acknowledgement_before_the_disk_is_found() {
    find(Bug::AckBeforeSync, 20);
}

#[test]
fn a_copy_deleted_while_it_comes_back_is_found() {
    find(Bug::DropWithoutLook, 450);
}

#[test]
fn a_read_of_a_copy_that_goes_meanwhile_is_found() {
    find(Bug::ReadWithoutSecondLook, 90);
}

#[test]
fn a_missed_deletion_is_found() {
    find(Bug::DeletionMissed, 100);
}

#[test]
fn a_deletion_that_does_not_settle_is_found() {
    find(Bug::UnsettledDeletion, 200);
}
