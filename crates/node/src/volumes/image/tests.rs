//! Images with real loop devices and mounts. Whatever a test attaches is let go with its mounts: the devices are
//! autoclear, and [`alone`] unmounts all.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use super::super::tests::alone;
use super::*;

const MIB: u64 = 1 << 20;
/// Set for the process that [`victim`] is.
const VICTIM: &str = "MAINSTAY_TEST_VICTIM";

fn image(base: &Path, name: &str) -> Image {
    let root = base.join("volumes");
    fs::create_dir_all(&root).unwrap();
    Image::new(&root, &root.join(name)).unwrap()
}

/// Total bytes, as `df` sees them.
fn df(image: &Image) -> u64 {
    let stat = nix::sys::statvfs::statvfs(&image.data()).unwrap();
    stat.blocks() * stat.fragment_size()
}

/// Writes until the volume is full; how much went in.
fn fill(image: &Image, name: &str) -> u64 {
    let mut file = File::create(image.data().join(name)).unwrap();
    let chunk = vec![7u8; usize::try_from(MIB).unwrap()];
    loop {
        if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            return file.metadata().unwrap().len();
        }
    }
}

fn device_of(image: &Image) -> Option<PathBuf> {
    loops::find(&image.open().unwrap()).unwrap().map(|device| device.path().to_owned())
}

#[test]
fn v10_a_volume_holds_its_size_and_no_more() {
    alone(|base| {
        let image = image(base, "pvc-1");
        image.ensure(64 * MIB, false).unwrap();
        assert_eq!(df(&image), 64 * MIB);
        assert_eq!(fs::read_dir(image.data()).unwrap().count(), 0, "initdb wants an empty folder");
        assert_eq!(fs::metadata(image.data()).unwrap().mode() & 0o777, 0o777);
        assert_eq!(fs::metadata(&image.dir).unwrap().mode() & 0o777, 0o700);
        let occupied = image.file().metadata().unwrap().blocks() * 512;
        assert!(occupied < 8 * MIB, "sparse: {occupied}");
        let written = fill(&image, "big");
        assert!((50 * MIB..64 * MIB).contains(&written), "{written}");
        fs::remove_file(image.data().join("big")).unwrap();
        fs::write(image.data().join("row"), "ada").unwrap();

        // Again, as after an agent's restart: nothing is mounted or attached twice (V7).
        let device = device_of(&image);
        image.ensure(64 * MIB, true).unwrap();
        assert_eq!((device_of(&image), mounts::below(&image.dir).unwrap().len()), (device, 1));
        // As after a reboot.
        image.unmount().unwrap();
        assert_eq!(device_of(&image), None, "the device went with the mount");
        assert!(!image.data().exists(), "no look-alike without the mount");
        image.ensure(64 * MIB, true).unwrap();
        assert_eq!(fs::read_to_string(image.data().join("row")).unwrap(), "ada");
    });
}

/// Whether the kernel lets this process grow a mounted file system: CAP_SYS_RESOURCE, which some sandboxes take away.
fn grows_mounted() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(bits.trim(), 16).unwrap() & (1 << 24) != 0
}

#[test]
fn v10_a_volume_grows_under_its_user_where_the_kernel_allows_it() {
    alone(|base| {
        let image = image(base, "pvc-1");
        image.ensure(64 * MIB, false).unwrap();
        let mut open = File::create(image.data().join("open")).unwrap();
        open.write_all(b"before ").unwrap();
        let growth = image.grow(128 * MIB).unwrap();
        open.write_all(b"after").unwrap();
        let (wanted, size) = if grows_mounted() { (Growth::Done, 128 * MIB) } else { (Growth::NextMount, 64 * MIB) };
        assert_eq!((growth, df(&image)), (wanted, size));
        // A second user meanwhile changes nothing.
        assert_eq!(image.ensure(128 * MIB, true).unwrap(), wanted);
        drop(open);
        image.unmount().unwrap();
        assert_eq!(image.ensure(128 * MIB, true).unwrap(), Growth::Done);
        assert_eq!(df(&image), 128 * MIB);
        assert_eq!(fs::read_to_string(image.data().join("open")).unwrap(), "before after");
    });
}

