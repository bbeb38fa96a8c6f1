//! Sizes of folders, asked for and felt as clients do.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Folder, Limit, Limits, State};
use crate::client::Source;
use crate::client::provision::{ProvisionError, Share};
use crate::client::remote::{self, Remote};
use crate::protocol::{Attributes, MAX_HANDLE, SetAttributes, procedure};
use crate::rpc::Credentials;
use crate::server::export::Export;
use crate::server::{ServerConfig, listen};
use mainstay_runtime::safe_path;

const KIB: u64 = 1024;

fn base() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(base.path().join("export")).unwrap();
    base
}

/// A server of which nobody waits for the end, and how to mount from it.
fn serve(base: &Path, path: &str) -> Source {
    let listen_on = "127.0.0.1:0".parse().unwrap();
    let exports = vec![format!("{}:no_root_squash", base.join("export").display()).parse().unwrap()];
    let listening =
        listen(&ServerConfig { exports, listen: listen_on, portmapper: false, state_dir: base.join("state") }).unwrap();
    let port = Some(listening.address.port());
    std::thread::spawn(move || listening.serve());
    let path = base.join("export").join(path).display().to_string();
    Source {
        server: "127.0.0.1".into(),
        path: path.trim_end_matches('/').into(),
        port,
        mount_port: port,
        timeout_ms: 20_000,
    }
}

fn user() -> Credentials {
    Credentials { uid: 1234, gid: 1234, groups: Vec::new() }
}

struct Mounted(Remote, Vec<u8>);

impl Mounted {
    fn of(source: &Source) -> Self {
        let (remote, root) = remote::open(source).unwrap();
        Self(remote, root)
    }

    fn handle(&self, dir: &[u8], name: &str) -> Result<Vec<u8>, i32> {
        let reply = self.0.call(procedure::LOOKUP, &user(), |call| {
            call.opaque(dir).opaque(name.as_bytes());
        })?;
        reply.read(|reader| reader.opaque(MAX_HANDLE).map(<[u8]>::to_vec))
    }

    fn create(&self, name: &str) -> Result<Vec<u8>, i32> {
        self.0.call(procedure::CREATE, &user(), |call| {
            let wanted = SetAttributes { mode: Some(0o644), ..SetAttributes::default() };
            wanted.write(call.opaque(&self.1).opaque(name.as_bytes()).u32(0));
        })?;
        self.handle(&self.1, name)
    }

    fn write(&self, file: &[u8], offset: u64, length: u64) -> Result<(), i32> {
        let bytes = vec![7; length as usize];
        let written = self.0.call(procedure::WRITE, &user(), |call| {
            call.opaque(file).u64(offset).u32(length as u32).u32(0).opaque(&bytes);
        });
        written.map(drop)
    }

    fn named(&self, number: u32, name: &str) -> Result<(), i32> {
        let done = self.0.call(number, &user(), |call| {
            call.opaque(&self.1).opaque(name.as_bytes());
        });
        done.map(drop)
    }

    fn rename(&self, from: (&[u8], &str), to: (&[u8], &str)) -> Result<(), i32> {
        let done = self.0.call(procedure::RENAME, &Credentials::default(), |call| {
            call.opaque(from.0).opaque(from.1.as_bytes()).opaque(to.0).opaque(to.1.as_bytes());
        });
        done.map(drop)
    }

    /// Total and free, as `df` shows them.
    fn df(&self) -> (u64, u64) {
        let reply = self.0.call(procedure::FSSTAT, &user(), |call| {
            call.opaque(&self.1);
        });
        reply
            .unwrap()
            .read(|reader| {
                Attributes::read_optional(reader)?;
                Ok((reader.u64()?, reader.u64()?))
            })
            .unwrap()
    }
}

