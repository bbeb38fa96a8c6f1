//! Event: what happened to an object, for people to read.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{column, text_column, wide};
use super::field::{Field, default};
use super::{BASE, Column, Kind, Row};
use crate::jiff::Timestamp;
use crate::names;
use crate::object::{name, namespace, text};
use crate::status::Cause;
use crate::time;

/// Longest reason, action and reporting instance, in bytes.
const MAX_WORD: usize = 128;
/// Longest message of an event of the newer sort, in bytes.
const MAX_MESSAGE: usize = 1024;

/// The row of Event.
pub static EVENT: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Event"),
    plural: Borrowed("events"),
    singular: Borrowed("event"),
    short_names: Borrowed(&[Borrowed("ev")]),
    type_name: Borrowed("io.k8s.api.core.v1.Event"),
    fields: |_, event| fields(event),
    columns: Borrowed(COLUMNS),
    row: |_, object, now| row(object, now),
    defaults: |_, event| default(event, "type", "Normal"),
    validate: |_, event, causes| validate(event, "reportingComponent", causes),
    ..BASE
});

/// The columns of both versions.
pub(super) const COLUMNS: &[Column] = &[
    text_column("Last Seen", "When it last happened."),
    text_column("Type", "Normal or Warning."),
    text_column("Reason", "Why, in one word."),
    text_column("Object", "What it happened to."),
    wide("Subobject", "Which part of that."),
    wide("Source", "Who tells."),
    text_column("Message", "What happened."),
    wide("First Seen", "When it first happened."),
    column("Count", "integer", "", 1, "How often it happened."),
    column("Name", "string", "name", 1, "Name of the event."),
];

/// The fields that selectors know, of the stored form.
pub(super) fn fields(event: &Value) -> Vec<(&'static str, String)> {
    let of = |field| text(event, &["involvedObject", field]).to_owned();
    let component = text(event, &["source", "component"]);
    let reporter = text(event, &["reportingComponent"]);
    vec![
        ("involvedObject.kind", of("kind")),
        ("involvedObject.namespace", of("namespace")),
        ("involvedObject.name", of("name")),
        ("involvedObject.uid", of("uid")),
        ("involvedObject.apiVersion", of("apiVersion")),
        ("involvedObject.resourceVersion", of("resourceVersion")),
        ("involvedObject.fieldPath", of("fieldPath")),
        ("reason", text(event, &["reason"]).to_owned()),
        ("reportingComponent", reporter.to_owned()),
        ("source", if component.is_empty() { reporter } else { component }.to_owned()),
        ("type", text(event, &["type"]).to_owned()),
    ]
}

/// Upstream's rules for both versions. An event with an `eventTime` is of the newer sort, whatever its version;
/// `reporter` is what the version calls the field with the reporting controller.
pub(super) fn validate(event: &Value, reporter: &str, causes: &mut Vec<Cause>) {
    let (own, about) = (namespace(event), text(event, &["involvedObject", "namespace"]));
    let is_newer = !text(event, &["eventTime"]).is_empty();
    // Events about cluster-scoped objects live in `default`, those of the newer sort in `kube-system` too.
    let fits = match (about, is_newer) {
        ("", true) => matches!(own, "default" | "kube-system"),
        ("", false) => matches!(own, "" | "default"),
        (about, false) => own == about,
        (_, true) => true,
    };
    if !fits {
        causes.push(Cause::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
    if !is_newer {
        return;
    }
    let field = Field::root(event);
    let controller = field.get("reportingComponent");
    if controller.text().is_empty() {
        causes.push(Cause::required(reporter, ""));
    }
    let wrong = names::qualified(controller.text());
    causes.extend(wrong.iter().map(|wrong| Cause::invalid(reporter, controller.text(), wrong)));
    for name in ["reportingInstance", "action", "reason"] {
        let text = field.get(name).text();
        if text.is_empty() {
            causes.push(Cause::required(name, ""));
        }
        if text.len() > MAX_WORD {
            causes.push(Cause::invalid(name, "", &format!("can have at most {MAX_WORD} characters")));
        }
    }
    if field.get("message").text().len() > MAX_MESSAGE {
        causes.push(Cause::invalid("message", "", &format!("can have at most {MAX_MESSAGE} characters")));
    }
}

/// How often something happened, where that is told.
pub(super) fn validate_series(event: &Field, causes: &mut Vec<Cause>) {
    let series = event.get("series");
    if !series.is_set() {
        return;
    }
    if series.get("count").int().unwrap_or(0) < 2 {
        causes.push(Cause::invalid("series.count", "", "should be at least 2"));
    }
    if series.get("lastObservedTime").text().is_empty() {
        causes.push(Cause::required("series.lastObservedTime", ""));
    }
}

pub(super) fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let field = Field::root(event);
    let since = |path: &[&str]| time::parse(field.dig(path).text()).map(|at| time::age(at, now));
    let unknown = || "<unknown>".to_owned();
    let first = since(&["firstTimestamp"]).or_else(|| since(&["eventTime"])).unwrap_or_else(unknown);
    let mut last = since(&["lastTimestamp"]).unwrap_or_else(|| first.clone());
    let mut count = field.get("count").int().filter(|n| *n != 0).unwrap_or(1);
    if field.get("series").is_set() {
        last = since(&["series", "lastObservedTime"]).unwrap_or_else(unknown);
        count = field.dig(&["series", "count"]).int().unwrap_or(0);
    }
    let about = field.get("involvedObject");
    let kind = about.get("kind").text().to_lowercase();
    let object =
        if about.get("name").text().is_empty() { kind } else { format!("{kind}/{}", about.get("name").text()) };
    let or = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
    let component = or(field.dig(&["source", "component"]).text(), field.get("reportingComponent").text());
    let host = or(field.dig(&["source", "host"]).text(), field.get("reportingInstance").text());
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        json!(last),
        json!(field.get("type").text()),
        json!(field.get("reason").text()),
        json!(object),
        json!(about.get("fieldPath").text()),
        json!(source),
        json!(field.get("message").text().trim()),
        json!(first),
        json!(count),
        json!(name(event)),
    ]
}
