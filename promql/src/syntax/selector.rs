//! Selectors and what may follow them: `{...}`, `[5m]`, `[1h:5m]`, `offset`, `@`, `anchored`, `smoothed`.

use saturn_model::{METRIC_NAME, MatchOp, Matcher};

use crate::go_text::{format_plain, to_integer};
use crate::span::Span;
use crate::syntax::ast::{
    At, BinaryOp, DurationSetting, Expr, ExprKind, Extension, MatrixSelector, Subquery, TimeModifiers,
    VectorSelector,
};
use crate::syntax::parser::{Parsed, Parser};
use crate::syntax::token::{Keyword, TokenKind};

const AFTER_NOTHING_ELSE: &str =
    "must be preceded by an instant vector selector or range vector selector or a subquery";

impl Parser<'_> {
    /// `name`, `name{...}` or `{...}`.
    pub(super) fn vector_selector(&mut self) -> Parsed<(VectorSelector, Span)> {
        let start = self.span().start;
        let mut selector = VectorSelector {
            name: String::new(),
            matchers: Vec::new(),
            time: TimeModifiers::default(),
            extension: None,
        };
        if self.names_metric() {
            let span = self.advance();
            selector.name = self.text(span).into();
        } else if self.peek() != &TokenKind::LeftBrace {
            return Err(self.unexpected("", ""));
        }
        if self.accept(&TokenKind::LeftBrace) {
            selector.matchers = self.label_matchers()?;
        }
        let span = self.span_from(start);
        if !selector.name.is_empty() {
            let matcher = Matcher::new(METRIC_NAME, MatchOp::Equal, &selector.name);
            selector.matchers.push(matcher.expect("an equality matcher has no pattern that could be bad"));
        }
        Ok((selector, span))
    }

    /// Whether the next word can be a metric's name. Many reserved words can.
    fn names_metric(&self) -> bool {
        match self.peek() {
            TokenKind::Identifier | TokenKind::MetricIdentifier | TokenKind::Aggregate(_) => true,
            TokenKind::Operator(op) => op.is_set(),
            TokenKind::Keyword(keyword) => !matches!(
                keyword,
                Keyword::On | Keyword::Ignoring | Keyword::GroupLeft | Keyword::GroupRight | Keyword::Bool
            ),
            _ => false,
        }
    }

    /// What stands in braces, after the left one; takes the right one too.
    fn label_matchers(&mut self) -> Parsed<Vec<Matcher>> {
        let context = "label matching";
        let mut matchers = Vec::new();
        while !self.accept(&TokenKind::RightBrace) {
            matchers.push(self.label_matcher()?);
            if !self.accept(&TokenKind::Comma) {
                self.expect(&TokenKind::RightBrace, context, "\",\" or \"}\"")?;
                break;
            }
        }
        Ok(matchers)
    }

    fn label_matcher(&mut self) -> Parsed<Matcher> {
        let context = "label matching";
        let span = self.span();
        let quoted = self.peek() == &TokenKind::Text;
        let name = match self.peek() {
            TokenKind::Text => self.matcher_text()?,
            TokenKind::Identifier => {
                self.advance();
                self.text(span).to_owned()
            }
            _ => return Err(self.unexpected(context, "identifier or \"}\"")),
        };
        let op = match self.peek() {
            TokenKind::Assign => MatchOp::Equal,
            TokenKind::Operator(BinaryOp::NotEqual) => MatchOp::NotEqual,
            TokenKind::EqualRegex => MatchOp::Regex,
            TokenKind::NotEqualRegex => MatchOp::NotRegex,
            TokenKind::Comma | TokenKind::RightBrace if quoted => {
                // A text alone names the metric.
                let matcher = Matcher::new(METRIC_NAME, MatchOp::Equal, &name);
                return Ok(matcher.expect("an equality matcher has no pattern that could be bad"));
            }
            _ => return Err(self.unexpected(context, "label matching operator")),
        };
        self.advance();
        if self.peek() != &TokenKind::Text {
            return Err(self.unexpected(context, "string"));
        }
        let value = self.matcher_text()?;
        Matcher::new(&name, op, &value)
            .map_err(|e| self.syntax_error(self.span_from(span.start), e.to_string()))
    }

    /// A string literal that must be text: labels are UTF-8 everywhere.
    fn matcher_text(&mut self) -> Parsed<String> {
        let span = self.span();
        let bytes = self.string_literal()?;
        String::from_utf8(bytes)
            .map_err(|_| self.syntax_error(span, "label name or value is not valid UTF-8"))
    }

    /// Applies everything that may follow an operand without an operator.
    pub(super) fn modifiers(&mut self, mut expr: Expr) -> Parsed<Expr> {
        loop {
            match self.peek() {
                TokenKind::LeftBracket => expr = self.range_or_subquery(expr)?,
                TokenKind::Keyword(Keyword::Offset) => self.offset(&mut expr)?,
                TokenKind::At => self.at(&mut expr)?,
                TokenKind::Keyword(Keyword::Anchored) => self.extension(&mut expr, Extension::Anchored)?,
                TokenKind::Keyword(Keyword::Smoothed) => self.extension(&mut expr, Extension::Smoothed)?,
                _ => return Ok(expr),
            }
            self.count_operator()?;
        }
    }

    fn range_or_subquery(&mut self, expr: Expr) -> Parsed<Expr> {
        let bracket = self.advance().start;
        let range = self.duration_in_brackets("subquery or range selector")?;
        let start = expr.span.start;
        if self.accept(&TokenKind::Colon) {
            let step = match self.peek() {
                TokenKind::RightBracket => None,
                _ => Some(self.duration_in_brackets("subquery selector")?),
            };
            self.expect(&TokenKind::RightBracket, "subquery selector", "\"]\"")?;
            let time = TimeModifiers::default();
            let kind = ExprKind::Subquery(Subquery { expr: Box::new(expr), range, step, time });
            return Ok(Expr { span: self.span_from(start), kind });
        }
        self.expect(&TokenKind::RightBracket, "subquery or range", "\":\" or \"]\"")?;
        let brackets = self.span_from(bracket);
        let ExprKind::VectorSelector(selector) = expr.kind else {
            return Err(self.syntax_error(brackets, "ranges only allowed for vector selectors"));
        };
        if selector.time.offset.is_some() {
            return Err(self.syntax_error(brackets, "no offset modifiers allowed before range"));
        }
        if selector.time.at.is_some() {
            return Err(self.syntax_error(brackets, "no @ modifiers allowed before range"));
        }
        let kind = ExprKind::MatrixSelector(MatrixSelector { selector, range });
        Ok(Expr { span: self.span_from(start), kind })
    }

    fn offset(&mut self, expr: &mut Expr) -> Parsed<()> {
        self.advance();
        let offset = self.offset_duration()?;
        let end = self.span_from(expr.span.start);
        let Some(time) = time_modifiers(expr) else {
            return Err(self.syntax_error(expr.span, format!("offset modifier {AFTER_NOTHING_ELSE}")));
        };
        if time.offset.is_some() {
            return Err(self.syntax_error(expr.span, "offset may not be set multiple times"));
        }
        if offset != DurationSetting::Fixed(0) {
            time.offset = Some(offset);
        }
        expr.span = end;
        Ok(())
    }

    fn at(&mut self, expr: &mut Expr) -> Parsed<()> {
        self.advance();
        let at = match self.peek() {
            TokenKind::Keyword(keyword @ (Keyword::Start | Keyword::End)) => {
                let at = if *keyword == Keyword::Start { At::Start } else { At::End };
                self.advance();
                self.expect(&TokenKind::LeftParen, "@", "timestamp")?;
                self.expect(&TokenKind::RightParen, "@", "timestamp")?;
                at
            }
            _ => {
                let seconds = self.signed_number()?.ok_or_else(|| self.unexpected("@", "timestamp"))?;
                // 2^63, the bound of Prometheus, and exactly a float.
                if seconds.is_nan() || seconds.abs() >= 9_223_372_036_854_775_808.0 {
                    let text = match seconds {
                        _ if seconds.is_finite() => format!("{seconds:.6}"),
                        _ => format_plain(seconds),
                    };
                    let message = format!("timestamp out of bounds for @ modifier: {text}");
                    return Err(self.syntax_error(expr.span, message));
                }
                At::Timestamp(to_integer((seconds * 1000.0).round()))
            }
        };
        let end = self.span_from(expr.span.start);
        let Some(time) = time_modifiers(expr) else {
            return Err(self.syntax_error(expr.span, format!("@ modifier {AFTER_NOTHING_ELSE}")));
        };
        if time.at.is_some() {
            return Err(self.syntax_error(expr.span, "@ <timestamp> may not be set multiple times"));
        }
        time.at = Some(at);
        expr.span = end;
        Ok(())
    }

    fn extension(&mut self, expr: &mut Expr, extension: Extension) -> Parsed<()> {
        self.advance();
        let name = extension.name();
        let end = self.span_from(expr.span.start);
        let selector = match &mut expr.kind {
            ExprKind::VectorSelector(selector) => selector,
            ExprKind::MatrixSelector(matrix) => &mut matrix.selector,
            _ => {
                let message = format!(
                    "{name} modifier must be preceded by an instant vector selector or range vector selector"
                );
                return Err(self.syntax_error(expr.span, message));
            }
        };
        if selector.extension.is_some() {
            let message = format!("{name} modifier may not be set together with another one");
            return Err(self.syntax_error(expr.span, message));
        }
        selector.extension = Some(extension);
        expr.span = end;
        Ok(())
    }
}

/// The modifiers of an expression that can have some.
fn time_modifiers(expr: &mut Expr) -> Option<&mut TimeModifiers> {
    match &mut expr.kind {
        ExprKind::VectorSelector(selector) => Some(&mut selector.time),
        ExprKind::MatrixSelector(matrix) => Some(&mut matrix.selector.time),
        ExprKind::Subquery(subquery) => Some(&mut subquery.time),
        _ => None,
    }
}
