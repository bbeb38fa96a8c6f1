//! From what the API says of this node's pods to one worker per pod uid: which begin, and what each hears.
//!
//! ```text
//! a list, then a watch        -> put / gone / synced
//! a worker has ended or broke -> ended / again
//! each gives dispatches, to be executed in order
//! ```
//!
//! Guarantees: nothing begins before the first list is whole; what an earlier agent left begins before what the list
//! has, so that it has its name (S1), and both are held until the API was asked about each (V7, S11); a pod that a list
//! lacks is asked about before it counts as gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::ObjectKey;

/// What one worker hears.
#[derive(Clone, Debug, PartialEq)]
pub enum PodUpdate {
    /// A newer state of the pod, from a watch.
    Pod(Arc<Pod>),
    /// The API has no pod of this uid any more.
    Gone,
    /// Another machine is this node, and the pod is that one's.
    Replaced,
    /// The API is to be asked whether the pod is there.
    Verify,
    /// The oldest uid of its name that is still here, if it is another one.
    Predecessor(Option<String>),
}

/// What is to be done for one pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Dispatch {
    /// A worker begins. With `held` it does nothing before the API was asked about the pod.
    Begin { uid: String, pod: Arc<Pod>, held: bool, predecessor: Option<String> },
    /// Its worker hears something.
    Update { uid: String, update: PodUpdate },
}

struct Entry {
    key: ObjectKey,
    /// As the API last had it: what a worker that broke is begun anew with.
    pod: Arc<Pod>,
}

/// The pods that have a worker.
#[derive(Default)]
pub struct Dispatcher {
    entries: BTreeMap<String, Entry>,
    /// The uids of each name, the oldest first.
    names: BTreeMap<ObjectKey, Vec<String>>,
    /// The first list, until it is whole.
    first: Vec<Pod>,
    has_synced: bool,
}

