//! A container's log files: the current one, and the rotated ones beside it (`0.log.1` newest, `0.log.4` oldest).
//! Blocking.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::lines::{MAX_LINE, ends_line};

/// How often opening is begun anew because the log was rotated meanwhile.
const ATTEMPTS: usize = 8;
/// Rotated files that are looked for.
const MAX_FILES: u32 = 16;
/// What is read at once when lines are counted from the end (bytes).
const BLOCK: u64 = 32 * 1024;

/// Which file, whatever its name is now.
type Identity = (u64, u64);

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    pub file: File,
    pub identity: Identity,
    /// Its bytes when it was opened. The container may go on writing to it.
    pub length: u64,
}

fn identity_at(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn open(path: &Path) -> io::Result<LogFile> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok(LogFile { file, identity: (metadata.dev(), metadata.ino()), length: metadata.len() })
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// All files, oldest first, as they were at one instant: no file twice and none left out, whatever is rotated
/// meanwhile.
///
/// # Errors
/// What the system says; files that are not there are none.
pub fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let names: Vec<PathBuf> =
        (1..=MAX_FILES).rev().map(|number| rotated(path, number)).chain([path.to_owned()]).collect();
    for _ in 0..ATTEMPTS {
        let mut files = Vec::new();
        for name in &names {
            files.push(match open(name) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            });
        }
        // A rotation, also a half-done one, gives at least one of the names to another file.
        if names.iter().zip(&files).all(|(name, file)| identity_at(name) == file.as_ref().map(|file| file.identity)) {
            return Ok(files.into_iter().flatten().collect());
        }
    }
    Err(io::Error::other("the log is rotated faster than it can be opened"))
}

/// The file that came after this one; None while this one is the last.
///
/// # Errors
/// See [`open_all`].
pub fn after(path: &Path, identity: Identity) -> io::Result<Option<LogFile>> {
    if identity_at(path) == Some(identity) {
        return Ok(None);
    }
    let files = open_all(path)?;
    let next = match files.iter().position(|file| file.identity == identity) {
        Some(slot) => slot + 1,
        // It was rotated away: the oldest that is left.
        None => 0,
    };
    Ok(files.into_iter().nth(next))
}

/// Where the last `lines` lines of the files begin: the file's place, and the offset in it. Reads from the end, and no
/// more than it must.
///
/// # Errors
/// What the system says.
pub fn tail(files: &[LogFile], lines: u64) -> io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (slot, file) in files.iter().enumerate().rev() {
        if let Some(offset) = tail_of(file, &mut wanted)? {
            return Ok((slot, offset));
        }
    }
    Ok((0, 0))
}

/// None where the file has too few lines; `wanted` is then what older files must give.
fn tail_of(file: &LogFile, wanted: &mut u64) -> io::Result<Option<u64>> {
    let mut start = file.length;
    // From `start` to the end of the last line that is not counted yet.
    let mut pending: Vec<u8> = Vec::new();
    let mut whole_lines = false;
    while start > 0 {
        let length = start.min(BLOCK);
        start -= length;
        let mut block = vec![0u8; length as usize];
        file.file.read_exact_at(&mut block, start)?;
        block.append(&mut pending);
        if !whole_lines {
            // A last line that is still being written does not count.
            block.truncate(block.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
            whole_lines = !block.is_empty();
        }
        while let Some(line) = block.strip_suffix(b"\n") {
            let begin = match line.iter().rposition(|byte| *byte == b'\n') {
                Some(before) => before + 1,
                None if start == 0 || line.len() > MAX_LINE => 0,
                None => break,
            };
            if ends_line(line.get(begin..).unwrap_or_default()) {
                if *wanted == 0 {
                    return Ok(Some(start + block.len() as u64));
                }
                *wanted -= 1;
            }
            block.truncate(begin);
        }
        pending = block;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> String {
        format!("2026-11-21T04:00:00.000000001Z stdout F line {number}\n")
    }

    fn read_from(files: &[LogFile], slot: usize, offset: u64) -> String {
        let mut out = String::new();
        for (index, file) in files.iter().enumerate().skip(slot) {
            let from = if index == slot { offset } else { 0 };
            let mut bytes = vec![0u8; (file.file.metadata().unwrap().len() - from) as usize];
            file.file.read_exact_at(&mut bytes, from).unwrap();
            out.push_str(&String::from_utf8(bytes).unwrap());
        }
        out
    }

    #[test]
    fn the_tail_of_rotated_files_is_the_tail_of_all_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        // More than a block per file, so that lines lie across blocks.
        let all: Vec<String> = (0..2500).map(line).collect();
        fs::write(rotated(&path, 2), all[..1000].concat()).unwrap();
        fs::write(rotated(&path, 1), all[1000..2400].concat()).unwrap();
        fs::write(&path, all[2400..].concat() + "2026-11-21T04:00:00Z stdout F cut").unwrap();
        let files = open_all(&path).unwrap();
        assert_eq!(files.len(), 3);
        for lines in [0, 1, 2, 99, 100, 101, 700, 1499, 1500, 1501, 2499, 2500, 9999] {
            let (slot, offset) = tail(&files, lines as u64).unwrap();
            let expected = all[all.len().saturating_sub(lines)..].concat() + "2026-11-21T04:00:00Z stdout F cut";
            assert_eq!(read_from(&files, slot, offset), expected, "{lines} lines");
        }
    }

    #[test]
    fn a_line_in_parts_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, "T stdout F a\nT stdout P b\nT stdout P c\nT stdout F d\n").unwrap();
        let files = open_all(&path).unwrap();
        assert_eq!(tail(&files, 1).unwrap(), (0, 13));
    }

    #[test]
    fn the_next_file_is_found_after_any_number_of_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, "a").unwrap();
        let first = open_all(&path).unwrap().pop().unwrap();
        assert!(after(&path, first.identity).unwrap().is_none());
        for content in ["b", "c"] {
            let _ = fs::rename(rotated(&path, 1), rotated(&path, 2));
            fs::rename(&path, rotated(&path, 1)).unwrap();
            fs::write(&path, content).unwrap();
        }
        let next = after(&path, first.identity).unwrap().unwrap();
        assert_eq!(read_from(&[next], 0, 0), "b");
        fs::remove_file(rotated(&path, 2)).unwrap();
        assert_eq!(read_from(&[after(&path, first.identity).unwrap().unwrap()], 0, 0), "b");
    }
}
