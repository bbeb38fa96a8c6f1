//! System call filters: a profile, compiled to the BPF program that the supervisor installs before a container's
//! program runs.
//!
//! Profiles are those of the OCI runtime specification. A program that makes a system call by the number of another
//! architecture than those of its profile, or by a number that was not given out when this was written, gets ENOSYS:
//! the C libraries then fall back to what they know, as with an older kernel.

mod default;
mod filter;
mod profile;
mod table;

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use filter::Program;
use profile::Profile;

/// The largest profile that is read, bytes.
const MAX_PROFILE: u64 = 1 << 20;

/// Which system calls a container may make.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// Those of the runtime's own profile, which depend on the container's capabilities.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
    /// Those of a profile of the node's: the path below `root`, which it may not leave, and which follows no link.
    Localhost { root: std::path::PathBuf, path: String },
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("cannot load seccomp profile {path:?}: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error("seccomp profile {path:?}: {why}")]
    Invalid { path: String, why: String },
    #[error("this machine's architecture has no seccomp filters here")]
    Architecture,
}

/// The program for a profile; None where nothing is filtered. `capabilities` are names without `CAP_`. Blocking.
///
/// # Errors
/// The profile of the node's is not there, not readable as one, or asks for what there is not.
pub fn compile(profile: &SeccompProfile, capabilities: &BTreeSet<String>) -> Result<Option<Program>, SeccompError> {
    let (profile, path) = match profile {
        SeccompProfile::Unconfined => return Ok(None),
        SeccompProfile::RuntimeDefault => (default::profile(capabilities), "runtime/default"),
        SeccompProfile::Localhost { root, path } => (load(root, path)?, path.as_str()),
    };
    let native = table::native().ok_or(SeccompError::Architecture)?;
    filter::compile(&profile, native).map(Some).map_err(|why| SeccompError::Invalid { path: path.to_owned(), why })
}

fn load(root: &Path, path: &str) -> Result<Profile, SeccompError> {
    use crate::safe_path;
    let unreadable = |source| SeccompError::Unreadable { path: path.to_owned(), source };
    let open = || -> io::Result<Vec<u8>> {
        let plain = safe_path::plain(path)?;
        let file = safe_path::open_strict(&safe_path::open_root(root)?, plain, nix::fcntl::OFlag::O_RDONLY)?;
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(MAX_PROFILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = open().map_err(unreadable)?;
    let invalid = |why: String| SeccompError::Invalid { path: path.to_owned(), why };
    if bytes.len() as u64 > MAX_PROFILE {
        return Err(invalid(format!("it is larger than {MAX_PROFILE} bytes")));
    }
    profile::parse(&bytes).map_err(invalid)
}

#[cfg(test)]
mod tests;
