//! Lines of a CRI log, `<time> <stream> <tag> <content>`, and which of them a reader gets. No IO.

use jiff::Timestamp;

/// The longest line of a log file that is understood (bytes); writers cut a container's lines at 16 KiB.
pub const MAX_LINE: usize = 64 * 1024;

/// What a reader asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    /// A time before each line.
    pub timestamps: bool,
    /// Only what was written then or later.
    pub since: Option<Timestamp>,
    /// So many lines from the end.
    pub tail: Option<u64>,
    /// So many bytes, then no more.
    pub limit_bytes: Option<u64>,
}

/// One line of the file.
struct Line<'a> {
    time: &'a [u8],
    /// The container's line goes on in the next one.
    partial: bool,
    content: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let partial = match tag.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, partial, content: parts.next().unwrap_or_default() })
}

/// Whether a line of the file ends a line of the container. One that is not a log line counts, so that counting ends.
pub fn ends_line(line: &[u8]) -> bool {
    parse(line).is_none_or(|line| !line.partial)
}

/// The file's bytes in any pieces to what the reader gets.
pub struct Filter {
    timestamps: bool,
    since: Option<Timestamp>,
    remaining: Option<u64>,
    carry: Vec<u8>,
    /// The next content begins a line of the container.
    at_start: bool,
}

impl Filter {
    /// A filter for one reader.
    pub fn new(options: &LogOptions) -> Filter {
        let LogOptions { timestamps, since, limit_bytes, .. } = options;
        Filter { timestamps: *timestamps, since: *since, remaining: *limit_bytes, carry: Vec::new(), at_start: true }
    }

    /// The reader has all that it wanted.
    pub fn is_done(&self) -> bool {
        self.remaining == Some(0)
    }

    /// Appends to `out` what the reader gets of these bytes. What is not a log line is passed over.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.carry.is_empty() {
                self.line(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole, out);
            }
        }
        if self.carry.len() + bytes.len() <= MAX_LINE {
            self.carry.extend_from_slice(bytes);
        } else {
            self.carry.clear();
        }
    }

    /// A new file begins: a line that the last one did not end never ends.
    pub fn new_file(&mut self) {
        self.carry.clear();
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if let Some(since) = self.since {
            let time = std::str::from_utf8(line.time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_none_or(|time| time < since) {
                return;
            }
        }
        if self.timestamps && self.at_start {
            self.push(line.time, out);
            self.push(b" ", out);
        }
        self.push(line.content, out);
        if !line.partial {
            self.push(b"\n", out);
        }
        self.at_start = !line.partial;
    }

    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let taken = match &mut self.remaining {
            None => bytes.len(),
            Some(remaining) => {
                let taken = bytes.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX));
                *remaining -= taken as u64;
                taken
            }
        };
        out.extend_from_slice(bytes.get(..taken).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-11-21T04:00:00.000000001Z stdout F one\n\
        2026-11-21T04:00:01.000000001Z stderr P tw\n\
        2026-11-21T04:00:02.000000001Z stderr F o\n\
        nonsense\n\
        2026-11-21T04:00:03.000000001Z stdout F \n\
        2026-11-21T04:00:04.000000001Z stdout F last\n\
        2026-11-21T04:00:05.000000001Z stdout F unfinish";

    fn read(options: &LogOptions, piece: usize) -> String {
        let (mut filter, mut out) = (Filter::new(options), Vec::new());
        LOG.chunks(piece).for_each(|bytes| filter.feed(bytes, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_streams_come_in_order_however_the_bytes_come() {
        for piece in [1, 2, 7, 40, 4096] {
            assert_eq!(read(&LogOptions::default(), piece), "one\ntwo\n\nlast\n", "pieces of {piece}");
        }
    }

    #[test]
    fn options_narrow() {
        let timestamps =
            LogOptions { timestamps: true, since: "2026-11-21T04:00:01Z".parse().ok(), ..LogOptions::default() };
        assert_eq!(
            read(&timestamps, 10),
            "2026-11-21T04:00:01.000000001Z two\n2026-11-21T04:00:03.000000001Z \n2026-11-21T04:00:04.000000001Z last\n"
        );
        let limited = LogOptions { limit_bytes: Some(6), ..LogOptions::default() };
        assert_eq!(read(&limited, 10), "one\ntw");
    }

    #[test]
    fn a_line_without_end_is_not_kept_x4() {
        let (mut filter, mut out) = (Filter::new(&LogOptions::default()), Vec::new());
        for _ in 0..100 {
            filter.feed(&[b'x'; 4096], &mut out);
            assert!(filter.carry.len() <= MAX_LINE);
        }
        filter.feed(b"\n2026-11-21T04:00:00Z stdout F ok\n", &mut out);
        assert_eq!(out, b"ok\n");
    }
}
