//! Ports that a node can have back after it was killed.
//!
//! The kernel hands out ports from 32768 upwards to outgoing connections, so a port from there may be
//! taken while its node is down. These are from below.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Ports on 127.0.0.1 that are free for TCP and UDP, and that this process does not hand out again.
///
/// # Panics
/// When there are none.
pub fn free_ports(count: usize) -> Vec<u16> {
    // Test processes that run at the same time begin in different places.
    let start = std::process::id().wrapping_mul(97);
    let candidates = (0..COUNT).map(|_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        u16::try_from(FIRST + start.wrapping_add(step) % COUNT).expect("the range ends at 30000")
    });
    let is_free = |port: &u16| {
        TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok()
    };
    let ports: Vec<u16> = candidates.filter(is_free).take(count).collect();
    assert_eq!(ports.len(), count, "no free ports on 127.0.0.1");
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_distinct() {
        let mut ports = free_ports(10);
        ports.extend(free_ports(10));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        assert!(ports.iter().all(|port| (10_000..30_000).contains(port)));
    }
}
