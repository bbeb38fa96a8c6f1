//! One layer, from its tar stream to a folder that overlayfs can use: nothing outside that folder is ever touched (X3).
//!
//! Every path is resolved by the kernel with the folder as its root (`openat2` with RESOLVE_IN_ROOT), one descriptor
//! per parent; what is written is then named in that parent without following links. A symlink to `/etc` in a layer
//! therefore leads to the layer's own `etc`, whatever order the entries come in.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::safe_path::remove;

/// Entries in one layer.
const MAX_ENTRIES: usize = 2_000_000;
/// Folders whose times are set at the end, when nothing is put into them any more: bytes of their paths. Further ones
/// keep the time at which they were unpacked.
const MAX_DIR_TIMES: usize = 64 << 20;
/// Bytes of files in one layer.
const MAX_BYTES: u64 = 64 << 30;
/// Bytes of a layer's tar: its files and what describes them.
pub const MAX_STREAM: u64 = MAX_BYTES + (8 << 30);
/// Extended headers (long names, attributes) of one entry, all together (bytes).
pub const MAX_EXTENDED: u64 = 1 << 20;
const MAX_PATH: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_METADATA: &[u8] = b".wh..wh.";

type Result<T> = std::result::Result<T, String>;

/// One entry's metadata after its extended headers were applied.
struct Meta {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: EntryType,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    size: u64,
    device: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Unpacks a layer into `root`, an empty folder. Returns the bytes of its files.
pub fn unpack(reader: &mut dyn Read, root: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<u64> {
    let root_fd = File::open(root).map_err(|error| format!("cannot open {}: {error}", root.display()))?;
    let mut unpacker = Unpacker {
        root: OwnedFd::from(root_fd),
        parent: None,
        dir_times: BTreeMap::new(),
        dir_bytes: 0,
        bytes: 0,
        on_bytes,
    };
    let mut archive = tar::Archive::new(reader);
    // Raw: long names and attributes come as entries of their own, so that their size is checked before they are read.
    let entries = archive.entries().map_err(|error| error.to_string())?.raw(true);
    let mut extended = Extended::default();
    for (count, entry) in entries.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} entries"));
        }
        let mut entry = entry.map_err(|error| error.to_string())?;
        if Extended::is(entry.header()) {
            let size = entry.size();
            extended.read(entry.header().entry_type(), size, &mut entry)?;
            continue;
        }
        let meta = std::mem::take(&mut extended).apply(entry.header())?;
        unpacker
            .entry(&meta, &mut entry)
            .map_err(|why| format!("entry {:?}: {why}", String::from_utf8_lossy(&meta.path)))?;
    }
    unpacker.finish()
}

/// What the headers before an entry say about it.
#[derive(Default)]
pub struct Extended {
    /// Bytes of those headers.
    bytes: u64,
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    /// Whether an entry is such a header.
    pub fn is(header: &tar::Header) -> bool {
        let kind = header.entry_type();
        kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
    }

    /// Takes in such a header of `size` bytes. There may be several before one entry.
    pub fn read(&mut self, kind: EntryType, size: u64, content: &mut dyn Read) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_EXTENDED {
            return Err(format!("extended headers of {} bytes before one entry", self.bytes));
        }
        let mut bytes = Vec::new();
        content.take(size).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let until_nul = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        if kind.is_gnu_longname() {
            self.path = Some(until_nul());
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_nul());
        } else if kind.is_pax_local_extensions() {
            self.pax(&bytes)?;
        }
        Ok(())
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<()> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record.map_err(|_| "a malformed extended header".to_owned())?;
            let value = record.value_bytes();
            let number =
                || std::str::from_utf8(value).ok().and_then(|text| text.split('.').next()?.parse::<i64>().ok());
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = number().and_then(|size| u64::try_from(size).ok()),
                b"uid" => self.uid = number().and_then(|id| u32::try_from(id).ok()),
                b"gid" => self.gid = number().and_then(|id| u32::try_from(id).ok()),
                b"mtime" => self.mtime = number(),
                // The content would be a map of a file's pieces and the pieces, not the file.
                key if key.starts_with(b"GNU.sparse.") => return Err("sparse files are not supported".to_owned()),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| keeps_xattr(name)) {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(self, header: &tar::Header) -> Result<Meta> {
        let text = |error: io::Error| error.to_string();
        let id = |value: io::Result<u64>| value.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let size = header.size().map_err(text)?;
        // The size of the data in the stream is what the header's reader used; another one would be a disagreement.
        if self.size.is_some_and(|asked| asked != size) {
            return Err("its size is given twice, differently".to_owned());
        }
        let major = header.device_major().ok().flatten().unwrap_or(0);
        let minor = header.device_minor().ok().flatten().unwrap_or(0);
        Ok(Meta {
            path: self.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: self.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default(),
            kind: header.entry_type(),
            mode: header.mode().map_err(text)? & 0o7777,
            uid: self.uid.unwrap_or_else(|| id(header.uid())),
            gid: self.gid.unwrap_or_else(|| id(header.gid())),
            mtime: self
                .mtime
                .unwrap_or_else(|| header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0)),
            size,
            device: libc::makedev(major, minor),
            xattrs: self.xattrs,
        })
    }
}

