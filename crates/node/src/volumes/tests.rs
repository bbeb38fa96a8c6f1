//! Volumes with real mounts, in a mount namespace of their own that ends with the test's thread.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::atomic::{self, File, Payload};
use super::{claim, ownership, subpath};
use mainstay_runtime::safe_path::{mounts, remove};

/// Runs a test on a thread with its own mounts and a fresh tmpfs to play in; nothing of it is seen outside.
pub(super) fn alone(test: impl FnOnce(&Path) + Send + 'static) {
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let base =
            PathBuf::from(format!("/tmp/mainstay-volumes-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::create_dir_all(&base).unwrap();
        mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&base)));
        mounts::unmount_below(&base).unwrap();
        fs::remove_dir(&base).unwrap();
        result
    })
    .join();
    match result {
        Ok(Ok(())) => {}
        Ok(Err(panic)) | Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn v3_removal_follows_no_link_and_any_depth_is_fine() {
    alone(|base| {
        let (root, outside) = (base.join("volumes"), base.join("outside"));
        fs::create_dir_all(root.join("pvc-1/a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "precious").unwrap();
        fs::write(root.join("pvc-1/a/file"), "x").unwrap();
        symlink(&outside, root.join("pvc-1/a/link")).unwrap();
        symlink("/", root.join("pvc-1/root")).unwrap();
        // Deeper than any path may be long.
        let mut dir = root.join("pvc-1");
        for _ in 0..40 {
            dir = dir.join("d".repeat(60));
        }
        fs::create_dir_all(&dir).unwrap();
        for _ in 0..40 {
            let up = root.join("pvc-1/deep");
            let _ = fs::create_dir(&up);
            fs::rename(root.join("pvc-1").join("d".repeat(60)), up.join("d".repeat(60))).unwrap();
            fs::rename(&up, root.join("pvc-1").join("d".repeat(60))).unwrap();
        }
        remove::tree(&root, &root.join("pvc-1")).unwrap();
        assert!(!root.join("pvc-1").exists());
        assert_eq!(fs::read_to_string(outside.join("keep")).unwrap(), "precious");
    });
}

#[test]
fn v3_removal_stays_inside_its_root() {
    alone(|base| {
        let (root, outside) = (base.join("volumes"), base.join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(outside.join("sub")).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        for path in [
            root.clone(),
            root.join("../outside"),
            outside.clone(),
            root.join("link"),
            root.join("link/sub"),
            PathBuf::from("/"),
        ] {
            assert!(remove::tree(&root, &path).is_err(), "{}", path.display());
        }
        assert!(outside.join("sub").exists() && root.exists());
        assert_eq!(remove::tree(&root, &root.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn v8_removal_never_descends_into_a_mount() {
    alone(|base| {
        let (root, data) = (base.join("volumes"), base.join("data"));
        fs::create_dir_all(root.join("pvc-1/deep/mnt")).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("keep"), "precious").unwrap();
        fs::write(root.join("pvc-1/file"), "x").unwrap();
        // A bind mount of the same file system: only the kernel's own check sees it.
        mounts::bind(data.to_str().unwrap(), &root.join("pvc-1/deep/mnt")).unwrap();
        let error = remove::tree(&root, &root.join("pvc-1")).unwrap_err();
        assert!(error.to_string().contains("mount point"), "{error}");
        assert!(root.join("pvc-1/file").exists(), "nothing at all was removed");
        assert_eq!(fs::read_to_string(data.join("keep")).unwrap(), "precious");
        mounts::unmount_below(&root).unwrap();
        remove::tree(&root, &root.join("pvc-1")).unwrap();
    });
}

#[test]
fn x3_a_sub_path_cannot_leave_its_volume() {
    alone(|base| {
        let (volume, secret) = (base.join("volume"), base.join("secret"));
        fs::create_dir_all(volume.join("real")).unwrap();
        fs::create_dir(&secret).unwrap();
        fs::write(volume.join("real/file"), "inside").unwrap();
        symlink("real", volume.join("alias")).unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink(&secret, volume.join("absolute")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        for bad in
            ["..", "../secret", "up", "up/x", "absolute", "absolute/x", "magic/etc", "/etc", "real/../../secret", ""]
        {
            assert!(subpath::bind(&volume, bad, &base.join("pods/u/subpaths/c/0")).is_err(), "{bad}");
        }
        assert!(fs::read_dir(&secret).unwrap().next().is_none(), "nothing was made outside");
        let target = base.join("pods/u/subpaths/c/1");
        subpath::bind(&volume, "alias", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "inside");
        // A link put in its way later leads nowhere.
        fs::remove_file(volume.join("alias")).unwrap();
        symlink(&secret, volume.join("alias")).unwrap();
        assert!(subpath::bind(&volume, "alias", &target).is_err());
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "inside");
        let file = base.join("pods/u/subpaths/c/2");
        subpath::bind(&volume, "real/file", &file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "inside");
        let made = base.join("pods/u/subpaths/c/3");
        subpath::bind(&volume, "new/sub", &made).unwrap();
        assert!(volume.join("new/sub").is_dir());
        mounts::unmount_below(&base.join("pods")).unwrap();
        assert!(mounts::below(&base.join("pods")).unwrap().is_empty());
    });
}

#[test]
fn v6_a_sub_path_of_a_file_system_that_is_gone_is_bound_anew() {
    alone(|base| {
        let (volume, target) = (base.join("volume"), base.join("pods/u/subpaths/c/0"));
        fs::create_dir_all(&volume).unwrap();
        let device = || mounts::device_at(&volume).unwrap();
        assert_eq!(device(), None, "nothing is mounted yet");
        let mut devices = Vec::new();
        for content in ["old", "new"] {
            mounts::tmpfs(&volume, 0o755, None).unwrap();
            fs::create_dir(volume.join("part")).unwrap();
            fs::write(volume.join("part/file"), content).unwrap();
            for _ in 0..2 {
                subpath::bind(&volume, "part", &target).unwrap();
                assert_eq!(fs::read_to_string(target.join("file")).unwrap(), content);
            }
            devices.push(device());
            assert_eq!(mounts::device_at(&target).unwrap(), device());
            nix::mount::umount2(&volume, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        assert_ne!(devices[0], devices[1]);
        mounts::unmount_below(&base.join("pods")).unwrap();
    });
}

#[test]
fn v5_v6_a_container_that_starts_again_gets_what_its_sub_path_names_by_now() {
    alone(|base| {
        let (volume, target) = (base.join("volume"), base.join("pods/u/subpaths/c/0"));
        fs::create_dir_all(volume.join("pgdata")).unwrap();
        let bind = |name: &str| subpath::bind(&volume, name, &target).unwrap();
        bind("pgdata");
        fs::write(volume.join("pgdata/rows"), "broken").unwrap();
        // A restore beside what is broken.
        fs::rename(volume.join("pgdata"), volume.join("pgdata.broken")).unwrap();
        fs::create_dir(volume.join("pgdata")).unwrap();
        fs::write(volume.join("pgdata/rows"), "restored").unwrap();
        assert_eq!(fs::read_to_string(bind("pgdata").join("rows")).unwrap(), "restored");
        assert_eq!(mounts::below(&base.join("pods")).unwrap().len(), 1, "nothing is bound twice");
        // A file of a ConfigMap: what it was is removed.
        for content in ["first", "second"] {
            fs::write(volume.join("new"), content).unwrap();
            fs::rename(volume.join("new"), volume.join("app.conf")).unwrap();
            assert_eq!(fs::read_to_string(bind("app.conf")).unwrap(), content);
        }
        assert_eq!(bind("pgdata").join("rows").metadata().unwrap().len(), 8);
        mounts::unmount_below(&base.join("pods")).unwrap();
    });
}

#[test]
fn folders_made_for_a_sub_path_are_as_the_volume_is_for_its_group() {
    alone(|base| {
        let volume = base.join("volume");
        fs::create_dir_all(&volume).unwrap();
        ownership::give_to_group(&volume, 3456, false).unwrap();
        let of_volume = fs::metadata(&volume).unwrap();
        let bound = subpath::bind(&volume, "new/sub", &base.join("pods/u/subpaths/c/0")).unwrap();
        for made in [volume.join("new"), volume.join("new/sub"), bound] {
            let found = fs::metadata(&made).unwrap();
            assert_eq!((found.mode(), found.gid()), (of_volume.mode(), 3456), "{}", made.display());
        }
        mounts::unmount_below(&base.join("pods")).unwrap();
    });
}

#[test]
fn v5_a_provisioned_directory_is_made_once_and_never_replaced() {
    alone(|base| {
        let root = base.join("data/volumes");
        let path = root.join("pvc-1");
        claim::make(&root, &path).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o777);
        claim::must_exist(&root, &path).unwrap();
        fs::write(path.join("data"), "x").unwrap();
        // Made again after a crash between the directory and the note: what is there stays.
        claim::make(&root, &path).unwrap();
        assert!(path.join("data").exists());
        remove::tree(&root, &path).unwrap();
        let error = claim::must_exist(&root, &path).unwrap_err().to_string();
        assert!(error.contains("refusing to start on an empty one"), "{error}");
        // A link instead of the directory is not the directory.
        fs::create_dir(base.join("other")).unwrap();
        symlink(base.join("other"), &path).unwrap();
        assert!(claim::must_exist(&root, &path).is_err() && claim::make(&root, &path).is_err());
        for outside in [base.join("other"), root.clone(), root.join("../x")] {
            assert!(claim::make(&root, &outside).is_err(), "{}", outside.display());
        }
    });
}

fn payload(files: &[(&str, &str)]) -> Payload {
    files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o640, user: None }))
        .collect()
}

#[test]
fn projected_files_change_together() {
    alone(|base| {
        let dir = base.join("v");
        fs::create_dir(&dir).unwrap();
        atomic::write(&dir, &payload(&[("a", "1"), ("sub/b", "1"), ("old", "1")]), None, "t").unwrap();
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "1");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.join("..data")).unwrap();
        atomic::write(&dir, &payload(&[("a", "1"), ("sub/b", "1"), ("old", "1")]), None, "t").unwrap();
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first, "nothing changed, nothing moves");
        // What a reader holds open is whole until it lets go.
        let held = fs::read_dir(dir.join("..data/")).unwrap();
        atomic::write(&dir, &payload(&[("a", "2"), ("sub/b", "2")]), Some(1234), "t").unwrap();
        drop(held);
        assert_eq!(
            (fs::read_to_string(dir.join("a")).unwrap(), fs::read_to_string(dir.join("sub/b")).unwrap()),
            ("2".into(), "2".into())
        );
        assert!(!dir.join("old").exists() && fs::symlink_metadata(dir.join("old")).is_err());
        assert_eq!(fs::metadata(dir.join("a")).unwrap().gid(), 1234);
        assert_eq!(
            fs::read_dir(&dir)
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(".."))
                .count(),
            2
        );
        for bad in ["../x", "/x", "..x", "a/../../x", ""] {
            assert!(atomic::write(&dir, &payload(&[(bad, "")]), None, "t").is_err(), "{bad:?}");
        }
    });
}

/// S12: an update that found no room leaves nothing in the way of the next one.
#[test]
fn s12_files_that_did_not_fit_are_updated_once_they_do() {
    alone(|base| {
        let dir = base.join("v");
        fs::create_dir(&dir).unwrap();
        mounts::tmpfs(&dir, 0o777, Some(256 << 10)).unwrap();
        let big = "x".repeat(150 << 10);
        let stamped = || {
            let all = fs::read_dir(&dir).unwrap().flatten();
            all.filter(|entry| entry.file_type().unwrap().is_dir()).count()
        };
        atomic::write(&dir, &payload(&[("a", &big)]), None, "t").unwrap();
        let bigger = format!("{big}y");
        for _ in 0..3 {
            atomic::write(&dir, &payload(&[("a", &bigger)]), None, "t").unwrap_err();
            assert_eq!((fs::read_to_string(dir.join("a")).unwrap() == big, stamped()), (true, 1));
        }
        // One that was killed on its way removes nothing of its own.
        fs::create_dir(dir.join("..t.7")).unwrap();
        fs::write(dir.join("..t.7/a"), "z".repeat(100 << 10)).unwrap();
        atomic::write(&dir, &payload(&[("a", "1"), ("b", "2")]), None, "t").unwrap();
        assert_eq!((fs::read_to_string(dir.join("a")).unwrap(), stamped()), ("1".to_owned(), 1));
        mounts::unmount_below(&dir).unwrap();
    });
}

#[test]
fn fs_group_reaches_everything_but_links_and_mounts() {
    alone(|base| {
        let (volume, outside) = (base.join("v"), base.join("outside"));
        fs::create_dir_all(volume.join("dir")).unwrap();
        fs::create_dir_all(volume.join("mnt")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        fs::write(volume.join("dir/file"), "").unwrap();
        fs::set_permissions(volume.join("dir/file"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(outside.join("file"), volume.join("link")).unwrap();
        mounts::bind(outside.to_str().unwrap(), &volume.join("mnt")).unwrap();
        ownership::give_to_group(&volume, 777, false).unwrap();
        let of = |path: PathBuf| fs::metadata(path).map(|metadata| (metadata.gid(), metadata.mode() & 0o7777)).unwrap();
        assert_eq!(of(volume.join("dir/file")), (777, 0o660));
        assert_eq!(of(volume.join("dir")).0, 777);
        assert_eq!(of(volume.clone()).1 & 0o2770, 0o2770);
        assert_eq!((of(outside.join("file")).0, of(outside.clone()).0), (0, 0));
        // OnRootMismatch: the root is right, so the rest is taken to be.
        fs::write(volume.join("late"), "").unwrap();
        std::os::unix::fs::chown(volume.join("late"), None, Some(0)).unwrap();
        ownership::give_to_group(&volume, 777, true).unwrap();
        assert_eq!(of(volume.join("late")).0, 0);
    });
}

#[test]
fn a_memory_volume_is_mounted_once_and_holds_no_more_than_its_size() {
    alone(|base| {
        let dir = base.join("m");
        fs::create_dir(&dir).unwrap();
        mounts::tmpfs(&dir, 0o777, Some(64 << 10)).unwrap();
        mounts::tmpfs(&dir, 0o777, Some(64 << 10)).unwrap();
        assert_eq!(mounts::below(&dir).unwrap(), std::slice::from_ref(&dir));
        assert_eq!(fs::write(dir.join("big"), vec![0; 128 << 10]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let error = remove::tree(base, &dir).unwrap_err();
        assert!(error.to_string().contains("mount point"), "{error}");
        mounts::unmount_below(&dir).unwrap();
        remove::tree(base, &dir).unwrap();
    });
}
