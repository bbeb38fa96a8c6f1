//! What is read of a file whose pages are damaged, exchanged for older ones, or gone (A10).

use super::{delete_op, put_op};
use crate::format::Content;
use crate::salvage::salvage;
use crate::testing::FaultyDisk;
use crate::{Damage, Op, Options, Revision, Source, Store, Txn};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The engine's.
const PAGE: usize = 4096;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

type Rows = BTreeMap<Bytes, (Revision, Bytes)>;

/// A file as it is, and as it was before each of its last commits; and every row that there ever was.
struct Files {
    /// The latest last.
    before: Vec<Vec<u8>>,
    after: Vec<u8>,
    now: Rows,
    revision: Revision,
    ever: BTreeSet<(Bytes, Revision, Bytes)>,
}

fn rows(store: &Store) -> Rows {
    let entries = store.range(b"", None, usize::MAX, None).unwrap().entries;
    entries.into_iter().map(|entry| (entry.key, (entry.revision, entry.value))).collect()
}

fn files() -> Files {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let (mut ever, mut before) = (BTreeSet::new(), Vec::new());
    for round in 0..12 {
        before.push(disk.bytes());
        let value = |index: usize| format!("<{index}:{round}>").repeat(1 + (index + 7 * round) % 30);
        let step = [1, 3, 5][round.div_ceil(6)];
        let some = (0..600).filter(|index| index % step == 0);
        let mut ops: Vec<_> = some.map(|index| put_op(&format!("/k/{index:04}"), &value(index))).collect();
        if round > 0 {
            ops.push(delete_op(&format!("/k/{:04}", round * 7 * 3 + 1)));
        }
        store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
        ever.extend(rows(&store).into_iter().map(|(key, (revision, value))| (key, revision, value)));
    }
    let (now, revision) = (rows(&store), store.revision());
    drop(store);
    Files { before, after: disk.bytes(), now, revision, ever }
}

/// What is saved of a file, and whether anything is said to be wrong.
fn saved(file: &[u8]) -> (Rows, Damage) {
    let found = salvage(file, Damage::default());
    let rows = found.rows().map(|(key, revision, value)| (key.clone(), (revision, value.clone()))).collect();
    (rows, found.damage)
}

#[test]
fn all_of_a_sound_file_is_read() {
    let files = files();
    let found = salvage(&files.after, Damage::default());
    assert!(found.damage.is_none(), "{}", found.damage);
    assert_eq!(saved(&files.after).0, files.now);
    assert_eq!((found.format, found.summary.sum.rows), (Some(crate::format::FORMAT), files.now.len() as u64));
    assert_eq!(found.summary.revision, files.revision);
    let refused = Damage { whole: vec!["as the engine says".to_owned()], ..Damage::default() };
    assert_eq!(salvage(&files.after, refused.clone()).damage, refused);
}

/// Each page in turn: gone, of no known kind, or as it was before. Nothing is found that was never written, what is not
/// in that page is found as it is now, and what is wrong is said.
#[test]
fn of_a_file_with_a_wrong_page_the_rest_is_read_and_it_is_said() {
    let files = files();
    let mut older = 0;
    for at in (PAGE..files.after.len()).step_by(PAGE) {
        let kind = files.after[at];
        let before = files.before.iter().rev().take(2).filter_map(|before| before.get(at..at + PAGE));
        let before = before.filter(|before| [LEAF, BRANCH].contains(&before[0])).map(<[u8]>::to_vec);
        let changes = [vec![0; PAGE], vec![9; 1]].into_iter().chain(before);
        let mut without: Option<BTreeSet<Bytes>> = None;
        for (change, wrong) in changes.enumerate() {
            if wrong == files.after[at..at + wrong.len()] {
                continue;
            }
            let mut file = files.after.clone();
            file[at..at + wrong.len()].copy_from_slice(&wrong);
            let (found, damage) = saved(&file);
            let what = format!("page {} of kind {kind}, change {change}: {damage}", at / PAGE);
            for (key, (revision, value)) in &found {
                assert!(files.ever.contains(&(key.clone(), *revision, value.clone())), "{key:?}, {what}");
            }
            let same = found.iter().filter(|(key, row)| files.now.get(*key) == Some(*row));
            let same: BTreeSet<Bytes> = same.map(|(key, _)| key.clone()).collect();
            let without = without.get_or_insert_with(|| same.clone());
            assert!(without.is_subset(&same), "an older page takes nothing that is found without it: {what}");
            let same = same.len();
            // Also the page that holds the file's summary may be wrong.
            assert!(!damage.is_none() || found == files.now, "{what}");
            // A leaf holds no more rows than these; whatever else it is, its rows are found without it.
            assert!(same + 150 >= files.now.len(), "{same} of {}: {what}", files.now.len());
            if same < found.len() {
                older += 1;
                assert!(damage.to_string().contains("may be an older one"), "{what}");
            }
        }
    }
    assert!(older > 20, "{older}");
}

