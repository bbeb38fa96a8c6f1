//! Conversion of custom resources between versions by webhooks (`spec.conversion.strategy: Webhook`).
//!
//! A verb of the pipeline has no IO. Where an object is of another version than it is wanted in, the verb leaves that
//! in the request's [`Conversions`] and gives up; whoever runs the verb has it converted ([`Conversions::settle`]),
//! outside of any transaction, and runs it anew. What is only read is converted before it is shown ([`shown`],
//! [`all`]).
//!
//! As upstream: a webhook is asked with `apiextensions.k8s.io/v1` ConversionReviews, changes nothing of the metadata
//! but labels and annotations, and what it fails at fails the request. Our own controllers, which see the metadata of
//! custom resources alone, take objects in the version in which they are stored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::custom::rows::Webhook;
use mainstay_api::{Kind, Status, object, schema};
use mainstay_store::Entry;
use serde_json::{Value, json};

use crate::api::{Api, Env, Selection, Tape, codec, new_uid};
use crate::dynamic::apart;
use crate::dynamic::client::Endpoint;

/// How long a webhook may take (upstream's).
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
const MAX_OBJECTS: usize = 500;
/// Bytes of objects in one review, about.
const MAX_BYTES: usize = 2 << 20;
/// How often a verb comes back with objects to be converted, before its client is told.
const MAX_ROUNDS: usize = 64;
/// Webhooks of definitions whose connections are kept.
const MAX_ENDPOINTS: usize = 256;

/// The webhooks that have been asked, with their connections. Cheap to clone.
#[derive(Clone, Default)]
pub struct Webhooks(Arc<Mutex<BTreeMap<String, Arc<Endpoint>>>>);

impl Webhooks {
    fn endpoint(&self, config: &Value) -> Result<Arc<Endpoint>, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = config.to_string();
        if let Some(known) = all.get(&key) {
            return Ok(known.clone());
        }
        let new = Arc::new(Endpoint::new(config)?);
        if all.len() >= MAX_ENDPOINTS {
            all.pop_first();
        }
        all.insert(key, new.clone());
        Ok(new)
    }
}

/// What one request has had converted, over the runs of its verb.
#[derive(Default)]
pub struct Conversions(Mutex<State>);

#[derive(Default)]
struct State {
    /// By the version that is wanted and the object's text.
    known: BTreeMap<(String, String), Result<Value, Status>>,
    pending: Vec<(Kind, String, Value)>,
    rounds: usize,
    now: Option<Timestamp>,
    tape: Tape,
}

impl Conversions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run of the verb begins: its time is that of the first, so that it comes to the same object.
    pub fn begin(&self, now: Timestamp) -> Timestamp {
        let mut state = self.state();
        state.tape.rewind();
        *state.now.get_or_insert(now)
    }

    /// Fills a buffer as the runs before did, else with what nobody can guess.
    pub fn random(&self, env: &Env, bytes: &mut [u8]) {
        self.state().tape.fill(env, bytes);
    }

    /// Whether the last run has left something to be converted.
    pub fn is_pending(&self) -> bool {
        !self.state().pending.is_empty()
    }

    /// Makes an object one of this version (of the kind's group).
    ///
    /// # Errors
    /// What the webhook failed at; or that it has to be asked first ([`Conversions::is_pending`]).
    pub fn convert(&self, kind: &Kind, version: &str, given: &mut Value) -> Result<(), Status> {
        let wanted = format!("{}/{version}", kind.group);
        if object::text(given, &["apiVersion"]) == wanted {
            return Ok(());
        }
        let mut state = self.state();
        match state.known.get(&(wanted.clone(), given.to_string())) {
            Some(Ok(converted)) => {
                *given = converted.clone();
                Ok(())
            }
            Some(Err(status)) => Err(status.clone()),
            None => {
                state.pending.push((kind.clone(), wanted, given.clone()));
                Err(Status::internal("the object has not been converted yet"))
            }
        }
    }

    /// Has everything converted that the last run left.
    ///
    /// # Errors
    /// 504 where that is too often; what a webhook failed at is told by the next run.
    pub async fn settle(&self, api: &Api) -> Result<(), Status> {
        let pending = {
            let mut state = self.state();
            state.rounds += 1;
            if state.rounds > MAX_ROUNDS {
                state.pending.clear();
                return Err(Status::timeout("the object was changed by others again and again while it was converted"));
            }
            std::mem::take(&mut state.pending)
        };
        for (kind, wanted, given) in pending {
            let key = (wanted.clone(), given.to_string());
            let converted = review(api, &kind, &wanted, vec![given]).await;
            let converted =
                converted.and_then(|mut all| all.pop().ok_or_else(|| Status::internal("nothing came back")));
            self.state().known.insert(key, converted);
        }
        Ok(())
    }
}

