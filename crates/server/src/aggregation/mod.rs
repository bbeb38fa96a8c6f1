//! Aggregation: groups and versions that another server answers, behind a Service that an APIService names.
//!
//! What is registered follows the store's watch whenever it is asked for ([`Services`]). A built-in or custom kind is
//! never another server's. One task ([`availability::run`]) asks each server from time to time whether it answers, says
//! so in the APIService's status, and keeps what it offers, for discovery. Requests are passed on by `http::extension`
//! with the name of whoever asks, proved by the front proxy's certificate.

pub mod availability;
pub mod described;
pub mod discovery;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use mainstay_api::{Registry, Status, kinds, object};
use mainstay_client::Rotating;
use mainstay_store::Store;
use rustls::pki_types::ServerName;
use serde_json::Value;

use crate::api::{Follower, Query, key};
use crate::authorize::Attributes;
use crate::dynamic::trust;
use crate::http::decode;

/// A server that answers for a group and version.
pub struct Extension {
    /// The APIService's name: `v1beta1.metrics.example.com`.
    pub name: String,
    pub group: String,
    pub version: String,
    /// The Service's.
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// Higher ones come first in discovery.
    group_priority: i64,
    version_priority: i64,
    /// How it is believed to be itself, and shown that this is the front proxy.
    pub tls: Result<Arc<rustls::ClientConfig>, String>,
    spec: Value,
    is_available: AtomicBool,
    /// Its `APIResourceList`, as it last answered.
    resources: Mutex<Option<Value>>,
    /// What it says of its kinds.
    description: Mutex<Description>,
}

/// What a server says of its kinds in version 2 of OpenAPI, as it was last asked.
#[derive(Default)]
struct Description {
    asked: Option<Instant>,
    tag: String,
    document: Option<Arc<Value>>,
}

impl Extension {
    fn read(service: &Value, front_proxy: Option<&Arc<Rotating>>) -> Option<Self> {
        let spec = service.get("spec")?;
        let behind = spec.get("service").filter(|behind| behind.is_object())?;
        let text = |value: &Value, field: &str| object::text(value, &[field]).to_owned();
        let number = |field: &str| spec.get(field).and_then(Value::as_i64).unwrap_or(0);
        let is_insecure = spec.get("insecureSkipTLSVerify").and_then(Value::as_bool).unwrap_or(false);
        let bundle = object::text(spec, &["caBundle"]);
        let shown = front_proxy.cloned().ok_or_else(|| "there is no front proxy".to_owned());
        let tls = shown.and_then(|shown| trust::client_with((!is_insecure).then_some(bundle), shown));
        let port = behind.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        let conditions = object::at(service, &["status", "conditions"]).and_then(Value::as_array);
        let is_available = conditions.into_iter().flatten().any(|condition| {
            object::text(condition, &["type"]) == "Available" && object::text(condition, &["status"]) == "True"
        });
        Some(Self {
            name: object::name(service).to_owned(),
            group: text(spec, "group"),
            version: text(spec, "version"),
            namespace: text(behind, "namespace"),
            service: text(behind, "name"),
            port: port.unwrap_or(443),
            group_priority: number("groupPriorityMinimum"),
            version_priority: number("versionPriority"),
            tls,
            spec: spec.clone(),
            is_available: AtomicBool::new(is_available),
            resources: Mutex::default(),
            description: Mutex::default(),
        })
    }

    /// Whether it answered when it was last asked.
    pub fn is_available(&self) -> bool {
        self.is_available.load(Ordering::Relaxed)
    }

    /// The name that its certificate must be for.
    ///
    /// # Errors
    /// A Service whose name makes none.
    pub fn server_name(&self) -> Result<ServerName<'static>, String> {
        ServerName::try_from(self.host()).map_err(|error| error.to_string())
    }

    /// `metrics.kube-system.svc`.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Where its discovery document is.
    fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    fn resources(&self) -> Option<Value> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its part of a document of version 2 of OpenAPI, as long as it answers.
    pub fn described(&self) -> Option<Arc<Value>> {
        let description = self.description.lock().unwrap_or_else(PoisonError::into_inner);
        description.document.clone().filter(|_| self.is_available())
    }

    fn note(&self, resources: Option<Value>) {
        self.is_available.store(resources.is_some(), Ordering::Relaxed);
        if resources.is_some() {
            *self.resources.lock().unwrap_or_else(PoisonError::into_inner) = resources;
        }
    }

    /// What a request for one of its paths (as [`settled`] gives them) asks for, as upstream takes paths apart.
    pub fn asked(&self, path: &str, method: &http::Method, query: &Query) -> Attributes {
        let rest = path.strip_prefix(&self.path()).unwrap_or("").trim_matches('/');
        let decoded: Vec<String> = rest.split('/').filter(|segment| !segment.is_empty()).map(decode).collect();
        let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let (namespace, segments) = match segments.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            all => ("", all),
        };
        let [resource, rest @ ..] = segments else {
            let verb = method.as_str().to_lowercase();
            return Attributes { verb, path: path.to_owned(), ..Attributes::default() };
        };
        let is_watch = crate::api::flag(query, "watch");
        let verb = match *method {
            http::Method::GET | http::Method::HEAD if is_watch => "watch",
            http::Method::GET | http::Method::HEAD if rest.is_empty() => "list",
            http::Method::GET | http::Method::HEAD => "get",
            http::Method::POST => "create",
            http::Method::PUT => "update",
            http::Method::PATCH => "patch",
            http::Method::DELETE if rest.is_empty() => "deletecollection",
            http::Method::DELETE => "delete",
            _ => "",
        };
        let at = |index: usize| rest.get(index).map(|text| (*text).to_owned()).unwrap_or_default();
        Attributes {
            verb: verb.to_owned(),
            group: self.group.clone(),
            resource: (*resource).to_owned(),
            subresource: at(1),
            namespace: namespace.to_owned(),
            name: at(0),
            ..Attributes::default()
        }
    }
}

