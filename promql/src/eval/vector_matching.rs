//! Binary operations between vectors: which series belong together, and the set operators.
//!
//! A series' signature (the labels that matching looks at) does not depend on the step, so series are
//! grouped once; within a group each step is decided on its own, because different series
//! may stand for the same signature at different times.
//!
//! Source: `VectorBinop`, `VectorAnd`, `VectorOr`, `VectorUnless`, `resultMetric` of `engine.go`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME};

use crate::ast::{Binary, BinaryOp, Cardinality, VectorMatching};
use crate::error::EvalError;
use crate::eval::block::{Block, Cell, SeriesName};
use crate::eval::element::{ElementRemark, combine};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{BlockBuilder, Duplicates, keep_labels, merge_duplicates, without_metadata};
use crate::eval::params::SampleValue;
use crate::go_text::quote;
use crate::span::Span;

/// The series of both sides that have one signature, as indexes.
#[derive(Default)]
struct Partners {
    /// The side that may have many.
    many: Vec<usize>,
    /// The side that has one at each step.
    one: Vec<usize>,
}

impl Evaluator<'_> {
    pub(super) fn vectors(
        &self,
        binary: &Binary,
        span: Span,
        (left, right): (&Block, &Block),
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        match binary.op {
            BinaryOp::And | BinaryOp::Unless => self.intersect(binary, left, right),
            BinaryOp::Or => self.unite(&binary.matching, left, right),
            _ => self.pair(binary, span, (left, right), grid),
        }
    }

    /// `and` and `unless`: the left side where the right side has the signature, or has it not.
    fn intersect(&self, binary: &Binary, left: &Block, right: &Block) -> Result<Block, EvalError> {
        let signatures = presence_by_signature(right, &binary.matching);
        let wanted = binary.op == BinaryOp::And;
        let mut result = left.like();
        for (name, row) in left.rows() {
            self.check_cancelled()?;
            let matched = signatures.get(&signature(&name.labels, &binary.matching));
            if matched.is_none() && wanted {
                continue;
            }
            result.push_row(name.clone(), row)?;
            if let Some(matched) = matched {
                let kept = result.row_mut(result.len() - 1);
                kept.present
                    .iter_mut()
                    .zip(matched)
                    .for_each(|(present, other)| *present &= *other == wanted);
            }
        }
        Ok(result)
    }

    /// `or`: the left side, and the right side where the left has not the signature.
    fn unite(&self, matching: &VectorMatching, left: &Block, right: &Block) -> Result<Block, EvalError> {
        let signatures = presence_by_signature(left, matching);
        let mut result = left.like();
        for (name, row) in left.rows() {
            result.push_row(name.clone(), row)?;
        }
        for (name, row) in right.rows() {
            self.check_cancelled()?;
            result.push_row(name.clone(), row)?;
            if let Some(hidden) = signatures.get(&signature(&name.labels, matching)) {
                let kept = result.row_mut(result.len() - 1);
                kept.present.iter_mut().zip(hidden).for_each(|(present, hidden)| *present &= !*hidden);
            }
        }
        merge_duplicates(result, Duplicates::MergeDisjoint)
    }

    /// Arithmetic, comparison and trimming: each series with its partner.
    fn pair(
        &self,
        binary: &Binary,
        span: Span,
        (left, right): (&Block, &Block),
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let swapped = binary.matching.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (right, left) } else { (left, right) };
        let fill = binary.matching.fill;
        let fills = fill.left.is_some() || fill.right.is_some();
        // Where one side is empty, nothing matches and nothing is looked at, unless values are filled in.
        let looked_at = (0..grid.count).filter(|step| {
            let (many, one) = (many.any_at(*step), one.any_at(*step));
            (many && one) || (fills && (many || one))
        });
        let mut pairing = Pairing {
            binary,
            many,
            one,
            swapped,
            delays_name_removal: self.delays_name_removal(),
            steps: looked_at.collect(),
            result: BlockBuilder::new(left.like()),
            remarks: HashMap::new(),
        };
        for (signature, partners) in group_partners(many, one, &binary.matching) {
            self.check_cancelled()?;
            pairing.add(&signature, &partners)?;
        }
        // Of each step only the last remark counts.
        for (_, remark) in pairing.remarks.into_values() {
            remark.add_to(&mut self.annotations(), binary.op, span);
        }
        Ok(pairing.result.block)
    }
}

