//! Numbers and strings as Go reads and writes them.
//!
//! Prometheus's answers and messages are made by Go's `strconv` and `fmt`; to be byte for byte the same,
//! their rules live here.

use std::fmt::Write;

/// The integer nearest to `value` (saturating; NaN is 0).
#[expect(
    clippy::cast_possible_truncation,
    reason = "float to integer casts saturate, which is what is wanted"
)]
pub(crate) fn to_integer(value: f64) -> i64 {
    value as i64
}

/// An integer as a float, rounded if it needs more than 53 bits.
#[expect(clippy::cast_precision_loss, reason = "as in Prometheus, times and counts become floats")]
pub(crate) fn to_float(value: i64) -> f64 {
    value as f64
}

/// A count as a float.
#[expect(clippy::cast_precision_loss, reason = "as in Prometheus, counts become floats")]
pub(crate) fn count_to_float(count: usize) -> f64 {
    count as f64
}

/// Texts of the values that have no digits.
fn special_value(value: f64) -> Option<&'static str> {
    match value {
        _ if value.is_nan() => Some("NaN"),
        f64::INFINITY => Some("+Inf"),
        f64::NEG_INFINITY => Some("-Inf"),
        _ => None,
    }
}

/// Writes `value` as Prometheus's JSON does: the shortest digits that read back, plain unless the
/// magnitude is below 1e-6 or at least 1e21.
pub fn format_value(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) && magnitude.is_finite() {
        format_exponent(value)
    } else {
        format_plain(value)
    }
}

/// Go's `FormatFloat(value, 'f', -1, 64)`: never an exponent.
pub(crate) fn format_plain(value: f64) -> String {
    special_value(value).map_or_else(|| value.to_string(), Into::into)
}

/// Go's `FormatFloat(value, 'e', -1, 64)` of a finite value.
fn format_exponent(value: f64) -> String {
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a decimal exponent");
    join_exponent(mantissa, exponent)
}

/// Mantissa and exponent in Go's form: a sign and at least two digits.
fn join_exponent(mantissa: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Go's `%g`.
pub(crate) fn format_general(value: f64) -> String {
    if let Some(special) = special_value(value) {
        return special.into();
    }
    let exponent = decimal_exponent(&format!("{value:e}"));
    if value != 0.0 && !(-4..6).contains(&exponent) { format_exponent(value) } else { value.to_string() }
}

/// A float as OpenMetrics writes it: like Go's `%g`, but never like an integer.
pub(crate) fn format_openmetrics(value: f64) -> String {
    let mut text = format_general(value);
    if value.is_finite() && !text.contains(['.', 'e']) {
        text.push_str(".0");
    }
    text
}

/// Go's `%.2g`.
pub(crate) fn format_two_digits(value: f64) -> String {
    if let Some(special) = special_value(value) {
        return special.into();
    }
    let text = format!("{value:.1e}");
    let (mantissa, _) = text.split_once('e').expect("{:e} writes an exponent");
    let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
    let exponent = decimal_exponent(&text);
    if (-4..2).contains(&exponent) {
        let rounded: f64 = text.parse().expect("{:e} writes a number");
        rounded.to_string()
    } else {
        join_exponent(mantissa, exponent)
    }
}

fn decimal_exponent(text: &str) -> i32 {
    let exponent = text.rsplit_once('e').expect("{:e} writes an exponent").1;
    exponent.parse().expect("{:e} writes a decimal exponent")
}

/// Reads a number literal as the parser of Prometheus does: Go's `ParseInt` with base 0 (`0755` is octal),
/// else `ParseFloat`. The error is the text that Go gives.
pub(crate) fn parse_number(text: &str) -> Result<f64, String> {
    parse_integer(text).map_or_else(|| parse_float(text), |integer| Ok(to_float(integer)))
}

/// Go's `ParseFloat`. The error is the text that Go gives.
pub(crate) fn parse_float(text: &str) -> Result<f64, String> {
    let syntax = || format!("strconv.ParseFloat: parsing {}: invalid syntax", quote(text.as_bytes()));
    let plain = text.replace('_', "");
    let digits = plain.trim_start_matches(['+', '-']);
    match digits.to_ascii_lowercase().as_str() {
        "inf" | "infinity" if plain.starts_with('-') => return Ok(f64::NEG_INFINITY),
        "inf" | "infinity" => return Ok(f64::INFINITY),
        "nan" => return Ok(f64::NAN),
        _ => {}
    }
    let value: f64 = plain.parse().map_err(|_| syntax())?;
    if value.is_infinite() {
        return Err(format!("strconv.ParseFloat: parsing {}: value out of range", quote(text.as_bytes())));
    }
    Ok(value)
}

/// Go's `ParseInt(text, 0, 64)`.
fn parse_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let digits = digits.replace('_', "");
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i64::from_str_radix(&digits, radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// Go's `strconv.Quote`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            quote_char(&mut quoted, c);
        }
        for byte in chunk.invalid() {
            write!(quoted, "\\x{byte:02x}").expect("writing to a String succeeds");
        }
    }
    quoted.push('"');
    quoted
}

