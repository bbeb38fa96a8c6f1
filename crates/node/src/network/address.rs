//! Which pod has which address: one small file per address, named after it, so that a lease is taken and given
//! back by one atomic file operation and survives a crash (V7, N3).

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The file that names the address that was given last.
const LAST: &str = "last";

/// A range of IPv4 addresses in prefix notation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    /// The first address of the range.
    pub first: Ipv4Addr,
    /// Bits that are fixed.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `10.244.0.0/24`; bits below the prefix are cleared.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        let address: Ipv4Addr = address.parse().ok()?;
        Some(Self { first: Ipv4Addr::from(u32::from(address) & Self::mask(prefix)), prefix })
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }

    /// The netmask.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from(Self::mask(self.prefix))
    }

    /// How many addresses there are (2^32 is given as `u32::MAX`).
    pub fn size(self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// The address at a place.
    pub fn at(self, index: u32) -> Option<Ipv4Addr> {
        (index < self.size()).then(|| Ipv4Addr::from(u32::from(self.first).wrapping_add(index)))
    }

    /// Whether another range is inside this one.
    pub fn covers(self, other: Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.first)
    }

    /// Whether an address is in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & Self::mask(self.prefix) == u32::from(self.first)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// Whether pods hold addresses by the leases of a folder, which may be missing. What cannot be read may be one.
pub fn has_leases(folder: &std::path::Path) -> bool {
    let is_lease = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<Ipv4Addr>().is_ok());
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.any(|entry| entry.map_or(true, |entry| is_lease(&entry.file_name()))),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The leases of a node's pod range. The range's first address names the network, the second is the gateway, the
/// last is the broadcast address: none of them is given away.
#[derive(Debug)]
pub struct Leases {
    range: Cidr,
    folder: PathBuf,
    /// Where the search for a free address starts: behind the last one given, also before a restart, so that an
    /// address rests as long as possible before another pod has it.
    next: u32,
}

impl Leases {
    /// Opens (makes) the folder of leases.
    pub fn open(range: Cidr, folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.metadata()?.len() == 0 {
                // A crash between making the file and writing the holder: nobody was told of this address.
                fs::remove_file(entry.path())?;
            }
        }
        let last = fs::read_to_string(folder.join(LAST)).ok().and_then(|last| last.parse::<Ipv4Addr>().ok());
        let last = last.filter(|last| range.contains(*last));
        let next = last.map_or(2, |last| u32::from(last) - u32::from(range.first) + 1);
        Ok(Self { range, folder, next })
    }

    /// The address of a pod: the one it has, or a free one.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the range is used up.
    pub fn take(&mut self, pod_uid: &str) -> io::Result<Ipv4Addr> {
        if let Some(address) = self.held_by(pod_uid)? {
            return Ok(address);
        }
        let usable = self.range.size().saturating_sub(3);
        for step in 0..usable {
            let index = 2 + (self.next.saturating_sub(2).wrapping_add(step)) % usable;
            let Some(address) = self.range.at(index) else { continue };
            let path = self.folder.join(address.to_string());
            match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(mut file) => {
                    // First of all: what is not noted would be given again soon. (A disk without room has none for the
                    // lease either.)
                    let written = fs::write(self.folder.join(LAST), address.to_string());
                    if let Err(error) = written.and_then(|()| file.write_all(pod_uid.as_bytes())) {
                        fs::remove_file(&path)?;
                        return Err(error);
                    }
                    self.next = index + 1;
                    return Ok(address);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("no free address in {}", self.range)))
    }

    /// The address that a pod holds.
    pub fn held_by(&self, pod_uid: &str) -> io::Result<Option<Ipv4Addr>> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_to_string(entry.path()).is_ok_and(|holder| holder == pod_uid) {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// Gives back what a pod holds, and says which address that was.
    pub fn give_back(&mut self, pod_uid: &str) -> io::Result<Option<Ipv4Addr>> {
        let held = self.held_by(pod_uid)?;
        if let Some(address) = held {
            fs::remove_file(self.folder.join(address.to_string()))?;
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_kept_unique_and_rest_before_reuse() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let range = Cidr::parse("10.1.2.0/29").ok_or(io::ErrorKind::InvalidInput)?;
        let mut leases = Leases::open(range, folder.path().to_owned())?;
        let first = leases.take("a")?;
        assert_eq!(first, Ipv4Addr::new(10, 1, 2, 2));
        assert_eq!(leases.take("a")?, first, "taking again is the same lease");
        leases.give_back("a")?;
        assert_ne!(leases.take("b")?, first, "an address just given back is the last to be given again (N3)");
        let mut leases = Leases::open(range, folder.path().to_owned())?;
        assert_eq!(leases.take("b")?, Ipv4Addr::new(10, 1, 2, 3), "leases survive a restart");
        assert_eq!(leases.take("c")?, Ipv4Addr::new(10, 1, 2, 4));
        leases.give_back("c")?;
        let mut leases = Leases::open(range, folder.path().to_owned())?;
        assert_eq!(leases.take("c")?, Ipv4Addr::new(10, 1, 2, 5), "it rests, also where nobody holds it (N3)");
        for pod in ["d", "e", "f"] {
            leases.take(pod)?;
        }
        assert_eq!(leases.take("g").map_err(|error| error.kind()), Err(io::ErrorKind::AddrNotAvailable));
        Ok(())
    }

    #[test]
    fn ranges() {
        assert_eq!(Cidr::parse("10.96.1.7/16").map(|range| range.to_string()).as_deref(), Some("10.96.0.0/16"));
        assert_eq!(Cidr::parse("10.0.0.0/33"), None);
        assert!(Cidr::parse("0.0.0.0/0").is_some_and(|all| all.contains(Ipv4Addr::new(8, 8, 8, 8))));
    }
}