/// overlayfs takes orders from attributes (`trusted.overlay.redirect`…): an image must not give them.
fn keeps_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

struct Unpacker<'a> {
    root: OwnedFd,
    /// The parent of the last entry: most entries have the same.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Parents come before what is in them.
    dir_times: BTreeMap<PathBuf, i64>,
    dir_bytes: usize,
    bytes: u64,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl Unpacker<'_> {
    fn entry(&mut self, meta: &Meta, data: &mut dyn Read) -> Result<()> {
        let path = clean(&meta.path)?;
        let Some(name) = path.file_name() else {
            return if meta.kind.is_dir() { self.set_root(meta) } else { Err("it has no name".to_owned()) };
        };
        let parent = self.parent_of(&path)?;
        if let Some(whiteout) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name.as_bytes(), whiteout);
        }
        let c_name = c_string(name.as_bytes())?;
        let existing = stat_at(parent, &c_name);
        let was_whiteout = existing.as_ref().is_some_and(|stat| is_kind(stat, libc::S_IFCHR) && stat.st_rdev == 0);
        let keep = meta.kind.is_dir() && existing.as_ref().is_some_and(|stat| is_kind(stat, libc::S_IFDIR));
        if existing.is_some() && !keep {
            self.remove(parent, &c_name, &path)?;
        }
        let parent = self.parent_of(&path)?;
        match meta.kind {
            EntryType::Directory => {
                if !keep {
                    // SAFETY: a valid descriptor and a NUL-terminated name.
                    check(unsafe { libc::mkdirat(parent, c_name.as_ptr(), 0o755) })?;
                }
                if was_whiteout {
                    set_xattr(&named(parent, &c_name), b"trusted.overlay.opaque", b"y")?;
                }
                self.note_time(&path, meta.mtime);
                return set_meta(parent, &c_name, meta, true);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if meta.kind == EntryType::GNUSparse {
                    return Err("sparse files are not supported".to_owned());
                }
                self.file(parent, &c_name, meta, data)?;
            }
            EntryType::Symlink => {
                let target = c_string(&meta.link)?;
                // SAFETY: a valid descriptor and two NUL-terminated names.
                check(unsafe { libc::symlinkat(target.as_ptr(), parent, c_name.as_ptr()) })?;
                return set_link_meta(parent, &c_name, meta);
            }
            EntryType::Link => return self.hard_link(&path, &c_name, meta),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match meta.kind {
                    EntryType::Char => libc::S_IFCHR,
                    EntryType::Block => libc::S_IFBLK,
                    _ => libc::S_IFIFO,
                };
                // SAFETY: a valid descriptor and a NUL-terminated name.
                check(unsafe { libc::mknodat(parent, c_name.as_ptr(), kind | 0o600, meta.device) })?;
            }
            other => return Err(format!("entries of type {:?} are not supported", char::from(other.as_byte()))),
        }
        set_meta(parent, &c_name, meta, false)
    }

    fn file(&mut self, parent: RawFd, name: &CString, meta: &Meta, data: &mut dyn Read) -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: a valid descriptor and a NUL-terminated name; the result is a new descriptor or -1.
        let fd = check(unsafe { libc::openat(parent, name.as_ptr(), flags, 0o600) })?;
        // SAFETY: see above.
        let mut file = unsafe { File::from_raw_fd(fd) };
        self.bytes = self.bytes.saturating_add(meta.size);
        if self.bytes > MAX_BYTES {
            return Err(format!("the layer has more than {} GiB", MAX_BYTES >> 30));
        }
        let mut buffer = vec![0u8; 128 * 1024];
        let mut written = 0u64;
        loop {
            let length = match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            file.write_all(buffer.get(..length).unwrap_or_default())
                .map_err(|error| format!("cannot write: {error}"))?;
            written += length as u64;
            (self.on_bytes)(length as u64);
        }
        if written != meta.size {
            return Err(format!("it ends after {written} of {} bytes", meta.size));
        }
        Ok(())
    }

    /// The link's target is a path in the layer; the link is made of what the kernel finds there inside the root.
    fn hard_link(&mut self, path: &Path, name: &CString, meta: &Meta) -> Result<()> {
        let target = clean(&meta.link)?;
        let target_name = c_string(target.file_name().ok_or("its link target has no name")?.as_bytes())?;
        let target_parent = open_in_root(&self.root, target.parent().unwrap_or(Path::new("")))
            .map_err(|error| format!("its link target {:?}: {error}", target.display()))?;
        let parent = self.parent_of(path)?;
        // SAFETY: valid descriptors and NUL-terminated names; without AT_SYMLINK_FOLLOW the last part is not followed.
        let linked = unsafe { libc::linkat(target_parent.as_raw_fd(), target_name.as_ptr(), parent, name.as_ptr(), 0) };
        check(linked).map(|_| ()).map_err(|why| format!("its link target {:?}: {why}", target.display()))
    }

    fn whiteout(&mut self, parent: RawFd, name: &[u8], hidden: &[u8]) -> Result<()> {
        if name == OPAQUE {
            return set_xattr(format!("/proc/self/fd/{parent}").as_bytes(), b"trusted.overlay.opaque", b"y");
        }
        if name.starts_with(AUFS_METADATA) {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err("a whiteout of nothing".to_owned());
        }
        let hidden = c_string(hidden)?;
        // A whiteout hides what lower layers have; what this layer itself brought stays.
        if stat_at(parent, &hidden).is_none() {
            // SAFETY: a valid descriptor and a NUL-terminated name.
            check(unsafe { libc::mknodat(parent, hidden.as_ptr(), libc::S_IFCHR, 0) })?;
        }
        Ok(())
    }

    fn set_root(&mut self, meta: &Meta) -> Result<()> {
        self.note_time(Path::new(""), meta.mtime);
        set_meta(self.root.as_raw_fd(), &c_string(b".")?, meta, true)
    }

    fn note_time(&mut self, dir: &Path, mtime: i64) {
        if let Some(known) = self.dir_times.get_mut(dir) {
            *known = mtime;
        } else if self.dir_bytes + dir.as_os_str().len() <= MAX_DIR_TIMES {
            self.dir_bytes += dir.as_os_str().len();
            self.dir_times.insert(dir.to_owned(), mtime);
        }
    }

    /// A descriptor of the entry's parent, made with its own parents where the layer did not bring them.
    fn parent_of(&mut self, path: &Path) -> Result<RawFd> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((known, fd)) = &self.parent
            && known == parent
        {
            return Ok(fd.as_raw_fd());
        }
        let fd = match open_in_root(&self.root, parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_dirs(parent)?,
            result => result.map_err(|error| error.to_string())?,
        };
        let raw = fd.as_raw_fd();
        self.parent = Some((parent.to_owned(), fd));
        Ok(raw)
    }

    /// Makes what is missing of a path. What is there is found by halving: the kernel walks a path (and every link in
    /// it) from the root each time.
    fn make_dirs(&self, path: &Path) -> Result<OwnedFd> {
        let parts: Vec<&OsStr> = path.iter().collect();
        let prefix = |length: usize| parts.iter().take(length).collect::<PathBuf>();
        let mut at = open_in_root(&self.root, Path::new("")).map_err(|error| error.to_string())?;
        let (mut there, mut missing) = (0, parts.len());
        while there + 1 < missing {
            let middle = there.midpoint(missing);
            match open_in_root(&self.root, &prefix(middle)) {
                Ok(fd) => (at, there) = (fd, middle),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing = middle,
                Err(error) => return Err(error.to_string()),
            }
        }
        for part in parts.into_iter().skip(there) {
            let name = c_string(part.as_bytes())?;
            // SAFETY: a valid descriptor and a NUL-terminated name.
            check(unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), 0o755) })?;
            // Just made: no link.
            at = open_in_root(&at, Path::new(part)).map_err(|error| error.to_string())?;
        }
        Ok(at)
    }

    /// Removes what an earlier entry of this layer put there.
    fn remove(&mut self, parent: RawFd, name: &CString, path: &Path) -> Result<()> {
        // SAFETY: a valid descriptor and a NUL-terminated name.
        if unsafe { libc::unlinkat(parent, name.as_ptr(), 0) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) {
            return Err(error.to_string());
        }
        // SAFETY: the parent is open as long as this runs: nothing replaces it before.
        let parent = unsafe { std::os::fd::BorrowedFd::borrow_raw(parent) };
        let parent = parent.try_clone_to_owned().map_err(|error| error.to_string())?;
        self.parent = None;
        // Names of this folder and of all below it stand side by side.
        let gone: Vec<PathBuf> = self
            .dir_times
            .range(path.to_owned()..)
            .map(|(dir, _)| dir)
            .take_while(|dir| dir.starts_with(path))
            .cloned()
            .collect();
        for dir in gone {
            self.dir_bytes -= dir.as_os_str().len();
            self.dir_times.remove(&dir);
        }
        remove::folder_in(&parent, OsStr::from_bytes(name.as_bytes())).map_err(|error| error.to_string())
    }

    fn finish(self) -> Result<u64> {
        for (path, mtime) in self.dir_times.iter().rev() {
            if let Ok(dir) = open_in_root(&self.root, path) {
                set_times(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes(), *mtime, 0);
            }
        }
        Ok(self.bytes)
    }
}

