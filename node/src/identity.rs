//! Who this data directory belongs to.
//!
//! `node.json` is written when the directory is first used: node id and generation (a UUID that says "this very disk"),
//! which changes only when the disk has lost what was acknowledged. `placement.json` holds the cluster's placement as
//! last adopted. The empty file `member` says that the cluster has confirmed the node as a member once: should it have
//! forgotten the node since, the directory is of no use any more. `losses.json` says how often the disk was found to
//! have lost what was acknowledged (`durability.rs`), and is written before the directory gets its new generation. All
//! are replaced atomically: temporary file, fsync, rename, fsync of the directory.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use saturn_ring::{Generation, NodeId, Placement};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the data directory's layout.
const FORMAT: u32 = 1;

/// The contents of `node.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    node_id: String,
    generation: Uuid,
}

/// The contents of `losses.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Losses {
    /// How many were noticed.
    pub(crate) noticed: u32,
    /// Whether the last one is still to be repaired.
    pub(crate) is_lacking: bool,
    /// The generation of the directory before the last one.
    pub(crate) former: Option<Uuid>,
}

/// An opened data directory.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    pub(crate) generation: Generation,
}

impl DataDir {
    /// Opens `path` for the node `id`; a new directory is given a generation.
    pub(crate) fn open(path: &Path, id: &NodeId) -> anyhow::Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot create the data directory {}", path.display()))?;
        let file = path.join("node.json");
        let node = if file.exists() {
            read_node_file(&file)?
        } else {
            let node = NodeFile { format: FORMAT, node_id: id.to_string(), generation: Uuid::new_v4() };
            replace_file(&file, &serde_json::to_vec_pretty(&node)?)?;
            node
        };
        if node.node_id != id.as_str() {
            bail!(
                "the data directory {} belongs to node {:?}, but this node is called {:?}: \
                 start it with --node.id={} or give it another --data-dir",
                path.display(),
                node.node_id,
                id.as_str(),
                node.node_id
            );
        }
        let mut data = Self { path: path.to_owned(), generation: Generation(node.generation) };
        if data.load_losses()?.former == Some(node.generation) {
            data.renew(node)?;
        }
        Ok(data)
    }

    /// Notes that the disk has lost what was acknowledged. The next [`DataDir::open`] does the rest.
    pub(crate) fn note_loss(&self) -> anyhow::Result<()> {
        let noticed = self.load_losses()?.noticed.saturating_add(1);
        self.save_losses(Losses { noticed, is_lacking: true, former: Some(self.generation.0) })
    }

    /// Notes that the directory takes the place of one that is lost: it is still to get what that one held.
    pub(crate) fn note_stand_in(&self) -> anyhow::Result<()> {
        self.save_losses(Losses { noticed: 1, is_lacking: true, former: None })
    }

    /// Forgets what this node had decided with others, and then gives the directory another generation.
    fn renew(&mut self, node: NodeFile) -> anyhow::Result<()> {
        let raft = self.raft_path();
        match fs::remove_dir_all(&raft) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", raft.display()));
            }
            _ => {}
        }
        let node = NodeFile { generation: Uuid::new_v4(), ..node };
        replace_file(&self.path.join("node.json"), &serde_json::to_vec_pretty(&node)?)?;
        self.generation = Generation(node.generation);
        Ok(())
    }

    /// Where the storage engine keeps its files.
    pub(crate) fn storage_path(&self) -> PathBuf {
        self.path.join("storage")
    }

    /// Where the Raft groups keep their logs.
    pub(crate) fn raft_path(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Whether the node was ever confirmed as a member of its cluster.
    pub(crate) fn was_member(&self) -> bool {
        self.path.join("member").exists()
    }

    /// Remembers that the node was.
    pub(crate) fn remember_membership(&self) -> anyhow::Result<()> {
        if self.was_member() { Ok(()) } else { replace_file(&self.path.join("member"), b"") }
    }

    /// What the disk is known to have lost.
    pub(crate) fn load_losses(&self) -> anyhow::Result<Losses> {
        let file = self.path.join("losses.json");
        match fs::read(&file) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Losses::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// Makes that durable.
    pub(crate) fn save_losses(&self, losses: Losses) -> anyhow::Result<()> {
        replace_file(&self.path.join("losses.json"), &serde_json::to_vec_pretty(&losses)?)
    }

    /// The placement adopted last, if the node belongs to a cluster.
    pub(crate) fn load_placement(&self) -> anyhow::Result<Option<Placement>> {
        let file = self.path.join("placement.json");
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let placement: Placement =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
        placement.validate().with_context(|| format!("{} is damaged", file.display()))?;
        Ok(Some(placement))
    }

    /// Makes `placement` durable.
    pub(crate) fn save_placement(&self, placement: &Placement) -> anyhow::Result<()> {
        replace_file(&self.path.join("placement.json"), &serde_json::to_vec_pretty(placement)?)
    }
}

fn read_node_file(file: &Path) -> anyhow::Result<NodeFile> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let node: NodeFile =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
    if node.format != FORMAT {
        bail!(
            "{} has format {}, but this version of saturn knows only format {FORMAT}",
            file.display(),
            node.format
        );
    }
    Ok(node)
}

/// Replaces `file` so that after a power cut it holds the old or the new bytes, whole.
fn replace_file(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = file.parent().context("a file of the data directory has a parent")?;
    let write = || -> std::io::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(file).map_err(|e| e.error)?;
        fs::File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_generation_and_its_owner() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let id = NodeId::new("n1").expect("valid");
        let first = DataDir::open(dir.path(), &id).expect("opens");
        let again = DataDir::open(dir.path(), &id).expect("opens again");
        assert_eq!(first.generation, again.generation);
        let other = DataDir::open(dir.path(), &NodeId::new("n2").expect("valid")).expect_err("refused");
        assert!(other.to_string().contains("belongs to node \"n1\""), "{other}");
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let id = NodeId::new("n1").expect("valid");
        let data = DataDir::open(dir.path(), &id).expect("opens");
        assert!(data.load_placement().expect("nothing there").is_none());
        assert_eq!(data.load_losses().expect("nothing there"), Losses::default());
        let losses = Losses { noticed: 2, is_lacking: true, former: None };
        data.save_losses(losses).expect("writes");
        assert_eq!(data.load_losses().expect("reads"), losses);
        fs::write(dir.path().join("losses.json"), br#"{"noticed": 3, "is_lacking": false}"#).expect("writes");
        let losses = Losses { noticed: 3, is_lacking: false, former: None };
        assert_eq!(data.load_losses().expect("reads"), losses);
    }

    #[test]
    fn a_directory_that_lost_something_is_another_one_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = || DataDir::open(dir.path(), &NodeId::new("n1").expect("valid")).expect("opens");
        let data = open();
        fs::create_dir(data.raft_path()).expect("made");
        fs::write(data.raft_path().join("log"), b"votes").expect("writes");
        data.note_loss().expect("writes");
        let renewed = open();
        assert_ne!(renewed.generation, data.generation);
        assert!(!data.raft_path().exists());
        let losses = Losses { noticed: 1, is_lacking: true, former: Some(data.generation.0) };
        assert_eq!(renewed.load_losses().expect("reads"), losses);
        assert_eq!(open().generation, renewed.generation);
        fs::write(dir.path().join("placement.json"), b"{").expect("writes");
        let error = data.load_placement().expect_err("damaged");
        assert!(format!("{error:#}").contains("placement.json is damaged"), "{error:#}");
    }
}
