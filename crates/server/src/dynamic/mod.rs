//! Dynamic admission: webhooks that are asked before something is written.
//!
//! A verb of the pipeline runs inside a [`Batch`](crate::api::Batch), without IO. Where a webhook is to be asked, it
//! leaves the question in the request's [`Session`] and gives up; whoever runs the verb asks ([`Session::settle`]),
//! outside of any transaction, and runs the verb anew on the newest state: it comes to the same question (the session
//! keeps time and randomness), finds the answer and goes on. If what the webhook was shown has changed meanwhile, the
//! question is another one and is asked anew, a bounded number of times. So no lock is held while a webhook thinks, and
//! what is committed is what was shown (A8). Controllers' decisions go the same way.
//!
//! What is configured is compiled when it changes ([`Hooks`]); where nothing is, nothing of this happens.

pub(crate) mod asking;
pub(crate) mod client;
mod expression;
pub mod matching;
mod policy;
pub(crate) mod review;
mod session;
pub mod trust;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_api::object;
use mainstay_store::Store;
use serde::Deserialize;
use serde_json::Value;

use crate::api::Follower;
use client::Endpoint;
use expression::{Conditions, environment};
use matching::Constraints;
use policy::{Binding, Bound, Policy};
use review::Version;

pub use asking::apart;
pub use session::{Session, Terms, connect, mutate, mutate_deletion, posted, validate};

/// The group of the kinds that say what admission does.
pub const GROUP: &str = "admissionregistration.k8s.io";

/// One webhook, ready to be asked.
pub struct Hook {
    /// Its configuration's name and its own, which together name it.
    pub configuration: String,
    pub name: String,
    constraints: Constraints,
    /// `failurePolicy: Ignore`.
    fails_open: bool,
    timeout: Duration,
    /// `reinvocationPolicy: IfNeeded`.
    is_reinvoked: bool,
    /// Whether a dry run has no side effects.
    takes_dry_runs: bool,
    version: Option<Version>,
    /// `matchConditions`.
    conditions: Conditions,
    endpoint: Result<Endpoint, String>,
}

/// A webhook as it is written down.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    name: String,
    #[serde(default)]
    failure_policy: Option<String>,
    #[serde(default)]
    timeout_seconds: Option<u64>,
    #[serde(default)]
    reinvocation_policy: Option<String>,
    #[serde(default)]
    side_effects: Option<String>,
    #[serde(default)]
    admission_review_versions: Vec<String>,
}

impl Hook {
    fn read(configuration: &str, webhook: &Value) -> Result<Self, String> {
        let written: Written = serde_json::from_value(webhook.clone()).map_err(|error| error.to_string())?;
        Ok(Self {
            configuration: configuration.to_owned(),
            constraints: Constraints::read(webhook)?,
            fails_open: written.failure_policy.as_deref() == Some("Ignore"),
            timeout: Duration::from_secs(written.timeout_seconds.unwrap_or(10).clamp(1, 30)),
            is_reinvoked: written.reinvocation_policy.as_deref() == Some("IfNeeded"),
            takes_dry_runs: matches!(written.side_effects.as_deref(), Some("None" | "NoneOnDryRun")),
            version: Version::of(&written.admission_review_versions),
            conditions: Conditions::read(webhook.get("matchConditions"), &environment(false))?,
            endpoint: Endpoint::new(webhook.get("clientConfig").unwrap_or(&Value::Null)),
            name: written.name,
        })
    }
}

/// Everything that is asked, at one moment.
#[derive(Default)]
pub struct Set {
    mutating: Vec<Arc<Hook>>,
    validating: Vec<Arc<Hook>>,
    mutating_policies: Vec<Bound>,
    validating_policies: Vec<Bound>,
}

/// One stored object of the group, compiled.
enum Configuration {
    Hooks(Vec<Arc<Hook>>),
    Policy(Arc<Policy>),
    Binding(Arc<Binding>),
}

/// What is configured, as new as the store. No task keeps it so; whoever asks takes in what has changed since.
#[derive(Clone)]
pub struct Hooks(Arc<Mutex<Inner>>);

