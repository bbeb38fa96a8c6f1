//! Mainstay's NFS server and client beside those of others: libnfs's tools on our server; our client on ours and on
//! nfs-ganesha, also while a server hangs, is gone, or comes back.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::harness::nfs_server::{NfsServer, Software};
use crate::harness::{Cluster, text};

/// An export, mounted in a place of the cluster's namespaces by a client of ours.
struct Mount {
    target: PathBuf,
}

impl Mount {
    fn new(cluster: &Cluster, name: &str) -> Self {
        let target = cluster.folder().join(name);
        fs::create_dir(&target).expect("a mount point");
        let source = r#"{"server":"127.0.0.1","path":"/exports/a","port":null,"mount_port":null,"timeout_ms":1500}"#;
        let words = format!(r#"{{"source":{source},"target":"{}","read_only":false}}"#, target.display());
        let output = cluster.mainstay(&["__nfs-mount", &words]).output().expect("the client");
        assert_eq!(text(&output).trim(), "mounted");
        Self { target }
    }

    /// A shell command in the mount.
    fn command(&self, cluster: &Cluster, script: &str) -> Command {
        let mut command = cluster.inside("sh");
        command.args(["-c", &format!("cd {} && {script}", self.target.display())]);
        command
    }

    /// What it says; an error is said, too.
    fn sh(&self, cluster: &Cluster, script: &str) -> String {
        text(&self.command(cluster, script).output().expect("sh"))
    }
}

fn unmount(cluster: &Cluster, mounts: &[&Mount]) {
    for mount in mounts {
        let unmounted = cluster.inside("umount").arg(&mount.target).status().expect("umount");
        assert!(unmounted.success(), "nothing holds it");
    }
}

fn close_to_open(cluster: &Cluster, one: &Mount, two: &Mount) {
    for (content, writer, reader) in [("first", one, two), ("other", two, one), ("third, longer", one, two)] {
        assert_eq!(writer.sh(cluster, &format!("printf '{content}' > file")), "");
        assert_eq!(reader.sh(cluster, "cat file"), content, "what was closed is what is opened next");
    }
    assert_eq!(two.sh(cluster, "printf ', and more' >> file; cat file; mv file name"), "third, longer, and more");
    assert_eq!(one.sh(cluster, "cat name; rm name; ls -A"), "third, longer, and more");
    assert_eq!(two.sh(cluster, "ls -A; mkdir many; cd many; seq 1000 | xargs touch; ls | wc -l").trim(), "1000");
    assert_eq!(one.sh(cluster, "ls -l many | wc -l; rm -r many; ls -A").trim(), "1001");
    assert_eq!(
        two.sh(cluster, "dd if=/dev/urandom of=large bs=1M count=24 2>/dev/null; sha256sum large").len(),
        64 + 2 + 6
    );
    assert_eq!(one.sh(cluster, "sha256sum large"), two.sh(cluster, "sha256sum large"));
}

fn client_on(software: Software) {
    let cluster = Cluster::unstarted();
    let mut server = NfsServer::start(&cluster, software, &["a"]);
    let (one, two) = (Mount::new(&cluster, "one"), Mount::new(&cluster, "two"));
    close_to_open(&cluster, &one, &two);

    // Written, not synced, and the server is another one when it is: it gets the bytes again.
    let mut writer = one.command(
        &cluster,
        "exec 3> row; printf ada >&3; echo written; read go; printf ' ada' >&3; sync row && echo synced",
    );
    let mut writer = writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
    let mut said = BufReader::new(writer.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("its word");
    server.kill9();
    server.go_on();
    writer.stdin.take().expect("piped").write_all(b"\n").expect("it listens");
    said.read_line(&mut line).expect("its word");
    assert_eq!(line, "written\nsynced\n");
    assert!(writer.wait().expect("sh").success());
    assert_eq!(two.sh(&cluster, "cat row"), "ada ada");

    // V11: one that hangs is an error after a while, and what is killed ends at once; so is one that is gone.
    let cat = |program: &str, args: &[&str]| {
        let output = cluster.inside(program).args(args).arg(one.target.join("row")).output().expect("cat");
        (output.status.success(), text(&output))
    };
    server.signal("-STOP");
    let (read, said) = cat("cat", &[]);
    assert!(!read && said.contains("Input/output error"), "{said}");
    assert!(!cat("timeout", &["-s", "KILL", "0.2", "cat"]).0);
    server.signal("-CONT");
    assert_eq!(one.sh(&cluster, "cat row"), "ada ada");
    server.kill9();
    assert!(!cat("cat", &[]).0);
    server.go_on();
    assert_eq!(two.sh(&cluster, "printf kept > new; cat row new"), "ada adakept");
    unmount(&cluster, &[&one, &two]);
}

#[test]
fn v11_our_client_on_our_server() {
    client_on(Software::Mainstay);
}

#[test]
fn v11_our_client_on_a_foreign_server() {
    client_on(Software::Ganesha);
}

#[test]
fn libnfs_tools_on_our_server() {
    let cluster = Cluster::unstarted();
    let server = NfsServer::start(&cluster, Software::Mainstay, &["a"]);
    let run = |program: &str, args: &[&str]| {
        let output = cluster.inside(program).args(args).output().expect("libnfs-utils");
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
        output.stdout
    };
    let large: Vec<u8> = (0..5_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let local = cluster.folder().join("large");
    fs::write(&local, &large).expect("a file");
    run("nfs-cp", &[&local.display().to_string(), "nfs://127.0.0.1/exports/a/large"]);
    assert!(fs::read(server.file("/exports/a/large")).expect("there") == large, "what was sent is what is there");
    assert!(run("nfs-cat", &["nfs://127.0.0.1/exports/a/large"]) == large, "and what is read");
    fs::create_dir(server.file("/exports/a/folder")).expect("a folder");
    let listed = String::from_utf8(run("nfs-ls", &["nfs://127.0.0.1/exports/a"])).expect("text");
    assert!(listed.contains("large") && listed.contains("folder") && listed.contains("5000001"), "{listed}");
    let known = String::from_utf8(run("rpcinfo", &["-p", "127.0.0.1"])).expect("text");
    assert!(["100000", "100003", "100005"].iter().all(|program| known.contains(program)), "{known}");
}