fn quote_char(quoted: &mut String, c: char) {
    let printable = c == ' ' || (!c.is_control() && !c.is_whitespace());
    match c {
        '\\' => quoted.push_str("\\\\"),
        '"' => quoted.push_str("\\\""),
        '\u{7}' => quoted.push_str("\\a"),
        '\u{8}' => quoted.push_str("\\b"),
        '\u{c}' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\u{b}' => quoted.push_str("\\v"),
        _ if printable => quoted.push(c),
        _ => {
            let code = u32::from(c);
            let escape = match code {
                0..0x80 => format!("\\x{code:02x}"),
                0x80..0x1_0000 => format!("\\u{code:04x}"),
                _ => format!("\\U{code:08x}"),
            };
            quoted.push_str(&escape);
        }
    }
}

/// Resolves the escapes of a string literal without its quotes. The lexer has checked them.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            unescape_one(&mut chars, &mut bytes);
        } else {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    bytes
}

fn unescape_one(chars: &mut std::str::Chars<'_>, bytes: &mut Vec<u8>) {
    let digits_start = chars.clone();
    let Some(escape) = chars.next() else { return };
    let code = match escape {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        'x' => return bytes.push(take_number(chars, 2, 16).to_le_bytes()[0]),
        '0'..='7' => {
            // The first digit belongs to the number.
            *chars = digits_start;
            return bytes.push(take_number(chars, 3, 8).to_le_bytes()[0]);
        }
        'u' => take_number(chars, 4, 16),
        'U' => take_number(chars, 8, 16),
        other => u32::from(other),
    };
    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn take_number(chars: &mut std::str::Chars<'_>, digits: usize, radix: u32) -> u32 {
    let text: String = chars.by_ref().take(digits).collect();
    u32::from_str_radix(&text, radix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_like_gos() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (1e-6, "0.000001"),
            (1e-7, "1e-07"),
            (1.25e-10, "1.25e-10"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-1e300, "-1e+300"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(format_value(value), want);
        }
        assert_eq!(format_plain(1e21), "1000000000000000000000");
    }

    #[test]
    fn general_and_two_digits() {
        assert_eq!(format_general(1.1), "1.1");
        assert_eq!(format_general(1e-5), "1e-05");
        assert_eq!(format_general(1e6), "1e+06");
        assert_eq!(format_two_digits(0.123), "0.12");
        assert_eq!(format_two_digits(123.0), "1.2e+02");
        assert_eq!(format_two_digits(2.0), "2");
    }

    #[test]
    fn numbers_read_like_gos() {
        for (text, want) in
            [("0755", 493.0), ("0xc", 12.0), ("5.", 5.0), (".5", 0.5), ("1_000", 1000.0), ("089", 89.0)]
        {
            assert_eq!(parse_number(text), Ok(want), "{text}");
        }
        assert!(parse_number("NaN").expect("valid").is_nan());
        assert!(parse_number("1e999").expect_err("too large").ends_with("value out of range"));
    }

    #[test]
    fn quotes_and_unescapes() {
        assert_eq!(quote(b"a\xc5z"), r#""a\xc5z""#);
        assert_eq!(quote("é\n\u{1}☺".as_bytes()), "\"é\\n\\x01☺\"");
        assert_eq!(unescape(r#"a\n\x41\101\u00e9\"\\"#), "a\nAAé\"\\".as_bytes());
        assert_eq!(unescape(r"\xff"), b"\xff");
    }
}
