//! The kernel's WireGuard by generic netlink: what pods send to other machines is encrypted, and what comes from there
//! is believed only of who has the private key that belongs to a Node's public one.
//!
//! ```text
//! mst-wireguard, port 51871, this machine's private key           (a file of the network's folder, 0600)
//!   peer <key of another Node>  endpoint 192.0.2.2:51871  allowed 10.244.1.0/24
//! ```
//!
//! A Node says its public key in an annotation ([`WIREGUARD_KEY`](mainstay_logic::peers::WIREGUARD_KEY)), which nobody
//! but the Node itself and administrators may write. What machines send each other by their own addresses (pods on the
//! host's network among it) is as it was: the API's TLS protects itself.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use mainstay_logic::peers::Key;
use nix::libc;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::link::Links;
use super::netlink::{DUMP, Family, Message, Socket, attributes, find};

/// This machine's end of all tunnels.
pub const LINK: &str = "mst-wireguard";
/// Where each machine waits for the others: not WireGuard's usual port, which a network of the machine's own may have.
pub const PORT: u16 = 51871;
/// This machine's private key, in the network's folder.
const KEY_FILE: &str = "wireguard.key";

/// Generic netlink's own family, which knows the numbers of all others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_ALLOWED: u16 = 9;
const REMOVE_PEER: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_BITS: u16 = 3;
const AF_INET: u16 = 2;

/// A message's header of generic netlink.
fn header(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

/// The tunnels of this network namespace.
#[derive(Debug)]
pub struct WireGuard {
    socket: Socket,
    /// WireGuard's number in this kernel.
    family: u16,
    index: u32,
    public: Key,
}

impl WireGuard {
    /// Makes this machine's end, up, with the private key that the folder holds (made with the first). Peers that it
    /// has stay.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the kernel has no WireGuard; a key that cannot be kept; the kernel's.
    pub fn open(folder: &Path, mtu: u32) -> io::Result<Self> {
        let mut socket = Socket::open(Family::Generic)?;
        let index = Links::open()?.ensure_wireguard(LINK, mtu).map_err(without_wireguard)?;
        let family = family(&mut socket).map_err(without_wireguard)?;
        let private = private_key(folder)?;
        let mut message = Message::new(family, 0, &header(SET_DEVICE));
        message.string(DEVICE_NAME, LINK).attribute(DEVICE_PRIVATE_KEY, &private);
        message.attribute(DEVICE_PORT, &PORT.to_ne_bytes());
        socket.request(message)?;
        let mut opened = Self { socket, family, index, public: [0; 32] };
        opened.public = opened.describe(|body| find(body, DEVICE_PUBLIC_KEY)?.try_into().ok())?.unwrap_or_default();
        Ok(opened)
    }

    /// The link's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// This machine's public key.
    pub fn key(&self) -> Key {
        self.public
    }

    /// Sends what goes to a range to the machine that has this key, and believes it of that machine alone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_peer(&mut self, key: Key, machine: Ipv4Addr, (first, bits): (Ipv4Addr, u8)) -> io::Result<()> {
        self.change_peer(key, REPLACE_ALLOWED, |peer| {
            // `struct sockaddr_in`.
            let mut endpoint = [0; 16];
            endpoint[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            endpoint[2..4].copy_from_slice(&PORT.to_be_bytes());
            endpoint[4..8].copy_from_slice(&machine.octets());
            peer.attribute(PEER_ENDPOINT, &endpoint).nest(PEER_ALLOWED, |all| {
                all.nest(0, |one| {
                    one.attribute(ALLOWED_FAMILY, &AF_INET.to_ne_bytes());
                    one.attribute(ALLOWED_ADDRESS, &first.octets()).attribute(ALLOWED_BITS, &[bits]);
                });
            });
        })
    }

    /// Knows a key no more; one that is not known is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_peer(&mut self, key: Key) -> io::Result<()> {
        self.change_peer(key, REMOVE_PEER, |_| {})
    }

    fn change_peer(&mut self, key: Key, flags: u32, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut message = Message::new(self.family, 0, &header(SET_DEVICE));
        message.string(DEVICE_NAME, LINK).nest(DEVICE_PEERS, |peers| {
            peers.nest(0, |peer| {
                peer.attribute(PEER_KEY, &key).u32(PEER_FLAGS, flags);
                fill(peer);
            });
        });
        self.socket.request(message).map(drop)
    }

    /// The keys of all peers that the kernel knows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peers(&mut self) -> io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        self.describe(|body| {
            let peers = attributes(find(body, DEVICE_PEERS)?).map(|(_, peer)| peer);
            keys.extend(peers.filter_map(|peer| Key::try_from(find(peer, PEER_KEY)?).ok()));
            None::<()>
        })?;
        // A peer with many ranges is in several messages.
        keys.dedup();
        Ok(keys)
    }

    /// The first that is found in what the kernel says of the link, attributes at a time.
    fn describe<T>(&mut self, mut look: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        let mut dump = Message::new(self.family, DUMP, &header(GET_DEVICE));
        dump.string(DEVICE_NAME, LINK);
        let mut found = None;
        self.socket.each_answer(dump, |_, body| {
            let seen = look(body.get(4..).unwrap_or_default());
            found = found.take().or(seen);
        })?;
        Ok(found)
    }
}