/// A request's address as it is judged and passed on: each segment of its path decoded and encoded again, so that the
/// server behind takes it apart as it was taken apart here.
///
/// # Errors
/// 400 for a path that two servers could take apart in two ways: an encoded slash, an empty segment, `.`, `..`.
pub fn settled(uri: &http::Uri) -> Result<http::Uri, Status> {
    let refused = || Status::bad_request("a path with an encoded slash, an empty segment, . or .. is not passed on");
    let path = uri.path().strip_prefix('/').unwrap_or(uri.path());
    let (path, end) = path.strip_suffix('/').map_or((path, ""), |path| (path, "/"));
    let mut text = String::with_capacity(uri.path().len());
    for segment in path.split('/') {
        let segment = decode(segment);
        if matches!(&*segment, "" | "." | "..") || segment.contains(['/', '\\', '\0', char::REPLACEMENT_CHARACTER]) {
            return Err(refused());
        }
        text.push('/');
        encode(&mut text, &segment);
    }
    text.push_str(end);
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(text.parse().map_err(|_| refused())?);
    http::Uri::from_parts(parts).map_err(|_| refused())
}

/// Encodes what has a meaning in a path, and whatever is not plain text.
fn encode(out: &mut String, segment: &str) {
    use std::fmt::Write as _;
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':'
            | b'@' => out.push(char::from(byte)),
            // Writing to a String does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
}

/// What is registered, as new as the store.
#[derive(Clone)]
pub struct Services(Arc<Mutex<Inner>>);

struct Inner {
    stored: Follower,
    front_proxy: Arc<Rotating>,
    by_key: BTreeMap<Bytes, Arc<Extension>>,
    /// In the order of discovery.
    all: Arc<[Arc<Extension>]>,
}

impl Services {
    /// Those of a store; `front_proxy` is what extension servers know this one by.
    pub fn new(store: &Store, front_proxy: Arc<Rotating>) -> Self {
        let stored = Follower::new(store, key::prefix(&kinds::API_SERVICE, None));
        Self(Arc::new(Mutex::new(Inner { stored, front_proxy, by_key: BTreeMap::new(), all: Arc::default() })))
    }

    /// Those that are registered now, in the order of discovery, without those whose group and version is served here.
    pub fn now(&self, registry: &Registry) -> Vec<Arc<Extension>> {
        let all = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inner.catch_up();
            inner.all.clone()
        };
        let is_own = |extension: &Extension| {
            registry.all().iter().any(|kind| kind.group == extension.group && kind.version == extension.version)
                || mainstay_api::discovery::REVIEWS.iter().any(|review| review.group == extension.group)
        };
        all.iter().filter(|extension| !is_own(extension)).cloned().collect()
    }

    /// Whose a path is: below a group's version, or the OpenAPI document of one.
    pub fn find(&self, registry: &Registry, path: &str) -> Option<Arc<Extension>> {
        let (rest, is_document) = match path.strip_prefix("/openapi/v3/apis/") {
            Some(rest) => (rest, true),
            None => (path.strip_prefix("/apis/")?, false),
        };
        let mut segments = rest.split('/');
        let (group, version) = (segments.next()?, segments.next()?);
        // Below its document there is nothing of a server's.
        if version.is_empty() || is_document && segments.next().is_some() {
            return None;
        }
        let all = self.now(registry);
        all.into_iter().find(|extension| extension.group == group && extension.version == version)
    }
}

impl Inner {
    fn catch_up(&mut self) {
        let rows = match self.stored.rows(&self.by_key) {
            Ok(rows) => rows,
            Err(error) => return tracing::error!(%error, "the APIServices could not be read"),
        };
        if !rows.is_empty() {
            rows.into_iter().for_each(|(key, value)| self.take(key, value.as_ref()));
            self.arrange();
        }
    }

