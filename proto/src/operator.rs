//! How an operator proves to a node that they know the cluster's secret.

use sha2::{Digest as _, Sha256};

/// Secret of clusters without one. It protects nothing, which is why such nodes listen on loopback only; that the
/// header must be there at all keeps web pages out, whose forms cannot set it.
pub const LOOPBACK_SECRET: &[u8] = b"saturn: loopback only, no secret";

/// The value of the `Authorization` header that operators send. It says nothing about the secret.
pub fn authorization(secret: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"saturn operator token v1\0").chain_update(secret).finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Bearer {hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_secret_has_another_header() {
        let header = authorization(b"one secret of sixteen bytes");
        assert!(header.starts_with("Bearer ") && header.len() == 7 + 64);
        assert_ne!(header, authorization(b"another secret of sixteen"));
    }
}
