//! Archives, honest and not: names, digests, whiteouts, and nothing outside the root (X3, X4).

mod support;

/// What is re-executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use mainstay_runtime::images::{ImageError, ImageStore, normalize_name};
use support::{append, digest};

type Tar = tar::Builder<Vec<u8>>;

/// An entry whose name is written as it is: the tar crate itself would refuse bad ones.
fn entry(tar: &mut Tar, kind: tar::EntryType, name: &str, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o777 } else { 0o4755 });
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

fn layer(build: impl FnOnce(&mut Tar)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    build(&mut tar);
    tar.into_inner().unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": ["/run"], "Cmd": ["a"], "Env": ["A=b=c"], "User": "app",
            "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/data": {} } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    config.to_string().into_bytes()
}

/// What `docker save` writes.
fn docker_archive(tag: &str, layers: &[&[u8]]) -> Vec<u8> {
    layer(|tar| {
        let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        for (name, layer) in names.iter().zip(layers) {
            append(tar, name, layer);
        }
        append(tar, "config.json", &config(layers));
        append(
            tar,
            "manifest.json",
            serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]).to_string().as_bytes(),
        );
    })
}

/// The files of an OCI layout with an index for two platforms.
fn oci_layout(name: &str, blobs: &[(&[u8], &str)], plain: &[&[u8]]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut keep = |bytes: &[u8], kind: &str| {
        files.insert(format!("blobs/sha256/{}", &digest(bytes)[7..]), bytes.to_vec());
        serde_json::json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
    };
    let layers: Vec<serde_json::Value> = blobs
        .iter()
        .map(|(bytes, kind)| keep(bytes, &format!("application/vnd.oci.image.layer.v1.tar{kind}")))
        .collect();
    let config = keep(&config(plain), "application/vnd.oci.image.config.v1+json");
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers });
    let mut ours = keep(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let mut theirs = ours.clone();
    theirs["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    theirs["platform"] = serde_json::json!({ "os": "linux", "architecture": "s390x" });
    ours["platform"] = serde_json::json!({ "os": "linux", "architecture": if cfg!(target_arch = "aarch64") {
        "arm64" } else { "amd64" } });
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [theirs, ours] });
    let mut top = keep(index.to_string().as_bytes(), "application/vnd.oci.image.index.v1+json");
    top["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files.insert(
        "index.json".to_owned(),
        serde_json::json!({ "schemaVersion": 2, "manifests": [top] }).to_string().into_bytes(),
    );
    files
}

fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    layer(|tar| files.iter().for_each(|(name, bytes)| append(tar, name, bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn load(store: &ImageStore, archive: &[u8]) -> Result<Vec<String>, ImageError> {
    store.load_reader(&mut &*archive, &mut |_| ())
}

fn count(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn nothing_kept(store: &ImageStore) -> bool {
    ["records", "l", "tmp"].iter().all(|folder| count(&store.root().join(folder)) == 0)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn no_layer_reaches_out_of_its_root() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "alive").unwrap();
    let out = outside.to_str().unwrap();
    let canary = format!("{out}/canary");
    type Build<'a> = Box<dyn Fn(&mut Tar) + 'a>;
    let refused: Vec<(&str, Build<'_>)> = vec![
        ("climbs", Box::new(|tar| entry(tar, Regular, "../../../../outside/evil", "", b"x"))),
        ("climbs from inside", Box::new(|tar| entry(tar, Regular, "a/../../evil", "", b"x"))),
        ("hard link to outside", Box::new(|tar| entry(tar, Link, "x", &canary, b""))),
        ("hard link that climbs", Box::new(|tar| entry(tar, Link, "x", "../../outside/canary", b""))),
        (
            "hard link through a symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "l", out, b"");
                entry(tar, Link, "x", "l/canary", b"");
            }),
        ),
        ("whiteout of the parent", Box::new(|tar| entry(tar, Regular, "a/.wh...", "", b""))),
        (
            "a file as a folder",
            Box::new(|tar| {
                entry(tar, Regular, "f", "", b"x");
                entry(tar, Regular, "f/g", "", b"x");
            }),
        ),
        ("no name", Box::new(|tar| entry(tar, Regular, "/", "", b"x"))),
    ];
    let contained: Vec<(&str, Build<'_>)> = vec![
        (
            "file through an absolute symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "l", out, b"");
                entry(tar, Regular, "l/canary", "", b"dead");
            }),
        ),
        (
            "file through a climbing symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "l", "../../../../../../../..", b"");
                entry(tar, Regular, &format!("l{canary}")[..90.min(canary.len() + 1)], "", b"dead");
            }),
        ),
        (
            "file over a symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "f", &canary, b"");
                entry(tar, Regular, "f", "", b"dead");
            }),
        ),
        (
            "folder over a symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "d", out, b"");
                entry(tar, Directory, "d", "", b"");
                entry(tar, Regular, "d/canary", "", b"dead");
            }),
        ),
        (
            "opaque mark through a symlink",
            Box::new(|tar| {
                entry(tar, Symlink, "d", out, b"");
                entry(tar, Regular, "d/.wh..wh..opq", "", b"");
                entry(tar, Regular, "d/.wh.canary", "", b"");
            }),
        ),
    ];
    for (expected_ok, table) in [(false, refused), (true, contained)] {
        for (name, build) in table {
            let store = ImageStore::open(&dir.path().join("images")).unwrap();
            let layer = layer(|tar| build(tar));
            let result = load(&store, &docker_archive("evil:1", &[&layer]));
            assert!(expected_ok || (result.is_err() && nothing_kept(&store)), "{name}: {result:?}");
            assert_eq!(std::fs::read_to_string(&canary).unwrap(), "alive", "{name}");
            assert_eq!(count(&outside), 1, "{name}");
            assert_eq!(std::fs::metadata(&outside).unwrap().permissions().mode() & 0o777, 0o755, "{name}");
            std::fs::remove_dir_all(store.root()).unwrap();
        }
    }
}

