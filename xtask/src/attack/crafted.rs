//! Images that were made with intent: their layers climb, link, grow and hide; their configs name odd users and folders
//! (X3, X4, X6). Each is refused with a sentence, or a pod of it sees and changes nothing of the host.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::pods;
use crate::bench::cluster::Cluster;
use crate::bench::processes;

/// What the host keeps to itself; no container may say it.
const SECRET: &str = "a-secret-of-the-host";
/// As much as the main process may grow by all of this together (KiB).
const MAX_GROWTH: u64 = 64 << 10;
/// The zeros of the bomb: as many, and as many again inside, in steps of this (bytes).
const BOMB: usize = 256 << 20;
const BLOCK: usize = 512;

/// An entry of a layer, as its header says it.
struct Entry {
    name: String,
    kind: u8,
    link: String,
    content: Vec<u8>,
    mode: u32,
    device: (u32, u32),
    /// What the header says, where it lies.
    size: Option<Vec<u8>>,
}

fn entry(kind: u8, name: &str) -> Entry {
    let (name, link) = (name.to_owned(), String::new());
    Entry { name, kind, link, content: Vec::new(), mode: 0o755, device: (0, 0), size: None }
}

fn file(name: &str, content: &str) -> Entry {
    Entry { content: content.as_bytes().to_vec(), ..entry(b'0', name) }
}

fn link(kind: u8, name: &str, to: &str) -> Entry {
    Entry { link: to.to_owned(), ..entry(kind, name) }
}