/// Files that are no stores, and stores that are cut off: nothing is found, or what is.
#[test]
fn what_is_no_store_or_half_of_one_is_read_as_far_as_it_goes() {
    let files = files();
    let short = (PAGE..10 * PAGE).step_by(PAGE).flat_map(|at| at..at + 6);
    for length in (0..400).chain(short).chain((400..files.after.len()).step_by(1777)) {
        let (found, damage) = saved(&files.after[..length]);
        for (key, (revision, value)) in &found {
            assert!(files.ever.contains(&(key.clone(), *revision, value.clone())), "{key:?} of {length}");
        }
        assert!(!damage.is_none() || found.is_empty() || found == files.now, "{length}: {damage}");
    }
    // Sizes of pages that no engine makes: none, and one that is not there as often as is said.
    for (at, number) in [(12, 0u32), (12, 511), (12, u32::MAX), (16, u32::MAX), (20, u32::MAX)] {
        let mut file = files.after.clone();
        file[at..at + 4].copy_from_slice(&number.to_le_bytes());
        let (found, damage) = saved(&file);
        let is_known =
            |(key, row): (&Bytes, &(Revision, Bytes))| files.ever.contains(&(key.clone(), row.0, row.1.clone()));
        assert!(found.iter().all(is_known) && (found == files.now || !damage.is_none()), "{number} at {at}: {damage}");
    }
}

/// The pages of a kind that hold a text.
fn pages_with<'a>(file: &'a [u8], kind: u8, text: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let pages = (PAGE..file.len()).step_by(PAGE);
    pages.filter(move |at| file[*at] == kind && file[*at..at + PAGE].windows(text.len()).any(|window| window == text))
}

/// Fills the pages of a kind that hold a text.
fn clear(file: &mut [u8], kind: u8, text: &[u8]) {
    let pages: Vec<usize> = pages_with(file, kind, text).collect();
    pages.into_iter().for_each(|at| file[at..at + PAGE].fill(0));
}

/// A file that was left open, without the pages of a kind that hold a text.
fn without(kind: u8, text: &[u8], ops: Vec<Vec<Op>>) -> (Rows, Content) {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    for ops in ops {
        store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    }
    let mut file = disk.bytes();
    clear(&mut file, kind, text);
    (rows(&store), salvage(&file, Damage::default()))
}

fn rows_of(content: &Content) -> Rows {
    content.rows().map(|(key, revision, value)| (key.clone(), (revision, value.clone()))).collect()
}

fn some(value: &str) -> Vec<Op> {
    (0..3).map(|index| put_op(&format!("/k/{index}"), value)).collect()
}

/// The page that names the tables, the one with the summary, and both: the rows are found, and it is said what is not.
#[test]
fn without_its_tables_or_its_summary_the_rows_of_a_file_are_found() {
    let ops = || vec![some("one"), some("two"), vec![delete_op("/k/1")]];
    // Keys of `meta`, and the tables' names.
    let (now, found) = without(LEAF, b"cluster-high", ops());
    assert_eq!((rows_of(&found), found.format), (now, None));
    assert_eq!(found.damage.whole, ["its summary does not match its checksum"]);
    assert_eq!(found.summary.revision, Revision(6), "that of the rows");

    let (now, found) = without(LEAF, b"metarows", ops());
    assert_eq!((found.format, found.summary.revision), (Some(crate::format::FORMAT), Revision(7)));
    assert_eq!(found.damage.whole[0], "its tables cannot be found");
    let all = "are in pages that nothing leads to: each is as it was written once, and may be an older one";
    assert!(found.damage.whole[1].contains(all), "{}", found.damage);
    assert!(found.damage.whole[1].ends_with("(/k/0, /k/1, /k/2)"), "{}", found.damage);
    let is_there = |(key, row): (&Bytes, &(Revision, Bytes))| rows_of(&found).get(key) == Some(row);
    assert!(now.iter().all(is_there));

    let (now, found) = without(LEAF, b"metarows", vec![some("one")]);
    assert_eq!(rows_of(&found), now);
    let whole = "3 rows are in pages that nothing leads to: they are as they were written last (/k/0, /k/1, /k/2)";
    assert_eq!(found.damage.whole, ["its tables cannot be found", whole]);

    for (count, end) in [(30, "/k/18, /k/19, ...)"), (20, "/k/18, /k/19)")] {
        let many = (0..count).map(|index| put_op(&format!("/k/{index:02}"), "value")).collect();
        let (now, found) = without(LEAF, b"metarows", vec![many]);
        assert_eq!(rows_of(&found), now);
        assert!(found.damage.whole[1].ends_with(end), "{}", found.damage);
    }
}

