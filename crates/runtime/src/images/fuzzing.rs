//! Layers and archives that somebody else made. Checksums and digests are made right after the damage, or nothing but
//! they would ever be tried.

use std::fs;
use std::io::{Cursor, Write as _};

use serde_json::json;

use super::archive::digest_of;
use super::blob::{Layer, unpack_stream};
pub use super::registry::fuzzing::{run as run_registry, seeds as registry_seeds};
use super::{Image, ImageStore, Progress};
use crate::fuzzing::{Folder, join, parts};

const BLOCK: usize = 512;

/// One layer: a tar whose headers' checksums are made right (first byte even), or a stream as it is.
pub fn run_layer(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    let stream = if what % 2 == 1 { rest.to_vec() } else { with_checksums(rest) };
    let folder = Folder::new();
    let layer = Layer { digest: None, diff_id: "", number: 1, count: 1, total_bytes: None };
    let _ = unpack_stream(&mut Cursor::new(stream), &folder.inside(), &layer, &mut |_: Progress| {});
    folder.assert_untouched();
}

/// One archive: a stream as it is (first byte odd), or parts that become one with right names and digests: what is a
/// layer's tar, its image's config, the manifest, and OCI's index (without it the manifest is docker's).
pub fn run_archive(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    let archive = if what % 2 == 1 { rest.to_vec() } else { archive(&parts(rest)) };
    let folder = Folder::new();
    let store = ImageStore::open(&folder.inside()).expect("a store");
    if let Ok(names) = store.load_reader(&mut Cursor::new(archive), &mut |_: Progress| {}) {
        for name in names {
            let image: Image = store.resolve(&name).expect("what was loaded is there");
            store.layer_dirs(&image.id).expect("its layers").iter().for_each(|layer| assert!(layer.is_dir()));
        }
    }
    let left: Vec<_> = fs::read_dir(folder.inside().join("tmp")).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
    folder.assert_untouched();
}

/// Walks a tar's headers as they say themselves where the next one is.
pub fn with_checksums(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK).filter(|header| header.iter().any(|byte| *byte != 0)) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..136]).unwrap_or_default().trim_matches(['\0', ' ']);
        let size = usize::from_str_radix(size, 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.checked_next_multiple_of(BLOCK).unwrap_or(size));
    }
    tar
}

/// `@L`, `@C` and `@M` in a document become the digests of layer, config and manifest.
fn archive(parts: &[&[u8]]) -> Vec<u8> {
    let part = |number: usize| parts.get(number).copied().unwrap_or_default();
    let layer = with_checksums(part(0));
    let mut digests = vec![(&b"@L"[..], digest_of(&layer))];
    let config = replaced(part(1), &digests);
    digests.push((b"@C", digest_of(&config)));
    let manifest = replaced(part(2), &digests);
    digests.push((b"@M", digest_of(&manifest)));
    let index = replaced(part(3), &digests);
    let mut files: Vec<(String, Vec<u8>)> = vec![];
    for blob in [layer, config, manifest.clone()] {
        files.push((format!("blobs/sha256/{}", digest_of(&blob).trim_start_matches("sha256:")), blob));
    }
    files.push(if part(3).is_empty() {
        ("manifest.json".to_owned(), manifest)
    } else {
        ("index.json".to_owned(), index)
    });
    let entries: Vec<Entry<'_>> = files.iter().map(|(name, content)| Entry::file(name.as_bytes(), content)).collect();
    tar(&entries)
}

