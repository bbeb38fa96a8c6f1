//! An NFSv3 server over TCP, with the mount protocol and a port mapper's answers on the same port (and on 111 where
//! that is free), so that ordinary clients mount its exports.
//!
//! Stateless as the protocol wants it: a file handle holds the kernel's own handle of the file (inode and generation),
//! so it outlives renames and restarts of the server; it is sealed with a key of this server, so that nobody can make
//! one up for a file outside of an export (X3). A thread takes on the asking user's identity for each call;
//! permissions are the kernel's to check.
//!
//! - [`export`]: what is exported to whom
//! - [`handle`]: file handles
//! - [`identity`]: acting as somebody else
//! - [`slots`]: how many connections there are, and whose
//! - [`room`]: how much memory calls and answers have, and whose
//! - [`connection`]: calls of one client, carried out side by side
//! - [`call`]: from a call to its procedure
//! - [`file`], [`name`], [`listing`]: the procedures on files, names and folders
//! - [`mount`]: the mount protocol and the port mapper
//! - [`verifier`]: how clients learn that data may be lost
//! - [`limits`], [`sizes`]: folders with a size of their own, and how a provisioner asks for one

mod call;
mod connection;
pub mod export;
mod file;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
mod handle;
mod identity;
pub mod limits;
mod listing;
mod mount;
mod name;
mod room;
mod sizes;
mod slots;
#[cfg(test)]
mod tests;
mod verifier;

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use export::ExportOptions;

use super::protocol::PORTMAP_PORT;
use call::Peer;
use connection::{Connection, Moment};
use export::Export;
use limits::Limits;
use room::Room;
use slots::{Slot, Slots};
use verifier::Verifier;

/// Connections at one time; beyond, whoever has most loses one.
const MAX_CONNECTIONS: usize = 256;
/// Threads beside those, for clients that have several calls under way.
const MAX_HELPERS: usize = 64;
/// Memory for large calls and answers (bytes); each address gets its share, and a little more where there are many.
const MAX_ROOM: usize = 64 << 20;
/// Calls of one connection that are carried out side by side.
const MAX_SIDE_BY_SIDE: usize = 8;
/// How long the rest of a record, and the taking of a reply, may keep a thread.
const RECORD_TIMEOUT: Duration = Duration::from_secs(60);
/// A thread's stack (bytes): the procedures keep their buffers on the heap.
const STACK: usize = 256 << 10;
/// The longest datagram that the port mapper reads (bytes).
const MAX_DATAGRAM: usize = 2048;

/// What a server is made with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub exports: Vec<ExportOptions>,
    pub listen: SocketAddr,
    /// Answer as the port mapper on port 111 too, where nobody does.
    pub portmapper: bool,
    /// Where the key that seals file handles is kept, 0600. Without it, handles of before a restart are stale.
    pub state_dir: PathBuf,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("export {path}: {source}")]
    Export { path: PathBuf, source: io::Error },
    #[error("two exports are {0}")]
    Twice(PathBuf),
    #[error("the state folder {path}: {source}")]
    State { path: PathBuf, source: io::Error },
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A server.
pub struct Server {
    exports: Vec<Export>,
    limits: Limits,
    seal: ring::hmac::Key,
    verifier: Verifier,
    port: u16,
    connections: Arc<Slots>,
    room: Arc<Room>,
    /// Threads beside the first of each connection.
    helpers: AtomicUsize,
}

/// A server that listens.
pub struct Listening {
    server: Arc<Server>,
    listener: TcpListener,
    portmapper: Option<(TcpListener, UdpSocket)>,
    pub address: SocketAddr,
}

/// Opens the exports and the ports.
///
/// # Errors
/// Which export or port cannot be opened, and why.
pub fn listen(config: &ServerConfig) -> Result<Listening, StartError> {
    let mut exports: Vec<Export> = Vec::new();
    for options in &config.exports {
        let export =
            Export::open(options).map_err(|source| StartError::Export { path: options.path.clone(), source })?;
        if exports.iter().any(|other| other.id == export.id) {
            return Err(StartError::Twice(export.path));
        }
        exports.push(export);
    }
    let key = key(&config.state_dir).map_err(|source| StartError::State { path: config.state_dir.clone(), source })?;
    let limits = Limits::open(&config.state_dir, &exports);
    let limits = limits.map_err(|source| StartError::State { path: config.state_dir.clone(), source })?;
    let failed = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let portmapper = if config.portmapper { portmapper(address) } else { None };
    let server = Arc::new(Server::new(exports, limits, &key, address.port()));
    Ok(Listening { server, listener, portmapper, address })
}

/// Port 111, or `None` where somebody has it (an rpcbind, which answers for itself: clients then name our port).
fn portmapper(address: SocketAddr) -> Option<(TcpListener, UdpSocket)> {
    let address = SocketAddr::new(address.ip(), PORTMAP_PORT);
    TcpListener::bind(address).and_then(|tcp| Ok((tcp, UdpSocket::bind(address)?))).ok()
}

