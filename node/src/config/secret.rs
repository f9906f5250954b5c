//! The cluster's secret: what it may look like in its file, and that it never shows in a log. While it is rotated,
//! there are two.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How long a secret may be, in bytes, without white space around it.
const SECRET_BYTES: RangeInclusive<usize> = 16..=4096;

/// How long the file may be: two secrets and some white space.
const SECRET_FILE_BYTES_MAX: u64 = 16_384;

/// Most secrets that count at the same time: the one before and the one after a rotation.
const SECRETS_MAX: usize = 2;

/// The bits of a file's mode that let others than its owner in.
const OTHERS_MODE_BITS: u32 = 0o077;

/// What all nodes of a cluster know and nobody else does: one secret, or two during a rotation, of which the first is
/// used and both are accepted. Its `Debug` form does not hold them, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secrets(Vec<Box<[u8]>>);

impl Secrets {
    /// The bytes of each, for key derivation only.
    pub(crate) fn expose(&self) -> Vec<&[u8]> {
        self.0.iter().map(|secret| &secret[..]).collect()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} hidden)", self.0.len())
    }
}

/// A file with secrets, and what it held when it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFile {
    pub(crate) path: PathBuf,
    pub(crate) secrets: Secrets,
}

impl SecretFile {
    /// Reads the file.
    pub(crate) fn read(path: PathBuf) -> Result<Self, SecretProblem> {
        let secrets = read(&path)?;
        Ok(Self { path, secrets })
    }
}

/// Why a file holds no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretProblem {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is open to others than its owner (mode {mode:04o}): run chmod 600 on it")]
    OpenToOthers { mode: u32 },
    #[error("holds {count} secrets: want one in a line, or two during a rotation")]
    Count { count: usize },
    #[error("holds {length} bytes in line {line}: want {} to {}", SECRET_BYTES.start(), SECRET_BYTES.end())]
    Length { line: usize, length: usize },
}

fn read(path: &Path) -> Result<Secrets, SecretProblem> {
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
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let secrets: Vec<(usize, &[u8])> = (1..).zip(lines).filter(|(_, secret)| !secret.is_empty()).collect();
    let wrong = secrets.iter().find(|(_, secret)| !SECRET_BYTES.contains(&secret.len()));
    if let Some((line, secret)) = wrong {
        return Err(SecretProblem::Length { line: *line, length: secret.len() });
    }
    if !(1..=SECRETS_MAX).contains(&secrets.len()) {
        return Err(SecretProblem::Count { count: secrets.len() });
    }
    Ok(Secrets(secrets.into_iter().map(|(_, secret)| secret.into()).collect()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read_with(content: &[u8], mode: u32) -> Result<Secrets, SecretProblem> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("mode set");
        read(file.path())
    }

    #[test]
    fn white_space_around_the_secret_does_not_count() {
        let secrets = read_with(b"  0123456789abcdef\n", 0o600).expect("accepted");
        assert_eq!(secrets.expose(), [b"0123456789abcdef"]);
        assert_eq!(format!("{secrets:?}"), "Secrets(1 hidden)");
    }

    #[test]
    fn a_rotation_has_two_lines() {
        let secrets = read_with(b"\nthe first secret\n\n  the second secret  \r\n", 0o600).expect("accepted");
        assert_eq!(secrets.expose(), [&b"the first secret"[..], b"the second secret"]);
        let three = b"0123456789abcdef\n".repeat(3);
        assert!(matches!(read_with(&three, 0o600), Err(SecretProblem::Count { count: 3 })));
        let short = read_with(b"0123456789abcdef\nshort\n", 0o600).expect_err("refused");
        assert_eq!(short.to_string(), "holds 5 bytes in line 2: want 16 to 4096");
    }

    #[test]
    fn length_is_bounded() {
        assert!(read_with(&[b'x'; 4096], 0o400).is_ok());
        assert!(matches!(read_with(b" \n", 0o600), Err(SecretProblem::Count { count: 0 })));
        for wrong in [15, 4097, 100_000] {
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
