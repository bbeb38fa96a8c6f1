//! A place for real containers: a thread with mount and network namespaces of its own, a data folder, an instance's
//! own cgroup, and an image made from Debian's statically linked busybox. Everything goes when it is dropped.

#![allow(dead_code, reason = "each of the tests that have it uses another part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use mainstay_runtime::images::ImageStore;
use mainstay_runtime::{ContainerSpec, Mount, Runtime, RuntimeConfig, SandboxSpec};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub struct World {
    pub dir: PathBuf,
    pub images: ImageStore,
    pub cgroup_root: String,
    pub busybox: String,
    tokio: tokio::runtime::Runtime,
}

impl World {
    /// Like [`World::new`], on a machine whose cgroups are the unified tree only.
    pub fn with_cgroup2(name: &str) -> World {
        let world = World::new(name);
        nix::mount::umount2("/sys/fs/cgroup", nix::mount::MntFlags::MNT_DETACH).unwrap();
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        world
    }

    pub fn new(name: &str) -> World {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        // Before the network is gone: it may have to be fetched.
        let busybox = busybox();
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let unique = format!("mainstay-test-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&unique);
        std::fs::create_dir_all(&dir).unwrap();
        let images = ImageStore::open(&dir.join("images")).unwrap();
        let busybox = load_busybox(&busybox, &dir, &images);
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        World { dir, images, cgroup_root: unique, busybox, tokio }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.tokio.block_on(future)
    }

    pub fn open(&self) -> Runtime {
        self.open_in(&self.tokio)
    }

    /// As a main process that dies with its tasks, when they are dropped.
    pub fn open_in(&self, tokio: &tokio::runtime::Runtime) -> Runtime {
        tokio.block_on(async {
            Runtime::open(RuntimeConfig {
                root: self.dir.join("containers"),
                cgroup_root: self.cgroup_root.clone(),
                shim_exe: supervisor(),
                images: self.images.clone(),
            })
            .unwrap()
        })
    }

    pub fn sandbox(&self, pod: &str) -> SandboxSpec {
        SandboxSpec {
            pod_uid: pod.to_owned(),
            namespace: "default".to_owned(),
            name: pod.to_owned(),
            hostname: format!("{pod}-host"),
            cgroup: format!("burstable/pod{pod}"),
            ..SandboxSpec::default()
        }
    }

    /// A container that runs a shell script.
    pub fn script(&self, pod: &str, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            pod_uid: pod.to_owned(),
            name: name.to_owned(),
            image_id: self.busybox.clone(),
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: self.dir.join(format!("logs/{pod}/{name}/0.log")),
            no_new_privileges: true,
            ..ContainerSpec::default()
        }
    }

    /// The log's lines without their times: `stdout F hello`.
    pub fn log(&self, spec: &ContainerSpec) -> Vec<String> {
        let text = std::fs::read_to_string(&spec.log_path).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let runtime = self.open();
        let cleaned = self.block_on(runtime.cleanup_all());
        drop(runtime);
        let removed = std::fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            // What was left says why the folder could not go.
            assert_eq!(cleaned, Vec::<String>::new());
            removed.unwrap();
            assert!(cgroups_left(&self.cgroup_root).is_empty(), "{:?}", cgroups_left(&self.cgroup_root));
        }
    }
}

/// What is left of an instance's cgroups.
fn cgroups_left(root: &str) -> Vec<PathBuf> {
    let trees = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|tree| tree.path());
    trees.chain([PathBuf::from("/sys/fs/cgroup")]).map(|tree| tree.join(root)).filter(|path| path.exists()).collect()
}

/// `target/<profile>/examples/<SUPERVISOR>`, built beside the tests; whoever includes this file says which.
pub fn supervisor() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples").join(crate::SUPERVISOR)
}

/// What the program that tests execute as a supervisor needs in order to be a container's.
pub fn libraries() -> Vec<Mount> {
    let folders = ["/lib", "/lib64"].into_iter().filter_map(|target| {
        let source = std::fs::canonicalize(target).ok()?;
        Some(Mount { source, target: target.to_owned(), read_only: true, ..Mount::default() })
    });
    folders.collect()
}

/// An image of busybox as a docker archive, loaded.
fn load_busybox(binary: &Path, dir: &Path, images: &ImageStore) -> String {
    let root = dir.join("busybox-root");
    for folder in ["bin", "etc", "tmp", "data"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy(binary, root.join("bin/busybox")).unwrap();
    let applets = [
        "sh", "cat", "echo", "sleep", "id", "hostname", "ls", "stty", "kill", "yes", "head", "dd", "wc", "mount",
        "grep", "env", "tr", "true", "ps", "unshare", "mkdir",
    ];
    for applet in applets {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
    let archive = dir.join("busybox.tar");
    write_docker_archive(&archive, "busybox:test", &root);
    let names = images.load(&archive, &mut |_| ()).unwrap();
    assert_eq!(names, ["docker.io/library/busybox:test"]);
    std::fs::remove_dir_all(&root).unwrap();
    images.resolve("busybox:test").unwrap().id
}

/// Debian's busybox-static, from the machine or unpacked beside the build.
fn busybox() -> PathBuf {
    if let Ok(path) = std::env::var("MAINSTAY_TEST_BUSYBOX") {
        return PathBuf::from(path);
    }
    let installed = Path::new("/bin/busybox");
    if installed.exists() {
        return installed.to_owned();
    }
    let cache = std::env::current_exe().unwrap().parent().and_then(Path::parent).unwrap().join("busybox-static");
    let binary = cache.join("bin/busybox");
    if !binary.exists() {
        let fresh = cache.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&fresh).unwrap();
        let script = "apt-get -q download busybox-static >/dev/null && dpkg -x busybox-static_*.deb .";
        assert!(
            Command::new("sh").args(["-c", script]).current_dir(&fresh).status().unwrap().success(),
            "busybox-static is not to be had"
        );
        // Another test may have been faster.
        if std::fs::rename(&fresh, &cache).is_err() {
            std::fs::remove_dir_all(&fresh).unwrap();
        }
    }
    binary
}

/// What `docker save` writes, with one layer.
pub fn write_docker_archive(path: &Path, tag: &str, root: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.append_dir_all(".", root).unwrap();
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "WorkingDir": "/data",
            "StopSignal": "SIGQUIT" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    append(&mut archive, "layer.tar", &layer);
    append(&mut archive, "config.json", config.to_string().as_bytes());
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    archive.finish().unwrap();
}

pub fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{:x}", sha2::Sha256::digest(bytes))
}
