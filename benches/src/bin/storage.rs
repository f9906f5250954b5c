//! `storage`: what samples cost in CPU, on disk and in memory, beside peers that take the same requests in
//! the same run.
//!
//! Run it by `make bench-storage`. `record` keeps real data in a file; `disk` weighs data sets; `million` has
//! a million series; `engine` runs the storage engine in this process, `backfill` with samples that are old. It prints the tables for
//! `docs/benchmarks.md`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use saturn_benches::{
    Load, LoadOptions, PeerKind, ScanFigures, Subject, check_count, machine, measure_backfill,
    measure_engine, measure_scan, record, send_all,
};
use saturn_chaos_tests::{Endpoint, now_ms};

/// Rounds of a day, a sample each 15 s.
const ROUNDS_OF_A_DAY: usize = 5760;

/// Selectors that are asked for, each of another host.
const SELECTORS: usize = 21;

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Records what Prometheus sends while it scrapes a node_exporter, itself and three Saturn nodes.
    Record {
        /// The file to write.
        file: PathBuf,
        /// How long to record.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Time between two scrapes.
        #[arg(long, default_value_t = 5)]
        interval_seconds: u64,
    },
    /// Bytes per sample on disk, of Saturn and the peers.
    Disk {
        /// A recording; without it, a day of generated series.
        #[arg(long)]
        recording: Option<PathBuf>,
        /// Series to generate.
        #[arg(long, default_value_t = 2000)]
        series: usize,
    },
    /// Old samples beside live ones: CPU per sample and memory.
    Backfill {
        /// Series to generate.
        #[arg(long, default_value_t = 300)]
        series: usize,
        /// Days of old samples.
        #[arg(long, default_value_t = 10)]
        days: usize,
    },
    /// The engine alone: CPU and bytes per sample.
    Engine {
        /// A recording; without it, a day of generated series.
        #[arg(long)]
        recording: Option<PathBuf>,
        /// Series to generate.
        #[arg(long, default_value_t = 2000)]
        series: usize,
    },
    /// The engine alone: what reading costs.
    Scan,
    /// Many series: CPU, memory, selectors, and the start after SIGKILL, of Saturn and the peers.
    Million {
        /// Series in all.
        #[arg(long, default_value_t = 1_000_000)]
        series: usize,
        /// Samples of each, 15 s apart.
        #[arg(long, default_value_t = 40)]
        rounds: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Options::parse().command {
        Command::Record { file, minutes, interval_seconds } => {
            record(&file, Duration::from_secs(60 * minutes), Duration::from_secs(interval_seconds)).await
        }
        Command::Disk { recording, series } => disk(load(recording.as_deref(), series)?).await,
        Command::Engine { recording, series } => engine(&load(recording.as_deref(), series)?).await,
        Command::Backfill { series, days } => backfill(series, days).await,
        Command::Scan => scan().await,
        Command::Million { series, rounds } => million(series, rounds).await,
    }
}

/// The recording, or a day of generated series that ends now.
fn load(recording: Option<&Path>, series: usize) -> Result<Load> {
    let load = match recording {
        Some(path) => Load::recorded(path)?,
        None => Load::encode(&LoadOptions {
            series,
            rounds: ROUNDS_OF_A_DAY,
            series_per_request: 2000,
            end_ms: now_ms(),
        }),
    };
    eprintln!(
        "{} samples in {} requests over {:.1} h, {} MiB compressed",
        load.samples,
        load.requests.len(),
        load.span_ms as f64 / 3.6e6,
        load.bytes() >> 20
    );
    Ok(load)
}

/// Saturn first, then the peers.
async fn subject(number: usize) -> Result<Option<Subject>> {
    Ok(match number {
        0 => Some(Subject::saturn(1).await?),
        1 => Some(Subject::peer(PeerKind::VictoriaMetrics).await?),
        2 => Some(Subject::peer(PeerKind::Prometheus).await?),
        _ => None,
    })
}

async fn disk(load: Load) -> Result<()> {
    let load = Arc::new(load);
    println!("{}.\n", machine());
    println!("| what | CPU-s per 10^6 samples | bytes/sample, flushed | merged |\n|---|---|---|---|");
    let mut number = 0;
    while let Some(subject) = subject(number).await? {
        number += 1;
        let (name, copies) = (subject.name(), subject.copies());
        let before = subject.cpu_seconds()?;
        // One sender: what a series has comes in the order of its times.
        send_all(&load, &subject.endpoints(), 1).await.with_context(|| name.clone())?;
        let cpu_seconds = subject.cpu_seconds()? - before;
        // VictoriaMetrics does not count samples that are NaN, as quantiles without observations are.
        if matches!(subject, Subject::Saturn(_)) {
            check_count(&subject, &load).await.with_context(|| name.clone())?;
        }
        let (flushed, merged) = subject.weigh().await.with_context(|| name.clone())?;
        let per_sample = |bytes: u64| format!("{:.3}", bytes as f64 / (load.samples * copies) as f64);
        println!(
            "| {name} | {:.2} | {} | {} |",
            cpu_seconds * 1e6 / load.samples as f64,
            per_sample(flushed),
            merged.map_or_else(|| "-".to_owned(), per_sample),
        );
    }
    Ok(())
}

