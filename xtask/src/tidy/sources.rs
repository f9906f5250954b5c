//! What every source file must and must not contain, and how long it may be.
//!
//! The forbidden words are put together from halves below, so that this file does not find itself.

use super::Finding;

/// Longest Rust file, in lines that are not tests.
const SOURCE_LINES_MAX: usize = 800;

/// Marks of unfinished work: an issue is the place for them.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// A macro that compiles and then panics.
const UNFINISHED_MACRO: &str = concat!("to", "do!(");

/// Directories of the machine that a file was written on.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Checks one file by its name and text.
pub(super) fn check(path: &str, text: &str, ratchet: &mut Ratchet) -> Vec<Finding> {
    let mut findings = Vec::new();
    if path == "Cargo.lock" {
        return findings;
    }
    if path.ends_with(".rs") {
        findings.extend(check_opening(path, text));
        if !is_test_file(path) {
            findings.extend(ratchet.judge(path, lines_without_tests(text)));
        }
    }
    for (index, line) in text.lines().enumerate() {
        findings.extend(check_line(path, index + 1, line));
    }
    findings
}

/// A file says first what it is for.
fn check_opening(path: &str, text: &str) -> Option<Finding> {
    let opens = text
        .lines()
        .next()
        .is_some_and(|line| line.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty()));
    (!opens).then(|| Finding::new(path, 1, "a Rust file opens with `//!` and says what it is for"))
}

fn check_line(path: &str, number: usize, line: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Prose may speak of these words; code must not carry them.
    if !path.ends_with(".md") {
        for word in UNFINISHED.iter().filter(|word| contains_word(line, word)) {
            findings.push(Finding::new(
                path,
                number,
                format!("{word}: finish it, or open an issue and say why here"),
            ));
        }
    }
    if path.ends_with(".rs") && line.contains(UNFINISHED_MACRO) {
        findings.push(Finding::new(
            path,
            number,
            format!("{UNFINISHED_MACRO}) panics when it is reached: finish it"),
        ));
    }
    for directory in MACHINE_PATHS.iter().filter(|directory| contains_absolute(line, directory)) {
        findings.push(Finding::new(
            path,
            number,
            format!("{directory} is a path of one machine: make it relative or a setting"),
        ));
    }
    findings
}

/// Whether `word` stands in `line` with nothing wordlike on either side.
fn contains_word(line: &str, word: &str) -> bool {
    let wordlike = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(wordlike) && !line[start + word.len()..].starts_with(wordlike)
    })
}

/// Whether `line` names `directory` from the root of a file system, rather than inside a longer path.
fn contains_absolute(line: &str, directory: &str) -> bool {
    let in_path = |c: char| c.is_alphanumeric() || "_-.~}/>".contains(c);
    line.match_indices(directory).any(|(start, _)| !line[..start].ends_with(in_path))
}

/// Integration tests and test modules in files of their own may be as long as they need.
fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs") || path.ends_with("_tests.rs")
}

/// The lines before the test module that closes a file.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let opens_tests =
        |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    lines.windows(2).position(opens_tests).unwrap_or(lines.len())
}

/// The files that are longer than the limit, each with a size that may only shrink.
#[derive(Debug)]
pub(super) struct Ratchet {
    list_path: String,
    entries: Vec<Entry>,
    malformed: Vec<Finding>,
}

#[derive(Debug)]
struct Entry {
    line: usize,
    path: String,
    lines_max: usize,
    seen: bool,
}

impl Ratchet {
    /// Reads the list: `path number` a line, `#` for comments.
    pub(super) fn parse(list_path: &str, text: &str) -> Self {
        let mut ratchet =
            Self { list_path: list_path.to_owned(), entries: Vec::new(), malformed: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry =
                line.rsplit_once(' ').and_then(|(path, size)| Some((path.trim(), size.parse().ok()?)));
            match entry {
                Some((path, lines_max)) => {
                    ratchet.entries.push(Entry {
                        line: line_number,
                        path: path.to_owned(),
                        lines_max,
                        seen: false,
                    });
                }
                None => ratchet.malformed.push(Finding::new(
                    list_path,
                    line_number,
                    "want a path and a number of lines",
                )),
            }
        }
        ratchet
    }

