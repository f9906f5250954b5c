//! `info`: adds the labels of info metrics to the series that they describe.
//!
//! A series and an info series belong together if they agree on the identifying labels, `instance` and `job`.
//! Source: Prometheus's `info.go`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME, MatchOp, Matcher, TimestampMs};

use crate::ast::{Expr, ExprKind};
use crate::error::EvalError;
use crate::eval::block::{Block, Cell};
use crate::eval::engine::Evaluator;
use crate::eval::grid::{Grid, Reference, unique_matchers};
use crate::eval::names::BlockBuilder;
use crate::eval::params::{EvalParams, SelectorHints, SelectorRequest};
use crate::eval::select::SamplePart;
use crate::eval::vector_matching::describe;

const IDENTIFYING_LABELS: [&str; 2] = ["instance", "job"];
const DEFAULT_INFO_METRIC: &str = "target_info";

/// The conditions of the second argument.
struct InfoMatchers {
    /// Which metrics are info metrics.
    names: Vec<Matcher>,
    /// Which of their labels are wanted, and what they must be; all if there is none.
    data: Vec<Matcher>,
}

impl InfoMatchers {
    fn of(args: &[Expr]) -> Self {
        let selector = match args.get(1).map(|arg| &arg.without_parens().kind) {
            Some(ExprKind::VectorSelector(selector)) => selector.matchers.as_slice(),
            _ => &[],
        };
        let (mut names, data): (Vec<Matcher>, Vec<Matcher>) =
            unique_matchers(selector).into_iter().partition(|matcher| matcher.name() == METRIC_NAME);
        let default = match (names.is_empty(), names.iter().any(is_positive)) {
            (true, _) => Matcher::new(METRIC_NAME, MatchOp::Equal, DEFAULT_INFO_METRIC),
            // Conditions that only exclude do so from all info metrics.
            (false, false) => Matcher::new(METRIC_NAME, MatchOp::Regex, ".+_info"),
            (false, true) => return Self { names, data },
        };
        names.push(default.expect("the default conditions are valid"));
        Self { names, data }
    }

    /// Whether a metric is an info metric itself.
    fn is_info_metric(&self, name: &str) -> bool {
        self.names.iter().all(|matcher| matcher.matches(name))
    }

    /// Whether a series without any info series is left out.
    fn need_info(&self) -> bool {
        self.data.iter().any(|matcher| !matcher.matches_empty())
    }

    fn wants(&self, label: &str) -> bool {
        label != METRIC_NAME && (self.data.is_empty() || self.data.iter().any(|m| m.name() == label))
    }
}

fn is_positive(matcher: &Matcher) -> bool {
    matches!(matcher.op(), MatchOp::Equal | MatchOp::Regex)
}

/// The time at which the first selector in `expr` looks.
fn reference_of(expr: &Expr, params: &EvalParams) -> Reference {
    let mut open = vec![(expr, Reference::STEP)];
    while let Some((expr, reference)) = open.pop() {
        let inner = match &expr.kind {
            ExprKind::VectorSelector(selector) => return reference.then(&selector.time, params),
            ExprKind::MatrixSelector(matrix) => return reference.then(&matrix.selector.time, params),
            ExprKind::Subquery(subquery) => reference.then(&subquery.time, params),
            _ => reference,
        };
        open.extend(expr.children().into_iter().rev().map(|child| (child, inner)));
    }
    Reference::STEP
}

/// The info series that a call of `info` may need.
pub(super) fn info_request(args: &[Expr], grid: &Grid, params: &EvalParams) -> SelectorRequest {
    let InfoMatchers { mut names, data } = InfoMatchers::of(args);
    names.extend(data);
    let reference = args.first().map_or(Reference::STEP, |arg| reference_of(arg, params));
    let start = reference.at(grid.start).saturating_sub(params.lookback_ms).saturating_add(1);
    SelectorRequest {
        matchers: names,
        start: TimestampMs(start),
        end: TimestampMs(reference.at(grid.last())),
        hints: SelectorHints { step_ms: if grid.count > 1 { grid.step_ms } else { 0 }, range_ms: 0 },
    }
}

/// What series and info series have to agree on.
type Identity = [Option<String>; 2];

fn identity(labels: &Labels) -> Identity {
    IDENTIFYING_LABELS.map(|name| labels.get(name).filter(|value| !value.is_empty()).map(str::to_owned))
}

/// Info series at one step: metric and identity, the series' index and its sample's time.
type InfoAt<'a> = HashMap<(&'a str, &'a Identity), (usize, f64)>;

