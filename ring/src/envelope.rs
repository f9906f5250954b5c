//! What is inside a sealed packet.
//!
//! ```text
//! offset  bytes
//!      0      1  kind: 0 SWIM, 1 hello, 2 outdated, 3 suspected
//!      1      8  version of the placement that the sender holds (0: none), little-endian
//!      9     16  the sender's durable position: segment (8), offset (8), little-endian
//!     25      n  SWIM: a packet of foca's; else postcard: an identity, for "suspected" its incarnation too
//! ```

use crate::DurablePosition;
use crate::member::Identity;

/// Bytes before the body.
pub(crate) const ENVELOPE_BYTES: usize = 25;

const KIND_SWIM: u8 = 0;
const KIND_HELLO: u8 = 1;
const KIND_OUTDATED: u8 = 2;
const KIND_SUSPECTED: u8 = 3;

/// A packet's content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// Version of the placement that the sender holds, 0 for none.
    pub(crate) placement_version: u64,
    /// How far the sender's log is on its disk.
    pub(crate) durable: DurablePosition,
    /// The rest.
    pub(crate) body: Body<'a>,
}

/// The kinds of packets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    /// Foca's own.
    Swim(&'a [u8]),
    /// "I am this one; who are you?", to an address whose owner is not known.
    Hello(Identity),
    /// "I know your node id as this one, which is dead, or started later than you."
    Outdated(Identity),
    /// "You, in this incarnation, are suspected to be dead: object."
    Suspected(Identity, foca::Incarnation),
}

impl<'a> Envelope<'a> {
    pub(crate) fn encode(placement_version: u64, durable: DurablePosition, body: &Body<'_>) -> Vec<u8> {
        let kind = match body {
            Body::Swim(_) => KIND_SWIM,
            Body::Hello(_) => KIND_HELLO,
            Body::Outdated(_) => KIND_OUTDATED,
            Body::Suspected(..) => KIND_SUSPECTED,
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&placement_version.to_le_bytes());
        bytes.extend_from_slice(&durable.segment.to_le_bytes());
        bytes.extend_from_slice(&durable.offset.to_le_bytes());
        let encoded = match body {
            Body::Swim(data) => {
                bytes.extend_from_slice(data);
                return bytes;
            }
            Body::Hello(identity) | Body::Outdated(identity) => postcard::to_extend(identity, bytes),
            Body::Suspected(identity, incarnation) => postcard::to_extend(&(identity, incarnation), bytes),
        };
        encoded.expect("an identity has nothing that postcard refuses")
    }

    /// `None` if the bytes are no envelope.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (segment, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let durable =
            DurablePosition { segment: u64::from_le_bytes(*segment), offset: u64::from_le_bytes(*offset) };
        let body = match *kind {
            KIND_SWIM => Body::Swim(rest),
            KIND_HELLO => Body::Hello(postcard::from_bytes(rest).ok()?),
            KIND_OUTDATED => Body::Outdated(postcard::from_bytes(rest).ok()?),
            KIND_SUSPECTED => {
                let (identity, incarnation) = postcard::from_bytes(rest).ok()?;
                Body::Suspected(identity, incarnation)
            }
            _ => return None,
        };
        Some(Self { placement_version: u64::from_le_bytes(*version), durable, body })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::seal::{PACKET_BYTES_MAX, SEAL_BYTES};
    use crate::{Generation, Member, NodeId, Zone};

    fn identity() -> Identity {
        let longest = "x".repeat(63);
        let addr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().expect("an address");
        let member = Member {
            id: NodeId::new(&longest).expect("valid"),
            generation: Generation(Uuid::max()),
            zone: Zone::new(&longest).expect("valid"),
            gossip_addr: addr,
            grpc_addr: addr,
            http_addr: addr,
        };
        Identity { boot: u64::MAX, member }
    }

    #[test]
    fn packets_come_back() {
        let suspected = Body::Suspected(identity(), 300);
        for body in [Body::Swim(b"abc"), Body::Hello(identity()), Body::Outdated(identity()), suspected] {
            let durable = DurablePosition { segment: u64::MAX, offset: 9 };
            let bytes = Envelope::encode(7, durable, &body);
            assert_eq!(Envelope::decode(&bytes), Some(Envelope { placement_version: 7, durable, body }));
        }
        assert_eq!(Envelope::decode(&[KIND_SWIM; ENVELOPE_BYTES - 1]), None);
        assert_eq!(Envelope::decode(&[9; 40]), None);
    }

    #[test]
    fn a_packet_holds_the_largest_message() {
        // Foca's largest header names three identities; one more travels with it.
        let hello = Envelope::encode(0, DurablePosition::default(), &Body::Hello(identity()));
        let identity_bytes = hello.len() - ENVELOPE_BYTES;
        assert!(4 * identity_bytes + 100 < PACKET_BYTES_MAX - SEAL_BYTES - ENVELOPE_BYTES);
    }
}