/// WireGuard's number in this kernel.
fn family(socket: &mut Socket) -> io::Result<u16> {
    let mut message = Message::new(CONTROL, 0, &header(GET_FAMILY));
    message.string(FAMILY_NAME, "wireguard");
    let id = |body: &[u8]| find(body.get(4..)?, FAMILY_ID)?.try_into().ok().map(u16::from_ne_bytes);
    let replies = socket.request(message)?;
    replies.iter().find_map(|reply| id(&reply.body)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn without_wireguard(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOENT) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no WireGuard; a cluster of --pod-network=vxlan or routes needs none, and encrypts nothing \
             between machines",
        ),
        _ => error,
    }
}

/// The private key that the folder holds; a new one where there is none.
fn private_key(folder: &Path) -> io::Result<Key> {
    let path = folder.join(KEY_FILE);
    let mut bytes = Vec::new();
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => file.take(64).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if let Ok(key) = Key::try_from(&bytes[..]) {
        return Ok(key);
    }
    // None yet, or half of one: others learn the new one from the Node.
    let mut key = Key::default();
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the system has no random numbers"))?;
    let partial = folder.join(format!("{KEY_FILE}.new"));
    fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::tests::apart;
    use super::*;

    #[test]
    fn x6_a_private_key_is_made_once_and_roots_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let network = folder.path().join("network");
        let key = private_key(&network).expect("made");
        assert_eq!(private_key(&network).expect("read"), key);
        let mode = fs::metadata(network.join(KEY_FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(network.join(KEY_FILE), &key[..7]).expect("damaged");
        assert_ne!(private_key(&network).expect("made anew"), key);
    }

    /// A kernel without WireGuard says so; one with it holds what it was told.
    #[test]
    fn x6_the_kernel_knows_the_peers_or_it_is_said_that_it_cannot() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().to_owned();
        apart(move || {
            let mut tunnel = match WireGuard::open(&folder, 1440) {
                Ok(tunnel) => tunnel,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
                    return assert!(error.to_string().contains("--pod-network=vxlan"), "{error}");
                }
            };
            assert_ne!(tunnel.key(), [0; 32]);
            assert_eq!(WireGuard::open(&folder, 1440).expect("again").key(), tunnel.key());
            for number in 1..=3 {
                let range = (Ipv4Addr::new(10, 244, number, 0), 24);
                tunnel.set_peer([number; 32], Ipv4Addr::new(192, 0, 2, number), range).expect("set");
            }
            tunnel.remove_peer([2; 32]).expect("removed");
            tunnel.remove_peer([9; 32]).expect("never there");
            let mut peers = tunnel.peers().expect("listed");
            peers.sort_unstable();
            assert_eq!(peers, [[1; 32], [3; 32]]);
        });
    }
}
