//! `kubectl logs`: a container's log files as a stream of bytes.
//!
//! - [`lines`]: the CRI format and what a reader asked for
//! - [`files`]: rotation, and lines counted from the end
//! - [`watch`]: waking on a change

pub mod files;
pub mod lines;
mod watch;

use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use self::files::LogFile;
use self::lines::{Filter, LogOptions};
use self::watch::Watch;
use super::backend::{Containers, LogTarget};

/// What is read from a file at once (bytes).
const READ: usize = 32 * 1024;
/// Pieces, each of what was read at once, that wait for the connection's writer: the file keeps the others.
pub const PIECES: usize = 2;

/// Reads a log into `sender` until its end, or with `follow` until the container's; ends early when nobody receives.
pub async fn read(
    target: LogTarget,
    options: LogOptions,
    containers: Arc<dyn Containers>,
    sender: mpsc::Sender<Bytes>,
) {
    let follow = options.follow && target.running;
    tokio::select! {
        () = sender.closed() => (),
        result = run(&target, &options, follow, &*containers, &sender) => {
            if let Err(error) = result {
                tracing::debug!(container = target.id, %error, "reading a log ended");
            }
        }
    }
}

async fn run(
    target: &LogTarget,
    options: &LogOptions,
    follow: bool,
    containers: &dyn Containers,
    sender: &mpsc::Sender<Bytes>,
) -> io::Result<()> {
    // Watched first, read second: no change falls between.
    let watch = match (follow, target.path.parent()) {
        (true, Some(folder)) => Some(Watch::new(folder)?),
        _ => None,
    };
    let mut reader = Reader { filter: Filter::new(options), sender, last: None };
    let (path, tail) = (target.path.clone(), options.tail);
    let files = blocking(move || {
        let mut files = files::open_all(&path)?;
        let (slot, offset) = tail.map_or(Ok((0, 0)), |lines| files::tail(&files, lines))?;
        files.drain(..slot.min(files.len()));
        if let Some(first) = files.first_mut() {
            first.file.seek(SeekFrom::Start(offset))?;
            first.length = first.length.saturating_sub(offset);
        }
        Ok(files)
    })
    .await?;
    for file in files {
        // Who does not follow gets what was there, however fast the container writes: as many lines as asked for.
        let left = if follow { u64::MAX } else { file.length };
        reader.begin(file, left);
        reader.skip_to_end().await?;
    }
    let Some(watch) = watch else { return Ok(()) };
    let mut ended = containers.ended(&target.id);
    loop {
        let over = tokio::select! {
            changed = watch.changed() => {
                changed?;
                false
            }
            // Its last words were written before its end was told.
            () = &mut ended => true,
        };
        reader.skip_to_end().await?;
        while let Some(next) = reader.next_file(target).await? {
            // What was written to the old file before it was rotated.
            reader.skip_to_end().await?;
            reader.begin(next, u64::MAX);
            reader.skip_to_end().await?;
        }
        if over || reader.filter.is_done() {
            return Ok(());
        }
    }
}

struct Current {
    file: tokio::fs::File,
    identity: (u64, u64),
    /// Bytes that the reader may still get of it.
    left: u64,
}

struct Reader<'a> {
    filter: Filter,
    sender: &'a mpsc::Sender<Bytes>,
    last: Option<Current>,
}

impl Reader<'_> {
    fn begin(&mut self, file: LogFile, left: u64) {
        self.filter.new_file();
        self.last = Some(Current { file: tokio::fs::File::from_std(file.file), identity: file.identity, left });
    }

    async fn skip_to_end(&mut self) -> io::Result<()> {
        let Some(current) = &mut self.last else { return Ok(()) };
        let mut buffer = vec![0u8; READ];
        while !self.filter.is_done() {
            let wanted = usize::try_from(current.left).unwrap_or(READ).min(READ);
            let length = current.file.read(buffer.get_mut(..wanted).unwrap_or_default()).await?;
            if length == 0 {
                break;
            }
            current.left -= length as u64;
            let mut out = Vec::with_capacity(length);
            self.filter.feed(buffer.get(..length).unwrap_or_default(), &mut out);
            if !out.is_empty() && self.sender.send(out.into()).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    async fn next_file(&self, target: &LogTarget) -> io::Result<Option<LogFile>> {
        let path = target.path.clone();
        let last = self.last.as_ref().map(|current| current.identity);
        blocking(move || match last {
            Some(identity) => files::after(&path, identity),
            // Nothing was written when reading began.
            None => Ok(files::open_all(&path)?.into_iter().next()),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// conformance: "Kubectl logs should be able to retrieve and filter logs" (`--tail=1` of a container that writes);
    /// S12: a log that is written faster than it is read ends.
    #[tokio::test]
    async fn s12_who_does_not_follow_gets_what_was_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-11-21T04:00:00Z stdout F one\n").expect("written");
        let mut files = files::open_all(&path).expect("opened");
        let mut more = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
        more.write_all(b"2026-11-21T04:00:01Z stdout F two\n").expect("written");
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let mut reader = Reader { filter: Filter::new(&LogOptions::default()), sender: &sender, last: None };
        let file = files.pop().expect("a file");
        let left = file.length;
        reader.begin(file, left);
        reader.skip_to_end().await.expect("read");
        drop(reader);
        drop(sender);
        assert_eq!(receiver.recv().await.as_deref(), Some(&b"one\n"[..]));
        assert_eq!(receiver.recv().await, None);
    }
}