impl Entry {
    fn write(&self, tar: &mut Vec<u8>) {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name.as_bytes()[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, b"0000000\x000000000\0");
        let size = format!("{:011o}", self.content.len()).into_bytes();
        put(124, self.size.as_deref().unwrap_or(&size));
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link.as_bytes()[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0{:07o}", self.device.0, self.device.1).as_bytes());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(&self.content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut tar));
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// What a program of the machine makes of bytes.
fn through(program: &str, args: &[&str], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut stdin, bytes) = (child.stdin.take().context("piped")?, bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    ensure!(output.status.success(), "{program}");
    Ok(output.stdout)
}

fn digest(bytes: &[u8]) -> Result<String> {
    let sum = String::from_utf8(through("sha256sum", &[], bytes)?)?;
    Ok(format!("sha256:{}", sum.split_whitespace().next().context("a sum")?))
}

/// One image and what a pod of it tries.
struct Crafted {
    name: &'static str,
    layer: Vec<u8>,
    config: Value,
    /// Without a pod it is only loaded.
    pod: Option<Value>,
    /// Whether its digest is another layer's.
    lies: bool,
}

fn crafted(name: &'static str, entries: &[Entry], script: &str) -> Crafted {
    let command = json!(["sh", "-c", script]);
    Crafted { name, layer: tar(entries), config: json!({}), pod: Some(json!({ "command": command })), lies: false }
}

fn loaded_only(name: &'static str, layer: Vec<u8>) -> Crafted {
    Crafted { name, layer, config: json!({}), pod: None, lies: false }
}

/// Everything that is tried; `secret` is a file of the host's.
#[expect(clippy::too_many_lines, reason = "a list of what is tried")]
fn all(secret: &str) -> Vec<Crafted> {
    let inside = secret.trim_start_matches('/');
    let climbing = format!("{}{inside}", "../".repeat(20));
    let read = format!("cat /copy /out{secret} /out/{inside} {secret} /x 2>&1; ls -la / 2>&1");
    let folder = Path::new(inside).parent().map(|parent| parent.display().to_string()).unwrap_or_default();
    let whiteout = |prefix: &str| format!("{prefix}.wh.secret");
    let device = |name: &str, kind: u8, device| Entry { mode: 0o666, device, ..entry(kind, name) };
    let passwd = |entry: Entry| Crafted {
        config: json!({ "User": "app" }),
        ..crafted("users of another file", &[entry], "id; cat /etc/passwd")
    };
    let mut list = vec![
        crafted("a path that climbs", &[file(&climbing, "gone")], &read),
        crafted("an absolute path", &[file(secret, "gone")], "true"),
        crafted(
            "a symlink out and a file through it",
            &[link(b'2', "out", "/"), file(&format!("out/{inside}"), "gone")],
            "true",
        ),
        crafted(
            "a relative symlink out",
            &[link(b'2', "out", &"../".repeat(20)), file(&format!("out/{inside}"), "gone")],
            "true",
        ),
        crafted(
            "a chain of symlinks",
            &[link(b'2', "a", "b"), link(b'2', "b", "../../../.."), file(&format!("a/{inside}"), "gone")],
            "true",
        ),
        crafted("a hard link to a file outside", &[link(b'1', "copy", secret)], &read),
        crafted("a hard link that climbs", &[link(b'1', "copy", &climbing)], &read),
        crafted(
            "a hard link through a symlink",
            &[link(b'2', "out", "/"), link(b'1', "copy", &format!("out/{inside}"))],
            &read,
        ),
        crafted("a hard link to itself", &[link(b'1', "copy", "copy")], &read),
        crafted("a whiteout that climbs", &[file(&whiteout(&format!("{}{folder}/", "../".repeat(20))), "")], &read),
        crafted(
            "a whiteout behind a symlink",
            &[link(b'2', "out", "/"), file(&whiteout(&format!("out/{folder}/")), "")],
            &read,
        ),
        crafted("a whiteout of the folder above", &[file(".wh...", ""), file(".wh..", ""), file(".wh.", "")], &read),
        crafted(
            "an opaque mark behind a symlink",
            &[link(b'2', "out", &format!("/{folder}")), file("out/.wh..wh..opq", "")],
            &read,
        ),
        crafted(
            "device nodes",
            &[device("disk", b'4', (254, 0)), device("mem", b'3', (1, 1)), device("kmsg", b'3', (1, 11))],
            "for d in disk mem kmsg; do head -c 1 /$d >/dev/null 2>&1 && echo OPENED $d; done",
        ),
        crafted("a fifo for a loader", &[entry(b'6', "etc/ld.so.preload"), entry(b'6', "etc/hosts")], "true"),
        crafted(
            "proc, sys and dev elsewhere",
            &[
                link(b'2', "proc", "/out"),
                link(b'2', "sys", "../../.."),
                link(b'2', "dev", "/tmp"),
                entry(b'5', "out/"),
            ],
            "ls /proc/1/root/ 2>&1; cat /proc/self/mountinfo 2>&1 | head -5",
        ),
        crafted(
            "targets of mounts that lead out",
            &[link(b'2', "var", &"../".repeat(20)), link(b'2', "etc", "/"), link(b'2', "run", &format!("/{folder}"))],
            "ls /",
        ),
        passwd(link(b'2', "etc/passwd", secret)),
        passwd(link(b'2', "etc/passwd", "/dev/zero")),
        passwd(entry(b'6', "etc/passwd")),
        passwd(device("etc/passwd", b'3', (1, 5))),
        passwd(file("etc/passwd", &"app:x:1:1::/:/bin/sh\n".repeat(100_000))),
        loaded_only(
            "a size of 8 GiB that is not there",
            tar(&[Entry { size: Some(b"77777777777\0".to_vec()), ..file("x", "") }]),
        ),
        loaded_only(
            "a size beyond all",
            tar(&[Entry { size: Some([&[0x80_u8][..], &[0xff; 11]].concat()), ..file("x", "") }]),
        ),
        loaded_only(
            "a sparse file of 8 EiB",
            tar(&[Entry { size: Some(b"00000000000\0".to_vec()), ..entry(b'S', "x") }]),
        ),
        loaded_only(
            "300,000 entries",
            tar(&(0..300_000).map(|index| entry(b'2', &format!("{index}"))).collect::<Vec<_>>()),
        ),
        loaded_only("a layer that is none", vec![0xff; 1 << 20]),
        Crafted { lies: true, ..crafted("another layer's digest", &[file("x", "x")], "true") },
    ];
    for user in
        ["0:0:0", "-1", "4294967295", "4294967296", "root:../../etc/shadow", "\n", "a b", "root\u{0}", ":", "0x10"]
    {
        list.push(Crafted { config: json!({ "User": user }), ..crafted("an odd user", &[], "id") });
    }
    for folder in ["/proc/self/fd/3", "/proc/1/root", "../../../..", "/proc/self/exe/..", "relative"] {
        list.push(Crafted {
            config: json!({ "WorkingDir": folder }),
            ..crafted("an odd folder", &[], "pwd; ls -la .")
        });
    }
    let odd = json!({ "Env": ["LD_PRELOAD=/x", "=", "A", "PATH=", "A=\u{0}"], "Entrypoint": [""], "Cmd": null });
    list.push(Crafted { config: odd, ..crafted("an odd environment", &[], "env") });
    list
}

/// All of them, one after the other.
pub async fn images(cluster: &Cluster) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("mainstay-attack-").tempdir()?;
    let kept = folder.path().join("kept");
    fs::create_dir(&kept)?;
    let secret = kept.join("secret");
    fs::write(&secret, SECRET)?;
    let before = (listed(Path::new("/"))?, processes::memory(cluster.pid()?)?.rss);
    let base = base_layer(folder.path())?;
    let (mut refused, mut stopped, mut ran) = (0, 0, 0);
    let mut images = all(&secret.display().to_string());
    images.push(bomb()?);
    let count = images.len();
    for (index, image) in images.into_iter().enumerate() {
        let name = format!("test.local/crafted-{index}:1");
        let archive = write(folder.path(), &name, &base, &image)?;
        let mut load = Command::new(cluster.binary());
        let output = load.args(["image", "load", "--data-dir"]).arg(cluster.data_dir()).arg(&archive).output()?;
        fs::remove_file(&archive)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match (output.status.code(), &image.pod) {
            (Some(0), Some(pod)) => {
                let container = json!({ "name": "c", "image": name, "imagePullPolicy": "Never" });
                let mut container = container;
                container["command"] = pod["command"].clone();
                let spec =
                    json!({ "restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 0 });
                let ended = pods::run(cluster, &format!("crafted-{index}"), &spec).await.context(image.name)?;
                ensure!(!ended.said.contains(SECRET), "{}: a pod reads the host's file: {}", image.name, ended.said);
                ensure!(!ended.said.contains("OPENED"), "{}: {}", image.name, ended.said);
                ran += usize::from(ended.ran);
                stopped += usize::from(!ended.ran);
            }
            (Some(0), None) => stopped += 1,
            (Some(_), _) => {
                ensure!(said.lines().count() == 1 && !said.contains("panicked"), "{}: {said}", image.name);
                ensure!(!image.lies || said.contains("digest"), "{}: {said}", image.name);
                refused += 1;
            }
            (None, _) => bail!("{}: `image load` was ended by a signal: {said}", image.name),
        }
        ensure!(!image.lies || !output.status.success(), "{}: it was loaded", image.name);
        ensure!(fs::read_to_string(&secret)? == SECRET, "{}: the host's file was changed", image.name);
        ensure!(listed(&kept)? == ["secret"], "{}: {:?} is on the host", image.name, listed(&kept)?);
        ensure!(listed(Path::new("/"))? == before.0, "{}: something is at the host's root", image.name);
    }
    let memory = processes::memory(cluster.pid()?)?.rss;
    ensure!(memory < before.1 + MAX_GROWTH, "the node went from {} to {memory} KiB", before.1);
    Ok(format!("{count} images: {refused} refused, {stopped} loaded and not run, {ran} run"))
}

fn listed(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> =
        fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// The only layer of the image that other pods run.
fn base_layer(folder: &Path) -> Result<Vec<u8>> {
    let archive = Path::new(crate::images::FOLDER).join("busybox.tar").canonicalize()?;
    let unpacked = folder.join("busybox");
    fs::create_dir(&unpacked)?;
    ensure!(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked).status()?.success(), "tar");
    let mut open = vec![unpacked];
    let mut largest: Vec<u8> = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.metadata()?.len() as usize > largest.len() {
                largest = fs::read(entry.path())?;
            }
        }
    }
    if largest.starts_with(&[0x1f, 0x8b]) { through("gzip", &["-dc"], &largest) } else { Ok(largest) }
}

/// A layer that is a thousand times as large as its archive, and then not even a tar.
fn bomb() -> Result<Crafted> {
    let mut layer = Vec::new();
    Entry { size: Some(format!("{BOMB:011o}").into_bytes()), ..file("zeros", "") }.write(&mut layer);
    layer.resize(layer.len() + BOMB, 0);
    layer.extend(vec![0xff; BLOCK]);
    Ok(loaded_only("a decompression bomb", layer))
}

/// A docker archive of the base and one layer on it.
fn write(folder: &Path, name: &str, base: &[u8], image: &Crafted) -> Result<PathBuf> {
    let root = folder.join("archive");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root)?;
    fs::write(root.join("base.tar"), base)?;
    fs::write(root.join("layer.tar"), through("gzip", &["-1c"], &image.layer)?)?;
    let own = if image.lies { digest(b"another")? } else { digest(&image.layer)? };
    let mut config = json!({ "architecture": "amd64", "os": "linux", "config": image.config,
        "rootfs": { "type": "layers", "diff_ids": [digest(base)?, own] } });
    if cfg!(target_arch = "aarch64") {
        config["architecture"] = "arm64".into();
    }
    fs::write(root.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["base.tar", "layer.tar"] }]);
    fs::write(root.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("archive.tar");
    let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".").status()?;
    ensure!(made.success(), "tar");
    Ok(archive)
}