/// The work on one operation.
struct Pairing<'a> {
    binary: &'a Binary,
    many: &'a Block,
    one: &'a Block,
    /// Whether the many side is the right one.
    swapped: bool,
    delays_name_removal: bool,
    /// The steps that are looked at.
    steps: Vec<usize>,
    result: BlockBuilder,
    /// The last remark of each step, and the place of the series that it is about.
    remarks: HashMap<usize, (usize, ElementRemark)>,
}

/// A series of both sides; a side without one is filled.
type Pair = (Option<usize>, Option<usize>);

impl Pairing<'_> {
    fn add(&mut self, signature: &Labels, partners: &Partners) -> Result<(), EvalError> {
        let mut rows = HashMap::new();
        // Results of one step, to find two of the many side that would be the same.
        let mut used = Vec::new();
        // Like Prometheus, `fill_left` and `fill_right` mean the sides after `group_right` has swapped them.
        let fill = self.binary.matching.fill;
        for at in 0..self.steps.len() {
            let step = self.steps[at];
            used.clear();
            let one = self.only_one(signature, &partners.one, step)?;
            if one.is_some() || fill.right.is_some() {
                for many in &partners.many {
                    if self.many.row(*many).present[step] {
                        self.set((Some(*many), one), step, signature, (&mut rows, &mut used))?;
                    }
                }
            }
            if used.is_empty() && one.is_some() && fill.left.is_some() {
                self.set((None, one), step, signature, (&mut rows, &mut used))?;
            }
        }
        Ok(())
    }

    /// The series of the one side that is present at `step`; two of them are an error.
    fn only_one(
        &self,
        signature: &Labels,
        candidates: &[usize],
        step: usize,
    ) -> Result<Option<usize>, EvalError> {
        let mut present = candidates.iter().filter(|index| self.one.row(**index).present[step]);
        let first = present.next();
        match (first, present.next()) {
            (Some(first), Some(second)) => {
                let side = if self.swapped { "left" } else { "right" };
                let mut series = [*first, *second].map(|index| describe(&self.one.names[index].labels));
                series.sort();
                Err(EvalError::Execution(format!(
                    "found duplicate series for the match group {} on the {side} hand-side of the operation: \
                     [{}];many-to-many matching not allowed: matching labels must be unique on one side",
                    describe(signature),
                    series.join(", ")
                )))
            }
            _ => Ok(first.copied()),
        }
    }

    fn check_unique(&self, row: usize, used: &[usize]) -> Result<(), EvalError> {
        let one_to_one = self.binary.matching.cardinality == Cardinality::OneToOne;
        if one_to_one && !used.is_empty() {
            return Err(EvalError::Execution(
                "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
                    .into(),
            ));
        }
        if used.contains(&row) {
            return Err(EvalError::Execution(
                "multiple matches for labels: grouping labels must ensure unique matches".into(),
            ));
        }
        Ok(())
    }

    /// Computes the result of one pair at one step.
    fn set(
        &mut self,
        pair: Pair,
        step: usize,
        signature: &Labels,
        (rows, used): (&mut HashMap<Pair, usize>, &mut Vec<usize>),
    ) -> Result<(), EvalError> {
        let fill = self.binary.matching.fill;
        let filled = |value: Option<f64>| value.map(Cell::Float);
        let many = pair.0.map_or_else(|| filled(fill.left), |index| self.many.row(index).get(step));
        let one = pair.1.map_or_else(|| filled(fill.right), |index| self.one.row(index).get(step));
        let (Some(many), Some(one)) = (many, one) else { return Ok(()) };
        let (left, right) = if self.swapped { (one, many) } else { (many, one) };
        let outcome = combine(self.binary.op, left, right);
        if let Some(remark) = outcome.value.as_ref().err().copied().or(outcome.remark) {
            // Filled series come after all others.
            let place = pair.0.unwrap_or_else(|| self.many.len() + pair.1.unwrap_or(0));
            let last = self.remarks.entry(step).or_insert((place, remark));
            if place >= last.0 {
                *last = (place, remark);
            }
        }
        let Ok(value) = outcome.value else { return Ok(()) };
        let row = match rows.get(&pair) {
            Some(row) => *row,
            None => {
                let row = self.result_row(pair, signature)?;
                rows.insert(pair, row);
                row
            }
        };
        // Also what a comparison then filters out has to be unique.
        self.check_unique(row, used)?;
        used.push(row);
        match self.binary.return_bool {
            true => self.result.set(row, step, SampleValue::Float(f64::from(u8::from(outcome.holds)))),
            false if outcome.holds => self.result.set(row, step, value),
            false => Ok(()),
        }
    }

    fn result_row(&mut self, pair: Pair, signature: &Labels) -> Result<usize, EvalError> {
        let filled = SeriesName::from(signature.clone());
        let many = pair.0.map_or(&filled, |index| &self.many.names[index]);
        let one = pair.1.map_or(&filled, |index| &self.one.names[index]);
        let arithmetic = self.binary.op.is_arithmetic();
        let mut labels = result_labels(&many.labels, &one.labels, &self.binary.matching, arithmetic);
        let mut drop_name = many.drop_name && !arithmetic;
        if self.binary.return_bool {
            if self.delays_name_removal {
                drop_name = true;
            } else {
                labels = without_metadata(&labels);
            }
        }
        self.result.row(labels, drop_name)
    }
}

