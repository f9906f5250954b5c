//! `soak`: one Saturn node for a long time at half of its peak, with series that come and go, deletes,
//! queries and merges. Every answer is compared with a model; memory is watched.
//!
//! Run it by `make soak`. The data's clock runs faster than the wall's: a round of all series is 15 s of it.
//! What a series holds is a function of its name and the time, so that the model needs no memory.
#![expect(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use saturn_benches::{Load, Subject, machine, send_all};
use saturn_chaos_tests::remote_write::{compress, encode_labels, put_series};
use saturn_chaos_tests::{Endpoint, now_ms};

/// Time between two samples of a series, in milliseconds.
const INTERVAL_MS: i64 = 15_000;

/// How far the data's clock is behind the wall's at the start, in milliseconds: it must not overtake.
const BEHIND_MS: i64 = 5 * 24 * 3_600_000;

/// How long a pod lives before another takes its place, in milliseconds of the data's clock.
const POD_LIFE_MS: i64 = 2 * 3_600_000;

/// Series of one pod.
const SERIES_PER_POD: u64 = 100;

/// Pods in one request.
const PODS_PER_REQUEST: u64 = 20;

/// Rounds that are sent as fast as they are taken, to find the peak.
const PEAK_ROUNDS: usize = 40;

/// What a range query of the checks covers, in milliseconds.
const CHECKED_MS: i64 = 5 * 60_000;

/// Time between two looks at the memory.
const MEMORY_EVERY: Duration = Duration::from_secs(5);

/// Parts of the run whose peaks of memory are told apart.
const PARTS: usize = 6;

#[derive(Debug, Parser)]
struct Options {
    /// How long to run after the peak was found.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Series at a time.
    #[arg(long, default_value_t = 100_000)]
    series: u64,
}

/// The truth: which series there are, and what they hold.
#[derive(Debug, Clone, Copy)]
struct Model {
    pods: u64,
    first_ms: i64,
}

/// One pod in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pod {
    place: u64,
    life: i64,
}

impl Model {
    /// Who is in a place at a time. The places change at different times.
    fn pod(&self, place: u64, time_ms: i64) -> Pod {
        let offset = (mix(place) % POD_LIFE_MS.unsigned_abs()).cast_signed();
        Pod { place, life: (time_ms + offset) / POD_LIFE_MS }
    }

    fn value(pod: Pod, series: u64, time_ms: i64) -> f64 {
        let own = mix(mix(pod.place ^ pod.life.unsigned_abs() << 32) ^ series);
        let step = (time_ms / INTERVAL_MS).unsigned_abs();
        match own % 8 {
            // A counter that grows by what it is asked to do.
            0 | 1 => (step * (1 + own % 50) + mix(own ^ step) % 50) as f64,
            // CPU seconds: hundredths.
            2 => (step * (own % 1500) + mix(own ^ step) % 100) as f64 / 100.0,
            // A gauge.
            3 => (mix(own ^ step) % 10_000) as f64 / 100.0,
            // Most stay as they are.
            _ => (own % 100) as f64,
        }
    }

    /// The requests of one round.
    fn round(&self, time_ms: i64) -> Vec<Vec<u8>> {
        let places: Vec<u64> = (0..self.pods).collect();
        let requests = places.chunks(PODS_PER_REQUEST as usize);
        requests.map(|places| compress(&self.request(places, time_ms))).collect()
    }

    fn request(&self, places: &[u64], time_ms: i64) -> Vec<u8> {
        let mut request = Vec::new();
        for place in places {
            let pod = self.pod(*place, time_ms);
            for series in 0..SERIES_PER_POD {
                let labels = labels(pod, series).map(|(name, value)| (name.to_owned(), value));
                put_series(
                    &mut request,
                    &encode_labels(&labels),
                    &[(time_ms, Self::value(pod, series, time_ms))],
                );
            }
        }
        request
    }

