//! A container's log file in the CRI format: `2026-11-21T04:25:00.123456789Z stdout F the line`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A line longer than this is written in parts, tagged `P` but for the last (as containerd does).
const MAX_LINE: usize = 16 * 1024;
/// The file is rotated before it grows beyond this (the kubelet's containerLogMaxSize)…
const MAX_FILE: u64 = 10 * 1024 * 1024;
/// …and so many files are kept with the current one (containerLogMaxFiles): `0.log`, `0.log.1` … `0.log.4`.
const MAX_FILES: u32 = 5;

/// Which of the container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The open log. A log that cannot be written (a full disk) loses lines, and never stops the container.
pub struct ContainerLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_file: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl ContainerLog {
    /// Opens the file to append, with its parent folders.
    pub fn open(path: &Path) -> io::Result<ContainerLog> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = open_append(path)?;
        let size = file.metadata()?.len();
        Ok(ContainerLog {
            path: path.to_owned(),
            file: Some(file),
            size,
            max_file: MAX_FILE,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Takes what a stream brought. Lines are written when they are complete.
    pub fn feed(&mut self, stream: Stream, bytes: &[u8], stamp: &str) {
        let mut partial = std::mem::take(match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        });
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut rest = bytes;
        while !rest.is_empty() {
            let line_end = rest.iter().position(|byte| *byte == b'\n');
            let take = line_end.unwrap_or(rest.len()).min(MAX_LINE - partial.len().min(MAX_LINE));
            partial.extend_from_slice(rest.get(..take).unwrap_or_default());
            rest = rest.get(take..).unwrap_or_default();
            if let Some(after) = rest.strip_prefix(b"\n") {
                rest = after;
                entry(&mut out, stamp, stream, 'F', &partial);
                partial.clear();
            } else if partial.len() >= MAX_LINE {
                entry(&mut out, stamp, stream, 'P', &partial);
                partial.clear();
            }
        }
        match stream {
            Stream::Stdout => self.stdout = partial,
            Stream::Stderr => self.stderr = partial,
        }
        self.append(&out);
    }

    /// Writes what has no line end: the container has ended. It stays a part, so that no reader adds an end.
    pub fn finish(&mut self, stamp: &str) {
        let mut out = Vec::new();
        for (stream, partial) in
            [(Stream::Stdout, std::mem::take(&mut self.stdout)), (Stream::Stderr, std::mem::take(&mut self.stderr))]
        {
            if !partial.is_empty() {
                entry(&mut out, stamp, stream, 'P', &partial);
            }
        }
        self.append(&out);
    }

    fn append(&mut self, out: &[u8]) {
        if out.is_empty() {
            return;
        }
        if self.size > 0 && self.size + out.len() as u64 > self.max_file {
            self.rotate();
        }
        if self.file.is_none() {
            self.file = open_append(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return };
        self.size = match file.write_all(out) {
            Ok(()) => self.size + out.len() as u64,
            // Of what was cut off by a full disk a part may be there, and counts.
            Err(_) => file.metadata().map_or(self.size, |about| about.len()),
        };
    }

    fn rotate(&mut self) {
        self.file = None;
        for number in (1..MAX_FILES - 1).rev() {
            let _ = fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
        }
        // A failed rename would make the next open append to the full file: better to go on in it than to lose lines.
        let _ = fs::rename(&self.path, numbered(&self.path, 1));
        self.size = 0;
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open_append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn entry(out: &mut Vec<u8>, stamp: &str, stream: Stream, tag: char, line: &[u8]) {
    // Writing into memory cannot fail.
    let _ = write!(out, "{stamp} {} {tag} ", stream.name());
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Now, as the log writes it.
pub fn stamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(feeds: &[(Stream, &[u8])]) -> String {
        let dir =
            std::env::temp_dir().join(format!("mainstay-log-{}-{:?}", std::process::id(), std::thread::current().id()));
        let path = dir.join("c/0.log");
        let mut log = ContainerLog::open(&path).unwrap();
        for (stream, bytes) in feeds {
            log.feed(*stream, bytes, "T");
        }
        log.finish("E");
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        text
    }

    #[test]
    fn lines_are_whole_even_when_reads_are_not_and_streams_do_not_mix() {
        let text = written(&[(Stream::Stdout, b"one\ntw"), (Stream::Stderr, b"bad\n"), (Stream::Stdout, b"o\n\nlast")]);
        assert_eq!(text, "T stdout F one\nT stderr F bad\nT stdout F two\nT stdout F \nE stdout P last\n");
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let mut line = vec![b'x'; MAX_LINE + 5];
        line.push(b'\n');
        let lines: Vec<(usize, char)> = written(&[(Stream::Stdout, &line)])
            .lines()
            .map(|line| (line.len(), line.chars().nth(9).unwrap()))
            .collect();
        assert_eq!(lines, [(MAX_LINE + 11, 'P'), (5 + 11, 'F')]);
    }

    #[test]
    fn rotation_keeps_five_files_and_every_recent_line() {
        let dir = std::env::temp_dir().join(format!("mainstay-rotate-{}", std::process::id()));
        let path = dir.join("0.log");
        let mut log = ContainerLog::open(&path).unwrap();
        log.max_file = 40;
        for number in 0..20 {
            log.feed(Stream::Stdout, format!("line {number:04}\n").as_bytes(), "T");
        }
        let mut names: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4"]);
        let all: String = ["0.log.1", "0.log"].iter().map(|name| fs::read_to_string(dir.join(name)).unwrap()).collect();
        let recent: Vec<&str> = all.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(
            recent,
            ["0018", "0019"].into_iter().rev().skip(2 - recent.len().min(2)).rev().collect::<Vec<_>>().as_slice()
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_stamp_has_nine_digits_and_a_z() {
        let stamp = stamp();
        assert!(stamp.len() == "2026-11-21T04:25:00.123456789Z".len() && stamp.ends_with('Z'), "{stamp}");
    }
}
