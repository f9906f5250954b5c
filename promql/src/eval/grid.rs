//! The steps of an evaluation, and how `@`, `offset` and subqueries move them.
//!
//! Both the evaluator and [`selector_requests`](crate::selector_requests) use these functions, so that
//! what is fetched is what is read.

use saturn_model::{Matcher, TimestampMs};

use crate::error::EvalError;
use crate::eval::params::{EvalParams, SelectorHints, SelectorRequest};
use crate::syntax::ast::{At, DurationSetting, Subquery, TimeModifiers, VectorSelector};

/// Times `start`, `start + step_ms`, ...: `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) start: i64,
    pub(crate) step_ms: i64,
    pub(crate) count: usize,
}

/// Most steps of any grid; a subquery with more would not fit into memory anyway.
const STEPS_MAX: i64 = 1 << 32;

impl Grid {
    /// All steps from `start` up to and including `end`; just `start` if the step is 0.
    pub(crate) fn covering(start: i64, end: i64, step_ms: i64) -> Self {
        let steps = match step_ms {
            1.. => (end.saturating_sub(start).div_euclid(step_ms) + 1).clamp(0, STEPS_MAX),
            _ => 1,
        };
        Self { start, step_ms, count: usize::try_from(steps).unwrap_or(0) }
    }

    /// The time of a step.
    pub(crate) fn time(&self, step: usize) -> i64 {
        let step = i64::try_from(step).expect("a grid has at most 2^32 steps");
        self.start.saturating_add(step.saturating_mul(self.step_ms))
    }

    /// The times of all steps.
    pub(crate) fn times(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        (0..self.count).map(|step| self.time(step))
    }

    /// The time of the last step.
    pub(crate) fn last(&self) -> i64 {
        self.time(self.count.saturating_sub(1))
    }
}

/// The time that a selector looks at for each step: moved by `offset`, or pinned by `@`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reference {
    pinned: Option<i64>,
    offset_ms: i64,
}

impl Reference {
    pub(crate) fn new(time: &TimeModifiers, params: &EvalParams) -> Self {
        let pinned = time.at.map(|at| match at {
            At::Timestamp(timestamp) => timestamp,
            At::Start => params.start.0,
            At::End => params.end.0,
        });
        let offset = time.offset.as_ref();
        let offset_ms = offset.map_or(0, |offset| offset.milliseconds(params.duration_context()));
        Self { pinned, offset_ms }
    }

    /// The time to look at for the evaluation time `time`.
    pub(crate) fn at(self, time: i64) -> i64 {
        self.pinned.unwrap_or(time).saturating_sub(self.offset_ms)
    }
}

/// A duration that must be positive once it is known.
pub(crate) fn positive_duration(setting: &DurationSetting, params: &EvalParams) -> Result<i64, EvalError> {
    match setting.milliseconds(params.duration_context()) {
        ..=0 => Err(EvalError::Invalid("duration must be greater than 0".into())),
        milliseconds => Ok(milliseconds),
    }
}

/// What a selector reads when it is evaluated on `grid`. `range_ms` is 0 for an instant selector.
pub(crate) fn request_of(
    selector: &VectorSelector,
    range_ms: i64,
    grid: &Grid,
    params: &EvalParams,
) -> SelectorRequest {
    let reference = Reference::new(&selector.time, params);
    let back_ms = if range_ms == 0 { params.lookback_ms } else { range_ms };
    SelectorRequest {
        matchers: unique_matchers(&selector.matchers),
        start: TimestampMs(reference.at(grid.start).saturating_sub(back_ms).saturating_add(1)),
        end: TimestampMs(reference.at(grid.last())),
        hints: SelectorHints { step_ms: if grid.count > 1 { grid.step_ms } else { 0 }, range_ms },
    }
}

fn unique_matchers(matchers: &[Matcher]) -> Vec<Matcher> {
    let mut unique: Vec<Matcher> = Vec::with_capacity(matchers.len());
    for matcher in matchers {
        if !unique.contains(matcher) {
            unique.push(matcher.clone());
        }
    }
    unique
}

/// The steps at which a subquery evaluates its expression: multiples of its step since the epoch, after
/// the start of the first window and up to the end of the last.
pub(crate) fn subquery_grid(
    subquery: &Subquery,
    grid: &Grid,
    params: &EvalParams,
) -> Result<Grid, EvalError> {
    let range_ms = positive_duration(&subquery.range, params)?;
    let step_ms = match &subquery.step {
        Some(step) => positive_duration(step, params)?,
        None => params.default_subquery_step_ms.max(1),
    };
    let reference = Reference::new(&subquery.time, params);
    let after = reference.at(grid.start).saturating_sub(range_ms);
    // Smallest multiple strictly greater than `after`.
    let first = after.div_euclid(step_ms).saturating_add(1).saturating_mul(step_ms);
    Ok(Grid::covering(first, reference.at(grid.last()), step_ms))
}