    fn take(&mut self, key: Bytes, value: Option<&Bytes>) {
        let Some(value) = value else {
            self.by_key.remove(&key);
            return;
        };
        let Ok(service) = serde_json::from_slice::<Value>(value) else {
            tracing::error!(?key, "a stored APIService does not decode; it is as it was last known");
            return;
        };
        let known = self.by_key.get(&key);
        if known.is_some_and(|known| service.get("spec") == Some(&known.spec)) {
            // Its status is what the task has said itself.
            return;
        }
        match Extension::read(&service, Some(&self.front_proxy)) {
            Some(extension) => drop(self.by_key.insert(key, Arc::new(extension))),
            None => drop(self.by_key.remove(&key)),
        }
    }

    fn arrange(&mut self) {
        let mut all: Vec<Arc<Extension>> = self.by_key.values().cloned().collect();
        // A group is as important as the most important of its versions.
        let mut groups: BTreeMap<&str, i64> = BTreeMap::new();
        for extension in self.by_key.values() {
            let priority = groups.entry(&extension.group).or_insert(extension.group_priority);
            *priority = (*priority).max(extension.group_priority);
        }
        let order = |extension: &Extension| {
            let group = groups.get(&*extension.group).copied().unwrap_or(0);
            (std::cmp::Reverse(group), extension.group.clone(), std::cmp::Reverse(extension.version_priority))
        };
        all.sort_by_key(|extension| order(extension));
        self.all = all.into();
    }
}

/// A server that has answered so, for those who look at what becomes of answers.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn answered(resources: Value) -> Option<Arc<Extension>> {
    let service = serde_json::json!({ "metadata": { "name": "v1.x.io" }, "spec": { "group": "x.io", "version": "v1",
        "service": { "namespace": "ns", "name": "api" } } });
    let extension = Extension::read(&service, None)?;
    extension.note(Some(resources));
    Some(Arc::new(extension))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn extension() -> Extension {
        let service = json!({ "metadata": { "name": "v1.x.io" }, "spec": { "group": "x.io", "version": "v1",
            "service": { "namespace": "ns", "name": "api" }, "groupPriorityMinimum": 100, "versionPriority": 10 } });
        Extension::read(&service, None).expect("a remote one")
    }

    #[test]
    fn x1_requests_are_taken_apart_as_upstream_does() {
        let asked = |path: &str, method: http::Method, watch: &str| {
            let query = Query::from([("watch".to_owned(), watch.to_owned())]);
            let asked = extension().asked(path, &method, &query);
            [asked.verb, asked.namespace, asked.resource, asked.name, asked.subresource, asked.path].join("|")
        };
        let table = [
            ("/apis/x.io/v1", http::Method::GET, "false", "get|||||/apis/x.io/v1"),
            ("/apis/x.io/v1/foos", http::Method::GET, "false", "list||foos|||"),
            ("/apis/x.io/v1/foos", http::Method::GET, "true", "watch||foos|||"),
            ("/apis/x.io/v1/namespaces/a/foos", http::Method::POST, "false", "create|a|foos|||"),
            ("/apis/x.io/v1/namespaces/a/foos/b/status", http::Method::PUT, "false", "update|a|foos|b|status|"),
            ("/apis/x.io/v1/namespaces/a/foos", http::Method::DELETE, "false", "deletecollection|a|foos|||"),
            ("/apis/x.io/v1/namespaces/a", http::Method::GET, "false", "get||namespaces|a||"),
        ];
        for (path, method, watch, wanted) in table {
            assert_eq!(asked(path, method, watch), wanted, "{path}");
        }
    }

    #[test]
    fn x1_a_path_is_passed_on_as_it_was_taken_apart() {
        let of = |text: &str| settled(&text.parse().expect("a URI")).map(|uri| uri.to_string());
        for (path, passed_on) in [
            ("/apis/g/v1/namespaces/a/foos/x?a=b%2Fc", "/apis/g/v1/namespaces/a/foos/x?a=b%2Fc"),
            ("/apis/g/v1/%66oos/%78", "/apis/g/v1/foos/x"),
            ("/apis/g/v1/%77atch/foos", "/apis/g/v1/watch/foos"),
            ("/apis/g/v1/foos/a%20b%3Fc", "/apis/g/v1/foos/a%20b%3Fc"),
            ("/apis/g/v1/foos/%2566", "/apis/g/v1/foos/%2566"),
            ("/apis/g/v1/", "/apis/g/v1/"),
            ("https://h:1/apis/g/v1/foos", "https://h:1/apis/g/v1/foos"),
        ] {
            assert_eq!(of(path).as_deref().ok(), Some(passed_on), "{path}");
        }
        for path in [
            "/apis/g/v1/foos/x%2Fsecret",
            "/apis/g/v1/foos/../bars",
            "/apis/g/v1/foos/%2e%2E/bars",
            "/apis/g/v1//foos",
            "/apis/g/v1/foos/x%5Csecret",
            "/apis/g/v1/foos/%ff",
            "/apis/g/v1/foos/.",
        ] {
            assert_eq!(of(path).map_err(|status| status.code), Err(400), "{path}");
        }
    }
}
