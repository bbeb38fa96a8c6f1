//! Sub-directories of an export: made with the size that was asked for, resized, removed. By calls to the server alone:
//! nothing is mounted, no link is followed, and every call has a deadline (V11).

use std::io;

use super::super::protocol::{
    Attributes, MAX_HANDLE, MAX_NAME, SIZES, SetAttributes, errno_of, kind, procedure, sizes, status,
};
use super::super::rpc::Credentials;
use super::super::xdr::Writer;
use super::remote::{self, Errno, Remote, Source};

/// The names in a folder that are asked for at a time (bytes).
const LISTING: u32 = 32 << 10;

/// Why an export's folder is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The export cannot be had: the server is away, or refuses.
    #[error("{0}")]
    Open(String),
    #[error("{what}: {error}")]
    Refused { what: String, error: io::Error },
    #[error(
        "the server does not let this node give folders a size: it has no such address among the export's provisioners="
    )]
    NotTrusted,
    #[error("the server cannot keep sizes")]
    NoSizes,
}

/// Who keeps the size of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    Server,
    Nobody,
}

/// An export whose root directory's handle is known.
pub struct Share {
    remote: Remote,
    root: Vec<u8>,
}

type Result<T> = std::result::Result<T, ProvisionError>;

impl Share {
    /// Asks the server for the export.
    pub fn open(source: &Source) -> Result<Self> {
        let (remote, root) = remote::open(source).map_err(ProvisionError::Open)?;
        Ok(Self { remote, root })
    }

    /// Makes a folder and those above it. It has its size before anybody may write into it. Made already, it is given
    /// size and mode again.
    ///
    /// # Errors
    /// With `Some(bytes)`: [`ProvisionError::NoSizes`] where the server is not ours, after the folder was made; nobody
    /// may write into it yet.
    pub fn make(&self, path: &[&str], mode: u32, bytes: Option<u64>) -> Result<()> {
        let mut dir = self.root.clone();
        for (depth, name) in path.iter().enumerate() {
            let own = depth + 1 == path.len();
            dir = self.make_one(&dir, name, if own { 0o700 } else { 0o755 })?;
        }
        if let Some(bytes) = bytes {
            self.set_size(&dir, bytes)?;
        }
        let wanted = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
        let opened = self.remote.call(procedure::SETATTR, &root(), |arguments| {
            wanted.write(arguments.opaque(&dir));
            arguments.bool(false);
        });
        opened.map(drop).map_err(refused(format!("setting the mode of {}", path.join("/"))))
    }

    /// Gives a folder another size.
    pub fn resize(&self, path: &[&str], bytes: u64) -> Result<()> {
        let dir = self.find(path)?.ok_or_else(|| refused(path.join("/"))(libc::ENOENT))?;
        self.set_size(&dir, bytes)
    }

    /// Removes a folder and what is in it. One that is not there is removed.
    pub fn remove(&self, path: &[&str]) -> Result<()> {
        let Some((name, above)) = path.split_last() else { return Ok(()) };
        let (Some(parent), Some(dir)) = (self.find(above)?, self.find(path)?) else { return Ok(()) };
        let failed = refused(format!("removing {}", path.join("/")));
        self.empty(&dir).and_then(|()| self.unlink(procedure::RMDIR, &parent, name.as_bytes())).map_err(failed)
    }

    /// Gives a folder another name beside its own. One that is not there has it.
    pub fn rename(&self, path: &[&str], to: &str) -> Result<()> {
        let Some((name, above)) = path.split_last() else { return Ok(()) };
        let (Some(parent), Some(_)) = (self.find(above)?, self.find(path)?) else { return Ok(()) };
        let renamed = self.remote.call(procedure::RENAME, &root(), |arguments| {
            arguments.opaque(&parent).opaque(name.as_bytes()).opaque(&parent).opaque(to.as_bytes());
        });
        renamed.map(drop).map_err(refused(format!("renaming {} to {to}", path.join("/"))))
    }

    fn make_one(&self, parent: &[u8], name: &str, mode: u32) -> Result<Vec<u8>> {
        let wanted = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
        let made = self.remote.call(procedure::MKDIR, &root(), |arguments| {
            wanted.write(arguments.opaque(parent).opaque(name.as_bytes()));
        });
        match made {
            Ok(_) | Err(libc::EEXIST) => {}
            Err(error) => return Err(refused(format!("making {name} in the export (is root squashed there?)"))(error)),
        }
        self.folder(parent, name)?.ok_or_else(|| refused(format!("looking for {name}"))(libc::ENOENT))
    }

