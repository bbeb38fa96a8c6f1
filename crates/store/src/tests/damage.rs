//! What no crash does: bytes that change, rows that vanish, files that are gone, empty or another's (A10, A11).

use super::{delete_op, put_op};
use crate::disk::{Access, Disk};
use crate::testing::FaultyDisk;
use crate::{
    ClusterId, FILE, OpenError, Options, Owner, RestoreError, Revision, Source, StorageBackend, Store, Txn, examine,
    restore,
};
use bytes::Bytes;
use redb::{Database, ReadableTable as _, TableDefinition};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

type Content = (Revision, BTreeMap<Bytes, (Bytes, Revision)>);
type Rows<'a> = redb::Table<'a, &'static [u8], (u64, u64, &'static [u8])>;
const ROWS: TableDefinition<&[u8], (u64, u64, &[u8])> = TableDefinition::new("rows");

fn content(store: &Store) -> Content {
    let page = store.range(b"", None, usize::MAX, None).unwrap();
    (page.revision, page.entries.into_iter().map(|entry| (entry.key, (entry.value, entry.revision))).collect())
}

/// Some 300 rows of different sizes in several commits, some of them replaced and removed.
fn fill(store: &Store) -> Content {
    let key = |index: usize| format!("/core/pods/default/web-{index:03}");
    let value = |index: usize, round: usize| format!("<{index}:{round}>").repeat(1 + index % 90);
    for round in 0..6 {
        let ops = (0..300).filter(|index| index % 6 == round || index % 11 == 0);
        let ops = ops.map(|index| put_op(&key(index), &value(index, round))).collect();
        store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    }
    for index in [7, 70, 170] {
        store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op(&key(index))] }).unwrap();
    }
    content(store)
}

/// A well-mixed sequence, the same every time.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

fn folder_with(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), bytes).unwrap();
    folder
}

fn open_folder(folder: &Path, owner: Owner) -> Result<Store, OpenError> {
    Store::open(folder, Options { owner, ..Options::inline() })
}

#[test]
fn a_flipped_byte_at_a_thousand_offsets_is_refused_or_harmless_a10() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let written = fill(&store);
    // As kill -9 leaves it, and as a clean end does.
    let left_open = disk.bytes();
    drop(store);
    let (mut state, mut refused) = (20_26, 0);
    for round in 0..1000 {
        let mut bytes = if round % 2 == 0 { left_open.clone() } else { disk.bytes() };
        // Every second one where the data are: the rest of the file is free pages.
        let reach = if round % 4 < 2 { bytes.len() } else { bytes.len().min(200_000) };
        let at = random(&mut state) % reach;
        bytes[at] ^= 1 << (random(&mut state) % 8);
        let damaged = FaultyDisk::with(bytes.clone());
        match Store::open(Source::backend(damaged.clone()), Options::inline()) {
            Ok(store) => assert_eq!(content(&store), written, "byte {at} of round {round}"),
            Err(error) => {
                refused += 1;
                assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Newer { .. }), "{at}: {error}");
                assert!(damaged.bytes() == bytes, "byte {at}: a damaged file was changed");
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// What is saved of a damaged file is what was written to it, wherever its header leads.
#[test]
fn a_damaged_header_leads_nobody_astray_a10_x4() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let written = fill(&store);
    let (mut bytes, mut saved) = (disk.bytes(), 0);
    for bit in 0..320 * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = crate::salvage::salvage(&bytes, crate::Damage::default());
        for (key, revision, value) in found.rows() {
            let index: usize = std::str::from_utf8(&key[key.len() - 3..]).unwrap().parse().unwrap();
            assert!(revision <= written.0 && value.starts_with(format!("<{index}:").as_bytes()), "bit {bit}: {key:?}");
            saved += 1;
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(saved > 0);
}

/// The engine takes a newest commit that does not read back whole for one that the power cut short.
#[test]
fn an_acknowledged_commit_that_the_engine_drops_is_missed_a2_a10() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    fill(&store);
    let mut bytes = disk.bytes();
    let newest = if bytes[9] & 1 == 0 { 64 } else { 192 };
    bytes[newest + 8] ^= 1;
    let refused = Store::open(Source::backend(FaultyDisk::with(bytes)), Options::inline()).unwrap_err().to_string();
    assert!(refused.contains(&format!("revision {} was acknowledged", store.revision())), "{refused}");
}

