//! From the watch of a node's pods to one agenda per pod uid: the informer's and the dispatcher's decisions are the
//! product's, and so are the lists and frames that the server answers with. What is left out is the wire between them,
//! which is cut, slow and stale as the seed says.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_client::{Notice, Step, WatchEvent};
use mainstay_logic::kubelet::{Agenda, ContainerFact, Dispatch, Fact, PodUpdate, PodView, Remembered, Sandbox};
use mainstay_server::api::{self, Frame, Query, Selection, Watch};
use mainstay_store::Revision;
use serde_json::{Value, json};

use super::{Agent, Around, Entry, Node, plus};
use crate::bugs::Bug;

/// How many revisions a stale server may lag behind.
const STALE: i64 = 200;

/// The answer of a server that is not there, or is cut off.
struct Failed {
    /// Its window does not reach back so far (410).
    is_expired: bool,
}

impl Node {
    /// Goes on with the list and watch of this node's pods; whether there was anything.
    pub(super) fn follow_pods(&mut self, around: &mut Around<'_>) -> bool {
        // Perhaps by the heartbeat of this very moment.
        if self.agent.is_replaced || self.agent.retry_at.is_some_and(|at| at > around.now) {
            return false;
        }
        self.agent.retry_at = None;
        let notices = match self.ask(around) {
            Ok(None) => return false,
            Ok(Some(notices)) => notices,
            Err(failed) => {
                self.pause(&failed, around.now);
                return true;
            }
        };
        for notice in notices {
            self.notice(notice, around);
        }
        true
    }

    /// The connection is lost, if there was one.
    pub(super) fn lose_watch(&mut self, now: Timestamp) {
        if self.agent.watch.is_some() {
            self.pause(&Failed { is_expired: false }, now);
        }
    }

    fn pause(&mut self, failed: &Failed, now: Timestamp) {
        let lasted = self.agent.lasted(now);
        let pause = self.agent.informer.failed(failed.is_expired, lasted);
        self.agent.rest(pause, now);
    }

