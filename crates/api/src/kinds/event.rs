//! Event: what happened to an object, for people to read.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{column, text_column, wide};
use super::field::{Field, default};
use super::{BASE, Kind, Row};
use crate::jiff::Timestamp;
use crate::object::{name, namespace, text};
use crate::status::Cause;
use crate::time;

/// The row of Event.
pub static EVENT: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Event"),
    plural: Borrowed("events"),
    singular: Borrowed("event"),
    short_names: Borrowed(&[Borrowed("ev")]),
    type_name: Borrowed("io.k8s.api.core.v1.Event"),
    fields: |_, event| {
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
    },
    columns: Borrowed(&[
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
    ]),
    row: |_, object, now| row(object, now),
    defaults: |_, event| default(event, "type", "Normal"),
    validate: |_, event, causes| {
        let event_namespace = namespace(event);
        let about = text(event, &["involvedObject", "namespace"]);
        // Events about cluster-scoped objects live in `default`.
        let expected = if about.is_empty() { &["default", "kube-system"][..] } else { &[about][..] };
        if !event_namespace.is_empty() && !expected.contains(&event_namespace) {
            causes.push(Cause::invalid("involvedObject.namespace", about, "does not match event.namespace"));
        }
    },
    ..BASE
});

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
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
