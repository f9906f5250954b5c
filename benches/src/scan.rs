//! Reading from the storage engine alone: columns of everything, and aggregations of rates, computed at the data and
//! from columns.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prometheus_client::registry::Registry;
use saturn_model::{
    Fingerprint, Labels, MatchOp, Matcher, Sample, Selection, SeriesColumns, ShardBatch, ShardId, TenantId,
    TimestampMs,
};
use saturn_promql::{
    DataRequest, EvalParams, PartialGroups, SampleValue, SelectorAggregate, SelectorRequest, SeriesFold,
    Source, SourceError, Value, data_requests, evaluate, parse,
};
use saturn_storage::{Engine, EngineOptions, ReadLimits};

use crate::engine::SHARDS;
use crate::load::SCRAPE_INTERVAL_MS;
use crate::subject::TENANT;
use crate::usage::thread_cpu_seconds;

/// Scrape targets.
const TARGETS: u32 = 200;
/// Series of the counter that is asked for, and of all others, of one target.
const COUNTERS: u32 = 50;
const OTHERS: u32 = 50;
/// Samples of each series: an hour, and what windows of 5 minutes see before it.
const ROUNDS: i64 = 280;
/// Rounds of one append.
const ROUNDS_PER_APPEND: i64 = 40;
/// A window of 2 h begins here.
const START: i64 = 1_699_999_200_000;
/// How often each figure is taken; the best one counts.
const TRIES: usize = 5;
/// CPU time of one try at least, in seconds: the kernel counts it in ticks.
const TRY_SECONDS: f64 = 0.2;

const LIMITS: ReadLimits = ReadLimits { series_max: usize::MAX, bytes_max: u64::MAX };

/// What reading cost, in one state of the data.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanFigures {
    /// Where the samples were.
    pub state: &'static str,
    /// Samples per second of one core, all series as columns.
    pub samples_per_second: f64,
    /// The rate of an hour, at one step.
    pub one_step: AggregateFigures,
    /// Rates of 5 minutes, a step each minute of an hour.
    pub sixty_steps: AggregateFigures,
}

/// Seconds of one core for an aggregation of 10,000 series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AggregateFigures {
    /// Series by series, at the engine.
    pub at_data: f64,
    /// All series as columns, then the evaluator.
    pub evaluated: f64,
}

/// Fills an engine in `folder`, and reads it in memory, flushed, and merged.
///
/// # Errors
/// If the engine fails.
pub async fn measure_scan(folder: &Path) -> Result<Vec<ScanFigures>> {
    let mut options = EngineOptions::new(folder);
    options.flush_interval = Duration::from_secs(24 * 3600);
    options.maintenance_interval = Duration::from_secs(24 * 3600);
    let engine = Engine::open(options, &mut Registry::default())?;
    let series: Vec<Labels> = (0..TARGETS).flat_map(labels_of_target).collect();
    let series: Vec<(Labels, Fingerprint)> = series
        .into_iter()
        .map(|labels| Ok((labels.clone(), Fingerprint::of(&TenantId::new(TENANT)?, labels.as_encoded()))))
        .collect::<Result<_>>()?;
    for round in (0..ROUNDS).step_by(usize::try_from(ROUNDS_PER_APPEND)?) {
        engine.append(batches(&series, round)?).await?;
    }
    let mut figures = vec![measure(&engine, "in memory")?];
    engine.flush()?;
    figures.push(measure(&engine, "flushed")?);
    engine.maintain(TimestampMs(START + 100 * 7_200_000))?;
    figures.push(measure(&engine, "merged")?);
    engine.close()?;
    Ok(figures)
}

fn labels_of_target(target: u32) -> impl Iterator<Item = Labels> {
    (0..COUNTERS + OTHERS).map(move |at| {
        let instance = format!("10.1.{}.{}:9100", target / 256, target % 256);
        let (path, code) =
            (format!("/api/v1/path-{}", at / 5), ["200", "204", "400", "404", "500"][at as usize % 5]);
        let name = if at < COUNTERS { "http_requests_total".to_owned() } else { format!("other_{at}") };
        Labels::from_pairs([
            ("__name__", name.as_str()),
            ("cluster", "production"),
            ("code", code),
            ("instance", &instance),
            ("job", "api"),
            ("method", "GET"),
            ("path", &path),
        ])
        .expect("valid labels")
    })
}

/// What all targets give in some rounds, from `first` on: each has its own offset, and is late now and then.
fn batches(series: &[(Labels, Fingerprint)], first: i64) -> Result<Vec<Arc<ShardBatch>>> {
    let tenant = TenantId::new(TENANT)?;
    let mut batches: Vec<ShardBatch> =
        (0..SHARDS).map(|shard| ShardBatch::new(tenant.clone(), ShardId(shard))).collect();
    for ((labels, fingerprint), at) in series.iter().zip(0_i64..) {
        let batch = &mut batches[usize::from(fingerprint.shard(SHARDS).0)];
        let (target, of_target) = (at / i64::from(COUNTERS + OTHERS), at % i64::from(COUNTERS + OTHERS));
        if first == 0 {
            batch.labels.push((u32::try_from(batch.series_count())?, labels.clone()));
        }
        batch.push_series(*fingerprint);
        for round in first..first + ROUNDS_PER_APPEND {
            let late = if (round * 31 + target * 7) % 50 == 0 { 1 } else { 0 };
            let timestamp = START + target * 7919 % SCRAPE_INTERVAL_MS + round * SCRAPE_INTERVAL_MS + late;
            let value = match of_target {
                0..50 => {
                    (at % 100_000 * 1000 + round * (20 + of_target) + (round * 7919 + at * 31) % 17) as f64
                }
                50..75 => ((round * 7919 + at) % 10_000) as f64 / 100.0,
                _ => of_target as f64,
            };
            batch.push_sample(Sample { timestamp: TimestampMs(timestamp), value });
        }
    }
    Ok(batches.into_iter().map(Arc::new).collect())
}