    /// A folder by its names; `None` where it is not there.
    fn find(&self, path: &[&str]) -> Result<Option<Vec<u8>>> {
        let mut dir = self.root.clone();
        for name in path {
            match self.folder(&dir, name)? {
                Some(found) => dir = found,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// A folder in a folder; anything else, links among them, is refused.
    fn folder(&self, parent: &[u8], name: &str) -> Result<Option<Vec<u8>>> {
        match self.lookup(parent, name.as_bytes()) {
            Ok((handle, true)) => Ok(Some(handle)),
            Ok((_, false)) => Err(refused(format!("{name} in the export"))(libc::ENOTDIR)),
            Err(libc::ENOENT) => Ok(None),
            Err(error) => Err(refused(format!("looking for {name}"))(error)),
        }
    }

    /// The handle of a name, and whether it is a folder.
    fn lookup(&self, parent: &[u8], name: &[u8]) -> std::result::Result<(Vec<u8>, bool), Errno> {
        let reply = self.remote.call(procedure::LOOKUP, &root(), |arguments| {
            arguments.opaque(parent).opaque(name);
        })?;
        let (handle, attributes) =
            reply.read(|reader| Ok((reader.opaque(MAX_HANDLE)?.to_vec(), Attributes::read_optional(reader)?)))?;
        let attributes = remote::found(&self.remote, &root(), &handle, attributes)?;
        Ok((handle, attributes.kind == kind::DIRECTORY))
    }

    fn unlink(&self, number: u32, parent: &[u8], name: &[u8]) -> std::result::Result<(), Errno> {
        let arguments = |arguments: &mut Writer| {
            arguments.opaque(parent).opaque(name);
        };
        match self.remote.call(number, &root(), arguments) {
            Ok(_) | Err(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes all that is in a folder. Folders inside are emptied into it as they are met, so that no memory grows
    /// with the depth that somebody gave them.
    fn empty(&self, top: &[u8]) -> std::result::Result<(), Errno> {
        let mut moved: u64 = 0;
        loop {
            let names = self.names(top)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                let (inner, true) = self.lookup(top, &name)? else {
                    self.unlink(procedure::REMOVE, top, &name)?;
                    continue;
                };
                loop {
                    let names = self.names(&inner)?;
                    if names.is_empty() {
                        break;
                    }
                    for name in names {
                        match self.lookup(&inner, &name)? {
                            (_, false) => self.unlink(procedure::REMOVE, &inner, &name)?,
                            (_, true) => self.move_up(&inner, &name, top, &mut moved)?,
                        }
                    }
                }
                self.unlink(procedure::RMDIR, top, &name)?;
            }
        }
    }

    fn move_up(&self, from: &[u8], name: &[u8], top: &[u8], moved: &mut u64) -> std::result::Result<(), Errno> {
        loop {
            let fresh = format!(".removing-{moved}");
            *moved += 1;
            // A folder would replace an empty one of that name, which is as well.
            let renamed = self.remote.call(procedure::RENAME, &root(), |arguments| {
                arguments.opaque(from).opaque(name).opaque(top).opaque(fresh.as_bytes());
            });
            match renamed {
                Err(libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR) => {}
                renamed => return renamed.map(drop),
            }
        }
    }

    /// Some of the names in a folder; none when it is empty.
    fn names(&self, dir: &[u8]) -> std::result::Result<Vec<Vec<u8>>, Errno> {
        let (mut cookie, mut verifier) = (0, 0);
        loop {
            let reply = self.remote.call(procedure::READDIR, &root(), |arguments| {
                arguments.opaque(dir).u64(cookie).u64(verifier).u32(LISTING);
            })?;
            let mut names = Vec::new();
            let end = reply.read(|reader| {
                Attributes::read_optional(reader)?;
                verifier = reader.u64()?;
                while reader.bool()? {
                    let _fileid = reader.u64()?;
                    let name = reader.opaque(MAX_NAME)?;
                    cookie = reader.u64()?;
                    if name != b"." && name != b".." {
                        names.push(name.to_vec());
                    }
                }
                reader.bool()
            })?;
            if end || !names.is_empty() {
                return Ok(names);
            }
        }
    }

    fn set_size(&self, dir: &[u8], bytes: u64) -> Result<()> {
        let failed = |error| ProvisionError::Refused { what: "asking the server to keep the size".to_owned(), error };
        let asked = self.remote.exchange((SIZES, 1, sizes::SET), &root(), true, |arguments| {
            arguments.opaque(dir).u64(bytes);
        });
        let reply = match asked {
            // No such program: another server.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Err(ProvisionError::NoSizes),
            reply => reply.map_err(failed)?,
        };
        match reply.read(|reader| reader.u32()) {
            Ok(status::OK) => Ok(()),
            Ok(status::PERM) => Err(ProvisionError::NotTrusted),
            Ok(other) => Err(failed(io::Error::from_raw_os_error(errno_of(other)))),
            Err(error) => Err(failed(io::Error::from_raw_os_error(error))),
        }
    }
}

/// A provisioner is root, as far as the server lets it.
fn root() -> Credentials {
    Credentials::default()
}

fn refused(what: String) -> impl FnOnce(Errno) -> ProvisionError {
    move |errno| ProvisionError::Refused { what, error: io::Error::from_raw_os_error(errno) }
}