/// The labels of a result. Arithmetic makes a new metric: its name goes at once, even where names are
/// otherwise removed in the end.
fn result_labels(many: &Labels, one: &Labels, matching: &VectorMatching, arithmetic: bool) -> Labels {
    let mut labels = if arithmetic { without_metadata(many) } else { many.clone() };
    let is_listed = |name: &str| matching.labels.iter().any(|label| label == name);
    if matching.cardinality == Cardinality::OneToOne {
        labels = keep_labels(&labels, |name| is_listed(name) == matching.on);
    }
    if matching.include.is_empty() {
        return labels;
    }
    let mut builder = labels.to_builder();
    for name in &matching.include {
        builder.set(name, one.get(name).unwrap_or(""));
    }
    builder.build()
}

/// The labels that matching looks at.
fn signature(labels: &Labels, matching: &VectorMatching) -> Labels {
    let is_listed = |name: &str| matching.labels.iter().any(|label| label == name);
    if matching.on {
        keep_labels(labels, is_listed)
    } else {
        keep_labels(labels, |name| name != METRIC_NAME && !is_listed(name))
    }
}

/// At which steps each signature is there.
fn presence_by_signature(block: &Block, matching: &VectorMatching) -> HashMap<Labels, Vec<bool>> {
    let mut signatures: HashMap<Labels, Vec<bool>> = HashMap::new();
    for (name, row) in block.rows() {
        let presence =
            signatures.entry(signature(&name.labels, matching)).or_insert_with(|| vec![false; block.steps()]);
        presence.iter_mut().zip(row.present).for_each(|(any, present)| *any |= *present);
    }
    signatures
}

/// Groups of both sides, in the order in which their first series of the many side appear.
fn group_partners(many: &Block, one: &Block, matching: &VectorMatching) -> Vec<(Labels, Partners)> {
    let mut index_of: HashMap<Labels, usize> = HashMap::new();
    let mut groups: Vec<(Labels, Partners)> = Vec::new();
    let mut place = |labels: &Labels, groups: &mut Vec<(Labels, Partners)>| {
        let signature = signature(labels, matching);
        *index_of.entry(signature.clone()).or_insert_with(|| {
            groups.push((signature, Partners::default()));
            groups.len() - 1
        })
    };
    for (index, name) in many.names.iter().enumerate() {
        let at = place(&name.labels, &mut groups);
        groups[at].1.many.push(index);
    }
    for (index, name) in one.names.iter().enumerate() {
        let at = place(&name.labels, &mut groups);
        groups[at].1.one.push(index);
    }
    groups
}

/// A label set as Go's `labels.String` writes it: the name is a label like the others.
pub(super) fn describe(labels: &Labels) -> String {
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", quote(value.as_bytes()))).collect();
    format!("{{{}}}", pairs.join(", "))
}
