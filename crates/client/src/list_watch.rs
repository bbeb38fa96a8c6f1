//! What an informer asks for next, without connections and without a clock.
//!
//! [`Informer`](crate::Informer) does what it says over HTTP, a node of the simulator on the simulated server's store,
//! so that what the simulator proves of watches that end, expire and lists that are old is what a node does.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_api::{Kind, ObjectKey, object};
use serde_json::Value;

use crate::request::WatchEvent;

/// The first pause after a failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A change of one object, or of all that is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// The object is there, as given (also repeated after a new list, for objects that did not change).
    Put(ObjectKey, Value),
    /// The object is gone. The last state where the watch had it, null where a new list lacked it.
    Gone(ObjectKey, Value),
    /// Everything that existed when the list was made has been noticed. Comes after every list.
    Synced,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for a list, and give it to [`ListWatch::listed`].
    List,
    /// Ask for a watch from [`ListWatch::resource_version`] on, and say that it is [`ListWatch::opened`].
    Watch,
    /// Read from the watch, and give what comes to [`ListWatch::event`], its end to [`ListWatch::closed`].
    Read,
}

/// How far the list and watch of a kind are. It holds only the keys that it gave, so that what went away while it was
/// disconnected is a [`Notice::Gone`]. Whatever fails is given to [`Self::failed`].
#[derive(Debug)]
pub struct ListWatch {
    kind: Kind,
    known: BTreeSet<ObjectKey>,
    resource_version: String,
    next: Step,
    pause: Duration,
}

impl ListWatch {
    /// One that begins with a list.
    pub fn new(kind: &Kind) -> Self {
        Self {
            kind: kind.clone(),
            known: BTreeSet::new(),
            resource_version: String::new(),
            next: Step::List,
            pause: FIRST_PAUSE,
        }
    }

    /// What is to be done next.
    pub fn next(&self) -> Step {
        self.next
    }

    /// Up to where everything was noticed.
    pub fn resource_version(&self) -> &str {
        &self.resource_version
    }

    /// A list came. In order: what it lacks, what it has, and that this was all.
    pub fn listed(&mut self, mut list: Value) -> Vec<Notice> {
        object::resource_version(&list).clone_into(&mut self.resource_version);
        let items = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        let listed: BTreeSet<ObjectKey> = items.iter().map(ObjectKey::of).collect();
        let mut notices: Vec<Notice> =
            self.known.difference(&listed).map(|key| Notice::Gone(key.clone(), Value::Null)).collect();
        notices.extend(items.into_iter().map(|mut item| {
            // Items of a list carry no kind of their own.
            item["kind"] = self.kind.kind.clone().into();
            item["apiVersion"] = self.kind.api_version().into();
            Notice::Put(ObjectKey::of(&item), item)
        }));
        notices.push(Notice::Synced);
        self.known = listed;
        self.next = Step::Watch;
        notices
    }

    /// The watch is there.
    pub fn opened(&mut self) {
        self.next = Step::Read;
    }

    /// An event of the watch came.
    pub fn event(&mut self, event: WatchEvent) -> Option<Notice> {
        if !matches!(event, WatchEvent::Bookmark(_)) {
            self.pause = FIRST_PAUSE;
        }
        match event {
            WatchEvent::Put(value) => {
                object::resource_version(&value).clone_into(&mut self.resource_version);
                let key = ObjectKey::of(&value);
                self.known.insert(key.clone());
                Some(Notice::Put(key, value))
            }
            WatchEvent::Gone(value) => {
                object::resource_version(&value).clone_into(&mut self.resource_version);
                let key = ObjectKey::of(&value);
                self.known.remove(&key);
                Some(Notice::Gone(key, value))
            }
            WatchEvent::Bookmark(resource_version) => {
                self.resource_version = resource_version;
                None
            }
        }
    }

    /// The watch, which was asked for so long ago, is over as watches are. How long to rest first.
    pub fn closed(&mut self, lasted: Duration) -> Option<Duration> {
        self.next = Step::Watch;
        self.rest_if_hasty(lasted)
    }

    /// A list or a watch failed; the newest watch was asked for so long ago. With `is_expired` its resourceVersion is
    /// too old (410). How long to rest first.
    pub fn failed(&mut self, is_expired: bool, lasted: Duration) -> Option<Duration> {
        if is_expired {
            self.next = Step::List;
            return self.rest_if_hasty(lasted);
        }
        if self.next == Step::Read {
            self.next = Step::Watch;
        }
        Some(self.rest())
    }