#[test]
fn what_is_cut_or_changed_is_refused_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let content = layer(|tar| {
        entry(tar, tar::EntryType::Regular, "bin/a", "", &[7; 3000]);
        entry(tar, tar::EntryType::Regular, "bin/b", "", b"b");
    });
    let archive = docker_archive("cut:1", &[&content]);
    // The end of the last member; after it come only zeros that a tar may lack.
    let needed = archive.len() - archive.iter().rev().take_while(|byte| **byte == 0).count();
    let packed = gzip(&archive);
    let cuts = (0..needed).step_by(509).map(|end| archive[..end].to_vec());
    let packed_cuts = (0..packed.len() - 8).step_by(97).map(|end| packed[..end].to_vec());
    for cut in cuts.chain(packed_cuts) {
        let error = load(&store, &cut).expect_err("a cut archive was loaded");
        assert!(nothing_kept(&store), "{error}");
    }
    let mut flips = 0;
    for position in (0..needed).step_by(127) {
        let mut changed = archive.clone();
        changed[position] ^= 0x55;
        // Bytes that no digest covers (the outer headers' unused fields) may change; never a file's content.
        match load(&store, &changed) {
            Err(_) => flips += 1,
            Ok(names) => names.iter().for_each(|name| store.remove(name).unwrap()),
        }
        assert!(nothing_kept(&store), "at {position}");
    }
    assert!(flips > 20, "{flips}");
    assert_eq!(load(&store, &archive).unwrap(), ["docker.io/library/cut:1"]);
}

