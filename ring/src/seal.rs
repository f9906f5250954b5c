//! Sealed gossip packets: nobody without the cluster's secret can read, forge, alter or repeat one.
//!
//! ```text
//! offset  bytes
//!      0      1  version (2)
//!      1      4  key id: first bytes of SHA-256("saturn gossip key id v1\0", key)
//!      5     16  cluster id, zero while the sender's cluster has not formed
//!     21     16  boot nonce: random, drawn by the sender when it started
//!     37      8  counter: little-endian, one more with every packet of this boot
//!     45      n  XChaCha20-Poly1305 ciphertext (ChaCha20-Poly1305 with a 192-bit nonce)
//!   45+n     16  tag over ciphertext and header
//! ```
//! The nonce is boot nonce and counter together, hence unique without coordination. The key is SHA-256 over
//! a label and the cluster's secret. Invariants: a packet is at most [`PACKET_BYTES_MAX`] bytes; a
//! counter is accepted once per boot nonce, within a window of [`REPLAY_WINDOW`].
//!
//! What this deliberately does not do: it does not tell members apart (all share the key), and a process
//! that has just started cannot know packets recorded before its start; gossip's boot numbers
//! make those harmless.

use std::collections::HashMap;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::ClusterId;

/// Largest sealed packet: fits an Ethernet frame with room for tunnels.
pub const PACKET_BYTES_MAX: usize = 1400;
/// Bytes that sealing adds to a payload.
pub const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// How far behind the newest packet of its sender a packet may arrive.
pub const REPLAY_WINDOW: u64 = 128;
/// Length of the random number that names one run of one process.
pub const BOOT_NONCE_BYTES: usize = 16;

const VERSION: u8 = 2;
const KEY_ID_BYTES: usize = 4;
const CLUSTER_AT: usize = 1 + KEY_ID_BYTES;
const NONCE_AT: usize = CLUSTER_AT + 16;
const COUNTER_AT: usize = NONCE_AT + BOOT_NONCE_BYTES;
const HEADER_BYTES: usize = COUNTER_AT + 8;
const TAG_BYTES: usize = 16;
/// Shortest cluster secret.
const SECRET_BYTES_MIN: usize = 16;
/// Most senders whose counters are remembered; the one silent longest is forgotten first.
const SENDERS_MAX: usize = 4096;

/// Why a packet was not used. The set is closed: it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Longer than [`PACKET_BYTES_MAX`] or shorter than an empty packet.
    Length,
    /// Sealed by a version of Saturn that this one does not understand.
    Version,
    /// Sealed with a key that is not in the key ring.
    UnknownKey,
    /// Altered, or sealed by someone who guesses at the key.
    Tampered,
    /// Seen before, or too old to say.
    Replayed,
    /// From a member of another cluster with the same secret.
    ForeignCluster,
    /// From another living process under this node's id.
    NameConflict,
    /// Sent by this process itself.
    FromMyself,
    /// Authentic, but not understood.
    Malformed,
}

impl DropReason {
    /// All of them, in the order in which [`crate::Dropped`] counts.
    pub const ALL: [Self; 9] = [
        Self::Length,
        Self::Version,
        Self::UnknownKey,
        Self::Tampered,
        Self::Replayed,
        Self::ForeignCluster,
        Self::NameConflict,
        Self::FromMyself,
        Self::Malformed,
    ];

    /// The reason as a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Version => "version",
            Self::UnknownKey => "unknown_key",
            Self::Tampered => "tampered",
            Self::Replayed => "replayed",
            Self::ForeignCluster => "foreign_cluster",
            Self::NameConflict => "name_conflict",
            Self::FromMyself => "from_myself",
            Self::Malformed => "malformed",
        }
    }
}

/// The cluster's gossip keys: the first seals, all open. Two only while keys are being rotated.
#[derive(Clone)]
pub struct KeyRing(Vec<PacketKey>);

#[derive(Clone)]
struct PacketKey {
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
}

