//! `watch`: what a client is sent after a revision, each change exactly once (A4, A6).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use mainstay_api::parameters::is_true;
use mainstay_api::{Kind, Status, object};
use mainstay_store::{Event, ReadError, Revision, Store, WatchError, Watcher};
use serde_json::json;

use super::codec;
use super::list::{list, read_error};
use super::options::{ListOptions, Match, Query, Selection, flag, resource_version};

/// How many events in a row a watch looks at that it does not send.
const EXAMINED: usize = 128;

/// One event as it is sent, before it is wrapped for the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub type_: &'static str,
    /// The object's JSON.
    pub object: Bytes,
    /// What the object was before, where it was selected and whether it is depends on its conversion.
    pub previous: Option<Bytes>,
}

impl Frame {
    fn new(type_: &'static str, object: Bytes) -> Self {
        Self { type_, object, previous: None }
    }

    /// A Status, after which nothing comes.
    pub fn error(status: &Status) -> Self {
        Self::new("ERROR", Bytes::from(object::print(&status.to_json())))
    }

    /// What a change is to those who were shown the object as it was, if that was selected, and are shown it as it is,
    /// if that is; `None` for nothing. Who selects by what an object says is not shown what it says once it is not
    /// selected any more: it left as it was, at the revision of the change (as upstream).
    pub fn of_change(was: Option<&Bytes>, is: bool, object: Bytes) -> Option<Self> {
        match (was, is) {
            (None, false) => None,
            (None, true) => Some(Self::new("ADDED", object)),
            (Some(_), true) => Some(Self::new("MODIFIED", object)),
            (Some(was), false) => {
                let version = codec::version(&object).unwrap_or_default();
                let object = codec::at_version(was, version).unwrap_or_else(|| was.clone());
                Some(Self::new("DELETED", object))
            }
        }
    }
}

/// An open watch: what is sent first, then what happens.
#[derive(Debug)]
pub struct Watch {
    selection: Arc<Selection>,
    first: VecDeque<Frame>,
    /// None where the changes that were asked for cannot be had.
    watcher: Option<Watcher>,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// The newest revision that a bookmark has promised or an event has carried.
    sent: Revision,
    ended: bool,
}

