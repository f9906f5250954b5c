//! Prometheus's own scripts, and ours.

use std::path::{Path, PathBuf};

use saturn_promql::NameRemoval;
use saturn_promql::promqltest::{Failure, Score, run_script};

/// Scripts that come with the workspace's shared folder; they are not part of the project.
fn shared_scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/promqltest")
}

/// The folder of shared conformance data, if it is there. CI must have it.
pub(crate) fn shared_folder() -> Option<PathBuf> {
    let folder = shared_scripts();
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI is set", folder.display());
    report(&format!("{} is missing: nothing to compare with", folder.display()));
    None
}

/// Shows a line to whoever runs the tests.
#[expect(clippy::print_stdout, reason = "the counts are the result of this test")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

fn scripts_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "test"));
    paths.sort();
    paths
}

/// Runs all scripts of a folder and fails if any evaluation does.
fn run_folder(folder: &Path, name_removal: NameRemoval) {
    let (mut total, mut failures) = (Score::default(), Vec::new());
    for path in scripts_in(folder) {
        let text = std::fs::read_to_string(&path).expect("the script can be read");
        let score = run_script(&text, name_removal);
        let name = path.file_name().expect("a script has a name").to_string_lossy().into_owned();
        report(&format!(
            "{name}: {} passed, {} failed ({} queries)",
            score.passed,
            score.failures.len(),
            score.queries
        ));
        total.passed += score.passed;
        total.queries += score.queries;
        failures.extend(score.failures.iter().map(|failure| format!("{name}: {failure}")));
    }
    report(&format!(
        "total: {} passed, 0 unsupported, {} failed ({} queries)",
        total.passed,
        failures.len(),
        total.queries
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn prometheus_scripts() {
    if let Some(folder) = shared_folder() {
        run_folder(&folder, NameRemoval::Delayed);
    }
}

/// Runs our own scripts: those of `testdata` and those of its `special` folder.
fn run_own(special: &str, name_removal: NameRemoval) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    run_folder(&folder, name_removal);
    run_folder(&folder.join(special), name_removal);
}

#[test]
fn own_scripts_with_delayed_name_removal() {
    run_own("delayed", NameRemoval::Delayed);
}

#[test]
fn own_scripts_with_immediate_name_removal() {
    run_own("immediate", NameRemoval::Immediate);
}

/// What is wrong is named by its line, and nothing is wrong with what is right.
#[test]
fn failures_are_named() {
    let script = "load 1m\n  m 1 2 3\n\neval instant at 1m m\n  m 2\n\nEVAL instant at 1m m\n  m 3\n\nclear\n\n\
                  eval instant at 1m m\n";
    let score = run_script(script, NameRemoval::Delayed);
    assert_eq!(score.passed, 2);
    let failures: Vec<String> = score.failures.iter().map(Failure::to_string).collect();
    assert_eq!(failures, ["line 7: m: m: got Float(2.0), want Some(Some(Float(3.0)))"]);
}

/// A script that cannot be read fails with the line and the reason, whatever is in it.
#[test]
fn broken_scripts_are_refused() {
    for (script, line, reason) in [
        ("load 5m\n  m 1\n\nlaod 5m\n", 4, "unknown command"),
        ("load\n", 1, "interval"),
        ("loadx 5m\n", 1, "unknown command"),
        ("load 0s\n  m 1 2\n", 1, "interval"),
        ("load 5m\n  m 1x99999999999\n", 1, "repeat"),
        ("load 5m\n  m {{schema:1 schema:2}}\n", 1, "twice"),
        ("load 5m\n  m {{}}\u{20ac}{{}}x1\n", 1, "bad value"),
        ("load 5m\n  m{ 1\n", 1, "unclosed"),
        ("eval instant at 5m sum(\n", 1, "parse error"),
        ("eval instant at 5m m\n  m 1 2\n", 1, "more than one value"),
        ("eval instant at 5m m\n  expect no_warn\n  expect warn\n", 1, "no_warn"),
        ("eval instant at 5m m\n  expect fail\n  expect fail\n", 1, "fail"),
        ("eval range from 5m to 1m step 1m m\n", 1, "before"),
        ("eval range from 1m to 5m step 0 m\n", 1, "step"),
        ("eval sometime at 5m m\n", 1, "unknown kind"),
    ] {
        let Score { passed, failures, .. } = run_script(script, NameRemoval::Delayed);
        assert_eq!(passed, 0, "{script}");
        let [Failure { line: found, text }] = failures.as_slice() else {
            panic!("{script}: {failures:?}");
        };
        assert!(*found == line && text.contains(reason), "{script}: line {found}: {text}");
    }
}
