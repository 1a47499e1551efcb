//! Ports for servers that must be told theirs beforehand.
//!
//! They lie below the range that Linux gives to clients and to port 0 (32768 and up), so that no connection that is
//! opened meanwhile takes them; each is given out once a process, and was free when it was.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// An address of loopback with a free port.
///
/// # Errors
/// When none is free.
pub fn free_address() -> Result<SocketAddr> {
    // Two runs at once start at different places.
    let start = u16::try_from(std::process::id() % 97).unwrap_or_default() * 113;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(offset)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + COUNT)
}
