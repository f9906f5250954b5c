//! Writes a syntax tree as text that reads back as the same tree.
//!
//! Source: `printer.go` of Prometheus. Matchers are sorted as texts, a name that a selector was written
//! with stays outside of the braces, literal durations are normalised.

use std::fmt::{self, Display, Formatter, Write};

use saturn_model::{METRIC_NAME, MatchOp, Matcher};

use crate::duration::format_duration;
use crate::go_text::{format_plain, quote, to_integer};
use crate::syntax::ast::{
    Aggregate, At, Binary, Cardinality, DurationExpr, DurationExprKind, DurationSetting, Expr, ExprKind,
    Extension, Grouping, NumberLiteral, Subquery, TimeModifiers, VectorSelector,
};

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ExprKind::Number(number) => number.fmt(f),
            ExprKind::Text(bytes) => f.write_str(&quote(bytes)),
            ExprKind::VectorSelector(selector) => {
                write_selector(f, selector)?;
                write_at(f, &selector.time)?;
                write_extension(f, selector.extension)?;
                write_offset(f, &selector.time)
            }
            ExprKind::MatrixSelector(matrix) => {
                write_selector(f, &matrix.selector)?;
                write!(f, "[{}]", matrix.range)?;
                write_extension(f, matrix.selector.extension)?;
                write_at(f, &matrix.selector.time)?;
                write_offset(f, &matrix.selector.time)
            }
            ExprKind::Subquery(subquery) => subquery.fmt(f),
            ExprKind::Call(call) => {
                write!(f, "{}(", call.function.name)?;
                for (i, arg) in call.args.iter().enumerate() {
                    write!(f, "{}{arg}", if i == 0 { "" } else { ", " })?;
                }
                f.write_char(')')
            }
            ExprKind::Aggregate(aggregate) => aggregate.fmt(f),
            ExprKind::Binary(binary) => binary.fmt(f),
            ExprKind::Unary(op, inner) => write!(f, "{}{inner}", op.symbol()),
            ExprKind::Paren(inner) => write!(f, "({inner})"),
        }
    }
}

impl Display for NumberLiteral {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_duration {
            f.write_str(&format_duration(to_integer((self.value * 1000.0).round())))
        } else {
            f.write_str(&format_plain(self.value))
        }
    }
}

impl Display for Subquery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}:", self.expr, self.range)?;
        if let Some(step) = &self.step {
            write!(f, "{step}")?;
        }
        f.write_char(']')?;
        write_at(f, &self.time)?;
        write_offset(f, &self.time)
    }
}

impl Display for Aggregate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.op.name())?;
        match &self.grouping {
            Grouping::By(labels) if labels.is_empty() => {}
            Grouping::By(labels) => write!(f, " by ({}) ", LabelNames(labels))?,
            Grouping::Without(labels) => write!(f, " without ({}) ", LabelNames(labels))?,
        }
        f.write_char('(')?;
        if let Some(param) = &self.param {
            write!(f, "{param}, ")?;
        }
        write!(f, "{})", self.expr)
    }
}

impl Display for Binary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.left, self.op.symbol())?;
        if self.return_bool {
            f.write_str(" bool")?;
        }
        let matching = &self.matching;
        let group = match matching.cardinality {
            Cardinality::ManyToOne => Some("group_left"),
            Cardinality::OneToMany => Some("group_right"),
            Cardinality::OneToOne | Cardinality::ManyToMany => None,
        };
        let names = LabelNames(&matching.labels);
        if matching.on {
            write!(f, " on ({names})")?;
        } else if !matching.labels.is_empty() || group.is_some() {
            write!(f, " ignoring ({names})")?;
        }
        if let Some(group) = group {
            write!(f, " {group} ({})", LabelNames(&matching.include))?;
        }
        match (matching.fill.left, matching.fill.right) {
            (Some(left), Some(right)) if left == right || (left.is_nan() && right.is_nan()) => {
                write!(f, " fill ({})", format_plain(left))?;
            }
            (left, right) => {
                for (side, value) in [("left", left), ("right", right)] {
                    if let Some(value) = value {
                        write!(f, " fill_{side} ({})", format_plain(value))?;
                    }
                }
            }
        }
        write!(f, " {}", self.right)
    }
}

impl Display for DurationSetting {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            DurationSetting::Fixed(milliseconds) => f.write_str(&format_duration(*milliseconds)),
            DurationSetting::Computed(expr) => expr.fmt(f),
        }
    }
}

impl Display for DurationExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DurationExprKind::Number(number) => number.fmt(f),
            DurationExprKind::Step => f.write_str("step()"),
            DurationExprKind::Range => f.write_str("range()"),
            DurationExprKind::Negative(inner) => write!(f, "-{inner}"),
            DurationExprKind::Binary(op, left, right) => write!(f, "{left} {} {right}", op.symbol()),
            DurationExprKind::MinOf(left, right) => write!(f, "min_of({left}, {right})"),
            DurationExprKind::MaxOf(left, right) => write!(f, "max_of({left}, {right})"),
            DurationExprKind::Paren(inner) => write!(f, "({inner})"),
        }
    }
}

/// Label names, separated by commas, quoted where they must be.
struct LabelNames<'a>(&'a [String]);

impl Display for LabelNames<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, label_name(name))?;
        }
        Ok(())
    }
}

/// A label's name, quoted unless it is `[a-zA-Z_][a-zA-Z0-9_]*`.
fn label_name(name: &str) -> String {
    let legacy = !name.is_empty()
        && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
        && !name.as_bytes()[0].is_ascii_digit();
    if legacy { name.into() } else { quote(name.as_bytes()) }
}

fn write_selector(f: &mut Formatter<'_>, selector: &VectorSelector) -> fmt::Result {
    f.write_str(&selector.name)?;
    let says_name = |matcher: &Matcher| {
        !selector.name.is_empty()
            && matcher.name() == METRIC_NAME
            && matcher.op() == MatchOp::Equal
            && matcher.value() == selector.name
    };
    let matchers = selector.matchers.iter().filter(|matcher| !says_name(matcher));
    let mut texts: Vec<String> = matchers
        .map(|m| format!("{}{}{}", label_name(m.name()), m.op(), quote(m.value().as_bytes())))
        .collect();
    texts.sort();
    if !texts.is_empty() || selector.name.is_empty() {
        write!(f, "{{{}}}", texts.join(","))?;
    }
    Ok(())
}

fn write_at(f: &mut Formatter<'_>, time: &TimeModifiers) -> fmt::Result {
    match time.at {
        None => Ok(()),
        Some(At::Start) => f.write_str(" @ start()"),
        Some(At::End) => f.write_str(" @ end()"),
        Some(At::Timestamp(milliseconds)) => {
            let sign = if milliseconds < 0 { "-" } else { "" };
            let magnitude = milliseconds.unsigned_abs();
            write!(f, " @ {sign}{}.{:03}", magnitude / 1000, magnitude % 1000)
        }
    }
}

fn write_extension(f: &mut Formatter<'_>, extension: Option<Extension>) -> fmt::Result {
    match extension {
        None => Ok(()),
        Some(extension) => write!(f, " {}", extension.name()),
    }
}

fn write_offset(f: &mut Formatter<'_>, time: &TimeModifiers) -> fmt::Result {
    match &time.offset {
        None | Some(DurationSetting::Fixed(0)) => Ok(()),
        Some(offset) => write!(f, " offset {offset}"),
    }
}
