//! The frontend: admission, plan, fetch, evaluation.
//!
//! Queries over the concurrency limit wait in line; the line is bounded, and a query that finds it full is
//! refused at once. Evaluation runs off the async threads, on several cores where there are idle ones, and stops when
//! nobody waits for it any more.

use std::future::Future;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use saturn_model::{Limits, SampleBudget, Selection, SeriesColumns, TenantId, TimestampMs};
use saturn_promql::ast::Expr;
use saturn_promql::{
    DataRequest, EvalError, EvalParams, ParseLimits, PartialGroups, QueryResult, RenderedAnnotations,
    SampleStats, SelectorAggregate, SelectorRequest, Source, SourceError, Value, data_requests, evaluate_on,
    parse_with_limits,
};
use tokio::sync::Semaphore;

use crate::cores::Cores;
use crate::metrics::{Metrics, Outcome};

/// Most steps of a range query: Prometheus's number, which its error message names.
const STEPS_MAX: i128 = 11_000;
/// How many warnings, and how many infos, an answer carries (Prometheus's number).
const ANNOTATIONS_MAX: usize = 10;

/// Prometheus's words.
const TOO_MANY_SAMPLES: &str = "query processing would load too many samples into memory in query execution";

/// Where series come from: the merged answer of the shards' replicas.
pub trait SeriesSource: Send + Sync + 'static {
    /// All series that match, with their samples in the selection's range, which are charged to the query's budget
    /// while they come.
    fn select(
        &self,
        selection: Selection,
        series_max: usize,
        budget: &Arc<SampleBudget>,
    ) -> impl Future<Output = Result<Fetched, FetchError>> + Send;

    /// An aggregation of all series that match, if the source can compute it where the samples are, and all of them
    /// are within its reach. Otherwise `None`, and the selector is read.
    fn aggregate(
        &self,
        selection: Selection,
        aggregate: &SelectorAggregate,
        series_max: usize,
    ) -> impl Future<Output = Result<Option<PartialGroups>, FetchError>> + Send;
}

/// What a source found.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The series, each with times strictly ascending.
    pub series: Vec<SeriesColumns>,
    /// What the answer does not cover, one text per shard; empty when it is complete.
    pub missing: Vec<String>,
}

/// Why a source could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The selection is over a limit; the text names it.
    #[error("{0}")]
    TooLarge(String),
    /// The query's budget is used up.
    #[error("{TOO_MANY_SAMPLES}")]
    TooManySamples,
    /// The data cannot be reached now.
    #[error("{0}")]
    Unavailable(String),
}

/// The bounds of the frontend as a whole (those of a tenant are [`Limits`]).
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many queries run at once.
    pub concurrency_max: usize,
    /// How many queries may wait for their turn.
    pub queue_max: usize,
    /// On how many threads one query is evaluated at most, and about how many evaluate at all while few queries run.
    pub evaluation_threads_max: NonZero<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        Self { concurrency_max: 20, queue_max: 200, evaluation_threads_max: cores }
    }
}

/// A query as it came in.
#[derive(Clone, Debug)]
pub struct QueryRequest {
    /// Who asks, and whose data is asked for.
    pub tenant: TenantId,
    /// PromQL.
    pub text: String,
    /// When it is evaluated.
    pub time: QueryTime,
    /// How long it may take; capped by the tenant's limit.
    pub timeout: Option<Duration>,
    /// How far an instant selector looks back, in milliseconds; Prometheus's default of 5 m if not given.
    pub lookback_ms: Option<i64>,
}

/// The times at which a query is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryTime {
    /// Once.
    Instant(TimestampMs),
    /// At each step from start to end, both included.
    Range {
        /// First evaluation.
        start: TimestampMs,
        /// No evaluation is later than this.
        end: TimestampMs,
        /// Milliseconds between evaluations.
        step_ms: i64,
    },
}

/// The answer to a query.
#[derive(Debug)]
pub struct QueryAnswer {
    /// The result.
    pub value: Value,
    /// Remarks of the evaluation that the user should act on, with their places in the query.
    pub warnings: Vec<String>,
    /// Other remarks of the evaluation.
    pub infos: Vec<String>,
    /// What the answer does not cover; empty when it is complete. An incomplete answer must not be cached,
    /// and must neither fire nor resolve an alert.
    pub missing: Vec<String>,
    /// Where its time went.
    pub timings: QueryTimings,
    /// How much data it looked at.
    pub samples: SampleStats,
}

/// Where a query's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryTimings {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Reading the series.
    pub preparation: Duration,
    /// Evaluating the expression, the sorting of its result included.
    pub evaluation: Duration,
    /// All of it.
    pub total: Duration,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text or a parameter is wrong; `parameter` names it.
    #[error("invalid parameter {parameter:?}: {reason}")]
    Invalid {
        /// Name of the HTTP parameter.
        parameter: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The combination of parameters is wrong.
    #[error("{0}")]
    InvalidRange(String),
    /// The evaluation failed, or a limit stopped it.
    #[error("{0}")]
    Execution(String),
    /// It took longer than allowed.
    #[error("query timed out in {stage}")]
    Timeout {
        /// Where it was.
        stage: &'static str,
    },
    /// Too many queries wait already.
    #[error("too many queries: {running_max} run and {queue_max} wait; try again later")]
    Overloaded {
        /// How many may run.
        running_max: usize,
        /// How many may wait.
        queue_max: usize,
    },
    /// The data cannot be reached now.
    #[error("{0}")]
    Unavailable(String),
    /// A defect of this program.
    #[error("{0}")]
    Internal(String),
}