#[test]
fn every_form_of_an_archive_is_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let one = layer(|tar| entry(tar, tar::EntryType::Regular, "etc/passwd", "", b"app:x:77:88::/home:/bin/sh\n"));
    let two = layer(|tar| entry(tar, tar::EntryType::Regular, "etc/.wh.shadow", "", b""));
    let (zipped, squeezed) = (gzip(&one), zstd::encode_all(&*two, 1).unwrap());
    let layout = oci_layout("docker.io/library/many:2", &[(&zipped, "+gzip"), (&squeezed, "+zstd")], &[&one, &two]);
    let folder = dir.path().join("layout");
    for (name, bytes) in &layout {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let plain = dir.path().join("layout.tar");
    std::fs::write(&plain, tar_of(&layout)).unwrap();
    let mut ids = Vec::new();
    let mut steps = 0;
    for source in [&folder, &plain] {
        assert_eq!(store.load(source, &mut |_| steps += 1).unwrap(), ["docker.io/library/many:2"]);
        ids.push(store.resolve("many:2").unwrap().id);
    }
    for archive in [
        gzip(&tar_of(&layout)),
        zstd::encode_all(&*tar_of(&layout), 1).unwrap(),
        docker_archive("many:2", &[&one, &two]),
    ] {
        load(&store, &archive).unwrap();
        ids.push(store.resolve("docker.io/library/many:2").unwrap().id);
    }
    ids.dedup();
    assert_eq!((ids.len(), count(&store.root().join("l"))), (1, 2), "{ids:?}");
    assert!(steps > 0, "progress is told");
    let image = store.resolve(&ids[0]).unwrap();
    assert_eq!(
        (image.config.entrypoint.as_slice(), image.config.cmd.as_slice()),
        (["/run".to_owned()].as_slice(), ["a".to_owned()].as_slice())
    );
    assert_eq!(image.config.env, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(
        (image.config.exposed_ports, image.config.volumes),
        (vec!["80/tcp".to_owned()], vec!["/data".to_owned()])
    );
    assert!(image.repo_digests.iter().all(|digest| store.resolve(digest).is_some()) && !image.repo_digests.is_empty());
    let user = store.resolve_user(&ids[0], &image.config.user).unwrap();
    assert_eq!((user.uid, user.gid), (77, 88));

    load(&store, &docker_archive("other:1", &[&one])).unwrap();
    store.remove("many:2").unwrap();
    assert!(store.resolve("many:2").is_none());
    assert_eq!(count(&store.root().join("l")), 1, "a layer that another image has stays");
    assert!(matches!(store.remove("many:2"), Err(ImageError::NotFound(_))));
}

#[test]
fn a_killed_load_is_swept_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    std::fs::create_dir_all(store.root().join("tmp/4711-0/fs/usr")).unwrap();
    ImageStore::open(store.root()).unwrap();
    assert_eq!(count(&store.root().join("tmp")), 0);
    // A load that waits for its stream while another process opens the store.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let loading = store.clone();
    let archive = docker_archive("slow:1", &[&layer(|tar| entry(tar, tar::EntryType::Regular, "a", "", b"a"))]);
    let (head, tail) = archive.split_at(600);
    let task = std::thread::spawn(move || loading.load_reader(&mut reader, &mut |_| ()));
    writer.write_all(head).unwrap();
    while count(&store.root().join("tmp")) == 0 {
        std::thread::yield_now();
    }
    let other = ImageStore::open(store.root()).unwrap();
    assert_eq!(count(&store.root().join("tmp")), 1);
    writer.write_all(tail).unwrap();
    drop(writer);
    assert_eq!(task.join().unwrap().unwrap(), ["docker.io/library/slow:1"]);
    assert!(other.resolve("slow:1").is_some(), "the other process sees it at once");
}

#[test]
fn layers_lie_over_each_other_as_images_mean_it() {
    use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    let world = support::World::new("overlay");
    let lower = layer(|tar| {
        for name in ["keep", "gone", "dir/old", "opaque/old", "became-dir"] {
            entry(tar, Regular, name, "", b"lower");
        }
    });
    let upper = layer(|tar| {
        entry(tar, Regular, ".wh.gone", "", b"");
        entry(tar, Regular, "dir/new", "", b"upper");
        entry(tar, Directory, "opaque/", "", b"");
        entry(tar, Regular, "opaque/.wh..wh..opq", "", b"");
        entry(tar, Regular, "opaque/new", "", b"upper");
        entry(tar, Directory, "became-dir", "", b"");
        entry(tar, Symlink, "link", "/keep", b"");
        entry(tar, Link, "hard", "dir/new", b"");
        entry(tar, Fifo, "fifo", "", b"");
        entry(tar, Char, "null", "", b"");
    });
    load(&world.images, &docker_archive("two:1", &[&lower, &upper])).unwrap();
    let container = world.dir.join("c1");
    std::fs::create_dir_all(&container).unwrap();
    let id = world.images.resolve("two:1").unwrap().id;
    let root = world.images.mount_rootfs(&id, &container, false).unwrap();
    let mut names: Vec<String> = Vec::new();
    for folder in ["", "dir", "opaque"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().flatten();
        names.extend(entries.map(|entry| format!("{folder}/{}", entry.file_name().to_str().unwrap())));
    }
    names.sort();
    let expected =
        ["/became-dir", "/dir", "/fifo", "/hard", "/keep", "/link", "/opaque", "dir/new", "dir/old", "opaque/new"];
    assert_eq!(names, expected);
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    let new = meta("dir/new");
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o7777, new.mtime()), (12, 34, 0o4755, 1_000_000_000));
    assert!(meta("fifo").file_type().is_fifo() && meta("became-dir").is_dir() && meta("link").is_symlink());
    assert_eq!(meta("hard").nlink(), 2);
    std::fs::write(root.join("keep"), "changed").unwrap();
    assert!(matches!(world.images.remove("two:1"), Err(ImageError::InUse(_))));
    world.images.unmount_rootfs(&container).unwrap();
    world.images.unmount_rootfs(&container).unwrap();
    std::fs::remove_dir_all(&container).unwrap();
    world.images.remove("two:1").unwrap();
}

