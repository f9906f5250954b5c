//! A second handle on the same files that changes none of them, and what it is asked for.
//!
//! It sees the database as it was when the handle was opened, through a small cache of its own: what it reads comes
//! from the files. It takes no lock, so files may go while it reads them.

use std::path::Path;

use rocksdb::{Cache, DB};

use super::{DATA, FAMILIES, INDEX, Rocks, Writes, data_options, database_options, families, read_error};
use crate::error::StorageError;
use crate::keys::{SegmentKey, Window};

/// Cache for indexes of table files, mostly.
const CACHE_BYTES: usize = 8 << 20;
const OPEN_FILES_MAX: i32 = 256;

/// A table file with samples.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    /// Its name in the database's folder.
    pub(crate) name: String,
    /// Window and number of its segments.
    pub(crate) segment: (Window, u64),
}

/// Bytes of table files by what is in them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableBytes {
    pub(crate) data: u64,
    pub(crate) index: u64,
    pub(crate) meta: u64,
}

impl Rocks {
    /// Opens the database in `path` for reading only. It must exist.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self, StorageError> {
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let mut options = database_options(OPEN_FILES_MAX);
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let there = DB::list_cf(&options, path).map_err(|e| read_error(path, "open", e))?;
        if let Some(missing) = FAMILIES.iter().find(|family| !there.iter().any(|name| name == *family)) {
            return Err(StorageError::Invalid {
                reason: format!(
                    "{} is of an earlier version of this program, without {missing:?}: start a node with it once, which \
                     adds what is missing, stop it, and look again",
                    path.display()
                ),
            });
        }
        let db = DB::open_cf_descriptors_read_only(&options, path, families(&cache), false)
            .map_err(|e| read_error(path, "open", e))?;
        let writes = Writes::open_read_only(path);
        Ok(Self { db, writes, data_options: data_options(&cache), path: path.into() })
    }

    /// The table files with samples.
    pub(crate) fn data_files(&self) -> Result<Vec<DataFile>, StorageError> {
        let files = self.db.live_files().map_err(|e| self.error("list table files of", e))?;
        let mut found = Vec::new();
        for file in files.into_iter().filter(|file| file.column_family_name == DATA) {
            let Some(start) = file.start_key else {
                continue;
            };
            // A file has rows of one window and one number only.
            let (first, _, _) =
                SegmentKey::from_data_key(&start).ok_or_else(|| self.damaged(DATA, &start))?;
            let name = file.name.trim_start_matches('/').to_owned();
            found.push(DataFile { name, segment: (first.window, first.segment) });
        }
        Ok(found)
    }

    /// Bytes of all table files.
    pub(crate) fn table_bytes(&self) -> Result<TableBytes, StorageError> {
        let mut bytes = TableBytes::default();
        for file in self.db.live_files().map_err(|e| self.error("list table files of", e))? {
            let of_kind = match file.column_family_name.as_str() {
                DATA => &mut bytes.data,
                INDEX => &mut bytes.index,
                _ => &mut bytes.meta,
            };
            *of_kind += file.size as u64;
        }
        Ok(bytes)
    }

    /// Gives all rows of `index` to `each`, which returns `None` for one that is damaged.
    pub(crate) fn each_index_row(
        &self,
        each: impl FnMut(&[u8], &[u8]) -> Option<()>,
    ) -> Result<(), StorageError> {
        self.for_each_row(INDEX, each)
    }
}
