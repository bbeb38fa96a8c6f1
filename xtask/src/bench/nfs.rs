//! The NFS server beside nfs-ganesha, each asked by the same clients: libnfs's tools for whole files, our FUSE client
//! for 4 KiB at random places. And our FUSE client beside libnfs's tools on our server.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::table::Table;

/// The file that is copied (bytes).
const SIZE: usize = 256 << 20;
/// How often each copy is made; the fastest counts.
const COPIES: usize = 3;
/// How long 4 KiB are read and written.
const WINDOW: Duration = Duration::from_secs(4);
const BLOCK: usize = 4096;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// `O_DIRECT`: past the client's page cache.
const DIRECT: i32 = 0o40000;

/// What one server does.
struct Figures {
    /// MB/s by nfs-cp, nfs-cat, and through the mount; operations/s through the mount.
    write: f64,
    read: f64,
    mount_write: f64,
    mount_read: f64,
    random_write: f64,
    random_read: f64,
}

/// Servers that end with this.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Adds the rows.
pub fn measure(binary: &Path, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("export"))?;
    fs::create_dir(path("mount"))?;
    let mut pattern = vec![0; 1 << 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut pattern)?;
    let mut local = fs::File::create(path("local"))?;
    (0..SIZE >> 20).try_for_each(|_| local.write_all(&pattern))?;
    let ours = {
        let _running = start_mainstay(binary, folder.path())?;
        figures(binary, folder.path())?
    };
    let theirs = {
        let _running = start_ganesha(folder.path())?;
        figures(binary, folder.path())?
    };
    let mut row = |measure: &str, ours: f64, unit: &str, theirs: f64, who: &str| {
        let ratio = format!("{:.2}x", ours / theirs.max(1e-9));
        table.row(measure, format!("{ours:.0} {unit}"), format!("{theirs:.0} {unit} ({who})"), ratio, "");
    };
    row("nfs-server, nfs-cp to it", ours.write, "MB/s", theirs.write, "ganesha");
    row("nfs-server, nfs-cat from it", ours.read, "MB/s", theirs.read, "ganesha");
    row("nfs-server, 4 KiB random writes", ours.random_write, "/s", theirs.random_write, "ganesha");
    row("nfs-server, 4 KiB random reads", ours.random_read, "/s", theirs.random_read, "ganesha");
    row("nfs mount, write and fsync", ours.mount_write, "MB/s", ours.write, "nfs-cp");
    row("nfs mount, read", ours.mount_read, "MB/s", ours.read, "nfs-cat");
    Ok(())
}

fn start_mainstay(binary: &Path, folder: &Path) -> Result<Running> {
    let mut command = Command::new(binary);
    command.args(["nfs-server", "--listen", "127.0.0.1:2049", "--state-dir"]).arg(folder.join("state"));
    command.arg("--export").arg(format!("{}:no_root_squash", folder.join("export").display()));
    let running = Running(vec![command.stdout(Stdio::null()).spawn().context("mainstay nfs-server")?]);
    until_it_answers()?;
    Ok(running)
}

