//! Warnings and infos that come with a result.
//!
//! Two annotations with the same text are one; the position that is kept is the later one, as in
//! Prometheus's `util/annotations`. Their number is bounded. The info about repaired histograms merges its numbers instead.

use crate::go_text::{format_general, format_two_digits};
use crate::span::Span;

/// What evaluation has to say besides the result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// The result may be wrong.
    pub warnings: Vec<Annotation>,
    /// The query may not be what was meant.
    pub infos: Vec<Annotation>,
}

/// One remark about a part of the query.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    text: String,
    /// The part of the query.
    pub span: Span,
    repair: Option<MonotonicityRepair>,
}

/// How far cumulative bucket counts had to be changed to not decrease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MonotonicityRepair {
    pub(crate) bucket_min: f64,
    pub(crate) bucket_max: f64,
    pub(crate) difference_max: f64,
    pub(crate) samples: usize,
    pub(crate) timestamp_min: i64,
    pub(crate) timestamp_max: i64,
}

/// Annotations as the API shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderedAnnotations {
    /// Texts of the warnings.
    pub warnings: Vec<String>,
    /// Texts of the infos.
    pub infos: Vec<String>,
}

impl Annotations {
    /// Adds a warning; `text` without its prefix.
    pub(crate) fn warn(&mut self, span: Span, text: &str) {
        add(&mut self.warnings, Annotation { text: format!("PromQL warning: {text}"), span, repair: None });
    }

    /// Adds an info; `text` without its prefix.
    pub(crate) fn inform(&mut self, span: Span, text: &str) {
        add(&mut self.infos, Annotation { text: format!("PromQL info: {text}"), span, repair: None });
    }

    /// Adds the info that a histogram's buckets had to be repaired.
    pub(crate) fn inform_of_repair(&mut self, span: Span, text: &str, repair: MonotonicityRepair) {
        let text = format!("PromQL info: {text}");
        add(&mut self.infos, Annotation { text, span, repair: Some(repair) });
    }

    /// The texts with their positions in `query`. At most `max` of each kind, then how many more there
    /// are; 0 means all. Prometheus's API shows 10.
    pub fn render(&self, query: &str, max: usize) -> RenderedAnnotations {
        RenderedAnnotations {
            warnings: render(&self.warnings, query, max, "warning"),
            infos: render(&self.infos, query, max, "info"),
        }
    }

    /// Adds all annotations of `other`.
    pub fn merge(&mut self, other: Annotations) {
        other.warnings.into_iter().for_each(|annotation| add(&mut self.warnings, annotation));
        other.infos.into_iter().for_each(|annotation| add(&mut self.infos, annotation));
    }
}

/// Most different texts of each kind that are kept; a query can have one for each series.
const ANNOTATIONS_MAX: usize = 1000;

fn add(annotations: &mut Vec<Annotation>, new: Annotation) {
    match annotations.iter().position(|old| old.text == new.text) {
        None if annotations.len() >= ANNOTATIONS_MAX => {}
        None => annotations.push(new),
        Some(at) => {
            let old = &mut annotations[at];
            old.span = new.span;
            old.repair = match (old.repair, new.repair) {
                (Some(old), Some(new)) => Some(old.merge(new)),
                (old, new) => new.or(old),
            };
        }
    }
}

fn render(annotations: &[Annotation], query: &str, max: usize, kind: &str) -> Vec<String> {
    let shown = if max == 0 { annotations.len() } else { max.min(annotations.len()) };
    let mut texts: Vec<String> = annotations[..shown].iter().map(|a| a.render(query)).collect();
    if shown < annotations.len() {
        texts.push(format!("{} more {kind} annotations omitted", annotations.len() - shown));
    }
    texts
}

impl Annotation {
    /// The text with its position in `query`.
    pub fn render(&self, query: &str) -> String {
        let repair = self.repair.map(|repair| repair.to_string()).unwrap_or_default();
        format!("{}{repair} ({})", self.text, self.span.line_column(query))
    }
}

impl MonotonicityRepair {
    fn merge(self, other: Self) -> Self {
        Self {
            bucket_min: self.bucket_min.min(other.bucket_min),
            bucket_max: self.bucket_max.max(other.bucket_max),
            difference_max: self.difference_max.max(other.difference_max),
            samples: self.samples + other.samples,
            timestamp_min: self.timestamp_min.min(other.timestamp_min),
            timestamp_max: self.timestamp_max.max(other.timestamp_max),
        }
    }
}

impl std::fmt::Display for MonotonicityRepair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            ", from buckets {} to {}, with a max diff of {}, over {} samples from {} to {}",
            format_general(self.bucket_min),
            format_general(self.bucket_max),
            format_two_digits(self.difference_max),
            self.samples,
            crate::eval::format_rfc3339(self.timestamp_min),
            crate::eval::format_rfc3339(self.timestamp_max),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_the_rest_is_counted() {
        let mut annotations = Annotations::default();
        for i in 0..12 {
            annotations.warn(Span::new(i, i + 1), &format!("number {}", i / 2));
        }
        let rendered = annotations.render("a+b+c+d+e+f+g", 4);
        assert_eq!(rendered.warnings[0], "PromQL warning: number 0 (1:2)");
        assert_eq!(rendered.warnings[4], "2 more warning annotations omitted");
        assert_eq!(annotations.render("", 0).warnings.len(), 6);
    }
}