struct Inner {
    stored: Follower,
    /// By their keys.
    configurations: BTreeMap<Bytes, Configuration>,
    /// `None` where nothing is configured.
    set: Option<Arc<Set>>,
}

impl Hooks {
    /// Those of a store. They are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let inner = Inner { stored: Follower::new(store, ALL), configurations: BTreeMap::new(), set: None };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// What is configured now; `None` where nothing is.
    pub fn now(&self) -> Option<Arc<Set>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        inner.set.clone()
    }
}

/// What all keys of the group begin with; the plural follows.
const ALL: &str = "/admissionregistration.k8s.io/";

/// The plural in a key.
fn plural(key: &Bytes) -> &str {
    let text = std::str::from_utf8(key).unwrap_or("");
    text.strip_prefix(ALL).and_then(|rest| rest.split('/').next()).unwrap_or("")
}

impl Inner {
    fn catch_up(&mut self) {
        let rows = match self.stored.rows(&self.configurations) {
            Ok(rows) => rows,
            Err(error) => return tracing::error!(%error, "the configurations of admission could not be read"),
        };
        if !rows.is_empty() {
            rows.into_iter().for_each(|(key, value)| self.take(key, value.as_ref()));
            self.arrange();
        }
    }

    /// Takes in one configuration. What does not decode is as it was last known (A10).
    fn take(&mut self, key: Bytes, value: Option<&Bytes>) {
        let Some(value) = value else {
            self.configurations.remove(&key);
            return;
        };
        let decoded = serde_json::from_slice::<Value>(value).map_err(|error| error.to_string());
        match decoded.and_then(|written| read(plural(&key), &written)) {
            Ok(Some(configuration)) => drop(self.configurations.insert(key, configuration)),
            Ok(None) => {}
            Err(error) => tracing::error!(?key, error, "a stored configuration of admission does not decode"),
        }
    }

    /// In the order of the configurations' names, as upstream.
    fn arrange(&mut self) {
        let of = |wanted: &str| {
            let all = self.configurations.iter().filter(|(key, _)| plural(key) == wanted);
            all.map(|(_, configuration)| configuration).collect::<Vec<_>>()
        };
        let hooks = |wanted: &str| -> Vec<Arc<Hook>> {
            let of_one = |configuration: &&Configuration| match configuration {
                Configuration::Hooks(hooks) => hooks.clone(),
                _ => Vec::new(),
            };
            of(wanted).iter().flat_map(of_one).collect()
        };
        let policies = |policies: &str, bindings: &str| -> Vec<Bound> {
            let mut by_policy: BTreeMap<&str, Vec<Arc<Binding>>> = BTreeMap::new();
            for configuration in of(bindings) {
                if let Configuration::Binding(binding) = configuration {
                    by_policy.entry(&binding.policy).or_default().push(binding.clone());
                }
            }
            let bound = |configuration: &Configuration| match configuration {
                Configuration::Policy(policy) => Some((policy.clone(), by_policy.get(&*policy.name)?.clone())),
                _ => None,
            };
            of(policies).into_iter().filter_map(bound).collect()
        };
        let set = Set {
            mutating: hooks("mutatingwebhookconfigurations"),
            validating: hooks("validatingwebhookconfigurations"),
            mutating_policies: policies("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
            validating_policies: policies("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
        };
        let is_empty = set.mutating.is_empty()
            && set.validating.is_empty()
            && set.mutating_policies.is_empty()
            && set.validating_policies.is_empty();
        self.set = (!is_empty).then(|| Arc::new(set));
    }
}

/// Compiles an object of the group; `None` for one of a kind that nobody knows here.
fn read(plural: &str, written: &Value) -> Result<Option<Configuration>, String> {
    Ok(Some(match plural {
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            let name = object::name(written);
            let all = written.get("webhooks").and_then(Value::as_array).into_iter().flatten();
            let hooks = all.map(|webhook| Hook::read(name, webhook).map(Arc::new));
            Configuration::Hooks(hooks.collect::<Result<_, String>>()?)
        }
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
            Configuration::Policy(Arc::new(Policy::read(written)?))
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            Configuration::Binding(Arc::new(Binding::read(written)?))
        }
        _ => return Ok(None),
    }))
}