/// The disk below is full: writes that the volume has room for fail, and the file system stops taking any.
#[test]
fn v4_a_volume_that_became_read_only_takes_writes_again_once_there_is_room() {
    alone(|base| {
        let disk = base.join("volumes");
        fs::create_dir_all(&disk).unwrap();
        mounts::tmpfs(&disk, 0o700, Some(24 * MIB)).unwrap();
        let image = image(base, "pvc-1");
        image.ensure(64 * MIB, false).unwrap();
        fs::write(image.data().join("row"), "ada").unwrap();
        File::open(image.data().join("row")).unwrap().sync_all().unwrap();
        // As a container's subPath does.
        let bound = base.join("subpath");
        fs::create_dir(&bound).unwrap();
        mounts::bind(image.data().to_str().unwrap(), &bound).unwrap();
        assert_eq!(image.recover().unwrap(), Recovery::Unneeded);

        let ballast = disk.join("ballast");
        fs::write(&ballast, vec![1; 16 << 20]).unwrap();
        let read_only = || mounts::file_system(&image.mount_point()).unwrap().unwrap().is_read_only();
        for number in 0..200 {
            let path = image.data().join(format!("big-{number}"));
            let written = File::create(path).and_then(|mut file| {
                file.write_all(&vec![7u8; 1 << 20])?;
                file.sync_all()
            });
            if written.is_err() && read_only() {
                break;
            }
        }
        assert!(read_only(), "the kernel noticed");
        // Who has a file open keeps it as it is.
        let open = File::open(image.data().join("row")).unwrap();
        assert_eq!(image.recover().unwrap(), Recovery::InUse);
        assert!(image.data().join("row").exists());
        drop(open);
        fs::remove_file(&ballast).unwrap();
        assert_eq!(image.recover().unwrap(), Recovery::Done);
        assert!(!read_only());
        fs::write(image.data().join("new"), "bob").unwrap();
        assert_eq!(fs::read_to_string(image.data().join("row")).unwrap(), "ada");
        assert_eq!(image.recover().unwrap(), Recovery::Unneeded);
    });
}

#[test]
fn v10_growth_goes_on_after_a_crash_half_way_and_never_shrinks() {
    alone(|base| {
        let image = image(base, "pvc-1");
        image.ensure(64 * MIB, false).unwrap();
        fs::write(image.data().join("row"), "ada").unwrap();
        // Cut after the file, and after the device.
        let file = image.open().unwrap();
        file.set_len(96 * MIB).unwrap();
        image.unmount().unwrap();
        image.ensure(96 * MIB, true).unwrap();
        assert_eq!(df(&image), 96 * MIB);
        let file = image.open().unwrap();
        file.set_len(128 * MIB).unwrap();
        loops::find(&file).unwrap().unwrap().follow_size().unwrap();
        image.unmount().unwrap();
        image.ensure(128 * MIB, true).unwrap();
        // Cut in the middle of a copy that grows.
        fs::write(image.dir.join("image.new"), "half").unwrap();
        image.unmount().unwrap();
        let occupied = image.file().metadata().unwrap().blocks() * 512;
        image.ensure(192 * MIB, true).unwrap();
        assert_eq!(df(&image), 192 * MIB);
        assert!(image.file().metadata().unwrap().blocks() * 512 < occupied + 8 * MIB, "still sparse");
        assert_eq!(fs::read_to_string(image.data().join("row")).unwrap(), "ada");
        image.ensure(64 * MIB, true).unwrap();
        assert_eq!(df(&image), 192 * MIB);
        assert!(fill(&image, "big") > 160 * MIB);
    });
}

