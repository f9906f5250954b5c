//! The steps of an evaluation, and how `@`, `offset` and subqueries move them.
//!
//! Both the evaluator and [`selector_requests`](crate::selector_requests) use these functions, so that
//! what is fetched is what is read.

use saturn_model::{Matcher, TimestampMs};

use crate::error::EvalError;
use crate::eval::params::{EvalParams, SelectorHints, SelectorRequest};
use crate::syntax::ast::{At, DurationSetting, Extension, Subquery, TimeModifiers, VectorSelector};

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

/// How far beyond its range a selector sees.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reach {
    pub(crate) back_ms: i64,
    pub(crate) ahead_ms: i64,
}

impl Reach {
    pub(crate) fn of(extension: Option<Extension>, params: &EvalParams) -> Self {
        match extension {
            None => Self::default(),
            Some(Extension::Anchored) => Self { back_ms: params.lookback_ms, ahead_ms: 0 },
            Some(Extension::Smoothed) => Self { back_ms: params.lookback_ms, ahead_ms: params.lookback_ms },
        }
    }
}

/// The time that a selector looks at for each step: moved by `offset`, or pinned by `@`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// What the steps themselves look at.
    pub(crate) const STEP: Self = Self { pinned: None, offset_ms: 0 };

    /// The time that a selector with `time` looks at inside of a subquery that looks at this one.
    pub(crate) fn then(self, time: &TimeModifiers, params: &EvalParams) -> Self {
        let inner = Self::new(time, params);
        match inner.pinned {
            Some(_) => inner,
            None => Self { pinned: self.pinned, offset_ms: self.offset_ms.saturating_add(inner.offset_ms) },
        }
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
    let reach = Reach::of(selector.extension, params);
    let back_ms = match range_ms {
        // An instant selector looks back in any case.
        0 => params.lookback_ms,
        _ => range_ms.saturating_add(reach.back_ms),
    };
    SelectorRequest {
        matchers: unique_matchers(&selector.matchers),
        start: TimestampMs(reference.at(grid.start).saturating_sub(back_ms).saturating_add(1)),
        end: TimestampMs(reference.at(grid.last()).saturating_add(reach.ahead_ms)),
        hints: SelectorHints { step_ms: if grid.count > 1 { grid.step_ms } else { 0 }, range_ms },
    }
}

pub(crate) fn unique_matchers(matchers: &[Matcher]) -> Vec<Matcher> {
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
