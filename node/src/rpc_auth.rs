//! The proof, on every call between nodes and on an operator's changes, that the caller knows the cluster's secret.
//!
//! The token is a hash of the secret, sent as call metadata. It keeps strangers and nodes of other clusters
//! out; it does not hide the traffic: on networks that others can read, run the nodes inside a tunnel.

use std::sync::Arc;

use parking_lot::RwLock;
use saturn_proto::operator;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

const METADATA_KEY: &str = "x-saturn-cluster-token";

/// Stamps outgoing calls and checks incoming ones. Clones share what it was last replaced by.
#[derive(Clone)]
pub(crate) struct Token(Arc<RwLock<Vec<Proofs>>>);

/// What follows from one secret.
struct Proofs {
    rpc: MetadataValue<Ascii>,
    operator: String,
}

impl Proofs {
    fn of(secret: &&[u8]) -> Self {
        Self { rpc: token_of(secret), operator: operator::authorization(secret) }
    }
}

impl Token {
    /// The token of a cluster's secrets: the first one's is sent, any is accepted.
    pub(crate) fn derive(secrets: &[&[u8]]) -> Self {
        Self(Arc::new(RwLock::new(secrets.iter().map(Proofs::of).collect())))
    }

    /// From now on, these secrets count.
    pub(crate) fn replace(&self, secrets: &[&[u8]]) {
        *self.0.write() = secrets.iter().map(Proofs::of).collect();
    }

    /// Refuses a call without a right token. The comparison's time does not depend on where they differ.
    pub(crate) fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get(METADATA_KEY).map(MetadataValue::as_bytes).unwrap_or_default();
        let right = self.0.read().iter().filter(|wanted| is_same(given, wanted.rpc.as_bytes())).count();
        if right > 0 {
            Ok(request)
        } else {
            Err(Status::unauthenticated("the caller does not know this cluster's secret"))
        }
    }
}

impl Token {
    /// Whether an `Authorization` header is that of an operator who knows a secret.
    pub(crate) fn is_operator(&self, header: &[u8]) -> bool {
        self.0.read().iter().filter(|wanted| is_same(header, wanted.operator.as_bytes())).count() > 0
    }
}

fn token_of(secret: &[u8]) -> MetadataValue<Ascii> {
    let digest = Sha256::new().chain_update(b"saturn rpc token v1\0").chain_update(secret).finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut value: MetadataValue<Ascii> = hex.parse().expect("hexadecimal digits are valid metadata");
    value.set_sensitive(true);
    value
}

fn is_same(given: &[u8], wanted: &[u8]) -> bool {
    let differences = given.iter().zip(wanted).fold(0, |all, (a, b)| all | (a ^ b));
    given.len() == wanted.len() && differences == 0
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.0.read().first() {
            request.metadata_mut().insert(METADATA_KEY, token.rpc.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_passes() {
        let mut mine = Token::derive(&[b"one secret of sixteen bytes"]);
        let request = mine.call(Request::new(())).expect("stamps");
        assert!(mine.check(request).is_ok());
        let request = mine.call(Request::new(())).expect("stamps");
        assert!(Token::derive(&[b"another secret of sixteen"]).check(request).is_err());
        assert!(mine.check(Request::new(())).is_err());
        assert!(mine.is_operator(operator::authorization(b"one secret of sixteen bytes").as_bytes()));
        assert!(!mine.is_operator(b"Bearer 00") && !mine.is_operator(b""));
    }

    #[test]
    fn during_a_rotation_both_secrets_pass() {
        let (old, new): (&[u8], &[u8]) = (b"the old secret of a cluster", b"the new secret of a cluster");
        let stamped = |secrets: &[&[u8]]| Token::derive(secrets).call(Request::new(())).expect("stamps");
        let mine = Token::derive(&[old]);
        let clone = mine.clone();
        assert!(mine.check(stamped(&[new, old])).is_err());
        clone.replace(&[old, new]);
        for secrets in [&[old][..], &[old, new], &[new, old], &[new]] {
            assert!(mine.check(stamped(secrets)).is_ok());
        }
        assert!(mine.check(Request::new(())).is_err());
        clone.replace(&[new]);
        assert!(mine.check(stamped(&[old, new])).is_err());
        assert!(mine.check(stamped(&[new])).is_ok());
    }
}
