//! The API for this machine's pods, where it listens on the loopback alone: further doors at the address of the pods'
//! bridge, which is then the endpoint of the Service `kubernetes`.
//!
//! Each is open on one link only (the bridge for pods, the loopback for what runs on this machine's own network): to
//! whoever sends packets for that address to another of this machine's links, nobody answers, whatever its routes are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};

use crate::http::{Server, accept};

/// The link that what runs on this machine itself comes by.
pub const LOOPBACK: &str = "lo";
/// Between two attempts to open a door, and two looks whether its link is still the same.
const LOOK: Duration = Duration::from_secs(3);
/// As [`LOOK`], while the address was never there: a former instance may still have it.
const SOON: Duration = Duration::from_millis(50);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A link's number; `None` where there is none of that name.
pub type LinkIndex = fn(&str) -> Option<u32>;

/// Answers at an address by one link, until the server stops. A link that somebody takes away and that is made again is
/// another one: the door is opened anew.
pub async fn serve(
    server: Arc<Server>,
    tls: Arc<rustls::ServerConfig>,
    address: SocketAddr,
    link: &'static str,
    index: LinkIndex,
) {
    let mut failed = 0_u32;
    loop {
        let is_at = index(link);
        match listen(address, link) {
            Ok(listener) => {
                failed = 0;
                let listener = Arc::new(listener);
                tokio::select! {
                    () = accept(server.clone(), listener, tls.clone()) => return,
                    () = is_another(link, is_at, index) => continue,
                }
            }
            Err(error) if failed == 20 => tracing::warn!(%address, link, %error, "pods do not reach the API"),
            Err(_) => {}
        }
        failed = failed.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(if failed < 20 { SOON } else { LOOK }) => {}
            () = server.closing() => return,
        }
    }
}

/// Waits until a link is not the one that it was.
async fn is_another(link: &str, before: Option<u32>, index: LinkIndex) {
    while index(link) == before {
        tokio::time::sleep(LOOK).await;
    }
}

fn listen(address: SocketAddr, link: &str) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
