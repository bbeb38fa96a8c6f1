//! A real cluster for a test: the real binary in a network and mount namespace of its own, driven by the real kubectl.
//! When it is dropped, everything is gone: pods, mounts, interfaces, cgroups, processes.

pub mod etcd;
pub mod machines;
pub mod nfs_server;
pub mod postgres;
pub mod processes;
pub mod random;
pub mod upstream;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long anything may take to come true on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a condition that only kubectl can tell.
const LOOK: Duration = Duration::from_millis(200);
/// A disk on which the five claims that a walkthrough has at most have room, in GiB.
pub const ROOMY: u64 = 16;
/// Whatever else is on the disk that tests run on, it is none of a node's business.
pub const ANY_DISK: &str = "--eviction-hard=";

/// A kubectl to test with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kubectl {
    /// The machine's own, or Debian's where there is none.
    Newest,
    /// Debian's 1.20 (`cargo xtask kubectl`).
    Old,
}

impl Kubectl {
    /// The program.
    pub fn path(self) -> PathBuf {
        let old = workspace().join(".cache/kubectl/usr/bin/kubectl");
        let installed = Path::new("/usr/bin/kubectl");
        if self == Self::Newest && installed.exists() { installed.to_owned() } else { old }
    }
}

pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A cluster.
pub struct Cluster {
    folder: tempfile::TempDir,
    /// Holds the namespaces while the server is down.
    holder: Child,
    server: Option<Child>,
    kubectl: Kubectl,
    listen: &'static str,
    /// What the server's environment has instead of this process's PATH.
    path: Option<&'static str>,
}

impl Cluster {
    /// A cluster whose node is Ready.
    pub fn new() -> Self {
        let mut cluster = Self::unstarted();
        cluster.up();
        cluster
    }

    /// The place for a cluster, with nothing running.
    pub fn unstarted() -> Self {
        let folder = tempfile::Builder::new().prefix("mainstay-test-").tempdir().expect("a folder");
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c"])
            .arg("ip link set lo up && echo ready; exec sleep infinity")
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare (util-linux), as root");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("the holder's word");
        assert_eq!(line, "ready\n", "root is needed");
        Self { folder, holder, server: None, kubectl: Kubectl::Newest, listen: "127.0.0.1:6443", path: None }
    }

    /// The place for a cluster on a disk of its own, of so many GiB and sparse: what its claims are promised is free,
    /// however full the machine's disk is. Only what runs inside sees the data folder.
    pub fn with_disk(gibibytes: u64) -> Self {
        let cluster = Self::unstarted();
        let image = cluster.folder().join("disk");
        let file = fs::File::create(&image).expect("the disk's file");
        file.set_len(gibibytes << 30).expect("a sparse file");
        fs::create_dir(cluster.data_dir()).expect("a folder");
        let run = |command: &mut Command| {
            let output = command.output().expect("a command");
            assert!(output.status.success(), "{}", text(&output));
        };
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        run(cluster.inside("mount").args(["-o", "loop"]).arg(&image).arg(cluster.data_dir()));
        cluster
    }

    /// Listens on all of its addresses, so that pods reach the API too.
    pub fn open_to_pods(mut self) -> Self {
        self.listen = "0.0.0.0:6443";
        self
    }

    /// `mainstay up` sees only this PATH.
    pub fn with_path(mut self, path: &'static str) -> Self {
        self.path = Some(path);
        self
    }

