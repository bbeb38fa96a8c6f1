//! What an instance notes in its data folder, so that `mainstay down` finds it again: however the folder is spelled,
//! and from whatever network namespace it is run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
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

/// Folders that a node makes, and clears away with all that is in them.
const CLEARED: [&str; 4] = ["containers", "logs", "network", "pods"];
/// What a person, or a command before the first start, puts into a data folder; and what a new file system has.
const BROUGHT: [&str; 6] = ["images", "lost+found", "node", "pki", "seal.key", "store"];
/// May be entered or read by others than its owner; may be written by them.
const OTHERS: u32 = 0o077;
const WRITABLE: u32 = 0o022;

/// Looks whether a folder may be a data folder, before anything is made in it: it is closed to others, and what is in
/// it is taken for ours and removed by its name.
///
/// # Errors
/// It is somebody's: others may write there, or it has files and none of ours.
pub fn take(data_dir: &Path) -> Result<()> {
    if was_here(data_dir) {
        return Ok(());
    }
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| data_dir.display().to_string()),
    };
    let mode = fs::metadata(data_dir).with_context(|| data_dir.display().to_string())?.mode();
    if mode & WRITABLE != 0 {
        bail!(
            "{} is a folder that others may write; close it to them (chmod go-w), or choose another --data-dir",
            data_dir.display()
        );
    }
    for entry in entries {
        let name = entry.with_context(|| data_dir.display().to_string())?.file_name();
        let name = name.to_string_lossy();
        if CLEARED.contains(&&*name) || (mode & OTHERS != 0 && !BROUGHT.contains(&&*name)) {
            bail!(
                "{} has {name}, and no mainstay has worked there; choose an empty folder as --data-dir",
                data_dir.display()
            );
        }
    }
    Ok(())
}

/// Which process the number in `pid` is: `<process id> <boot id> <when it started, in ticks since boot>`. Beside the
/// number itself, which people's scripts hand to `kill` as it is.
const STARTED: &str = "pid.started";

/// Notes which process works on the folder.
///
/// # Errors
/// The data folder takes no file, or /proc is not mounted.
pub fn note_process(data_dir: &Path) -> io::Result<()> {
    let pid = std::process::id();
    fs::write(data_dir.join(STARTED), format!("{pid} {} {}\n", boot()?, started(pid).unwrap_or_default()))?;
    fs::write(crate::up::pid_file(data_dir), format!("{pid}\n"))
}

/// The process that works on a folder: the one that is noted, if it is that one still, and the folder is in use. Its
/// number may be another program's by now; what an older version noted is a number alone, so that program must at
/// least be one of ours.
pub fn process(data_dir: &Path) -> Option<u32> {
    if !matches!(join::lock(data_dir), Err(JoinError::InUse(_))) {
        return None;
    }
    let pid: u32 = fs::read_to_string(crate::up::pid_file(data_dir)).ok()?.trim().parse().ok()?;
    let is_same = match fs::read_to_string(data_dir.join(STARTED)) {
        Ok(note) => {
            let words: Vec<&str> = note.split_whitespace().collect();
            words == [&*pid.to_string(), &*boot().ok()?, &*started(pid)?]
        }
        Err(_) => {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            // One that was replaced since is `mainstay (deleted)`.
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let is_ours = exe.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mainstay"));
            is_ours && words.get(1).is_some_and(|word| [&b"up"[..], b"server", b"join"].contains(word))
        }
    };
    is_same.then_some(pid)
}

/// When a process started, in ticks since boot.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have anything in it, also parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// Says that a folder is the wrong one, where it has not what a command needs.
///
/// # Errors
/// It is not there.
pub fn there_is(what: &str, data_dir: &Path, is_there: bool) -> Result<()> {
    ensure!(is_there, "there is no {what} in {}; was it started with another --data-dir?", data_dir.display());
    Ok(())
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
    use mainstay_cli::args::{AdminArgs, ImageCommand, StoreArgs, StoreCommand};

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
    fn a_command_in_the_wrong_folder_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().to_owned();
        let told = |done: Result<()>| {
            let told = done.unwrap_err().to_string();
            assert!(told.ends_with("; was it started with another --data-dir?"), "{told}");
        };
        let store = Box::new(StoreArgs {
            store: "embedded".to_owned(),
            etcd_cafile: None,
            etcd_certfile: None,
            etcd_keyfile: None,
            etcd_prefix: String::new(),
        });
        told(crate::store::run(&StoreCommand::Check { data_dir: data_dir.clone() }));
        let file = data_dir.join("export");
        told(crate::store::run(&StoreCommand::Export { data_dir: data_dir.clone(), store, file: file.clone() }));
        assert!(!file.exists());
        told(crate::image::run(&ImageCommand::Ls { data_dir: data_dir.clone() }));
        let admin = AdminArgs { data_dir: data_dir.clone(), kubeconfig: None };
        told(crate::token::client(&admin).map(drop));
        // Who names a kubeconfig needs no folder.
        let named = AdminArgs { kubeconfig: Some(file), ..admin };
        assert!(crate::token::client(&named).map(drop).unwrap_err().to_string().contains("reading kubeconfig"));
    }

    #[test]
    fn a11_a_folder_that_is_somebodys_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, mode: u32, files: &[&str]| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            files.iter().for_each(|file| fs::create_dir(path.join(file)).unwrap());
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        take(&dir.path().join("none")).unwrap();
        for (name, mode, files) in [
            ("new", 0o755, &[][..]),
            ("file-system", 0o755, &["lost+found"]),
            ("brought", 0o755, &["seal.key", "images", "pki"]),
            ("private", 0o700, &["my-tokens.csv"]),
        ] {
            take(&folder(name, mode, files)).unwrap();
        }
        for (name, mode, files) in [
            ("shared", 0o1777, &[][..]),
            ("group's", 0o770, &[]),
            ("home", 0o755, &["documents"]),
            ("service", 0o700, &["logs"]),
            ("service-2", 0o755, &["images", "pods"]),
        ] {
            let path = folder(name, mode, files);
            let refused = take(&path).unwrap_err().to_string();
            assert!(refused.contains("choose an"), "{refused}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
            // What is ours stays ours, whatever was put there.
            join::machine(&path).unwrap();
            take(&path).unwrap();
        }
    }

    #[test]
    fn the_process_of_a_folder_is_no_other_of_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let held = hold(dir.path()).unwrap();
        note_process(dir.path()).unwrap();
        assert_eq!(process(dir.path()), Some(own));
        assert_eq!(fs::read_to_string(crate::up::pid_file(dir.path())).unwrap(), format!("{own}\n"));
        for stale in [format!("{own} {} 1\n", boot().unwrap()), format!("{own} x y"), "1 x y".to_owned(), String::new()]
        {
            fs::write(dir.path().join(STARTED), &stale).unwrap();
            assert_eq!(process(dir.path()), None, "{stale}");
        }
        fs::remove_file(dir.path().join(STARTED)).unwrap();
        assert_eq!(process(dir.path()), None, "an older version's, and no program of ours");
        note_process(dir.path()).unwrap();
        drop(held);
        assert_eq!(process(dir.path()), None, "nobody works there");
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
