//! Addresses for programs that need to know in advance where to listen.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// The first port that is used. Developers run their own services on lower ports.
const FIRST: u32 = 10_000;

/// Returns an address of this machine on which nobody listens, and which no other test of this
/// program gets. A port that the kernel chooses would not do: while no program listens on it, the
/// kernel may give it to any outgoing connection.
pub fn free_address() -> SocketAddr {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let chosen_by_kernel =
        fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let last = chosen_by_kernel
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(32_768);
    let ports = last.max(FIRST + 10_000) - FIRST;
    // Test programs that run at the same time begin far from each other.
    let first = process::id().wrapping_mul(1_009);
    loop {
        let next = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let address =
            SocketAddr::from(([127, 0, 0, 1], u16::try_from(FIRST + next % ports).unwrap()));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
