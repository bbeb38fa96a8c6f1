//! An NFS server of a test's own: Mainstay's, or Debian's nfs-ganesha as the foreign one.
//!
//! Its exports are folders `/exports/…` on a tmpfs which only its mount namespace has: the machine's own `/exports`,
//! where there is one, is never seen, and none is made. That namespace starts from the machine's mounts, not from the
//! cluster's: a server that holds copies of pods' mounts would keep their devices busy, and ganesha, which looks at
//! every mount when it starts, would wait for a client of itself.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Cluster, PATIENCE};

/// Between two looks at whether a server answers.
const LOOK: Duration = Duration::from_millis(20);

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Software {
    /// `mainstay nfs-server`.
    Mainstay,
    /// Debian's, with rpcbind, without which it does not serve version 3.
    Ganesha,
}

/// A root of its own: the machine's, with an empty `/run` (rpcbind's lock and socket are there) and a fresh `/exports`.
const ROOT: &str = r#"
set -e
root=$1; shift
mkdir "$root"
mount -t tmpfs tmpfs "$root"
for entry in /*; do
  case $entry in /run | /exports) continue ;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$root/"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"; fi
done
mkdir "$root/run" "$root/exports" "$root/old"
mount -t tmpfs tmpfs "$root/exports"
for export; do mkdir "$root/exports/$export"; done
cd "$root"
pivot_root . old
umount -l /old
echo ready
exec sleep infinity
"#;

/// A running server, usually on 127.0.0.1, port 2049, with a port mapper on port 111; gone when it is dropped.
pub struct NfsServer {
    software: Software,
    /// Mainstay's: its address, and whom it serves.
    at: (String, String),
    exports: Vec<String>,
    /// Holds the mount namespace, and with it what is in the exports, while the server is down.
    holder: Child,
    port_mapper: Option<Child>,
    server: Option<Child>,
}

impl NfsServer {
    /// A server in a cluster's network, with an export `/exports/<name>` for each name, that trusts the clients' root.
    pub fn start(cluster: &Cluster, software: Software, exports: &[&str]) -> Self {
        Self::in_network_of(cluster.holder_pid(), cluster.folder(), software, exports)
    }

    /// A server in the network of a process. The folder needs room for an empty folder.
    pub fn in_network_of(pid: u32, folder: &Path, software: Software, exports: &[&str]) -> Self {
        let mut holder = Command::new("nsenter")
            .args(["--net", "-t", &pid.to_string(), "--", "unshare", "--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", ROOT, "sh"])
            .arg(folder.join("nfs-server"))
            .args(exports)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter, unshare (util-linux)");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("the holder's word");
        assert_eq!(line, "ready\n", "root is needed");
        let exports = exports.iter().map(|name| format!("/exports/{name}")).collect();
        let here = "127.0.0.1".to_owned();
        let at = (here.clone(), here);
        let mut server = Self { software, at, exports, holder, port_mapper: None, server: None };
        server.go_on();
        server
    }

    /// Mainstay's comes again at another address, for these clients.
    pub fn moved(mut self, address: &str, clients: &str) -> Self {
        self.kill9();
        self.at = (address.to_owned(), clients.to_owned());
        self.go_on();
        self
    }

    /// A file of the server's, by its name there (`/exports/…`), for this process.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("running").id()
    }

    /// Sends it a signal: `-STOP` makes it hang, `-CONT` lets it go on.
    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().expect("kill").success());
    }

    /// Ends the server as a crash would; the exports keep what they have.
    pub fn kill9(&mut self) {
        end(&mut self.server);
    }

    /// Starts the server again, and returns when it answers.
    pub fn go_on(&mut self) {
        match self.software {
            Software::Mainstay => self.start_mainstay(),
            Software::Ganesha => self.start_ganesha(),
        }
    }

    fn start_mainstay(&mut self) {
        let mut command = self.inside(env!("CARGO_BIN_EXE_mainstay"));
        let (address, clients) = &self.at;
        command.args(["nfs-server", "--listen", &format!("{address}:2049"), "--state-dir", "/run/mainstay-nfs"]);
        for export in &self.exports {
            command.arg("--export").arg(format!("{export}:no_root_squash,clients={clients},provisioners={clients}"));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("mainstay nfs-server");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the server's word");
        self.server = Some(child);
        assert!(line.contains("NFS ready"), "{line}");
    }

    fn start_ganesha(&mut self) {
        if self.port_mapper.is_none() {
            self.port_mapper = Some(self.inside("rpcbind").arg("-f").spawn().expect("rpcbind"));
            self.answers("100000", "4");
        }
        // What is changed on the server itself is told to clients at once, not after a minute.
        let mut configuration = "NFS_CORE_PARAM { Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA \
            = false; }\n\
             EXPORT_DEFAULTS { Protocols = 3; Access_Type = RW; Squash = no_root_squash; SecType = sys; \
                 Attr_Expiration_Time = 0; }\n"
            .to_owned();
        for (export, id) in self.exports.iter().zip(1..) {
            configuration
                .push_str(&format!("EXPORT {{ Export_Id = {id}; Path = {export}; FSAL {{ Name = VFS; }} }}\n"));
        }
        fs::write(self.file("/run/ganesha.conf"), configuration).expect("ganesha's configuration");
        let mut command = self.inside("ganesha.nfsd");
        command.args([
            "-F",
            "-f",
            "/run/ganesha.conf",
            "-L",
            "/run/ganesha.log",
            "-p",
            "/run/ganesha.pid",
            "-N",
            "NIV_WARN",
        ]);
        self.server = Some(command.spawn().expect("ganesha.nfsd (nfs-ganesha, nfs-ganesha-vfs)"));
        for program in ["100003", "100005"] {
            self.answers(program, "3");
        }
    }

    /// Waits until an RPC program answers.
    fn answers(&self, program: &str, version: &str) {
        let begun = Instant::now();
        loop {
            let output = self
                .inside("rpcinfo")
                .args(["-T", "tcp", "127.0.0.1", program, version])
                .output()
                .expect("rpcinfo (rpcbind)");
            if output.status.success() {
                return;
            }
            let log = || fs::read_to_string(self.file("/run/ganesha.log")).unwrap_or_default();
            assert!(
                begun.elapsed() < PATIENCE,
                "program {program} does not answer: {}\n{}",
                super::text(&output),
                log()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// A command in the server's namespaces.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "-t", &self.holder.id().to_string(), "--", program]).stdin(Stdio::null());
        command
    }
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        end(&mut self.server);
        end(&mut self.port_mapper);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