/// Rows whose page is gone are counted; where one is gone that leads to others, these are found.
#[test]
fn what_is_lost_with_a_page_is_counted() {
    let ops = || vec![(0..60).map(|index| put_op(&format!("/k/{index:02}"), &"value".repeat(100))).collect()];
    let (mut now, found) = without(LEAF, b"/k/30", ops());
    let rows = rows_of(&found);
    let count = now.len();
    now.retain(|key, _| rows.contains_key(key));
    assert_eq!((rows, now.contains_key(&b"/k/30"[..])), (now.clone(), false));
    let words = format!("{} rows cannot be reached, and their keys are not known", count - now.len());
    assert_eq!((found.damage.keys, found.damage.whole), (0, vec![words]));

    let (now, found) = without(BRANCH, b"/k/", ops());
    assert_eq!(rows_of(&found), now);
    assert!(found.damage.whole[0].starts_with("60 rows are in pages that nothing leads to: they are as they were"));
    assert_eq!((found.damage.keys, found.damage.whole.len()), (0, 1));
}

/// Rows that were taken away stay away where the file is sound.
#[test]
fn an_empty_store_is_read_as_one() {
    let removed = (0..3).map(|index| delete_op(&format!("/k/{index}"))).collect();
    let (_, found) = without(LEAF, b"nothing has this", vec![some("one"), removed]);
    assert!(found.damage.is_none(), "{}", found.damage);
    assert_eq!((rows_of(&found).len(), found.summary.revision), (0, Revision(6)));
}

/// Where the newest commit leads nowhere, in whichever of the two places it is, the one before is read with all that is
/// found of the newest; and it is never silent.
#[test]
fn a_newest_commit_that_leads_nowhere_is_read_by_its_pages() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let lost = "its newest commit cannot be found; it is read as of the one before";
    let mut places = BTreeSet::new();
    store.commit_blocking(Txn { expect: vec![], ops: some("zero") }).unwrap();
    for value in ["one", "two", "three", "four"] {
        let (before, was) = (rows(&store), disk.bytes());
        store.commit_blocking(Txn { expect: vec![], ops: some(value) }).unwrap();
        let mut file = disk.bytes();
        let newest = usize::from(file[9] & 1);
        places.insert(newest);
        let root = [64, 192][newest] + 8;
        file[root..root + 8].fill(0xff);
        let found = salvage(&file, Damage::default());
        assert_eq!((rows_of(&found), found.summary.revision), (rows(&store), store.revision()), "{value}");
        let all = "3 rows are in pages that nothing leads to: they are as they were written last (/k/0, /k/1, /k/2)";
        assert_eq!(found.damage.whole, [lost, all]);

        // Nothing else of it is there: its pages are what they were before.
        let header = file[..320].to_vec();
        file = was.clone();
        file[..320].copy_from_slice(&header);
        let found = salvage(&file, Damage::default());
        assert_eq!((rows_of(&found), found.damage.whole), (before, vec![lost.to_owned()]), "{value}");
    }
    assert_eq!(places.len(), 2);

    // What it deleted may be there again, and that is said.
    store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("/k/1"), put_op("/k/2", "five")] }).unwrap();
    let mut file = disk.bytes();
    let root = [64, 192][usize::from(file[9] & 1)] + 8;
    file[root..root + 8].fill(0xff);
    let found = salvage(&file, Damage::default());
    assert_eq!(rows_of(&found).len(), 3);
    assert!(rows(&store).iter().all(|(key, row)| rows_of(&found).get(key) == Some(row)));
    assert_eq!(found.damage.whole[0], lost);
    assert!(
        found.damage.whole[1].ends_with("may be an older one, or have been deleted since (/k/2)"),
        "{}",
        found.damage
    );
}

