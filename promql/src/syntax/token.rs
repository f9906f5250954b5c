//! The words of the language.

use crate::Span;
use crate::syntax::ast::{AggregateOp, BinaryOp};

/// One word of a query and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
}

/// What a word is. Inside braces and brackets the lexer accepts fewer of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TokenKind {
    /// Nothing follows.
    EndOfInput,
    /// No word of the language starts here; the text says why. Nothing follows.
    Error(String),
    Identifier,
    /// An identifier with a colon.
    MetricIdentifier,
    Number,
    Duration,
    /// A string literal, with its quotes.
    Text,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Comma,
    Colon,
    /// `=`
    Assign,
    /// `=~`
    EqualRegex,
    /// `!~`
    NotEqualRegex,
    /// `@`
    At,
    Operator(BinaryOp),
    Aggregate(AggregateOp),
    Keyword(Keyword),
}

/// Reserved words. All but a few may still name a metric or a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keyword {
    Offset,
    Anchored,
    Smoothed,
    By,
    Without,
    On,
    Ignoring,
    GroupLeft,
    GroupRight,
    Bool,
    Fill,
    FillLeft,
    FillRight,
    Start,
    End,
    Step,
    Range,
}

/// The reserved word that `word` is, in any case of its letters.
pub(crate) fn reserved_word(word: &str) -> Option<TokenKind> {
    let keyword = |keyword| Some(TokenKind::Keyword(keyword));
    let lower = word.to_ascii_lowercase();
    if let Some(op) = AggregateOp::from_name(&lower) {
        return Some(TokenKind::Aggregate(op));
    }
    match lower.as_str() {
        "and" => Some(TokenKind::Operator(BinaryOp::And)),
        "or" => Some(TokenKind::Operator(BinaryOp::Or)),
        "unless" => Some(TokenKind::Operator(BinaryOp::Unless)),
        "atan2" => Some(TokenKind::Operator(BinaryOp::Atan2)),
        "inf" | "nan" => Some(TokenKind::Number),
        "offset" => keyword(Keyword::Offset),
        "anchored" => keyword(Keyword::Anchored),
        "smoothed" => keyword(Keyword::Smoothed),
        "by" => keyword(Keyword::By),
        "without" => keyword(Keyword::Without),
        "on" => keyword(Keyword::On),
        "ignoring" => keyword(Keyword::Ignoring),
        "group_left" => keyword(Keyword::GroupLeft),
        "group_right" => keyword(Keyword::GroupRight),
        "bool" => keyword(Keyword::Bool),
        "fill" => keyword(Keyword::Fill),
        "fill_left" => keyword(Keyword::FillLeft),
        "fill_right" => keyword(Keyword::FillRight),
        "start" => keyword(Keyword::Start),
        "end" => keyword(Keyword::End),
        "step" => keyword(Keyword::Step),
        "range" => keyword(Keyword::Range),
        _ => None,
    }
}

impl TokenKind {
    /// How Prometheus names the word in `unexpected ...`. `text` is the word itself.
    pub(crate) fn describe(&self, text: &str) -> String {
        match self {
            TokenKind::EndOfInput => "end of input".into(),
            TokenKind::Error(message) => message.clone(),
            TokenKind::Identifier => format!("identifier \"{text}\""),
            TokenKind::MetricIdentifier => format!("metric identifier \"{text}\""),
            TokenKind::Number => format!("number {}", shorten(text)),
            TokenKind::Duration => format!("duration {}", shorten(text)),
            TokenKind::Text => format!("string {}", shorten(text)),
            TokenKind::Operator(_) | TokenKind::EqualRegex | TokenKind::NotEqualRegex | TokenKind::At => {
                format!("<op:{text}>")
            }
            TokenKind::Aggregate(_) => format!("<aggr:{text}>"),
            TokenKind::Keyword(Keyword::Start | Keyword::End | Keyword::Step | Keyword::Range) => {
                format!("\"{text}\"")
            }
            TokenKind::Keyword(_) => format!("<{text}>"),
            TokenKind::LeftParen
            | TokenKind::RightParen
            | TokenKind::LeftBrace
            | TokenKind::RightBrace
            | TokenKind::LeftBracket
            | TokenKind::RightBracket
            | TokenKind::Comma
            | TokenKind::Colon
            | TokenKind::Assign => format!("\"{text}\""),
        }
    }
}

/// Long words are cut after ten characters.
fn shorten(text: &str) -> String {
    let quoted = |text: &str| crate::go_text::quote(text.as_bytes());
    match text.char_indices().nth(10) {
        Some((at, _)) => format!("{}...", quoted(&text[..at])),
        None => quoted(text),
    }
}
