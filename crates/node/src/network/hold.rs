//! Whose the pod network of a network namespace is: links, routes and tables have fixed names, and each is there once.
//!
//! While a node runs, it holds a table of the packet filter that goes with its socket: only who may change this network
//! can make one, and it is there for whoever shares the network, whatever files they see. Kernels before 5.12 have no
//! such tables; so it also holds a byte of a file that only root may open, the byte numbered as its network namespace
//! is. What it made stays when it stops (V7), so the pods' bridge says whose it is (its alias, which goes with the
//! bridge).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::filter::Mark;
use super::link::Links;
use super::{NetworkError, POD_BRIDGE, is_pair, step};

/// Where the file is. Nobody but root makes anything there, so nobody else can hold what is in it.
const FOLDER: &str = "/run/mainstay";
/// Its name.
const FILE: &str = "networks";
/// What an alias of ours begins with.
const WORD: &str = "mainstay";
/// The kernel takes 255 bytes for an alias.
const LONGEST_ALIAS: usize = 250;

/// How long a node that was killed may hold it still.
const LETTING_GO: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A network namespace that is one node's until this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "the locks go with file and socket")]
pub struct Held(File, Option<Mark>);

/// Takes this thread's network namespace for one node, for as long as what it gives lives: a second node would take the
/// first one's links and tables, whatever its ports and ranges are. Needs root, as all that a node makes there.
///
/// # Errors
/// A node runs here already; [`FOLDER`] takes no file.
pub fn hold() -> Result<Held, NetworkError> {
    let file = step(format!("opening {FOLDER}/{FILE}"), open())?;
    let netns = step("looking for this network", std::fs::metadata("/proc/thread-self/ns/net"))?.ino();
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: i64::try_from(netns).unwrap_or(i64::MAX - 1),
        l_len: 1,
        l_pid: 0,
    };
    let taken = match fcntl(file.as_raw_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Mark::take(),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    };
    let taken = taken.map(|mark| Held(file, mark)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let whose = Links::open().and_then(|mut links| Owner::of(&mut links)).ok().flatten();
            let whose = whose.map(|owner| format!(", that of {}", owner.folder)).unwrap_or_default();
            let why = format!("another node runs in this network already{whose}; stop that one first");
            io::Error::new(io::ErrorKind::AddrInUse, why)
        }
        _ => error,
    });
    step("taking the network for this node", taken)
}

/// As [`hold`], when a node that was killed a moment ago may hold it still: the kernel ends its calls first.
pub(super) fn hold_soon() -> Result<Held, NetworkError> {
    let until = Instant::now() + LETTING_GO;
    loop {
        match hold() {
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(LOOK);
            }
            done => return done,
        }
    }
}

fn open() -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    let path = Path::new(FOLDER).join(FILE);
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if options.metadata()?.uid() != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not root's"));
    }
    Ok(options)
}

/// Whose the pods' bridge is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which data folder's machine, as `join::machine` says.
    pub machine: String,
    /// Where its leases were then.
    pub folder: String,
}

impl Owner {
    /// As its machine, of a folder of leases.
    pub fn new(machine: &str, folder: &Path) -> Self {
        let mut folder = folder.display().to_string();
        let room = LONGEST_ALIAS.saturating_sub(WORD.len() + machine.len() + 2);
        if folder.len() > room {
            let cut = (0..=room).rev().find(|at| folder.is_char_boundary(*at)).unwrap_or(0);
            folder.truncate(cut);
        }
        Self { machine: machine.to_owned(), folder }
    }

    /// Whom the pods' bridge names; none where there is no bridge, or one of an older version.
    pub(super) fn of(links: &mut Links) -> io::Result<Option<Self>> {
        let alias = links.alias(POD_BRIDGE)?.unwrap_or_default();
        let mut words = alias.splitn(3, ' ');
        let (Some(WORD), Some(machine), Some(folder)) = (words.next(), words.next(), words.next()) else {
            return Ok(None);
        };
        Ok(Some(Self { machine: machine.to_owned(), folder: folder.to_owned() }))
    }

    /// Has the pods' bridge name this one.
    pub(super) fn note(&self, links: &mut Links, bridge: u32) -> io::Result<()> {
        links.set_alias(bridge, &format!("{WORD} {} {}", self.machine, self.folder))
    }

    /// Whether what the other one made is this one's: the folder was moved, or begun anew.
    pub fn is_same(&self, other: &Self) -> bool {
        self.machine == other.machine || self.folder == other.folder
    }

    /// Whether pods may be there that another owner's containers are in, so that nobody but it may take their network.
    pub(super) fn has_pods(&self, links: &mut Links) -> io::Result<bool> {
        Ok(Path::new(&self.folder).exists() && links.names()?.iter().any(|name| is_pair(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_known_by_its_machine_or_by_its_folder() {
        let long = format!("/{}", "ä".repeat(300));
        let [a, moved, anew, other] = [("m1", "/a"), ("m1", "/b"), ("m2", "/a"), ("m2", &long)]
            .map(|(machine, at)| Owner::new(machine, Path::new(at)));
        assert!(a.is_same(&moved) && a.is_same(&anew) && !a.is_same(&other));
        assert!(other.folder.len() < LONGEST_ALIAS && other.folder.starts_with("/ää"));
    }
}
