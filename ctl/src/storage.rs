//! `saturnctl storage inspect|verify|stats DIR`: a data directory that no node has open. Nothing in it is changed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use saturn_model::TenantId;
use saturn_promql::parse_selector;
use saturn_storage::{LogRecord, Offline, OfflineStats, SegmentInfo, SeriesInfo};
use serde_json::{Value, json};

use crate::Output;
use crate::table;

/// Exit code of `verify` if something is damaged.
const DAMAGED: u8 = 3;

/// Look into a data directory that no node has open.
#[derive(Subcommand)]
pub(crate) enum StorageCommand {
    /// List segments, the chunks of series, or the records of the log.
    Inspect(Inspect),
    /// Read everything through its checksums. Exit code 0: all is whole; 3: something is damaged; 1: it could not be read.
    Verify(Dir),
    /// Series, samples, and bytes per sample by kind of file.
    Stats(Dir),
}

/// A data directory.
#[derive(Args)]
pub(crate) struct Dir {
    /// A node's data directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What of it to list.
#[derive(Args)]
pub(crate) struct Inspect {
    /// A node's data directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// List series that match, with their chunks, instead of segments: `up{job="a"}`.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "wal")]
    series: Option<String>,
    /// Only series of this tenant; of all if not given.
    #[arg(long, env = "SATURN_TENANT", requires = "series")]
    tenant: Option<String>,
    /// Most series that are listed.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// List the records of the write-ahead log instead of segments.
    #[arg(long)]
    wal: bool,
}

pub(crate) fn run(command: &StorageCommand, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        StorageCommand::Inspect(args) => inspect(args, output),
        StorageCommand::Verify(args) => verify(args, output),
        StorageCommand::Stats(args) => stats(args, output),
    }
}

