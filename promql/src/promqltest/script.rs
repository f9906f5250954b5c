//! Reads scripts of the promqltest language.

use crate::{parse, parse_duration};
use saturn_model::Labels;

use super::runner::Failure;
use super::series::{
    SeriesLine, number, parse_metric, parse_series_line, parse_text, repeat_count, split_metric,
};

/// One command and the line that it starts on.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) line: usize,
    pub(crate) kind: CommandKind,
}

#[derive(Debug)]
pub(crate) enum CommandKind {
    Clear,
    Load(Load),
    Eval(Box<Eval>),
}

/// Samples to add.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) interval_ms: i64,
    pub(crate) series: Vec<SeriesLine>,
    /// Whether native histograms are made of classic ones.
    pub(crate) with_native_histograms: bool,
    /// Parallel to `series`: how far after a sample's own time its counter started, if that is known.
    pub(crate) starts: Vec<Vec<Option<i64>>>,
}

/// A query and what is expected of it.
#[derive(Debug, Default)]
pub(crate) struct Eval {
    pub(crate) query: String,
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    /// 0 for an instant query.
    pub(crate) step_ms: i64,
    pub(crate) expected: Expected,
}

/// Steps of a range of times: start, end, step.
pub(crate) type Steps = (i64, i64, i64);

/// What is expected of a query.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) ordered: bool,
    pub(crate) fail: Option<TextMatch>,
    pub(crate) warnings: Vec<TextMatch>,
    pub(crate) infos: Vec<TextMatch>,
    pub(crate) no_warning: bool,
    pub(crate) no_info: bool,
    pub(crate) scalar: Option<f64>,
    pub(crate) string: Option<String>,
    pub(crate) range_vector: Option<Steps>,
    pub(crate) series: Vec<SeriesLine>,
}

/// How a message is compared.
#[derive(Debug)]
pub(crate) enum TextMatch {
    Anything,
    Exactly(String),
    Regex(regex::Regex),
}

impl TextMatch {
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            TextMatch::Anything => true,
            TextMatch::Exactly(wanted) => text == wanted,
            TextMatch::Regex(regex) => regex.is_match(text),
        }
    }
}

/// Reads a whole script.
pub(crate) fn parse_script(text: &str) -> Result<Vec<Command>, Failure> {
    let lines: Vec<&str> =
        text.lines().map(str::trim).map(|line| if line.starts_with('#') { "" } else { line }).collect();
    let mut commands = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if lines[at].is_empty() {
            at += 1;
            continue;
        }
        let line = at + 1;
        let head = lines[at];
        let body_end = (at + 1..lines.len()).find(|i| lines[*i].is_empty()).unwrap_or(lines.len());
        let body = &lines[at + 1..body_end];
        let mut words = Words(head);
        let command = words.next().to_lowercase();
        let kind = match command.as_str() {
            "clear" => Ok(CommandKind::Clear),
            "load" | "load_with_nhcb" => parse_load(&command, words, body).map(CommandKind::Load),
            _ if command.starts_with("eval") => {
                parse_eval(&command, words, body).map(|eval| CommandKind::Eval(Box::new(eval)))
            }
            _ => Err(format!("unknown command {head:?}")),
        };
        let kind = kind.map_err(|text| Failure { line, text })?;
        at = if matches!(kind, CommandKind::Clear) { at + 1 } else { body_end };
        commands.push(Command { line, kind });
    }
    Ok(commands)
}

fn duration(text: &str) -> Result<i64, String> {
    parse_duration(text).map_err(|e| e.to_string())
}

