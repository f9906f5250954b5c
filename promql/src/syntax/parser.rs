//! The grammar: recursive descent, with operator precedence for binary expressions.
//!
//! Errors say what Prometheus's generated parser says, at the same place; like there, the first one is
//! reported. Every level of nesting is counted before it is entered and every operator before it is
//! added, so no text can exhaust the stack.

use std::ops::ControlFlow;

use saturn_model::Matcher;

use crate::error::{ParseError, ParseErrorKind};
use crate::functions::function_named;
use crate::go_text::{parse_number, unescape};
use crate::limits::ParseLimits;
use crate::span::Span;
use crate::syntax::ast::{
    Aggregate, AggregateOp, Binary, BinaryOp, Call, Cardinality, Expr, ExprKind, Grouping, NumberLiteral,
    UnaryOp, VectorMatching,
};
use crate::syntax::check::{check, check_selector};
use crate::syntax::lexer::lex;
use crate::syntax::token::{Keyword, Token, TokenKind};

/// Binds tighter than any binary operator but `^`.
const SIGN_PRECEDENCE: u8 = 6;

/// Parses and checks a query, with the default limits.
pub fn parse(query: &str) -> Result<Expr, ParseError> {
    parse_with_limits(query, &ParseLimits::default())
}

/// Parses and checks a query.
pub fn parse_with_limits(query: &str, limits: &ParseLimits) -> Result<Expr, ParseError> {
    let mut parser = Parser::new(query, limits)?;
    if parser.peek() == &TokenKind::EndOfInput {
        return Err(parser.syntax_error(Span::default(), "no expression found in input"));
    }
    let expr = parser.expression(0)?;
    if parser.peek() != &TokenKind::EndOfInput {
        return Err(parser.unexpected("", ""));
    }
    check(&expr, query)?;
    Ok(expr)
}

/// Parses a series selector, as in the API's `match[]`. At least one matcher must refuse the empty value.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    let mut parser = Parser::new(text, &ParseLimits::default())?;
    let (selector, span) = parser.vector_selector()?;
    if parser.peek() != &TokenKind::EndOfInput {
        return Err(parser.unexpected("", ""));
    }
    check_selector(&selector, span, text)?;
    Ok(selector.matchers)
}

pub(super) struct Parser<'a> {
    query: &'a str,
    tokens: Vec<Token>,
    next: usize,
    limits: ParseLimits,
    nesting: usize,
    operators: usize,
}