#[test]
fn v5_data_that_is_gone_or_strange_is_never_made_anew() {
    alone(|base| {
        let lost = image(base, "pvc-lost");
        assert!(lost.ensure(16 * MIB, true).unwrap_err().to_string().contains("refusing to start on an empty one"));
        lost.ensure(16 * MIB, false).unwrap();
        lost.unmount().unwrap();
        fs::rename(lost.file(), base.join("elsewhere")).unwrap();
        assert!(lost.ensure(16 * MIB, true).unwrap_err().to_string().contains("refusing to start on an empty one"));
        assert!(!lost.file().exists());

        let strange = image(base, "pvc-strange");
        fs::create_dir(&strange.dir).unwrap();
        fs::write(strange.file(), vec![42u8; 1 << 20]).unwrap();
        assert!(strange.ensure(16 * MIB, false).is_err());
        assert_eq!(fs::read(strange.file()).unwrap(), vec![42u8; 1 << 20]);
        assert_eq!(device_of(&strange), None);

        for outside in [base.join("x"), base.join("volumes"), base.join("volumes/a/b"), base.join("volumes/../x")] {
            assert!(Image::new(&base.join("volumes"), &outside).is_err(), "{}", outside.display());
        }
        let link = image(base, "pvc-link");
        fs::create_dir(base.join("other")).unwrap();
        std::os::unix::fs::symlink(base.join("other"), &link.dir).unwrap();
        assert!(link.ensure(16 * MIB, false).is_err());
        assert_eq!(fs::read_dir(base.join("other")).unwrap().count(), 0);
    });
}

#[test]
fn v3_v8_deletion_waits_for_the_last_mount_and_frees_file_and_device() {
    alone(|base| {
        let (image, other) = (image(base, "pvc-1"), image(base, "pvc-2"));
        image.ensure(16 * MIB, false).unwrap();
        other.ensure(16 * MIB, false).unwrap();
        fs::write(image.data().join("row"), "ada").unwrap();
        // Somebody else's mount of the same file system, as a container has it.
        let held = base.join("held");
        fs::create_dir(&held).unwrap();
        mounts::bind(image.data().to_str().unwrap(), &held).unwrap();
        let error = image.delete().unwrap_err().to_string();
        assert!(error.contains("still has the image"), "{error}");
        assert_eq!(fs::read_to_string(held.join("row")).unwrap(), "ada");
        let device = device_of(&image).unwrap();
        // The same device again, not a second one for the same file.
        image.ensure(16 * MIB, true).unwrap();
        assert_eq!(device_of(&image), Some(device));
        mounts::unmount_below(&held).unwrap();
        assert_eq!(Image::behind(&base.join("volumes"), &image.data()).unwrap().name(), "pvc-1");
        image.delete().unwrap();
        image.delete().unwrap();
        assert!(!image.dir.exists() && other.file().exists());
        assert_eq!(mounted(&base.join("volumes")).unwrap().len(), 1);
    });
}

/// What [`v4_v7_v10_kill_9_at_any_moment_of_making_growing_and_unmounting_loses_nothing`] kills: makes volumes,
/// writes, grows and unmounts them, one after the other. A row is
/// acknowledged when it is on the disk. Without a parent that names a folder there is nothing to do.
#[test]
fn victim() {
    let Some(base) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let mut acknowledged = OpenOptions::new().create(true).append(true).open(base.join("acknowledged")).unwrap();
    for number in fs::read_dir(base.join("volumes")).unwrap().count().. {
        let name = format!("pvc-{number}");
        let image = image(&base, &name);
        image.ensure(16 * MIB, false).unwrap();
        let mut row = File::create(image.data().join("row")).unwrap();
        row.write_all(name.as_bytes()).and_then(|()| row.sync_all()).unwrap();
        writeln!(acknowledged, "{name}").unwrap();
        image.grow(48 * MIB).unwrap();
        drop(row);
        image.unmount().unwrap();
        image.ensure(48 * MIB, true).unwrap();
        if number % 2 == 0 {
            image.unmount().unwrap();
        }
    }
}

