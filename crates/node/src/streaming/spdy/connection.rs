//! A SPDY connection's server side: a task that reads frames, a task that writes them, and the client's streams.
//!
//! Flow control: Kubernetes' SPDY library (spdystream) neither keeps to a window nor ever widens one, so a server that
//! waited for WINDOW_UPDATE would stall after 64 KiB. Ours waits for the transport instead, and widens the client's
//! windows as it takes their data, for those that do count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};

use super::frame::{Decoder, Encoder, Frame, reset};
use super::headers::Headers;
use crate::streaming::channels::{Activity, Input, Link, Outgoing, Output, PIECES_QUEUED};

/// Streams of one connection at a time; more are refused.
pub const MAX_STREAMS: usize = 512;
/// Answers (replies, pings, windows) that wait for the writer; a client that sends without reading waits.
const ANSWERS_QUEUED: usize = 64;
/// What is read at once (bytes).
const READ: usize = 32 * 1024;
/// Taken bytes of a stream after which its window is widened.
const WINDOW_STEP: u32 = 16 * 1024;

/// A stream that the client opened; it was answered already.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub input: Input,
    pub output: Output,
}

/// A connection: its streams as they come.
pub struct Connection {
    streams: mpsc::Receiver<Stream>,
    link: Link,
}

impl Connection {
    /// Serves SPDY on an upgraded connection (or the inside of a tunnel). Must be called inside a tokio runtime.
    pub fn start<IO: AsyncRead + AsyncWrite + Send + 'static>(io: IO, idle_timeout: Duration) -> Connection {
        let (read, write) = tokio::io::split(io);
        let (outgoing, to_write) = mpsc::channel(PIECES_QUEUED);
        let (answers, to_answer) = mpsc::channel(ANSWERS_QUEUED);
        let (accept, streams) = mpsc::channel(MAX_STREAMS);
        let (closed, is_closed) = watch::channel(false);
        let closed = Arc::new(closed);
        let activity = Activity::new();
        let reading = Reading {
            accept,
            answers,
            outgoing: outgoing.clone(),
            streams: BTreeMap::new(),
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            last: 0,
        };
        let reader = tokio::spawn({
            let (closed, activity) = (closed.clone(), activity.clone());
            async move {
                reading.run(read, &activity).await;
                let _ = closed.send(true);
            }
        });
        let writer = tokio::spawn({
            let activity = activity.clone();
            async move {
                run_writer(write, to_write, to_answer, &activity).await;
                let _ = closed.send(true);
            }
        });
        Connection { streams, link: Link::new(reader, writer, outgoing, is_closed, activity, idle_timeout) }
    }

    /// The streams as they come, until the client is gone, and the link that carries them.
    pub fn into_parts(self) -> (mpsc::Receiver<Stream>, Link) {
        (self.streams, self.link)
    }
}

/// A stream as the reading side sees it.
struct Open {
    /// None after the client's end of it.
    input: Option<mpsc::Sender<Bytes>>,
    gone: watch::Sender<bool>,
    /// Taken, and not yet told in a WINDOW_UPDATE.
    taken: u32,
}

struct Reading {
    accept: mpsc::Sender<Stream>,
    answers: mpsc::Sender<Frame>,
    outgoing: mpsc::Sender<Outgoing>,
    streams: BTreeMap<u32, Open>,
    permits: Arc<Semaphore>,
    /// The highest stream id so far.
    last: u32,
}

/// The connection is over.
struct Ended;

impl Reading {
    async fn run<R: AsyncRead + Unpin>(mut self, mut read: R, activity: &Activity) {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0u8; READ];
        loop {
            let length = match read.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            activity.touch();
            decoder.feed(buffer.get(..length).unwrap_or_default());
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if self.take(frame).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "SPDY connection ends");
                        let _ = self.answers.send(Frame::GoAway { last_stream: self.last, status: 1 }).await;
                        return;
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Ended> {
        match frame {
            Frame::SynStream { stream, headers, fin } => self.open(stream, headers, fin).await,
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::Headers { stream, fin: true, .. } | Frame::SynReply { stream, fin: true, .. } => {
                self.data(stream, Bytes::new(), true).await
            }
            Frame::Reset { stream, .. } => {
                if let Some(open) = self.streams.remove(&stream) {
                    let _ = open.gone.send(true);
                }
                Ok(())
            }
            // Odd ids are the client's own; even ones would be answers to ours, and none are sent.
            Frame::Ping { id } if id % 2 == 1 => self.answer(Frame::Ping { id }).await,
            Frame::GoAway { .. } => Err(Ended),
            _ => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: Headers, fin: bool) -> Result<(), Ended> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return self.answer(Frame::Reset { stream, status: reset::PROTOCOL_ERROR }).await;
        }
        self.last = stream;
        // Streams that nobody here holds any more.
        self.streams.retain(|_, open| !open.gone.is_closed());
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return self.answer(Frame::Reset { stream, status: reset::REFUSED_STREAM }).await;
        };
        let (sender, input) = Input::new();
        let (gone, is_gone) = watch::channel(false);
        let output = Output::new(stream, self.outgoing.clone(), is_gone, Some(Arc::new(permit)));
        self.streams.insert(stream, Open { input: (!fin).then_some(sender), gone, taken: 0 });
        // The reply must be written before any data of the stream: the writer takes answers first.
        self.answer(Frame::SynReply { stream, headers: Headers::default(), fin: false }).await?;
        self.accept.send(Stream { id: stream, headers, input, output }).await.map_err(|_| Ended)
    }

    async fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) -> Result<(), Ended> {
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        let length = bytes.len() as u32;
        if length > 0
            && let Some(input) = &open.input
        {
            // Nobody reads: the command has closed its input. What comes is passed over, as a pipe's reader would.
            let _ = input.send(bytes).await;
        }
        if fin {
            open.input = None;
        }
        open.taken += length;
        if open.taken >= WINDOW_STEP && !fin {
            let delta = std::mem::take(&mut open.taken);
            self.answer(Frame::WindowUpdate { stream, delta }).await?;
        }
        Ok(())
    }

    async fn answer(&self, frame: Frame) -> Result<(), Ended> {
        self.answers.send(frame).await.map_err(|_| Ended)
    }
}

async fn run_writer<W: AsyncWrite + Unpin>(
    mut write: W,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut answers: mpsc::Receiver<Frame>,
    activity: &Activity,
) {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    loop {
        let mut flushed = None;
        tokio::select! {
            biased;
            Some(frame) = answers.recv() => encoder.encode(&frame, &mut buffer),
            next = outgoing.recv() => match next {
                Some(Outgoing::Data(stream, bytes)) => encoder.encode(&Frame::Data { stream, bytes, fin: false },
                    &mut buffer),
                Some(Outgoing::End(stream)) => encoder.encode(&Frame::Data { stream, bytes: Bytes::new(), fin: true },
                    &mut buffer),
                Some(Outgoing::Flushed(done)) => flushed = Some(done),
                // The reader has ended and nobody here has anything more to say.
                None => break,
            },
        }
        if write.write_all_buf(&mut buffer).await.is_err() || write.flush().await.is_err() {
            return;
        }
        activity.touch();
        if let Some(done) = flushed {
            let _ = done.send(());
        }
    }
    while let Ok(frame) = answers.try_recv() {
        encoder.encode(&frame, &mut buffer);
    }
    let _ = write.write_all_buf(&mut buffer).await;
    let _ = write.shutdown().await;
}
