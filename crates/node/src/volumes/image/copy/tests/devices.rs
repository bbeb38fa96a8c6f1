//! Copies of block devices: at rest anywhere, in use where the file system shares blocks.

use std::os::unix::fs::FileExt as _;

use super::*;

/// What a test writes at once.
const PIECE: usize = 4096;

/// Lets the devices go also where a test fails: they would keep the machine's loop devices for ever.
struct Attached<'a>(&'a [&'a Image]);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        for image in self.0 {
            let _ = image.unmount();
        }
    }
}

/// The device that a volume is given to containers as.
fn device(image: &Image) -> File {
    let path = loops::find(&image.open().unwrap()).unwrap().expect("attached").path().to_owned();
    fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn write(device: &File, number: usize) {
    device.write_all_at(&[u8::try_from(number % 250 + 1).unwrap(); PIECE], (number * PIECE) as u64).unwrap();
    device.sync_data().unwrap();
}

/// How many pieces were written, one after the other: what follows the first one that is not there was not written.
fn pieces(read: &impl Fn(&mut [u8], u64) -> io::Result<()>, size: usize) -> usize {
    let mut buffer = vec![0; size];
    read(&mut buffer, 0).unwrap();
    let is_whole = |(number, piece): &(usize, &[u8])| piece.iter().all(|byte| usize::from(*byte) == number % 250 + 1);
    let count = buffer.chunks(PIECE).enumerate().take_while(is_whole).count();
    let rest = buffer.get((count + 1) * PIECE..).unwrap_or_default();
    assert!(rest.iter().all(|byte| *byte == 0), "a hole after {count} pieces");
    count
}

fn of_file(image: &Image) -> usize {
    let file = image.open().unwrap();
    let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
    pieces(&|buffer, at| file.read_exact_at(buffer, at), size)
}

/// Mounts a fresh file system of its own where the volumes are, unless the kernel has none of that kind.
fn mount(base: &Path, kind: &str) -> bool {
    let root = base.join("volumes");
    fs::create_dir(&root).unwrap();
    let file = File::create_new(base.join("disk")).unwrap();
    file.set_len(512 * MIB).unwrap();
    let made = Command::new(format!("mkfs.{kind}")).arg(base.join("disk")).stdout(Stdio::null()).status();
    assert!(made.expect("mkfs (.ci/run installs it)").success());
    let disk = loops::attach(&fs::OpenOptions::new().read(true).write(true).open(base.join("disk")).unwrap()).unwrap();
    match nix::mount::mount(Some(disk.path()), &root, Some(kind), nix::mount::MsFlags::empty(), None::<&str>) {
        Err(nix::errno::Errno::ENODEV) => false,
        mounted => mounted.map(|()| true).unwrap(),
    }
}

#[test]
fn a_block_device_in_use_is_copied_at_one_moment_where_blocks_can_be_shared() {
    alone(|base| {
        if !mount(base, "btrfs") {
            return eprintln!("this kernel has no btrfs: not tried");
        }
        let (volume, copy, clone) = (image(base, "pvc-1"), image(base, "snapshot-1"), image(base, "pvc-2"));
        let files = image(base, "pvc-3");
        let all = [&volume, &clone, &files];
        let _attached = Attached(&all);
        volume.ensure_block(16 * MIB, false).unwrap();
        let disk = device(&volume);
        (0..20).for_each(|number| write(&disk, number));
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut next = 20;
                while !stop.load(Ordering::Relaxed) && next < 4000 {
                    write(&disk, next);
                    next += 1;
                }
                next
            });
            // No process holds anybody back.
            let taken = snapshots(&[Copy { from: &volume, to: &copy }], hold(Path::new("/nonexistent")));
            stop.store(true, Ordering::Relaxed);
            taken.unwrap();
            writer.join().unwrap()
        });
        let seen = of_file(&copy);
        assert!((20..=written).contains(&seen), "{seen} of {written}");
        assert!(loops::find(&copy.open().unwrap()).unwrap().is_none() && !copy.is_block());

        // What was written before and is not on the disk yet is in the copy of a volume, which may be larger.
        disk.write_all_at(&[u8::try_from(written % 250 + 1).unwrap(); PIECE], (written * PIECE) as u64).unwrap();
        clone.ensure_copy(&volume, hold(Path::new("/nonexistent")), 32 * MIB, true).unwrap();
        assert!(clone.is_block() && !clone.dir.join("fs").exists());
        assert_eq!((of_file(&clone), clone.open().unwrap().metadata().unwrap().len()), (written + 1, 32 * MIB));
        write(&device(&clone), written + 1);
        assert_eq!((of_file(&clone), of_file(&copy)), (written + 2, seen));
        clone.unmount().unwrap();

        // Two of them are not of one moment.
        clone.ensure_block(32 * MIB, true).unwrap();
        let (one, two) = (image(base, "snapshot-2"), image(base, "snapshot-3"));
        let group = [Copy { from: &volume, to: &one }, Copy { from: &clone, to: &two }];
        let error = snapshots(&group, hold(&supervisor())).unwrap_err().to_string();
        assert!(error.contains("several block devices that are in use cannot be copied at one moment"), "{error}");
        assert!(!one.file().exists() && !two.file().exists());
        clone.unmount().unwrap();
        // One of them and a file system whose writers are held back are.
        files.ensure(16 * MIB, false).unwrap();
        let group = [Copy { from: &volume, to: &one }, Copy { from: &files, to: &two }];
        snapshots(&group, hold(&supervisor())).unwrap();
        assert_eq!(one.moment().unwrap().unwrap().0, two.moment().unwrap().unwrap().0);
        assert_eq!(of_file(&one), written + 1);
        assert_eq!(write_lines(&files, 1, |next| next <= 3), 3);
        all.iter().for_each(|image| image.unmount().unwrap());
    });
}

