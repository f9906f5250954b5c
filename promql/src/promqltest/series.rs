//! Series descriptions of the promqltest language: `name{a="b"} 0+10x5 _ stale`.

use std::sync::Arc;

use crate::ast::ExprKind;
use crate::go_text::to_float;
use crate::{histogram_difference, histogram_sum, parse, parse_duration};
use saturn_model::{Buckets, CounterResetHint, Histogram, Labels};

/// The bits that mark a series as stale.
const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Most repetitions of one value.
const REPEATS_MAX: usize = 1_000_000;

/// One value of a series in a script.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Float(f64),
    Histogram(Arc<Literal>),
}

/// A histogram as written.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    pub(crate) histogram: Histogram,
    /// Whether a hint was written, which then has to be found in a result.
    pub(crate) hint_is_wanted: bool,
}

/// A line of a script that describes a series: one value for each interval; `None` is a gap.
#[derive(Clone, Debug)]
pub(crate) struct SeriesLine {
    pub(crate) labels: Labels,
    pub(crate) values: Vec<Option<Item>>,
}

/// Reads `name{a="b"} values`.
pub(crate) fn parse_series_line(line: &str) -> Result<SeriesLine, String> {
    let (metric, values) = split_metric(line)?;
    Ok(SeriesLine { labels: parse_metric(metric)?, values: parse_values(values)? })
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

pub(crate) fn parse_metric(metric: &str) -> Result<Labels, String> {
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

fn parse_values(text: &str) -> Result<Vec<Option<Item>>, String> {
    let mut values = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = end_of_item(rest);
        let (item, after) = rest.split_at(end);
        parse_item(item, &mut values).map_err(|e| format!("bad value {item:?}: {e}"))?;
        rest = after.trim_start();
    }
    Ok(values)
}

/// Items end at blanks, but histograms have blanks in them.
fn end_of_item(text: &str) -> usize {
    let mut depth = 0;
    let end = text.char_indices().find(|(_, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0 && c.is_whitespace()
    });
    end.map_or(text.len(), |(at, _)| at)
}

/// `_`, `_x3`, `stale`, `1`, `1x3`, `1+2x3`, `{{count:1}}`, `{{count:1}}+{{count:2}}x3`
fn parse_item(item: &str, values: &mut Vec<Option<Item>>) -> Result<(), String> {
    let after_histogram = item.rfind('}').map_or(0, |at| at + 1);
    let (item, repeats) = match item[after_histogram..].rfind('x') {
        Some(at) => {
            let (item, repeats) = item.split_at(after_histogram + at);
            (item, Some(repeat_count(&repeats[1..])?))
        }
        None => (item, None),
    };
    if item == "_" {
        values.extend(std::iter::repeat_n(None, repeats.unwrap_or(1)));
        return Ok(());
    }
    let repeats = repeats.unwrap_or(0);
    if item.starts_with("{{") {
        return parse_histograms(item, repeats, values);
    }
    if item == "stale" {
        let stale = Item::Float(f64::from_bits(STALE_NAN_BITS));
        values.extend(std::iter::repeat_n(Some(stale), repeats + 1));
        return Ok(());
    }
    let (start, step) = split_sum(item);
    let mut value = number(start).ok_or("no number")?;
    let step = number(step).ok_or("no number")?;
    for i in 0..=repeats {
        // By repeated addition, as Prometheus does.
        value = if i == 0 { value } else { value + step };
        values.push(Some(Item::Float(value)));
    }
    Ok(())
}

/// Reads the number after an `x`.
pub(crate) fn repeat_count(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().map_err(|e| e.to_string())?;
    if count > REPEATS_MAX {
        return Err(format!("cannot repeat {count} times, at most {REPEATS_MAX}"));
    }
    Ok(count)
}

fn parse_histograms(item: &str, repeats: usize, values: &mut Vec<Option<Item>>) -> Result<(), String> {
    let end = item.find("}}").ok_or("unclosed histogram")? + 2;
    let mut literal = parse_histogram(&item[..end])?;
    let rest = &item[end..];
    if rest.is_empty() {
        let literal = Arc::new(literal);
        values.extend(std::iter::repeat_n(Some(Item::Histogram(literal)), repeats + 1));
        return Ok(());
    }
    let mut rest = rest.chars();
    let sign = rest.next().unwrap_or_default();
    let step = parse_histogram(rest.as_str())?;
    literal.hint_is_wanted = step.hint_is_wanted;
    let step = step.histogram;
    for i in 0..=repeats {
        if i > 0 {
            literal.histogram = match sign {
                '+' => histogram_sum(&literal.histogram, &step),
                '-' => histogram_difference(&literal.histogram, &step),
                _ => None,
            }
            .ok_or("histograms do not fit each other")?;
        }
        values.push(Some(Item::Histogram(Arc::new(literal.clone()))));
    }
    Ok(())
}

/// `{{schema:0 count:3 sum:5 buckets:[1 2]}}`
fn parse_histogram(text: &str) -> Result<Literal, String> {
    let inside = text.strip_prefix("{{").and_then(|text| text.strip_suffix("}}")).ok_or("no histogram")?;
    let mut histogram = Histogram::default();
    let mut hint_is_wanted = false;
    let mut seen = Vec::new();
    let mut sides: [(i32, Vec<f64>); 2] = Default::default();
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':').ok_or("no colon")?;
        let after = after.trim_start();
        let end = match after.starts_with('[') {
            true => after.find(']').ok_or("unclosed list")? + 1,
            false => after.find(char::is_whitespace).unwrap_or(after.len()),
        };
        let (value, after) = after.split_at(end);
        rest = after.trim_start();
        let one = || number(value).ok_or_else(|| format!("{key} is no number"));
        let list = || -> Result<Vec<f64>, String> {
            let items = value.trim_matches(['[', ']']).split_whitespace();
            items.map(|item| number(item).ok_or_else(|| format!("{key} has a bad number"))).collect()
        };
        let integer = || value.parse::<i32>().map_err(|e| e.to_string());
        let key = key.trim();
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        match key {
            "schema" => histogram.schema = integer()?,
            "sum" => histogram.sum = one()?,
            "count" => histogram.count = one()?,
            "z_bucket" => histogram.zero_count = one()?,
            "z_bucket_w" => histogram.zero_threshold = one()?,
            "custom_values" => histogram.custom_values = list()?.into(),
            "buckets" => sides[0].1 = list()?,
            "n_buckets" => sides[1].1 = list()?,
            "offset" => sides[0].0 = integer()?,
            "n_offset" => sides[1].0 = integer()?,
            "counter_reset_hint" => {
                hint_is_wanted = true;
                histogram.hint = match value {
                    "unknown" => CounterResetHint::Unknown,
                    "reset" => CounterResetHint::Reset,
                    "not_reset" => CounterResetHint::NotReset,
                    "gauge" => CounterResetHint::Gauge,
                    other => return Err(format!("bad hint {other:?}")),
                };
            }
            other => return Err(format!("bad key {other:?}")),
        }
    }
    let [positive, negative] = sides.map(|(offset, counts)| Buckets::from_indexed((offset..).zip(counts)));
    (histogram.positive, histogram.negative) = (positive, negative);
    Ok(Literal { histogram, hint_is_wanted })
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
            Err(_) => to_float(parse_duration(digits).ok()?) / 1000.0,
        },
    };
    Some(if negative { -value } else { value })
}

#[test]
fn sequences() {
    let values = |text| -> Vec<Option<f64>> {
        let values = parse_series_line(text).expect("valid").values;
        let float = |item: Item| match item {
            Item::Float(value) => value,
            Item::Histogram(literal) => literal.histogram.count,
        };
        values.into_iter().map(|item| item.map(float)).collect()
    };
    assert_eq!(values("m 1 _ 2x2"), [Some(1.0), None, Some(2.0), Some(2.0), Some(2.0)]);
    assert_eq!(values("m{a='}'} 0+10x2 _x2"), [Some(0.0), Some(10.0), Some(20.0), None, None]);
    assert_eq!(values("m -1-1x1 1e-3"), [Some(-1.0), Some(-2.0), Some(0.001)]);
    assert_eq!(
        values("m {{count:1 sum:2}}+{{count:2 buckets:[1 1]}}x2 {{}}x1"),
        [Some(1.0), Some(3.0), Some(5.0), Some(0.0), Some(0.0)]
    );
    let line = parse_series_line("{\"my.metric\", b='x', \"c d\"=`y`} 1").expect("valid");
    assert_eq!(line.labels.to_string(), "my.metric{b=\"x\", c d=\"y\"}");
}