/// Answers queries over a source.
pub struct Frontend<S> {
    source: Arc<S>,
    settings: Settings,
    limits: Limits,
    running: Semaphore,
    waiting: AtomicUsize,
    cores: Arc<Cores>,
    metrics: Metrics,
}

/// Tells the evaluation that nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Leaves the line when dropped.
struct PlaceInLine<'a>(&'a AtomicUsize);

impl Drop for PlaceInLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a query as running until dropped.
struct Running(Gauge);

impl Running {
    fn count(metrics: &Metrics) -> Self {
        metrics.running.inc();
        Self(metrics.running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What was fetched for each request, as the evaluation reads it.
#[derive(Default)]
struct Prefetched {
    series: Vec<(SelectorRequest, Arc<[SeriesColumns]>)>,
    aggregates: Vec<(SelectorAggregate, Arc<PartialGroups>)>,
}

impl Source for Prefetched {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        let found = self.series.iter().find(|(fetched, _)| fetched == request);
        found.map(|(_, series)| Arc::clone(series)).ok_or_else(|| {
            SourceError::new(format!("the plan does not cover the selector {:?}", request.matchers))
        })
    }

    fn aggregate(&self, aggregate: &SelectorAggregate) -> Result<Option<Arc<PartialGroups>>, SourceError> {
        let found = self.aggregates.iter().find(|(fetched, _)| fetched == aggregate);
        Ok(found.map(|(_, groups)| Arc::clone(groups)))
    }
}

/// What was found for one request.
enum Found {
    Series(Fetched),
    Groups(PartialGroups),
}

impl<S: SeriesSource> Frontend<S> {
    /// A frontend over `source`.
    pub fn new(source: Arc<S>, settings: Settings, limits: Limits, registry: &mut Registry) -> Self {
        Self {
            source,
            settings,
            limits,
            running: Semaphore::new(settings.concurrency_max),
            waiting: AtomicUsize::new(0),
            cores: Arc::new(Cores::new(settings.evaluation_threads_max)),
            metrics: Metrics::new(registry),
        }
    }

    /// The whole life of a query.
    pub async fn query(&self, request: QueryRequest) -> Result<QueryAnswer, QueryError> {
        let started = Instant::now();
        let answer = self.admit_and_run(request).await;
        self.metrics.duration_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.count(match &answer {
            Ok(answer) if answer.missing.is_empty() => Outcome::Complete,
            Ok(_) => Outcome::Incomplete,
            Err(QueryError::Overloaded { .. } | QueryError::Invalid { .. } | QueryError::InvalidRange(_)) => {
                Outcome::Refused
            }
            Err(_) => Outcome::Failed,
        });
        answer
    }

    async fn admit_and_run(&self, request: QueryRequest) -> Result<QueryAnswer, QueryError> {
        let params = self.params(&request)?;
        let expr = self.parse(&request.text)?;
        let timeout = request.timeout.map_or(self.limits.query_timeout, |t| t.min(self.limits.query_timeout));
        let begin = tokio::time::Instant::now();
        let deadline = begin + timeout;

        let permit = tokio::time::timeout_at(deadline, self.take_turn());
        let _permit = permit.await.map_err(|_| QueryError::Timeout { stage: "the queue" })??;
        let _running = Running::count(&self.metrics);
        let admitted = tokio::time::Instant::now();

        let fetching = tokio::time::timeout_at(deadline, self.fetch(&request.tenant, &expr, &params));
        let (source, missing) =
            fetching.await.map_err(|_| QueryError::Timeout { stage: "reading the series" })??;
        let fetched = tokio::time::Instant::now();

        let evaluating = tokio::time::timeout_at(deadline, self.evaluate(expr, params, source));
        let QueryResult { value, annotations, samples } =
            evaluating.await.map_err(|_| QueryError::Timeout { stage: "expression evaluation" })??;
        let RenderedAnnotations { warnings, infos } = annotations.render(&request.text, ANNOTATIONS_MAX);
        let timings = QueryTimings {
            queue: admitted - begin,
            preparation: fetched - admitted,
            evaluation: fetched.elapsed(),
            total: begin.elapsed(),
        };
        Ok(QueryAnswer { value, warnings, infos, missing, timings, samples })
    }

    /// Waits for a place among the running queries, in a bounded line.
    async fn take_turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, QueryError> {
        if let Ok(permit) = self.running.try_acquire() {
            return Ok(permit);
        }
        let overloaded = QueryError::Overloaded {
            running_max: self.settings.concurrency_max,
            queue_max: self.settings.queue_max,
        };
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = PlaceInLine(&self.waiting);
        if ahead >= self.settings.queue_max {
            return Err(overloaded);
        }
        self.running.acquire().await.map_err(|e| QueryError::Internal(e.to_string()))
    }

    fn parse(&self, text: &str) -> Result<Expr, QueryError> {
        let limits = ParseLimits { query_bytes_max: self.limits.query_bytes_max, ..ParseLimits::default() };
        parse_with_limits(text, &limits)
            .map_err(|e| QueryError::Invalid { parameter: "query", reason: e.to_string() })
    }

    /// Checks the times as Prometheus's API does, in its words.
    fn params(&self, request: &QueryRequest) -> Result<EvalParams, QueryError> {
        let mut params = match request.time {
            QueryTime::Instant(time) => EvalParams::instant(time),
            QueryTime::Range { start, end, step_ms } => {
                if end < start {
                    let reason = "end timestamp must not be before start time".to_owned();
                    return Err(QueryError::Invalid { parameter: "end", reason });
                }
                if step_ms <= 0 {
                    let reason = "zero or negative query resolution step widths are not accepted. \
                                  Try a positive integer";
                    return Err(QueryError::Invalid { parameter: "step", reason: reason.into() });
                }
                if (i128::from(end.0) - i128::from(start.0)) / i128::from(step_ms) > STEPS_MAX {
                    return Err(QueryError::InvalidRange(
                        "exceeded maximum resolution of 11,000 points per timeseries. \
                         Try decreasing the query resolution (?step=XX)"
                            .into(),
                    ));
                }
                EvalParams::range(start, end, step_ms)
            }
        };
        params.samples_max = self.limits.query_samples_max;
        if let Some(lookback_ms) = request.lookback_ms {
            params.lookback_ms = lookback_ms;
        }
        Ok(params)
    }

    /// Fetches everything that the evaluation will ask for, all selectors at once.
    async fn fetch(
        &self,
        tenant: &TenantId,
        expr: &Expr,
        params: &EvalParams,
    ) -> Result<(Prefetched, Vec<String>), QueryError> {
        let requests = data_requests(expr, params);
        let budget = Arc::new(SampleBudget::new(self.limits.query_samples_max));
        let fetches = requests.iter().map(|request| self.fetch_one(tenant, request, &budget));
        let mut prefetched = Prefetched::default();
        let mut missing = Vec::new();
        let mut samples = 0;
        // The first that fails ends the others.
        let all = futures::future::try_join_all(fetches).await.map_err(|e| match e {
            FetchError::TooLarge(_) | FetchError::TooManySamples => QueryError::Execution(e.to_string()),
            FetchError::Unavailable(text) => QueryError::Unavailable(text),
        })?;
        for (request, found) in requests.into_iter().zip(all) {
            match (found, request) {
                (Found::Groups(groups), DataRequest::Aggregate(aggregate)) => {
                    self.metrics.aggregated_selectors.inc();
                    prefetched.aggregates.push((*aggregate, Arc::new(groups)));
                }
                (Found::Series(fetched), request) => {
                    samples += fetched.series.iter().map(SeriesColumns::weight).sum::<usize>();
                    missing.extend(fetched.missing);
                    prefetched.series.push((request.selector().clone(), fetched.series.into()));
                }
                (Found::Groups(_), DataRequest::Series(_)) => {}
            }
        }
        self.metrics.fetched_samples.inc_by(samples as u64);
        missing.sort();
        missing.dedup();
        Ok((prefetched, missing))
    }

    /// An aggregation as such if the source can, else the series.
    async fn fetch_one(
        &self,
        tenant: &TenantId,
        request: &DataRequest,
        budget: &Arc<SampleBudget>,
    ) -> Result<Found, FetchError> {
        let series_max = self.limits.query_series_max;
        let SelectorRequest { matchers, start, end, .. } = request.selector().clone();
        let selection = Selection { tenant: tenant.clone(), matchers, start, end };
        if let DataRequest::Aggregate(aggregate) = request
            && let Some(groups) = self.source.aggregate(selection.clone(), aggregate, series_max).await?
        {
            return Ok(Found::Groups(groups));
        }
        self.source.select(selection, series_max, budget).await.map(Found::Series)
    }

    /// Evaluates off the async threads, until nobody waits for it any more.
    async fn evaluate(
        &self,
        expr: Expr,
        params: EvalParams,
        source: Prefetched,
    ) -> Result<QueryResult, QueryError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let cores = Arc::clone(&self.cores);
        let evaluation = tokio::task::spawn_blocking(move || {
            evaluate_on(&*cores, &expr, &params, &source, &|| cancelled.load(Ordering::Relaxed))
        });
        let result = evaluation.await.map_err(|e| QueryError::Internal(format!("evaluation failed: {e}")))?;
        match result {
            Ok(result) => Ok(result),
            Err(e @ EvalError::Invalid(_)) => {
                Err(QueryError::Invalid { parameter: "query", reason: e.to_string() })
            }
            Err(EvalError::Cancelled) => Err(QueryError::Timeout { stage: "expression evaluation" }),
            Err(e) => Err(QueryError::Execution(e.to_string())),
        }
    }
}
