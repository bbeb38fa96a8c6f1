//! Which cluster a folder holds: what is refused, set aside and restored.

use super::*;
use crate::offline;
use mainstay_store::{Encoded, Op, Txn};
use std::os::unix::fs::PermissionsExt as _;

const ID: u128 = 0xa11;

fn open(data_dir: &Path, expected: &Expected) -> Result<Store, StartError> {
    open_store(data_dir, expected, ID, None, None)
}

fn put(store: &Store, key: &'static str, value: &'static str) {
    let ops = vec![Op::Put { key: key.into(), value: Encoded::plain(value) }];
    store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
}

fn refusal(data_dir: &Path, expected: &Expected) -> String {
    open(data_dir, expected).unwrap_err().to_string()
}

#[test]
fn a_folder_that_held_a_cluster_is_never_taken_for_an_empty_one_a11() {
    let folder = tempfile::tempdir().unwrap();
    let (data, nothing) = (folder.path(), Expected::default());
    // Nothing is there: a first start needs no word.
    let store = open(data, &nothing).unwrap();
    put(&store, "/core/pods/default/a", "{}");
    let cluster = store.cluster().unwrap().to_string();
    drop(store);
    open(data, &nothing).unwrap();
    let file = data.join(STORE).join(mainstay_store::FILE);
    let saved = fs::read(&file).unwrap();

    fs::write(&file, vec![0; saved.len()]).unwrap();
    let refused = refusal(data, &nothing);
    assert!(refused.contains("is empty, where the store of cluster") && refused.contains("--new-cluster"), "{refused}");
    fs::remove_dir_all(data.join(STORE)).unwrap();
    assert!(refusal(data, &nothing).contains("is missing"), "{}", refusal(data, &nothing));
    // Without the note as well, the keys and the volumes speak.
    fs::remove_file(data.join(FILE)).unwrap();
    let volumes = Expected { volumes_of: Some(cluster.clone()), ..Expected::default() };
    assert!(refusal(data, &volumes).contains("is missing"));
    fs::create_dir(data.join("pki")).unwrap();
    assert!(refusal(data, &nothing).contains("is missing"));
    assert!(!data.join(STORE).exists(), "nothing was made");

    // A person says so.
    let meant = Expected { new: true, ..volumes.clone() };
    let store = open_store(data, &meant, 0xb22, None, None).unwrap();
    assert_ne!(store.cluster().unwrap().to_string(), cluster);
    drop(store);
    // The volumes are still the old one's until the node takes the folder over.
    assert!(refusal(data, &volumes).contains(&format!("volumes of cluster {cluster}")), "{}", refusal(data, &volumes));
    // The old store, put back: another cluster's by now.
    fs::write(&file, &saved).unwrap();
    assert!(refusal(data, &nothing).contains(&format!("is the store of cluster {cluster}")));
    fs::write(data.join(FILE), "garbage").unwrap();
    assert!(refusal(data, &nothing).contains("cluster"), "{}", refusal(data, &nothing));
}

#[test]
fn a_new_cluster_sets_the_old_store_aside_and_an_older_copy_is_refused_a11_a3() {
    let folder = tempfile::tempdir().unwrap();
    let (data, nothing) = (folder.path(), Expected::default());
    let store = open(data, &nothing).unwrap();
    let meant = Expected { new: true, ..Expected::default() };
    assert!(matches!(open(data, &meant), Err(StartError::InUse(_))), "not from under a server");
    put(&store, "a", "1");
    drop(store);
    let file = data.join(STORE).join(mainstay_store::FILE);
    let copy = fs::read(&file).unwrap();
    let store = open(data, &nothing).unwrap();
    put(&store, "a", "2");
    drop(store);
    drop(open(data, &nothing).unwrap());
    fs::write(&file, copy).unwrap();
    assert!(refusal(data, &nothing).contains("is at revision 1, an older copy"), "{}", refusal(data, &nothing));
    drop(open(data, &meant).unwrap());
    assert!(data.join("store.before-1").join(mainstay_store::FILE).exists());
    drop(open(data, &nothing).unwrap());
}

/// The copy of a store that ran for long is older than what its folder notes at its end.
#[test]
fn a_copy_from_before_a_long_run_is_refused_a3() {
    let folder = tempfile::tempdir().unwrap();
    let (data, nothing) = (folder.path(), Expected::default());
    let store = open(data, &nothing).unwrap();
    put(&store, "a", "1");
    drop(store);
    let file = data.join(STORE).join(mainstay_store::FILE);
    let copy = fs::read(&file).unwrap();
    let store = open(data, &nothing).unwrap();
    put(&store, "a", "2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The server stops.
    let (_closing, is_closing) = watch::channel(true);
    runtime.block_on(keep_noted(store.clone(), data.to_owned(), is_closing));
    drop(store);
    fs::write(&file, copy).unwrap();
    assert!(refusal(data, &nothing).contains("is at revision 1, an older copy"), "{}", refusal(data, &nothing));
}

/// However fast it is written, the store is not far beyond its note when it is killed.
#[test]
fn the_note_follows_a_busy_store_by_its_revisions_a3() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let store = open(data, &Expected::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_closing, is_closing) = watch::channel(false);
    // Time alone writes nothing in this test.
    let never = Duration::from_secs(3600);
    runtime.block_on(async {
        let keeping = tokio::spawn(follow(store.clone(), data.to_owned(), never, is_closing));
        let put = |number: u64| Op::Put { key: format!("key {number}").into(), value: Encoded::plain("") };
        for _ in 0..3 {
            store.commit_blocking(Txn { expect: vec![], ops: (0..AHEAD).map(put).collect() }).unwrap();
        }
        let noted = async {
            while Noted::read(data).unwrap().is_none_or(|noted| noted.revision.0 < AHEAD) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), noted).await.expect("it is noted");
        keeping.abort();
    });
}

