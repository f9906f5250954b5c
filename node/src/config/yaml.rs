//! Reads the configuration file into settings with the line of each.
//!
//! The file holds mappings, texts and lists of texts. Scalars stay text, as flags and environment
//! variables are: one place (`value.rs`) judges them all. Anchors, aliases, tags and several
//! documents are refused.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

use super::settings::SETTINGS;

/// Longest configuration file, in bytes.
pub(super) const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;

/// Deepest nesting that a key of ours has, and some room to name a wrong one.
const DEPTH_MAX: usize = 8;

/// A setting as the file states it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The path of its key, dots between the parts.
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) value: String,
}

/// What is wrong with the file, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: usize,
    pub(super) text: String,
}

/// Reads the settings of `text`; every key is known afterwards.
pub(super) fn read(text: &str) -> Result<Vec<Entry>, Problem> {
    let mut reader = Reader::default();
    for next in Parser::new_from_str(text) {
        let (event, span) =
            next.map_err(|error| Problem { line: error.marker().line(), text: error.to_string() })?;
        reader.event(&event, span.start.line())?;
    }
    Ok(reader.entries)
}

/// A collection that is open at this place of the file.
#[derive(Debug)]
enum Open {
    /// A mapping; the key whose value comes next, if one was read.
    Mapping { key: Option<String>, seen: Vec<String> },
    /// A list, with the line of its start and the items so far.
    List { line: usize, items: Vec<String> },
}

#[derive(Debug, Default)]
struct Reader {
    open: Vec<Open>,
    documents: usize,
    entries: Vec<Entry>,
}

