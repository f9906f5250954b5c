//! Writes to a storage engine until it is killed, and says what it does, one line each. See `crash.rs`.
//!
//! `storage-crash-writer DIR FROM,FROM,FROM [STEP TIMES]`: where each writer starts, and the named step at which the
//! process stands still when it comes there for the given time.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prometheus_client::registry::Registry;
use saturn_chaos_tests::crash::{BATCH, CrashSample, Said, WRITERS, clock, crash_options, deletion};
use saturn_model::{Sample, ShardBatch, ShardId, TimestampMs};
use saturn_storage::{Engine, ExportScope, StepHook};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = args.first().context("want a folder")?;
    let from: Vec<u64> =
        args.get(1).context("want numbers")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(from.len() == WRITERS as usize, "want one number a writer");
    let stop =
        args.get(2).map(|step| Ok::<_, anyhow::Error>((step.clone(), args[3].parse()?))).transpose()?;
    let outcome = run(Path::new(dir), &from, stop);
    if let Err(error) = &outcome {
        say(&Said::Failed(format!("{error:#}")));
    }
    outcome
}

/// A line is out when this returns: what was said is known even if the process is killed now.
fn say(said: &Said) {
    let line = format!("{said}\n");
    // Who does not listen any more has cut the power, and is about to end this process.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

fn run(dir: &Path, from: &[u64], stop: Option<(String, u32)>) -> Result<()> {
    let left = AtomicU32::new(stop.as_ref().map_or(0, |(_, times)| *times));
    let hook = StepHook::new(move |step| {
        if stop.as_ref().is_some_and(|(wanted, _)| wanted == step) && left.fetch_sub(1, Ordering::AcqRel) == 1
        {
            say(&Said::Reached(step.to_owned()));
            loop {
                std::thread::park();
            }
        }
        Ok(())
    });
    let engine = Engine::open(crash_options(dir, hook), &mut Registry::default())?;
    say(&Said::Open);
    let sent: Arc<Vec<AtomicU64>> = Arc::new(from.iter().map(|number| AtomicU64::new(*number)).collect());
    let mut threads = Vec::new();
    for (writer, number) in (0..).zip(from) {
        let (engine, sent, number) = (engine.clone(), Arc::clone(&sent), *number);
        threads.push(std::thread::spawn(move || write(&engine, writer, number, &sent[writer as usize])));
    }
    threads.push(std::thread::spawn(move || maintain(&engine, &sent)));
    // All of them go on for ever; the first that ends ends the process.
    loop {
        if let Some(ended) = threads.iter().position(std::thread::JoinHandle::is_finished) {
            return threads.swap_remove(ended).join().expect("no thread panics");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(engine: &Engine, writer: u32, from: u64, sent: &AtomicU64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut number = from;
    loop {
        let next = number + BATCH;
        say(&Said::Sending(writer, next));
        if (number / BATCH) % 16 == 7 {
            import(engine, writer, number..next)?;
        } else {
            runtime.block_on(engine.append(batches(writer, number..next)))?;
        }
        say(&Said::Acked(writer, next));
        number = next;
        sent.store(number, Ordering::Release);
        if (number / BATCH).is_multiple_of(40) {
            say(&Said::Deleting(writer, number));
            engine.delete_series(&deletion(writer, number))?;
            say(&Said::Deleted(writer, number));
        }
    }
}

/// Stores the samples with these numbers by the door for replicas.
fn import(engine: &Engine, writer: u32, numbers: std::ops::Range<u64>) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    // What another engine gives out is what this one takes.
    let other = Engine::open(crash_options(temporary.path(), StepHook::default()), &mut Registry::default())?;
    let batches = batches(writer, numbers);
    let shards: Vec<ShardId> = batches.iter().map(|batch| batch.shard).collect();
    tokio::runtime::Builder::new_current_thread().build()?.block_on(other.append(batches))?;
    for shard in shards {
        let snapshot = other.snapshot(shard);
        let chunks = snapshot.export(ExportScope::Shard, None, usize::MAX)?;
        let mut importer = engine.importer(shard, 0)?;
        importer.ingest(&chunks.collect::<Result<Vec<_>, _>>()?)?;
        importer.ingest_notes(&other.export_notes(shard, usize::MAX))?;
    }
    Ok(())
}

/// Gives the engine a shard that nobody asks for, and drops it.
fn come_and_go(engine: &Engine, time: i64) -> Result<()> {
    let sample = CrashSample::of(0, 0);
    let mut batch = ShardBatch::new(sample.tenant.clone(), ShardId(u16::MAX));
    batch.push_series(sample.fingerprint());
    batch.push_sample(Sample { timestamp: TimestampMs(time), value: sample.value });
    batch.labels.push((0, sample.labels));
    tokio::runtime::Builder::new_current_thread().build()?.block_on(engine.append(vec![batch.into()]))?;
    Ok(engine.drop_shard(ShardId(u16::MAX))?)
}

/// The samples with these numbers, with labels, by shard.
fn batches(writer: u32, numbers: std::ops::Range<u64>) -> Vec<Arc<ShardBatch>> {
    let mut batches: std::collections::BTreeMap<ShardId, ShardBatch> = Default::default();
    for sample in numbers.map(|number| CrashSample::of(writer, number)) {
        let shard = sample.shard();
        let batch = batches.entry(shard).or_insert_with(|| ShardBatch::new(sample.tenant.clone(), shard));
        let at = u32::try_from(batch.series_count()).expect("few series");
        batch.push_series(sample.fingerprint());
        batch.push_sample(Sample { timestamp: TimestampMs(sample.timestamp), value: sample.value });
        batch.labels.push((at, sample.labels));
    }
    batches.into_values().map(Arc::new).collect()
}

fn maintain(engine: &Engine, sent: &[AtomicU64]) -> Result<()> {
    loop {
        std::thread::sleep(Duration::from_millis(60));
        engine.flush()?;
        let slowest = sent.iter().map(|sent| sent.load(Ordering::Acquire)).min().unwrap_or(0);
        say(&Said::Maintaining(clock(slowest)));
        engine.maintain(TimestampMs(clock(slowest)))?;
        come_and_go(engine, clock(slowest))?;
    }
}
