//! The proof, on every call between nodes, that the caller knows the cluster's secret.
//!
//! The token is a hash of the secret, sent as call metadata. It keeps strangers and nodes of other clusters
//! out; it does not hide the traffic: on networks that others can read, run the nodes inside a tunnel.

use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

const METADATA_KEY: &str = "x-saturn-cluster-token";

/// Stamps outgoing calls and checks incoming ones.
#[derive(Clone)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Token {
    /// The token of a cluster's secret.
    pub(crate) fn derive(secret: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(b"saturn rpc token v1\0").chain_update(secret).finalize();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut value: MetadataValue<Ascii> = hex.parse().expect("hexadecimal digits are valid metadata");
        value.set_sensitive(true);
        Self(value)
    }

    /// Refuses a call without the right token. The comparison's time does not depend on where they differ.
    pub(crate) fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get(METADATA_KEY).map(MetadataValue::as_bytes).unwrap_or_default();
        let wanted = self.0.as_bytes();
        let differences = given.iter().zip(wanted).fold(0, |all, (a, b)| all | (a ^ b));
        if given.len() == wanted.len() && differences == 0 {
            Ok(request)
        } else {
            Err(Status::unauthenticated("the caller does not know this cluster's secret"))
        }
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(METADATA_KEY, self.0.clone());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_passes() {
        let mut mine = Token::derive(b"one secret of sixteen bytes");
        let request = mine.call(Request::new(())).expect("stamps");
        assert!(mine.check(request).is_ok());
        let request = mine.call(Request::new(())).expect("stamps");
        assert!(Token::derive(b"another secret of sixteen").check(request).is_err());
        assert!(mine.check(Request::new(())).is_err());
    }
}