/// Why secrets make no key ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// None, or more than the two that a rotation needs.
    #[error("{count} cluster secrets: want 1, or 2 during a rotation")]
    Count {
        /// How many were given.
        count: usize,
    },
    /// Too easy to guess.
    #[error("cluster secret of {bytes} bytes: want at least {SECRET_BYTES_MIN} random bytes")]
    Short {
        /// How long it is.
        bytes: usize,
    },
}

impl KeyRing {
    /// Derives the keys. The first secret seals; the second, if any, only opens.
    pub fn new(secrets: &[&[u8]]) -> Result<Self, KeyRingError> {
        if !(1..=2).contains(&secrets.len()) {
            return Err(KeyRingError::Count { count: secrets.len() });
        }
        if let Some(short) = secrets.iter().find(|secret| secret.len() < SECRET_BYTES_MIN) {
            return Err(KeyRingError::Short { bytes: short.len() });
        }
        Ok(Self(secrets.iter().map(|secret| PacketKey::derive(secret)).collect()))
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys)", self.0.len())
    }
}

impl PacketKey {
    fn derive(secret: &[u8]) -> Self {
        let key =
            Sha256::new().chain_update(b"saturn gossip packet key v1\0").chain_update(secret).finalize();
        let digest = Sha256::new().chain_update(b"saturn gossip key id v1\0").chain_update(key).finalize();
        let id = std::array::from_fn(|i| digest[i]);
        Self { id, cipher: XChaCha20Poly1305::new(&key) }
    }
}

/// Seals the packets of one run of one process.
pub(crate) struct Sealer {
    key: PacketKey,
    boot_nonce: [u8; BOOT_NONCE_BYTES],
    counter: u64,
}

impl Sealer {
    /// `boot_nonce` must be fresh randomness at every start of the process.
    pub(crate) fn new(keys: &KeyRing, boot_nonce: [u8; BOOT_NONCE_BYTES]) -> Self {
        Self { key: keys.0[0].clone(), boot_nonce, counter: 0 }
    }

    /// From now on, the first of these keys seals. The counter goes on, so nonces stay unique under either.
    pub(crate) fn set_keys(&mut self, keys: &KeyRing) {
        self.key = keys.0[0].clone();
    }

    /// A sealed packet around `payload`.
    pub(crate) fn seal(&mut self, cluster: Option<ClusterId>, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut packet = Vec::with_capacity(payload.len() + SEAL_BYTES);
        packet.push(VERSION);
        packet.extend_from_slice(&self.key.id);
        packet.extend_from_slice(cluster.map_or(Uuid::nil(), |cluster| cluster.0).as_bytes());
        packet.extend_from_slice(&self.boot_nonce);
        packet.extend_from_slice(&self.counter.to_le_bytes());
        let payload = Payload { msg: payload, aad: &packet };
        let nonce = packet_nonce(&packet);
        let ciphertext = self.key.cipher.encrypt(&nonce, payload);
        packet.extend_from_slice(&ciphertext.expect("a packet is far shorter than the cipher's limit"));
        packet
    }
}

/// An authentic packet.
pub(crate) struct Opened {
    /// The sender's cluster, if it has one.
    pub(crate) cluster: Option<ClusterId>,
    /// What was sealed.
    pub(crate) payload: Vec<u8>,
}

/// Opens packets and remembers what it has seen.
pub(crate) struct Opener {
    keys: KeyRing,
    my_boot_nonce: [u8; BOOT_NONCE_BYTES],
    senders: HashMap<[u8; BOOT_NONCE_BYTES], ReplayWindow>,
    opened: u64,
}

/// The counters seen from one sender: the highest, and which of the [`REPLAY_WINDOW`] up to it.
#[derive(Default)]
struct ReplayWindow {
    highest: u64,
    /// Bit `i` says that counter `highest - i` was seen.
    seen: u128,
    /// Value of [`Opener::opened`] at the last packet.
    last_used: u64,
}

