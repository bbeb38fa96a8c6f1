//! What is exported, to whom, and who one is taken to be.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::call::Peer;
use super::identity::Identity;
use crate::rpc::Credentials;
use ipnet::Ipv4Net;
use mainstay_runtime::kernel::FileHandle;
use mainstay_runtime::safe_path;

/// The uid and gid of nobody.
const NOBODY: u32 = 65_534;

/// Whose identity a client may not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    /// Root is nobody: the default.
    #[default]
    Root,
    /// Everybody is nobody.
    All,
    None,
}

/// An export as it is typed: `PATH[:ro,no_root_squash,all_squash,clients=CIDR,provisioners=CIDR…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    pub path: PathBuf,
    pub read_only: bool,
    pub squash: Squash,
    /// Empty: everybody.
    pub clients: Vec<Ipv4Net>,
    /// Machines whose root may give folders a size, beside this one.
    pub provisioners: Vec<Ipv4Net>,
}

impl FromStr for ExportOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/') {
            return Err(format!("export {path:?} is not an absolute path"));
        }
        let mut export = Self {
            path: path.into(),
            read_only: false,
            squash: Squash::Root,
            clients: Vec::new(),
            provisioners: Vec::new(),
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                None if option == "ro" => export.read_only = true,
                None if option == "rw" => export.read_only = false,
                None if option == "root_squash" => export.squash = Squash::Root,
                None if option == "no_root_squash" => export.squash = Squash::None,
                None if option == "all_squash" => export.squash = Squash::All,
                Some(("clients", range)) => export.clients.push(parse_range(range)?),
                Some(("provisioners", range)) => export.provisioners.push(parse_range(range)?),
                _ => {
                    return Err(format!(
                        "unknown option {option:?} of export {path}; there are ro, rw, root_squash, no_root_squash, \
                            all_squash, \
                         clients=CIDR and provisioners=CIDR"
                    ));
                }
            }
        }
        Ok(export)
    }
}

fn parse_range(range: &str) -> Result<Ipv4Net, String> {
    let whole = if range.contains('/') { range.to_owned() } else { format!("{range}/32") };
    whole.parse().map_err(|_| format!("{range:?} is not an IPv4 address or range"))
}

/// A folder that is exported.
pub struct Export {
    /// From the path alone, so that handles outlive restarts and other exports.
    pub id: u32,
    pub path: PathBuf,
    pub root: OwnedFd,
    pub device: u64,
    pub read_only: bool,
    squash: Squash,
    clients: Vec<Ipv4Net>,
    provisioners: Vec<Ipv4Net>,
}

impl Export {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is not a folder, or its file system has no file handles.
    pub fn open(options: &ExportOptions) -> io::Result<Self> {
        let path = options.path.canonicalize()?;
        let root = safe_path::open_root(&path)?;
        let stat = nix::sys::stat::fstat(root.as_raw_fd())?;
        FileHandle::of(&root).map_err(|error| {
            io::Error::new(error.kind(), format!("its file system has no file handles to export by ({error})"))
        })?;
        let hash: [u8; 32] = Sha256::digest(path.as_os_str().as_encoded_bytes()).into();
        let id = hash.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let (clients, provisioners) = (options.clients.clone(), options.provisioners.clone());
        let (read_only, squash) = (options.read_only, options.squash);
        Ok(Self { id, path, root, device: stat.st_dev, read_only, squash, clients, provisioners })
    }

    /// Whether a client of this address may have it.
    pub fn admits(&self, client: IpAddr) -> bool {
        let inside = |address| self.clients.iter().any(|range| range.contains(&address));
        self.clients.is_empty() || super::canonical(client).is_some_and(inside)
    }

    /// Whether a client may give folders a size: root of this machine, or of one that is named. A pod has an address of
    /// its own.
    pub fn trusts(&self, client: Peer) -> bool {
        let inside = |address| self.provisioners.iter().any(|range| range.contains(&address));
        client.port < 1024 && (client.is_here || super::canonical(client.address).is_some_and(inside))
    }

    /// Who a client's user is here.
    pub fn identity(&self, credentials: Option<&Credentials>) -> Identity {
        let nobody = Identity { uid: NOBODY, gid: NOBODY, groups: Vec::new() };
        let Some(asked) = credentials.filter(|_| self.squash != Squash::All) else { return nobody };
        let squashed = |id: u32| if id == 0 && self.squash == Squash::Root { NOBODY } else { id };
        if asked.uid == 0 && self.squash == Squash::Root {
            return nobody;
        }
        Identity {
            uid: asked.uid,
            gid: squashed(asked.gid),
            groups: asked.groups.iter().copied().map(squashed).collect(),
        }
    }

    /// A path that a client asks to mount, relative to this export; `None` where it is not in it.
    pub fn relative<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        path.strip_prefix(&self.path).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_as_they_are_typed() {
        let export: ExportOptions =
            "/exports/a:ro,no_root_squash,clients=10.0.0.0/8,clients=192.0.2.7".parse().unwrap();
        assert_eq!((export.path.to_str(), export.read_only, export.squash), (Some("/exports/a"), true, Squash::None));
        assert_eq!(export.clients.len(), 2);
        assert!("/a".parse::<ExportOptions>().is_ok_and(|export| export.squash == Squash::Root && !export.read_only));
        for bad in ["", "exports", "/a:nonsense", "/a:clients=x"] {
            assert!(bad.parse::<ExportOptions>().is_err(), "{bad}");
        }
    }

    #[test]
    fn root_is_nobody_unless_it_is_said_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let export =
            |options: &str| Export::open(&format!("{}:{options}", dir.path().display()).parse().unwrap()).unwrap();
        let root = Credentials { uid: 0, gid: 0, groups: vec![0, 5] };
        let user = Credentials { uid: 7, gid: 0, groups: vec![0, 5] };
        assert_eq!(export("").identity(Some(&root)).uid, NOBODY);
        assert_eq!(export("").identity(Some(&user)), Identity { uid: 7, gid: NOBODY, groups: vec![NOBODY, 5] });
        assert_eq!(export("no_root_squash").identity(Some(&root)).groups, [0, 5]);
        assert_eq!(export("all_squash").identity(Some(&user)).uid, NOBODY);
        assert_eq!(export("no_root_squash").identity(None).uid, NOBODY);
        assert!(export("clients=10.1.0.0/16").admits("10.1.2.3".parse().unwrap()));
        assert!(export("clients=10.1.0.0/16").admits("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!export("clients=10.1.0.0/16").admits("10.2.2.3".parse().unwrap()));
        assert!(!export("clients=10.1.0.0/16").admits("::1".parse().unwrap()));
    }
}