/// `./usr//bin/` is `usr/bin`. A path with `..` is refused: no honest tool writes one.
fn clean(path: &[u8]) -> Result<PathBuf> {
    if path.len() > MAX_PATH {
        return Err(format!("its path is longer than {MAX_PATH} bytes"));
    }
    let mut cleaned = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => (),
            b".." => return Err("its path contains '..'".to_owned()),
            part if part.contains(&0) => return Err("its path contains a NUL byte".to_owned()),
            part => cleaned.push(OsStr::from_bytes(part)),
        }
    }
    Ok(cleaned)
}

/// Opens a folder with `root` as its root: links and `..` cannot lead out.
pub fn open_in_root(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    open_at(root, path, libc::O_PATH | libc::O_DIRECTORY)
}

/// `openat2` with RESOLVE_IN_ROOT.
pub fn open_at(root: &OwnedFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero open_how is valid; the kernel reads it and the NUL-terminated path, and returns a new
    // descriptor or -1.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let fd = libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how,
            std::mem::size_of::<libc::open_how>(),
        );
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

fn set_meta(parent: RawFd, name: &CString, meta: &Meta, is_dir: bool) -> Result<()> {
    // The order matters: a change of owner takes set-user-id bits and capabilities away.
    // SAFETY: a valid descriptor and a NUL-terminated name; what is there was just made by us, and is no link.
    unsafe {
        check(libc::fchownat(parent, name.as_ptr(), meta.uid, meta.gid, libc::AT_SYMLINK_NOFOLLOW))?;
        check(libc::fchmodat(parent, name.as_ptr(), meta.mode, 0))?;
    }
    let path = named(parent, name);
    for (key, value) in &meta.xattrs {
        set_xattr(&path, key, value)?;
    }
    if !is_dir {
        set_times(&path, meta.mtime, libc::AT_SYMLINK_NOFOLLOW);
    }
    Ok(())
}