pub(super) type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'a> {
    fn new(query: &'a str, limits: &ParseLimits) -> Parsed<Self> {
        let mut parser =
            Self { query, tokens: Vec::new(), next: 0, limits: *limits, nesting: 0, operators: 0 };
        if query.len() > limits.query_bytes_max {
            let (length, max) = (query.len(), limits.query_bytes_max);
            let message =
                format!("query of {length} bytes is longer than the limit of {max} (query_bytes_max)");
            return Err(parser.error(ParseErrorKind::TooLarge, Span::default(), message));
        }
        parser.tokens = lex(query);
        Ok(parser)
    }

    // Words.

    pub(super) fn token(&self) -> &Token {
        &self.tokens[self.next]
    }

    pub(super) fn peek(&self) -> &TokenKind {
        &self.token().kind
    }

    fn peek_second(&self) -> &TokenKind {
        let last = self.tokens.len() - 1;
        &self.tokens[(self.next + 1).min(last)].kind
    }

    pub(super) fn span(&self) -> Span {
        self.token().span
    }

    pub(super) fn text(&self, span: Span) -> &'a str {
        &self.query[span.start..span.end]
    }

    /// The bytes from `start` to the end of the word taken last.
    pub(super) fn span_from(&self, start: usize) -> Span {
        let end = self.next.checked_sub(1).map_or(start, |last| self.tokens[last].span.end);
        Span::new(start, end)
    }

    /// Takes a word. The last one (end of input or an error) is never passed.
    pub(super) fn advance(&mut self) -> Span {
        let span = self.span();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        span
    }

    pub(super) fn accept(&mut self, kind: &TokenKind) -> bool {
        let accepted = self.peek() == kind;
        if accepted {
            self.advance();
        }
        accepted
    }

    pub(super) fn accept_keyword(&mut self, keyword: Keyword) -> bool {
        self.accept(&TokenKind::Keyword(keyword))
    }

    // Errors.

    pub(super) fn error(&self, kind: ParseErrorKind, span: Span, message: impl Into<String>) -> ParseError {
        ParseError { kind, span, at: span.line_column(self.query), message: message.into() }
    }

    pub(super) fn syntax_error(&self, span: Span, message: impl Into<String>) -> ParseError {
        self.error(ParseErrorKind::Syntax, span, message)
    }

    /// The error of a word that cannot stand here. If it is the lexer's error, that is the message.
    pub(super) fn unexpected(&self, context: &str, expected: &str) -> ParseError {
        let token = self.token();
        let described = token.kind.describe(self.text(token.span));
        if matches!(token.kind, TokenKind::Error(_)) {
            return self.syntax_error(token.span, described);
        }
        let mut message = format!("unexpected {described}");
        if !context.is_empty() {
            message.push_str(&format!(" in {context}"));
        }
        if !expected.is_empty() {
            message.push_str(&format!(", expected {expected}"));
        }
        self.syntax_error(token.span, message)
    }

    pub(super) fn expect(&mut self, kind: &TokenKind, context: &str, expected: &str) -> Parsed<()> {
        if self.accept(kind) { Ok(()) } else { Err(self.unexpected(context, expected)) }
    }

    /// Runs `parse` one level deeper.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nesting >= self.limits.nesting_max {
            let max = self.limits.nesting_max;
            let message = format!("expression is nested more than {max} levels deep (nesting_max)");
            return Err(self.error(ParseErrorKind::TooLarge, self.span(), message));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// Counts an operator or modifier, which makes the tree one level deeper.
    pub(super) fn count_operator(&mut self) -> Parsed<()> {
        self.operators += 1;
        if self.operators > self.limits.operators_max {
            let max = self.limits.operators_max;
            let message = format!("expression has more than {max} operators (operators_max)");
            return Err(self.error(ParseErrorKind::TooLarge, self.span(), message));
        }
        Ok(())
    }

    // Expressions.

    /// An expression of operators that bind at least as tight as `precedence_min`.
    fn expression(&mut self, precedence_min: u8) -> Parsed<Expr> {
        self.nested(|parser| {
            let mut left = parser.operand()?;
            while let ControlFlow::Continue(op) = parser.next_operator(precedence_min) {
                parser.count_operator()?;
                left = parser.binary(left, op)?;
            }
            Ok(left)
        })
    }

    fn next_operator(&self, precedence_min: u8) -> ControlFlow<(), BinaryOp> {
        match self.peek() {
            TokenKind::Operator(op) if op.precedence() >= precedence_min => ControlFlow::Continue(*op),
            _ => ControlFlow::Break(()),
        }
    }

    fn binary(&mut self, left: Expr, op: BinaryOp) -> Parsed<Expr> {
        self.advance();
        let return_bool = self.accept_keyword(Keyword::Bool);
        let matching = self.vector_matching(op)?;
        let precedence = if op == BinaryOp::Power { op.precedence() } else { op.precedence() + 1 };
        let right = self.expression(precedence)?;
        let span = left.span.to(right.span);
        let binary = Binary { op, left, right, matching, return_bool };
        Ok(Expr { span, kind: ExprKind::Binary(Box::new(binary)) })
    }

    fn vector_matching(&mut self, op: BinaryOp) -> Parsed<VectorMatching> {
        let mut matching = VectorMatching::default();
        if op.is_set() {
            matching.cardinality = Cardinality::ManyToMany;
        }
        if let TokenKind::Keyword(keyword @ (Keyword::On | Keyword::Ignoring)) = *self.peek() {
            self.advance();
            matching.on = keyword == Keyword::On;
            matching.labels = self.grouping_labels()?;
            if let TokenKind::Keyword(keyword @ (Keyword::GroupLeft | Keyword::GroupRight)) = *self.peek() {
                self.advance();
                matching.cardinality = match keyword {
                    Keyword::GroupLeft => Cardinality::ManyToOne,
                    _ => Cardinality::OneToMany,
                };
                if self.peek() == &TokenKind::LeftParen {
                    matching.include = self.grouping_labels()?;
                }
            }
        }
        while let TokenKind::Keyword(keyword @ (Keyword::Fill | Keyword::FillLeft | Keyword::FillRight)) =
            *self.peek()
        {
            // `fill` without parentheses is a metric of that name.
            if self.peek_second() != &TokenKind::LeftParen {
                break;
            }
            self.advance();
            let value = self.fill_value()?;
            if keyword != Keyword::FillRight {
                matching.fill.left = Some(value);
            }
            if keyword != Keyword::FillLeft {
                matching.fill.right = Some(value);
            }
        }
        Ok(matching)
    }

    fn fill_value(&mut self) -> Parsed<f64> {
        self.expect(&TokenKind::LeftParen, "fill modifier", "\"(\"")?;
        let value = self.signed_number()?.ok_or_else(|| self.unexpected("fill modifier", "number"))?;
        self.expect(&TokenKind::RightParen, "fill modifier", "\")\"")?;
        Ok(value)
    }

    /// A sign and what it applies to, or an operand with its modifiers.
    fn operand(&mut self) -> Parsed<Expr> {
        let op = match self.peek() {
            TokenKind::Operator(BinaryOp::Add) => UnaryOp::Plus,
            TokenKind::Operator(BinaryOp::Subtract) => UnaryOp::Minus,
            _ => {
                let primary = self.primary()?;
                return self.modifiers(primary);
            }
        };
        let start = self.advance().start;
        let mut inner = self.expression(SIGN_PRECEDENCE)?;
        let span = self.span_from(start);
        if let ExprKind::Number(number) = &mut inner.kind {
            if op == UnaryOp::Minus {
                number.value = -number.value;
            }
            return Ok(Expr { span, kind: inner.kind });
        }
        Ok(Expr { span, kind: ExprKind::Unary(op, Box::new(inner)) })
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let start = self.span().start;
        let kind = match *self.peek() {
            TokenKind::Number | TokenKind::Duration => {
                ExprKind::Number(self.number_literal()?.expect("a number is next"))
            }
            TokenKind::Text => ExprKind::Text(self.string_literal()?),
            TokenKind::LeftParen => {
                self.advance();
                let inner = self.expression(0)?;
                self.expect(&TokenKind::RightParen, "", "")?;
                ExprKind::Paren(Box::new(inner))
            }
            TokenKind::Aggregate(op)
                if matches!(
                    self.peek_second(),
                    TokenKind::LeftParen | TokenKind::Keyword(Keyword::By | Keyword::Without)
                ) =>
            {
                self.aggregate(op)?
            }
            TokenKind::Identifier
            | TokenKind::Keyword(Keyword::Start | Keyword::End | Keyword::Step | Keyword::Range)
                if self.peek_second() == &TokenKind::LeftParen =>
            {
                self.call()?
            }
            _ => {
                let (selector, span) = self.vector_selector()?;
                return Ok(Expr { span, kind: ExprKind::VectorSelector(selector) });
            }
        };
        Ok(Expr { span: self.span_from(start), kind })
    }

    fn call(&mut self) -> Parsed<ExprKind> {
        let name_span = self.advance();
        let name = self.text(name_span);
        let args = self.arguments()?;
        let function = function_named(name).ok_or_else(|| {
            let message = format!("unknown function with name \"{name}\"");
            self.syntax_error(name_span, message)
        })?;
        Ok(ExprKind::Call(Call { function, args }))
    }

    /// `(a, b, c)`
    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        self.expect(&TokenKind::LeftParen, "", "")?;
        let mut args = Vec::new();
        if self.accept(&TokenKind::RightParen) {
            return Ok(args);
        }
        loop {
            args.push(self.expression(0)?);
            let comma = self.span();
            if !self.accept(&TokenKind::Comma) {
                break;
            }
            if self.peek() == &TokenKind::RightParen {
                return Err(self.syntax_error(comma, "trailing commas not allowed in function call args"));
            }
        }
        self.expect(&TokenKind::RightParen, "", "")?;
        Ok(args)
    }

    fn aggregate(&mut self, op: AggregateOp) -> Parsed<ExprKind> {
        let start = self.advance().start;
        let before = self.grouping()?;
        let mut args = self.arguments()?;
        let grouping = match before {
            Some(grouping) => grouping,
            None => self.grouping()?.unwrap_or(Grouping::By(Vec::new())),
        };
        let span = self.span_from(start);
        let wanted = if op.param_type().is_some() { 2 } else { 1 };
        if args.is_empty() {
            return Err(self.syntax_error(span, "no arguments for aggregate expression provided"));
        }
        if args.len() != wanted {
            let message = format!(
                "wrong number of arguments for aggregate expression provided, expected {wanted}, got {}",
                args.len()
            );
            return Err(self.syntax_error(span, message));
        }
        let expr = args.pop().expect("the number of arguments was checked");
        let aggregate = Aggregate { op, expr, param: args.pop(), grouping };
        Ok(ExprKind::Aggregate(Box::new(aggregate)))
    }

    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        if self.accept_keyword(Keyword::By) {
            Ok(Some(Grouping::By(self.grouping_labels()?)))
        } else if self.accept_keyword(Keyword::Without) {
            Ok(Some(Grouping::Without(self.grouping_labels()?)))
        } else {
            Ok(None)
        }
    }

    /// `(a, "b c", d)`
    fn grouping_labels(&mut self) -> Parsed<Vec<String>> {
        let context = "grouping opts";
        self.expect(&TokenKind::LeftParen, context, "\"(\"")?;
        let mut labels = Vec::new();
        while !self.accept(&TokenKind::RightParen) {
            labels.push(self.grouping_label()?);
            if !self.accept(&TokenKind::Comma) {
                self.expect(&TokenKind::RightParen, context, "\",\" or \")\"")?;
                break;
            }
        }
        Ok(labels)
    }

    fn grouping_label(&mut self) -> Parsed<String> {
        match self.peek() {
            TokenKind::Text => {
                let span = self.span();
                let bytes = self.string_literal()?;
                let valid = String::from_utf8(bytes).ok().filter(|name| !name.is_empty());
                valid.ok_or_else(|| self.syntax_error(span, "invalid label name in grouping opts"))
            }
            TokenKind::Identifier
            | TokenKind::MetricIdentifier
            | TokenKind::Keyword(_)
            | TokenKind::Aggregate(_)
            | TokenKind::Operator(BinaryOp::And | BinaryOp::Or | BinaryOp::Unless | BinaryOp::Atan2) => {
                let span = self.advance();
                Ok(self.text(span).into())
            }
            _ => Err(self.unexpected("grouping opts", "label")),
        }
    }

    // Literals.

    /// A number, or a duration as seconds; nothing is taken if neither is next.
    pub(super) fn number_literal(&mut self) -> Parsed<Option<NumberLiteral>> {
        let span = self.span();
        let text = self.text(span);
        let literal = match self.peek() {
            TokenKind::Number => {
                let value = parse_number(text)
                    .map_err(|e| self.syntax_error(span, format!("error parsing number: {e}")))?;
                NumberLiteral { value, is_duration: false }
            }
            TokenKind::Duration => {
                let value = self.duration_seconds(span)?;
                NumberLiteral { value, is_duration: true }
            }
            _ => return Ok(None),
        };
        self.advance();
        Ok(Some(literal))
    }

    /// A number or duration with an optional sign.
    pub(super) fn signed_number(&mut self) -> Parsed<Option<f64>> {
        let negative = self.peek() == &TokenKind::Operator(BinaryOp::Subtract);
        if negative || self.peek() == &TokenKind::Operator(BinaryOp::Add) {
            self.advance();
        }
        let sign = if negative { -1.0 } else { 1.0 };
        Ok(self.number_literal()?.map(|literal| sign * literal.value))
    }

    pub(super) fn string_literal(&mut self) -> Parsed<Vec<u8>> {
        let span = self.advance();
        let text = self.text(span);
        let inner = &text[1..text.len() - 1];
        Ok(if text.starts_with('`') { inner.into() } else { unescape(inner) })
    }
}