/// A registry of one image on loopback, over plain HTTP.
fn registry(files: BTreeMap<String, Vec<u8>>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let mut asked = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            let mut byte = [0u8; 1];
            while !request.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let line = String::from_utf8(request).unwrap();
            let path = line.split(' ').nth(1).unwrap_or("/quit").to_owned();
            if path == "/quit" {
                return asked;
            }
            let (status, body) = match files.get(&path) {
                Some(body) => ("200 OK", body.clone()),
                None => (
                    "404 Not Found",
                    br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec(),
                ),
            };
            let kind = if path.contains("/manifests/") {
                serde_json::from_slice::<serde_json::Value>(&body)
                    .ok()
                    .and_then(|body| body["mediaType"].as_str().map(str::to_owned))
            } else {
                None
            };
            let kind = kind.unwrap_or_else(|| "application/octet-stream".to_owned());
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {}\r\nContent-Length: \
                    {}\r\nConnection: close\r\n\r\n",
                digest(&body),
                body.len()
            );
            let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&body));
            asked.push(path);
        }
        asked
    };
    (port, std::thread::spawn(serve))
}

#[test]
fn an_image_is_pulled_once_and_a_false_one_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let one = layer(|tar| entry(tar, tar::EntryType::Regular, "a", "", b"a"));
    let zipped = gzip(&one);
    let mut files = BTreeMap::from([("/v2/".to_owned(), b"{}".to_vec())]);
    for (name, bytes) in oci_layout("ignored", &[(&zipped, "+gzip")], &[&one]) {
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            files.insert(format!("/v2/team/app/blobs/sha256:{hex}"), bytes.clone());
            files.insert(format!("/v2/team/app/manifests/sha256:{hex}"), bytes.clone());
            if String::from_utf8_lossy(&bytes).contains("image.index") {
                files.insert("/v2/team/app/manifests/1.0".to_owned(), bytes);
            }
        }
    }
    let blob = format!("/v2/team/app/blobs/{}", digest(&zipped));
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (port, server) = registry(files.clone());
    let name = format!("127.0.0.1:{port}/team/app:1.0");
    let mut steps = Vec::new();
    let image = tokio.block_on(store.pull(&name, None, &mut |progress| steps.push(progress.step))).unwrap();
    assert_eq!(image.names, [normalize_name(&name).unwrap()]);
    assert!(steps.contains(&"layer 1 of 1".to_owned()), "{steps:?}");
    tokio.block_on(store.pull(&name, None, &mut |_| ())).unwrap();
    let missing = tokio
        .block_on(store.pull(&format!("127.0.0.1:{port}/team/none:1"), None, &mut |_| ()))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("manifest unknown") || missing.contains("not found"), "{missing}");
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(b"GET /quit HTTP/1.1\r\n\r\n").unwrap();
    let asked = server.join().unwrap();
    assert_eq!(asked.iter().filter(|path| **path == blob).count(), 1, "{asked:?}");

    store.remove(&name).unwrap();
    let mut false_blob = zipped.clone();
    false_blob[20] ^= 1;
    files.insert(blob, false_blob);
    let (port, server) = registry(files);
    let error = tokio
        .block_on(store.pull(&format!("127.0.0.1:{port}/team/app:1.0"), None, &mut |_| ()))
        .unwrap_err()
        .to_string();
    assert!(error.to_lowercase().contains("digest"), "{error}");
    assert!(nothing_kept(&store));
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(b"GET /quit HTTP/1.1\r\n\r\n").unwrap();
    server.join().unwrap();
}