impl Dispatcher {
    /// A pod as a list or a watch has it. One without a uid is passed over: no API gives such.
    pub fn put(&mut self, pod: Pod) -> Vec<Dispatch> {
        if !self.has_synced {
            self.first.push(pod);
            return Vec::new();
        }
        let Some(uid) = uid_of(&pod) else { return Vec::new() };
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = Arc::new(pod);
            return vec![Dispatch::Update { uid, update: PodUpdate::Pod(entry.pod.clone()) }];
        }
        // The name was taken by another uid: one of them is the older, and the API has it no more. Which one, the API
        // says: a first list may be a stale server's, and a watch that goes on from there tells of what is long gone
        // (S11).
        let mut dispatches = self.verify(&key_of(&pod));
        dispatches.push(self.begin(uid, pod, false));
        dispatches
    }

    /// A pod is gone: the watch had its end, with its uid, or (`""`) a new list lacks its name.
    pub fn gone(&self, key: &ObjectKey, uid: &str) -> Vec<Dispatch> {
        match uid {
            "" => self.verify(key),
            uid if self.entries.contains_key(uid) => vec![update(uid, PodUpdate::Gone)],
            _ => Vec::new(),
        }
    }

    /// No pod is this node's any more, whatever the API has.
    pub fn all_replaced(&self) -> Vec<Dispatch> {
        self.entries.keys().map(|uid| update(uid, PodUpdate::Replaced)).collect()
    }

    /// A list is whole. After the first, what is left from before the restart is taken in: `left` gives what the
    /// runtime and the disk have.
    pub fn synced(&mut self, left: impl FnOnce() -> Vec<Pod>) -> Vec<Dispatch> {
        if self.has_synced {
            return Vec::new();
        }
        self.has_synced = true;
        let list = std::mem::take(&mut self.first);
        let listed: BTreeSet<String> = list.iter().filter_map(uid_of).collect();
        let mut left = left();
        left.retain(|pod| uid_of(pod).is_some_and(|uid| !listed.contains(&uid)));
        let mut dispatches = Vec::new();
        for pod in left.into_iter().chain(list) {
            if let Some(uid) = uid_of(&pod).filter(|uid| !self.entries.contains_key(uid)) {
                dispatches.push(self.begin(uid, pod, true));
            }
        }
        dispatches
    }

    /// Nothing is left of a pod, and its worker has ended. Whoever waited for its name hears who has it now.
    pub fn ended(&mut self, uid: &str) -> Vec<Dispatch> {
        let Some(entry) = self.entries.remove(uid) else { return Vec::new() };
        let Some(uids) = self.names.get_mut(&entry.key) else { return Vec::new() };
        let had_name = uids.first().is_some_and(|oldest| oldest == uid);
        uids.retain(|other| other != uid);
        let Some(oldest) = uids.first() else {
            self.names.remove(&entry.key);
            return Vec::new();
        };
        let predecessor = |other: &String| (other != oldest).then(|| oldest.clone());
        let heirs = uids.iter().filter(|_| had_name);
        heirs.map(|other| update(other, PodUpdate::Predecessor(predecessor(other)))).collect()
    }

    /// A worker that broke begins anew, from what runs and from what the API says now: what it knew is gone with it.
    pub fn again(&self, uid: &str) -> Option<Dispatch> {
        let entry = self.entries.get(uid)?;
        let predecessor = self.predecessor(&entry.key, uid);
        Some(Dispatch::Begin { uid: uid.to_owned(), pod: entry.pod.clone(), held: true, predecessor })
    }

    /// The name of a pod that has a worker.
    pub fn key(&self, uid: &str) -> Option<&ObjectKey> {
        Some(&self.entries.get(uid)?.key)
    }

    fn begin(&mut self, uid: String, pod: Pod, held: bool) -> Dispatch {
        let (key, pod) = (key_of(&pod), Arc::new(pod));
        self.names.entry(key.clone()).or_default().push(uid.clone());
        let predecessor = self.predecessor(&key, &uid);
        self.entries.insert(uid.clone(), Entry { key, pod: pod.clone() });
        Dispatch::Begin { uid, pod, held, predecessor }
    }

    fn predecessor(&self, key: &ObjectKey, uid: &str) -> Option<String> {
        self.names.get(key)?.first().filter(|oldest| *oldest != uid).cloned()
    }

    /// Has the API asked about all of a name.
    fn verify(&self, key: &ObjectKey) -> Vec<Dispatch> {
        self.names.get(key).into_iter().flatten().map(|uid| update(uid, PodUpdate::Verify)).collect()
    }
}

fn update(uid: &str, update: PodUpdate) -> Dispatch {
    Dispatch::Update { uid: uid.to_owned(), update }
}

fn uid_of(pod: &Pod) -> Option<String> {
    pod.metadata.uid.clone().filter(|uid| !uid.is_empty())
}

