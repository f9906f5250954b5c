//! `saturn demo` comes up, answers for its tenant, and leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{Endpoint, Process, SaturnBinaries, Signal, eventually, free_ports, now_ms};

const DEMO_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(40);

/// The child processes of a process.
fn children_of(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while the list is read.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        // pid (name) state parent ...; the name may hold anything, so count from its end.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1))
            .and_then(|text| text.parse().ok());
        if parent == Some(pid) {
            children.push(child);
        }
    }
    Ok(children)
}

/// The first URL on this host in a text.
fn url_in(text: &str) -> Option<String> {
    let start = text.find("http://127.0.0.1:")?;
    let rest = &text[start..];
    let end = rest["http://".len()..].find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
    Some(rest[..end.map_or(rest.len(), |end| end + "http://".len())].to_owned())
}

#[tokio::test]
async fn the_demo_answers_and_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let keep = folder.path().join("kept");
    let port = free_ports(1)[0];
    let mut command = Command::new(SaturnBinaries::locate().saturn);
    command.args(["demo", "--http-port", &port.to_string(), "--keep"]).arg(&keep);
    let mut demo = Process::spawn("saturn demo", &mut command, &folder.path().join("demo.log"))?;

    let url = eventually("the demo prints its URL", DEMO_LIMIT, async || {
        if demo.ended()?.is_some() {
            return Ok(Some(None));
        }
        Ok(url_in(&demo.log_text()).map(Some))
    })
    .await?;
    demo.check_running()?;
    let url = url.context("the demo ended")?;
    let endpoint = Endpoint::of_tenant(&url, "demo");
    eventually("the demo's own figures", DEMO_LIMIT, async || {
        let answer = endpoint.query(r#"count({__name__=~".+"})"#, now_ms()).await?.complete()?;
        let count: f64 = answer.single()?.parse()?;
        ensure!(count > 20.0, "{count} series");
        Ok(Some(()))
    })
    .await?;
    let text = demo.log_text();
    for word in ["remote_write", "curl", "/api/v1/query", "Ctrl-C"] {
        ensure!(text.contains(word), "{word} is not in what the demo prints:\n{text}");
    }

    let children = children_of(demo.pid())?;
    ensure!(children.len() >= 3, "three nodes are three processes: {children:?}");
    demo.signal(Signal::Interrupt)?;
    let status = demo.wait_end(END_LIMIT).await?;
    ensure!(status.success(), "the demo ended with {status}:\n{}", demo.log_tail());
    for child in children {
        ensure!(!Path::new(&format!("/proc/{child}")).exists(), "child {child} is still there");
    }
    ensure!(std::fs::read_dir(&keep)?.next().is_some(), "--keep keeps the data");
    Ok(())
}

#[test]
fn urls_are_found_in_text() {
    assert_eq!(url_in("open http://127.0.0.1:9090/ now").as_deref(), Some("http://127.0.0.1:9090"));
    assert_eq!(url_in("at http://127.0.0.1:9091").as_deref(), Some("http://127.0.0.1:9091"));
    assert_eq!(url_in("nothing"), None);
}