async fn engine(load: &Load) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let figures = measure_engine(load, folder.path()).await?;
    let samples = figures.samples as f64;
    let nanoseconds = |cpu_seconds: f64| cpu_seconds * 1e9 / samples;
    println!("{}.\n", machine());
    println!("| engine alone | per sample |\n|---|---|");
    println!(
        "| decode, hash, append, log, durable | {:.0} ns of CPU |",
        nanoseconds(figures.append_cpu_seconds)
    );
    println!("| flush every 30 minutes | {:.0} ns |", nanoseconds(figures.flush_cpu_seconds));
    println!("| merges | {:.0} ns |", nanoseconds(figures.merge_cpu_seconds));
    println!("| written to disk for all of it | {:.2} bytes |", figures.written_bytes as f64 / samples);
    println!("| data directory, flushed | {:.3} bytes |", figures.flushed_bytes as f64 / samples);
    println!("| data directory, merged | {:.3} bytes |", figures.merged_bytes as f64 / samples);
    println!(
        "| ... of it samples with their keys and times | {:.3} bytes |",
        figures.merged_data_bytes as f64 / samples
    );
    println!("| ... of it the index | {:.3} bytes |", figures.merged_index_bytes as f64 / samples);
    Ok(())
}

async fn backfill(series: usize, days: usize) -> Result<()> {
    let now = now_ms();
    let load =
        |rounds, end_ms| Load::encode(&LoadOptions { series, rounds, series_per_request: series, end_ms });
    let (live, old) = (load(ROUNDS_OF_A_DAY / 24, now), load(ROUNDS_OF_A_DAY * days, now - 60 * 86_400_000));
    let folder = tempfile::tempdir()?;
    let figures = measure_backfill(&live, &old, folder.path()).await?;
    println!("\n{series} series, {days} days that ended 60 days ago, {} samples\n", old.samples);
    println!("| | ns CPU per sample | bytes in memory at most |\n|---|---|---|");
    let ways = [
        ("appended, nothing else in memory", figures.alone),
        ("appended, an hour of newer samples of the same series in memory", figures.beside_live),
        ("by the door for replicas", figures.by_door),
    ];
    for (name, way) in ways {
        let ns = way.cpu_seconds * 1e9 / way.samples as f64;
        println!("| {name} | {ns:.0} | {} |", way.head_bytes_max);
    }
    Ok(())
}

async fn scan() -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("{}.\n", machine());
    println!("10,000 of 20,000 series are selected; CPU time of one thread.\n");
    println!(
        "| samples are | all as columns, M samples/s | `rate` of 1 h, one step: at the data, ms | evaluated from columns | `rate` of 5 m, 60 steps: at the data | evaluated from columns |\n|---|---|---|---|---|---|"
    );
    for figures in measure_scan(folder.path()).await? {
        let ScanFigures { state, samples_per_second, one_step, sixty_steps } = figures;
        let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
        println!(
            "| {state} | {:.0} | {} | {} | {} | {} |",
            samples_per_second / 1e6,
            ms(one_step.at_data),
            ms(one_step.evaluated),
            ms(sixty_steps.at_data),
            ms(sixty_steps.evaluated),
        );
    }
    Ok(())
}

async fn million(series: usize, rounds: usize) -> Result<()> {
    let options = LoadOptions { series, rounds, series_per_request: 2000, end_ms: now_ms() };
    let load = Arc::new(Load::encode(&options));
    eprintln!("{} samples in {} requests", load.samples, load.requests.len());
    println!("{}.\n{series} series, {rounds} samples of each.\n", machine());
    println!(
        "| what | samples/s | CPU-s per 10^6 samples | memory | ... per series | 10 of the series, warm | start after SIGKILL | 10 of the series, cold |\n|---|---|---|---|---|---|---|---|"
    );
    let mut number = 0;
    while let Some(mut subject) = subject(number).await? {
        number += 1;
        let name = subject.name();
        let (before, empty_bytes) = (subject.cpu_seconds()?, subject.resident_bytes()?);
        let sent = send_all(&load, &subject.endpoints(), 8).await.with_context(|| name.clone())?;
        let cpu_seconds = subject.cpu_seconds()? - before;
        let memory = subject.resident_bytes()?;
        let endpoint = subject.endpoints().pop().context("an endpoint")?;
        select(&endpoint, series, load.end_ms).await.with_context(|| name.clone())?;
        let warm = select(&endpoint, series, load.end_ms).await?;
        let start = subject.kill_and_restart().await.with_context(|| name.clone())?;
        let cold = select_one(&endpoint, 0, load.end_ms).await.with_context(|| name.clone())?;
        println!(
            "| {name} | {:.0} | {:.2} | {} MiB | {:.0} B | {:.2} ms | {:.1} s | {:.2} ms |",
            load.samples as f64 / sent.elapsed.as_secs_f64(),
            cpu_seconds * 1e6 / load.samples as f64,
            memory >> 20,
            memory.saturating_sub(empty_bytes) as f64 / series as f64,
            warm.as_secs_f64() * 1000.0,
            start.as_secs_f64(),
            cold.as_secs_f64() * 1000.0,
        );
        subject.stop().await?;
    }
    Ok(())
}

/// The median time of selectors of ten series each.
async fn select(endpoint: &Endpoint, series: usize, time_ms: i64) -> Result<Duration> {
    let hosts = series / 500;
    let mut times = Vec::new();
    for number in 0..SELECTORS {
        times.push(select_one(endpoint, number * hosts / SELECTORS, time_ms).await?);
    }
    times.sort_unstable();
    Ok(times[SELECTORS / 2])
}

/// From the request to the answer of an instant query for one metric of one host.
async fn select_one(endpoint: &Endpoint, host: usize, time_ms: i64) -> Result<Duration> {
    let instance = format!("10.{}.{}.{}:9100", host / 65_536, host / 256 % 256, host % 256);
    let query = format!("node_bench_0_cpu_seconds_total{{instance=\"{instance}\"}}");
    let started = Instant::now();
    let answer = endpoint.query(&query, time_ms).await?.complete()?;
    let elapsed = started.elapsed();
    ensure!(answer.series().len() == 10, "{query} has {} series", answer.series().len());
    Ok(elapsed)
}