    /// The samples of a series in the window that ends at a time, whose start is not in it.
    fn samples(&self, pod: Pod, series: u64, end_ms: i64) -> Vec<(i64, f64)> {
        let first = (end_ms - CHECKED_MS).div_euclid(INTERVAL_MS) + 1;
        let times = (first..=end_ms.div_euclid(INTERVAL_MS)).map(|step| step * INTERVAL_MS);
        let lives = times.filter(|time| *time >= self.first_ms && self.pod(pod.place, *time) == pod);
        lives.map(|time| (time, Self::value(pod, series, time))).collect()
    }
}

fn labels(pod: Pod, series: u64) -> [(&'static str, String); 6] {
    [
        ("__name__", format!("soak_metric_{}_total", series / 10)),
        ("container", format!("app-{}", pod.place % 7)),
        ("core", (series % 10).to_string()),
        ("job", "soak".to_owned()),
        ("namespace", format!("team-{}", pod.place % 40)),
        ("pod", pod_name(pod)),
    ]
}

fn pod_name(pod: Pod) -> String {
    format!("app-{}-{:08x}", pod.place, mix(pod.life.unsigned_abs()) & 0xffff_ffff)
}

/// splitmix64: what follows from a number looks random.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// What the tasks share.
#[derive(Debug, Default)]
struct Progress {
    /// Time of the last round that is all durable.
    acked_ms: AtomicI64,
    samples: AtomicU64,
    queries: AtomicU64,
    deletes: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let subject = Subject::saturn_with(&["--web.enable-admin-api=true"]).await?;
    let endpoint = subject.endpoints().pop().context("an endpoint")?;
    let pods = (options.series / SERIES_PER_POD).max(1);
    let first_ms = (now_ms() / INTERVAL_MS - BEHIND_MS / INTERVAL_MS) * INTERVAL_MS;
    let model = Model { pods, first_ms };
    let mut time_ms = first_ms;

    let mut requests = Vec::new();
    for _ in 0..PEAK_ROUNDS {
        requests.push(model.round(time_ms));
        time_ms += INTERVAL_MS;
    }
    let started = Instant::now();
    for round in requests {
        send_round(&endpoint, round).await?;
    }
    let round_seconds_at_peak = started.elapsed().as_secs_f64() / PEAK_ROUNDS as f64;
    let series = (pods * SERIES_PER_POD) as f64;
    println!("{}.\n", machine());
    println!("peak: {:.0} samples/s; from here on half of it", series / round_seconds_at_peak);

    let progress = Arc::new(Progress::default());
    progress.acked_ms.store(time_ms - INTERVAL_MS, Ordering::Relaxed);
    let length = Duration::from_secs(60 * options.minutes);
    let checker = tokio::spawn(check(model, endpoint.clone(), Arc::clone(&progress)));
    let started = Instant::now();
    let (mut peaks, mut next_look) = ([0_u64; PARTS], Duration::ZERO);
    let mut next_round = Duration::ZERO;
    while started.elapsed() < length {
        ensure!(time_ms < now_ms(), "the data's clock has reached the wall's: run shorter");
        send_round(&endpoint, model.round(time_ms)).await?;
        progress.acked_ms.store(time_ms, Ordering::Relaxed);
        progress.samples.fetch_add(pods * SERIES_PER_POD, Ordering::Relaxed);
        time_ms += INTERVAL_MS;
        if started.elapsed() >= next_look {
            next_look += MEMORY_EVERY;
            let part = (started.elapsed().as_secs_f64() / length.as_secs_f64() * PARTS as f64) as usize;
            let peak = &mut peaks[part.min(PARTS - 1)];
            *peak = subject.resident_bytes()?.max(*peak);
        }
        if checker.is_finished() {
            break;
        }
        next_round += Duration::from_secs_f64(2.0 * round_seconds_at_peak);
        tokio::time::sleep(next_round.saturating_sub(started.elapsed())).await;
    }
    checker.abort();
    match checker.await {
        Ok(result) => return result,
        Err(error) if error.is_cancelled() => {}
        Err(error) => bail!(error),
    }
    let elapsed = started.elapsed();
    let samples = progress.samples.load(Ordering::Relaxed);
    println!(
        "{samples} samples in {:.1} minutes, {:.0} a second",
        elapsed.as_secs_f64() / 60.0,
        samples as f64 / elapsed.as_secs_f64()
    );
    println!("{:.1} hours of the data's clock", (time_ms - first_ms) as f64 / 3.6e6);
    println!(
        "{} answers compared with the model, {} pods deleted, no difference, no error",
        progress.queries.load(Ordering::Relaxed),
        progress.deletes.load(Ordering::Relaxed)
    );
    println!("peaks of memory, a sixth of the time each, MiB: {:?}", peaks.map(|bytes| bytes >> 20));
    let disk_bytes = subject.stop().await?;
    println!("{:.2} bytes on disk per sample", disk_bytes as f64 / samples as f64);
    Ok(())
}

async fn send_round(endpoint: &Endpoint, requests: Vec<Vec<u8>>) -> Result<()> {
    let load = Arc::new(Load { requests, samples: 0, metrics: Vec::new(), end_ms: 0, span_ms: 0 });
    send_all(&load, std::slice::from_ref(endpoint), 8).await.map(drop)
}

/// Asks and deletes, one after the other, until it is aborted or an answer is wrong.
async fn check(model: Model, endpoint: Endpoint, progress: Arc<Progress>) -> Result<()> {
    let mut deleted = HashSet::new();
    for number in 0_u64.. {
        let acked_ms = progress.acked_ms.load(Ordering::Relaxed);
        let span = (acked_ms - model.first_ms) / INTERVAL_MS + 1;
        let draw = |salt: u64, bound: u64| mix(number ^ salt << 56) % bound;
        // Half of the questions are about the newest data, as dashboards' are.
        let steps = if number % 2 == 0 { span.min(240) } else { span };
        let time_ms = acked_ms - draw(1, steps.unsigned_abs()).cast_signed() * INTERVAL_MS;
        let pod = model.pod(draw(2, model.pods), time_ms);
        let series = draw(3, SERIES_PER_POD);
        let samples = model.samples(pod, series, time_ms);
        let expected = if deleted.contains(&pod) { &[][..] } else { &samples };
        compare(&endpoint, pod, series, time_ms, expected).await?;
        progress.queries.fetch_add(1, Ordering::Relaxed);
        // A pod that is gone may be deleted whole.
        if number % 500 == 0 && model.pod(pod.place, acked_ms + POD_LIFE_MS / 8).life > pod.life + 1 {
            delete(&endpoint, pod).await?;
            deleted.insert(pod);
            progress.deletes.fetch_add(1, Ordering::Relaxed);
            compare(&endpoint, pod, series, time_ms, &[]).await?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn compare(
    endpoint: &Endpoint,
    pod: Pod,
    series: u64,
    time_ms: i64,
    expected: &[(i64, f64)],
) -> Result<()> {
    let matchers = labels(pod, series).map(|(name, value)| format!("{name}=\"{value}\"")).join(",");
    let query = format!("{{{matchers}}}[{}s]", CHECKED_MS / 1000);
    let answer = endpoint.query(&query, time_ms).await?.complete()?;
    let mut got = Vec::new();
    for one in answer.series() {
        for pair in one["values"].as_array().context("a matrix")? {
            let time = pair[0].as_f64().context("a time")?;
            let value: f64 = pair[1].as_str().context("a value")?.parse()?;
            got.push(((time * 1000.0).round() as i64, value));
        }
    }
    ensure!(got == expected, "{query} at {time_ms}: want {expected:?}, got {got:?}");
    Ok(())
}

async fn delete(endpoint: &Endpoint, pod: Pod) -> Result<()> {
    let matcher = format!("{{pod=\"{}\"}}", pod_name(pod));
    let request = endpoint.request("POST", "/api/v1/admin/tsdb/delete_series")?;
    let reply = endpoint.send(request.query(&[("match[]", matcher.as_str())])).await?;
    ensure!(reply.status == 204, "delete of {matcher}: status {}: {}", reply.status, reply.text);
    Ok(())
}