/// The key that seals handles, made on first use.
fn key(dir: &Path) -> io::Result<[u8; 32]> {
    mainstay_runtime::safe_path::make_private_dir(dir)?;
    let path = dir.join("handle-key");
    match std::fs::read(&path) {
        Ok(bytes) => {
            return bytes
                .try_into()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "handle-key is not 32 bytes"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; 32];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut key).map_err(|_| io::Error::other("the system has no randomness"))?;
    let partial = dir.join("handle-key.partial");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(partial, path)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(key)
}

impl Listening {
    /// Whether port 111 answers too.
    pub fn has_portmapper(&self) -> bool {
        self.portmapper.is_some()
    }

    /// Serves until the process ends.
    pub fn serve(self) -> io::Result<()> {
        if let Some((tcp, udp)) = self.portmapper {
            let (for_tcp, for_udp) = (self.server.clone(), self.server.clone());
            thread("nfs-portmap", move || accept(&for_tcp, &tcp))?;
            thread("nfs-portmap-udp", move || datagrams(&for_udp, &udp))?;
        }
        let (counting, noting) = (self.server.clone(), self.server.clone());
        thread("nfs-count", move || counting.limits.count(&counting.exports))?;
        thread("nfs-note", move || noting.limits.note())?;
        accept(&self.server, &self.listener);
        Ok(())
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work).map(|_| ())
}

fn accept(server: &Arc<Server>, listener: &TcpListener) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: wait for some to come back rather than spin.
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let slot = match stream.try_clone() {
            Ok(stream) => server.connections.take(peer.ip().to_canonical(), stream),
            Err(error) => {
                tracing::warn!(%peer, %error, "a connection could not be kept");
                continue;
            }
        };
        let served = server.clone();
        let work = move || {
            if let Err(error) = connection(&served, stream, peer, slot) {
                tracing::debug!(%peer, %error, "a connection ended");
            }
        };
        if let Err(error) = thread("nfs-connection", work) {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}

fn connection(server: &Arc<Server>, stream: TcpStream, peer: SocketAddr, slot: Slot) -> io::Result<()> {
    stream.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
    stream.set_write_timeout(Some(RECORD_TIMEOUT))?;
    let is_here = stream.local_addr()?.ip().to_canonical() == peer.ip().to_canonical();
    let client = Peer { address: peer.ip(), port: peer.port(), is_here };
    let hears = move |moment| match moment {
        Moment::Called => slot.heard(),
        Moment::Answered => slot.answered(),
    };
    let connection = Connection::new(client, stream.try_clone()?, stream.try_clone()?, hears);
    work(server, &Arc::new(connection), &Arc::new(stream), false)
}

/// A client's connection.
type Tcp = Connection<TcpStream, TcpStream>;

/// Works on a connection, and gets help where the client has more calls under way.
fn work(server: &Arc<Server>, connection: &Arc<Tcp>, stream: &Arc<TcpStream>, helps: bool) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, recv};
    identity::own_thread()?;
    let more = || {
        recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0)
    };
    let help = || {
        if Arc::strong_count(connection) > MAX_SIDE_BY_SIDE || !more() {
            return;
        }
        if server.helpers.fetch_add(1, Ordering::Relaxed) >= MAX_HELPERS {
            server.helpers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (helped, connection, stream) = (server.clone(), connection.clone(), stream.clone());
        let helping = move || {
            let _ended = work(&helped, &connection, &stream, true);
            helped.helpers.fetch_sub(1, Ordering::Relaxed);
        };
        if thread("nfs-helper", helping).is_err() {
            server.helpers.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let done = connection.work(server, helps, |timeout| stream.set_read_timeout(timeout), help);
    if done.is_err() {
        // Whoever waits for the next call waits no longer.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    done
}

fn datagrams(server: &Server, socket: &UdpSocket) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let call = buffer.get(..length).unwrap_or_default();
        if let Some(reply) = call::answer_datagram(server, peer.ip(), call) {
            // A datagram has no record header. One that gets lost is asked for again.
            let _ = socket.send_to(reply.0.get(4..).unwrap_or_default(), peer);
        }
    }
}

impl Server {
    fn new(exports: Vec<Export>, limits: Limits, key: &[u8; 32], port: u16) -> Self {
        Self {
            exports,
            limits,
            seal: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key),
            verifier: Verifier::new(),
            port,
            connections: Arc::new(Slots::new(MAX_CONNECTIONS)),
            room: Arc::new(Room::new(MAX_ROOM)),
            helpers: AtomicUsize::new(0),
        }
    }
}

/// The address of a client, an IPv4 one also where it came in by an IPv6 socket.
fn canonical(address: IpAddr) -> Option<Ipv4Addr> {
    match address.to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