impl Evaluator<'_> {
    pub(super) fn info(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let base = self.vector(&args[0], grid)?;
        if grid.count == 0 {
            return Ok(base);
        }
        let matchers = InfoMatchers::of(args);
        let enriched: Vec<bool> = base
            .names
            .iter()
            .map(|name| !matchers.is_info_metric(name.labels.get(METRIC_NAME).unwrap_or("")))
            .collect();
        let identities: Vec<Identity> = base.names.iter().map(|name| identity(&name.labels)).collect();
        let info = self.info_series(args, grid, (&identities, &enriched))?;
        let info_identities: Vec<Identity> = info.0.names.iter().map(|name| identity(&name.labels)).collect();
        let mut result = BlockBuilder::new(base.like());
        for step in 0..grid.count {
            self.check_cancelled()?;
            let at_step = match base.any_at(step) {
                true => info_at(&info, &info_identities, step)?,
                false => continue,
            };
            for (index, name) in base.names.iter().enumerate() {
                let Some(cell) = base.row(index).get(step) else { continue };
                let labels = match enriched[index] {
                    false => Some(name.labels.clone()),
                    true => {
                        let matching = at_step
                            .iter()
                            .filter(|((_, identity), _)| **identity == identities[index])
                            .map(|(_, (series, _))| &info.0.names[*series].labels);
                        with_info(&name.labels, matching, &matchers)?
                    }
                };
                if let Some(labels) = labels {
                    let row = result.row(labels, name.drop_name)?;
                    result.set(row, step, cell.into())?;
                }
            }
        }
        Ok(result.block)
    }

    /// The info series, with values and with the samples' own times: those that agree with any of the base
    /// series on each identifying label.
    fn info_series(
        &self,
        args: &[Expr],
        grid: &Grid,
        (identities, enriched): (&[Identity], &[bool]),
    ) -> Result<(Block, Block), EvalError> {
        let request = info_request(args, grid, self.params);
        let reference = reference_of(&args[0], self.params);
        let values = self.instant_samples(&request, reference, grid, SamplePart::Value)?;
        let times = self.instant_samples(&request, reference, grid, SamplePart::Timestamp)?;
        let bases: Vec<&Identity> =
            identities.iter().zip(enriched).filter(|(_, enriched)| **enriched).map(|(id, _)| id).collect();
        let has_any = |part: usize| bases.iter().any(|identity| identity[part].is_some());
        let agrees = |identity: &Identity| {
            (0..IDENTIFYING_LABELS.len()).all(|part| {
                !has_any(part)
                    || bases.iter().any(|base| base[part].is_some() && base[part] == identity[part])
            })
        };
        let identified = has_any(0) || has_any(1);
        let kept: Vec<usize> = (0..values.len())
            .filter(|index| identified && agrees(&identity(&values.names[*index].labels)))
            .collect();
        Ok((values.select(&kept)?, times.select(&kept)?))
    }
}

/// The info series of a step. Of those that say something about the same, the newest counts.
fn info_at<'a>(
    (values, times): &'a (Block, Block),
    identities: &'a [Identity],
    step: usize,
) -> Result<InfoAt<'a>, EvalError> {
    let mut info = InfoAt::new();
    for (index, identity) in identities.iter().enumerate() {
        match values.row(index).get(step) {
            None => continue,
            Some(Cell::Histogram(_)) => {
                return Err(EvalError::Execution("info sample should be float".into()));
            }
            Some(Cell::Float(_)) => {}
        }
        let time = times.row(index).float(step).unwrap_or(0.0);
        let labels = &values.names[index].labels;
        let known = info.entry((labels.metric_name(), identity)).or_insert((index, time));
        if known.0 == index {
            continue;
        }
        if known.1 == time {
            return Err(EvalError::Execution(format!(
                "found duplicate series for info metric: existing {} @ {}, new {} @ {}",
                describe(&values.names[known.0].labels),
                known.1 * 1000.0,
                describe(labels),
                time * 1000.0,
            )));
        }
        if known.1 < time {
            *known = (index, time);
        }
    }
    Ok(info)
}

/// The labels of a series with those of its info series. Nothing if it needs an info series and has none.
fn with_info<'a>(
    base: &Labels,
    info: impl Iterator<Item = &'a Labels>,
    matchers: &InfoMatchers,
) -> Result<Option<Labels>, EvalError> {
    let mut added: Vec<(&str, &str)> = Vec::new();
    let mut found = false;
    for labels in info {
        found = true;
        for (name, value) in labels.iter().filter(|(name, _)| matchers.wants(name)) {
            match added.iter().find(|(known, _)| *known == name) {
                Some((_, known)) if *known != value => {
                    return Err(EvalError::Execution(format!("conflicting label: {name}")));
                }
                Some(_) => {}
                // What the series says itself is not overwritten.
                None if base.get(name).is_some() => {}
                None => added.push((name, value)),
            }
        }
    }
    if !found && matchers.need_info() {
        return Ok(None);
    }
    let mut builder = base.to_builder();
    for (name, value) in added {
        builder.set(name, value);
    }
    Ok(Some(builder.build()))
}
