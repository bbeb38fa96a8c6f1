//! What a file says of itself, and what is made of it: files that contradict themselves, rows that no store can hold,
//! pages that are gone.

use super::put_op;
use crate::checksum::{Sum, Summary, of_row};
use crate::limits::{MAX_KEY, MAX_VALUE};
use crate::testing::FaultyDisk;
use crate::{
    ClusterId, Damage, Entry, FILE, OpenError, Options, Owner, Revision, Source, Store, Txn, examine, restore,
    row_checksum,
};
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, TableDefinition};

const ROWS: TableDefinition<&[u8], (u64, u64, &[u8])> = TableDefinition::new("rows");
const DATA: TableDefinition<&[u8], (u64, &[u8])> = TableDefinition::new("data");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Three rows, the newest of revision 5.
const WRITTEN: [(&str, u64, &str); 3] = [("a", 3, "one"), ("b", 5, "two"), ("c", 4, "three")];

fn sum(rows: &[(&str, u64, &str)]) -> Sum {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let rows: Vec<_> = rows.iter().map(|(key, at, value)| (bytes(key), Revision(*at), bytes(value))).collect();
    Sum::of(rows.iter().map(|(key, at, value)| (key, *at, value)))
}

/// A folder with a file of these rows that says this of itself.
fn folder(rows: &[(&str, u64, &str)], said: &[(&str, u64)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::create(folder.path().join(FILE)).unwrap();
    let write = db.begin_write().unwrap();
    {
        let mut table = write.open_table(ROWS).unwrap();
        let mut old = write.open_table(DATA).unwrap();
        for (key, at, value) in rows {
            let checksum = of_row(key.as_bytes(), Revision(*at), value.as_bytes());
            table.insert(key.as_bytes(), (*at, checksum, value.as_bytes())).unwrap();
            old.insert(key.as_bytes(), (*at, value.as_bytes())).unwrap();
        }
        let mut meta = write.open_table(META).unwrap();
        for (name, number) in said {
            meta.insert(*name, *number).unwrap();
        }
    }
    write.commit().unwrap();
    drop(db);
    folder
}

/// What a sound file of these rows says at a revision.
fn said(sum: Sum, revision: u64) -> Vec<(&'static str, u64)> {
    let seal = Summary { revision: Revision(revision), sum, cluster: None }.seal();
    vec![("format", 2), ("revision", revision), ("rows", sum.rows), ("digest", sum.digest), ("seal", seal)]
}

fn open(folder: &tempfile::TempDir) -> Result<Store, OpenError> {
    Store::open(folder.path(), Options::inline())
}

#[test]
fn a10_a_file_that_contradicts_itself_is_refused_in_words() {
    let all = sum(&WRITTEN);
    assert_eq!(open(&folder(&WRITTEN, &said(all, 5))).unwrap().count(b""), 3);
    let mut unsealed = said(all, 5);
    unsealed.retain(|(name, _)| *name != "seal");
    let mut moved = said(all, 5);
    moved[1].1 = 6;
    let others = sum(&[("a", 3, "one"), ("b", 5, "two"), ("c", 4, "tree")]);
    let unnamed: Vec<_> = said(all, 5).into_iter().filter(|(name, _)| *name != "format").collect();
    let old = |revision: u64| vec![("format", 1), ("revision", revision)];
    for (said, words) in [
        (said(all, 4), "key b has revision 5, the store 4"),
        (unsealed, "its summary does not match its checksum"),
        (moved, "its summary does not match its checksum"),
        (said(sum(&WRITTEN[1..]), 5), "it holds 3 rows, 2 were written"),
        (said(others, 5), "its rows are not those that were written"),
        (unnamed, "its format is not recorded"),
        (old(4), "key b has revision 5, the store 4"),
    ] {
        let folder = folder(&WRITTEN, &said);
        let before = std::fs::read(folder.path().join(FILE)).unwrap();
        let refused = open(&folder).unwrap_err();
        assert!(matches!(&refused, OpenError::Damaged { .. }) && refused.to_string().contains(words), "{refused}");
        assert!(std::fs::read(folder.path().join(FILE)).unwrap() == before, "{words}: it stays as it was found");
    }
    let mut newer = said(all, 5);
    newer[0].1 = 3;
    let refused = open(&folder(&WRITTEN, &newer)).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 3, known: 2 }), "{refused}");
    // What an older format had is taken away when it is written as this one; its rows are there once.
    let folder = folder(&WRITTEN, &old(5));
    drop(open(&folder).unwrap());
    let db = Database::open(folder.path().join(FILE)).unwrap();
    let read = db.begin_read().unwrap();
    assert!(read.open_table(DATA).is_err());
    let meta = read.open_table(META).unwrap();
    let number = |name: &str| meta.get(name).unwrap().map(|number| number.value());
    assert_eq!((number("format"), number("rows"), number("revision")), (Some(2), Some(3), Some(5)));
}