fn inspect(args: &Inspect, output: Output) -> anyhow::Result<ExitCode> {
    let offline = Offline::open(&args.dir)?;
    if args.wal {
        let mut records = Vec::new();
        let read = offline.log_records(|record| records.push(record));
        print_records(&records, output)?;
        read?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(selector) = &args.series else {
        print_segments(&offline.segments(), output)?;
        return Ok(ExitCode::SUCCESS);
    };
    let matchers = parse_selector(selector).with_context(|| format!("the selector {selector:?}"))?;
    let tenant = args.tenant.as_deref().map(TenantId::new).transpose().context("--tenant")?;
    print_series(&offline.series(tenant.as_ref(), &matchers, args.limit)?, output)?;
    Ok(ExitCode::SUCCESS)
}

fn print_segments(segments: &[SegmentInfo], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let all: Vec<Value> = segments.iter().map(segment_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let header = ["SHARD", "WINDOW (ms)", "SEGMENT", "FIRST (ms)", "LAST (ms)", "SERIES", "SAMPLES"];
    let row = |s: &SegmentInfo| {
        let numbers = [s.shard.0.into(), s.window_start_ms, number(s.number), s.first_ms, s.last_ms];
        let counts = [number(s.series), number(s.samples)];
        numbers.iter().chain(&counts).map(i64::to_string).collect()
    };
    let rows: Vec<Vec<String>> = segments.iter().map(row).collect();
    print!("{}", table::layout(&header, &rows));
    Ok(())
}

fn segment_json(segment: &SegmentInfo) -> Value {
    json!({
        "shard": segment.shard.0, "windowStartMs": segment.window_start_ms, "segment": segment.number,
        "firstMs": segment.first_ms, "lastMs": segment.last_ms, "series": segment.series,
        "samples": segment.samples,
    })
}

fn print_series(series: &[SeriesInfo], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let all: Vec<Value> = series.iter().map(series_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for one in series {
        println!("{} of tenant {}, shard {}, ordinal {}", one.labels, one.tenant, one.shard, one.ordinal);
        for (segment, chunks) in &one.segments {
            match chunks {
                Ok(chunks) => {
                    for chunk in chunks {
                        println!(
                            "  segment {}: {} samples, {} to {} ms, {}, {} bytes",
                            segment.number,
                            chunk.samples,
                            chunk.first_ms,
                            chunk.last_ms,
                            chunk.codec,
                            chunk.value_bytes
                        );
                    }
                }
                Err(text) => println!("  segment {}: DAMAGED: {text}", segment.number),
            }
        }
    }
    Ok(())
}

fn series_json(series: &SeriesInfo) -> Value {
    let segments: Vec<Value> = series
        .segments
        .iter()
        .map(|(segment, chunks)| {
            let mut value = segment_json(segment);
            match chunks {
                Ok(chunks) => {
                    let chunk = |c: &saturn_storage::ChunkInfo| {
                        json!({
                            "codec": c.codec, "samples": c.samples, "firstMs": c.first_ms, "lastMs": c.last_ms,
                            "valueBytes": c.value_bytes,
                        })
                    };
                    value["chunks"] = chunks.iter().map(chunk).collect();
                }
                Err(text) => value["damage"] = text.as_str().into(),
            }
            value
        })
        .collect();
    let labels: serde_json::Map<String, Value> =
        series.labels.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({
        "tenant": series.tenant.as_str(), "labels": labels, "shard": series.shard.0, "ordinal": series.ordinal,
        "segments": segments,
    })
}

fn print_records(records: &[LogRecord], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let record = |r: &LogRecord| {
            json!({
                "shard": r.shard.0, "tenant": r.tenant.as_str(), "bytes": r.bytes, "newSeries": r.new_series,
                "series": r.series, "samples": r.samples, "firstMs": r.range_ms.map(|range| range.0),
                "lastMs": r.range_ms.map(|range| range.1),
            })
        };
        let all: Vec<Value> = records.iter().map(record).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let header = ["SHARD", "TENANT", "BYTES", "NEW SERIES", "SERIES", "SAMPLES", "FIRST (ms)", "LAST (ms)"];
    let row = |r: &LogRecord| {
        let time = |time: Option<i64>| time.map_or("-".to_owned(), |time| time.to_string());
        vec![
            r.shard.to_string(),
            r.tenant.to_string(),
            r.bytes.to_string(),
            r.new_series.to_string(),
            r.series.to_string(),
            r.samples.to_string(),
            time(r.range_ms.map(|range| range.0)),
            time(r.range_ms.map(|range| range.1)),
        ]
    };
    let rows: Vec<Vec<String>> = records.iter().map(row).collect();
    print!("{}", table::layout(&header, &rows));
    Ok(())
}

fn verify(args: &Dir, output: Output) -> anyhow::Result<ExitCode> {
    let report = Offline::verify(&args.dir)?;
    match output {
        Output::Json => {
            let damage = |d: &saturn_storage::Damage| {
                json!({
                    "file": d.file, "shard": d.shard.map(|shard| shard.0), "segment": d.segment,
                    "firstMs": d.range_ms.map(|range| range.0), "lastMs": d.range_ms.map(|range| range.1),
                    "series": d.series, "seriesCount": d.series_count, "what": d.what,
                })
            };
            let damage: Vec<Value> = report.damage.iter().map(damage).collect();
            let report = json!({
                "segments": report.segments, "samples": report.samples, "rows": report.rows,
                "bytes": report.bytes, "damage": damage, "moreDamage": report.more_damage,
            });
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Output::Table => {
            for damage in &report.damage {
                println!("DAMAGED  {damage}");
            }
            if report.more_damage > 0 {
                println!("and {} more damaged places", report.more_damage);
            }
            println!(
                "{} segments, {} samples, {} rows, {} bytes read: {}",
                report.segments,
                report.samples,
                report.rows,
                report.bytes,
                if report.is_clean() { "all is whole" } else { "DAMAGED" }
            );
        }
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

fn stats(args: &Dir, output: Output) -> anyhow::Result<ExitCode> {
    let stats = Offline::open(&args.dir)?.stats()?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&stats_json(&stats))?),
        Output::Table => print!("{}", stats_text(&stats)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Kinds of files with their bytes.
fn kinds(stats: &OfflineStats) -> [(&'static str, u64); 4] {
    [
        ("data", stats.data_bytes),
        ("index", stats.index_bytes),
        ("meta", stats.meta_bytes),
        ("other", stats.other_bytes),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn per_sample(bytes: u64, samples: u64) -> Option<f64> {
    (samples > 0).then(|| bytes as f64 / samples as f64)
}

fn stats_json(stats: &OfflineStats) -> Value {
    let kind = |(name, bytes): (&str, u64)| {
        (name.to_owned(), json!({"bytes": bytes, "bytesPerSample": per_sample(bytes, stats.samples)}))
    };
    let files: serde_json::Map<String, Value> = kinds(stats).map(kind).into_iter().collect();
    json!({
        "formatVersion": stats.format_version, "shards": stats.shards, "segments": stats.segments,
        "windows": stats.windows, "tombstones": stats.tombstones, "series": stats.series,
        "samples": stats.samples, "firstMs": stats.range_ms.map(|range| range.0),
        "lastMs": stats.range_ms.map(|range| range.1), "files": files,
        "wal": {
            "bytes": stats.wal_bytes, "segments": stats.wal_segments, "records": stats.wal_records,
            "samples": stats.wal_samples, "newSeries": stats.wal_new_series,
            "bytesPerSample": per_sample(stats.wal_bytes, stats.wal_samples),
        },
    })
}

fn stats_text(stats: &OfflineStats) -> String {
    let mut text = format!(
        "format {}: {} series, {} samples in {} segments of {} shards and {} windows, {} tombstones\n",
        stats.format_version,
        stats.series,
        stats.samples,
        stats.segments,
        stats.shards,
        stats.windows,
        stats.tombstones
    );
    if let Some((first, last)) = stats.range_ms {
        text.push_str(&format!("samples from {first} to {last} ms\n"));
    }
    text.push_str(&format!(
        "write-ahead log: {} files, {} records, {} samples, {} new series\n\n",
        stats.wal_segments, stats.wal_records, stats.wal_samples, stats.wal_new_series
    ));
    let row = |name: &str, bytes: u64, samples: u64| {
        let ratio = per_sample(bytes, samples).map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        vec![name.to_owned(), bytes.to_string(), ratio]
    };
    let mut rows: Vec<Vec<String>> =
        kinds(stats).into_iter().map(|(name, bytes)| row(name, bytes, stats.samples)).collect();
    rows.push(row("wal", stats.wal_bytes, stats.wal_samples));
    text + &table::layout(&["FILES", "BYTES", "BYTES/SAMPLE"], &rows)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_readable_and_an_empty_directory_has_no_ratio() {
        let stats = OfflineStats {
            format_version: 3,
            samples: 1000,
            data_bytes: 250,
            wal_bytes: 40,
            range_ms: Some((1, 2)),
            ..OfflineStats::default()
        };
        let text = stats_text(&stats);
        assert!(
            text.contains("1000 samples") && text.contains("0.250") && text.contains("from 1 to 2 ms"),
            "{text}"
        );
        assert!(
            text.lines().last().is_some_and(|line| line.starts_with("wal") && line.ends_with('-')),
            "{text}"
        );
        let json = stats_json(&stats);
        assert_eq!(json["files"]["data"]["bytesPerSample"], 0.25);
        assert_eq!(json["wal"]["bytesPerSample"], Value::Null);
    }
}
