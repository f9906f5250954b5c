//! Series descriptions of the promqltest language: `name{a="b"} 0+10x5 _ stale`.

use saturn_model::Labels;
use saturn_promql::ast::ExprKind;
use saturn_promql::{parse, parse_duration};

/// The bits that mark a series as stale.
const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// The values of one series in a script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sequence {
    /// One for each interval; `None` is a gap.
    Floats(Vec<Option<f64>>),
    /// Native histograms, which are not read.
    Histograms,
}

/// A line of a script that describes a series.
#[derive(Clone, Debug)]
pub(crate) struct SeriesLine {
    pub(crate) labels: Labels,
    pub(crate) sequence: Sequence,
}

/// Reads `name{a="b"} values`.
pub(crate) fn parse_series_line(line: &str) -> Result<SeriesLine, String> {
    let (metric, values) = split_metric(line)?;
    let labels = parse_metric(metric)?;
    let sequence =
        if values.contains("{{") { Sequence::Histograms } else { Sequence::Floats(parse_values(values)?) };
    Ok(SeriesLine { labels, sequence })
}

/// Splits a line after its label set.
pub(crate) fn split_metric(line: &str) -> Result<(&str, &str), String> {
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(line.len());
    if !line[name_end..].starts_with('{') {
        return Ok(line.split_at(name_end));
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in line.char_indices().skip_while(|(at, _)| *at < name_end) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(q) if c == '\\' && q != '`' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'' | '`') => quote = Some(c),
            None if c == '}' => return Ok(line.split_at(at + 1)),
            None => {}
        }
    }
    Err(format!("unclosed label set: {line}"))
}

fn parse_metric(metric: &str) -> Result<Labels, String> {
    let (name, inside) = match metric.split_once('{') {
        Some((name, rest)) => (name, rest.trim_end().trim_end_matches('}')),
        None => (metric, ""),
    };
    let mut builder = Labels::empty().to_builder();
    builder.set("__name__", name);
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let (label, after) = take_word(rest)?;
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix('=') {
            let (value, after) = take_word(after.trim_start())?;
            builder.set(&label, &value);
            rest = after.trim_start();
        } else {
            builder.set("__name__", &label);
        }
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Ok(builder.build())
}

/// Takes an identifier or a string literal.
fn take_word(text: &str) -> Result<(String, &str), String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'));
    let Some(quote) = quote else {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
        return if end == 0 {
            Err(format!("no label at: {text}"))
        } else {
            Ok((text[..end].into(), &text[end..]))
        };
    };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote != '`' {
            escaped = true;
        } else if c == quote {
            let (literal, rest) = text.split_at(at + 1);
            return Ok((parse_text(literal)?, rest));
        }
    }
    Err(format!("unclosed string: {text}"))
}

/// Reads a string literal with the query parser.
pub(crate) fn parse_text(literal: &str) -> Result<String, String> {
    match parse(literal).map_err(|e| e.to_string())?.kind {
        ExprKind::Text(bytes) => String::from_utf8(bytes).map_err(|e| e.to_string()),
        _ => Err(format!("not a string: {literal}")),
    }
}

fn parse_values(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut values = Vec::new();
    for item in text.split_whitespace() {
        parse_item(item, &mut values).ok_or_else(|| format!("bad value {item:?}"))?;
    }
    Ok(values)
}

/// `_`, `_x3`, `stale`, `1`, `1x3`, `1+2x3`
fn parse_item(item: &str, values: &mut Vec<Option<f64>>) -> Option<()> {
    let (item, repeats) = match item.rsplit_once('x') {
        Some((item, repeats)) => (item, Some(repeats.parse::<usize>().ok()?)),
        None => (item, None),
    };
    if item == "_" {
        values.extend(std::iter::repeat_n(None, repeats.unwrap_or(1)));
        return Some(());
    }
    if item == "stale" {
        let stale = f64::from_bits(STALE_NAN_BITS);
        values.extend(std::iter::repeat_n(Some(stale), repeats.unwrap_or(0) + 1));
        return Some(());
    }
    let (start, step) = split_sum(item);
    let mut value = number(start)?;
    let step = number(step)?;
    for i in 0..=repeats.unwrap_or(0) {
        // By repeated addition, as Prometheus does.
        value = if i == 0 { value } else { value + step };
        values.push(Some(value));
    }
    Some(())
}

/// Splits `1e-3+2` into `1e-3` and `+2`.
fn split_sum(item: &str) -> (&str, &str) {
    let bytes = item.as_bytes();
    let is_operator =
        |at: usize| matches!(bytes[at], b'+' | b'-') && !matches!(bytes[at - 1], b'e' | b'E' | b'+' | b'-');
    match (1..bytes.len()).find(|at| is_operator(*at)) {
        Some(at) => item.split_at(at),
        None => (item, "0"),
    }
}

/// A number or a duration in seconds, with signs.
pub(crate) fn number(text: &str) -> Option<f64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if let Some(inner) = digits.strip_prefix(['+', '-']) {
        return number(inner).map(|v| if negative ^ digits.starts_with('-') { -v } else { v });
    }
    let value = match digits.to_ascii_lowercase().as_str() {
        "inf" | "+inf" => f64::INFINITY,
        "nan" => f64::NAN,
        _ if digits.to_ascii_lowercase().starts_with("0x") => {
            let digits = i64::from_str_radix(&digits[2..].replace('_', ""), 16).ok()?;
            format!("{digits}").parse().ok()?
        }
        _ => match digits.replace('_', "").parse() {
            Ok(value) => value,
            Err(_) => parse_duration(digits).ok()? as f64 / 1000.0,
        },
    };
    Some(if negative { -value } else { value })
}

#[test]
fn sequences() {
    let floats = |text| match parse_series_line(text).expect("valid").sequence {
        Sequence::Floats(values) => values,
        Sequence::Histograms => panic!("no histograms"),
    };
    assert_eq!(floats("m 1 _ 2x2"), [Some(1.0), None, Some(2.0), Some(2.0), Some(2.0)]);
    assert_eq!(floats("m{a='}'} 0+10x2 _x2"), [Some(0.0), Some(10.0), Some(20.0), None, None]);
    assert_eq!(floats("m -1-1x1 1e-3"), [Some(-1.0), Some(-2.0), Some(0.001)]);
    let line = parse_series_line("{\"my.metric\", b='x', \"c d\"=`y`} 1").expect("valid");
    assert_eq!(line.labels.to_string(), "my.metric{b=\"x\", c d=\"y\"}");
}