#[test]
fn a_row_that_vanished_or_was_exchanged_is_missed_a10() {
    let change = |change: &dyn Fn(&mut Rows<'_>)| {
        let folder = tempfile::tempdir().unwrap();
        let store = open_folder(folder.path(), Owner::Anyone).unwrap();
        fill(&store);
        drop(store);
        let db = Database::open(folder.path().join(FILE)).unwrap();
        let write = db.begin_write().unwrap();
        change(&mut write.open_table(ROWS).unwrap());
        write.commit().unwrap();
        drop(db);
        let found =
            crate::salvage::salvage(&std::fs::read(folder.path().join(FILE)).unwrap(), crate::Damage::default());
        assert!(!found.damage.is_none(), "also without the engine it is seen");
        let refused = open_folder(folder.path(), Owner::Anyone).unwrap_err();
        assert!(refused.to_string().contains(folder.path().join(FILE).to_str().unwrap()), "{refused}");
        refused.to_string()
    };
    let key = &b"/core/pods/default/web-003"[..];
    let vanished = change(&|rows| drop(rows.remove(key).unwrap()));
    assert!(vanished.contains("holds 296 rows, 297 were written"), "{vanished}");
    // An older state of the row, with the checksum that it had then.
    let exchanged = change(&|rows| {
        let checksum = crate::checksum::of_row(key, Revision(1), b"old");
        rows.insert(key, (1, checksum, &b"old"[..])).unwrap();
    });
    assert!(exchanged.contains("its rows are not those that were written"), "{exchanged}");
    let changed = change(&|rows| {
        let (revision, checksum, _) = rows.get(key).unwrap().unwrap().value();
        rows.insert(key, (revision, checksum, &b"other"[..])).unwrap();
    });
    assert!(changed.contains("/core/pods/default/web-003 does not match its checksum"), "{changed}");
    assert!(!changed.contains(" rows "), "only what is known is said: {changed}");
}

/// A disk whose reads fail from an offset on.
#[derive(Debug)]
struct Unreadable(FaultyDisk, u64);

impl StorageBackend for Unreadable {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset < self.1 { self.0.read(offset, out) } else { Err(io::Error::other("a bad sector")) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// What cannot be read now may be whole: nobody is told to restore it.
#[test]
fn a_disk_that_cannot_be_read_is_not_called_damaged_a10() {
    let disk = FaultyDisk::new();
    let written = fill(&Store::open(Source::backend(disk.clone()), Options::inline()).unwrap());
    let length = disk.bytes().len() as u64;
    for from in [0, 64, 4096, length / 8] {
        let before = disk.bytes();
        let refused = Store::open(Source::backend(Unreadable(disk.clone(), from)), Options::inline()).unwrap_err();
        assert!(matches!(&refused, OpenError::Engine(why) if why == "a bad sector"), "from {from}: {refused}");
        assert!(disk.bytes() == before);
    }
    assert_eq!(content(&Store::open(Source::backend(disk), Options::inline()).unwrap()), written);
}

#[test]
fn what_is_sound_is_read_past_the_damage_and_restored_a10_a3() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let written = fill(&store);
    let left_open = disk.bytes();
    drop(store);
    for bytes in [left_open, disk.bytes()] {
        let mut bytes = bytes;
        // In a value of a row that was written once, so that this is the only place where it is.
        let needle = b"<89:5><89:5><89:5>";
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        bytes[at + 1] = b'9';
        let folder = folder_with(&bytes);
        let refused = open_folder(folder.path(), Owner::Anyone).unwrap_err();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
        let found = examine(folder.path()).unwrap();
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), bytes, "looking changes nothing");
        assert_eq!((found.revision, found.damage.keys), (written.0, 1), "{}", found.damage);
        assert_eq!(found.damage.named, ["/core/pods/default/web-089"]);
        let sound: BTreeMap<_, _> =
            found.entries.iter().map(|entry| (entry.key.clone(), (entry.value.clone(), entry.revision))).collect();
        let mut expected = written.1.clone();
        expected.remove(&b"/core/pods/default/web-089"[..]);
        assert_eq!(sound, expected);

