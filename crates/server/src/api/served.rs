//! The kinds that are served now: those that are built in, and those that stored CustomResourceDefinitions define.

use std::sync::{Arc, Mutex, PoisonError};

use mainstay_api::custom::rows::{Detail, rows, serve};
use mainstay_api::kinds::CUSTOM_RESOURCE_DEFINITION;
use mainstay_api::{Kind, Registry};
use mainstay_store::Store;
use serde_json::Value;

use super::{Follower, News, key};

/// The newest [`Registry`]. A request takes it once, and so sees one set of kinds.
///
/// It is as new as the store: what a client has read of a definition's conditions holds for its next request. No task
/// keeps it so; whoever asks takes in what has changed since.
#[derive(Clone)]
pub struct Served(Arc<Mutex<Inner>>);

struct Inner {
    definitions: Follower,
    registry: Registry,
}

impl Served {
    /// The kinds of a store. Its definitions are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let definitions = Follower::new(store, key::prefix(&CUSTOM_RESOURCE_DEFINITION, None));
        Self(Arc::new(Mutex::new(Inner { definitions, registry: Registry::built_in() })))
    }

    /// The kinds that are served now.
    pub fn now(&self) -> Registry {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        inner.registry.clone()
    }
}

impl Inner {
    fn catch_up(&mut self) {
        match self.definitions.news() {
            Ok(News::Changes(changes)) => {
                for event in changes {
                    let Ok(definition) = serde_json::from_slice::<Value>(&event.value) else { continue };
                    self.registry = serve(&self.registry, &definition, event.deleted, Detail::Full);
                }
            }
            Ok(News::All(entries)) => {
                let mut all: Vec<Kind> = Vec::new();
                for entry in &entries {
                    match serde_json::from_slice::<Value>(&entry.value) {
                        Ok(definition) => all.extend(rows(&definition, Detail::Full)),
                        Err(error) => {
                            tracing::error!(key = ?entry.key, %error, "a stored definition does not decode; its kind \
                                is not served")
                        }
                    }
                }
                self.registry = self.registry.with_custom(all);
            }
            Err(error) => tracing::error!(%error, "the definitions of kinds could not be read"),
        }
    }
}
