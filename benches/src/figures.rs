//! What came out of a run, and the table of several.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Sent;

/// What one run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// What was measured.
    pub name: String,
    /// Copies of each sample that it keeps.
    pub copies: u64,
    /// Samples that were sent, each counted once.
    pub samples: u64,
    /// How the sending went.
    pub sent: Sent,
    /// CPU time of all its processes from the first request to the last answer.
    pub cpu_seconds: f64,
    /// The same until it was stopped in good order, without the check by queries.
    pub cpu_seconds_to_stop: f64,
    /// What its data takes on disk after that.
    pub disk_bytes: u64,
}

impl Figures {
    fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.sent.elapsed.as_secs_f64()
    }

    fn per_million(&self, cpu_seconds: f64) -> f64 {
        cpu_seconds * 1e6 / self.samples as f64
    }

    fn bytes_per_sample(&self) -> f64 {
        self.disk_bytes as f64 / self.samples as f64
    }
}

/// The runs as a markdown table.
pub fn table(runs: &[Figures]) -> String {
    let mut text = String::from(
        "| what | samples/s | CPU-s per 10^6 samples | ... with clean stop | request p50 | p99 | retries | bytes/sample, one copy | in all |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let milliseconds = |percent| run.sent.latency_percentile(percent).as_secs_f64() * 1000.0;
        writeln!(
            text,
            "| {} | {:.0} | {:.2} | {:.2} | {:.1} ms | {:.1} ms | {} | {:.2} | {:.2} |",
            run.name,
            run.samples_per_second(),
            run.per_million(run.cpu_seconds),
            run.per_million(run.cpu_seconds_to_stop),
            milliseconds(50),
            milliseconds(99),
            run.sent.retries,
            run.bytes_per_sample() / run.copies as f64,
            run.bytes_per_sample(),
        )
        .expect("writing to a string does not fail");
    }
    text
}

/// One line about this machine: processors, kernel, and the file system that the data is on.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = std::env::temp_dir();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let file_system = file_system_of(&folder, &mounts).unwrap_or("an unknown file system");
    format!(
        "{cores} cores of {model}, Linux {}, data in {} on {file_system}",
        kernel.trim(),
        folder.display()
    )
}

/// The type of the file system that a folder is on: that of the longest mount point above it.
fn file_system_of<'a>(folder: &Path, mounts: &'a str) -> Option<&'a str> {
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = fields.filter(|(mount_point, _)| folder.starts_with(mount_point));
    // Of equals the last: it was mounted over the others.
    above.max_by_key(|(mount_point, _)| mount_point.len()).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_are_per_sample_and_per_copy() {
        let sent = Sent {
            elapsed: Duration::from_secs(2),
            latencies: vec![Duration::from_millis(3), Duration::from_millis(7)],
            retries: 1,
        };
        let run = Figures {
            name: "Saturn".to_owned(),
            copies: 3,
            samples: 2_000_000,
            sent,
            cpu_seconds: 10.0,
            cpu_seconds_to_stop: 12.0,
            disk_bytes: 12_000_000,
        };
        let text = table(&[run]);
        let row = text.lines().nth(2).expect("a row");
        assert_eq!(row, "| Saturn | 1000000 | 5.00 | 6.00 | 3.0 ms | 7.0 ms | 1 | 2.00 | 6.00 |");
    }

    #[test]
    fn the_file_system_is_the_nearest_one() {
        let mounts = "a / ext4 rw\nb /tmp tmpfs rw\nc /tmp/x xfs rw\n";
        assert_eq!(file_system_of(Path::new("/tmp/y"), mounts), Some("tmpfs"));
        assert_eq!(file_system_of(Path::new("/var"), mounts), Some("ext4"));
        assert_eq!(file_system_of(Path::new("/tmp/x/z"), mounts), Some("xfs"));
    }
}