    /// A server that ends its watches at once is not asked without end; one that ends a quiet watch after its time is
    /// asked again at once.
    fn rest_if_hasty(&mut self, lasted: Duration) -> Option<Duration> {
        (lasted < self.pause).then(|| self.rest())
    }

    fn rest(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(MAX_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use mainstay_api::kinds;
    use serde_json::json;

    use super::*;
    use crate::request::Error;

    fn list(resource_version: &str, names: &[&str]) -> Value {
        let items: Vec<Value> = names.iter().map(|name| pod(name, "1")).collect();
        json!({ "metadata": { "resourceVersion": resource_version }, "items": items })
    }

    fn pod(name: &str, resource_version: &str) -> Value {
        json!({ "metadata": { "namespace": "a", "name": name, "resourceVersion": resource_version } })
    }

    fn names(notices: &[Notice]) -> Vec<String> {
        let said = |notice: &Notice| match notice {
            Notice::Put(key, _) => format!("+{}", key.name),
            Notice::Gone(key, _) => format!("-{}", key.name),
            Notice::Synced => "synced".to_owned(),
        };
        notices.iter().map(said).collect()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_new_list_says_what_went_while_it_could_not_watch() {
        let mut pods = ListWatch::new(&kinds::POD);
        assert_eq!(pods.next(), Step::List);
        let first = pods.listed(list("7", &["x", "y"]));
        assert_eq!(names(&first), ["+x", "+y", "synced"]);
        assert!(matches!(&first[0], Notice::Put(_, value) if value["kind"] == "Pod" && value["apiVersion"] == "v1"));
        assert_eq!((pods.next(), pods.resource_version()), (Step::Watch, "7"));
        pods.opened();
        assert_eq!(pods.next(), Step::Read);
        assert_eq!(names(&pods.event(WatchEvent::Put(pod("z", "8"))).into_iter().collect::<Vec<_>>()), ["+z"]);
        assert_eq!(names(&pods.event(WatchEvent::Gone(pod("x", "9"))).into_iter().collect::<Vec<_>>()), ["-x"]);
        assert_eq!(pods.resource_version(), "9");
        assert_eq!(pods.event(WatchEvent::Bookmark("12".to_owned())), None);
        assert_eq!(pods.resource_version(), "12");
        assert_eq!(pods.failed(true, LONG), None);
        assert_eq!(pods.next(), Step::List);
        assert_eq!(names(&pods.listed(list("20", &["z"]))), ["-y", "+z", "synced"]);
    }

    #[test]
    fn what_is_cut_off_goes_on_from_where_it_was_after_a_pause_that_grows() {
        let mut pods = ListWatch::new(&kinds::POD);
        assert_eq!(pods.failed(false, LONG), Some(FIRST_PAUSE));
        assert_eq!(pods.next(), Step::List, "there is nothing to watch from yet");
        pods.listed(list("7", &[]));
        assert_eq!(pods.failed(false, LONG), Some(FIRST_PAUSE * 2));
        assert_eq!(pods.next(), Step::Watch);
        pods.opened();
        pods.event(WatchEvent::Put(pod("x", "8")));
        assert_eq!(pods.failed(false, LONG), Some(FIRST_PAUSE), "an event came, so it was well for a while");
        assert_eq!((pods.next(), pods.resource_version()), (Step::Watch, "8"));
        let pauses: Vec<Duration> = (0..10).filter_map(|_| pods.failed(false, LONG)).collect();
        assert_eq!(pauses[0], FIRST_PAUSE * 2);
        assert_eq!(pauses[9], MAX_PAUSE);
    }

    #[test]
    fn a_server_that_ends_its_watches_at_once_is_not_asked_without_end() {
        let mut pods = ListWatch::new(&kinds::POD);
        pods.listed(list("7", &[]));
        pods.opened();
        assert_eq!(pods.closed(LONG), None);
        assert_eq!((pods.next(), pods.resource_version()), (Step::Watch, "7"));
        pods.opened();
        assert_eq!(pods.closed(Duration::from_millis(1)), Some(FIRST_PAUSE));
        pods.opened();
        assert_eq!(pods.failed(true, Duration::from_millis(1)), Some(FIRST_PAUSE * 2), "expired again and again");
        assert_eq!(pods.next(), Step::List);
    }

    #[test]
    fn a_version_that_the_server_has_not_had_leads_to_a_list_a4() {
        let told = |status: mainstay_api::Status| Error::Status {
            code: status.code,
            reason: status.reason.to_string(),
            message: status.message,
        };
        assert!(told(mainstay_api::Status::too_large_resource_version(9, 7)).is_expired());
        assert!(!told(mainstay_api::Status::timeout("the store")).is_expired());
    }
}
