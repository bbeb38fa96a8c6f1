//! What an instance notes in its data folder, so that `mainstay down` finds it again: however the folder is spelled,
//! and from whatever network namespace it is run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_node::join::{self, JoinError};
use nix::sched::{CloneFlags, setns};

/// The file's name in the data folder: `<boot id> <network namespace's inode>`.
const FILE: &str = "namespace";
/// Where `ip netns` keeps namespaces that have names.
const NAMED: &str = "/run/netns";

/// The folder by its one true name: absolute, without links. Parts that are not there yet are taken as they are.
///
/// # Errors
/// The working directory is gone, or a part of the path is no folder or not readable.
pub fn canonical(folder: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(folder)?;
    let mut missing = Vec::new();
    let mut there = absolute.as_path();
    loop {
        match there.canonicalize() {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, part| path.join(part))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else { return Err(error) };
                missing.push(name.to_owned());
                there = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How long whoever starts waits for one that was killed: the kernel may take a moment to end its calls.
const HELD: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// Holds a data folder for this process, until the file is dropped: one instance at a time uses it, or clears up after
/// another.
///
/// # Errors
/// Somebody else has it, or it takes no file.
pub fn hold(data_dir: &Path) -> Result<File, JoinError> {
    let until = Instant::now() + HELD;
    loop {
        match join::lock(data_dir) {
            Err(JoinError::InUse(_)) if Instant::now() < until => std::thread::sleep(LOOK),
            held => return held,
        }
    }
}

/// Whether an instance ever worked on this folder: a server notes its cluster, a node its machine.
pub fn was_here(data_dir: &Path) -> bool {
    data_dir.join(mainstay_server::identity::FILE).exists() || data_dir.join("node/machine").exists()
}

/// Notes in which network namespace this process makes links and rules.
///
/// # Errors
/// The data folder takes no file, or /proc is not mounted.
pub fn remember(data_dir: &Path) -> io::Result<()> {
    let note = format!("{} {}\n", boot()?, inode(Path::new("/proc/thread-self/ns/net"))?);
    let file = data_dir.join(FILE);
    if fs::read_to_string(&file).is_ok_and(|old| old == note) {
        return Ok(());
    }
    fs::write(file, note)
}

/// Where an instance's links and rules are.
#[derive(Debug, PartialEq, Eq)]
pub enum Namespace {
    /// In this thread's network namespace by now, or nowhere: nothing was noted, or the machine was started anew.
    Here,
    /// In one that no process of this machine is in and that has no name.
    Lost { inode: u64 },
}

/// Puts this thread, and those that it starts, into the network namespace that the instance ran in.
///
/// # Errors
/// It is there, but cannot be entered.
pub fn enter(data_dir: &Path) -> io::Result<Namespace> {
    let Ok(note) = fs::read_to_string(data_dir.join(FILE)) else { return Ok(Namespace::Here) };
    let mut words = note.split_whitespace();
    let (Some(then), Some(Ok(wanted))) = (words.next(), words.next().map(str::parse::<u64>)) else {
        return Ok(Namespace::Here);
    };
    if then != boot()? || wanted == inode(Path::new("/proc/thread-self/ns/net"))? {
        return Ok(Namespace::Here);
    }
    match find(wanted) {
        Some(file) => {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            Ok(Namespace::Here)
        }
        None => Ok(Namespace::Lost { inode: wanted }),
    }
}

/// A file of the namespace: of any process that is in it, or one by which it was given a name.
fn find(wanted: u64) -> Option<File> {
    let of_processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
    of_processes
        .chain(named)
        .filter(|path| inode(path).is_ok_and(|found| found == wanted))
        .find_map(|path| File::open(path).ok().filter(|file| file.metadata().is_ok_and(|file| file.ino() == wanted)))
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_name_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir(real.join("data")).unwrap();
        std::os::unix::fs::symlink("data", real.join("link")).unwrap();
        for spelled in ["data", "link", "data/../link/.", "link/"] {
            assert_eq!(canonical(&real.join(spelled)).unwrap(), real.join("data"), "{spelled}");
        }
        assert_eq!(canonical(&real.join("link/new/er")).unwrap(), real.join("data/new/er"));
        assert!(canonical(Path::new("x")).unwrap().is_absolute());
    }

    #[test]
    fn a_folder_without_our_notes_is_a_strangers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pods/precious")).unwrap();
        assert!(!was_here(dir.path()));
        join::machine(dir.path()).unwrap();
        assert!(was_here(dir.path()));
        let held = hold(dir.path()).unwrap();
        assert!(matches!(join::lock(dir.path()), Err(JoinError::InUse(_))));
        drop(held);
        hold(dir.path()).unwrap();
    }

    #[test]
    fn what_is_noted_is_found_from_another_namespace() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(enter(dir.path()).unwrap(), Namespace::Here, "nothing was noted");
        remember(dir.path()).unwrap();
        let own = || inode(Path::new("/proc/thread-self/ns/net")).unwrap();
        let there = own();
        let path = dir.path().to_owned();
        // Another thread of this process stays in the first namespace; as root only.
        let elsewhere = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert_ne!(own(), there);
            assert_eq!(find(there).map(|file| file.metadata().unwrap().ino()), Some(there));
            fs::write(path.join(FILE), format!("{} 1\n", boot().unwrap())).unwrap();
            assert_eq!(enter(&path).unwrap(), Namespace::Lost { inode: 1 });
            fs::write(path.join(FILE), "another-boot 1\n").unwrap();
            assert_eq!(enter(&path).unwrap(), Namespace::Here);
        });
        elsewhere.join().unwrap();
    }
}
