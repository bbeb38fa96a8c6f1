//! Several machines: network namespaces on one link, which can be cut.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{ANY_DISK, Cluster, PATIENCE, text};

/// A switch that machines are plugged into; gone when it is dropped.
pub struct Lan {
    holder: Child,
}

/// A machine's address on the link: 172.30.0.<number>.
pub fn address(number: u8) -> String {
    format!("172.30.0.{number}")
}

impl Lan {
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c"])
            .arg("ip link add lan0 type bridge && ip link set lan0 up && echo ready; exec sleep infinity")
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare (util-linux), as root");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("the holder's word");
        assert_eq!(line, "ready\n", "root is needed");
        Self { holder }
    }

    fn ip(&self, args: &[&str]) {
        let holder = self.holder.id().to_string();
        let output =
            Command::new("nsenter").args(["--net", "-t", &holder, "--", "ip"]).args(args).output().expect("ip");
        assert!(output.status.success(), "ip {}: {}", args.join(" "), text(&output));
    }

    /// Plugs a machine in, as `eth0` with the address of its number.
    pub fn plug(&self, machine: &Cluster, number: u8) {
        let (port, pid) = (format!("port{number}"), machine.holder_pid().to_string());
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        self.ip(&["link", "set", &port, "master", "lan0", "up"]);
        for args in [
            vec!["address", "add", &format!("{}/24", address(number)), "dev", "eth0"],
            vec!["link", "set", "eth0", "up"],
        ] {
            assert!(machine.inside("ip").args(args).status().expect("ip").success());
        }
    }

    /// What a machine sends to another is lost, while what comes from there arrives; or it is so no more.
    pub fn cut_one_way(&self, from: &Cluster, to: u8, is_cut: bool) {
        let verb = if is_cut { "add" } else { "del" };
        let route = ["route", verb, "blackhole", &format!("{}/32", address(to))];
        assert!(from.inside("ip").args(route).status().expect("ip").success());
    }

    /// Cuts a machine off, or joins it again.
    pub fn cut(&self, number: u8, is_cut: bool) {
        self.ip(&["link", "set", &format!("port{number}"), if is_cut { "down" } else { "up" }]);
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A first machine that runs a server and a node, and others that are not started.
pub fn machines<const N: usize>(lan: &Lan, more: &[&str]) -> (Cluster, [Cluster; N]) {
    let mut first = Cluster::unstarted().open_to_pods();
    lan.plug(&first, 1);
    first.up_with(&[&["--node-ip", &address(1)], more].concat());
    let others = std::array::from_fn(|index| {
        let machine = Cluster::unstarted();
        lan.plug(&machine, u8::try_from(index).expect("few") + 2);
        machine
    });
    (first, others)
}

impl Cluster {
    /// The words of the line that `mainstay token create` prints, after `mainstay join`.
    pub fn invitation(&self) -> Vec<String> {
        let output = self.mainstay(&["token", "create", "--data-dir"]).arg(self.data_dir()).output().expect("run");
        assert!(output.status.success(), "{}", text(&output));
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = line.trim().strip_prefix("mainstay join ").unwrap_or_else(|| panic!("{line}"));
        words.split(' ').map(str::to_owned).collect()
    }

    /// `mainstay server` with these words; waits until the API is ready.
    pub fn serve(&mut self, words: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder().join("log")).expect("a log");
        let mut command = self.mainstay(&["server", "--kubeconfig"]);
        command.arg(self.folder().join("kubeconfig")).args(words);
        self.run(command, log, "API ready");
    }

    /// As [`Cluster::serve`], and is not waited for.
    pub fn serve_unready(&mut self, words: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder().join("log")).expect("a log");
        let mut command = self.mainstay(&["server", "--kubeconfig"]);
        command.arg(self.folder().join("kubeconfig")).args(words);
        self.run(command, log, "");
    }

    /// `mainstay server` that must fail; what it says.
    pub fn refused_to_serve(&self, words: &[&str]) -> String {
        let mut command = self.mainstay(&["server"]);
        command.args(words).arg("--data-dir").arg(self.data_dir());
        refused(command)
    }

    /// `mainstay join` with these words; waits until the node is ready.
    pub fn join<S: AsRef<str>>(&mut self, words: &[S]) {
        self.join_until(words, "node ready");
    }

    /// As [`Cluster::join`], until it says something else.
    pub fn join_until<S: AsRef<str>>(&mut self, words: &[S], ready: &'static str) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder().join("log")).expect("a log");
        let mut command = self.mainstay(&["join", ANY_DISK]);
        command.args(words.iter().map(AsRef::as_ref));
        self.run(command, log, ready);
    }

    /// `mainstay join` that must fail; what it says.
    pub fn refused_to_join<S: AsRef<str>>(&self, words: &[S]) -> String {
        let mut command = self.mainstay(&["join"]);
        command.args(words.iter().map(AsRef::as_ref)).arg("--data-dir").arg(self.data_dir());
        refused(command)
    }

    /// The process that was started last.
    pub fn pid(&self) -> String {
        fs::read_to_string(self.data_dir().join("pid")).expect("a process id").trim().to_owned()
    }
}

/// Runs what must fail, and within [`PATIENCE`]; what it says.
fn refused(mut command: Command) -> String {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
    let begun = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("wait");
    assert!(!output.status.success() && begun.elapsed() < PATIENCE, "it runs:\n{}", text(&output));
    text(&output)
}