#[test]
fn v10_a_folder_has_its_size_and_nothing_beyond_it() {
    let base = base();
    let share = serve(base.path(), "");
    let provisioner = Share::open(&share).unwrap();
    provisioner.make(&["team", "pvc-1"], 0o777, Some(64 * KIB)).unwrap();
    provisioner.make(&["team", "pvc-1"], 0o777, Some(64 * KIB)).unwrap();
    assert_eq!(fs::metadata(base.path().join("export/team/pvc-1")).unwrap().permissions().mode() & 0o777, 0o777);
    let mounted = Mounted::of(&Source { path: format!("{}/team/pvc-1", share.path), ..share.clone() });
    assert_eq!(mounted.df(), (64 * KIB, 64 * KIB));

    let file = mounted.create("a").unwrap();
    mounted.write(&file, 0, 60 * KIB).unwrap();
    assert_eq!(mounted.df().1, 4 * KIB);
    mounted.write(&file, 0, 60 * KIB).unwrap();
    assert_eq!(mounted.df().1, 4 * KIB, "what is overwritten costs nothing");
    assert_eq!(mounted.write(&file, 60 * KIB, 5 * KIB), Err(libc::ENOSPC));
    assert_eq!(mounted.write(&file, 1 << 40, 1), Err(libc::ENOSPC), "a hole counts");
    mounted.create("b").unwrap();
    assert_eq!(mounted.create("c"), Err(libc::ENOSPC));
    assert_eq!(mounted.create("a"), Ok(file.clone()), "one that is there can still be opened");
    assert_eq!(mounted.df().1, 0);

    // Larger at once; and back below what is used, where nothing is taken away.
    provisioner.resize(&["team", "pvc-1"], 128 * KIB).unwrap();
    assert_eq!(mounted.df(), (128 * KIB, 64 * KIB));
    mounted.write(&file, 60 * KIB, 5 * KIB).unwrap();
    provisioner.resize(&["team", "pvc-1"], 4 * KIB).unwrap();
    assert_eq!(mounted.df(), (4 * KIB, 0));
    mounted.write(&file, 0, 60 * KIB).unwrap();

    // Names that go give back what they cost; one of two does not.
    let link = |name: &str| {
        let done = mounted.0.call(procedure::LINK, &user(), |call| {
            call.opaque(&file).opaque(&mounted.1).opaque(name.as_bytes());
        });
        done.map(drop)
    };
    link("second").unwrap();
    mounted.named(procedure::REMOVE, "a").unwrap();
    provisioner.resize(&["team", "pvc-1"], 128 * KIB).unwrap();
    assert_eq!(mounted.df().1, (128 - 68 - 4) * KIB);
    mounted.rename((&mounted.1, "b"), (&mounted.1, "second")).unwrap();
    assert_eq!(mounted.df().1, (128 - 4) * KIB);

    // Nothing is moved or linked across a limit, in or out.
    let outside = Mounted::of(&share);
    fs::write(base.path().join("export/stranger"), vec![0; 4096]).unwrap();
    assert_eq!(mounted.rename((&outside.1, "stranger"), (&mounted.1, "in")), Err(libc::EXDEV));
    assert_eq!(mounted.rename((&mounted.1, "second"), (&outside.1, "out")), Err(libc::EXDEV));
    let team = outside.handle(&outside.1, "team").unwrap();
    assert_eq!(outside.handle(&team, "pvc-1").unwrap(), mounted.1, "the same file has the same handle by any way");
    assert_eq!(mounted.handle(&mounted.1, "..").unwrap(), team, "and so has what is above it");

    // The folder goes, and its limit with it; what is beside it stays.
    fs::create_dir_all(base.path().join("export/team/pvc-1/x/y/z")).unwrap();
    std::os::unix::fs::symlink(base.path().join("export"), base.path().join("export/team/pvc-1/x/link")).unwrap();
    provisioner.remove(&["team", "pvc-1"]).unwrap();
    provisioner.remove(&["team", "pvc-1"]).unwrap();
    assert!(!base.path().join("export/team/pvc-1").exists() && base.path().join("export/stranger").exists());
    assert_eq!(mounted.create("late"), Err(libc::ESTALE));
    let kept = fs::read_to_string(base.path().join("state/limits.json")).unwrap();
    assert!(kept.contains("\"folders\":[]"), "{kept}");
}

#[test]
fn v10_what_is_used_is_known_after_kill_9_from_the_note_or_by_counting() {
    let base = base();
    let folder = base.path().join("export/pvc-1");
    fs::create_dir(&folder).unwrap();
    let exports = [Export::open(&base.path().join("export").display().to_string().parse().unwrap()).unwrap()];
    let open = || Limits::open(&base.path().join("state"), &exports).unwrap();
    let fd = safe_path::open_root(&folder).unwrap();
    let stat = nix::sys::stat::fstat(fd.as_raw_fd()).unwrap();
    open().set(&exports[0], &fd, &stat, 1 << 20).unwrap();
    fs::create_dir(folder.join("inner")).unwrap();
    fs::write(folder.join("inner/a"), vec![0; 10_000]).unwrap();
    fs::hard_link(folder.join("inner/a"), folder.join("b")).unwrap();

    // After a crash: a change waits until it is counted; every file once.
    let limits: &'static Limits = Box::leak(Box::new(open()));
    let limit = limits.at(&fd, &stat).unwrap();
    let waiting = limit.clone();
    let change = std::thread::spawn(move || waiting.charge(limits, 100).map(|charge| charge.settle(0, 4 * KIB)));
    limits.count(&exports);
    change.join().unwrap().unwrap();
    assert_eq!(limit.usage(), (1 << 20, (4 + 12 + 4) * KIB));
    assert_eq!(open().at(&fd, &stat).unwrap().state().used, 0, "nobody has noted it");

    // Left alone it is noted, and the note is believed by the next server; until something changes.
    std::thread::spawn(|| limits.note());
    while open().at(&fd, &stat).unwrap().state().used == 0 {
        std::thread::yield_now();
    }
    assert_eq!(open().at(&fd, &stat).unwrap().state().used, 20 * KIB);
    let charge = limit.charge(limits, 1).unwrap();
    assert_eq!(open().at(&fd, &stat).unwrap().state().used, 0, "taken away before anything changes");
    drop(charge);
    assert_eq!(limit.usage().1, 20 * KIB, "a change that did not happen costs nothing");
}