    /// Puts a file of these contents in the place of a file of the machine, for all that runs inside.
    pub fn replace_file(&self, path: &str, contents: &str) {
        let own = self.folder.path().join(path.trim_matches('/').replace('/', "-"));
        fs::write(&own, contents).expect("written");
        let mounted = self.inside("mount").arg("--bind").arg(&own).arg(path).status().expect("mount");
        assert!(mounted.success(), "{path} could not be replaced");
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn use_kubectl(&mut self, kubectl: Kubectl) {
        self.kubectl = kubectl;
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A command inside the cluster's namespaces.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "-t"]).arg(self.holder.id().to_string()).arg("--").arg(program.as_ref());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder.path()).stdin(Stdio::null());
        command
    }

    /// `mainstay …` inside.
    pub fn mainstay(&self, args: &[&str]) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args);
        command
    }

    /// Starts the server and node, and waits until the node says that it is ready.
    pub fn up(&mut self) {
        self.up_with(&[]);
    }

    /// As [`Cluster::up`], with more arguments.
    pub fn up_with(&mut self, more: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let mut command = self.inside("env");
        command.args(self.path.map(|path| format!("PATH={path}"))).arg(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["up", "--listen", self.listen, "--kubeconfig"]).arg(self.kubeconfig());
        if !more.contains(&"--node-name") {
            command.args(["--node-name", "node-1"]);
        }
        if !more.iter().any(|word| word.starts_with(ANY_DISK)) {
            command.arg(ANY_DISK);
        }
        command.args(more);
        self.run(command, log, "node ready");
    }

    /// The server or node stands still, or goes on.
    pub fn pause(&self, is_paused: bool) {
        let signal = if is_paused { "-STOP" } else { "-CONT" };
        let server = self.server.as_ref().expect("running").id().to_string();
        assert!(Command::new("kill").args([signal, &server]).status().expect("kill").success());
    }

    /// Runs a command on the data folder until it says that it is ready; where that is empty it is not waited for.
    fn run(&mut self, mut command: Command, log: fs::File, ready: &'static str) {
        let mut server = command
            .arg("--data-dir")
            .arg(self.data_dir())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().expect("a second handle"))
            .spawn()
            .expect("mainstay");
        let (tell, told) = mpsc::channel();
        let output = BufReader::new(server.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let mut log = log;
            for line in output.lines().map_while(Result::ok) {
                let _ = writeln!(log, "{line}");
                if line.contains(ready) {
                    let _ = tell.send(());
                }
            }
        });
        self.server = Some(server);
        if ready.is_empty() {
            return;
        }
        if told.recv_timeout(PATIENCE).is_err() {
            panic!("it did not get ready:\n{}", self.log());
        }
    }

    /// What server and node said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// kill -9 of the server and node, as a crash.
    pub fn kill9(&mut self) {
        let mut server = self.server.take().expect("running");
        server.kill().expect("killed");
        server.wait().expect("reaped");
    }

    /// kill -9 of everything: server, node, the supervisors of containers and what runs in them, as a power cut. Their
    /// mounts and namespaces stay, unlike then.
    pub fn kill9_everything(&mut self) {
        self.kill9();
        // Supervisors first: none may write down how its container ended.
        let data = format!("{}/", self.data_dir().display());
        kill_all("cmdline", &data);
        kill_all("cgroup", &self.group_name());
    }

    /// SIGTERM, as a stop; containers go on.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("running");
        let status = Command::new("kill").arg(server.id().to_string()).status().expect("kill");
        assert!(status.success());
        assert!(server.wait().expect("reaped").success(), "SIGTERM is a clean end:\n{}", self.log());
    }

    /// What was started last has been ended by somebody else.
    pub fn gone(&mut self) {
        let mut server = self.server.take().expect("running");
        server.wait().expect("reaped");
    }

    /// What was started last has ended by itself, and not well.
    pub fn gone_badly(&mut self) {
        let mut server = self.server.take().expect("running");
        assert!(!server.wait().expect("reaped").success());
    }

    /// The process that holds the cluster's namespaces.
    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    /// A process of a pod, as the machine numbers it.
    pub fn process_of(&self, pod: &str) -> u32 {
        let uid = self.uid(&format!("pod/{pod}"));
        self.process_of_uid(&uid).unwrap_or_else(|| panic!("no process of pod {pod} ({uid})"))
    }

    /// A process of a pod, by its uid: the API need not run.
    pub fn process_of_uid(&self, uid: &str) -> Option<u32> {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.find(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(uid)))
    }

    /// A program of the machine's in a pod's network.
    pub fn in_network_of(&self, pod: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t"]).arg(self.process_of(pod).to_string()).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Loads test images (made by `cargo xtask images`).
    pub fn load(&self, names: &[&str]) {
        let files = names.iter().map(|name| workspace().join(format!(".cache/images/{name}.tar")));
        // Also before the first start.
        fs::create_dir_all(self.data_dir()).expect("a folder");
        let mut command = self.mainstay(&["image", "load", "--data-dir"]);
        let output = command.arg(self.data_dir()).args(files).output().expect("mainstay image load");
        assert!(output.status.success(), "{}", text(&output));
    }

    pub fn kubectl_path(&self) -> PathBuf {
        self.kubectl.path()
    }

    /// kubectl, whatever comes of it.
    pub fn try_kubectl(&self, args: &[&str]) -> Output {
        self.inside(self.kubectl.path()).args(args).output().expect("kubectl (cargo xtask kubectl)")
    }

    /// kubectl; its standard output. A failure is the test's.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        assert!(output.status.success(), "kubectl {}\n{}\n{}", args.join(" "), text(&output), self.state());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The server counts none of the promises that it looks after while it runs as broken.
    pub fn no_promise_is_broken(&self) {
        let text = self.kubectl(&["get", "--raw", "/metrics"]);
        let counts = text.lines().filter(|line| line.starts_with("mainstay_promise_violations_total{"));
        let (held, broken): (Vec<&str>, Vec<&str>) = counts.partition(|line| line.ends_with("} 0"));
        assert!(!held.is_empty() && broken.is_empty(), "{broken:?}\n{}", self.log());
    }

    /// kubectl that must fail; its standard error.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        assert!(!output.status.success(), "kubectl {} succeeded:\n{}", args.join(" "), text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// kubectl with a manifest on standard input.
    pub fn kubectl_with(&self, args: &[&str], manifest: &str) -> Output {
        let mut command = self.inside(self.kubectl.path());
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl");
        child.stdin.take().expect("piped").write_all(manifest.as_bytes()).expect("written");
        child.wait_with_output().expect("kubectl")
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) {
        let output = self.kubectl_with(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "kubectl apply\n{manifest}\n{}\n--- log:\n{}", text(&output), self.tail());
    }

    /// A test manifest with the images filled in.
    pub fn manifest(&self, name: &str) -> String {
        let raw = fs::read_to_string(workspace().join("tests/end_to_end/manifests").join(name)).expect("a manifest");
        raw.replace("HTTPD_IMAGE", "test.local/httpd:1")
            .replace("POSTGRES_IMAGE", "test.local/postgres:1")
            .replace("NGINX_IMAGE", "test.local/nginx:1")
            .replace("MARIADB_IMAGE", "test.local/mariadb:1")
            .replace("SERVER", "127.0.0.1")
            .replace("HOST_DIR", &self.folder.path().join("host").display().to_string())
    }

    /// One field of one object by JSONPath; empty where it is not there.
    pub fn field(&self, object: &str, path: &str) -> String {
        let output = self.try_kubectl(&["get", object, "-o", &format!("jsonpath={path}")]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until something holds, looking again and again; `what` it is goes into the failure.
    pub fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.state());
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a command in a pod; its standard output.
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// kill -9 of the oldest process of a name in a pod, from outside.
    pub fn kill_process(&self, pod_uid: &str, name: &str) {
        let found = processes::named(name, pod_uid);
        assert!(!found.is_empty(), "no process {name} of pod {pod_uid}");
        processes::kill(&found[..1]);
    }

    /// The uid of an object.
    pub fn uid(&self, object: &str) -> String {
        self.field(object, "{.metadata.uid}")
    }

    /// What a failure's reader wants to see.
    fn state(&self) -> String {
        let objects = text(&self.try_kubectl(&["get", "all,pvc,pv", "-o", "wide"]));
        let events = text(&self.try_kubectl(&["get", "events"]));
        format!("{objects}\n{events}\n--- log:\n{}", self.tail())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The name of the cluster's control groups, which comes from its data folder.
    pub fn group_name(&self) -> String {
        let hash = self
            .data_dir()
            .display()
            .to_string()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("mainstay-{:08x}", hash >> 32)
    }

    /// The cluster's own control groups, in every tree.
    fn cgroups(&self) -> Vec<String> {
        let name = self.group_name();
        let trees = fs::read_dir("/sys/fs/cgroup")
            .map(|trees| trees.flatten().map(|tree| tree.path()).collect())
            .unwrap_or_default();
        let trees: Vec<PathBuf> = [trees, vec![PathBuf::from("/sys/fs/cgroup")]].concat();
        trees
            .iter()
            .map(|tree| tree.join(&name))
            .filter(|group| group.is_dir())
            .map(|group| group.display().to_string())
            .collect()
    }

    /// What is left of this cluster on the machine, after `down`: mounts, interfaces, processes, cgroups.
    pub fn left_over(&self) -> Vec<String> {
        let data = self.data_dir().display().to_string();
        let lines = |command: &mut Command, what: &str| -> Vec<String> {
            let output = command.output().expect("a command");
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter(|line| line.contains(what))
                .map(str::to_owned)
                .collect()
        };
        let mut left = lines(self.inside("cat").arg("/proc/self/mountinfo"), &format!("{data}/"));
        left.extend(self.cgroups());
        left.extend(lines(self.inside("ip").args(["-o", "link"]), "mst"));
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&data) && command.contains("mainstay") {
                left.push(command);
            }
        }
        left
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").arg(server.id().to_string()).status();
            let _ = server.wait();
        }
        let mut left = Vec::new();
        let mut said = String::new();
        if std::env::var_os("MAINSTAY_TEST_KEEP").is_none() && self.data_dir().exists() {
            let down = self.mainstay(&["down", "--data-dir"]).arg(self.data_dir()).output();
            said = down.map_or_else(|error| error.to_string(), |output| text(&output));
            left = self.left_over();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // Every test is also a test that nothing stays; a failure of its own is told first.
        assert!(
            left.is_empty() || std::thread::panicking(),
            "`mainstay down` said {said:?} and left\n{}",
            left.join("\n")
        );
    }
}