fn replaced(document: &[u8], digests: &[(&[u8], String)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = document;
    while let Some((byte, after)) = rest.split_first() {
        match digests.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, digest)) => {
                out.extend_from_slice(digest.as_bytes());
                rest = rest.get(name.len()..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// A tar's entry, whatever it may be.
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub content: &'a [u8],
    pub mode: u32,
}

impl<'a> Entry<'a> {
    pub fn file(name: &'a [u8], content: &'a [u8]) -> Self {
        Self { name, kind: b'0', link: b"", content, mode: 0o644 }
    }

    pub fn dir(name: &'a [u8]) -> Self {
        Self { name, kind: b'5', link: b"", content: b"", mode: 0o755 }
    }

    pub fn link(name: &'a [u8], kind: u8, link: &'a [u8]) -> Self {
        Self { name, kind, link, content: b"", mode: 0o777 }
    }

    /// What stands before an entry and tells more about it: `x` for POSIX's, `L` and `K` for GNU's.
    pub fn extended(kind: u8, content: &'a [u8]) -> Self {
        Self { name: b"extended", kind, link: b"", content, mode: 0o644 }
    }
}

/// A tar as an attacker would write it: names go in as they are.
pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, entry.name);
        put(
            100,
            format!("{:07o}\0{:07o}\0{:07o}\0{:011o}\0{:011o}\0", entry.mode, 7, 8, entry.content.len(), 1_700_000_000)
                .as_bytes(),
        );
        put(156, &[entry.kind]);
        put(157, entry.link);
        put(257, b"ustar\x0000");
        put(329, b"0000001\x000000003\0");
        tar.extend_from_slice(&header);
        tar.extend_from_slice(entry.content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    with_checksums(&tar)
}

/// `length key=value\n`, with the length of all of it.
pub fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (rest + rest.to_string().len()).to_string().len();
    let mut record = format!("{} {key}=", rest + digits).into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// What honest and what evil tools write, plain and compressed.
pub fn layer_seeds() -> Vec<Vec<u8>> {
    let out = Folder::WAY_OUT.as_bytes();
    let honest = tar(&[
        Entry::dir(b"./"),
        Entry::dir(b"etc/"),
        Entry::file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
        Entry::link(b"etc/link", b'2', b"passwd"),
        Entry::link(b"etc/hard", b'1', b"etc/passwd"),
        Entry::file(b"usr/.wh.old", b""),
        Entry::file(b"var/.wh..wh..opq", b""),
    ]);
    let long = [b"deep/".repeat(30), b"name".to_vec()].concat();
    let extended =
        [pax("path", &long), pax("SCHILY.xattr.user.a", b"b"), pax("mtime", b"1.5"), pax("uid", b"70000")].concat();
    let described = tar(&[
        Entry::extended(b'x', &extended),
        Entry::file(b"short", b"content"),
        Entry::extended(b'L', &long),
        Entry::dir(b"short"),
        Entry::extended(b'K', &long),
        Entry::link(b"target", b'2', b"short"),
        Entry::link(b"device", b'3', b""),
        Entry::link(b"fifo", b'6', b""),
    ]);
    let evil = tar(&[
        Entry::link(b"out", b'2', b"../outside"),
        Entry::file(b"out/secret", b"overwritten"),
        Entry::link(b"root", b'2', b"/"),
        Entry::file(b"root/etc/made", b"inside"),
        Entry::link(b"stolen", b'1', b"out/secret"),
        Entry::file(b"out/.wh.secret", b""),
        Entry::file(b"out/.wh..wh..opq", b""),
        Entry::dir(b"out"),
        Entry::link(b"out", b'2', out),
        Entry::link(b"out", b'1', b"root/../../outside/secret"),
    ]);
    let above = tar(&[Entry::file(out, b"overwritten")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&honest).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::encode_all(&honest[..], 1).expect("memory");
    [(0, honest), (0, described), (0, evil), (0, above), (1, gzip), (1, zstd)]
        .map(|(what, bytes)| [&[what], &bytes[..]].concat())
        .into()
}

/// An archive of docker's and one of OCI, with all digests to be filled in; and one as it is.
pub fn archive_seeds() -> Vec<Vec<u8>> {
    let layer = tar(&[Entry::dir(b"etc/"), Entry::file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\n")]);
    let (os, architecture) = ("linux", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    let config = json!({
        "architecture": architecture, "os": os, "rootfs": { "type": "layers", "diff_ids": ["@L"] },
        "config": { "Env": ["A=b", "PATH"], "Cmd": ["sh"], "User": "1:2", "ExposedPorts": { "80/tcp": {} },
            "Volumes": { "/data": {} } },
    });
    let config = config.to_string().into_bytes();
    let path = |digest: &str| format!("blobs/sha256/{digest}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": "@C", "size": 1 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "@L", "size": 1 }],
    });
    let index = |annotation: &str| {
        json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "@M", "size": 1,
                "platform": { "os": os, "architecture": architecture },
                    "annotations": { annotation: "example.invalid/a:1" },
            }],
        })
    };
    let (manifest, index) = (manifest.to_string(), index("io.containerd.image.name").to_string());
    let oci = join(&[&layer, &config, manifest.as_bytes(), index.as_bytes()]);
    // Docker's manifest names files: a blob's path has its digest without the algorithm.
    let digest = |blob: &[u8]| digest_of(blob).trim_start_matches("sha256:").to_owned();
    let right = replaced(&config, &[(b"@L", digest_of(&layer))]);
    let docker = json!([{ "Config": path(&digest(&right)), "RepoTags": ["a:1"], "Layers": [path(&digest(&layer))] }])
        .to_string();
    let docker = join(&[&layer, &config, docker.as_bytes()]);
    let whole = archive(&[&layer, &config, manifest.as_bytes(), index.as_bytes()]);
    let nested = join(&[&layer, &config, index.as_bytes(), index.as_bytes()]);
    [(0, oci), (0, docker), (0, nested), (1, whole)].map(|(what, bytes)| [&[what], &bytes[..]].concat()).into()
}
