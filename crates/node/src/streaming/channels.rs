//! What SPDY and WebSockets have in common, so that exec, attach and port-forward are written once: channels to and
//! from the client, and the connection that carries them.
//!
//! Both directions are bounded queues of pieces. A reader that does not read stops the connection's reading, and so in
//! the end the client: neither Kubernetes' SPDY clients nor its WebSocket channels know flow control of their own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Pieces (of at most [`MAX_PIECE`] bytes) that wait for a channel's reader, and for the connection's writer.
pub const PIECES_QUEUED: usize = 16;
/// The largest piece that is passed on at once (bytes).
pub const MAX_PIECE: usize = super::spdy::frame::MAX_PIECE;
/// How long what was written may take to reach a client that is no longer heard of.
const WRITE_LINGER: Duration = Duration::from_secs(10);

/// Bytes from the client. Its end: None.
pub struct Input {
    pieces: mpsc::Receiver<Bytes>,
}

impl Input {
    /// A channel's reading end, and what the connection puts into it.
    pub fn new() -> (mpsc::Sender<Bytes>, Input) {
        let (sender, pieces) = mpsc::channel(PIECES_QUEUED);
        (sender, Input { pieces })
    }

    /// The next piece; None when the client has closed the channel or is gone. Cancel-safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }
}

/// What a connection's writer is given.
#[derive(Debug)]
pub enum Outgoing {
    /// Bytes of a channel.
    Data(u32, Bytes),
    /// A channel's end.
    End(u32),
    /// Answered when everything before it was written.
    Flushed(oneshot::Sender<()>),
}

/// Bytes to the client.
pub struct Output {
    channel: u32,
    outgoing: mpsc::Sender<Outgoing>,
    gone: watch::Receiver<bool>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Output {
    /// A channel's writing end. `gone` turns true when the client no longer wants it; `permit` counts the channel.
    pub fn new(
        channel: u32,
        outgoing: mpsc::Sender<Outgoing>,
        gone: watch::Receiver<bool>,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Output {
        Output { channel, outgoing, gone, _permit: permit }
    }

    /// Queues bytes, as many pieces as they need; waits while the client is slow.
    ///
    /// # Errors
    /// `BrokenPipe` when the client has reset the channel or is gone.
    pub async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        loop {
            let piece = bytes.split_to(bytes.len().min(MAX_PIECE));
            self.send(Outgoing::Data(self.channel, piece)).await?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// Queues the channel's end.
    pub async fn end(mut self) {
        let _ = self.send(Outgoing::End(self.channel)).await;
    }

    /// Ends when the client has reset the channel or is gone.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> io::Result<()> {
        tokio::select! {
            biased;
            _ = self.gone.wait_for(|gone| *gone) => Err(io::ErrorKind::BrokenPipe.into()),
            sent = self.outgoing.send(outgoing) => sent.map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// When a connection last moved a byte.
#[derive(Clone)]
pub struct Activity {
    start: Instant,
    last: Arc<AtomicU64>,
}

impl Activity {
    /// Now.
    #[expect(clippy::new_without_default, reason = "it starts a clock, which a default should not")]
    pub fn new() -> Activity {
        Activity { start: Instant::now(), last: Arc::new(AtomicU64::new(0)) }
    }

    /// A byte moved.
    pub fn touch(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A connection's two tasks. Dropping it ends the connection at once.
pub struct Link {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    outgoing: mpsc::Sender<Outgoing>,
    closed: watch::Receiver<bool>,
    activity: Activity,
    idle_timeout: Duration,
}

impl Link {
    /// From the tasks that read and write; `closed` turns true when either has ended.
    pub fn new(
        reader: JoinHandle<()>,
        writer: JoinHandle<()>,
        outgoing: mpsc::Sender<Outgoing>,
        closed: watch::Receiver<bool>,
        activity: Activity,
        idle_timeout: Duration,
    ) -> Link {
        Link { reader, writer, outgoing, closed, activity, idle_timeout }
    }

    /// Returns when the client is gone, or when nothing has moved for the idle timeout.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => (),
            () = self.activity.idle(self.idle_timeout) => (),
        }
    }

    /// Lets everything that was queued reach the client, then waits for it to close. The client closes first: one that
    /// reads slowly (`kubectl exec … | less`) would lose the end of its output otherwise.
    pub async fn finish(mut self) {
        let (done, flushed) = oneshot::channel();
        if self.outgoing.send(Outgoing::Flushed(done)).await.is_ok() {
            tokio::select! {
                _ = flushed => (),
                () = self.closed() => (),
            }
        }
        // Nobody writes any more: a WebSocket's writer says so to the client.
        let (nobody, _) = mpsc::channel(1);
        self.outgoing = nobody;
        self.closed().await;
        self.reader.abort();
        let _ = tokio::time::timeout(WRITE_LINGER, &mut self.writer).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

/// How errors are told to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStyle {
    /// Plain text, nothing on success (v1 to v3).
    Text,
    /// A `metav1.Status`, on success too (v4 and v5).
    Status,
}

/// The channels of an exec or attach, as the client asked for them.
pub struct Channels {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub error: Output,
    /// JSON objects `{"Width":80,"Height":24}`, one after the other.
    pub resize: Option<Input>,
    pub style: ErrorStyle,
    pub link: Link,
}

/// What the request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}
