//! What is read of a file whose pages are damaged, exchanged for older ones, or gone (A10).

use super::{delete_op, put_op};
use crate::salvage::salvage;
use crate::testing::FaultyDisk;
use crate::{Damage, Options, Revision, Source, Store, Txn};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The engine's.
const PAGE: usize = 4096;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

type Rows = BTreeMap<Bytes, (Revision, Bytes)>;

/// A file as it was, and as it is after other changes of the same rows; and every row that there ever was.
struct Files {
    before: Vec<u8>,
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
    let mut ever = BTreeSet::new();
    let mut round = |round: usize, some: usize| {
        let one =
            |index: usize| put_op(&format!("/k/{index:04}"), &format!("<{index}:{round}>").repeat(1 + index % 30));
        let mut ops: Vec<_> = (0..900).filter(|index| index % some == 0).map(one).collect();
        if round > 0 {
            ops.push(delete_op(&format!("/k/{:04}", round * 7 * 3 + 1)));
        }
        store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
        ever.extend(rows(&store).into_iter().map(|(key, (revision, value))| (key, revision, value)));
    };
    (0..6).for_each(|number| round(number, if number == 0 { 1 } else { 3 }));
    let before = disk.bytes();
    (6..12).for_each(|number| round(number, 5));
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
    let (mut lost, mut older, mut whole) = (0, 0, 0);
    for at in (PAGE..files.after.len()).step_by(PAGE) {
        let kind = files.after[at];
        let before = files.before.get(at..at + PAGE).filter(|before| [LEAF, BRANCH].contains(&before[0]));
        let changes = [Some(vec![0; PAGE]), Some(vec![9; 1]), before.map(<[u8]>::to_vec)];
        for (change, wrong) in changes.into_iter().enumerate() {
            let Some(wrong) = wrong.filter(|wrong| *wrong != files.after[at..at + wrong.len()]) else { continue };
            let mut file = files.after.clone();
            file[at..at + wrong.len()].copy_from_slice(&wrong);
            let (found, damage) = saved(&file);
            let what = format!("page {} of kind {kind}, change {change}: {damage}", at / PAGE);
            for (key, (revision, value)) in &found {
                assert!(files.ever.contains(&(key.clone(), *revision, value.clone())), "{key:?}, {what}");
            }
            let same = found.iter().filter(|(key, row)| files.now.get(*key) == Some(*row)).count();
            // Also the page that holds the file's summary may be wrong.
            assert!(!damage.is_none() || found == files.now, "{what}");
            // A leaf holds no more rows than these; whatever else it is, its rows are found without it.
            assert!(same + 150 >= files.now.len(), "{same} of {}: {what}", files.now.len());
            whole += usize::from(same == files.now.len() && damage.to_string().contains("as they were written last"));
            let missing = files.now.keys().filter(|key| !found.contains_key(*key)).count();
            if missing > 0 && same == found.len() && found.len() + missing == files.now.len() {
                lost += 1;
                // Another table's page has pairs that look like damaged rows.
                let words = format!("{} rows cannot be reached", missing - damage.keys);
                assert!(
                    found.is_empty() || missing == damage.keys || damage.to_string().contains(&words),
                    "{missing}, {what}"
                );
            }
            if same < found.len() {
                older += 1;
                assert!(damage.to_string().contains("may be an older one"), "{what}");
            }
        }
    }
    assert!(lost > 5 && older > 20 && whole > 0, "{lost} {older} {whole}");
}

/// Files that are no stores, and stores that are cut off: nothing is found, or what is.
#[test]
fn what_is_no_store_or_half_of_one_is_read_as_far_as_it_goes() {
    let files = files();
    for length in (0..400).chain((400..files.after.len()).step_by(1777)) {
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
        let (found, _) = saved(&file);
        assert!(found.is_empty() || found == files.now, "{number} at {at}");
    }
}