    /// Judges the size of one file.
    fn judge(&mut self, path: &str, lines: usize) -> Option<Finding> {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.path == path) else {
            return (lines > SOURCE_LINES_MAX).then(|| {
                let text =
                    format!("{lines} lines without tests, the limit is {SOURCE_LINES_MAX}: split the file");
                Finding::new(path, SOURCE_LINES_MAX + 1, text)
            });
        };
        entry.seen = true;
        let at_list = |text: String| Some(Finding::new(&self.list_path, entry.line, text));
        if lines <= SOURCE_LINES_MAX {
            at_list(format!("{path} is within the limit now: delete this line"))
        } else if lines < entry.lines_max {
            at_list(format!("{path} shrank to {lines} lines: lower the number"))
        } else if lines > entry.lines_max {
            Some(Finding::new(
                path,
                1,
                format!("grew from {} to {lines} lines: split the file", entry.lines_max),
            ))
        } else {
            None
        }
    }

    /// Entries of the list that no file answers to, and lines that are no entries.
    pub(super) fn leftovers(self) -> Vec<Finding> {
        let unseen = self.entries.into_iter().filter(|entry| !entry.seen);
        let gone = unseen.map(|entry| {
            Finding::new(
                &self.list_path,
                entry.line,
                format!("{} does not exist: delete this line", entry.path),
            )
        });
        self.malformed.into_iter().chain(gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        let mut ratchet = Ratchet::parse("list", "");
        check(path, text, &mut ratchet).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rust_file_opens_with_its_purpose() {
        assert_eq!(texts("a/b.rs", "//! What it is for.\n"), Vec::<String>::new());
        assert_eq!(texts("a/b.rs", "use x;\n").len(), 1);
        assert_eq!(texts("a/b.rs", "//!\nuse x;\n").len(), 1);
        assert_eq!(texts("a/b.rs", ""), ["a/b.rs:1: a Rust file opens with `//!` and says what it is for"]);
        assert_eq!(texts("a/b.toml", "x = 1\n"), Vec::<String>::new());
    }

    #[test]
    fn unfinished_work_is_found_with_its_line() {
        let marks = format!("# fine\n# {}: later\n", UNFINISHED[0]);
        assert!(texts("a.toml", &marks)[0].starts_with("a.toml:2: "));
        assert!(texts("a.md", &marks).is_empty(), "prose may speak of it");
        assert!(texts("a.sh", &format!("M{}S", UNFINISHED[0])).is_empty(), "a part of a word is no mark");
        assert_eq!(texts("a.rs", &format!("//! A.\nfn f() {{ {UNFINISHED_MACRO}) }}\n")).len(), 1);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let line = |prefix: &str| format!("cp {prefix}{}x .", MACHINE_PATHS[0]);
        assert_eq!(texts("a.sh", &line("")).len(), 1);
        assert_eq!(texts("a.md", &line("`")).len(), 1);
        assert!(texts("a.sh", &line("src")).is_empty(), "a directory inside the repository");
    }

    #[test]
    fn the_test_module_does_not_count() {
        let long = format!("//! A.\n{}", "fn f() {}\n".repeat(SOURCE_LINES_MAX));
        assert_eq!(
            texts("a/src/b.rs", &long),
            ["a/src/b.rs:801: 801 lines without tests, the limit is 800: split the file"]
        );
        assert!(texts("a/tests/it/main.rs", &long).is_empty());
        let tested = format!("//! A.\n\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(900));
        assert!(texts("a/src/b.rs", &tested).is_empty());
    }

    #[test]
    fn the_ratchet_only_shrinks() {
        let judged = |listed: &str, lines: usize| {
            let mut ratchet = Ratchet::parse("list", listed);
            let finding = ratchet.judge("a.rs", lines).map(|found| found.to_string());
            (finding, ratchet.leftovers())
        };
        assert_eq!(judged("# head\na.rs 900\n", 900), (None, Vec::new()));
        assert_eq!(
            judged("a.rs 900", 901).0.expect("found"),
            "a.rs:1: grew from 900 to 901 lines: split the file"
        );
        assert_eq!(
            judged("a.rs 900", 899).0.expect("found"),
            "list:1: a.rs shrank to 899 lines: lower the number"
        );
        assert_eq!(
            judged("a.rs 900", 800).0.expect("found"),
            "list:1: a.rs is within the limit now: delete this line"
        );
        assert_eq!(judged("b.rs 900", 10).1[0].to_string(), "list:1: b.rs does not exist: delete this line");
        assert_eq!(judged("nonsense", 10).1.len(), 1);
    }
}