impl Watch {
    /// Opens a watch. Without a resourceVersion (or with 0) the current objects come first, as `ADDED`; with
    /// `sendInitialEvents` they are followed by a bookmark that says so.
    ///
    /// A revision from which nothing can be shown gives a watch that says so in its only frame, as upstream: clients
    /// list anew for an `ERROR` of 410, and many ask for the same revision for ever when it is the request that is
    /// refused (A7).
    ///
    /// Differs: a revision that has not been is answered like one that is too old. Upstream waits for it; here it can
    /// only be that of a store that was brought back from a backup, whose next changes the client takes for seen.
    ///
    /// # Errors
    /// 400 and 422 for parameters that make no sense, 503 where the newest state is not known.
    pub fn open(store: &Store, selection: Selection, query: &Query) -> Result<Self, Status> {
        let version = query.get("resourceVersion").map_or("", String::as_str);
        let bookmarks = flag(query, "allowWatchBookmarks");
        let is_streaming_list = flag(query, "sendInitialEvents");
        check(query, is_streaming_list, bookmarks)?;
        let asked = match version {
            "" | "0" => None,
            version => Some(resource_version(version)?),
        };
        let mut first = VecDeque::new();
        let after = match asked {
            Some(revision) if !is_streaming_list => revision,
            asked => {
                let version = asked.map_or(Match::Newest, Match::NotOlderThan);
                let now = match list(store, &selection, &ListOptions { limit: 0, from: None, version, since: 0 }) {
                    Err(status) if status.code == 504 => return Ok(Self::refused(selection, &status)),
                    listed => listed?,
                };
                // `sendInitialEvents=false` asks for nothing but what comes.
                if query.get("sendInitialEvents").is_none_or(|value| is_true(value)) {
                    first.extend(now.items.into_iter().map(|entry| Frame::new("ADDED", entry.value)));
                }
                now.revision
            }
        };
        let watcher = match selection.index_text() {
            Some(text) => store.watch_found(selection.prefix(), text, after),
            None => store.watch(selection.prefix(), after),
        };
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(ReadError::Compacted { asked, compacted: bound } | ReadError::Future { asked, newest: bound }) => {
                return Ok(Self::refused(selection, &Status::too_old(asked.0, bound.0)));
            }
            Err(error @ ReadError::Behind) => return Err(read_error(error)),
        };
        if is_streaming_list {
            first.push_back(bookmark(&selection.kind, after, true));
        }
        Ok(Self { selection: Arc::new(selection), first, watcher, bookmarks, sent: after, ended: false })
    }

    /// A watch that says why there is none, and ends.
    fn refused(selection: Selection, why: &Status) -> Self {
        let (selection, first) = (Arc::new(selection), VecDeque::from([Frame::error(why)]));
        Self { selection, first, watcher: None, bookmarks: false, sent: Revision(0), ended: true }
    }

    /// What is watched.
    pub fn selection(&self) -> &Arc<Selection> {
        &self.selection
    }

    /// The next frame, waiting for it; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Frame> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Watch::next`], for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(frame) = self.first.pop_front() {
            return Poll::Ready(Some(frame));
        }
        let mut examined = 0;
        while let Some(watcher) = self.watcher.as_mut().filter(|_| !self.ended) {
            examined += 1;
            if examined > EXAMINED {
                // What is not selected is work too, and the thread is for others as well (X7).
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match watcher.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(event)) => {
                    let revision = event.revision;
                    match self.frame(event) {
                        Ok(Some(frame)) => {
                            self.sent = revision;
                            return Poll::Ready(Some(frame));
                        }
                        Ok(None) => {}
                        Err(status) => return Poll::Ready(Some(self.end(&status))),
                    }
                }
                Poll::Ready(Err(WatchError::Lagged { next, compacted })) => {
                    return Poll::Ready(Some(self.end(&Status::too_old(next.0, compacted.0))));
                }
                Poll::Ready(Err(WatchError::Closed)) => self.ended = true,
            }
        }
        Poll::Ready(None)
    }

    /// A bookmark up to where everything was sent, where that is news; `None` where bookmarks are not wanted.
    pub fn bookmark(&mut self) -> Option<Frame> {
        let progress = self.watcher.as_ref()?.progress();
        if !self.bookmarks || !self.first.is_empty() || self.ended || progress <= self.sent {
            return None;
        }
        self.sent = progress;
        Some(bookmark(&self.selection.kind, progress, false))
    }

    fn end(&mut self, status: &Status) -> Frame {
        self.ended = true;
        Frame::error(status)
    }

    /// What an event is to this watch: an object that comes into the selection is added, one that leaves it deleted.
    fn frame(&self, event: Event) -> Result<Option<Frame>, Status> {
        let was = match &event.previous {
            // What could not be opened was shown to nobody.
            Some(previous) => codec::is_open(previous).is_ok() && self.selection.matches(previous)?,
            None => false,
        };
        // A name prefix also finds longer names; those never match.
        let is = (was || !event.deleted) && self.selection.matches(&event.value)?;
        if event.deleted && is {
            let previous = event.previous.filter(|_| self.selection.needs_conversion());
            return Ok(Some(Frame { previous, ..Frame::new("DELETED", event.value) }));
        }
        let previous = event.previous.filter(|_| was);
        if was && self.selection.needs_conversion() {
            // What it is once it is converted is seen then.
            let type_ = if is { "MODIFIED" } else { "DELETED" };
            return Ok(Some(Frame { previous, ..Frame::new(type_, event.value) }));
        }
        Ok(Frame::of_change(previous.as_ref(), is, event.value))
    }
}

fn check(query: &Query, is_streaming_list: bool, bookmarks: bool) -> Result<(), Status> {
    let how = query.get("resourceVersionMatch").map_or("", String::as_str);
    let refuse =
        |message: &str| Err(Status::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {message}")));
    if query.contains_key("sendInitialEvents") && how != "NotOlderThan" {
        return refuse(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if !how.is_empty() && !query.contains_key("sendInitialEvents") {
        return refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is \
                provided",
        );
    }
    if is_streaming_list && !bookmarks {
        return refuse("sendInitialEvents: Forbidden: sendInitialEvents requires setting allowWatchBookmarks to true");
    }
    Ok(())
}

fn bookmark(kind: &Kind, revision: Revision, ends_initial_events: bool) -> Frame {
    let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
    if ends_initial_events {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    let object = json!({ "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata });
    Frame::new("BOOKMARK", Bytes::from(object::print(&object)))
}
