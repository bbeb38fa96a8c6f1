//! What a node keeps of its membership: `<data>/node`, folder 0700 and files 0600 (X2).
//!
//! ```text
//! machine        32 hexadecimal digits: which machine this is, made once
//! member.json    the server, the CA, the node's name, address and range, the cluster's settings
//! client.pem     certificate and key by which the API server knows the node; replaced in one step
//! serving.pem    certificate and key of the node's own port
//! client.asked   the request for either, with its key, while it has no answer; serving.asked
//! own.json       of a server's own machine: the Node's name and range
//! lock           held by the agent
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use mainstay_runtime::safe_path::make_private_dir;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::JoinError;
use super::request::Asked;

const FOLDER: &str = "node";

/// What all nodes of a cluster have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The cluster's own name.
    pub cluster: String,
    /// All nodes' pods.
    pub cluster_cidr: String,
    /// The Services' range.
    pub service_cidr: String,
    /// The DNS server's address in it.
    pub cluster_dns: Ipv4Addr,
    /// `cluster.local`
    pub cluster_domain: String,
    /// `vxlan` or `routes`.
    pub pod_network: String,
    /// `host:port,host:port` of every server.
    #[serde(default)]
    pub servers: String,
    /// `by-default` where there may be several servers, else `on-request`: which pods get a deadline (S13).
    #[serde(default)]
    pub fencing: String,
}

impl Default for Settings {
    fn default() -> Self {
        let none = String::new;
        Self {
            cluster: none(),
            cluster_cidr: none(),
            service_cidr: none(),
            cluster_dns: Ipv4Addr::UNSPECIFIED,
            cluster_domain: none(),
            pod_network: none(),
            servers: none(),
            fencing: none(),
        }
    }
}

/// A node as its cluster knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// `host:port`
    pub server: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// The Node's name.
    pub node: String,
    /// This machine's address.
    pub address: Ipv4Addr,
    /// Whether a person gave it; one that was found is found anew at each start. Nothing where an older agent joined.
    #[serde(default)]
    pub is_address_given: Option<bool>,
    /// Its range of pod addresses.
    pub pod_cidr: String,
    /// How long its Lease is, in seconds, where that was said.
    #[serde(default)]
    pub lease_seconds: Option<u32>,
    /// What it has in common with the others.
    pub settings: Settings,
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Kept {
    folder: PathBuf,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> JoinError + '_ {
    |source| JoinError::File { path: path.to_owned(), source }
}

impl Kept {
    /// Opens the folder, or makes it.
    pub fn open(data_dir: &Path) -> Result<Self, JoinError> {
        make_private_dir(data_dir).map_err(failed(data_dir))?;
        let folder = data_dir.join(FOLDER);
        make_private_dir(&folder).map_err(failed(&folder))?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is known of the cluster, where this machine is a node.
    pub fn read(&self) -> Result<Option<Member>, JoinError> {
        let Some(text) = self.text("member.json")? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|_| JoinError::Damaged(self.folder.join("member.json")))
    }

    /// Keeps it.
    pub fn write(&self, member: &Member) -> Result<(), JoinError> {
        let text = serde_json::to_string_pretty(member).map_err(|_| JoinError::Damaged(self.folder.clone()))?;
        self.put("member.json", &text)
    }

    /// The client's certificate and key.
    pub fn client(&self) -> Result<Option<Pair>, JoinError> {
        self.pair("client.pem")
    }

    /// Keeps them.
    pub fn write_client(&self, pair: &Pair) -> Result<(), JoinError> {
        self.put("client.pem", &format!("{}{}", pair.certificate, pair.key))
    }

    /// The server's certificate and key.
    pub fn serving(&self) -> Result<Option<Pair>, JoinError> {
        self.pair("serving.pem")
    }

    /// Keeps them.
    pub fn write_serving(&self, pair: &Pair) -> Result<(), JoinError> {
        self.put("serving.pem", &format!("{}{}", pair.certificate, pair.key))
    }

    /// This machine is no node any more; which machine it is, stays.
    pub fn forget(&self) -> Result<(), JoinError> {
        ["member.json", "client.pem", "serving.pem", "client.asked", "serving.asked"]
            .into_iter()
            .try_for_each(|name| self.remove(name))
    }