/// kill -9 of every process that has this text in a file of its own in /proc, until there is none.
fn kill_all(file: &str, contains: &str) {
    let begun = Instant::now();
    loop {
        let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
        let found: Vec<String> = processes
            .filter(|process| {
                let read = |file: &str| {
                    String::from_utf8_lossy(&fs::read(process.join(file)).unwrap_or_default()).into_owned()
                };
                // One that has ended, and is not yet reaped, has no command line.
                !read("cmdline").is_empty() && read(file).contains(contains)
            })
            .filter_map(|process| {
                process.file_name()?.to_str().filter(|name| name.parse::<u32>().is_ok()).map(str::to_owned)
            })
            .collect();
        if found.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "these do not end: {found:?}");
        let _ = Command::new("kill").arg("-9").args(&found).stderr(Stdio::null()).status();
    }
}

/// Many checks in one test: each that fails is written down, and all are told at the end.
#[derive(Default)]
pub struct Checks(std::cell::RefCell<Vec<String>>);

impl Checks {
    pub fn holds(&self, what: &str, holds: bool, seen: &str) {
        if !holds {
            eprintln!("not so: {what}\n    seen: {}", seen.trim());
            self.0.borrow_mut().push(what.to_owned());
        }
    }

    pub fn equal(&self, what: &str, seen: &str, wanted: &str) {
        self.holds(what, seen.trim() == wanted, &format!("{:?}, not {wanted:?}", seen.trim()));
    }

    pub fn contains(&self, what: &str, seen: &str, wanted: &str) {
        self.holds(what, seen.contains(wanted), &format!("no {wanted:?} in {seen:?}"));
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        let failed = self.0.borrow();
        assert!(failed.is_empty() || std::thread::panicking(), "not so:\n  {}", failed.join("\n  "));
    }
}

/// Both outputs of a command, for a failure's message.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
