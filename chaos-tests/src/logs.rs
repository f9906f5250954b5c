//! What a server may say in its log.

/// What is expected in the logs of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tolerance {
    /// Nothing went wrong: a warning is a finding.
    Quiet,
    /// Nodes went away: warnings are expected, errors are not.
    Warnings,
    /// Disks failed: errors are expected, panics are not.
    Errors,
}

/// The lines of a log that should not be there.
pub(crate) fn unexpected(log: &str, tolerance: Tolerance) -> Vec<&str> {
    let is_unexpected = |line: &&str| {
        let lower = line.to_lowercase();
        let has_level = |level: &str| {
            lower.contains(&format!("level={level}")) || lower.contains(&format!("\"level\":\"{level}\""))
        };
        ["panicked at", "panic=", "thread panicked", "aborted"].iter().any(|word| lower.contains(word))
            || (tolerance < Tolerance::Errors && has_level("error"))
            || (tolerance < Tolerance::Warnings && has_level("warn"))
    };
    log.lines().filter(is_unexpected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tolerance_lets_less_through() {
        let log = "level=info msg=hello\nlevel=WARN msg=slow\n{\"level\":\"error\"}\nthread 'a' panicked at b.rs:1\n";
        let count = |tolerance| unexpected(log, tolerance).len();
        assert_eq!(
            (count(Tolerance::Quiet), count(Tolerance::Warnings), count(Tolerance::Errors)),
            (3, 2, 1)
        );
    }
}