        let (new, cluster) = (tempfile::tempdir().unwrap(), ClusterId::new(7));
        restore(new.path(), cluster, Revision(written.0.0 + 1000), &found.entries).unwrap();
        let made = FaultyDisk::with(std::fs::read(new.path().join(FILE)).unwrap());
        let made = Disk::open(Source::backend(made), Access::Make).unwrap();
        assert_eq!(made.marked().unwrap(), Some(Revision(written.0.0 + 1000)), "noted beside the engine's (A2)");
        let again = restore(new.path(), cluster, Revision(9999), &found.entries);
        assert!(matches!(again, Err(RestoreError::Exists(_))), "{again:?}");
        let store = open_folder(new.path(), Owner::Anyone).unwrap();
        assert_eq!(content(&store), (Revision(written.0.0 + 1000), expected));
        assert_eq!(store.cluster(), cluster);
    }
}

#[test]
fn a_store_of_format_1_is_read_and_rewritten() {
    const DATA: TableDefinition<&[u8], (u64, &[u8])> = TableDefinition::new("data");
    const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let folder = tempfile::tempdir().unwrap();
    let db = Database::create(folder.path().join(FILE)).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(DATA).unwrap().insert(&b"a"[..], (3, &b"one"[..])).unwrap();
    write.open_table(DATA).unwrap().insert(&b"b"[..], (5, &b"two"[..])).unwrap();
    write.open_table(META).unwrap().insert("format", 1).unwrap();
    write.open_table(META).unwrap().insert("revision", 6).unwrap();
    write.commit().unwrap();
    drop(db);
    let cluster = ClusterId::new(1).unwrap();
    let row = |value: &'static str, revision| (Bytes::from(value), Revision(revision));
    let expected = (Revision(6), BTreeMap::from([("a".into(), row("one", 3)), ("b".into(), row("two", 5))]));
    let store = open_folder(folder.path(), Owner::Claim { cluster, existing: true }).unwrap();
    assert_eq!((content(&store), store.cluster()), (expected.clone(), Some(cluster)));
    drop(store);
    let store = open_folder(folder.path(), Owner::Known { cluster, revision: Revision(6) }).unwrap();
    assert_eq!(content(&store), expected);
    store.commit_blocking(super::put("a", "three")).unwrap();
    drop(store);
    assert_eq!(open_folder(folder.path(), Owner::Anyone).unwrap().revision(), Revision(7));
}

#[test]
fn a_store_that_does_not_fit_its_folder_is_refused_a11_a3() {
    let (ours, other) = (ClusterId::new(5).unwrap(), ClusterId::new(6).unwrap());
    let known = Owner::Known { cluster: ours, revision: Revision(2) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let missing = |owner| open_folder(&path, owner).unwrap_err().to_string();
    assert!(missing(known).contains("is missing, where the store of cluster 00"), "{}", missing(known));
    assert!(missing(Owner::Claim { cluster: ours, existing: true }).contains("is missing"));
    assert!(!path.exists(), "nothing is made where something is missed");
    // What cannot be looked at is not said to be missing.
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let error = open_folder(&blocked.join("store"), known).unwrap_err();
    assert!(matches!(&error, OpenError::Folder { .. }), "{error}");

    let store = open_folder(&path, Owner::Claim { cluster: ours, existing: false }).unwrap();
    for value in ["1", "2", "3"] {
        store.commit_blocking(super::put("k", value)).unwrap();
    }
    drop(store);
    let file = path.join(FILE);
    let whole = std::fs::read(&file).unwrap();
    open_folder(&path, known).unwrap();
    // Whose it is was decided when it was made.
    assert_eq!(open_folder(&path, Owner::Claim { cluster: other, existing: false }).unwrap().cluster(), Some(ours));
    let foreign = open_folder(&path, Owner::Known { cluster: other, revision: Revision(0) }).unwrap_err();
    assert!(foreign.to_string().contains("is the store of cluster 00"), "{foreign}");
    let older = open_folder(&path, Owner::Known { cluster: ours, revision: Revision(4) }).unwrap_err();
    assert!(older.to_string().contains("is at revision 3, an older copy"), "{older}");
    for (bytes, words) in [(vec![], "is empty"), (vec![0; whole.len()], "is empty")] {
        std::fs::write(&file, &bytes).unwrap();
        let refused = open_folder(&path, known).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "it stays as it was found");
    }
}
