//! What processes used, as `/proc` tells it, and what folders take.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Bytes of a block in `st_blocks`, whatever the file system's own.
const STAT_BLOCK_BYTES: u64 = 512;

/// Clock ticks in a second in `/proc`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system CPU time of a process, in seconds. `self` is this one.
pub fn process_cpu_seconds(pid: &str) -> Result<f64> {
    cpu_seconds(pid, 14)
}

/// CPU time of this thread, in seconds, as of the last tick of its core's clock.
pub(crate) fn thread_cpu_seconds() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let stat = fs::read_to_string(path).context(path)?;
    let nanoseconds: f64 = stat.split(' ').next().context(path)?.parse().context(path)?;
    Ok(nanoseconds / 1e9)
}

/// User and system CPU time of all children of this process that have ended.
pub(crate) fn ended_children_cpu_seconds() -> Result<f64> {
    cpu_seconds("self", 16)
}

fn cpu_seconds(pid: &str, field: usize) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path)?;
    let (user, system) = stat_fields(&stat, field).context("/proc/<pid>/stat has 52 fields")?;
    Ok((user + system) / TICKS_PER_SECOND)
}

/// The field with this number, counted from 1 as in proc(5), and the next. The second field is a name in
/// brackets that may hold anything.
fn stat_fields(stat: &str, number: usize) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(number - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Bytes that a process has caused to be written to disks, so far. `self` is this one.
pub(crate) fn written_bytes(pid: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context(path)?;
    Ok(field.trim().parse()?)
}

/// What a folder takes on disk.
pub(crate) fn disk_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            bytes += metadata.blocks() * STAT_BLOCK_BYTES;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 3 4 20 0";
        assert_eq!(stat_fields(stat, 14), Some((250.0, 50.0)));
        assert_eq!(stat_fields(stat, 16), Some((3.0, 4.0)));
        assert_eq!(stat_fields("7 (x) S", 14), None);
    }

    #[test]
    fn disk_space_is_what_files_take() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("inner"))?;
        fs::write(folder.path().join("inner/file"), vec![1; 100_000])?;
        assert!(disk_bytes(folder.path())? >= 100_000);
        assert!(written_bytes("self")? > 0);
        Ok(())
    }
}