fn start_ganesha(folder: &Path) -> Result<Running> {
    // rpcbind's lock and socket are there.
    ensure!(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status()?.success(), "a /run of its own");
    let mut running = Running(vec![Command::new("rpcbind").arg("-f").spawn().context("rpcbind")?]);
    let begun = Instant::now();
    while !answers("100000", "4") {
        ensure!(begun.elapsed() < PATIENCE, "rpcbind does not answer");
    }
    let configuration = format!(
        "NFS_CORE_PARAM {{ Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }}\n\
         EXPORT {{ Export_Id = 1; Path = {}; Protocols = 3; Access_Type = RW; Squash = no_root_squash; SecType = sys; \
         FSAL {{ Name = VFS; }} }}\n",
        folder.join("export").display()
    );
    let file = folder.join("ganesha.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new("ganesha.nfsd");
    command.arg("-F").arg("-f").arg(file).arg("-L").arg(folder.join("ganesha.log")).args(["-p", "/run/ganesha.pid"]);
    running.0.push(command.spawn().context("ganesha.nfsd (nfs-ganesha, nfs-ganesha-vfs)")?);
    until_it_answers()?;
    Ok(running)
}

fn until_it_answers() -> Result<()> {
    let begun = Instant::now();
    while !(answers("100003", "3") && answers("100005", "3")) {
        ensure!(begun.elapsed() < PATIENCE, "the NFS server does not answer");
    }
    Ok(())
}

fn answers(program: &str, version: &str) -> bool {
    let mut command = Command::new("rpcinfo");
    command.args(["-T", "tcp", "127.0.0.1", program, version]).stdout(Stdio::null()).stderr(Stdio::null());
    let answered = command.status().is_ok_and(|status| status.success());
    if !answered {
        std::thread::sleep(Duration::from_millis(50));
    }
    answered
}

fn figures(binary: &Path, folder: &Path) -> Result<Figures> {
    let (export, local, target) = (folder.join("export"), folder.join("local"), folder.join("mount"));
    // nfs-cp only makes files that are not there; and what is removed past a server, the server may not know.
    let copies = std::cell::Cell::new(0);
    let url = || format!("nfs://127.0.0.1{}/copied-{}", export.display(), copies.get());
    let copied = |result: std::process::ExitStatus| -> Result<()> {
        ensure!(result.success(), "libnfs-utils");
        Ok(())
    };
    let to = || {
        copies.set(copies.get() + 1);
        copied(Command::new("nfs-cp").arg(&local).arg(url()).stdout(Stdio::null()).status().context("nfs-cp")?)
    };
    let from = || copied(Command::new("nfs-cat").arg(url()).stdout(Stdio::null()).status().context("nfs-cat")?);
    let (write, read) = (rate(to)?, rate(from)?);
    let mount = Mount::new(binary, &export, &target)?;
    let bytes = fs::read(&local)?;
    let mount_write = rate(|| {
        let mut file = fs::File::create(target.join("mounted"))?;
        bytes.chunks(1 << 20).try_for_each(|chunk| file.write_all(chunk))?;
        Ok(file.sync_all()?)
    })?;
    let mount_read = rate(|| {
        // What the kernel has of it is not the server's speed.
        fs::write("/proc/sys/vm/drop_caches", "1")?;
        let mut file = fs::File::open(target.join("mounted"))?;
        let mut buffer = vec![0; 1 << 20];
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    })?;
    let file = fs::File::options().read(true).write(true).custom_flags(DIRECT).open(target.join("mounted"))?;
    let random_write = operations(|offset, block| Ok(file.write_all_at(block, offset)?))?;
    let random_read = operations(|offset, block| Ok(file.read_exact_at(block, offset)?))?;
    drop((file, mount));
    fs::read_dir(&export)?.try_for_each(|entry| fs::remove_file(entry?.path()))?;
    Ok(Figures { write, read, mount_write, mount_read, random_write, random_read })
}

/// MB/s of the fastest copy.
fn rate(mut copy: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = Duration::MAX;
    for _ in 0..COPIES {
        let begun = Instant::now();
        copy()?;
        best = best.min(begun.elapsed());
    }
    Ok(SIZE as f64 / 1e6 / best.as_secs_f64())
}

/// Operations/s on blocks at random places.
fn operations(mut operate: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<f64> {
    // Direct operations want memory that begins with a page.
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = memory.get_mut(start..start + BLOCK).context("an aligned block")?;
    let (mut target, mut count, begun) = (1_u64, 0_u32, Instant::now());
    while begun.elapsed() < WINDOW {
        target = target.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        operate((target >> 33) % (SIZE / BLOCK) as u64 * BLOCK as u64, block)?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// The export through our FUSE client.
struct Mount(PathBuf);

impl Mount {
    fn new(binary: &Path, export: &Path, target: &Path) -> Result<Self> {
        let source = serde_json::json!({"server": "127.0.0.1", "path": export, "port": null, "mount_port": null,
            "timeout_ms": 20_000});
        let words = serde_json::json!({"source": source, "target": target, "read_only": false}).to_string();
        let output = Command::new(binary).args(["__nfs-mount", &words]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.trim() == "mounted", "the NFS client: {said}");
        Ok(Self(target.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
