//! Dependencies point one way: the table of the crates, and the homes of outside crates.
//!
//! The table says what a crate *may* use. A missing edge is no finding; an edge that the table lacks is,
//! and so is a crate without a row.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use super::Finding;

/// A workspace crate by its folder, and the workspace crates that it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("proto", &["model"]),
    ("ring", &["model"]),
    ("storage", &["model"]),
    ("promql", &["model"]),
    ("replication", &["ring", "model"]),
    ("query-frontend", &["promql", "model"]),
    ("ruler", &["promql", "model"]),
    ("agent", &["proto", "model"]),
    ("ctl", &["promql", "proto", "storage", "model"]),
    ("node", &["model", "proto", "ring", "storage", "replication", "promql", "query-frontend", "ruler"]),
    ("chaos-tests", &["model", "proto", "ring", "storage", "replication", "promql"]),
    (
        "benches",
        &["model", "proto", "ring", "storage", "replication", "promql", "query-frontend", "chaos-tests"],
    ),
    ("xtask", &[]),
];

/// An outside crate, and the only folders that may name it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("rocksdb", &["storage"]),
    ("tonic", &["node", "proto"]),
    ("tonic-prost", &["node", "proto"]),
    // Storage has no build script: see its manifest for why it names the generator.
    ("tonic-prost-build", &["proto", "storage"]),
    ("foca", &["ring"]),
    ("consistent_hash_ring", &["ring"]),
    ("axum", &["node", "benches"]),
];

/// An outside crate, and the folders that must not name it.
const NEVER_IN: &[(&str, &[&str])] = &[
    ("tokio", &["ring", "model", "promql"]),
    ("reqwest", &["ring", "model", "promql", "storage", "replication", "query-frontend"]),
    ("anyhow", &["model", "proto", "ring", "storage", "replication", "promql", "query-frontend"]),
];

/// A dependency as a manifest states it.
struct Edge<'a> {
    manifest: &'a str,
    /// The first line of the manifest that mentions the dependency, else 1.
    line: usize,
    folder: &'a str,
    dependency: &'a str,
}

/// Compares the manifests of the workspace with the tables.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        findings.extend(check_package(&metadata, package)?);
    }
    Ok(findings)
}

fn check_package(metadata: &Metadata, package: &Package) -> Result<Vec<Finding>> {
    let manifest = package
        .manifest_path
        .strip_prefix(&metadata.workspace_root)
        .context("a workspace crate lies in the workspace")?;
    let folder = manifest.parent().map_or("", |parent| parent.as_str());
    let text = std::fs::read_to_string(&package.manifest_path).with_context(|| manifest.to_string())?;
    if allowed_edges(folder).is_none() {
        let text = format!("crate {folder} has no row in the table of xtask/src/tidy/edges.rs");
        return Ok(vec![Finding::new(manifest.as_str(), 1, text)]);
    }
    let findings = package.dependencies.iter().filter_map(|dependency| {
        let line = text.lines().position(|line| line.starts_with(dependency.name.as_str()));
        check_edge(&Edge {
            manifest: manifest.as_str(),
            line: line.map_or(1, |index| index + 1),
            folder,
            dependency: &dependency.name,
        })
    });
    Ok(findings.collect())
}

fn allowed_edges(folder: &str) -> Option<&'static [&'static str]> {
    EDGES.iter().find(|(name, _)| *name == folder).map(|(_, allowed)| *allowed)
}

/// Judges one dependency, inside the workspace or outside.
fn check_edge(edge: &Edge<'_>) -> Option<Finding> {
    let Edge { manifest, line, folder, dependency } = *edge;
    if let Some(target) = dependency.strip_prefix("saturn-") {
        let allowed = allowed_edges(folder).unwrap_or_default();
        return (!allowed.contains(&target)).then(|| {
            let list = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
            let text = format!("{folder} must not depend on {target}: of the workspace it may use {list}");
            Finding::new(manifest, line, text)
        });
    }
    let listed = |table: &[(&str, &'static [&'static str])]| {
        table.iter().find(|(name, _)| *name == dependency).map(|(_, folders)| *folders)
    };
    if let Some(homes) = listed(ONLY_IN).filter(|homes| !homes.contains(&folder)) {
        let text = format!("{dependency} belongs in {} only, not in {folder}", homes.join(" and "));
        return Some(Finding::new(manifest, line, text));
    }
    listed(NEVER_IN)
        .filter(|folders| folders.contains(&folder))
        .map(|_| Finding::new(manifest, line, format!("{folder} must not use {dependency}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(folder: &str, dependency: &str) -> Option<String> {
        check_edge(&Edge { manifest: "a/Cargo.toml", line: 7, folder, dependency })
            .map(|found| found.to_string())
    }

    #[test]
    fn edges_of_the_table_pass() {
        for (folder, dependency) in [
            ("ring", "saturn-model"),
            ("node", "saturn-storage"),
            ("node", "tokio"),
            ("storage", "rocksdb"),
            ("proto", "tonic"),
            ("query-frontend", "saturn-promql"),
            ("promql", "regex"),
        ] {
            assert_eq!(judge(folder, dependency), None, "{folder} -> {dependency}");
        }
    }

    #[test]
    fn an_edge_against_the_direction_is_found() {
        let found = judge("storage", "saturn-ring").expect("found");
        assert_eq!(
            found,
            "a/Cargo.toml:7: storage must not depend on ring: of the workspace it may use model"
        );
        let found = judge("model", "saturn-proto").expect("found");
        assert!(found.ends_with("it may use nothing"), "{found}");
        assert!(judge("replication", "saturn-storage").is_some());
        assert!(judge("ctl", "saturn-node").is_some());
    }

    #[test]
    fn outside_crates_stay_at_home() {
        assert!(judge("ring", "tokio").expect("found").ends_with("ring must not use tokio"));
        assert!(
            judge("node", "rocksdb")
                .expect("found")
                .ends_with("rocksdb belongs in storage only, not in node")
        );
        assert!(judge("replication", "tonic").is_some());
    }

    #[test]
    fn the_table_has_no_cycle_and_no_unknown_name() {
        // A row may only name rows above it, bar `node`, which names `ruler`, also above it.
        for (index, (folder, allowed)) in EDGES.iter().enumerate() {
            for target in *allowed {
                let position = EDGES.iter().position(|(name, _)| name == target);
                assert!(position.is_some_and(|position| position < index), "{folder} -> {target}");
            }
        }
    }
}
