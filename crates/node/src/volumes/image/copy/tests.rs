//! Copies of images that are mounted and written to, with real freezing, by the supervisor that is built beside the
//! tests.

mod devices;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::volumes::tests::alone;

const MIB: u64 = 1 << 20;
/// Set for the process that [`victim`] is.
const VICTIM: &str = "MAINSTAY_TEST_COPY_VICTIM";

/// `target/<profile>/examples/supervisor`.
fn supervisor() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/supervisor")
}

fn image(base: &Path, name: &str) -> Image {
    let root = base.join("volumes");
    fs::create_dir_all(&root).unwrap();
    Image::new(&root, &root.join(name)).unwrap()
}

fn hold(exe: &Path) -> Hold<'_> {
    Hold { exe, limit: freeze::LIMIT }
}

/// Appends numbered lines to a file of the volume, each on the disk before the next, from `first` on; gives the last.
fn write_lines(image: &Image, first: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(image.data().join("rows")).unwrap();
    let mut next = first;
    while goes_on(next) {
        // In one write: a snapshot between two would have half a line, to which whoever goes on there adds.
        file.write_all(format!("line-{next}\n").as_bytes()).and_then(|()| file.sync_data()).unwrap();
        next += 1;
    }
    next - 1
}

/// The whole lines of a volume, which must be the first ones without a gap.
fn lines(image: &Image) -> u64 {
    let rows = fs::read_to_string(image.data().join("rows")).unwrap();
    let whole = rows.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().enumerate().for_each(|(index, line)| assert_eq!(line, format!("line-{}", index + 1)));
    whole.lines().count() as u64
}

#[test]
fn a_snapshot_is_of_one_moment_and_its_volume_goes_on() {
    alone(|base| {
        let exe = supervisor();
        let (volume, copy, restored) = (image(base, "pvc-1"), image(base, "snapshot-1"), image(base, "pvc-2"));
        volume.ensure(64 * MIB, false).unwrap();
        write_lines(&volume, 1, |next| next <= 20);
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_lines(&volume, 21, |_| !stop.load(Ordering::Relaxed)));
            let taken = snapshots(&[Copy { from: &volume, to: &copy }], hold(&exe));
            stop.store(true, Ordering::Relaxed);
            taken.unwrap();
            writer.join().unwrap()
        });
        let (moment, size) = copy.moment().unwrap().unwrap();
        assert_eq!(size, 64 * MIB);
        assert!(moment <= SystemTime::now() && copy.file().metadata().unwrap().modified().unwrap() == moment);
        let occupied = std::os::unix::fs::MetadataExt::blocks(&copy.file().metadata().unwrap()) * 512;
        assert!(occupied < 16 * MIB, "sparse: {occupied}");
        // Asked for again, it is the one that was taken.
        let after = write_lines(&volume, written + 1, |next| next <= written + 5);
        snapshots(&[Copy { from: &volume, to: &copy }], hold(&exe)).unwrap();
        assert_eq!(copy.moment().unwrap().unwrap().0, moment);

        // A larger volume starts with it, and is its own.
        restored.ensure_copy(&copy, hold(&exe), 128 * MIB, false).unwrap();
        let df = nix::sys::statvfs::statvfs(&restored.data()).unwrap();
        assert_eq!(df.blocks() * df.fragment_size(), 128 * MIB);
        let seen = lines(&restored);
        assert!((20..=written).contains(&seen), "{seen} of {written} lines");
        write_lines(&restored, seen + 1, |next| next <= seen + 3);
        assert_eq!((lines(&restored), lines(&volume)), (seen + 3, after));
        assert_eq!(copy.moment().unwrap().unwrap().0, moment, "the snapshot is never mounted");
        // A copy of a volume that nobody has mounted needs no freezing.
        restored.unmount().unwrap();
        let again = image(base, "pvc-3");
        again.ensure_copy(&restored, hold(Path::new("/nonexistent")), 128 * MIB, false).unwrap();
        assert_eq!(lines(&again), seen + 3);
        copy.delete().unwrap();
        assert!(copy.moment().unwrap().is_none());
    });
}

#[test]
fn a_copy_never_starts_empty_and_a_group_is_of_one_moment() {
    alone(|base| {
        let exe = supervisor();
        let (missing, empty) = (image(base, "snapshot-gone"), image(base, "pvc-1"));
        assert!(empty.ensure_copy(&missing, hold(&exe), 16 * MIB, false).is_err());
        assert!(!empty.file().exists(), "no empty look-alike");
        empty.ensure(16 * MIB, false).unwrap();
        let other = image(base, "pvc-2");
        other.ensure(16 * MIB, false).unwrap();
        let (one, two) = (image(base, "snapshot-1"), image(base, "snapshot-2"));
        let group = [Copy { from: &empty, to: &one }, Copy { from: &other, to: &two }];
        snapshots(&group[..1], hold(&exe)).unwrap();
        let cut_off = one.moment().unwrap();
        // What an attempt that was cut off has left is of another moment.
        snapshots(&group, hold(&exe)).unwrap();
        assert_ne!(one.moment().unwrap(), cut_off);
        assert_eq!(one.moment().unwrap(), two.moment().unwrap());
        // A member that cannot be copied: none is, and the others are written to again.
        let broken = [
            Copy { from: &empty, to: &image(base, "snapshot-3") },
            Copy { from: &missing, to: &image(base, "snapshot-4") },
        ];
        assert!(snapshots(&broken, hold(&exe)).is_err());
        assert!(!image(base, "snapshot-3").file().exists());
        assert_eq!(write_lines(&empty, 1, |next| next <= 3), 3);
    });
}

