//! Splits a query into words, with the same rules, modes and messages as Prometheus's `lex.go`.
//!
//! The lexer never fails: where no word can start, it ends with a [`TokenKind::Error`] that reaches to the
//! end of the text. The parser reports it only if it gets that far, as Prometheus does. Linear in
//! the length of the text.

use crate::Span;
use crate::syntax::ast::BinaryOp;
use crate::syntax::token::{Keyword, Token, TokenKind, reserved_word};

/// All words of `text`; the last is `EndOfInput` or `Error`.
pub(crate) fn lex(text: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        text,
        at: 0,
        start: 0,
        tokens: Vec::new(),
        paren_depth: 0,
        in_braces: false,
        in_brackets: false,
        got_colon: false,
    };
    loop {
        lexer.skip_blanks();
        lexer.start = lexer.at;
        let kind = match lexer.next_token() {
            Ok(kind) => kind,
            Err(message) => {
                lexer.at = text.len();
                TokenKind::Error(message)
            }
        };
        let last = matches!(kind, TokenKind::EndOfInput | TokenKind::Error(_));
        lexer.push(kind);
        if last {
            return lexer.tokens;
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Where the current word started.
    start: usize,
    tokens: Vec<Token>,
    paren_depth: usize,
    in_braces: bool,
    in_brackets: bool,
    /// Whether the brackets have had their colon.
    got_colon: bool,
}

type Lexed = Result<TokenKind, String>;

/// A character as Go's `%q` shows it.
fn quoted(c: Option<char>) -> String {
    match c {
        Some(c @ ('\'' | '\\')) => format!("'\\{c}'"),
        Some(c) if c.is_control() => format!("{c:?}"),
        Some(c) => format!("'{c}'"),
        None => "'\u{fffd}'".into(),
    }
}

/// A character as Go's `%#U` shows it.
fn code_point(c: char) -> String {
    format!("U+{:04X} '{c}'", u32::from(c))
}

fn is_name_start(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn is_name_part(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

impl Lexer<'_> {
    fn push(&mut self, kind: TokenKind) {
        let span = Span::new(self.start, self.at);
        self.tokens.push(Token { kind, span });
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn accept(&mut self, allowed: impl FnOnce(char) -> bool) -> bool {
        let accepted = self.peek().is_some_and(allowed);
        if accepted {
            self.bump();
        }
        accepted
    }

    fn accept_any_of(&mut self, allowed: &str) -> bool {
        self.accept(|c| allowed.contains(c))
    }

    fn accept_run(&mut self, allowed: impl Fn(char) -> bool) {
        while self.accept(&allowed) {}
    }

    fn word(&self) -> &str {
        &self.text[self.start..self.at]
    }

    fn skip_blanks(&mut self) {
        loop {
            self.accept_run(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            if self.peek() != Some('#') {
                return;
            }
            self.accept_run(|c| c != '\n' && c != '\r');
        }
    }

    fn next_token(&mut self) -> Lexed {
        if self.in_braces {
            return self.token_in_braces();
        }
        let Some(c) = self.bump() else {
            return self.end_of_input();
        };
        let second = self.peek();
        match c {
            '0'..='9' => self.number_or_duration(),
            '.' if second.is_some_and(|c| c.is_ascii_digit()) => self.number_or_duration(),
            _ if self.in_brackets && (is_name_start(c) || c == ':') => self.word_in_brackets(c),
            _ if self.in_brackets && self.expects_duration() && !"()]+-*/%^,".contains(c) => {
                Err(format!("unexpected character in duration expression: {}", quoted(Some(c))))
            }
            '"' | '\'' => self.quoted_text(c),
            '`' => self.raw_text(),
            _ if is_name_start(c) || c == ':' => Ok(self.keyword_or_identifier()),
            '(' | ')' | '{' | '}' | '[' | ']' => self.bracket(c),
            _ => self.operator(c, second),
        }
    }

    fn end_of_input(&self) -> Lexed {
        if self.in_brackets && self.expects_duration() {
            return Err("unexpected end of input in duration expression".into());
        }
        match (self.paren_depth, self.in_brackets) {
            (1.., _) => Err("unclosed left parenthesis".into()),
            (_, true) => Err("unclosed left bracket".into()),
            _ => Ok(TokenKind::EndOfInput),
        }
    }

    /// Whether the brackets have just been opened or an operator stands last in them.
    fn expects_duration(&self) -> bool {
        let ends_operand = |kind: &TokenKind| {
            matches!(kind, TokenKind::Number | TokenKind::Duration | TokenKind::RightParen)
        };
        self.tokens.last().is_none_or(|token| !ends_operand(&token.kind))
    }

    fn operator(&mut self, c: char, second: Option<char>) -> Lexed {
        let op = |op| Ok(TokenKind::Operator(op));
        let two_characters = match (c, second) {
            ('=', Some('=')) => Some(BinaryOp::Equal),
            ('!', Some('=')) => Some(BinaryOp::NotEqual),
            ('<', Some('=')) => Some(BinaryOp::LessEqual),
            ('>', Some('=')) => Some(BinaryOp::GreaterEqual),
            ('<', Some('/')) => Some(BinaryOp::TrimUpper),
            ('>', Some('/')) => Some(BinaryOp::TrimLower),
            _ => None,
        };
        if let Some(found) = two_characters {
            self.bump();
            return op(found);
        }
        match c {
            ',' => Ok(TokenKind::Comma),
            '@' => Ok(TokenKind::At),
            '+' => op(BinaryOp::Add),
            '-' => op(BinaryOp::Subtract),
            '*' => op(BinaryOp::Multiply),
            '/' => op(BinaryOp::Divide),
            '%' => op(BinaryOp::Modulo),
            '^' => op(BinaryOp::Power),
            '<' => op(BinaryOp::Less),
            '>' => op(BinaryOp::Greater),
            '=' if second == Some('~') => Err(format!("unexpected character after '=': {}", quoted(second))),
            '=' => Ok(TokenKind::Assign),
            '!' => Err(format!("unexpected character after '!': {}", quoted(second))),
            _ => Err(format!("unexpected character: {}", quoted(Some(c)))),
        }
    }

    fn bracket(&mut self, c: char) -> Lexed {
        match c {
            '(' => self.paren_depth += 1,
            ')' => match self.paren_depth.checked_sub(1) {
                Some(depth) => self.paren_depth = depth,
                None => {
                    // In Prometheus the error starts after the parenthesis.
                    self.start = self.at;
                    return Err(format!("unexpected right parenthesis {}", quoted(Some(c))));
                }
            },
            '{' => self.in_braces = true,
            '[' if self.in_brackets => {
                return Err(format!("unexpected left bracket {}", quoted(Some(c))));
            }
            '[' => (self.in_brackets, self.got_colon) = (true, false),
            ']' if self.in_brackets => self.in_brackets = false,
            ']' => return Err(format!("unexpected right bracket {}", quoted(Some(c)))),
            _ => return Err(format!("unexpected character: {}", quoted(Some(c)))),
        }
        Ok(match c {
            '(' => TokenKind::LeftParen,
            ')' => TokenKind::RightParen,
            '{' => TokenKind::LeftBrace,
            '[' => TokenKind::LeftBracket,
            _ => TokenKind::RightBracket,
        })
    }

    fn token_in_braces(&mut self) -> Lexed {
        let Some(c) = self.bump() else {
            return Err("unexpected end of input inside braces".into());
        };
        match c {
            ',' => Ok(TokenKind::Comma),
            '"' | '\'' => self.quoted_text(c),
            '`' => self.raw_text(),
            '=' if self.accept_any_of("~") => Ok(TokenKind::EqualRegex),
            '=' => Ok(TokenKind::Assign),
            '!' => match self.bump() {
                Some('~') => Ok(TokenKind::NotEqualRegex),
                Some('=') => Ok(TokenKind::Operator(BinaryOp::NotEqual)),
                other => Err(format!("unexpected character after '!' inside braces: {}", quoted(other))),
            },
            '{' => Err(format!("unexpected left brace {}", quoted(Some(c)))),
            '}' => {
                self.in_braces = false;
                Ok(TokenKind::RightBrace)
            }
            _ if is_name_start(c) => {
                self.accept_run(is_name_part);
                Ok(TokenKind::Identifier)
            }
            _ => Err(format!("unexpected character inside braces: {}", quoted(Some(c)))),
        }
    }

    fn word_in_brackets(&mut self, first: char) -> Lexed {
        if first == ':' {
            return match (self.got_colon, self.expects_duration()) {
                (_, true) => Err("unexpected colon before duration in duration expression".into()),
                (true, _) => Err(format!("unexpected colon {}", quoted(Some(first)))),
                _ => {
                    self.got_colon = true;
                    Ok(TokenKind::Colon)
                }
            };
        }
        self.accept_run(is_name_part);
        match self.word().to_ascii_lowercase().as_str() {
            "step" => Ok(TokenKind::Keyword(Keyword::Step)),
            "range" => Ok(TokenKind::Keyword(Keyword::Range)),
            "min_of" | "max_of" => Ok(TokenKind::Identifier),
            _ => Err(format!("unexpected character: {}, expected ':'", quoted(Some(first)))),
        }
    }

    fn keyword_or_identifier(&mut self) -> TokenKind {
        self.accept_run(|c| is_name_part(c) || c == ':');
        let word = self.word();
        match reserved_word(word) {
            Some(kind) => kind,
            None if word.contains(':') => TokenKind::MetricIdentifier,
            None => TokenKind::Identifier,
        }
    }

    fn number_or_duration(&mut self) -> Lexed {
        self.at = self.start;
        if self.number() {
            return Ok(TokenKind::Number);
        }
        if self.rest_of_duration() {
            return Ok(TokenKind::Duration);
        }
        Err(format!("bad number or duration syntax: {}", crate::go_text::quote(self.word().as_bytes())))
    }

    /// `scanNumber` of `lex.go`: takes a number and says whether it ends well.
    fn number(&mut self) -> bool {
        let hexadecimal = self.accept_any_of("0") && self.accept_any_of("xX");
        if hexadecimal {
            self.accept_any_of("_");
        }
        let is_digit = |c: char| if hexadecimal { c.is_ascii_hexdigit() } else { c.is_ascii_digit() };
        self.accept_any_of(".");
        self.accept(is_digit);
        let (mut got_dot, mut got_exponent) = (false, false);
        while let Some(c) = self.peek() {
            match c {
                '.' => {
                    self.bump();
                    if got_dot || self.accept_any_of("_.") || hexadecimal {
                        return false;
                    }
                    got_dot = true;
                }
                'e' | 'E' => {
                    self.bump();
                    if got_exponent {
                        return false;
                    }
                    got_exponent = true;
                    self.accept_any_of("+-");
                    if self.accept_any_of("._eE") || self.peek().is_none() {
                        return false;
                    }
                }
                '_' => {
                    self.bump();
                    if self.accept_any_of("._eE") || self.peek().is_none() {
                        return false;
                    }
                }
                _ if is_digit(c) => self.accept_run(is_digit),
                _ => break,
            }
        }
        !self.peek().is_some_and(is_name_part)
    }

    /// `acceptRemainingDuration` of `lex.go`: the digits before the first unit are taken already. Bad
    /// units like `hs` are caught when the duration is read.
    fn rest_of_duration(&mut self) -> bool {
        if !self.accept_any_of("smhdwy") {
            return false;
        }
        self.accept_any_of("s");
        while self.accept(|c| c.is_ascii_digit()) {
            self.accept_run(|c| c.is_ascii_digit());
            if !self.accept_any_of("smhdw") {
                return false;
            }
            self.accept_any_of("s");
        }
        // What breaks the duration is taken too: the message shows it.
        !self.accept(is_name_part)
    }

    fn quoted_text(&mut self, delimiter: char) -> Lexed {
        loop {
            match self.bump() {
                Some('\\') => self.escape(delimiter)?,
                Some(c) if c == delimiter => return Ok(TokenKind::Text),
                Some('\n') | None => return Err("unterminated quoted string".into()),
                Some(_) => {}
            }
        }
    }

    fn escape(&mut self, delimiter: char) -> Result<(), String> {
        let not_terminated = || String::from("escape sequence not terminated");
        let kind = self.bump().ok_or_else(not_terminated)?;
        let (mut digits, radix, max) = match kind {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => return Ok(()),
            _ if kind == delimiter => return Ok(()),
            '0'..='7' => {
                self.at -= 1;
                (3, 8, 255)
            }
            'x' => (2, 16, 255),
            'u' => (4, 16, u32::from(char::MAX)),
            'U' => (8, 16, u32::from(char::MAX)),
            _ => return Err(format!("unknown escape sequence {}", code_point(kind))),
        };
        let mut code: u32 = 0;
        while digits > 0 {
            let c = self.bump().ok_or_else(not_terminated)?;
            let digit = c
                .to_digit(radix)
                .ok_or_else(|| format!("illegal character {} in escape sequence", code_point(c)))?;
            code = code.wrapping_mul(radix).wrapping_add(digit);
            digits -= 1;
        }
        if code > max || (0xd800..0xe000).contains(&code) {
            return Err("escape sequence is an invalid Unicode code point".into());
        }
        Ok(())
    }

    fn raw_text(&mut self) -> Lexed {
        loop {
            match self.bump() {
                Some('`') => return Ok(TokenKind::Text),
                Some(_) => {}
                None => return Err("unterminated raw string".into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind> {
        lex(text).into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn modes_change_what_words_are() {
        use TokenKind::{Assign, EndOfInput, Identifier, LeftBrace, RightBrace, Text};
        assert_eq!(kinds("sum{by='x'}")[1..], [LeftBrace, Identifier, Assign, Text, RightBrace, EndOfInput]);
        assert_eq!(kinds("1.5e3 0x1F 5m")[..3], [TokenKind::Number, TokenKind::Number, TokenKind::Duration]);
        assert_eq!(kinds("a # b\nc"), [Identifier, Identifier, EndOfInput]);
    }

    #[test]
    fn errors_reach_to_the_end() {
        let last = lex("1 ~ 2 + 3").pop().expect("never empty");
        assert_eq!(last.kind, TokenKind::Error("unexpected character: '~'".into()));
        assert_eq!(last.span, Span::new(2, 9));
    }
}
