//! List, then watch, then again for ever: a kind's objects as a stream of changes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mainstay_api::{Kind, ObjectKey, object};
use serde_json::Value;

use crate::request::{Client, Error, ListOptions, WatchEvent, Watching};

/// The first pause after a failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What an informer tells.
#[derive(Clone, Debug)]
pub enum Notice {
    /// The object is there, as given (also repeated after a new list, for objects that did not change).
    Put(ObjectKey, Value),
    /// The object is gone. The last state where the watch told it, null where a new list lacked it.
    Gone(ObjectKey, Value),
    /// Everything that existed when the list was made has been told. Comes after every list.
    Synced,
}

enum Phase {
    List,
    Told(std::vec::IntoIter<Notice>),
    Watch,
    Watching(Watching),
}

/// Lists and watches one kind. It holds only the keys that it told, so that what went away while it was
/// disconnected is told as [`Notice::Gone`].
pub struct Informer {
    client: Client,
    kind: Kind,
    namespace: String,
    options: ListOptions,
    known: BTreeSet<ObjectKey>,
    phase: Phase,
    pause: Duration,
    /// When the present watch was asked for.
    begun: Instant,
}

impl Informer {
    /// An informer for a kind in a namespace (`""`: all), narrowed by selectors.
    pub fn new(client: Client, kind: &Kind, namespace: &str, options: ListOptions) -> Self {
        let namespace = namespace.to_owned();
        Self {
            client,
            kind: kind.clone(),
            namespace,
            options,
            known: BTreeSet::new(),
            phase: Phase::List,
            pause: FIRST_PAUSE,
            begun: Instant::now(),
        }
    }

    /// The next change. Never ends and never fails: it retries with a pause of up to 5 s. Cancel-safe only
    /// between notices: drop the informer rather than the future.
    pub async fn next(&mut self) -> Notice {
        loop {
            match self.step().await {
                Ok(Some(notice)) => return notice,
                Ok(None) => {}
                Err(error) => {
                    if error.is_expired() {
                        self.phase = Phase::List;
                        self.rest_if_hasty().await;
                        continue;
                    }
                    tracing::debug!(kind = &*self.kind.kind, %error, "watch interrupted");
                    self.rest().await;
                    if !matches!(self.phase, Phase::List) {
                        self.phase = Phase::Watch;
                    }
                }
            }
        }
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    /// A server that ends its watches at once is not asked without end; one that ends a quiet watch after its time is
    /// asked again at once.
    async fn rest_if_hasty(&mut self) {
        if self.begun.elapsed() < self.pause {
            self.rest().await;
        }
    }

    async fn step(&mut self) -> Result<Option<Notice>, Error> {
        match &mut self.phase {
            Phase::List => {
                let list = self.list().await?;
                self.phase = Phase::Told(list.into_iter());
                Ok(None)
            }
            Phase::Told(notices) => match notices.next() {
                Some(notice) => Ok(Some(notice)),
                None => {
                    self.phase = Phase::Watch;
                    Ok(None)
                }
            },
            Phase::Watch => {
                self.begun = Instant::now();
                let watching = self.client.watch(&self.kind, &self.namespace, &self.options).await?;
                self.phase = Phase::Watching(watching);
                Ok(None)
            }
            Phase::Watching(watching) => {
                let event = watching.next().await?;
                if event.is_none() {
                    self.rest_if_hasty().await;
                }
                Ok(self.take(event))
            }
        }
    }

    fn take(&mut self, event: Option<WatchEvent>) -> Option<Notice> {
        let Some(event) = event else {
            self.phase = Phase::Watch;
            return None;
        };
        if !matches!(event, WatchEvent::Bookmark(_)) {
            self.pause = FIRST_PAUSE;
        }
        match event {
            WatchEvent::Put(value) => {
                self.options.resource_version = object::resource_version(&value).to_owned();
                let key = ObjectKey::of(&value);
                self.known.insert(key.clone());
                Some(Notice::Put(key, value))
            }
            WatchEvent::Gone(value) => {
                self.options.resource_version = object::resource_version(&value).to_owned();
                let key = ObjectKey::of(&value);
                self.known.remove(&key);
                Some(Notice::Gone(key, value))
            }
            WatchEvent::Bookmark(resource_version) => {
                self.options.resource_version = resource_version;
                None
            }
        }
    }

    async fn list(&mut self) -> Result<Vec<Notice>, Error> {
        self.options.resource_version.clear();
        let mut list = self.client.list(&self.kind, &self.namespace, &self.options).await?;
        self.options.resource_version = object::resource_version(&list).to_owned();
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
        Ok(notices)
    }
}
