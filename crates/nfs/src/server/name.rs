//! Procedures on names in folders. A name is one plain component, resolved beneath its folder without following links
//! or crossing mounts (X3).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{self, FileStat, Mode, SFlag};
use nix::unistd::UnlinkatFlags;

use super::call::{Asked, Fault, Named, write_optional};
use super::limits::{self, Charge, Limit};
use super::{Server, file};
use crate::protocol::{MAX_NAME, MAX_PATH, SetAttributes, SetTime, Time, kind, status};
use crate::xdr::{Reader, Writer};
use mainstay_runtime::safe_path;

/// Opens a name as it is, whatever it is.
const AS_IT_IS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW);

/// A name that can be looked up, made or removed.
fn name<'a>(arguments: &mut Reader<'a>) -> Result<&'a OsStr, Fault> {
    let name = arguments.opaque(MAX_PATH)?;
    if name.len() > MAX_NAME {
        return Err(Fault::Status(status::NAMETOOLONG));
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Fault::Status(status::INVAL));
    }
    Ok(OsStr::from_bytes(name))
}

/// The same, but not `.` and `..`, which are nobody's to make or remove.
fn plain<'a>(arguments: &mut Reader<'a>) -> Result<&'a OsStr, Fault> {
    let name = name(arguments)?;
    if name == "." || name == ".." { Err(Fault::Status(status::EXIST)) } else { Ok(name) }
}

impl Named<'_> {
    pub fn must_be_dir(&self) -> Result<(), Fault> {
        if self.stat.st_mode & libc::S_IFMT == libc::S_IFDIR { Ok(()) } else { Err(Fault::Status(status::NOTDIR)) }
    }

    /// Opens what a name in this folder is. The folder above the export is the export itself.
    pub fn child(&self, name: &OsStr) -> Result<OwnedFd, Fault> {
        if name == "." {
            return Ok(self.fd.try_clone()?);
        }
        if name == ".." {
            return self.parent();
        }
        Ok(safe_path::open_strict(&self.fd, Path::new(name), AS_IT_IS)?)
    }

    /// What something in this folder counts against.
    pub fn limit_of(&self, server: &Server, name: &OsStr, fd: &OwnedFd, found: &FileStat) -> Option<Arc<Limit>> {
        let begins_here = self.limit.as_ref().is_some_and(|limit| limit.root == (self.stat.st_dev, self.stat.st_ino));
        if name == ".." && begins_here && (found.st_dev, found.st_ino) != (self.stat.st_dev, self.stat.st_ino) {
            return None;
        }
        self.limit.clone().or_else(|| server.limits.at(fd, found))
    }

    fn is_root(&self) -> Result<bool, Fault> {
        let root = stat::fstat(self.export.root.as_raw_fd())?;
        Ok((root.st_dev, root.st_ino) == (self.stat.st_dev, self.stat.st_ino))
    }

    fn parent(&self) -> Result<OwnedFd, Fault> {
        if self.is_root()? {
            return Ok(self.fd.try_clone()?);
        }
        // The kernel's own path of the folder tells whether somebody moved it out of the export.
        let path: PathBuf = nix::fcntl::readlink(self.path().as_str())?.into();
        let relative = self.export.relative(&path).and_then(Path::parent).ok_or(Fault::Status(status::STALE))?;
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        Ok(safe_path::open_strict(&self.export.root, relative, AS_IT_IS | OFlag::O_DIRECTORY)?)
    }
}

/// LOOKUP.
pub fn lookup(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let name = name(arguments)?;
    dir.must_be_dir()?;
    let found = {
        let _acting = asked.act(dir.export)?;
        dir.child(name)?
    };
    let stat = stat::fstat(found.as_raw_fd())?;
    let limit = dir.limit_of(asked.server, name, &found, &stat);
    reply.opaque(&asked.server.handle_of(dir.export, limit.as_deref(), &found)?);
    write_optional(reply, Some(&super::call::attributes(&stat)));
    dir.write_after(reply);
    Ok(())
}

/// What a procedure that made `name` answers; with `wanted` set first.
fn made(
    asked: &Asked<'_>,
    dir: &Named<'_>,
    name: &OsStr,
    wanted: &SetAttributes,
    reply: &mut Writer,
) -> Result<(), Fault> {
    let named = {
        let _acting = asked.act_to_change(dir.export)?;
        let fd = safe_path::open_strict(&dir.fd, Path::new(name), AS_IT_IS)?;
        let stat = stat::fstat(fd.as_raw_fd())?;
        Named { export: dir.export, limit: dir.limit_of(asked.server, name, &fd, &stat), stat, fd }
    };
    if *wanted != SetAttributes::default() {
        file::apply(asked, &named, wanted)?;
        file::sync(asked, &named)?;
    }
    file::sync(asked, dir)?;
    reply.bool(true).opaque(&asked.server.handle_of(dir.export, named.limit.as_deref(), &named.fd)?);
    named.write_after(reply);
    dir.write_weak(reply);
    Ok(())
}

