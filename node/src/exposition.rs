//! Prometheus's text exposition format, as far as the demo needs it to scrape this program's own metrics.

use saturn_model::{InvalidLabels, Labels, METRIC_NAME};

/// One line of an exposition.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Line {
    /// The series of this line, with `extra` labels that win over its own.
    pub(crate) fn series(&self, extra: &[(&str, &str)]) -> Result<Labels, InvalidLabels> {
        let own = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let own = own.filter(|(name, _)| !extra.iter().any(|(taken, _)| taken == name));
        Labels::from_pairs(own.chain(extra.iter().copied()).chain([(METRIC_NAME, self.name.as_str())]))
    }
}

/// The samples of an exposition; comments and lines that are no samples are passed over.
pub(crate) fn parse(text: &str) -> impl Iterator<Item = Line> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(parse_line)
}

fn parse_line(line: &str) -> Option<Line> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?;
    Some(Line { name: name.to_owned(), labels, value: value.parse().ok()? })
}

/// The pairs up to the closing brace, and what follows it.
fn parse_labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        loop {
            match chars.next()? {
                (end, '"') => {
                    text = &rest[end + 1..];
                    break;
                }
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_labels_and_values() {
        let text = "# HELP a A.\na 1\nb{x=\"1\",y=\"q\\\"\\\\\\n}\"} +Inf 1234\nbroken\n# EOF\n";
        let lines: Vec<Line> = parse(text).collect();
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            lines,
            [
                Line { name: "a".into(), labels: vec![], value: 1.0 },
                Line {
                    name: "b".into(),
                    labels: vec![pair("x", "1"), pair("y", "q\"\\\n}")],
                    value: f64::INFINITY
                },
            ]
        );
        let labels = lines[1].series(&[("x", "2"), ("job", "j")]).expect("valid");
        assert_eq!(labels.get("x"), Some("2"));
        assert_eq!(labels.get("job"), Some("j"));
    }
}
