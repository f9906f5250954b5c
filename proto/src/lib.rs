//! Wire formats, and their conversion to the model.
//!
//! * [`remote_write`]: Prometheus remote-write 1.0, walked in place without copying labels; [`remote_write2`]: 2.0,
//!   written out as 1.0.
//! * [`remote_read`]: its counterpart, sampled and streamed.
//! * [`histogram`]: the message of a native histogram in both; [`notes`]: those of exemplars and metadata.
//! * [`snappy`]: block decompression that checks the claimed size before allocating.
//! * [`report`]: what a node tells its operator; [`operator`]: how it knows that it is one.
//! * [`peer`]: what nodes say to each other over gRPC; [`convert`] turns it into the model's nouns.
//!
//! Nothing here does IO or knows about shards' owners.

pub mod convert;
pub mod histogram;
mod histogram_chunks;
pub mod notes;
pub mod operator;
pub mod remote_read;
pub mod remote_write;
pub mod remote_write2;
pub mod report;
pub mod snappy;
pub mod varint;

/// Generated messages, client and server of the internal service (`schema/peer.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod peer {
    tonic::include_proto!("saturn.peer.v1");
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes do not decode.
    #[error("{what} at byte {at}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Offset from the start of the message.
        at: usize,
    },
    /// A field does not fit the others or is not what its type demands.
    #[error("{0}")]
    Invalid(String),
    /// The message is larger than it may be.
    #[error("{what} of {bytes} bytes is over the limit of {bytes_max} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}