    /// The request of a certificate that has no answer yet. One that cannot be read is none.
    pub fn asked(&self, of: &str) -> Result<Option<Asked>, JoinError> {
        Ok(self.text(&format!("{of}.asked"))?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps it, or forgets it.
    pub fn write_asked(&self, of: &str, asked: Option<&Asked>) -> Result<(), JoinError> {
        let name = format!("{of}.asked");
        let Some(asked) = asked else { return self.remove(&name) };
        let text = serde_json::to_string(asked).map_err(|_| JoinError::Damaged(self.folder.clone()))?;
        // What is there needs no room on the disk.
        if self.text(&name)?.is_some_and(|old| old == text) { Ok(()) } else { self.put(&name, &text) }
    }

    fn remove(&self, name: &str) -> Result<(), JoinError> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Both halves are in one file, and each reader finds its own.
    fn pair(&self, name: &str) -> Result<Option<Pair>, JoinError> {
        Ok(self.text(name)?.map(|text| Pair { certificate: text.clone(), key: text }))
    }

    fn text(&self, name: &str) -> Result<Option<String>, JoinError> {
        let path = self.folder.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// Replaces a file in one step, durably.
    fn put(&self, name: &str, text: &str) -> Result<(), JoinError> {
        let (path, partial) = (self.folder.join(name), self.folder.join(format!("{name}.partial")));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(failed(&path))
    }
}

/// The node of a server's own machine, in `<data>/node/own.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnNode {
    /// The Node's name.
    pub node: String,
    /// Its range of pod addresses.
    pub pod_cidr: String,
}

const OWN: &str = "own.json";

/// As which node a server's own machine was started before, if it was.
pub fn own_node(data_dir: &Path) -> Result<Option<OwnNode>, JoinError> {
    let path = data_dir.join(FOLDER).join(OWN);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|_| JoinError::OwnDamaged(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&path)(error)),
    }
}

/// Keeps that.
pub fn keep_own_node(data_dir: &Path, own: &OwnNode) -> Result<(), JoinError> {
    let kept = Kept::open(data_dir)?;
    let text = serde_json::to_string_pretty(own).map_err(|_| JoinError::OwnDamaged(kept.folder.join(OWN)))?;
    // What is there needs no room on the disk.
    if kept.text(OWN)?.is_some_and(|old| old == text) { Ok(()) } else { kept.put(OWN, &text) }
}

/// Which machine a data folder is on: 32 hexadecimal digits, made once.
pub fn machine(data_dir: &Path) -> Result<String, JoinError> {
    let kept = Kept::open(data_dir)?;
    if let Some(machine) = kept.text("machine")? {
        return Ok(machine.trim_end().to_owned());
    }
    let mut random = [0; 16];
    let failed = |_| JoinError::File { path: kept.folder.clone(), source: io::Error::other("no randomness") };
    SystemRandom::new().fill(&mut random).map_err(failed)?;
    let machine: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    kept.put("machine", &format!("{machine}\n"))?;
    Ok(machine)
}

/// Which machine a data folder is on, where a node was ever started on it.
pub fn known_machine(data_dir: &Path) -> Option<String> {
    let machine = fs::read_to_string(data_dir.join(FOLDER).join("machine")).ok()?;
    Some(machine.trim_end().to_owned()).filter(|machine| !machine.is_empty())
}

/// Holds a data folder for this process's agent, until the file is dropped.
pub fn lock(data_dir: &Path) -> Result<File, JoinError> {
    let path = Kept::open(data_dir)?.folder.join("lock");
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = options.map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JoinError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(&path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_itself_and_its_folder_one_agents() {
        let data = tempfile::tempdir().unwrap();
        let first = machine(data.path()).unwrap();
        assert_eq!((first.len(), machine(data.path()).unwrap()), (32, first.clone()));
        let held = lock(data.path()).unwrap();
        assert!(matches!(lock(data.path()), Err(JoinError::InUse(_))));
        drop(held);
        lock(data.path()).unwrap();
        let kept = Kept::open(data.path()).unwrap();
        assert!(kept.read().unwrap().is_none());
        fs::write(kept.folder().join("member.json"), "{").unwrap();
        assert!(matches!(kept.read(), Err(JoinError::Damaged(_))));
        kept.forget().unwrap();
        assert!(kept.read().unwrap().is_none());
        assert_eq!(machine(data.path()).unwrap(), first, "who leaves is still the same machine");
    }
}
