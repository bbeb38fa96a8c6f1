//! How much of a disk a folder takes that others write into while it is counted.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// How deep a folder is looked into; each level holds two descriptors. What is deeper was made to hide in.
const MAX_DEPTH: usize = 256;
/// What `st_blocks` counts.
const BLOCK: u64 = 512;

/// Bytes that a folder and all below it take on its own file system; never through a link, never into another mount.
/// A file of several names counts for its share with each of them. The count ends as soon as it is above `enough`;
/// a folder that is deeper than 256 levels counts as more than anything. Memory and descriptors grow with the depth
/// alone.
///
/// # Errors
/// The folder itself cannot be read. What vanishes meanwhile is left out.
pub fn bytes(dir: &Path, enough: u64) -> io::Result<u64> {
    count(dir, enough, |metadata| {
        let names = if metadata.is_dir() { 1 } else { metadata.nlink().max(1) };
        metadata.blocks().saturating_mul(BLOCK) / names
    })
}

/// How many files and folders there are, as [`bytes`] counts; one of several names counts with each of them.
///
/// # Errors
/// As [`bytes`].
pub fn inodes(dir: &Path, enough: u64) -> io::Result<u64> {
    count(dir, enough, |_| 1)
}

fn count(dir: &Path, enough: u64, of: impl Fn(&fs::Metadata) -> u64) -> io::Result<u64> {
    let root = super::open_root(dir)?;
    let top = fs::metadata(super::fd_path(&root))?;
    let device = top.dev();
    let mut total = of(&top);
    let entries = fs::read_dir(super::fd_path(&root))?;
    let mut levels: Vec<(OwnedFd, fs::ReadDir)> = vec![(root, entries)];
    while total <= enough {
        let depth = levels.len();
        let Some((folder, entries)) = levels.last_mut() else { break };
        let Some(Ok(entry)) = entries.next() else {
            levels.pop();
            continue;
        };
        let Ok(metadata) = entry.metadata() else { continue };
        total = total.saturating_add(of(&metadata));
        if !metadata.is_dir() || metadata.dev() != device {
            continue;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let Ok(inner) = super::open_strict(folder, Path::new(&entry.file_name()), flags) else { continue };
        if depth >= MAX_DEPTH {
            return Ok(u64::MAX);
        }
        if let Ok(entries) = fs::read_dir(super::fd_path(&inner)) {
            levels.push((inner, entries));
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn x4_a_folder_is_counted_once_and_never_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 4 << 20]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/one"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(at("a/b/one"), at("two")).unwrap();
        symlink(outside.path(), at("out")).unwrap();
        symlink(".", at("a/around")).unwrap();
        // Sparse: it takes nothing.
        fs::File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        let total = bytes(folder.path(), u64::MAX).unwrap();
        assert!(((1 << 20)..(1 << 20) + (64 << 10)).contains(&total), "{total}");
        let soon = bytes(folder.path(), 1).unwrap();
        assert!(soon > 1 && soon <= total, "it ends once it is above the limit: {soon}");
        assert!(bytes(&at("out"), u64::MAX).is_err(), "the folder itself is no link either");
        assert_eq!(inodes(folder.path(), u64::MAX).unwrap(), 8, "three folders, two names, two links, a sparse file");
    }

    #[test]
    fn x4_what_hides_in_the_deep_counts_as_too_much() {
        let folder = tempfile::tempdir().unwrap();
        let deep = (0..300).fold(folder.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(bytes(folder.path(), 1 << 30).unwrap(), u64::MAX);
    }
}
