//! This program, as supervisors execute it: through a mount that nobody can write by.
//!
//! A container can execute `/proc/self/exe` of the process that enters it (as its command, or as the interpreter of a
//! script), and then has the host's own file in its hands: without this it could give that file other permissions and
//! another owner, or wait until nobody runs it any more and write it (X6).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernel;

/// A program and the mount that it is executed through.
#[derive(Debug)]
pub struct Executable {
    path: PathBuf,
    /// A copy of the program's mount, of this file alone, read-only and in no namespace. It lasts as long as this, and
    /// as whatever was executed through it.
    mount: Option<OwnedFd>,
}

impl Executable {
    /// The program at a path. Where the kernel has no such mounts (before Linux 5.12) it is executed as it is.
    pub fn open(path: &Path) -> Self {
        let mount = match sealed(path) {
            Ok(mount) => Some(mount),
            Err(error) => {
                tracing::warn!(%error, program = %path.display(), "this program cannot be shielded from containers");
                None
            }
        };
        Self { path: path.to_owned(), mount }
    }

    /// A command that executes it. It must be started while this lasts.
    pub fn command(&self) -> Command {
        use std::os::unix::process::CommandExt as _;
        match &self.mount {
            Some(mount) => {
                let mut command = Command::new(format!("/proc/self/fd/{}", mount.as_raw_fd()));
                command.arg0("mainstay");
                command
            }
            None => Command::new(&self.path),
        }
    }
}

fn sealed(path: &Path) -> io::Result<OwnedFd> {
    // A process that has made itself a mount namespace was executed from a mount of the former one, which cannot be
    // copied: then the same file is found by its name.
    let mount = kernel::clone_mount(path).or_else(|error| match path.canonicalize() {
        Ok(named) if is_same_file(path, &named) => kernel::clone_mount(&named),
        _ => Err(error),
    })?;
    kernel::set_mount_read_only(mount.as_fd())?;
    Ok(mount)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    identity(one).is_some_and(|file| identity(other) == Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x6_what_runs_through_it_cannot_be_changed_by_way_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::copy("/bin/sh", &program).unwrap();
        let executable = Executable::open(&program);
        let script =
            "chmod 777 /proc/$$/exe 2>&1; chown 1:1 /proc/$$/exe 2>&1; (: > /proc/$$/exe) 2>/dev/null; echo $0";
        let output = executable.command().args(["-c", script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
        assert!(said.ends_with("mainstay\n"), "{said}");
        use std::os::unix::fs::MetadataExt as _;
        let seen = std::fs::metadata(&program).unwrap();
        assert_eq!((seen.mode() & 0o777, seen.uid()), (std::fs::metadata("/bin/sh").unwrap().mode() & 0o777, 0));
    }
}
