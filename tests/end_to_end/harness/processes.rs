//! Processes of a cluster, seen and killed from outside.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Cluster;

fn all() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// A file of a process in /proc.
pub fn read(pid: u32, file: &str) -> String {
    fs::read(format!("/proc/{pid}/{file}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}

/// Processes of this name whose cgroup's path contains a text (a pod's uid, an instance's name), oldest first.
pub fn named(name: &str, cgroup: &str) -> Vec<u32> {
    all().into_iter().filter(|pid| read(*pid, "comm").trim() == name && read(*pid, "cgroup").contains(cgroup)).collect()
}

/// kill -9.
pub fn kill(pids: &[u32]) {
    let words: Vec<String> = pids.iter().map(u32::to_string).collect();
    if !words.is_empty() {
        // One that has just ended by itself is as good.
        let _ = Command::new("kill").arg("-9").args(words).output().expect("kill");
    }
}

impl Cluster {
    /// What is mounted below the data folder, in the order in which it was.
    pub fn mounts(&self) -> Vec<String> {
        let text = read(self.holder_pid(), "mountinfo");
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(self.data_dir())).map(str::to_owned).collect()
    }

    /// Takes away what is mounted below the data folder, as a new start of the machine does.
    pub fn unmount_all(&self) {
        for point in self.mounts().iter().rev() {
            assert!(self.inside("umount").args(["--lazy", point]).status().expect("umount").success(), "{point}");
        }
    }
}
