//! A path that a document names exists.
//!
//! Two things count as a path: the target of a relative link, and a span in backticks that looks like
//! a file or folder of the repository. Placeholders (`docs/adr/NNNN-*.md`), things outside the
//! repository (`./bin/saturn`, `data/LOCK`) and code blocks do not count.

use std::collections::BTreeSet;

use super::Finding;

/// Suffixes that make a span with a slash a source path wherever it begins.
const SOURCE_SUFFIXES: &[&str] = &[".rs", ".toml", ".proto"];

/// Checks the document `path`; `files` are the files of the repository.
pub(super) fn check(path: &str, text: &str, files: &BTreeSet<String>) -> Vec<Finding> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut in_code_block = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code_block = !in_code_block;
        }
        if in_code_block {
            continue;
        }
        let links = link_targets(line).filter(|target| !exists(folder, target, files));
        findings.extend(
            links.map(|target| Finding::new(path, index + 1, format!("link to {target}: no such file"))),
        );
        let spans = backtick_spans(line).filter(|span| {
            looks_like_path(span, files)
                && !exists("", span, files)
                && !exists(folder, span, files)
                && !ends_a_path(span, files)
        });
        findings.extend(
            spans.map(|span| Finding::new(path, index + 1, format!("`{span}`: no such file or folder"))),
        );
    }
    findings
}

/// The relative targets of `[text](target)` in a line, without `#fragment`.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target.split(['#', ' ']).next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains(':'))
}

/// What stands between single backticks in a line.
fn backtick_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether a span in backticks means a file or folder of the repository.
fn looks_like_path(span: &str, files: &BTreeSet<String>) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let Some((first, rest)) = span.split_once('/') else { return false };
    if first.is_empty() || first == "." || !span.chars().all(plain) {
        return false;
    }
    // A folder is written with its slash; `rate/increase` or `text/plain` are no paths.
    let has_file_name = rest.rsplit('/').next().is_some_and(|name| name.contains('.'));
    let is_source = SOURCE_SUFFIXES.iter().any(|suffix| span.ends_with(suffix));
    is_source || ((span.ends_with('/') || has_file_name) && is_folder(first, files))
}

/// Whether `target`, seen from `folder`, is a file or a folder that holds files.
fn exists(folder: &str, target: &str, files: &BTreeSet<String>) -> bool {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return false;
                }
            }
            name => parts.push(name),
        }
    }
    let path = parts.join("/");
    path.is_empty() || files.contains(&path) || is_folder(&path, files)
}

/// Whether a source file's path ends in `span`: within a paragraph about `node/`, `http/write.rs` will do.
fn ends_a_path(span: &str, files: &BTreeSet<String>) -> bool {
    let suffix = format!("/{span}");
    files.iter().any(|file| file.ends_with(&suffix))
}

fn is_folder(path: &str, files: &BTreeSet<String>) -> bool {
    let prefix = format!("{path}/");
    files.range(prefix.clone()..).next().is_some_and(|file| file.starts_with(&prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        let files =
            ["README.md", "docs/glossary.md", "docs/adr/0001-first.md", "node/src/config.rs", "deploy/a.sh"];
        let files = files.iter().map(|&file| file.to_owned()).collect();
        check(path, text, &files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_are_followed_from_their_document() {
        assert!(
            texts("docs/a.md", "[x](glossary.md#words), [y](../README.md), [z](adr/) [w](#here)").is_empty()
        );
        assert!(texts("README.md", "[x](https://example.org/a.md) [m](mailto:a@b.c)").is_empty());
        assert_eq!(
            texts("docs/a.md", "ok\n[x](README.md)"),
            ["docs/a.md:2: link to README.md: no such file"]
        );
        assert_eq!(texts("README.md", "[x](../outside.md)").len(), 1);
    }

    #[test]
    fn spans_that_look_like_paths_must_exist() {
        assert!(
            texts("README.md", "`node/src/config.rs`, `docs/adr/`, `node/` and `deploy/a.sh`").is_empty()
        );
        assert_eq!(
            texts("README.md", "see `node/src/setting.rs`"),
            ["README.md:1: `node/src/setting.rs`: no such file or folder"]
        );
        assert_eq!(texts("README.md", "`docs/rfc/` `deploy/b.sh` `gone/src/lib.rs`").len(), 3);
    }

    #[test]
    fn what_is_no_path_is_left_alone() {
        let text = "`rate/increase`, `text/plain`, `/api/v1/write`, `./bin/saturn`, `docs/adr/NNNN-*.md`, `data/LOCK`";
        assert!(texts("README.md", text).is_empty());
        assert!(texts("README.md", "```\n[x](none.md) `docs/none.md`\n```").is_empty());
    }
}