#[test]
fn an_export_is_restored_forward_only_and_never_over_a_store_unasked_a3_a10() {
    let folder = tempfile::tempdir().unwrap();
    let (data, nothing) = (folder.path(), Expected::default());
    let store = open(data, &nothing).unwrap();
    put(&store, "/core/secrets/default/s", r#"{"data":"caf\u00e9 – é"}"#);
    put(&store, "/core/pods/default/p", "{\"kind\":\"Pod\"}\n");
    let ops = vec![Op::Put { key: (&b"\xff\0"[..]).into(), value: Encoded::plain(&b"\x80"[..]) }];
    store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    assert!(matches!(offline::export(data, &mut Vec::new()), Err(offline::OfflineError::Open(OpenError::InUse(_)))));
    let written = store.range(b"", None, 10, None).unwrap().entries;
    let cluster = store.cluster();
    drop(store);
    let mut export = Vec::new();
    assert!(offline::export(data, &mut export).unwrap().is_sound());
    assert!(offline::check(data).unwrap().is_sound());

    let refused = offline::restore(data, &export[..], false, ID).unwrap_err().to_string();
    assert!(refused.contains("--replace"), "{refused}");
    for (broken, why) in [
        (export[..export.len() - 40].to_vec(), "line 4"),
        (String::from_utf8(export.clone()).unwrap().replace("Pod", "Pop").into_bytes(), "does not match its checksum"),
        (b"{}".to_vec(), "line 1"),
    ] {
        let refused = offline::restore(data, &broken[..], true, ID).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    // What was written after the export was seen: its revisions are not given out again.
    let store = open(data, &nothing).unwrap();
    for _ in 0..5 {
        put(&store, "later", "");
    }
    let seen = store.revision();
    drop(store);
    let restored = offline::restore(data, &export[..], true, ID).unwrap();
    assert!(restored.revision > seen.0 && restored.rows == 3, "{restored:?}");
    let store = open(data, &nothing).unwrap();
    assert_eq!((store.revision().0, store.cluster()), (restored.revision, cluster));
    assert_eq!(store.range(b"", None, 10, None).unwrap().entries, written);
    drop(store);

    let elsewhere = tempfile::tempdir().unwrap();
    offline::restore(&elsewhere.path().join("new"), &export[..], false, ID).unwrap();
    assert_eq!(open(&elsewhere.path().join("new"), &nothing).unwrap().cluster(), cluster);
    let other = tempfile::tempdir().unwrap();
    drop(open_store(other.path(), &nothing, 0xc33, None, None).unwrap());
    let refused = offline::restore(other.path(), &export[..], true, ID).unwrap_err().to_string();
    assert!(refused.contains("is of cluster"), "{refused}");
    let mode = fs::metadata(data.join(FILE)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn a_damaged_store_stops_the_start_with_its_file_and_key_a10() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let store = open(data, &Expected::default()).unwrap();
    put(&store, "/core/persistentvolumeclaims/default/data-web-0", r#"{"metadata":{"uid":"4711"}}"#);
    put(&store, "/core/pods/default/web-0", r#"{"metadata":{"uid":"4712"}}"#);
    drop(store);
    let file = data.join(STORE).join(mainstay_store::FILE);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(4).rposition(|window| window == b"4711").unwrap();
    // Wherever the row is in the file, old copies of its page too.
    for start in 0..=at {
        if &bytes[start..start + 4] == b"4711" {
            bytes[start + 3] = b'3';
        }
    }
    fs::write(&file, &bytes).unwrap();
    let refused = refusal(data, &Expected::default());
    assert!(refused.contains(file.to_str().unwrap()) && refused.contains("mainstay store check"), "{refused}");
    let report = offline::check(data).unwrap();
    assert_eq!(report.damaged, ["/core/persistentvolumeclaims/default/data-web-0"]);
    let mut export = Vec::new();
    assert_eq!(offline::export(data, &mut export).unwrap().rows, 1);
    assert_eq!(fs::read(&file).unwrap(), bytes, "looking changes nothing");
    offline::restore(data, &export[..], true, ID).unwrap();
    let store = open(data, &Expected::default()).unwrap();
    assert_eq!((store.count(b""), store.get(b"/core/pods/default/web-0").is_some()), (1, true));
}
