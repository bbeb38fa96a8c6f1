//! What an archive or layer that somebody made with intent must not get (X3, X4).

use std::io::{self, Cursor, Read, Write as _};
use std::path::Path;

use serde_json::json;

use super::blob::{Layer, unpack_stream};
use super::fuzzing::{Entry, pax, tar};
use super::{ImageError, ImageStore, Progress};
use crate::fuzzing::Folder;

fn unpack(tar: Vec<u8>, root: &Path) -> Result<String, String> {
    let layer = Layer { digest: None, diff_id: "", number: 1, count: 1, total_bytes: None };
    unpack_stream(&mut Cursor::new(tar), root, &layer, &mut |_: Progress| {})
}

fn load(store: &ImageStore, archive: &mut dyn Read) -> String {
    match store.load_reader(archive, &mut |_: Progress| {}) {
        Err(ImageError::Archive { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// Each link leads to the deepest folder so far: 6000 folders, each in the one before, in a dozen entries.
#[test]
fn folders_may_be_so_deep_that_no_path_names_them() {
    const FOLDERS: usize = 2000;
    let path = b"a/".repeat(FOLDERS);
    let mut names: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for number in 0..3 {
        let before = if number == 0 { String::new() } else { format!("link{}/", number - 1) };
        names.push(([before.as_bytes(), &path].concat(), [before.as_bytes(), &path].concat()));
    }
    let links: Vec<String> = (0..names.len()).map(|number| format!("link{number}")).collect();
    let mut entries = Vec::new();
    for ((folder, target), link) in names.iter().zip(&links) {
        entries.extend([
            Entry::extended(b'L', folder),
            Entry::dir(b"a"),
            Entry::extended(b'K', target),
            Entry::link(link.as_bytes(), b'2', b""),
        ]);
    }
    // A file in the place of it all: what is deep is removed while it is unpacked.
    entries.push(Entry::file(b"a", b""));
    let base = Folder::new();
    unpack(tar(&entries), &base.inside()).unwrap();
    assert!(base.inside().join("a").is_file());
    entries.pop();
    let store = ImageStore::open(&base.inside().join("store")).unwrap();
    let work = store.workspace().unwrap();
    unpack(tar(&entries), &work.path).unwrap();
    let path = work.path.clone();
    drop(work);
    assert!(!path.exists(), "what was worked on is gone");
}

#[test]
fn headers_about_one_entry_have_a_limit_together() {
    let header = pax("SCHILY.xattr.user.a", &[b'b'; 60_000]);
    let entries: Vec<_> = (0..20).map(|_| Entry::extended(b'x', &header)).chain([Entry::file(b"a", b"")]).collect();
    let base = Folder::new();
    assert!(unpack(tar(&entries), &base.inside()).unwrap_err().contains("extended headers"));
    let store = ImageStore::open(&base.inside()).unwrap();
    assert!(load(&store, &mut Cursor::new(tar(&entries))).contains("extended headers"));
    // One that is long all by itself, and is not even there.
    let mut long = tar(&[Entry::extended(b'L', b"")]);
    long[124..136].copy_from_slice(b"77777777777\0");
    let mut long = super::fuzzing::with_checksums(&long);
    long.truncate(512);
    assert!(load(&store, &mut Cursor::new(long)).contains("extended headers"));
}

#[test]
fn a_sparse_file_is_refused_rather_than_unpacked_as_its_map() {
    let header = [pax("GNU.sparse.major", b"1"), pax("GNU.sparse.minor", b"0")].concat();
    let base = Folder::new();
    let unpacked = unpack(tar(&[Entry::extended(b'x', &header), Entry::file(b"a", b"1\n0\n512\n")]), &base.inside());
    assert!(unpacked.unwrap_err().contains("sparse"));
}

/// A thousand images that share one large config are read into memory a thousand times.
#[test]
fn manifests_and_configs_have_a_limit_together() {
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
        "comment": "x".repeat(4 << 20) });
    let manifest = json!(vec![json!({ "Config": "config.json", "RepoTags": null, "Layers": [] }); 1000]);
    let archive = tar(&[
        Entry::file(b"config.json", config.to_string().as_bytes()),
        Entry::file(b"manifest.json", manifest.to_string().as_bytes()),
    ]);
    let base = Folder::new();
    let store = ImageStore::open(&base.inside()).unwrap();
    assert_eq!(load(&store, &mut Cursor::new(archive)), "its manifests and configs are too large");
}

/// Folders that come and go: looking through all that were ever seen for each would take hours.
#[test]
fn folders_that_are_replaced_cost_what_they_are() {
    let names: Vec<String> = (0..2000).map(|number| format!("{number}")).collect();
    let mut entries: Vec<_> = names.iter().map(|name| Entry::dir(name.as_bytes())).collect();
    for _ in 0..200 {
        entries.extend([Entry::dir(b"again"), Entry::file(b"again", b"")]);
    }
    let base = Folder::new();
    unpack(tar(&entries), &base.inside()).unwrap();
    assert!(base.inside().join("again").is_file());
}

#[test]
fn what_a_stream_decompresses_to_has_a_limit() {
    let mut digesting = super::blob::Digesting::new(io::repeat(0), 1 << 20);
    assert!(io::copy(&mut digesting, &mut io::sink()).is_err());
    let mut exact = super::blob::Digesting::new(io::repeat(0).take(1 << 20), 1 << 20);
    assert_eq!(io::copy(&mut exact, &mut io::sink()).unwrap(), 1 << 20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"no tar").unwrap();
    let base = Folder::new();
    assert!(
        load(&ImageStore::open(&base.inside()).unwrap(), &mut Cursor::new(gzip.finish().unwrap()))
            .contains("not a tar archive")
    );
}
