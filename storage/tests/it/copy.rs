//! The copy of a data directory that a kill leaves. Shared with the unit tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The data directory as a kill at this moment leaves it. RocksDB removes old files in the background, so a
/// copy counts only if no file came, went or grew meanwhile.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for _ in 0..100 {
        let before = listing(from);
        let copied = before.iter().all(|(path, _)| {
            let target = to.join(path.strip_prefix(from).expect("inside"));
            fs::create_dir_all(target.parent().expect("a folder")).expect("created");
            fs::copy(path, target).is_ok()
        });
        if copied && listing(from) == before {
            return fs::create_dir_all(to.join("tmp")).expect("created");
        }
        fs::remove_dir_all(to).expect("removed");
    }
    panic!("{} does not come to rest", from.display());
}

/// Files below `dir` with their sizes.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("listed").flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(listing(&entry.path())),
            Ok(metadata) => {
                files.insert(entry.path(), metadata.len());
            }
            Err(_) => {}
        }
    }
    files
}