impl Reader {
    fn event(&mut self, event: &Event<'_>, line: usize) -> Result<(), Problem> {
        let fail = |text: &str| Err(Problem { line, text: text.to_owned() });
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 { fail("want one document: remove the second `---`") } else { Ok(()) }
            }
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(_, anchor, tag)
            | Event::MappingStart(_, anchor, tag)
                if *anchor != 0 || tag.is_some() =>
            {
                fail("anchors and tags are not supported")
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => fail("aliases are not supported"),
            Event::Scalar(text, style, ..) => self.scalar(text, *style, line),
            Event::MappingStart(..) => self.open_mapping(line),
            Event::SequenceStart(..) => self.open_list(line),
            Event::MappingEnd => {
                self.open.pop();
                self.value_ended();
                Ok(())
            }
            Event::SequenceEnd => {
                if let Some(Open::List { line, items }) = self.open.pop() {
                    self.entry(line, items.join(","))?;
                }
                self.value_ended();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Result<(), Problem> {
        let null = style == ScalarStyle::Plain && matches!(text, "" | "~" | "null");
        let prefix = self.path();
        match self.open.last_mut() {
            // An empty file is a document with an empty scalar.
            None if null => Ok(()),
            None => Err(Problem { line, text: "want settings, `key: value` a line".to_owned() }),
            Some(Open::List { items, .. }) => {
                items.push(text.to_owned());
                Ok(())
            }
            Some(Open::Mapping { key: key @ None, seen }) => {
                if seen.iter().any(|other| other == text) {
                    return Err(Problem {
                        line,
                        text: format!("key {:?} is set twice", joined(&prefix, text)),
                    });
                }
                check_key(&joined(&prefix, text), line)?;
                seen.push(text.to_owned());
                *key = Some(text.to_owned());
                Ok(())
            }
            Some(Open::Mapping { key: Some(_), .. }) => {
                if !null {
                    self.entry(line, text.to_owned())?;
                }
                self.value_ended();
                Ok(())
            }
        }
    }

    fn open_mapping(&mut self, line: usize) -> Result<(), Problem> {
        let path = self.path();
        if is_setting(&path) {
            return Err(Problem { line, text: format!("{path:?} wants a value, not a mapping") });
        }
        self.push(Open::Mapping { key: None, seen: Vec::new() }, line)
    }

    fn open_list(&mut self, line: usize) -> Result<(), Problem> {
        if !matches!(self.open.last(), Some(Open::Mapping { key: Some(_), .. })) {
            return Err(Problem { line, text: "a list can only be the value of a key".to_owned() });
        }
        self.push(Open::List { line, items: Vec::new() }, line)
    }

    fn push(&mut self, open: Open, line: usize) -> Result<(), Problem> {
        let in_list = matches!(self.open.last(), Some(Open::List { .. }));
        let as_key = matches!(self.open.last(), Some(Open::Mapping { key: None, .. }));
        if in_list || as_key || self.open.len() == DEPTH_MAX {
            return Err(Problem { line, text: "mappings and lists cannot stand here".to_owned() });
        }
        self.open.push(open);
        Ok(())
    }

    /// The value of the innermost mapping's key was read to its end.
    fn value_ended(&mut self) {
        if let Some(Open::Mapping { key, .. }) = self.open.last_mut() {
            *key = None;
        }
    }

    fn entry(&mut self, line: usize, value: String) -> Result<(), Problem> {
        let path = self.path();
        if !is_setting(&path) {
            return Err(Problem { line, text: format!("{path:?} wants keys below it, not a value") });
        }
        self.entries.push(Entry { path, line, value });
        Ok(())
    }

    /// The path of the keys that are open.
    fn path(&self) -> String {
        let keys = self.open.iter().filter_map(|open| match open {
            Open::Mapping { key, .. } => key.as_deref(),
            Open::List { .. } => None,
        });
        keys.collect::<Vec<_>>().join(".")
    }
}

fn joined(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn is_setting(path: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.yaml_path().as_deref() == Some(path))
}

/// Every path that a key may have: the settings, and the sections above them.
fn known_paths() -> Vec<String> {
    let mut paths: Vec<String> = SETTINGS.iter().filter_map(super::settings::Setting::yaml_path).collect();
    let above = |path: &String| -> Vec<String> {
        path.match_indices('.').map(|(dot, _)| path[..dot].to_owned()).collect()
    };
    let sections: Vec<String> = paths.iter().flat_map(above).collect();
    paths.extend(sections);
    paths.sort();
    paths.dedup();
    paths
}

fn check_key(path: &str, line: usize) -> Result<(), Problem> {
    let known = known_paths();
    if known.iter().any(|other| other == path) {
        return Ok(());
    }
    let mut text = format!("unknown key {path:?}");
    if let Some(nearest) = nearest(path, &known) {
        text.push_str(&format!(", did you mean {nearest:?}?"));
    }
    Err(Problem { line, text })
}

/// The known path that `path` was most likely meant to be.
fn nearest<'a>(path: &str, known: &'a [String]) -> Option<&'a str> {
    // Dashes and dots are how the same setting is written as a flag.
    let plain = |text: &str| text.replace(['-', '.'], "_");
    let wanted = plain(path);
    let similarity = |other: &str| strsim::jaro_winkler(&wanted, &plain(other));
    let best = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) > 0.8).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, usize, String)> {
        read(text).expect(text).into_iter().map(|entry| (entry.path, entry.line, entry.value)).collect()
    }

    fn problem(text: &str) -> (usize, String) {
        let problem = read(text).expect_err(text);
        (problem.line, problem.text)
    }

    #[test]
    fn nested_and_flow_forms_read_alike() {
        let nested =
            "# comment\ndata_dir: /var/lib/saturn\ncluster:\n  join:\n    - a:1\n    - b:2\n  shards: 64\n";
        let expected = [
            ("data_dir".to_owned(), 2, "/var/lib/saturn".to_owned()),
            ("cluster.join".to_owned(), 5, "a:1,b:2".to_owned()),
            ("cluster.shards".to_owned(), 7, "64".to_owned()),
        ];
        assert_eq!(entries(nested), expected);
        let flow = "{data_dir: /var/lib/saturn, cluster: {join: [a:1, b:2], shards: 64}}";
        let paths: Vec<_> = entries(flow).into_iter().map(|(path, _, value)| (path, value)).collect();
        assert_eq!(paths, expected.map(|(path, _, value)| (path, value)));
    }

    #[test]
    fn scalars_stay_text_and_nulls_are_unset() {
        assert_eq!(entries("node: {id: 007, zone: }"), [("node.id".to_owned(), 1, "007".to_owned())]);
        assert_eq!(entries("node: {id: 'null'}"), [("node.id".to_owned(), 1, "null".to_owned())]);
        for empty in ["", "# nothing\n", "---\n", "cluster:\nnode: ~\n"] {
            assert_eq!(entries(empty), [], "{empty:?}");
        }
    }

    #[test]
    fn unknown_keys_come_with_line_and_suggestion() {
        let suggested = |text: &str, line: usize, wrong: &str, right: &str| {
            assert_eq!(problem(text), (line, format!("unknown key {wrong:?}, did you mean {right:?}?")));
        };
        suggested("data_dir: x\ncluster:\n  shrads: 3\n", 3, "cluster.shrads", "cluster.shards");
        suggested("http:\n  listn: x\n", 2, "http.listn", "http.listen");
        assert_eq!(entries("{http: {listen: x}}"), [("http.listen".to_owned(), 1, "x".to_owned())]);
        suggested("data-dir: x\n", 1, "data-dir", "data_dir");
        suggested("gosip: {}\n", 1, "gosip", "gossip");
        assert_eq!(problem("qqq: 1\n"), (1, "unknown key \"qqq\"".to_owned()));
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_line() {
        assert_eq!(problem("node:\n  id: a\n  id: b\n"), (3, "key \"node.id\" is set twice".to_owned()));
        assert_eq!(problem("node: a\n").1, "\"node\" wants keys below it, not a value");
        assert_eq!(problem("node: [a]\n").1, "\"node\" wants keys below it, not a value");
        assert_eq!(problem("data_dir: {a: b}\n").1, "\"data_dir\" wants a value, not a mapping");
        assert_eq!(problem("[a, b]\n").1, "a list can only be the value of a key");
        assert_eq!(problem("word\n").1, "want settings, `key: value` a line");
        assert_eq!(problem("cluster: {join: [[a]]}\n").1, "a list can only be the value of a key");
        assert!(problem("cluster: {join: [{a: b}]}\n").1.contains("not a mapping"));
        assert_eq!(problem("{{a: b}: c}\n").1, "mappings and lists cannot stand here");
        assert_eq!(problem("node:\n  id: &a b\n").0, 2);
        assert_eq!(problem("node: {id: a}\n---\nnode: {id: b}\n").0, 2);
        assert_eq!(problem("node:\n\tid: a\n").0, 2);
        assert!(problem("data_dir: [a\n").0 >= 1);
    }
}