fn key_of(pod: &Pod) -> ObjectKey {
    ObjectKey::new(pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(name: &str, uid: &str) -> Pod {
        let metadata = ObjectMeta {
            namespace: Some("a".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        };
        Pod { metadata, ..Pod::default() }
    }

    fn said(dispatches: &[Dispatch]) -> Vec<String> {
        let of = |dispatch: &Dispatch| match dispatch {
            Dispatch::Begin { uid, held, predecessor, .. } => {
                let held = if *held { " held" } else { "" };
                let after = predecessor.as_ref().map(|uid| format!(" after {uid}")).unwrap_or_default();
                format!("begin {uid}{held}{after}")
            }
            Dispatch::Update { uid, update } => match update {
                PodUpdate::Pod(_) => format!("{uid}: pod"),
                PodUpdate::Gone => format!("{uid}: gone"),
                PodUpdate::Replaced => format!("{uid}: replaced"),
                PodUpdate::Verify => format!("{uid}: verify"),
                PodUpdate::Predecessor(Some(other)) => format!("{uid}: after {other}"),
                PodUpdate::Predecessor(None) => format!("{uid}: has the name"),
            },
        };
        dispatches.iter().map(of).collect()
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("a", name)
    }

    #[test]
    fn s11_nothing_begins_before_the_first_list_is_whole_and_then_everything_is_asked_about() {
        let mut pods = Dispatcher::default();
        assert_eq!(pods.put(pod("x", "x2")), []);
        assert_eq!(pods.put(pod("y", "y1")), []);
        let begun = pods.synced(|| vec![pod("x", "x1"), pod("y", "y1")]);
        assert_eq!(said(&begun), ["begin x1 held", "begin x2 held after x1", "begin y1 held"]);
        let mut twice = Dispatcher::default();
        assert_eq!(said(&twice.synced(|| vec![pod("x", "x1"), pod("x", "x1")])), ["begin x1 held"], "once");
        assert_eq!(pods.synced(|| unreachable!("only after the first list")), []);
    }

    #[test]
    fn s1_when_another_machine_is_the_node_every_pod_is_gone_also_what_was_left() {
        let mut pods = Dispatcher::default();
        pods.put(pod("x", "x2"));
        let mut told = pods.synced(|| vec![pod("y", "y1")]);
        told.extend(pods.all_replaced());
        assert_eq!(said(&told), ["begin y1 held", "begin x2 held", "x2: replaced", "y1: replaced"]);
    }

    #[test]
    fn a_pod_of_the_watch_begins_and_hears_what_is_new() {
        let mut pods = Dispatcher::default();
        pods.synced(Vec::new);
        assert_eq!(said(&pods.put(pod("x", "x1"))), ["begin x1"]);
        assert_eq!(said(&pods.put(pod("x", "x1"))), ["x1: pod"]);
        assert_eq!(pods.put(pod("x", "")), []);
        assert_eq!(pods.key("x1"), Some(&key("x")));
        assert_eq!(said(&pods.gone(&key("x"), "x1")), ["x1: gone"]);
        assert_eq!(pods.gone(&key("x"), "x0"), []);
        assert_eq!(said(&pods.gone(&key("x"), "")), ["x1: verify"]);
        assert_eq!(pods.gone(&key("z"), ""), []);
    }

    #[test]
    fn s1_a_name_has_one_holder_and_the_others_wait_for_it() {
        let mut pods = Dispatcher::default();
        pods.synced(Vec::new);
        pods.put(pod("x", "x1"));
        assert_eq!(said(&pods.put(pod("x", "x2"))), ["x1: verify", "begin x2 after x1"]);
        assert_eq!(said(&pods.put(pod("x", "x3"))), ["x1: verify", "x2: verify", "begin x3 after x1"]);
        assert_eq!(pods.ended("x2"), [], "x1 has the name as before");
        assert_eq!(said(&pods.put(pod("x", "x4"))).last().map(String::as_str), Some("begin x4 after x1"));
        assert_eq!(said(&pods.ended("x1")), ["x3: has the name", "x4: after x3"]);
        assert_eq!(said(&pods.ended("x3")), ["x4: has the name"]);
        assert_eq!(pods.ended("x4"), []);
        assert_eq!(pods.ended("x4"), []);
        assert_eq!(said(&pods.put(pod("x", "x5"))), ["begin x5"]);
    }

    #[test]
    fn s9_a_worker_that_broke_begins_anew_with_the_newest_state_and_waits_as_before() {
        let mut pods = Dispatcher::default();
        pods.synced(Vec::new);
        pods.put(pod("x", "x1"));
        pods.put(pod("x", "x2"));
        let mut newer = pod("x", "x2");
        newer.metadata.resource_version = Some("9".to_owned());
        pods.put(newer.clone());
        let expected = Dispatch::Begin {
            uid: "x2".to_owned(),
            pod: Arc::new(newer),
            held: true,
            predecessor: Some("x1".to_owned()),
        };
        assert_eq!(pods.again("x2"), Some(expected));
        assert_eq!(pods.again("x9"), None);
    }
}