/// A11: a cluster's name has 128 bits, and all of them are kept.
#[test]
fn a11_all_of_a_clusters_name_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let open = |owner| Store::open(folder.path(), Options { owner, ..Options::inline() });
    let id = |high: u128, low: u128| ClusterId::new(high << 64 | low).unwrap();
    let ours = id(7, 9);
    drop(open(Owner::Claim { cluster: ours, existing: false }).unwrap());
    assert_eq!(open(Owner::Anyone).unwrap().cluster(), Some(ours));
    assert!(open(Owner::Known { cluster: ours, revision: Revision(0) }).is_ok());
    for other in [id(7, 8), id(8, 9), id(0, 9), id(9, 7)] {
        let refused = open(Owner::Known { cluster: other, revision: Revision(0) });
        assert!(matches!(refused, Err(OpenError::Foreign { .. })), "{other}");
    }
    assert_eq!(ClusterId::parse(&ours.to_string()), Some(ours));
    // A store of nobody's is its first cluster's from then on.
    let folder = tempfile::tempdir().unwrap();
    let open = |owner| Store::open(folder.path(), Options { owner, ..Options::inline() });
    assert_eq!(open(Owner::Anyone).unwrap().cluster(), None);
    assert_eq!(open(Owner::Claim { cluster: ours, existing: true }).unwrap().cluster(), Some(ours));
    assert_eq!(open(Owner::Anyone).unwrap().cluster(), Some(ours));
    for wrong in
        ["", "0", &"0".repeat(32), &"g".repeat(32), &"1".repeat(31), &"1".repeat(33), &format!("+{}", "1".repeat(31))]
    {
        assert_eq!(ClusterId::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn a3_a10_a_store_is_restored_of_rows_that_it_can_hold_and_of_no_others() {
    let entry = |key: &str, value: &str, revision: u64| Entry {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        revision: Revision(revision),
    };
    let sized = |key: usize, value: usize| Entry {
        key: vec![b'k'; key].into(),
        value: vec![b'v'; value].into(),
        revision: Revision(1),
    };
    let table = [
        (vec![], Ok(())),
        (vec![entry("b", "2", 5), entry("a", "1", 3), entry("c", "", 1)], Ok(())),
        (vec![sized(1, 1), sized(MAX_KEY, MAX_VALUE)], Ok(())),
        (vec![sized(0, 1)], Err("the key's length breaks the limit")),
        (vec![sized(MAX_KEY + 1, 1)], Err("the key's length breaks the limit")),
        (vec![sized(1, MAX_VALUE + 1)], Err("the value is longer than the limit")),
        (vec![entry("a", "", 6)], Err("the revision cannot be")),
        (vec![entry("a", "", 0)], Err("the revision cannot be")),
        (vec![entry("a", "1", 1), entry("b", "", 2), entry("a", "2", 3)], Err("it is there twice")),
    ];
    for (entries, expected) in table {
        let folder = tempfile::tempdir().unwrap();
        let made = restore(folder.path(), None, Revision(5), &entries);
        match expected {
            Ok(()) => {
                made.unwrap();
                let found = examine(folder.path()).unwrap();
                assert!(found.damage.is_none() && found.revision == Revision(5), "{}", found.damage);
                let mut sorted = entries.clone();
                sorted.sort_by(|one, other| one.key.cmp(&other.key));
                assert_eq!(found.entries, sorted);
                let store = open(&folder).unwrap();
                assert_eq!(store.commit_blocking(super::put("next", "")).unwrap().first, Revision(6), "A3");
            }
            Err(why) => {
                let refused = made.unwrap_err().to_string();
                assert!(refused.ends_with(why), "{refused}");
                assert!(!folder.path().join(FILE).exists(), "nothing is made");
            }
        }
    }
    // A row's checksum is the one that stands beside it.
    let (folder, one) = (tempfile::tempdir().unwrap(), entry("a", "1", 3));
    restore(folder.path(), None, Revision(5), std::slice::from_ref(&one)).unwrap();
    let db = Database::open(folder.path().join(FILE)).unwrap();
    let rows = db.begin_read().unwrap().open_table(ROWS).unwrap();
    assert_eq!(rows.get(&b"a"[..]).unwrap().unwrap().value().1, row_checksum(&one));
}

/// A10: whichever page is gone, the rest is read, each row as it was written once, and it is said how many are not:
/// of rows that were written once those of the page, of rows that were written before none.
#[test]
fn a10_what_cannot_be_reached_is_counted_and_all_else_is_read() {
    let key = |index: usize| format!("k{index:03}");
    for rounds in [1, 3] {
        let disk = FaultyDisk::new();
        let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
        for round in 0..rounds {
            let ops = (0..120).map(|index| put_op(&key(index), &format!("<{index}:{round}>").repeat(40))).collect();
            store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
        }
        let whole = disk.bytes();
        let intact = crate::salvage::salvage(&whole, Damage::default());
        assert!(intact.damage.is_none() && intact.keys.size() == 120, "{}", intact.damage);
        let last = store.revision();
        let (mut less, mut older) = (0, 0);
        for page in (0..whole.len() / 4096).skip(1) {
            let mut bytes = whole.clone();
            bytes[page * 4096..(page + 1) * 4096].fill(0);
            let found = crate::salvage::salvage(&bytes, Damage::default());
            let rows = found.keys.size();
            let lost = found.summary.sum.rows.saturating_sub((rows + found.damage.keys) as u64);
            let words = format!("{lost} rows cannot be reached, and their keys are not known");
            let what = format!("page {page} of {rounds}: {}", found.damage);
            assert_eq!(found.damage.whole.contains(&words), lost > 0, "{what}");
            assert!(rows >= 100 && found.summary.revision == last, "{what}");
            less += usize::from(lost > 0);
            older += usize::from(found.rows().any(|(key, revision, _)| revision < intact.keys[key].revision));
            for (key, revision, value) in found.rows() {
                let index: usize = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
                assert!(revision <= last && value.starts_with(format!("<{index}:").as_bytes()), "{what}");
                assert!(revision == intact.keys[key].revision || !found.damage.is_none(), "{what}");
            }
        }
        assert_eq!((less > 0, older > 0), (rounds == 1, rounds == 3), "{rounds}: {less} {older}");
    }
}

/// A10: whichever bit of a page's reference to another is wrong, what is read is all that was written last, or it is
/// said that it may not be: pages of before lie about in the file, each of whose rows is sound.
#[test]
fn a10_an_older_page_is_never_taken_for_the_one_that_was_meant() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    for round in 0..4 {
        for from in [0, 60] {
            let put = |index: usize| put_op(&format!("k{index:03}"), &format!("<{index}:{round}>").repeat(40));
            store.commit_blocking(Txn { expect: vec![], ops: (from..from + 60).map(put).collect() }).unwrap();
        }
    }
    let whole = disk.bytes();
    let intact = crate::salvage::salvage(&whole, Damage::default());
    assert!(intact.damage.is_none() && intact.keys.size() == 120, "{}", intact.damage);
    let (mut tried, mut older) = (0, 0);
    for page in (1..whole.len() / 4096).map(|page| page * 4096).filter(|page| whole[*page] == 2) {
        let children = usize::from(u16::from_le_bytes([whole[page + 2], whole[page + 3]])) + 1;
        for (child, bit) in (0..children).flat_map(|child| (0..64).map(move |bit| (child, bit))) {
            let mut bytes = whole.clone();
            let at = page + 8 + 16 * children + 8 * child + bit / 8;
            let Some(byte) = bytes.get_mut(at) else { continue };
            *byte ^= 1 << (bit % 8);
            let found = crate::salvage::salvage(&bytes, Damage::default());
            let is_whole = found.rows().eq(intact.rows());
            assert!(is_whole || !found.damage.is_none(), "page {page}, child {child}, bit {bit}");
            let is_older = |(key, revision, _): (&Bytes, Revision, &Bytes)| {
                intact.keys.get(key).is_none_or(|last| revision < last.revision)
            };
            if found.rows().any(is_older) {
                older += 1;
                assert!(found.damage.whole.iter().any(|words| words.contains("older")), "{}", found.damage);
            }
            tried += 1;
        }
    }
    assert!(tried > 0 && older > 0, "{tried} {older}");
}
