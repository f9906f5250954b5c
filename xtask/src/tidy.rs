//! The checks of `cargo xtask tidy`, over the files that git tracks or would track.
//!
//! * [`edges`]: which crate may depend on which, and where an outside crate is at home.
//! * [`sources`]: what every file must and must not contain, and how long it may be.
//! * [`doc_paths`]: a path that a document names exists.
//!
//! Each check is a function from text to findings, so that its tests need no repository.

mod doc_paths;
mod edges;
mod sources;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The exceptions to the file size limit, with the size that each may have at most.
const OVERSIZED: &str = "xtask/oversized.txt";

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    text: String,
}

impl Finding {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Runs all checks; returns how many files were read, and the findings in the order of the files.
pub(crate) fn run(root: &Path) -> Result<(usize, Vec<Finding>)> {
    let paths = repository_files(root)?;
    let oversized = std::fs::read_to_string(root.join(OVERSIZED)).with_context(|| OVERSIZED)?;
    let mut ratchet = sources::Ratchet::parse(OVERSIZED, &oversized);
    let mut findings = edges::check(root)?;
    let mut checked_files = 0;
    for path in &paths {
        let bytes = std::fs::read(root.join(path)).with_context(|| path.clone())?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        checked_files += 1;
        findings.extend(sources::check(path, &text, &mut ratchet));
        if path.ends_with(".md") {
            findings.extend(doc_paths::check(path, &text, &paths));
        }
    }
    findings.extend(ratchet.leftovers());
    findings.sort();
    Ok((checked_files, findings))
}

/// Every file of the working tree that git does not ignore, relative to the root.
fn repository_files(root: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("tidy asks git for the list of files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let listing = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    // A file that was deleted but not yet committed is still listed.
    let is_present = |path: &&str| !path.is_empty() && root.join(path).is_file();
    Ok(listing.split('\0').filter(is_present).map(str::to_owned).collect())
}
