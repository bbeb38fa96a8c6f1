//! Procedures on one file, and on its file system.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use mainstay_runtime::kernel;
use nix::sys::stat::{self, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::call::{Asked, Fault, Named};
use super::limits;
use crate::protocol::{MAX_IO, MAX_NAME, SetAttributes, SetTime, Time, status};
use crate::xdr::{Reader, Writer};

/// GETATTR.
pub fn getattr(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let named = asked.named(arguments)?;
    super::call::attributes(&named.stat).write(reply);
    Ok(())
}

/// SETATTR.
pub fn setattr(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let named = asked.named(arguments)?;
    let wanted = SetAttributes::read(arguments)?;
    if arguments.bool()? {
        let guard = Time::read(arguments)?;
        if guard != named.attributes()?.changed {
            return Err(Fault::Status(status::NOT_SYNC));
        }
    }
    apply(asked, &named, &wanted)?;
    sync(asked, &named)?;
    named.write_weak(reply);
    Ok(())
}

/// Sets what is asked for, as the asking user.
pub fn apply(asked: &Asked<'_>, named: &Named<'_>, wanted: &SetAttributes) -> Result<(), Fault> {
    let is_link = named.stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
    let file = wanted.size.map(|_| open(asked, named, false)).transpose()?;
    let _acting = asked.act_to_change(named.export)?;
    if let (Some(size), Some(file)) = (wanted.size, file) {
        let size = i64::try_from(size).map_err(|_| Fault::Status(status::FBIG))?;
        within_limit(asked, named, &file, size.unsigned_abs(), || Ok(nix::unistd::ftruncate(&file, size)?))?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        let (uid, gid) = (wanted.uid.map(Uid::from_raw), wanted.gid.map(Gid::from_raw));
        nix::unistd::fchownat(Some(named.fd.as_raw_fd()), "", uid, gid, nix::fcntl::AtFlags::AT_EMPTY_PATH)?;
    }
    // After the owner, whose change takes setuid bits away.
    if let Some(mode) = wanted.mode.filter(|_| !is_link) {
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        stat::fchmodat(None, named.path().as_str(), mode, stat::FchmodatFlags::FollowSymlink)?;
    }
    if wanted.accessed != SetTime::Keep || wanted.modified != SetTime::Keep {
        if is_link {
            return Ok(());
        }
        let time = |time| match time {
            SetTime::Keep => TimeSpec::UTIME_OMIT,
            SetTime::Now => TimeSpec::UTIME_NOW,
            SetTime::To(time) => TimeSpec::new(time.seconds.into(), time.nanoseconds.into()),
        };
        let (accessed, modified) = (time(wanted.accessed), time(wanted.modified));
        stat::utimensat(None, named.path().as_str(), &accessed, &modified, UtimensatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// Carries out a change after which a file is at most `length` long, if its limit has the room.
fn within_limit(
    asked: &Asked<'_>,
    named: &Named<'_>,
    file: &File,
    length: u64,
    change: impl FnOnce() -> io::Result<()>,
) -> Result<(), Fault> {
    let Some(limit) = &named.limit else { return Ok(change()?) };
    let _alone = limit.change_length(named.stat.st_ino);
    let stat = stat::fstat(file.as_raw_fd())?;
    if stat.st_nlink == 0 {
        // What it cost was given back when its last name went.
        return Err(Fault::Status(status::STALE));
    }
    let before = limits::cost(&stat);
    let charge = limit.charge(&asked.server.limits, limits::cost_of(length).saturating_sub(before))?;
    let changed = change();
    charge.settle(before, limits::cost(&stat::fstat(file.as_raw_fd())?));
    Ok(changed?)
}

/// Writes within the file's limit. What does not make it longer needs no room, and goes on beside other writes.
fn write_within(asked: &Asked<'_>, named: &Named<'_>, file: &File, bytes: &[u8], offset: u64) -> Result<(), Fault> {
    let end = offset + bytes.len() as u64;
    let Some(limit) = &named.limit else { return Ok(file.write_all_at(bytes, offset)?) };
    {
        let _length = limit.keep_length(named.stat.st_ino);
        if end <= file.metadata()?.len() {
            return Ok(file.write_all_at(bytes, offset)?);
        }
    }
    within_limit(asked, named, file, end, || file.write_all_at(bytes, offset))
}

/// Opens a regular file's content as the asking user; its owner always may. Nobody acts when this returns: whoever has
/// the file open has only that.
fn open(asked: &Asked<'_>, named: &Named<'_>, reading: bool) -> Result<File, Fault> {
    match named.stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(Fault::Status(status::ISDIR)),
        _ => return Err(Fault::Status(status::INVAL)),
    }
    let mut options = File::options();
    options.read(reading).write(!reading).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let opened = {
        let _acting = if reading { asked.act(named.export) } else { asked.act_to_change(named.export) }?;
        options.open(named.path())
    };
    match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && asked.owns(named) => {
            Ok(options.open(named.path())?)
        }
        opened => Ok(opened?),
    }
}

/// Opens what may be synced.
fn open_to_sync(named: &Named<'_>) -> io::Result<Option<OwnedFd>> {
    match named.stat.st_mode & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFDIR => {
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(named.path()).map(|file| Some(file.into()))
        }
        _ => Ok(None),
    }
}

/// Makes what was changed about a file or folder durable before the answer, as the protocol demands. Where that fails
/// everybody who wrote to it hears of it ([`super::verifier`]).
pub fn sync(asked: &Asked<'_>, named: &Named<'_>) -> Result<(), Fault> {
    let Some(file) = open_to_sync(named)? else { return Ok(()) };
    Ok(asked.server.verifier.sync(&named.stat, || Ok(nix::unistd::fsync(file.as_raw_fd())?))?)
}

/// ACCESS.
pub fn access(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    const READ: u32 = 1;
    const LOOKUP: u32 = 2;
    const CHANGE: u32 = 4 | 8 | 16;
    const EXECUTE: u32 = 32;
    let named = asked.named(arguments)?;
    let wanted = arguments.u32()?;
    let is_dir = named.stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let mut granted = 0;
    {
        let _acting = asked.act(named.export)?;
        for (mode, bits) in
            [(libc::R_OK, READ), (libc::W_OK, CHANGE), (libc::X_OK, if is_dir { LOOKUP } else { EXECUTE })]
        {
            let refused_anyway = mode == libc::W_OK && named.export.read_only;
            if wanted & bits != 0 && !refused_anyway && kernel::may_access(&named.fd, mode) {
                granted |= wanted & bits;
            }
        }
    }
    named.write_after(reply);
    reply.u32(granted);
    Ok(())
}

/// READLINK.
pub fn readlink(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    use std::os::unix::ffi::OsStrExt as _;
    let named = asked.named(arguments)?;
    if named.stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        return Err(Fault::Status(status::INVAL));
    }
    let target = nix::fcntl::readlinkat(Some(named.fd.as_raw_fd()), "")?;
    named.write_after(reply);
    reply.opaque(target.as_bytes());
    Ok(())
}