fn set_link_meta(parent: RawFd, name: &CString, meta: &Meta) -> Result<()> {
    // SAFETY: as in set_meta.
    check(unsafe { libc::fchownat(parent, name.as_ptr(), meta.uid, meta.gid, libc::AT_SYMLINK_NOFOLLOW) })?;
    set_times(&named(parent, name), meta.mtime, libc::AT_SYMLINK_NOFOLLOW);
    Ok(())
}

/// Times are for people: a file system that refuses one does not spoil the layer.
fn set_times(path: &[u8], mtime: i64, flags: i32) {
    let time = libc::timespec { tv_sec: mtime, tv_nsec: 0 };
    if let Ok(path) = CString::new(path) {
        // SAFETY: a NUL-terminated path and two timespecs.
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), flags) };
    }
}

fn set_xattr(path: &[u8], key: &[u8], value: &[u8]) -> Result<()> {
    let (path, key_text) = (c_string(path)?, c_string(key)?);
    // SAFETY: NUL-terminated names and a buffer with its length.
    let result = unsafe { libc::setxattr(path.as_ptr(), key_text.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match check(result) {
        // Only overlayfs's own marks are needed; a file system without user attributes is fine otherwise.
        Err(_) if key.starts_with(b"user.") => Ok(()),
        result => {
            result.map(|_| ()).map_err(|why| format!("cannot set attribute {}: {why}", String::from_utf8_lossy(key)))
        }
    }
}

/// A path that names an entry of an open folder.
fn named(parent: RawFd, name: &CString) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{parent}/").into_bytes();
    path.extend_from_slice(name.as_bytes());
    path
}

fn stat_at(parent: RawFd, name: &CString) -> Option<libc::stat> {
    // SAFETY: an all-zero stat is valid, and the kernel fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstatat(parent, name.as_ptr(), &mut stat, libc::AT_SYMLINK_NOFOLLOW) == 0).then_some(stat)
    }
}

fn is_kind(stat: &libc::stat, kind: libc::mode_t) -> bool {
    stat.st_mode & libc::S_IFMT == kind
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| "a name contains a NUL byte".to_owned())
}

fn check(result: i32) -> Result<i32> {
    if result < 0 { Err(io::Error::last_os_error().to_string()) } else { Ok(result) }
}