/// The webhook that has to be asked for objects of a kind, if any is.
pub fn webhook(kind: &Kind) -> Option<&Webhook> {
    kind.custom.as_ref()?.webhook.as_ref()
}

/// A stored object in the version of `kind`; what is no object of the kind (a Status) is as it is.
///
/// # Errors
/// 500 with the webhook's failure.
pub async fn shown(api: &Api, kind: &Kind, bytes: Bytes) -> Result<Bytes, Status> {
    if !is_other(kind, &bytes) {
        return Ok(bytes);
    }
    let converted = review(api, kind, &kind.api_version(), vec![codec::decode(&bytes)?]).await?;
    Ok(converted.first().map_or(bytes, |object| Bytes::from(object::print(object))))
}

/// Stored objects in the version of `kind`, many asked at once.
///
/// # Errors
/// 500 with the webhook's failure: a list that lacks some must not look whole.
pub async fn all(api: &Api, kind: &Kind, entries: &mut [Entry]) -> Result<(), Status> {
    let others: Vec<usize> =
        entries.iter().enumerate().filter(|(_, entry)| is_other(kind, &entry.value)).map(|(index, _)| index).collect();
    let mut rest = others.as_slice();
    while !rest.is_empty() {
        let (mut count, mut bytes) = (0, 0);
        while count < rest.len().min(MAX_OBJECTS) && (count == 0 || bytes < MAX_BYTES) {
            bytes += rest.get(count).and_then(|index| entries.get(*index)).map_or(0, |entry| entry.value.len());
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        let of = |index: &usize| entries.get(*index).map(|entry| codec::decode(&entry.value));
        let objects: Vec<Value> = now.iter().filter_map(of).collect::<Result<_, _>>()?;
        let converted = review(api, kind, &kind.api_version(), objects).await?;
        for (index, object) in now.iter().zip(converted) {
            if let Some(entry) = entries.get_mut(*index) {
                entry.value = Bytes::from(object::print(&object));
            }
        }
        rest = later;
    }
    Ok(())
}

/// Stored objects in the version of a selection's kind, without those that, once converted, are not selected. A part of
/// a list may so have fewer than its limit.
///
/// # Errors
/// As [`all`].
pub async fn selected(api: &Api, selection: &Selection, entries: &mut Vec<Entry>) -> Result<(), Status> {
    all(api, &selection.kind, entries).await?;
    if selection.needs_conversion() {
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            if selection.matches_converted(&entry.value)? {
                kept.push(entry);
            }
        }
        *entries = kept;
    }
    Ok(())
}

/// Whether bytes are an object of the kind in a version that a webhook converts from.
pub fn is_other(kind: &Kind, bytes: &Bytes) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Only {
        #[serde(default)]
        kind: String,
        #[serde(default)]
        api_version: String,
    }
    webhook(kind).is_some()
        && serde_json::from_slice::<Only>(bytes)
            .is_ok_and(|only| only.kind == kind.kind && only.api_version != kind.api_version())
}

/// Asks the kind's webhook for these objects in this version (`group/version`).
async fn review(api: &Api, kind: &Kind, wanted: &str, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
    let Some(webhook) = webhook(kind) else { return Ok(objects) };
    let first = objects.first().map_or("", |object| object::text(object, &["apiVersion"]));
    let what = format!("{}, Kind={}", first, kind.kind);
    let fails = |why: String| Status::new(500, "", format!("conversion webhook for {what} {why}"));
    let uid = new_uid(&api.batch());
    let version = webhook.versions.iter().find(|version| ["v1", "v1beta1"].contains(&&***version));
    let version = version.ok_or_else(|| fails("failed: no review version that it takes is known".to_owned()))?;
    let review = json!({
        "apiVersion": format!("apiextensions.k8s.io/{version}"), "kind": "ConversionReview",
        "request": { "uid": uid, "desiredAPIVersion": wanted, "objects": objects },
    });
    let endpoint = api.converters.endpoint(&webhook.client_config).map_err(|why| fails(format!("failed: {why}")))?;
    let answer = endpoint.post(api, Bytes::from(review.to_string()), TIMEOUT).await;
    let answer = answer.map_err(|why| fails(format!("failed: {why}")))?;
    let (size, version, wanted) = (answer.len(), version.to_string(), wanted.to_owned());
    let work = move || converted(&answer, &version, &uid, &objects, &wanted);
    apart(size, work).await?.map_err(fails)
}