/// The mode to make something with; what else is asked for is set afterwards.
fn split_mode(mut wanted: SetAttributes, otherwise: u32) -> (Mode, SetAttributes) {
    let mode = wanted.mode.unwrap_or(otherwise);
    // Setuid, setgid and sticky bits need a chmod of their own.
    wanted.mode = wanted.mode.filter(|mode| mode & 0o7000 != 0);
    (Mode::from_bits_truncate(mode & 0o777), wanted)
}

/// Room for one more file in a folder that has a limit.
fn charge<'a>(asked: &Asked<'_>, dir: &'a Named<'_>) -> Result<Option<Charge<'a>>, Fault> {
    dir.limit.as_ref().map(|limit| limit.charge(&asked.server.limits, limits::cost_of(0))).transpose()
}

/// It was made.
fn settle(asked: &Asked<'_>, dir: &Named<'_>, charge: Option<Charge<'_>>) -> Result<(), Fault> {
    let late = || dir.limit.as_ref().map(|limit| limit.charge(&asked.server.limits, 0)).transpose();
    let charge = if charge.is_some() { charge } else { late()? };
    if let Some(charge) = charge {
        charge.settle(0, limits::cost_of(0));
    }
    Ok(())
}

/// Makes something else than a regular file.
fn making(asked: &Asked<'_>, dir: &Named<'_>, make: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let charge = charge(asked, dir)?;
    {
        let _acting = asked.act_to_change(dir.export)?;
        make()?;
    }
    settle(asked, dir, charge)
}

/// Takes a name away, and gives back what it cost where it was the last one.
fn removing(
    asked: &Asked<'_>,
    dir: &Named<'_>,
    name: &OsStr,
    remove: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let limits = &asked.server.limits;
    let look = || dir.child(name).ok().and_then(|fd| stat::fstat(fd.as_raw_fd()).ok().map(|stat| (fd, stat)));
    let Some(limit) = &dir.limit else {
        let begins_there = look().and_then(|(fd, stat)| limits.at(&fd, &stat));
        remove()?;
        // A folder with a limit of its own, unless it was only given another name.
        let is_gone = |limit: &Arc<Limit>| look().is_none_or(|(_, stat)| limit.root != (stat.st_dev, stat.st_ino));
        if let Some(limit) = begins_there.filter(is_gone) {
            limits.remove(limit.id)?;
        }
        return Ok(());
    };
    let charge = limit.charge(limits, 0)?;
    let _alone = limit.change_names();
    let there = look();
    let _length = there.as_ref().map(|(_, stat)| limit.change_length(stat.st_ino));
    // Its length may have changed until just now.
    let there = there.and_then(|(fd, _)| stat::fstat(fd.as_raw_fd()).ok().map(|stat| (fd, stat)));
    remove()?;
    let is_gone = |fd: &OwnedFd| stat::fstat(fd.as_raw_fd()).is_ok_and(|stat| stat.st_nlink == 0);
    let before = there.filter(|(fd, _)| is_gone(fd)).map_or(0, |(_, stat)| limits::cost(&stat));
    charge.settle(before, 0);
    Ok(())
}

/// CREATE.
pub fn create(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    const UNCHECKED: u32 = 0;
    const GUARDED: u32 = 1;
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    let how = arguments.u32()?;
    dir.must_be_dir()?;
    let (wanted, exclusive) = match how {
        UNCHECKED | GUARDED => (SetAttributes::read(arguments)?, how == GUARDED),
        2 => (exclusive(arguments.u64()?), true),
        _ => return Err(Fault::Garbage),
    };
    let (mode, mut rest) = split_mode(wanted.clone(), 0o600);
    // One that is there needs no room, and no place in a folder that is full.
    let charge = if dir.child(name).is_ok() { None } else { charge(asked, &dir)? };
    let made_now = {
        let _acting = asked.act_to_change(dir.export)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match nix::fcntl::openat(Some(dir.fd.as_raw_fd()), name, flags, mode) {
            Ok(fd) => {
                nix::unistd::close(fd)?;
                true
            }
            Err(nix::errno::Errno::EEXIST) if !exclusive || how == 2 => false,
            Err(error) => return Err(error.into()),
        }
    };
    if made_now {
        settle(asked, &dir, charge)?;
    }
    if !made_now && how == 2 {
        // Made by this very call, which is asked again because its answer was lost? The verifier in its times tells.
        let there = dir.child(name)?;
        let there = super::call::attributes(&stat::fstat(there.as_raw_fd())?);
        if (SetTime::To(there.accessed), SetTime::To(there.modified)) != (wanted.accessed, wanted.modified) {
            return Err(Fault::Status(status::EXIST));
        }
        rest = SetAttributes::default();
    } else if !made_now {
        // Of an existing file only the size is changed, and only a regular file is one.
        rest = SetAttributes { size: wanted.size, ..SetAttributes::default() };
        let there = stat::fstat(dir.child(name)?.as_raw_fd())?;
        if there.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Fault::Status(status::EXIST));
        }
    }
    made(asked, &dir, name, &rest, reply)
}