#[test]
fn v10_a_copy_takes_no_room_that_a_volume_was_promised_and_leaves_nothing_where_it_fails() {
    alone(|base| {
        let exe = supervisor();
        let small = base.join("volumes");
        fs::create_dir(&small).unwrap();
        nix::mount::mount(Some("small"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=96m"))
            .unwrap();
        let (full, other, copy) = (image(base, "pvc-1"), image(base, "pvc-2"), image(base, "snapshot-1"));
        full.ensure(32 * MIB, false).unwrap();
        other.ensure(48 * MIB, false).unwrap();
        let fill = |image: &Image, mib: usize| {
            let mut file = File::create(image.data().join("fill")).unwrap();
            (0..mib).try_for_each(|_| file.write_all(&[7; MIB as usize])).and_then(|()| file.sync_all())
        };
        fill(&full, 22).unwrap();
        // 96 less 80 that were promised are left.
        let pair = [Copy { from: &full, to: &copy }];
        let error = snapshots(&pair, hold(&exe)).unwrap_err().to_string();
        assert!(error.contains("are free that no volume was promised"), "{error}");
        assert!(!copy.dir.join("image.new").exists() && !copy.file().exists());
        // The same for a volume that starts as a copy, and for one that is copied to grow.
        assert!(image(base, "pvc-3").ensure_copy(&full, hold(&exe), 32 * MIB, false).is_err());
        assert!(!small.join("pvc-3/image.new").exists());
        full.unmount().unwrap();
        assert!(offline::grow(&full.root, &full.dir, &full.open().unwrap(), 64 * MIB).is_err());
        assert!(!full.dir.join("image.new").exists());
        fill(&other, 36).unwrap();
        assert_eq!(fs::read(other.data().join("fill")).unwrap().len() as u64, 36 * MIB);
        // What was promised to nobody any more is free.
        other.delete().unwrap();
        snapshots(&pair, hold(&exe)).unwrap();
        assert!(copy.file().exists());
        // What a crash has left is found.
        fs::write(full.dir.join("image.new"), "half").unwrap();
        let begun = super::super::begun(&small).unwrap();
        assert_eq!(begun.iter().map(Image::name).collect::<Vec<_>>(), ["pvc-1"]);
        begun[0].tidy().unwrap();
        assert!(super::super::begun(&small).unwrap().is_empty());
    });
}

#[test]
fn v10_copies_at_one_time_do_not_take_the_same_room() {
    alone(|base| {
        let exe = supervisor();
        let small = base.join("volumes");
        fs::create_dir(&small).unwrap();
        nix::mount::mount(Some("small"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=96m"))
            .unwrap();
        let (one, two, lasting) = (image(base, "pvc-1"), image(base, "pvc-2"), image(base, "snapshot-0"));
        one.ensure(32 * MIB, false).unwrap();
        two.ensure(32 * MIB, false).unwrap();
        for image in [&one, &two] {
            let mut file = File::create(image.data().join("fill")).unwrap();
            (0..18).try_for_each(|_| file.write_all(&[7; MIB as usize])).and_then(|()| file.sync_all()).unwrap();
        }
        // Of 96, 64 were promised: there is room for one copy of 18 and more. That one is at its first block.
        let mut first = target(&lasting).unwrap();
        let from = one.open().unwrap();
        let wanted = from.metadata().unwrap().blocks() * 512;
        first.room = Some(room::reserve(&small, &first.file, wanted).unwrap());
        let copy = image(base, "snapshot-1");
        let pair = [Copy { from: &two, to: &copy }];
        let error = snapshots(&pair, hold(&exe)).unwrap_err().to_string();
        assert!(error.contains("are free that no volume was promised"), "{error}");
        assert!(image(base, "pvc-3").ensure_copy(&two, hold(&exe), 32 * MIB, false).is_err());
        two.unmount().unwrap();
        assert!(offline::grow(&two.root, &two.dir, &two.open().unwrap(), 64 * MIB).is_err());
        // What it has written it does not take twice; in all it takes no more than it said.
        first.room = None;
        clone(&from, &mut first, &small, None).unwrap();
        let left = room::reserve(&small, &File::create(base.join("nothing")).unwrap(), 8 * MIB);
        assert!(left.is_ok(), "{left:?}");
        drop(left);
        // One that is given up gives its room back.
        drop(first);
        snapshots(&pair, hold(&exe)).unwrap();
        assert!(copy.file().exists() && !lasting.file().exists());
    });
}

#[test]
fn writers_are_never_held_back_for_long() {
    alone(|base| {
        let exe = supervisor();
        let volume = image(base, "pvc-1");
        volume.ensure(16 * MIB, false).unwrap();
        let mounted = || vec![freeze::mounted_at(&volume.mount_point()).unwrap()];
        // Each of these writes hangs for ever where nobody thaws.
        let frozen = freeze::freeze(&exe, mounted(), Duration::from_millis(50)).unwrap();
        write_lines(&volume, 1, |next| next <= 2);
        assert!(!frozen.thaw().unwrap(), "its time was up: what was copied is of no one moment");

        let frozen = freeze::freeze(&exe, mounted(), freeze::LIMIT).unwrap();
        let again = freeze::freeze(&exe, mounted(), freeze::LIMIT).unwrap_err().to_string();
        assert!(again.contains("holding back the volume's writes"), "{again}");
        assert!(frozen.thaw().unwrap());
        write_lines(&volume, 3, |next| next <= 4);

        let frozen = freeze::freeze(&exe, mounted(), freeze::LIMIT).unwrap();
        frozen.kill();
        assert!(frozen.thaw().is_err());
        write_lines(&volume, 5, |next| next <= 6);

        // Both were killed: the next agent's start.
        let frozen = freeze::freeze(&exe, mounted(), freeze::LIMIT).unwrap();
        frozen.abandon();
        freeze::thaw_all(&base.join("volumes")).unwrap();
        assert_eq!(write_lines(&volume, 7, |next| next <= 8), 8);
        freeze::thaw_all(&base.join("volumes")).unwrap();

        // A copy that takes too long is no copy, and holds nobody back a second time.
        let copy = image(base, "snapshot-1");
        let pair = [Copy { from: &volume, to: &copy }];
        let error = snapshots(&pair, Hold { exe: &exe, limit: Duration::ZERO }).unwrap_err().to_string();
        assert!(error.contains("copying takes longer than the 0 seconds"), "{error}");
        assert!(
            snapshots(&pair, hold(Path::new("/nonexistent"))).unwrap_err().to_string().contains("while no pod uses it")
        );
        assert!(!copy.file().exists());
        volume.unmount().unwrap();
        snapshots(&pair, hold(Path::new("/nonexistent"))).unwrap();
        assert!(copy.file().exists() && !copy.dir.join(TOO_LONG).exists());
        volume.ensure(16 * MIB, true).unwrap();

        // The machine's own file system is never meant.
        let wrong = freeze::Mounted { point: base.join("volumes"), device: mounted()[0].device };
        assert!(
            freeze::freeze(&exe, vec![wrong], freeze::LIMIT)
                .unwrap_err()
                .to_string()
                .contains("something else is mounted")
        );
    });
}

/// What [`kill_9_at_any_moment_of_a_snapshot`] kills: takes snapshots of a volume, one after the other. Without a
/// parent that names a folder there is nothing to do.
#[test]
fn victim() {
    let Some(base) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let (exe, volume) = (supervisor(), image(&base, "pvc-1"));
    for number in fs::read_dir(base.join("volumes")).unwrap().count().. {
        let copy = image(&base, &format!("snapshot-{number}"));
        snapshots(&[Copy { from: &volume, to: &copy }], hold(&exe)).unwrap();
    }
}

#[test]
fn kill_9_at_any_moment_of_a_snapshot_leaves_nothing_frozen_and_nothing_half() {
    alone(|base| {
        let volume = image(base, "pvc-1");
        volume.ensure(32 * MIB, false).unwrap();
        let mut last = write_lines(&volume, 1, |next| next <= 10);
        let copies = || -> Vec<Image> {
            let names = fs::read_dir(base.join("volumes"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("snapshot-")).map(|name| image(base, &name)).collect()
        };
        let whole = || copies().into_iter().filter(|copy| copy.file().exists()).count();
        // A busy machine needs more rounds until victims come far enough.
        let mut round = 0;
        while round < 12 || whole() < 3 {
            round += 1;
            assert!(round < 500, "the victims do nothing");
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "volumes::image::copy::tests::victim"])
                .env(VICTIM, base)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // Not awaited: the moment is what the test is about.
            std::thread::sleep(Duration::from_millis(10 + round * 11));
            child.kill().unwrap();
            child.wait().unwrap();
            // Hangs where the victim has left the volume frozen.
            last = write_lines(&volume, last + 1, |next| next <= last + 2);
        }
        let copies = copies();
        let whole = copies.iter().filter(|copy| copy.file().exists());
        for (number, copy) in whole.enumerate().take(8) {
            let restored = image(base, &format!("pvc-restored-{number}"));
            restored.ensure_copy(copy, hold(Path::new("/nonexistent")), 32 * MIB, false).unwrap();
            assert!((10..=last).contains(&lines(&restored)));
            restored.delete().unwrap();
        }
        copies.iter().for_each(|copy| copy.delete().unwrap());
        assert_eq!(lines(&volume), last);
    });
}
