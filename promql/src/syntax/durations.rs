//! Durations in selectors: literals and arithmetic on them, `step()` and `range()`.

use crate::duration::parse_duration;
use crate::go_text::{to_float, to_integer};
use crate::span::Span;
use crate::syntax::ast::{BinaryOp, DurationExpr, DurationExprKind, DurationSetting, NumberLiteral};
use crate::syntax::parser::{Parsed, Parser};
use crate::syntax::token::{Keyword, TokenKind};

const EXPECTED: &str = "number, duration, step(), or range()";
/// Longest duration in seconds: what 63 bits of nanoseconds hold.
const SECONDS_MAX: f64 = 9_223_372_036.0;
/// Binds tighter than any binary operator but `^`.
const SIGN_PRECEDENCE: u8 = 6;

/// What a duration expression may refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DurationContext {
    /// The query's step in milliseconds; 0 for an instant query.
    pub(crate) step_ms: i64,
    /// From the query's start to its end.
    pub(crate) range_ms: i64,
}

impl DurationSetting {
    /// The duration in milliseconds.
    pub(crate) fn milliseconds(&self, context: DurationContext) -> i64 {
        match self {
            DurationSetting::Fixed(milliseconds) => *milliseconds,
            DurationSetting::Computed(expr) => to_integer((expr.seconds(context) * 1000.0).round()),
        }
    }
}

impl DurationExpr {
    fn seconds(&self, context: DurationContext) -> f64 {
        match &self.kind {
            DurationExprKind::Number(number) => number.value,
            DurationExprKind::Step => to_float(context.step_ms) / 1000.0,
            DurationExprKind::Range => to_float(context.range_ms) / 1000.0,
            DurationExprKind::Negative(inner) => -inner.seconds(context),
            DurationExprKind::Paren(inner) => inner.seconds(context),
            DurationExprKind::MinOf(a, b) => a.seconds(context).min(b.seconds(context)),
            DurationExprKind::MaxOf(a, b) => a.seconds(context).max(b.seconds(context)),
            DurationExprKind::Binary(op, a, b) => {
                let (a, b) = (a.seconds(context), b.seconds(context));
                match op {
                    BinaryOp::Add => a + b,
                    BinaryOp::Subtract => a - b,
                    BinaryOp::Multiply => a * b,
                    BinaryOp::Divide => a / b,
                    BinaryOp::Modulo => a % b,
                    _ => a.powf(b),
                }
            }
        }
    }
}

