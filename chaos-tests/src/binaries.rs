//! Where the binaries under test are.

use std::path::{Path, PathBuf};

/// The binaries under test: those in `SATURN_BIN_DIR`, else those that were built with the tests.
#[derive(Debug, Clone)]
pub struct SaturnBinaries {
    /// The server.
    pub saturn: PathBuf,
    /// The operator's command line.
    pub saturnctl: PathBuf,
}

impl SaturnBinaries {
    /// Finds the binaries.
    ///
    /// # Panics
    /// When they are missing, with the command that builds them.
    pub fn locate() -> Self {
        let folders = match std::env::var_os("SATURN_BIN_DIR") {
            Some(folder) => vec![PathBuf::from(folder)],
            None => folders_of_the_build(),
        };
        let in_folder =
            |folder: &Path| Self { saturn: folder.join("saturn"), saturnctl: folder.join("saturnctl") };
        let complete = |found: &Self| found.saturn.is_file() && found.saturnctl.is_file();
        match folders.iter().map(|folder| in_folder(folder)).find(complete) {
            Some(found) => found,
            None => panic!(
                "no saturn and saturnctl in {folders:?}: run `cargo build -p saturn-node -p saturn-ctl` first, or set SATURN_BIN_DIR"
            ),
        }
    }
}

/// The folder of this executable, and the one above: tests are in `deps/` below the binaries.
fn folders_of_the_build() -> Vec<PathBuf> {
    let executable = std::env::current_exe().expect("a running process has an executable");
    executable.ancestors().skip(1).take(2).map(Path::to_owned).collect()
}
