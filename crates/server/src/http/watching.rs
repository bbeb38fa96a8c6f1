//! A watch as a response body: events are taken from the store's window when the client has room for them, so a slow
//! client costs no memory, and one slower than the window is told 410.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_api::table::Media;
use mainstay_api::{Status, protobuf};
use tokio::time::Sleep;

use super::shape::Shape;
use crate::api::{Api, Frame, Selection, Watch};
use crate::convert;

/// Frames are gathered into one chunk up to this size, in bytes; a single larger object still goes as one.
const CHUNK: usize = 64 << 10;
/// How many chunks a watch gives in a row before other connections have their turn.
const BURST: usize = 8;
/// How often a client that wants bookmarks gets one, as upstream.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// The body of a watch.
pub struct WatchBody {
    watch: Watch,
    shape: Shape,
    ends: Pin<Box<Sleep>>,
    bookmark: Pin<Box<Sleep>>,
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Chunks since the thread was last given back.
    in_a_row: usize,
    ended: bool,
    /// Counts the events that are sent.
    sent: Arc<AtomicU64>,
    /// Where objects have to be converted by a webhook.
    api: Option<Api>,
    /// The frame whose object is being converted.
    converting: Option<Converting>,
}

type Converting = Pin<Box<dyn Future<Output = Result<Option<Frame>, Status>> + Send>>;

/// A frame in the version that is watched; `None` where its object, once converted, neither was nor is selected.
async fn converted(api: Api, selection: Arc<Selection>, frame: Frame) -> Result<Option<Frame>, Status> {
    let kind = &selection.kind;
    let object = convert::shown(&api, kind, frame.object).await?;
    if !selection.needs_conversion() {
        return Ok(Some(Frame { object, ..frame }));
    }
    let previous = match frame.previous {
        Some(previous) => Some(convert::shown(&api, kind, previous).await?),
        None => None,
    };
    let was = match &previous {
        Some(previous) => selection.matches_converted(previous)?,
        None => false,
    };
    let is = frame.type_ != "DELETED" && selection.matches_converted(&object)?;
    Ok(Frame::of_change(previous.as_ref().filter(|_| was), is, object))
}

impl WatchBody {
    /// A body that ends after `timeout`, or when the server is closing.
    pub fn new(
        watch: Watch,
        shape: Shape,
        timeout: Duration,
        sent: Arc<AtomicU64>,
        closing: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            watch,
            shape,
            ends: Box::pin(tokio::time::sleep(timeout)),
            bookmark: Box::pin(tokio::time::sleep(BOOKMARK_EVERY)),
            closing: Box::pin(closing),
            in_a_row: 0,
            ended: false,
            sent,
            api: None,
            converting: None,
        }
    }

    /// The same, with objects of other versions converted by the kind's webhook.
    pub fn converting(mut self, api: Api) -> Self {
        self.api = Some(api);
        self
    }

    /// The next frame, in the version that is watched. What cannot be converted ends the watch.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        loop {
            if let Some(work) = &mut self.converting {
                let converted = std::task::ready!(work.as_mut().poll(cx));
                self.converting = None;
                match converted {
                    Ok(None) => continue,
                    Ok(frame) => return Poll::Ready(frame),
                    Err(status) => {
                        self.ended = true;
                        return Poll::Ready(Some(Frame::error(&status)));
                    }
                }
            }
            let Some(frame) = std::task::ready!(self.watch.poll_next(cx)) else { return Poll::Ready(None) };
            let selection = self.watch.selection();
            let is_object = !matches!(frame.type_, "ERROR" | "BOOKMARK");
            match &self.api {
                Some(api)
                    if is_object
                        && (selection.needs_conversion() || convert::is_other(&selection.kind, &frame.object)) =>
                {
                    self.converting = Some(Box::pin(converted(api.clone(), selection.clone(), frame)));
                }
                _ => return Poll::Ready(Some(frame)),
            }
        }
    }

    /// What it is written as.
    pub fn media(&self) -> Media {
        self.shape.media
    }

    /// The next chunk; `None` at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // Looked at first: a watch that always has events ends in time too.
        self.ended = self.ends.as_mut().poll(cx).is_ready() || self.closing.as_mut().poll(cx).is_ready();
        self.in_a_row += 1;
        if !self.ended && self.in_a_row > BURST {
            // The thread is for others too.
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut chunk = BytesMut::new();
        while !self.ended && chunk.len() < CHUNK {
            match self.poll_frame(cx) {
                Poll::Ready(Some(frame)) => self.write(&mut chunk, &frame),
                Poll::Ready(None) => {
                    self.ended = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if chunk.is_empty() {
            let is_due = self.bookmark.as_mut().poll(cx).is_ready();
            if is_due {
                self.bookmark.as_mut().reset(tokio::time::Instant::now() + BOOKMARK_EVERY);
                // Polled once more so that the timer knows whom to wake.
                let _ = self.bookmark.as_mut().poll(cx);
            }
            // What is being converted has not been sent.
            if (is_due || self.ended)
                && self.converting.is_none()
                && let Some(frame) = self.watch.bookmark()
            {
                self.write(&mut chunk, &frame);
            }
        }
        match (chunk.is_empty(), self.ended) {
            (false, _) => Poll::Ready(Some(chunk.freeze())),
            (true, true) => Poll::Ready(None),
            (true, false) => {
                self.in_a_row = 0;
                Poll::Pending
            }
        }
    }

    /// A frame of a watch in protobuf: its length (four bytes, big-endian), then a `WatchEvent` of the type (1) and of
    /// the object in its envelope (2), which is raw (1).
    fn write_message(&mut self, chunk: &mut BytesMut, frame: &Frame) {
        let object = self.object(frame);
        let Some(object) = super::respond::message(&object) else {
            tracing::error!(type_ = frame.type_, "an object of a watch has no message");
            self.ended = true;
            return;
        };
        let raw = protobuf::field(1, &object);
        let event = [protobuf::field(1, frame.type_.as_bytes()), protobuf::field(2, &raw)].concat();
        chunk.reserve(event.len() + 4);
        chunk.put_u32(u32::try_from(event.len()).unwrap_or(u32::MAX));
        chunk.put_slice(&event);
    }

    fn object(&mut self, frame: &Frame) -> Bytes {
        match frame.type_ {
            "ERROR" => frame.object.clone(),
            _ => self.shape.event(&frame.object, jiff::Timestamp::now()),
        }
    }

    /// `{"type":"ADDED","object":{…}}` and a line's end.
    fn write(&mut self, chunk: &mut BytesMut, frame: &Frame) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if self.shape.media == Media::Protobuf {
            return self.write_message(chunk, frame);
        }
        let object = self.object(frame);
        chunk.reserve(object.len() + 40);
        chunk.put_slice(b"{\"type\":\"");
        chunk.put_slice(frame.type_.as_bytes());
        chunk.put_slice(b"\",\"object\":");
        chunk.put_slice(&object);
        chunk.put_slice(b"}\n");
    }
}