/// READ.
pub fn read(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let named = asked.named(arguments)?;
    let (offset, count) = (arguments.u64()?, arguments.u32()?.min(MAX_IO));
    let file = open(asked, &named, true)?;
    let size = file.metadata()?.len();
    let available = size.saturating_sub(offset).min(count.into());
    let available = usize::try_from(available).unwrap_or(0);
    asked.take_room(available)?;
    let mut bytes = vec![0; available];
    let length = if bytes.is_empty() { 0 } else { read_at(&file, &mut bytes, offset)? };
    let bytes = bytes.get(..length).unwrap_or_default();
    named.write_after(reply);
    reply.u32(u32::try_from(length).unwrap_or(0)).bool(offset.saturating_add(length as u64) >= size);
    reply.opaque(bytes);
    Ok(())
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(length as u64)) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// WRITE.
pub fn write(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    const UNSTABLE: u32 = 0;
    const DATA_SYNC: u32 = 1;
    let named = asked.named(arguments)?;
    let (offset, count, stable) = (arguments.u64()?, arguments.u32()?, arguments.u32()?);
    let bytes = arguments.opaque(MAX_IO as usize)?;
    let bytes = bytes.get(..count as usize).ok_or(Fault::Garbage)?;
    if i64::try_from(offset.saturating_add(bytes.len() as u64)).is_err() {
        return Err(Fault::Status(status::FBIG));
    }
    let verifier = asked.server.verifier.now();
    let file = open(asked, &named, false)?;
    {
        let _acting = asked.act_to_change(named.export)?;
        write_within(asked, &named, &file, bytes, offset)?;
    }
    if stable != UNSTABLE {
        let sync = || if stable == DATA_SYNC { file.sync_data() } else { file.sync_all() };
        asked.server.verifier.sync(&named.stat, sync)?;
    }
    named.write_weak(reply);
    reply.u32(count).u32(stable.min(2)).u64(verifier);
    Ok(())
}

/// COMMIT. The range is only advice: the whole file is made durable.
pub fn commit(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let named = asked.named(arguments)?;
    let _range = (arguments.u64()?, arguments.u32()?);
    sync(asked, &named)?;
    named.write_weak(reply);
    reply.u64(asked.server.verifier.now());
    Ok(())
}

/// FSSTAT.
pub fn fsstat(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let named = asked.named(arguments)?;
    let about = nix::sys::statvfs::fstatvfs(&named.fd)?;
    let unit = about.fragment_size();
    named.write_after(reply);
    let mut bytes =
        [about.blocks(), about.blocks_free(), about.blocks_available()].map(|blocks| blocks.saturating_mul(unit));
    if let Some(limit) = &named.limit {
        let (size, used) = limit.usage();
        let left = size.saturating_sub(used);
        bytes = [size, left, left.min(bytes[2])];
    }
    for bytes in bytes {
        reply.u64(bytes);
    }
    reply.u64(about.files()).u64(about.files_free()).u64(about.files_available()).u32(0);
    Ok(())
}

/// FSINFO.
pub fn fsinfo(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    /// Sizes of transfers are best multiples of a page.
    const MULTIPLE: u32 = 4096;
    const PREFERRED_LISTING: u32 = 64 << 10;
    /// Hard links, symbolic links, the same everywhere, times can be set.
    const PROPERTIES: u32 = 1 | 2 | 8 | 16;
    let named = asked.named(arguments)?;
    named.write_after(reply);
    for _reading_then_writing in 0..2 {
        reply.u32(MAX_IO).u32(MAX_IO).u32(MULTIPLE);
    }
    reply.u32(PREFERRED_LISTING).u64(i64::MAX.unsigned_abs()).u32(0).u32(1).u32(PROPERTIES);
    Ok(())
}

/// PATHCONF.
pub fn pathconf(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    const MAX_LINKS: u32 = 65_000;
    let named = asked.named(arguments)?;
    named.write_after(reply);
    // No truncation of names; owners cannot give files away; names keep their case.
    reply.u32(MAX_LINKS).u32(MAX_NAME as u32).bool(true).bool(true).bool(false).bool(true);
    Ok(())
}