/// An exclusive creation leaves its verifier in the file's times until the client sets them.
fn exclusive(verifier: u64) -> SetAttributes {
    // Below 2^31 seconds, which every file system can hold.
    let seconds = |word: u64| SetTime::To(Time { seconds: (word & 0x7fff_ffff) as u32, nanoseconds: 0 });
    SetAttributes { accessed: seconds(verifier >> 32), modified: seconds(verifier), ..SetAttributes::default() }
}

/// MKDIR.
pub fn mkdir(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    let (mode, rest) = split_mode(SetAttributes::read(arguments)?, 0o777);
    dir.must_be_dir()?;
    making(asked, &dir, || Ok(stat::mkdirat(Some(dir.fd.as_raw_fd()), name, mode)?))?;
    made(asked, &dir, name, &rest, reply)
}

/// SYMLINK.
pub fn symlink(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    let _mode_of_a_link = SetAttributes::read(arguments)?;
    let target = arguments.opaque(MAX_PATH - 1)?;
    dir.must_be_dir()?;
    if target.is_empty() || target.contains(&0) {
        return Err(Fault::Status(status::INVAL));
    }
    making(asked, &dir, || Ok(nix::unistd::symlinkat(OsStr::from_bytes(target), Some(dir.fd.as_raw_fd()), name)?))?;
    made(asked, &dir, name, &SetAttributes::default(), reply)
}

/// MKNOD.
pub fn mknod(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    let what = arguments.u32()?;
    let (flag, is_device) = match what {
        kind::FIFO => (SFlag::S_IFIFO, false),
        kind::SOCKET => (SFlag::S_IFSOCK, false),
        kind::CHARACTER => (SFlag::S_IFCHR, true),
        kind::BLOCK => (SFlag::S_IFBLK, true),
        _ => return Err(Fault::Status(status::BADTYPE)),
    };
    let (mode, rest) = split_mode(SetAttributes::read(arguments)?, 0o600);
    let device = if is_device { libc::makedev(arguments.u32()?, arguments.u32()?) } else { 0 };
    dir.must_be_dir()?;
    making(asked, &dir, || Ok(stat::mknodat(Some(dir.fd.as_raw_fd()), name, flag, mode, device)?))?;
    made(asked, &dir, name, &rest, reply)
}

/// REMOVE.
pub fn remove(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    unlink(asked, arguments, reply, UnlinkatFlags::NoRemoveDir)
}

/// RMDIR.
pub fn rmdir(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    unlink(asked, arguments, reply, UnlinkatFlags::RemoveDir)
}

fn unlink(
    asked: &Asked<'_>,
    arguments: &mut Reader<'_>,
    reply: &mut Writer,
    flags: UnlinkatFlags,
) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    dir.must_be_dir()?;
    removing(asked, &dir, name, || {
        let _acting = asked.act_to_change(dir.export)?;
        Ok(nix::unistd::unlinkat(Some(dir.fd.as_raw_fd()), name, flags)?)
    })?;
    file::sync(asked, &dir)?;
    dir.write_weak(reply);
    Ok(())
}

/// RENAME.
pub fn rename(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let from = asked.named(arguments)?;
    let from_name = plain(arguments)?;
    let to = asked.named(arguments)?;
    let to_name = plain(arguments)?;
    from.must_be_dir()?;
    to.must_be_dir()?;
    let limit = |dir: &Named<'_>| dir.limit.as_ref().map(|limit| limit.id);
    if (from.export.id, limit(&from)) != (to.export.id, limit(&to)) {
        return Err(Fault::Status(status::XDEV));
    }
    // What had the new name loses it.
    removing(asked, &to, to_name, || {
        let _acting = asked.act_to_change(from.export)?;
        Ok(nix::fcntl::renameat(Some(from.fd.as_raw_fd()), from_name, Some(to.fd.as_raw_fd()), to_name)?)
    })?;
    file::sync(asked, &to)?;
    file::sync(asked, &from)?;
    from.write_weak(reply);
    to.write_weak(reply);
    Ok(())
}

/// LINK.
pub fn link(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let file = asked.named(arguments)?;
    let dir = asked.named(arguments)?;
    let name = plain(arguments)?;
    dir.must_be_dir()?;
    let limit = |named: &Named<'_>| named.limit.as_ref().map(|limit| limit.id);
    if (file.export.id, limit(&file)) != (dir.export.id, limit(&dir)) {
        return Err(Fault::Status(status::XDEV));
    }
    {
        let _acting = asked.act_to_change(dir.export)?;
        let path = file.path();
        nix::unistd::linkat(
            None,
            std::ffi::OsStr::new(&path),
            Some(dir.fd.as_raw_fd()),
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
    }
    file::sync(asked, &dir)?;
    file.write_after(reply);
    dir.write_weak(reply);
    Ok(())
}