#[test]
fn a_block_device_in_use_is_not_copied_where_blocks_cannot_be_shared() {
    alone(|base| {
        let root = base.join("volumes");
        fs::create_dir(&root).unwrap();
        nix::mount::mount(Some("small"), &root, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=96m")).unwrap();
        let (volume, copy, clone) = (image(base, "pvc-1"), image(base, "snapshot-1"), image(base, "pvc-2"));
        let (files, raw, again) = (image(base, "pvc-3"), image(base, "pvc-4"), image(base, "pvc-5"));
        let all = [&volume, &clone, &files, &raw, &again];
        let _attached = Attached(&all);
        volume.ensure_block(16 * MIB, false).unwrap();
        (0..5).for_each(|number| write(&device(&volume), number));
        let nobody = hold(Path::new("/nonexistent"));
        for error in [
            snapshots(&[Copy { from: &volume, to: &copy }], nobody).unwrap_err(),
            clone.ensure_copy(&volume, nobody, 16 * MIB, true).unwrap_err(),
        ] {
            assert!(error.to_string().contains("it can be copied while no pod uses it"), "{error}");
        }
        assert!(!copy.file().exists() && !clone.file().exists(), "no empty look-alike");
        write(&device(&volume), 5);
        volume.unmount().unwrap();
        snapshots(&[Copy { from: &volume, to: &copy }], nobody).unwrap();
        clone.ensure_copy(&copy, nobody, 32 * MIB, true).unwrap();
        assert_eq!((of_file(&copy), of_file(&clone)), (6, 6));
        assert_eq!(clone.open().unwrap().metadata().unwrap().len(), 32 * MIB);
        clone.unmount().unwrap();

        // A file system's image as a device, and back: who may have that is the API's to say.
        files.ensure(16 * MIB, false).unwrap();
        write_lines(&files, 1, |next| next <= 3);
        files.unmount().unwrap();
        raw.ensure_copy(&files, nobody, 16 * MIB, true).unwrap();
        assert!(raw.is_block());
        raw.unmount().unwrap();
        again.ensure_copy(&raw, nobody, 32 * MIB, false).unwrap();
        assert_eq!((lines(&again), again.is_block()), (3, false));
        again.unmount().unwrap();
        // What is no file system is not mounted, and nothing is made of it.
        assert!(image(base, "pvc-6").ensure_copy(&copy, nobody, 16 * MIB, false).is_err());
    });
}
