//! From RE2 syntax, which Prometheus documents, to the dialect of the `regex` crate.
//!
//! Most of the two is equal. This translator reads a pattern as Go's `regexp/syntax` does in Perl mode and
//! writes down what differs: ASCII classes (`\d`, `\w`, `\s`, `\b`), `\Q..\E`, braces that are no
//! repetition, set operators in classes, octal escapes. It refuses what Go refuses and the crate would
//! accept: stacked repetitions, counts above 1000, flags and escapes of the crate's own. What both
//! refuse is left to the crate. It does not compile anything.

use std::iter::Peekable;
use std::str::CharIndices;

/// Largest count of a repetition in Go.
const REPEAT_MAX: u32 = 1000;

const DIGIT: &str = "0-9";
const SPACE: &str = r"\t\n\x0c\r ";
const WORD: &str = "0-9A-Za-z_";

/// Translates a pattern; the error says what is wrong with it.
pub(crate) fn translate(pattern: &str) -> Result<String, String> {
    let mut translator = Translator {
        pattern,
        chars: pattern.char_indices().peekable(),
        output: String::new(),
        repeated: false,
    };
    while let Some((_, c)) = translator.chars.next() {
        translator.item(c)?;
    }
    Ok(translator.output)
}

struct Translator<'a> {
    pattern: &'a str,
    chars: Peekable<CharIndices<'a>>,
    output: String,
    /// Whether the last item was a repetition, which may not be repeated.
    repeated: bool,
}

/// What an escape stands for.
enum Escape {
    Char(char),
    /// The inside of a class, and whether it is negated.
    Class(&'static str, bool),
    /// `\pN` or `\p{Greek}`, as the crate writes it.
    Unicode(String),
}

fn missing(what: &str) -> String {
    format!("missing {what}")
}

fn invalid_escape(c: char) -> String {
    format!("invalid escape sequence: `\\{c}`")
}

/// Writes a character that stands for itself, inside or outside of a class.
fn push_literal(output: &mut String, c: char) {
    if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' && c != ' ' {
        output.push_str(&format!("\\x{:02x}", u32::from(c)));
    } else {
        output.push(c);
    }
}

