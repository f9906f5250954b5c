//! The cluster's secrets, read again while the node runs: on SIGHUP, and when their file has changed.
//!
//! What cannot be read changes nothing. A rotation is three such changes on every node: `docs/rotate-the-secret.md`.

use std::time::Duration;

use saturn_ring::KeyRing;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use crate::config::{SecretFile, Secrets};
use crate::gossip::Command;
use crate::rpc_auth::Token;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Follows the file for as long as the node lives. Without one, a SIGHUP changes nothing.
pub(crate) async fn follow(
    file: Option<SecretFile>,
    mut hangup: Signal,
    token: Token,
    gossip: mpsc::Sender<Command>,
) {
    let Some(mut file) = file else {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: there is no file of secrets to read again");
        }
        return;
    };
    let mut complaint = String::new();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let path = file.path.clone();
        let read = tokio::task::spawn_blocking(move || SecretFile::read(path)).await;
        match read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Ok(read) => {
                if read != file {
                    apply(&read.secrets, &token, &gossip).await;
                    file = read;
                } else if asked {
                    tracing::info!("SIGHUP: the secrets are the same as before");
                }
                complaint.clear();
            }
            Err(problem) => {
                let text = problem.to_string();
                if asked || text != complaint {
                    tracing::warn!(
                        file = %file.path.display(), problem = text,
                        "the file of the cluster's secrets is of no use; those read before stay in force"
                    );
                }
                complaint = text;
            }
        }
    }
}

async fn apply(secrets: &Secrets, token: &Token, gossip: &mpsc::Sender<Command>) {
    let secrets = secrets.expose();
    let keys = KeyRing::new(&secrets).expect("a file of secrets has one or two that are long enough");
    token.replace(&secrets);
    // The task ends with the node only.
    let _ = gossip.send(Command::SetKeys(keys)).await;
    tracing::info!(accepted = secrets.len(), "the cluster's secrets were replaced");
}