    /// One step of the informer; `None` where there is nothing yet.
    fn ask(&mut self, around: &mut Around<'_>) -> Result<Option<Vec<Notice>>, Failed> {
        let unavailable = Failed { is_expired: false };
        let Some(up) = &around.server.up else { return Err(unavailable) };
        let store = &up.api.store;
        let mut query = Query::from([("fieldSelector".to_owned(), format!("spec.nodeName={}", self.name))]);
        let selection = Selection::new(&kinds::POD, "", &query).map_err(|_| unavailable)?;
        match self.agent.informer.next() {
            Step::List => {
                let list = self.list(&selection, around)?;
                Ok(Some(self.agent.informer.listed(list)))
            }
            Step::Watch => {
                self.agent.watched_since = around.now;
                query.insert("resourceVersion".to_owned(), self.agent.informer.resource_version().to_owned());
                query.insert("allowWatchBookmarks".to_owned(), "true".to_owned());
                let watch = Watch::open(store, selection, &query);
                self.agent.watch = Some(watch.map_err(|status| Failed { is_expired: status.code == 410 })?);
                self.agent.informer.opened();
                Ok(Some(Vec::new()))
            }
            Step::Read => {
                let Some(watch) = &mut self.agent.watch else { return Err(Failed { is_expired: false }) };
                match watch.poll_next(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Some(frame)) => {
                        let event = event_of(&frame)?;
                        Ok(Some(self.agent.informer.event(event).into_iter().collect()))
                    }
                    Poll::Ready(None) => {
                        let lasted = self.agent.lasted(around.now);
                        let pause = self.agent.informer.closed(lasted);
                        self.agent.rest(pause, around.now);
                        Ok(Some(Vec::new()))
                    }
                    Poll::Pending => {
                        let bookmark = around.seed.one_in(20).then(|| watch.bookmark()).flatten();
                        let Some(bookmark) = bookmark else { return Ok(None) };
                        Ok(Some(self.agent.informer.event(event_of(&bookmark)?).into_iter().collect()))
                    }
                }
            }
        }
    }

    /// This node's pods. The first list of an agent may be a stale server's.
    fn list(&self, selection: &Selection, around: &mut Around<'_>) -> Result<Value, Failed> {
        let Some(up) = &around.server.up else { return Err(Failed { is_expired: false }) };
        let store = &up.api.store;
        let newest = store.revision();
        let is_first = self.agent.informer.resource_version().is_empty();
        let is_stale = is_first && self.restarts > 0 && around.faults && around.seed.one_in(2);
        let behind = if is_stale { around.seed.between(0, STALE) as u64 } else { 0 };
        let at = |revision| {
            let options = api::ListOptions { limit: 0, from: None, version: api::Match::Exact(revision), since: 0 };
            api::list(store, selection, &options)
        };
        // What a stale server would not have any more, nobody has.
        let list = at(Revision(newest.0.saturating_sub(behind))).or_else(|_| at(newest));
        let list = list.map_err(|status| Failed { is_expired: status.code == 410 })?;
        let items = list.items.iter().map(|entry| serde_json::from_slice(&entry.value));
        let items: Vec<Value> = items.collect::<Result<_, _>>().map_err(|_| Failed { is_expired: false })?;
        // One that trusts what it was given believes it to be of now.
        let revision = if around.bug == Some(Bug::TrustsStaleList) { newest } else { list.revision };
        Ok(json!({ "metadata": { "resourceVersion": revision.to_string() }, "items": items }))
    }

    fn notice(&mut self, notice: Notice, around: &mut Around<'_>) {
        let dispatcher = &mut self.agent.dispatcher;
        let dispatches = match notice {
            Notice::Put(_, value) => match serde_json::from_value::<Pod>(value) {
                Ok(pod) => dispatcher.put(pod),
                Err(_) => return,
            },
            Notice::Gone(key, last) => dispatcher.gone(&key, object::uid(&last)),
            Notice::Synced => dispatcher.synced(|| {
                if around.bug == Some(Bug::EndsWhatItFinds) {
                    self.machine.crash_all(around.now);
                }
                self.machine.begun.values().cloned().collect()
            }),
        };
        for dispatch in dispatches {
            self.execute(dispatch, around);
        }
    }

    pub(super) fn execute(&mut self, dispatch: Dispatch, around: &mut Around<'_>) {
        match dispatch {
            Dispatch::Begin { uid, pod, held, predecessor } => {
                let held = held && around.bug != Some(Bug::TrustsStaleList);
                self.spawn(&uid, Arc::unwrap_or_clone(pod), held, predecessor, around);
            }
            Dispatch::Update { uid, update } => {
                if let Some(entry) = self.agent.entries.iter_mut().find(|entry| entry.agenda.view.uid() == uid) {
                    entry.update(update, around.now);
                }
            }
        }
    }

    fn spawn(&mut self, uid: &str, pod: Pod, held: bool, predecessor: Option<String>, around: &mut Around<'_>) {
        let Some(key) = self.agent.dispatcher.key(uid).cloned() else { return };
        let mut view = PodView::new(pod, vec!["192.0.2.10".to_owned()]);
        view.predecessor = predecessor;
        if self.machine.tombstoned.contains(uid) && around.bug != Some(Bug::TrustsStaleList) {
            view.remembered = Remembered::Yes;
            view.tombstoned_since = Some(around.now);
        }
        if let Some(sandbox) = self.machine.sandboxes.get(uid) {
            let fact = Sandbox::Ready { ip: Some(sandbox.ip.clone()), made_at: Some(sandbox.made_at) };
            view.apply(Fact::Sandbox(fact), around.now);
            if let Some(seconds) = sandbox.deadline {
                view.apply(Fact::Deadline(seconds), around.now);
            }
        }
        self.agent.entries.push(Entry::new(key, Agenda::new(view, held)));
        self.learn_containers(uid, around.now);
    }

    pub(super) fn learn_containers(&mut self, uid: &str, now: Timestamp) {
        let facts: Vec<ContainerFact> =
            self.machine.containers.get(uid).into_iter().flatten().map(|container| container.fact.clone()).collect();
        if let Some(entry) = self.agent.entries.iter_mut().find(|entry| entry.agenda.view.uid() == uid) {
            entry.apply(Fact::Containers(facts), now);
        }
    }
}

impl Agent {
    /// Since the newest watch was asked for.
    fn lasted(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.watched_since)).unwrap_or_default()
    }

    /// Its watch is over; how long until it asks again.
    fn rest(&mut self, pause: Option<Duration>, now: Timestamp) {
        self.watch = None;
        self.retry_at = pause.map(|pause| plus(now, pause.as_millis() as i64));
    }
}

impl Entry {
    fn update(&mut self, update: PodUpdate, now: Timestamp) {
        let (_, question) = self.agenda.update(update, now);
        if let Some((key, task)) = question {
            self.running.insert(key, (now, task));
        }
        self.dirty = true;
    }
}

/// What a client reads of a frame.
fn event_of(frame: &Frame) -> Result<WatchEvent, Failed> {
    let object: Value = serde_json::from_slice(&frame.object).map_err(|_| Failed { is_expired: false })?;
    match frame.type_ {
        "ADDED" | "MODIFIED" => Ok(WatchEvent::Put(object)),
        "DELETED" => Ok(WatchEvent::Gone(object)),
        "BOOKMARK" => Ok(WatchEvent::Bookmark(object::resource_version(&object).to_owned())),
        _ => Err(Failed { is_expired: object["code"] == 410 }),
    }
}