impl Parser<'_> {
    /// A duration literal in seconds.
    pub(super) fn duration_seconds(&self, span: Span) -> Parsed<f64> {
        let milliseconds =
            parse_duration(self.text(span)).map_err(|e| self.syntax_error(span, e.to_string()))?;
        Ok(to_float(milliseconds) / 1000.0)
    }

    /// A range or step; must be positive, as far as that can be known yet.
    pub(super) fn duration_in_brackets(&mut self, context: &str) -> Parsed<DurationSetting> {
        let expr = self.duration_expr(0, context)?;
        let span = expr.span;
        let setting = self.setting(expr)?;
        match setting {
            DurationSetting::Fixed(..=0) => Err(self.syntax_error(span, "duration must be greater than 0")),
            _ => Ok(setting),
        }
    }

    /// What follows `offset`: a sign and a number, a call, or an expression in parentheses.
    pub(super) fn offset_duration(&mut self) -> Parsed<DurationSetting> {
        let expr = self.duration_operand(SIGN_PRECEDENCE + 1, "offset")?;
        self.setting(expr)
    }

    fn setting(&self, expr: DurationExpr) -> Parsed<DurationSetting> {
        let DurationExprKind::Number(number) = expr.kind else {
            return Ok(DurationSetting::Computed(expr));
        };
        if number.value.is_nan() || number.value.abs() > SECONDS_MAX {
            return Err(self.syntax_error(expr.span, "duration out of range"));
        }
        // Rounded to nanoseconds, then cut to milliseconds, as Prometheus does.
        let nanoseconds = to_integer((number.value * 1e9).round());
        Ok(DurationSetting::Fixed(nanoseconds / 1_000_000))
    }

    fn duration_expr(&mut self, precedence_min: u8, context: &str) -> Parsed<DurationExpr> {
        self.nested(|parser| {
            let mut left = parser.duration_operand(SIGN_PRECEDENCE, context)?;
            while let TokenKind::Operator(op) = *parser.peek() {
                let arithmetic = matches!(
                    op,
                    BinaryOp::Add
                        | BinaryOp::Subtract
                        | BinaryOp::Multiply
                        | BinaryOp::Divide
                        | BinaryOp::Modulo
                        | BinaryOp::Power
                );
                if !arithmetic || op.precedence() < precedence_min {
                    break;
                }
                parser.count_operator()?;
                left = parser.duration_binary(left, op, context)?;
            }
            Ok(left)
        })
    }

    fn duration_binary(&mut self, left: DurationExpr, op: BinaryOp, context: &str) -> Parsed<DurationExpr> {
        let operator = self.advance();
        let precedence = if op == BinaryOp::Power { op.precedence() } else { op.precedence() + 1 };
        let right = self.duration_expr(precedence, context)?;
        let divides_by_zero = matches!(right.kind, DurationExprKind::Number(number) if number.value == 0.0);
        match op {
            BinaryOp::Divide if divides_by_zero => Err(self.syntax_error(operator, "division by zero")),
            BinaryOp::Modulo if divides_by_zero => Err(self.syntax_error(operator, "modulo by zero")),
            _ => Ok(DurationExpr {
                span: left.span.to(right.span),
                kind: DurationExprKind::Binary(op, Box::new(left), Box::new(right)),
            }),
        }
    }

    /// An operand with its sign. A sign reaches over operators that bind at least as tight as `reach`.
    fn duration_operand(&mut self, reach: u8, context: &str) -> Parsed<DurationExpr> {
        let start = self.span().start;
        let negative = match self.peek() {
            TokenKind::Operator(BinaryOp::Subtract) => true,
            TokenKind::Operator(BinaryOp::Add) => false,
            _ => return self.duration_primary(context),
        };
        self.advance();
        let inner = if reach > SIGN_PRECEDENCE {
            self.nested(|parser| parser.duration_operand(reach, context))?
        } else {
            self.duration_expr(reach, context)?
        };
        let span = self.span_from(start);
        let kind = match inner.kind {
            kind if !negative => kind,
            DurationExprKind::Number(number) => {
                DurationExprKind::Number(NumberLiteral { value: -number.value, ..number })
            }
            kind => DurationExprKind::Negative(Box::new(DurationExpr { span: inner.span, kind })),
        };
        Ok(DurationExpr { span, kind })
    }

    fn duration_primary(&mut self, context: &str) -> Parsed<DurationExpr> {
        let start = self.span().start;
        let kind = match *self.peek() {
            TokenKind::Number | TokenKind::Duration => {
                let literal = self.number_literal()?;
                DurationExprKind::Number(literal.expect("a number is next"))
            }
            TokenKind::Keyword(keyword @ (Keyword::Step | Keyword::Range)) => {
                self.advance();
                self.expect(&TokenKind::LeftParen, context, EXPECTED)?;
                self.expect(&TokenKind::RightParen, context, EXPECTED)?;
                if keyword == Keyword::Step { DurationExprKind::Step } else { DurationExprKind::Range }
            }
            TokenKind::LeftParen => {
                self.advance();
                let inner = self.duration_expr(0, context)?;
                self.expect(&TokenKind::RightParen, context, "\")\"")?;
                DurationExprKind::Paren(Box::new(inner))
            }
            TokenKind::Identifier => self.duration_call(context)?,
            _ => return Err(self.unexpected(context, EXPECTED)),
        };
        Ok(DurationExpr { span: self.span_from(start), kind })
    }

    /// `min_of(a, b)` or `max_of(a, b)`
    fn duration_call(&mut self, context: &str) -> Parsed<DurationExprKind> {
        let make = match self.text(self.span()).to_ascii_lowercase().as_str() {
            "min_of" => DurationExprKind::MinOf,
            "max_of" => DurationExprKind::MaxOf,
            _ => return Err(self.unexpected(context, EXPECTED)),
        };
        self.advance();
        self.expect(&TokenKind::LeftParen, context, "\"(\"")?;
        let left = self.duration_expr(0, context)?;
        self.expect(&TokenKind::Comma, context, "\",\"")?;
        let right = self.duration_expr(0, context)?;
        self.expect(&TokenKind::RightParen, context, "\")\"")?;
        Ok(make(Box::new(left), Box::new(right)))
    }
}