impl Translator<'_> {
    fn rest(&mut self) -> &str {
        self.chars.peek().map_or("", |(at, _)| &self.pattern[*at..])
    }

    fn next_char(&mut self) -> Option<char> {
        self.chars.next().map(|(_, c)| c)
    }

    fn peek_char(&mut self) -> Option<char> {
        self.chars.peek().map(|(_, c)| *c)
    }

    fn accept(&mut self, wanted: char) -> bool {
        self.chars.next_if(|(_, c)| *c == wanted).is_some()
    }

    /// Passes `bytes` bytes, which must end between characters.
    fn skip(&mut self, bytes: usize) {
        let end = self.chars.peek().map_or(self.pattern.len(), |(at, _)| at + bytes);
        while self.chars.next_if(|(at, _)| *at < end).is_some() {}
    }

    fn item(&mut self, c: char) -> Result<(), String> {
        let mut repeats = false;
        match c {
            '\\' => self.escape_outside()?,
            '[' => self.class()?,
            '(' => self.group_start()?,
            '*' | '+' | '?' => {
                repeats = true;
                self.repetition(&c.to_string())?;
            }
            '{' => match self.counts()? {
                Some(counts) => {
                    repeats = true;
                    self.repetition(&counts)?;
                }
                None => push_literal(&mut self.output, c),
            },
            '}' | ']' => push_literal(&mut self.output, c),
            _ => self.output.push(c),
        }
        self.repeated = repeats;
        Ok(())
    }

    fn repetition(&mut self, operator: &str) -> Result<(), String> {
        if self.repeated {
            return Err(format!("invalid nested repetition operator: `{operator}`"));
        }
        self.output.push_str(operator);
        if self.accept('?') {
            self.output.push('?');
        }
        Ok(())
    }

    /// The counts of `{n}`, `{n,}` or `{n,m}` after the left brace; nothing if it is a literal brace.
    fn counts(&mut self) -> Result<Option<String>, String> {
        let Some((inside, _)) = self.rest().split_once('}') else {
            return Ok(None);
        };
        let inside = inside.to_owned();
        let (min, max) = inside.split_once(',').unwrap_or((&inside, &inside));
        let is_count = |text: &str| {
            let leading_zero = text.len() > 1 && text.starts_with('0');
            !text.is_empty() && !leading_zero && text.bytes().all(|b| b.is_ascii_digit())
        };
        if !is_count(min) || !(max.is_empty() || is_count(max)) {
            return Ok(None);
        }
        let too_large = |text: &str| !text.is_empty() && text.parse::<u32>().map_or(true, |n| n > REPEAT_MAX);
        let disordered = max.parse::<u32>().is_ok_and(|max| min.parse::<u32>().is_ok_and(|min| min > max));
        if too_large(min) || too_large(max) || disordered {
            return Err(format!("invalid repeat count: `{{{inside}}}`"));
        }
        self.skip(inside.len() + 1);
        Ok(Some(format!("{{{inside}}}")))
    }

    fn group_start(&mut self) -> Result<(), String> {
        self.output.push('(');
        if !self.accept('?') {
            return Ok(());
        }
        let rest = self.rest();
        if rest.starts_with("P<") || rest.starts_with('<') {
            self.output.push('?');
            return Ok(());
        }
        let end = rest.find([':', ')']).ok_or_else(|| missing("closing )"))?;
        let (flags, end_char) = (rest[..end].to_owned(), rest.as_bytes()[end]);
        let (on, off) = flags.split_once('-').unwrap_or((&flags, "i"));
        let known = |text: &str| text.chars().all(|c| matches!(c, 'i' | 'm' | 's' | 'U'));
        if !known(on) || !known(off) || off.is_empty() {
            return Err(format!("invalid or unsupported Perl syntax: `(?{flags}`"));
        }
        // The crate does not know a group of no flags.
        let no_flags = flags.is_empty() && end_char == b')';
        self.output.push_str(if no_flags { "?:" } else { "?" });
        Ok(())
    }

    fn escape_outside(&mut self) -> Result<(), String> {
        match self.peek_char() {
            Some(c @ ('A' | 'z')) => {
                self.chars.next();
                self.output.push('\\');
                self.output.push(c);
            }
            Some(c @ ('b' | 'B')) => {
                self.chars.next();
                self.output.push_str(&format!("(?-u:\\{c})"));
            }
            Some('Q') => {
                self.chars.next();
                self.quoted();
            }
            _ => match self.escape()? {
                Escape::Char(c) => push_literal(&mut self.output, c),
                Escape::Class(inside, negated) => {
                    self.output.push_str(&format!("[{}{inside}]", if negated { "^" } else { "" }));
                }
                Escape::Unicode(class) => self.output.push_str(&class),
            },
        }
        Ok(())
    }

    /// Everything up to `\E` stands for itself.
    fn quoted(&mut self) {
        let rest = self.rest();
        let (text, after) =
            rest.split_once("\\E").map_or((rest.len(), rest.len()), |(t, _)| (t.len(), t.len() + 2));
        let text = rest[..text].to_owned();
        text.chars().for_each(|c| push_literal(&mut self.output, c));
        self.skip(after);
    }

    /// An escape that may stand in a class too, after its backslash.
    fn escape(&mut self) -> Result<Escape, String> {
        let c = self.next_char().ok_or_else(|| String::from("trailing backslash at end of expression"))?;
        Ok(match c {
            'd' | 'D' => Escape::Class(DIGIT, c == 'D'),
            's' | 'S' => Escape::Class(SPACE, c == 'S'),
            'w' | 'W' => Escape::Class(WORD, c == 'W'),
            'p' | 'P' => Escape::Unicode(self.unicode_class(c)?),
            'a' => Escape::Char('\u{7}'),
            'f' => Escape::Char('\u{c}'),
            'n' => Escape::Char('\n'),
            'r' => Escape::Char('\r'),
            't' => Escape::Char('\t'),
            'v' => Escape::Char('\u{b}'),
            'x' => Escape::Char(self.hexadecimal()?),
            '0'..='7' => Escape::Char(self.octal(c)?),
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => Escape::Char(c),
            _ => return Err(invalid_escape(c)),
        })
    }

    fn octal(&mut self, first: char) -> Result<char, String> {
        let is_octal = |c: &char| ('0'..='7').contains(c);
        // A single digit other than 0 would be a back reference.
        if first != '0' && !self.peek_char().is_some_and(|c| is_octal(&c)) {
            return Err(invalid_escape(first));
        }
        let mut code = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.peek_char().filter(is_octal).and_then(|c| c.to_digit(8)) else { break };
            self.chars.next();
            code = code * 8 + digit;
        }
        char::from_u32(code).ok_or_else(|| invalid_escape(first))
    }

    fn hexadecimal(&mut self) -> Result<char, String> {
        let digits: String = if self.accept('{') {
            let end = self.rest().find('}').ok_or_else(|| invalid_escape('x'))?;
            let digits = self.rest()[..end].to_owned();
            self.skip(end + 1);
            digits
        } else {
            self.chars.by_ref().take(2).map(|(_, c)| c).collect()
        };
        let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| plain);
        code.and_then(char::from_u32).ok_or_else(|| invalid_escape('x'))
    }

    fn unicode_class(&mut self, kind: char) -> Result<String, String> {
        let error = || String::from("invalid character class range");
        let first = self.next_char().ok_or_else(error)?;
        if first != '{' {
            return Ok(format!("\\{kind}{first}"));
        }
        let end = self.rest().find('}').ok_or_else(error)?;
        let name = self.rest()[..end].to_owned();
        self.skip(end + 1);
        let (negated, name) = match name.strip_prefix('^') {
            Some(name) => (kind == 'p', name),
            None => (kind == 'P', name.as_str()),
        };
        // The crate knows more names, and writes `=` and `:` in them.
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(error());
        }
        Ok(format!("\\{}{{{name}}}", if negated { 'P' } else { 'p' }))
    }

    /// A class, after its left bracket.
    fn class(&mut self) -> Result<(), String> {
        self.output.push('[');
        if self.accept('^') {
            self.output.push('^');
        }
        let mut first = true;
        while first || self.peek_char() != Some(']') {
            first = false;
            self.class_item()?;
        }
        self.chars.next();
        self.output.push(']');
        Ok(())
    }

    fn class_item(&mut self) -> Result<(), String> {
        if let Some(name) = self.posix_class() {
            self.output.push_str(&name);
            return Ok(());
        }
        let low = match self.class_char()? {
            Escape::Char(c) => c,
            Escape::Class(inside, false) => {
                self.output.push_str(inside);
                return Ok(());
            }
            Escape::Class(inside, true) => {
                self.output.push_str(&format!("[^{inside}]"));
                return Ok(());
            }
            Escape::Unicode(class) => {
                self.output.push_str(&class);
                return Ok(());
            }
        };
        push_literal(&mut self.output, low);
        let range = self.rest().starts_with('-') && !self.rest().starts_with("-]") && self.rest().len() > 1;
        if range {
            self.chars.next();
            let high = match self.class_char()? {
                Escape::Char(c) if c >= low => c,
                _ => return Err("invalid character class range".into()),
            };
            self.output.push('-');
            push_literal(&mut self.output, high);
        }
        Ok(())
    }

    fn class_char(&mut self) -> Result<Escape, String> {
        match self.next_char() {
            None => Err(missing("closing ]")),
            Some('\\') => self.escape(),
            Some(c) => Ok(Escape::Char(c)),
        }
    }

    /// `[:alpha:]` or `[:^alpha:]`, if that is next.
    fn posix_class(&mut self) -> Option<String> {
        let rest = self.rest();
        let end = rest.strip_prefix("[:")?.find(":]")? + "[:".len() + ":]".len();
        let name = &rest[..end];
        let inside = name[2..end - 2].trim_start_matches('^');
        if inside.is_empty() || !inside.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let name = name.to_owned();
        self.skip(end);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    fn matches(pattern: &str, text: &str) -> bool {
        let translated = translate(pattern).expect("a valid pattern");
        let regex = Regex::new(&format!("^(?s:{translated})$"));
        regex.unwrap_or_else(|e| panic!("{pattern} became {translated}: {e}")).is_match(text)
    }

    #[test]
    fn classes_are_ascii() {
        for (pattern, ascii, other) in
            [(r"\d", "7", "٧"), (r"\w", "a", "é"), (r"\s", "\t", "\u{a0}"), (r"[\d]", "7", "٧")]
        {
            assert!(matches(pattern, ascii) && !matches(pattern, other), "{pattern}");
        }
        for (pattern, text) in
            [(r"\D", "٧"), (r"\W", "é"), (r"\S", "\u{a0}"), (r"[^\d]", "٧"), (r"[\Wa]", "é")]
        {
            assert!(matches(pattern, text), "{pattern}");
        }
        assert!(!matches(r"\s", "\u{b}"), "Go's \\s has no vertical tab");
        assert!(matches(r"é\b.*", "é-") != matches(r"e\b.*", "e-"), "word boundaries are ASCII");
        assert!(matches(r".\B.", "éé"));
    }

    #[test]
    fn quoting_and_braces() {
        assert!(matches(r"\Qa.b*\E.", "a.b*c"));
        assert!(matches(r"\Qa.b", "a.b"));
        assert!(matches("a{,3}", "a{,3}"));
        assert!(matches("{x}", "{x}"));
        assert!(matches("a{2}b{1,2}c{1,}", "aabbccc"));
        assert!(matches("a{", "a{"));
        assert!(matches("a]}", "a]}"));
    }

    #[test]
    fn classes_have_no_operators() {
        assert!(matches("[a&&b]", "&") && matches("[a&&b]", "a"));
        assert!(matches("[a~~b]", "~"));
        assert!(matches("[+--c]", ",") && matches("[+--c]", "c"), "a range up to the minus");
        assert!(matches("[[a]", "["));
        assert!(matches("[]a]", "]"));
        assert!(matches("[^]a]", "b"));
        assert!(matches("[a-]", "-"));
        assert!(matches("[[:alpha:]_]", "_") && matches("[[:^alpha:]]", "1"));
        assert!(matches(r"[\]\-x]", "-"));
    }

    #[test]
    fn escapes_of_go() {
        assert!(matches(r"\<\>\/\-\_\ ", "<>/-_ "));
        assert!(matches(r"\101\x41\x{41}", "AAA"));
        assert!(matches(r"\pL\p{Greek}\p{^Greek}\PL", "aαa1"));
        assert!(matches("(?i)ABC", "abc") && matches("(?i:a)B", "AB"));
        assert!(matches("(?P<n>a)(?<m>b)(?:c)(?)", "abc"));
    }

    #[test]
    fn refuses_what_go_refuses() {
        for pattern in [
            "a**",
            "a*+",
            "a{2}{3}",
            "a{1001}",
            "a{2,1}",
            r"\1",
            r"\Z",
            r"\8",
            r"\y",
            r"\é",
            "(?x)a",
            "(?u)a",
            "(?R)a",
            "(?-)a",
            r"[a-\d]",
            "[z-a]",
            r"\p{sc=Greek}",
            r"\u0041",
            "[a",
            "\\",
        ] {
            assert!(translate(pattern).is_err(), "{pattern} became {:?}", translate(pattern));
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_translated_or_refused(pattern in r"[\\\[\](){}*+?|^$.,:&~\-a-dQEdwsbpPx0-9é]{0,24}") {
            if let Ok(translated) = translate(&pattern) {
                let _ = Regex::new(&translated);
            }
        }

        #[test]
        fn quoted_text_matches_itself(text in "\\PC{0,20}") {
            prop_assume!(!text.contains("\\E"));
            let quoted = format!("\\Q{}\\E", text);
            prop_assert!(matches(&quoted, &text));
        }
    }
}