fn measure(engine: &Engine, state: &'static str) -> Result<ScanFigures> {
    let everything = Selection {
        tenant: TenantId::new(TENANT)?,
        matchers: vec![Matcher::new("__name__", MatchOp::NotEqual, "")?],
        start: TimestampMs(i64::MIN),
        end: TimestampMs(i64::MAX),
    };
    let mut samples = 0;
    let scan = best_of(|| {
        samples = 0;
        for shard in (0..SHARDS).map(ShardId) {
            for series in engine.select_stream(shard, &everything, LIMITS)? {
                samples += series?.timestamps.len();
            }
        }
        Ok(())
    })?;
    let all = i64::from(TARGETS * (COUNTERS + OTHERS)) * ROUNDS;
    ensure!(samples == usize::try_from(all)?, "{samples} samples were read");
    let end = TimestampMs(START + ROUNDS * SCRAPE_INTERVAL_MS);
    let hour_before = TimestampMs(end.0 - 3_600_000 + 60_000);
    let one_step =
        aggregate(engine, "sum by (instance) (rate(http_requests_total[1h]))", &EvalParams::instant(end))?;
    let steps = EvalParams::range(hour_before, end, 60_000);
    let sixty_steps = aggregate(engine, "sum by (instance) (rate(http_requests_total[5m]))", &steps)?;
    Ok(ScanFigures { state, samples_per_second: samples as f64 / scan, one_step, sixty_steps })
}

/// Both ways of one query, whose answers must be the same.
fn aggregate(engine: &Engine, query: &str, params: &EvalParams) -> Result<AggregateFigures> {
    let expr = parse(query)?;
    let Some(DataRequest::Aggregate(plan)) = data_requests(&expr, params).pop() else {
        bail!("{query} cannot be aggregated at the data");
    };
    let fold = || -> Result<PartialGroups> {
        let mut fold = SeriesFold::new((*plan).clone());
        for shard in (0..SHARDS).map(ShardId) {
            engine.for_each_series(shard, &selected(plan.request())?, LIMITS, |series| {
                match fold.add(series) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            })?;
        }
        Ok(fold.finish())
    };
    let mut answers = Vec::new();
    let at_data = best_of(|| {
        let source = Fetched { groups: Some(Arc::new(fold()?)), series: Arc::default() };
        answers = vec![evaluate(&expr, params, &source, &|| false)?.value];
        Ok(())
    })?;
    let evaluated = best_of(|| {
        let mut series = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            series.extend(engine.select(shard, &selected(plan.request())?, usize::MAX)?);
        }
        ensure!(series.len() == (TARGETS * COUNTERS) as usize, "{} series", series.len());
        let source = Fetched { groups: None, series: series.into() };
        answers.truncate(1);
        answers.push(evaluate(&expr, params, &source, &|| false)?.value);
        Ok(())
    })?;
    let texts: Vec<Vec<String>> = answers.iter().map(rounded).collect();
    ensure!(texts[0].len() == TARGETS as usize && texts[0] == texts[1], "the answers of {query} differ");
    Ok(AggregateFigures { at_data, evaluated })
}

/// Series and values to 12 digits: sums in another order.
fn rounded(value: &Value) -> Vec<String> {
    let digits = |value: &f64| format!("{value:.11e}");
    match value {
        Value::Vector(samples) => samples
            .iter()
            .map(|sample| match &sample.value {
                SampleValue::Float(value) => format!("{} {}", sample.labels, digits(value)),
                SampleValue::Histogram(_) => String::new(),
            })
            .collect(),
        Value::Matrix(series) => series
            .iter()
            .map(|one| format!("{} {:?}", one.labels, one.values.iter().map(digits).collect::<Vec<_>>()))
            .collect(),
        _ => Vec::new(),
    }
}

fn selected(request: &SelectorRequest) -> Result<Selection> {
    let SelectorRequest { matchers, start, end, .. } = request.clone();
    Ok(Selection { tenant: TenantId::new(TENANT)?, matchers, start, end })
}

/// What was read for one selector, in one of both ways.
struct Fetched {
    groups: Option<Arc<PartialGroups>>,
    series: Arc<[SeriesColumns]>,
}

impl Source for Fetched {
    fn select(&self, _: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        Ok(Arc::clone(&self.series))
    }

    fn aggregate(&self, _: &SelectorAggregate) -> Result<Option<Arc<PartialGroups>>, SourceError> {
        Ok(self.groups.clone())
    }
}

/// Seconds of this thread's CPU time that `work` takes, at best.
fn best_of(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..TRIES {
        let (started, mut runs) = (thread_cpu_seconds()?, 0.0);
        loop {
            work().context("a read")?;
            runs += 1.0;
            let seconds = thread_cpu_seconds()? - started;
            if seconds >= TRY_SECONDS {
                best = best.min(seconds / runs);
                break;
            }
        }
    }
    Ok(best)
}