/// The commit before the first has no rows.
#[test]
fn an_empty_commit_before_is_not_taken_for_the_newest() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: some("one") }).unwrap();
    let file = disk.bytes();
    let names: Vec<usize> = pages_with(&file, LEAF, b"metarows").collect();
    assert_eq!(names.len(), 2, "that of the empty store is there yet");
    for at in names {
        let mut file = file.clone();
        file[at..at + PAGE].fill(0);
        assert_eq!(rows_of(&salvage(&file, Damage::default())), rows(&store));
    }
}

/// What another version wrote is not guessed at.
#[test]
fn of_another_format_no_row_is_taken() {
    const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    for hidden in [&b"nothing has this"[..], b"metarows"] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), Options::inline()).unwrap();
        store.commit_blocking(Txn { expect: vec![], ops: some("one") }).unwrap();
        drop(store);
        let path = folder.path().join(crate::FILE);
        let db = redb::Database::open(&path).unwrap();
        for _ in 0..2 {
            let write = db.begin_write().unwrap();
            write.open_table(META).unwrap().insert("format", crate::format::FORMAT + 1).unwrap();
            write.commit().unwrap();
        }
        drop(db);
        let mut file = std::fs::read(&path).unwrap();
        clear(&mut file, LEAF, hidden);
        let found = salvage(&file, Damage::default());
        let words = format!("it has the format {}, of which no damaged file is read", crate::format::FORMAT + 1);
        assert_eq!((found.keys.size(), found.damage.whole), (0, vec![words]));
    }
}

/// A damaged page is no word of another version.
#[test]
fn a_format_in_a_damaged_page_is_not_believed() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: some("one") }).unwrap();
    let whole = disk.bytes();
    for at in pages_with(&whole, LEAF, b"cluster-high") {
        // The lowest byte of each of the numbers of 8 bytes that a page has: one of them is the format.
        let mut file = whole.clone();
        let page = &mut file[at..at + PAGE];
        let format = crate::format::FORMAT.to_le_bytes();
        let found = page.windows(8).position(|window| window == format).unwrap();
        page[found] = 9;
        assert_eq!(rows_of(&salvage(&file, Damage::default())), rows(&store));
    }
}

/// A disk with 60 rows, and the disk after some of them were replaced.
fn replaced(rows: std::ops::Range<usize>) -> [Vec<u8>; 2] {
    let ops = |rows: std::ops::Range<usize>, value: &str| -> Vec<Op> {
        rows.map(|index| put_op(&format!("/k/{index:02}"), &format!("{value}{index:02}").repeat(80))).collect()
    };
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: ops(0..60, "one") }).unwrap();
    let first = disk.bytes();
    store.commit_blocking(Txn { expect: vec![], ops: ops(rows, "two") }).unwrap();
    [first, disk.bytes()]
}

/// Where nothing is left but rows, they are found, and it is not known whether they are all.
#[test]
fn rows_alone_are_found() {
    let [mut file, _] = replaced(0..1);
    clear(&mut file, LEAF, b"metarows");
    clear(&mut file, LEAF, b"cluster-high");
    let found = salvage(&file, Damage::default());
    assert_eq!((found.keys.size(), found.format, found.summary.revision), (60, None, Revision(60)));
    assert!(found.damage.whole[1].contains("may be an older one"), "{}", found.damage);
    // One that is not what was written is none.
    let at = file.windows(6).position(|window| window == b"one30o").unwrap();
    file[at] = b'X';
    let found = salvage(&file, Damage::default());
    assert_eq!((found.keys.size(), found.damage.keys), (59, 0));
}

/// What a commit wrote that the power cut short is not there.
#[test]
fn rows_of_a_commit_that_never_was_are_left_alone() {
    let [first, mut file] = replaced(0..60);
    file[..320].copy_from_slice(&first[..320]);
    clear(&mut file, LEAF, b"one30");
    let found = salvage(&file, Damage::default());
    let count = found.keys.size();
    assert!((30..60).contains(&count), "{count}");
    assert!(found.rows().all(|(_, revision, value)| revision <= Revision(60) && value.starts_with(b"one")));
    assert_eq!(found.damage.whole, [format!("{} rows cannot be reached, and their keys are not known", 60 - count)]);
}

/// A row that is damaged where it should be is named, and no older one is put in its place.
#[test]
fn a_damaged_row_is_not_exchanged_for_an_older_one() {
    let [_, mut file] = replaced(0..1);
    let at = file.windows(6).position(|window| window == b"two00t").unwrap();
    file[at] = b'X';
    clear(&mut file, LEAF, b"one59");
    let found = salvage(&file, Damage::default());
    assert_eq!((found.damage.keys, &found.damage.named[..]), (1, &[Bytes::from("/k/00")][..]), "{}", found.damage);
    assert!(!found.keys.contains_key(&b"/k/00"[..]));
    assert!(found.damage.to_string().contains("rows cannot be reached"), "{}", found.damage);
}

