//! Members of an etcd cluster (Debian's etcd-server) on machines of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::machines::address;
use super::{Cluster, PATIENCE, text};

/// How a cluster's members are started.
#[derive(Clone)]
pub struct Etcd {
    /// The machines' numbers.
    pub on: Vec<u8>,
    /// For TLS: where `ca.pem`, `member.pem` and `member.key` are.
    pub tls: Option<PathBuf>,
    /// The data folder's name on each machine.
    pub folder: &'static str,
    /// How many bytes a member keeps at most; 0 for etcd's own limit.
    pub quota: u32,
}

impl Etcd {
    pub fn on(machines: &[u8]) -> Self {
        Self { on: machines.to_vec(), tls: None, folder: "etcd", quota: 0 }
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn client_url(&self, number: u8) -> String {
        format!("{}://{}:2379", self.scheme(), address(number))
    }

    /// What `--store` is to say.
    pub fn store(&self) -> String {
        let urls: Vec<String> = self.on.iter().map(|number| self.client_url(*number)).collect();
        format!("etcd={}", urls.join(","))
    }

    fn peers(&self) -> String {
        let url = |number: &u8| format!("m{number}=http://{}:2380", address(*number));
        self.on.iter().map(url).collect::<Vec<_>>().join(",")
    }

    pub fn start(&self, machine: &Cluster, number: u8) -> Member {
        let log = fs::OpenOptions::new().create(true).append(true).open(machine.folder().join("etcd.log"));
        let (client, peer) = (self.client_url(number), format!("http://{}:2380", address(number)));
        let mut command = machine.inside("etcd");
        command.arg("--data-dir").arg(machine.folder().join(self.folder));
        command.args(["--name", &format!("m{number}"), "--initial-cluster", &self.peers(), "--log-level", "error"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        if self.quota > 0 {
            command.args(["--quota-backend-bytes", &self.quota.to_string()]);
        }
        if let Some(folder) = &self.tls {
            command.arg("--client-cert-auth");
            for (flag, file) in
                [("--trusted-ca-file", "ca.pem"), ("--cert-file", "member.pem"), ("--key-file", "member.key")]
            {
                command.arg(flag).arg(folder.join(file));
            }
        }
        let child = command.stdout(Stdio::null()).stderr(log.expect("a log")).spawn();
        Member(child.expect("etcd (Debian's package etcd-server)"))
    }

    /// `etcdctl` on a machine; its standard output.
    pub fn etcdctl(&self, machine: &Cluster, number: u8, args: &[&str]) -> String {
        let output = self.asked(machine, number, args);
        assert!(output.status.success(), "etcdctl {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn asked(&self, machine: &Cluster, number: u8, args: &[&str]) -> Output {
        let mut command = machine.inside("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.client_url(number)]).args(args);
        if let Some(folder) = &self.tls {
            for (flag, file) in [("--cacert", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")] {
                command.arg(flag).arg(folder.join(file));
            }
        }
        command.output().expect("etcdctl (Debian's package etcd-client)")
    }

    /// Waits until the member of a machine answers, as part of a cluster that has a leader.
    pub fn answers(&self, machine: &Cluster, number: u8) {
        let begun = Instant::now();
        loop {
            let output = self.asked(machine, number, &["endpoint", "health"]);
            if output.status.success() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "etcd does not answer: {}", text(&output));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The member's data as they were in a snapshot, in another folder.
    pub fn restore(&self, machine: &Cluster, number: u8, snapshot: &Path) {
        let mut command = machine.inside("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot);
        command.args(["--name", &format!("m{number}"), "--initial-cluster", &self.peers()]);
        command.args(["--initial-advertise-peer-urls", &format!("http://{}:2380", address(number))]);
        let output = command.arg("--data-dir").arg(machine.folder().join(self.folder)).output().expect("etcdctl");
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// A running member; killed with this, as by kill -9.
pub struct Member(Child);

impl Member {
    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    /// Its process stands still, or goes on.
    pub fn pause(&self, is_paused: bool) {
        let signal = if is_paused { "-STOP" } else { "-CONT" };
        let done = Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill");
        assert!(done.success());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