#[test]
fn v4_v7_v10_kill_9_at_any_moment_of_making_growing_and_unmounting_loses_nothing() {
    alone(|base| {
        let root = base.join("volumes");
        fs::create_dir(&root).unwrap();
        for round in 0..12u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "volumes::image::tests::victim"])
                .env(VICTIM, base)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // Not awaited: the moment is what the test is about.
            std::thread::sleep(Duration::from_millis(20 + round * 13));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.len() > 2, "the victims did something: {names:?}");
        for name in &names {
            let image = image(base, name.to_str().unwrap());
            image.unmount().unwrap();
            image.ensure(48 * MIB, false).unwrap();
            assert_eq!(df(&image), 48 * MIB);
            let (device, file) = (device_of(&image).unwrap(), image.file().metadata().unwrap());
            let same = |entry: &fs::DirEntry| {
                let path = Path::new("/dev").join(entry.file_name());
                let attached = entry.path().join("loop/backing_file").exists();
                attached && File::open(&path).is_ok_and(|device| loops::has(&device, &file)) && path != device
            };
            assert_eq!(
                fs::read_dir("/sys/block").unwrap().flatten().filter(same).count(),
                0,
                "one device for one image"
            );
        }
        for name in fs::read_to_string(base.join("acknowledged")).unwrap().lines() {
            assert_eq!(fs::read_to_string(image(base, name).data().join("row")).unwrap(), name, "V4");
        }
        for name in &names {
            let image = image(base, name.to_str().unwrap());
            image.delete().unwrap();
            assert!(!image.dir.exists());
        }
    });
}

/// Lets a device go, whatever becomes of the test.
struct Attached(Image);

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.0.unmount();
    }
}

#[test]
fn v7_v10_a_block_device_keeps_its_number_and_its_size_until_it_is_let_go() {
    alone(|base| {
        let image = image(base, "pvc-1");
        let _attached = Attached(image.clone());
        image.ensure_block(16 * MIB, false).unwrap();
        let path = device_of(&image).unwrap();
        let size = || super::super::block::size(&path).unwrap();
        assert_eq!(size(), 16 * MIB);
        let write = OpenOptions::new().write(true).open(&path).and_then(|mut device| {
            device.write_all(b"ada")?;
            device.sync_all()
        });
        write.unwrap();
        // Nobody has it open; it stays what it is, for an agent that comes later (V7).
        let number = image.attach().unwrap();
        image.ensure_block(32 * MIB, true).unwrap();
        assert_eq!((image.attach().unwrap(), size()), (number, 32 * MIB));
        let root = base.join("volumes");
        assert_eq!(super::mounted(&root).unwrap().len(), 1);
        // No file system is ever made of it, and none is taken for it.
        assert!(image.ensure(16 * MIB, true).is_err());
        let other = super::tests::image(base, "pvc-2");
        other.ensure(16 * MIB, false).unwrap();
        assert!(other.attach().is_err());
        other.unmount().unwrap();

        image.unmount().unwrap();
        assert_eq!((device_of(&image), super::mounted(&root).unwrap().len()), (None, 0));
        image.ensure_block(32 * MIB, true).unwrap();
        let mut read = [0; 3];
        io::Read::read_exact(&mut File::open(device_of(&image).unwrap()).unwrap(), &mut read).unwrap();
        assert_eq!(&read, b"ada", "V4");
        // Where its data is gone no empty one takes its place (V5).
        image.unmount().unwrap();
        fs::remove_file(image.file()).unwrap();
        assert!(image.ensure_block(32 * MIB, true).unwrap_err().to_string().contains("refusing to start"));
        image.delete().unwrap();
        assert!(!image.dir.exists());
    });
}
