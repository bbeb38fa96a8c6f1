//! Connecting to a server, from a port that only root can have where one is free: most servers trust no other.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// The ports that kernels use for this.
const FIRST: u16 = 665;
const LAST: u16 = 1023;
/// Ports that are tried.
const TRIES: u16 = 32;

/// Connects within `limit`. What was not yet sent when the connection is closed is never sent: whoever closes it has
/// given up on it (a call is over its time, or the mount was cut off), or nothing is left (S13).
pub fn connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = std::process::id() as u16;
    for _ in 0..TRIES {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(spread) % (LAST - FIRST + 1);
        match from_port(address, port, limit) {
            // Somebody has it, or it was used for this server a moment ago.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            done => return done,
        }
    }
    let stream = TcpStream::connect_timeout(&address, limit)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

fn from_port(address: SocketAddr, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // A port whose last connection still lingers is good for another server.
    socket.set_reuse_address(true)?;
    let any =
        if address.is_ipv4() { SocketAddr::from(([0, 0, 0, 0], port)) } else { SocketAddr::from(([0u16; 8], port)) };
    socket.bind(&any.into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&address.into(), limit)?;
    Ok(socket.into())
}