/// What is said of rows whose page, or one that leads to it, is not what it should be.
fn unsure(count: usize) -> String {
    format!(
        "{count} rows are in pages that are not what was written there last: each is as it was written once, and may \
         be an older one"
    )
}

/// What a page that is not what it should be leads to is not sure either.
#[test]
fn nothing_is_sure_below_a_page_that_is_not_what_it_should_be() {
    let [_, whole] = replaced(0..1);
    let sound = rows_of(&salvage(&whole, Damage::default()));
    // A branch's number of keys is followed by four bytes that mean nothing; a table's kind by its length.
    let branch = pages_with(&whole, BRANCH, b"/k/").last().unwrap() + 4;
    let names = pages_with(&whole, LEAF, b"metarows").map(|at| {
        let of_rows = whole[at..at + PAGE].windows(8).position(|window| window == b"metarows").unwrap() + 8;
        at + of_rows + 1
    });
    let mut said = BTreeSet::new();
    for at in names.chain([branch]) {
        let mut file = whole.clone();
        file[at] ^= 1;
        let found = salvage(&file, Damage::default());
        assert_eq!(rows_of(&found), sound, "{at}: {}", found.damage);
        said.extend(found.damage.whole);
    }
    assert!(said.contains(&unsure(60)), "{said:?}");
}

/// A reference that leads to an older page brings no older row in the place of a newer one, in whichever order they
/// are come across.
#[test]
fn an_older_page_takes_the_place_of_no_newer_row() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    let ops = |value: &str| (0..20).map(|index| put_op(&format!("/k/{index:02}"), value)).collect();
    store.commit_blocking(Txn { expect: vec![], ops: ops("small") }).unwrap();
    let first = disk.bytes();
    let old = pages_with(&first, LEAF, b"small").last().unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: ops(&"large".repeat(60)) }).unwrap();
    let whole = disk.bytes();
    assert_eq!(whole[old..old + PAGE], first[old..old + PAGE], "it is there yet");
    // A page's number is its place behind the file's header.
    let number = (old / PAGE - 1) as u64;
    let mut kept = Vec::new();
    for branch in pages_with(&whole, BRANCH, b"/k/") {
        let children = usize::from(whole[branch + 2]) + 1;
        for child in 0..children {
            let mut file = whole.clone();
            let at = branch + 8 + 16 * children + 8 * child;
            file[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let found = salvage(&file, Damage::default());
            assert_eq!(found.keys.size(), 20, "{}", found.damage);
            let newer = found.rows().filter(|(_, revision, _)| *revision > Revision(20)).count();
            // Not all branches are of the newest commit.
            kept.extend(Some(newer).filter(|_| !found.damage.is_none()));
        }
    }
    // Those of the child alone are older.
    let children = kept.len();
    assert!(children > 1 && kept.iter().sum::<usize>() == 20 * (children - 1), "{kept:?}");
}

/// A damaged row is none that is missing: nothing that was deleted is looked for in its place.
#[test]
fn nothing_that_was_deleted_comes_back_for_a_damaged_row() {
    let disk = FaultyDisk::new();
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: some("one") }).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("/k/1"), put_op("/k/2", "damaged")] }).unwrap();
    let mut file = disk.bytes();
    let at = file.windows(7).position(|window| window == b"damaged").unwrap();
    file[at] = b'D';
    let found = salvage(&file, Damage::default());
    assert_eq!((found.keys.size(), found.damage.keys), (1, 1), "{}", found.damage);
    assert_eq!(found.damage.whole, [unsure(2)]);
}

/// Whose store it was is read whole, wherever it stands (A11).
#[test]
fn a11_the_cluster_is_known_of_a_file_without_its_tables() {
    let cluster = crate::ClusterId::new(0x0123_4567_89ab_cdef_0246_8ace_1357_9bdf).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let owner = crate::Owner::Claim { cluster, existing: false };
    let store = Store::open(folder.path().to_owned(), Options { owner, ..Options::inline() }).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: some("one") }).unwrap();
    drop(store);
    let mut file = std::fs::read(folder.path().join(crate::FILE)).unwrap();
    assert_eq!(salvage(&file, Damage::default()).summary.cluster, Some(cluster));
    clear(&mut file, LEAF, b"metarows");
    assert_eq!(salvage(&file, Damage::default()).summary.cluster, Some(cluster));
}