fn parse_load(command: &str, words: Words<'_>, body: &[&str]) -> Result<Load, String> {
    let interval_ms = duration(words.0.trim()).map_err(|e| format!("bad interval: {e}"))?;
    if interval_ms == 0 {
        return Err("the interval must be greater than 0".into());
    }
    let mut load = Load {
        interval_ms,
        series: Vec::new(),
        with_native_histograms: command == "load_with_nhcb",
        starts: Vec::new(),
    };
    let mut starts: Option<(Labels, Vec<Option<i64>>)> = None;
    for line in body {
        let (first_word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if let Some(metric) = first_word.strip_suffix("@st") {
            starts = Some((parse_metric(metric)?, parse_starts(rest)?));
            continue;
        }
        let series = parse_series_line(line)?;
        let starts = match starts.take() {
            None => Vec::new(),
            Some((labels, starts)) if labels == series.labels && starts.len() == series.values.len() => {
                starts
            }
            Some((labels, _)) => {
                return Err(format!("start timestamps of {labels} do not fit the next line"));
            }
        };
        load.series.push(series);
        load.starts.push(starts);
    }
    Ok(load)
}

/// `_`, `_x3`, `-1m`, `-1mx3`, `-30s-1mx2`
fn parse_starts(text: &str) -> Result<Vec<Option<i64>>, String> {
    let mut starts = Vec::new();
    for item in text.split_whitespace() {
        let (item, repeats) = match item.rsplit_once('x') {
            Some((item, repeats)) => (item, Some(repeat_count(repeats)?)),
            None => (item, None),
        };
        if item == "_" {
            starts.extend(std::iter::repeat_n(None, repeats.unwrap_or(1)));
            continue;
        }
        let sign = |(at, c): (usize, char)| (at > 0 && matches!(c, '+' | '-')).then_some(at);
        let split = item.char_indices().find_map(sign).unwrap_or(item.len());
        let (start, step) = item.split_at(split);
        let (mut start, step) = (signed_duration(start)?, signed_duration(step)?);
        for _ in 0..=repeats.unwrap_or(0) {
            starts.push(Some(start));
            start = start.saturating_add(step);
        }
    }
    Ok(starts)
}

fn signed_duration(text: &str) -> Result<i64, String> {
    match text.split_at_checked(1) {
        None => Ok(0),
        Some(("-", rest)) => Ok(-duration(rest)?),
        Some(("+", rest)) => duration(rest),
        Some(_) => duration(text),
    }
}

fn parse_eval(command: &str, mut words: Words<'_>, body: &[&str]) -> Result<Eval, String> {
    let mut eval = Eval::default();
    match words.next() {
        "instant" => {
            words.expect("at")?;
            eval.start_ms = duration(words.next())?;
            eval.end_ms = eval.start_ms;
        }
        "range" => {
            words.expect("from")?;
            eval.start_ms = duration(words.next())?;
            words.expect("to")?;
            eval.end_ms = duration(words.next())?;
            words.expect("step")?;
            eval.step_ms = duration(words.next())?;
            if eval.end_ms < eval.start_ms {
                return Err("the end is before the start".into());
            }
            if eval.step_ms == 0 {
                return Err("the step must be greater than 0".into());
            }
        }
        other => return Err(format!("unknown kind of evaluation {other:?}")),
    }
    eval.query = words.0.trim().to_owned();
    parse(&eval.query).map_err(|e| e.to_string())?;
    let expected = &mut eval.expected;
    match command {
        "eval_fail" => expected.fail = Some(TextMatch::Anything),
        "eval_warn" => expected.warnings.push(TextMatch::Anything),
        "eval_info" => expected.infos.push(TextMatch::Anything),
        "eval_ordered" if eval.step_ms == 0 => expected.ordered = true,
        "eval" => {}
        _ => return Err(format!("unknown command {command:?}")),
    }
    for line in body {
        parse_expectation(line, expected)?;
    }
    expected.check(eval.step_ms == 0)?;
    if let Some((_, end, _)) = expected.range_vector {
        (eval.start_ms, eval.end_ms) = (end, end);
    }
    Ok(eval)
}

impl Expected {
    /// Refuses expectations that contradict each other or the kind of the evaluation.
    fn check(&self, instant: bool) -> Result<(), String> {
        for (texts, none, kind) in
            [(&self.warnings, self.no_warning, "warn"), (&self.infos, self.no_info, "info")]
        {
            if none && !texts.is_empty() {
                return Err(format!("expects both {kind} and no_{kind}"));
            }
        }
        if instant && self.range_vector.is_none() && self.series.iter().any(|line| line.values.len() > 1) {
            return Err("expects more than one value of a series at one time".into());
        }
        Ok(())
    }
}

struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn next(&mut self) -> &'a str {
        let text = self.0.trim_start();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.0 = rest;
        word
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        match self.next() {
            word if word == wanted => Ok(()),
            other => Err(format!("expected {wanted:?}, got {other:?}")),
        }
    }
}

fn parse_expectation(line: &str, expected: &mut Expected) -> Result<(), String> {
    if let Some(text) = line.strip_prefix("expected_fail_message ") {
        expected.fail = Some(TextMatch::Exactly(text.trim().into()));
        return Ok(());
    }
    if let Some(pattern) = line.strip_prefix("expected_fail_regexp ") {
        expected.fail = Some(TextMatch::Regex(regex::Regex::new(pattern.trim()).map_err(|e| e.to_string())?));
        return Ok(());
    }
    if let Some(rest) = line.strip_prefix("expect ").filter(|_| !line.starts_with("expect {")) {
        return parse_expect(rest.trim(), expected);
    }
    if let Some(value) = number(line) {
        expected.scalar = Some(value);
        return Ok(());
    }
    split_metric(line)?;
    expected.series.push(parse_series_line(line)?);
    Ok(())
}

fn parse_expect(text: &str, expected: &mut Expected) -> Result<(), String> {
    if let Some(literal) = text.strip_prefix("string ") {
        expected.string = Some(parse_text(literal.trim())?);
        return Ok(());
    }
    if let Some(rest) = text.strip_prefix("range vector ") {
        let mut words = Words(rest);
        words.expect("from")?;
        let start = duration(words.next())?;
        words.expect("to")?;
        let end = duration(words.next())?;
        words.expect("step")?;
        expected.range_vector = Some((start, end, duration(words.next())?));
        return Ok(());
    }
    let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let message = match rest.split_once(':') {
        None if rest.is_empty() => TextMatch::Anything,
        Some(("msg", message)) => TextMatch::Exactly(message.trim().into()),
        Some(("regex", pattern)) => {
            TextMatch::Regex(regex::Regex::new(pattern.trim()).map_err(|e| e.to_string())?)
        }
        _ => return Err(format!("bad expectation {text:?}")),
    };
    match kind {
        "ordered" => expected.ordered = true,
        "fail" if expected.fail.is_some() => return Err("expects to fail twice".into()),
        "fail" => expected.fail = Some(message),
        "warn" => expected.warnings.push(message),
        "info" => expected.infos.push(message),
        "no_warn" => expected.no_warning = true,
        "no_info" => expected.no_info = true,
        _ => return Err(format!("bad expectation {text:?}")),
    }
    Ok(())
}
