//! Events for people, written to the API by one task: repeats are counted up instead of written again, and an object of
//! which there is too much to say is heard of less ([`correlation`]).

mod correlation;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use mainstay_api::kinds;
use mainstay_client::{Client, PatchType};
use mainstay_logic::kubelet::PodEvent;
use mainstay_runtime::fence;
use mainstay_tasks::{Health, keep};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use self::correlation::Correlation;

/// Events that wait to be written; more are dropped, they are only told to people.
const QUEUED: usize = 256;
/// The longest name of an Event.
const MAX_NAME: usize = 253;
/// How many past events are remembered for counting.
const REMEMBERED: usize = 512;

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Regarding, PodEvent, Timestamp)>,
    _writer: Arc<Writer>,
}

/// Ends with the last of its clones.
struct Writer(tokio::task::AbortHandle);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    pub kind: Cow<'static, str>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Events {
    /// Starts the writer on the running tokio runtime; it ends with the last clone.
    pub fn start(client: Client, node: String, health: Health) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUED);
        let receiver = Arc::new(Mutex::new(receiver));
        let write = move || write_all(client.clone(), node.clone(), receiver.clone());
        let writer = tokio::spawn(keep(health, "events", write)).abort_handle();
        Self { queue, _writer: Arc::new(Writer(writer)) }
    }

    /// Tells an event; never waits.
    pub fn record(&self, regarding: Regarding, event: PodEvent) {
        tracing::info!(object = %regarding.name, reason = event.reason, "{}", event.message);
        let _ = self.queue.try_send((regarding, event, Timestamp::now()));
    }
}

struct Written {
    regarding: Regarding,
    event: PodEvent,
    namespace: String,
    name: String,
    count: u64,
}

async fn write_all(client: Client, node: String, queue: Arc<Mutex<mpsc::Receiver<(Regarding, PodEvent, Timestamp)>>>) {
    let mut queue = queue.lock().await;
    let node: Arc<str> = node.into();
    let mut past: VecDeque<Written> = VecDeque::new();
    let mut correlation = Correlation::default();
    while let Some((regarding, event, at)) = queue.recv().await {
        let Some(event) = correlation.pass(&regarding, event, fence::boottime()) else { continue };
        let Some(kind) = kinds::find("", "v1", "events") else { return };
        if let Some(before) = past.iter_mut().find(|before| before.regarding == regarding && before.event == event) {
            before.count += 1;
            let patch = json!({ "count": before.count, "lastTimestamp": seconds(at) });
            if client.patch(&kind, &before.namespace, &before.name, "", PatchType::Merge, &patch).await.is_ok() {
                continue;
            }
            past.retain(|before| before.regarding != regarding || before.event != event);
        }
        let object = event_object(&regarding, &event, at, &node);
        let namespace = mainstay_api::object::namespace(&object).to_owned();
        let name = mainstay_api::object::name(&object).to_owned();
        match client.create(&kind, &namespace, &object).await {
            Ok(_) => {
                past.push_back(Written { regarding, event, namespace, name, count: 1 });
                if past.len() > REMEMBERED {
                    past.pop_front();
                }
            }
            Err(error) => tracing::debug!(%error, "an event was not written"),
        }
    }
}

/// A time as the API has it: whole seconds, UTC.
pub fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object's name, as much of it as there is room for, and the time: Events of one second are listed in order.
fn event_name(object: &str, at: Timestamp) -> String {
    let time = format!("{:016x}", at.as_nanosecond());
    let room = MAX_NAME - 1 - time.len();
    let shortened = object.get(..room.min(object.len())).unwrap_or("").trim_end_matches(['.', '-']);
    format!("{shortened}.{time}")
}

fn event_object(regarding: &Regarding, event: &PodEvent, at: Timestamp, node: &str) -> Value {
    let namespace = if regarding.namespace.is_empty() { "default" } else { &regarding.namespace };
    let mut involved = json!({
        "kind": regarding.kind, "apiVersion": "v1", "namespace": regarding.namespace, "name": regarding.name,
            "uid": regarding.uid,
    });
    if let Some(container) = &event.container {
        involved["fieldPath"] = format!("spec.containers{{{container}}}").into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": event_name(&regarding.name, at), "namespace": namespace },
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message,
        "source": { "component": "kubelet", "host": node },
        "firstTimestamp": seconds(at),
        "lastTimestamp": seconds(at),
        "count": 1,
        "type": if event.warning { "Warning" } else { "Normal" },
        "reportingComponent": "kubelet",
        "reportingInstance": node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_events_are_named_in_order_of_time_however_long_a_pods_name_is() {
        let at = |nanos: i128| Timestamp::from_nanosecond(nanos).expect("a time");
        assert_eq!(event_name("web-0", at(1_795_400_000_000_000_255)), "web-0.18ea8ac99dbc80ff");
        let long = format!("{}.{}", "a".repeat(235), "b".repeat(17));
        let [one, next] = [7, 8].map(|nanos| event_name(&long, at(1_795_400_000_000_000_000 + nanos)));
        assert!(one < next && one.len() <= MAX_NAME && one.starts_with("aaa"), "{one}");
        assert!(mainstay_api::names::subdomain(&one).is_empty(), "{one}");
    }
}
