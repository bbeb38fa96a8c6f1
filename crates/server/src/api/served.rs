//! The kinds that are served now: those that are built in, and those that stored CustomResourceDefinitions define;
//! without metrics, where somebody has installed a server of their own for them.

use std::sync::{Arc, Mutex, PoisonError};

use mainstay_api::custom::rows::{rows, serve};
use mainstay_api::kinds::{API_SERVICE, CUSTOM_RESOURCE_DEFINITION, NODE_METRICS, POD_METRICS};
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
    /// With everything that could be served here.
    whole: Registry,
    /// The APIService of the metrics: upstream registers none of its own, so whatever is there is somebody's.
    metrics: Follower,
    served: Registry,
}

/// The name of the APIService by which somebody's own server takes the metrics over.
pub const METRICS_SERVICE: &str = "v1beta1.metrics.k8s.io";

impl Served {
    /// The kinds of a store. Its definitions are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let definitions = Follower::new(store, key::prefix(&CUSTOM_RESOURCE_DEFINITION, None));
        let metrics = Follower::new(store, key::object(&API_SERVICE, "", METRICS_SERVICE));
        let (whole, served) = (Registry::built_in(), Registry::built_in());
        Self(Arc::new(Mutex::new(Inner { definitions, whole, metrics, served })))
    }

    /// The kinds that are served now.
    pub fn now(&self) -> Registry {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        inner.served.clone()
    }
}

impl Inner {
    fn catch_up(&mut self) {
        let changed = self.catch_up_with_definitions() | self.catch_up_with_metrics();
        if !changed {
            return;
        }
        let service = self.metrics.store().get(&key::object(&API_SERVICE, "", METRICS_SERVICE));
        self.served = match service.is_some_and(|entry| is_remote(&entry.value)) {
            true => {
                let without = |registry: &Registry, kind: &Kind| registry.with(&kind.group, &kind.plural, Vec::new());
                without(&without(&self.whole, &NODE_METRICS), &POD_METRICS)
            }
            false => self.whole.clone(),
        };
    }

    fn catch_up_with_metrics(&mut self) -> bool {
        match self.metrics.news() {
            Ok(News::Changes(changes)) => !changes.is_empty(),
            Ok(News::All(_)) => true,
            Err(error) => {
                tracing::error!(%error, "the APIService of the metrics could not be read");
                false
            }
        }
    }

    fn catch_up_with_definitions(&mut self) -> bool {
        match self.definitions.news() {
            Ok(News::Changes(changes)) => {
                let changed = !changes.is_empty();
                for event in changes {
                    let Ok(whole) = serve(&self.whole, &event.value, event.deleted) else { continue };
                    self.whole = whole;
                }
                changed
            }
            Ok(News::All(entries)) => {
                let mut all: Vec<Kind> = Vec::new();
                for entry in &entries {
                    match rows(&entry.value) {
                        Ok(rows) => all.extend(rows),
                        Err(error) => {
                            tracing::error!(key = ?entry.key, %error, "a stored definition does not decode; its kind \
                                is not served")
                        }
                    }
                }
                self.whole = self.whole.with_custom(all);
                true
            }
            Err(error) => {
                tracing::error!(%error, "the definitions of kinds could not be read");
                false
            }
        }
    }
}

/// Whether an APIService names a Service: one without is only a note that the server answers by itself.
fn is_remote(service: &[u8]) -> bool {
    let service: Value = serde_json::from_slice(service).unwrap_or_default();
    mainstay_api::object::at(&service, &["spec", "service"]).is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::Cluster;
    use crate::api::{DeleteOptions, Part};
    use serde_json::json;

    #[test]
    fn metrics_are_somebody_elses_as_long_as_they_have_an_apiservice_with_a_service() {
        let cluster = Cluster::new();
        let is_own = || cluster.api.served.now().find("metrics.k8s.io", "v1beta1", "pods").is_some();
        let spec = json!({ "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100,
            "versionPriority": 100, "insecureSkipTLSVerify": true,
            "service": { "name": "metrics-server", "namespace": "kube-system" } });
        let service = json!({ "metadata": { "name": METRICS_SERVICE }, "spec": spec });
        assert!(is_own());
        cluster.create(&API_SERVICE, service).expect("created");
        assert!(!is_own());
        let other = json!({ "metadata": { "name": "v1.x.io" }, "spec": { "group": "x.io", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 100 } });
        cluster.create(&API_SERVICE, other).expect("created");
        assert!(!is_own());
        cluster
            .merge(&API_SERVICE, METRICS_SERVICE, Part::Main, json!({ "metadata": { "labels": { "a": "b" } } }))
            .expect("patched");
        assert!(!is_own());
        cluster.delete(&API_SERVICE, METRICS_SERVICE, &DeleteOptions::default()).expect("deleted");
        assert!(is_own(), "taken back");
    }
}
