//! The cluster's secret: what it may look like in its file, and that it never shows in a log.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How long a secret may be, in bytes, without white space around it.
const SECRET_BYTES: RangeInclusive<usize> = 16..=4096;

/// How long the file may be: the secret and some white space.
const SECRET_FILE_BYTES_MAX: u64 = 8192;

/// The bits of a file's mode that let others than its owner in.
const OTHERS_MODE_BITS: u32 = 0o077;

/// What all nodes of a cluster know and nobody else does. Its `Debug` form does not hold it, and it
/// has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Box<[u8]>);

impl Secret {
    /// The bytes, for key derivation only.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Why a file holds no secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretProblem {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is open to others than its owner (mode {mode:04o}): run chmod 600 on it")]
    OpenToOthers { mode: u32 },
    #[error("holds {length} bytes: want {} to {}", SECRET_BYTES.start(), SECRET_BYTES.end())]
    Length { length: usize },
}

/// Reads the secret of a file.
pub(super) fn read(path: &Path) -> Result<Secret, SecretProblem> {
    // The mode is that of the opened file: the path may lead elsewhere a moment later.
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SecretProblem::NotAFile);
    }
    if metadata.mode() & OTHERS_MODE_BITS != 0 {
        return Err(SecretProblem::OpenToOthers { mode: metadata.mode() & 0o7777 });
    }
    let mut content = Vec::new();
    file.take(SECRET_FILE_BYTES_MAX).read_to_end(&mut content)?;
    let secret = content.trim_ascii();
    if !SECRET_BYTES.contains(&secret.len()) {
        return Err(SecretProblem::Length { length: secret.len() });
    }
    Ok(Secret(secret.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read_with(content: &[u8], mode: u32) -> Result<Secret, SecretProblem> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("mode set");
        read(file.path())
    }

    #[test]
    fn white_space_around_the_secret_does_not_count() {
        let secret = read_with(b"  0123456789abcdef\n", 0o600).expect("accepted");
        assert_eq!(secret.expose(), b"0123456789abcdef");
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
    }

    #[test]
    fn length_is_bounded() {
        assert!(read_with(&[b'x'; 4096], 0o400).is_ok());
        for wrong in [0, 15, 4097, 100_000] {
            assert!(
                matches!(read_with(&vec![b'x'; wrong], 0o600), Err(SecretProblem::Length { .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_the_owner_may_read_it() {
        for mode in [0o640, 0o604, 0o610, 0o666] {
            let error = read_with(b"0123456789abcdef", mode).expect_err("refused").to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
        }
    }

    #[test]
    fn a_missing_file_and_a_folder_are_refused() {
        assert!(matches!(read(Path::new("/nonexistent/secret")), Err(SecretProblem::Unreadable(_))));
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(matches!(read(folder.path()), Err(SecretProblem::NotAFile)));
    }
}