impl ReplayWindow {
    /// Marks `counter`; false if it was seen before or is too old to say.
    fn accept(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let shift = counter - self.highest;
            self.seen = if shift < REPLAY_WINDOW { self.seen << shift } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        if behind >= REPLAY_WINDOW || self.seen & (1 << behind) != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

impl Opener {
    pub(crate) fn new(keys: KeyRing, my_boot_nonce: [u8; BOOT_NONCE_BYTES]) -> Self {
        Self { keys, my_boot_nonce, senders: HashMap::new(), opened: 0 }
    }

    /// From now on, these keys open. What was seen under others stays seen.
    pub(crate) fn set_keys(&mut self, keys: KeyRing) {
        self.keys = keys;
    }

    /// Checks and decrypts `packet`.
    pub(crate) fn open(&mut self, packet: &[u8]) -> Result<Opened, DropReason> {
        if !(SEAL_BYTES..=PACKET_BYTES_MAX).contains(&packet.len()) {
            return Err(DropReason::Length);
        }
        let (header, ciphertext) = packet.split_at(HEADER_BYTES);
        if header[0] != VERSION {
            return Err(DropReason::Version);
        }
        let key = self.keys.0.iter().find(|key| key.id == header[1..CLUSTER_AT]);
        let key = key.ok_or(DropReason::UnknownKey)?;
        let payload = Payload { msg: ciphertext, aad: header };
        let payload = key.cipher.decrypt(&packet_nonce(header), payload).map_err(|_| DropReason::Tampered)?;
        // Everything below is authenticated.
        let boot_nonce: [u8; BOOT_NONCE_BYTES] = std::array::from_fn(|i| header[NONCE_AT + i]);
        let counter = u64::from_le_bytes(std::array::from_fn(|i| header[COUNTER_AT + i]));
        if boot_nonce == self.my_boot_nonce {
            return Err(DropReason::FromMyself);
        }
        if !self.accept(boot_nonce, counter) {
            return Err(DropReason::Replayed);
        }
        let cluster = Uuid::from_bytes(std::array::from_fn(|i| header[CLUSTER_AT + i]));
        Ok(Opened { cluster: (!cluster.is_nil()).then_some(ClusterId(cluster)), payload })
    }

    fn accept(&mut self, boot_nonce: [u8; BOOT_NONCE_BYTES], counter: u64) -> bool {
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&boot_nonce) {
            let oldest = self.senders.iter().min_by_key(|(_, window)| window.last_used);
            if let Some(oldest) = oldest.map(|(nonce, _)| *nonce) {
                self.senders.remove(&oldest);
            }
        }
        self.opened += 1;
        let window = self.senders.entry(boot_nonce).or_default();
        window.last_used = self.opened;
        window.accept(counter)
    }
}

/// Boot nonce and counter of a header: the cipher's nonce.
fn packet_nonce(header: &[u8]) -> XNonce {
    let mut nonce = XNonce::default();
    nonce.copy_from_slice(&header[NONCE_AT..HEADER_BYTES]);
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a secret of enough bytes";
    const OTHER_SECRET: &[u8] = b"another one of enough bytes";

    fn keys(secrets: &[&[u8]]) -> KeyRing {
        KeyRing::new(secrets).expect("valid secrets")
    }

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(&keys(&[SECRET]), [1; 16]), Opener::new(keys(&[SECRET]), [2; 16]))
    }

    fn reason(result: Result<Opened, DropReason>) -> Option<DropReason> {
        result.err()
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let (mut sealer, mut opener) = pair();
        let cluster = ClusterId(Uuid::from_u128(7));
        let packet = sealer.seal(Some(cluster), b"hello");
        assert_eq!(packet.len(), 5 + SEAL_BYTES);
        let opened = opener.open(&packet).expect("authentic");
        assert_eq!((opened.cluster, opened.payload.as_slice()), (Some(cluster), &b"hello"[..]));
        assert_eq!(reason(opener.open(&packet)), Some(DropReason::Replayed));
        assert_eq!(opener.open(&sealer.seal(None, b"")).expect("authentic").cluster, None);
    }

    #[test]
    fn every_altered_byte_is_noticed() {
        let (mut sealer, mut opener) = pair();
        let packet = sealer.seal(None, b"members");
        for at in 0..packet.len() {
            for bit in 0..8 {
                let mut altered = packet.clone();
                altered[at] ^= 1 << bit;
                assert!(opener.open(&altered).is_err(), "byte {at} bit {bit}");
            }
        }
        for len in 0..packet.len() {
            assert!(opener.open(&packet[..len]).is_err(), "cut at {len}");
        }
        opener.open(&packet).expect("refused packets leave no trace");
    }

    #[test]
    fn late_packets_are_accepted_within_the_window() {
        let (mut sealer, mut opener) = pair();
        let packets: Vec<_> = (0..=REPLAY_WINDOW).map(|_| sealer.seal(None, b"x")).collect();
        let (newest, older) = packets.split_last().expect("not empty");
        opener.open(newest).expect("new");
        assert_eq!(reason(opener.open(&older[0])), Some(DropReason::Replayed), "left the window");
        for late in &older[1..] {
            opener.open(late).expect("late but new");
            assert_eq!(reason(opener.open(late)), Some(DropReason::Replayed));
        }
    }

    #[test]
    fn keys_rotate() {
        let mut old = Sealer::new(&keys(&[SECRET]), [1; 16]);
        let mut new = Sealer::new(&keys(&[OTHER_SECRET, SECRET]), [2; 16]);
        let mut both = Opener::new(keys(&[SECRET, OTHER_SECRET]), [3; 16]);
        both.open(&old.seal(None, b"x")).expect("first key");
        both.open(&new.seal(None, b"x")).expect("second key");
        let mut one = Opener::new(keys(&[SECRET]), [3; 16]);
        assert_eq!(reason(one.open(&new.seal(None, b"x"))), Some(DropReason::UnknownKey));
    }

    #[test]
    fn a_rotation_loses_no_packet_and_forgets_none() {
        let (mut sealer, mut opener) = pair();
        let first = sealer.seal(None, b"x");
        opener.open(&first).expect("first key");
        opener.set_keys(keys(&[SECRET, OTHER_SECRET]));
        let before = sealer.seal(None, b"x");
        sealer.set_keys(&keys(&[OTHER_SECRET, SECRET]));
        let after = sealer.seal(None, b"x");
        opener.open(&after).expect("second key");
        opener.open(&before).expect("the old key still opens");
        for seen in [&first, &before, &after] {
            assert_eq!(reason(opener.open(seen)), Some(DropReason::Replayed));
        }
        opener.set_keys(keys(&[OTHER_SECRET]));
        assert_eq!(reason(opener.open(&first)), Some(DropReason::UnknownKey));
    }

    #[test]
    fn refusals_have_reasons() {
        let (mut sealer, mut opener) = pair();
        let mut packet = sealer.seal(None, b"x");
        packet[0] = 9;
        assert_eq!(reason(opener.open(&packet)), Some(DropReason::Version));
        assert_eq!(reason(opener.open(&[VERSION; SEAL_BYTES - 1])), Some(DropReason::Length));
        assert_eq!(reason(opener.open(&[VERSION; PACKET_BYTES_MAX + 1])), Some(DropReason::Length));
        let mut myself = Sealer::new(&keys(&[SECRET]), [2; 16]);
        assert_eq!(reason(opener.open(&myself.seal(None, b"x"))), Some(DropReason::FromMyself));
        assert_eq!(KeyRing::new(&[]).expect_err("empty"), KeyRingError::Count { count: 0 });
        assert_eq!(KeyRing::new(&[b"short"]).expect_err("short"), KeyRingError::Short { bytes: 5 });
    }

    #[test]
    fn the_memory_of_senders_is_bounded() {
        let mut opener = Opener::new(keys(&[SECRET]), [0; 16]);
        for sender in 0..=SENDERS_MAX as u128 {
            assert!(opener.accept((sender + 1).to_le_bytes(), 1));
        }
        assert_eq!(opener.senders.len(), SENDERS_MAX);
    }
}