#[test]
fn only_a_provisioner_gives_sizes_and_only_to_a_folder_that_is_empty() {
    let base = base();
    let share = serve(base.path(), "");
    let provisioner = Share::open(&share).unwrap();
    fs::create_dir_all(base.path().join("export/full/of/things")).unwrap();
    let error = provisioner.make(&["full"], 0o777, Some(KIB)).unwrap_err();
    assert!(
        matches!(&error, ProvisionError::Refused { error, .. } if error.raw_os_error() == Some(libc::ENOTEMPTY)),
        "{error}"
    );
    provisioner.make(&["pvc-1"], 0o777, Some(64 * KIB)).unwrap();
    assert!(provisioner.make(&["pvc-1", "inner"], 0o777, Some(KIB)).is_err(), "no limit within a limit");
    // A link is not a way in or out.
    std::os::unix::fs::symlink("full", base.path().join("export/link")).unwrap();
    assert!(provisioner.make(&["link", "pvc-2"], 0o777, None).is_err() && provisioner.remove(&["link"]).is_err());
    assert!(base.path().join("export/full/of/things").exists());

    // Another machine's root, unless it is named.
    let peer = |port, is_here| super::super::call::Peer { address: [10, 1, 2, 3].into(), port, is_here };
    let export = |options: &str| {
        let options = format!("{}:{options}", base.path().join("export").display()).parse().unwrap();
        super::super::export::Export::open(&options).unwrap()
    };
    assert!(
        export("").trusts(peer(700, true))
            && !export("").trusts(peer(700, false))
            && !export("").trusts(peer(1024, true))
    );
    assert!(
        export("provisioners=10.1.0.0/16").trusts(peer(700, false))
            && !export("provisioners=10.2.0.0/16").trusts(peer(700, false))
    );
}

/// V10: a folder that was removed on the server itself, and another that has got its inode.
#[test]
fn v10_an_inode_that_is_used_again_is_not_the_folder_that_had_it() {
    let base = base();
    let export = base.path().join("export");
    let exports = [Export::open(&export.display().to_string().parse().unwrap()).unwrap()];
    let open = || Limits::open(&base.path().join("state"), &exports).unwrap();
    let folder = |name: &str| {
        fs::create_dir(export.join(name)).unwrap();
        let fd = safe_path::open_root(&export.join(name)).unwrap();
        let stat = nix::sys::stat::fstat(fd.as_raw_fd()).unwrap();
        (fd, stat)
    };
    let limits = open();
    let ((old, old_stat), (new, new_stat), (other, other_stat)) = (folder("old"), folder("new"), folder("other"));
    for (fd, stat) in [(&old, &old_stat), (&other, &other_stat)] {
        limits.set(&exports[0], fd, stat, 1 << 20).unwrap();
    }
    let id = limits.at(&old, &old_stat).unwrap().id;
    // As if the new one had the inode of the old one, and another generation.
    let root = (new_stat.st_dev, new_stat.st_ino);
    let handle = limits.at(&old, &old_stat).unwrap().handle.clone();
    limits.remove(id).unwrap();
    let id = limits.kept.add(|id| Folder::new(id, &exports[0], &old, 1 << 20)).unwrap();
    limits.all.write().unwrap().insert(Limit::new(id, root, handle, State { exact: true, ..State::default() }));
    assert!(limits.at(&new, &new_stat).is_none(), "it is another folder");
    limits.set(&exports[0], &new, &new_stat, 8192).unwrap();
    let limit = limits.at(&new, &new_stat).unwrap();
    assert!(limit.id != id && limit.usage() == (8192, 0) && limits.by_id(id).is_none());
    assert!(limits.kept.folders().iter().all(|folder| folder.id != id));
    // After a restart it is known by its handle, and what is gone is forgotten.
    drop(old);
    limits.kept.add(|id| Folder::new(id, &exports[0], &safe_path::open_root(&export.join("old"))?, 1)).unwrap();
    fs::remove_dir(export.join("old")).unwrap();
    let again = open();
    assert_eq!(again.at(&new, &new_stat).unwrap().id, limit.id);
    assert_eq!(again.kept.folders().len(), 2, "of new and other");
    // Not where nothing shows that the export is the one that it was.
    drop((new, other));
    fs::remove_dir(export.join("new")).unwrap();
    fs::remove_dir(export.join("other")).unwrap();
    assert_eq!(open().kept.folders().len(), 2);
}