/// What an answer, any bytes, makes of these objects.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub(crate) fn converted(
    answer: &[u8],
    version: &str,
    uid: &str,
    objects: &[Value],
    wanted: &str,
) -> Result<Vec<Value>, String> {
    // What it comes to in memory is bounded, and not only its length (X4).
    let answer = schema::parse::parse(answer).map_err(|error| format!("failed: {error}"))?.value;
    let mut converted = response(answer, version, uid).map_err(|why| format!("failed: {why}"))?;
    if converted.len() != objects.len() {
        return Err(format!("returned {} objects, expected {}", converted.len(), objects.len()));
    }
    for (index, (before, after)) in objects.iter().zip(&mut converted).enumerate() {
        settled(before, after, wanted)
            .map_err(|why| format!("returned invalid converted object at index {index}: {why}"))?;
    }
    Ok(converted)
}

/// The objects of a review's answer.
fn response(mut answer: Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    if version == "v1" {
        let named = (object::text(&answer, &["apiVersion"]), object::text(&answer, &["kind"]));
        if named != ("apiextensions.k8s.io/v1", "ConversionReview") {
            let wanted = "apiextensions.k8s.io/v1, Kind=ConversionReview";
            return Err(format!("expected webhook response of {wanted}, got {}, Kind={}", named.0, named.1));
        }
    }
    if !answer.get("response").is_some_and(Value::is_object) {
        return Err("no response provided".to_owned());
    }
    let text = |path: &[&str]| object::text(&answer, path).to_owned();
    if version == "v1" && text(&["response", "uid"]) != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&["response", "uid"])));
    }
    let (status, message) = (text(&["response", "result", "status"]), text(&["response", "result", "message"]));
    match (status.as_str(), message) {
        ("Success", _) => {}
        (_, message) if !message.is_empty() => return Err(message),
        (status, _) => return Err(format!("response.result.status was '{status}', not 'Success'")),
    }
    match answer.get_mut("response").and_then(|response| response.get_mut("convertedObjects")).map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// Whether an object is what it was, in the wanted version; its metadata is as it was but for labels and annotations.
fn settled(before: &Value, after: &mut Value, wanted: &str) -> Result<(), String> {
    let version = object::text(after, &["apiVersion"]);
    if version != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {version})"));
    }
    for (path, name) in [
        (&["kind"][..], "kind"),
        (&["metadata", "name"], "name"),
        (&["metadata", "namespace"], "namespace"),
        (&["metadata", "uid"], "UID"),
    ] {
        let (old, new) = (object::text(before, path), object::text(after, path));
        if old != new {
            return Err(format!("must have the same {name}: {old} != {new}"));
        }
    }
    let mut metadata = before.get("metadata").cloned().unwrap_or_else(|| json!({}));
    for field in ["labels", "annotations"] {
        let fields = object::ensure(&mut metadata, &[]);
        match object::at(after, &["metadata", field]) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    object::ensure(after, &[]).insert("metadata".to_owned(), metadata);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foo(version: &str) -> Value {
        json!({ "apiVersion": format!("x.io/{version}"), "kind": "Foo",
            "metadata": { "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "3", "labels": { "l": "1" } } })
    }

    #[test]
    fn a_webhook_changes_nothing_of_the_metadata_but_labels_and_annotations() {
        let mut after = foo("v2");
        after["metadata"]["labels"] = json!({ "l": "2" });
        after["metadata"]["finalizers"] = json!(["x"]);
        after["metadata"]["resourceVersion"] = json!("9");
        after["spec"] = json!({ "b": 1 });
        settled(&foo("v1"), &mut after, "x.io/v2").expect("sound");
        let mut wanted = foo("v2");
        wanted["metadata"]["labels"] = json!({ "l": "2" });
        wanted["spec"] = json!({ "b": 1 });
        assert_eq!(after, wanted);
        let refused = |after: Value| settled(&foo("v1"), &mut after.clone(), "x.io/v2").expect_err("another object");
        assert_eq!(refused(foo("v3")), "invalid groupVersion (expected x.io/v2, received x.io/v3)");
        let mut other = foo("v2");
        other["metadata"]["name"] = json!("b");
        assert_eq!(refused(other), "must have the same name: a != b");
    }

    #[test]
    fn x4_answers_that_are_none_are_refused_in_upstreams_words() {
        let review = |response: Value| {
            json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": response })
        };
        let table = [
            (json!({}), "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind="),
            (review(json!(null)), "no response provided"),
            (review(json!({ "uid": "x" })), "expected response.uid=\"u\", got \"x\""),
            (review(json!({ "uid": "u", "result": { "status": "Failed", "message": "no way" } })), "no way"),
            (review(json!({ "uid": "u" })), "response.result.status was '', not 'Success'"),
        ];
        for (answer, wanted) in table {
            assert_eq!(response(answer, "v1", "u"), Err(wanted.to_owned()));
        }
        let good = review(json!({ "uid": "u", "result": { "status": "Success" }, "convertedObjects": [1] }));
        assert_eq!(response(good, "v1", "u"), Ok(vec![json!(1)]));
    }
}
