//! Event of `events.k8s.io`: the same objects as the core group's Events, which are the stored form, under newer names.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::event;
use super::field::Field;
use super::{BASE, Conversion, EVENT, Kind, Row};
use crate::object::{ensure, text};
use crate::status::Cause;

/// A field's name here, and in the stored form.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];
/// The row of `events.k8s.io` Event.
pub static EVENT_REGARDING: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("events.k8s.io"),
    kind: Borrowed("Event"),
    plural: Borrowed("events"),
    singular: Borrowed("event"),
    short_names: Borrowed(&[Borrowed("ev")]),
    type_name: Borrowed("io.k8s.api.events.v1.Event"),
    fields: |_, event| {
        let stored = as_stored(event);
        let mut fields = event::fields(&stored);
        let regarding = fields.iter().filter_map(|(name, value)| {
            let known = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
            let part = name.strip_prefix("involvedObject.")?;
            known.contains(&part).then(|| (regarding(part), value.clone()))
        });
        let more: Vec<(&str, String)> = regarding.collect();
        fields.extend(more);
        fields.push(("reportingController", text(&stored, &["reportingComponent"]).to_owned()));
        fields
    },
    columns: Borrowed(event::COLUMNS),
    row: |_, object, now| event::row(&as_stored(object), now),
    validate: |_, object, causes| event::validate(&as_stored(object), "reportingController", causes),
    validate_create: |_, object, causes| validate_new(&Field::root(&as_stored(object)), causes),
    stored_as: Some(&Conversion { stored: &EVENT, to: to_stored, from: from_stored }),
    ..BASE
});

/// `regarding.<part>`, of the parts that field selectors know.
fn regarding(part: &str) -> &'static str {
    match part {
        "kind" => "regarding.kind",
        "namespace" => "regarding.namespace",
        "name" => "regarding.name",
        "uid" => "regarding.uid",
        "apiVersion" => "regarding.apiVersion",
        "resourceVersion" => "regarding.resourceVersion",
        _ => "regarding.fieldPath",
    }
}

fn rename(object: &mut Value, api_version: &str, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let fields = ensure(object, &[]);
    fields.insert("apiVersion".to_owned(), json!(api_version));
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

fn to_stored(event: &mut Value) {
    rename(event, "v1", NAMES.into_iter());
}

fn from_stored(event: &mut Value) {
    rename(event, "events.k8s.io/v1", NAMES.into_iter().map(|(new, old)| (old, new)));
}

fn as_stored(event: &Value) -> Value {
    let mut stored = event.clone();
    to_stored(&mut stored);
    stored
}

/// What only the newer form asks of a new event. Upstream's paths are those of the stored form.
fn validate_new(event: &Field, causes: &mut Vec<Cause>) {
    event::validate_series(event, causes);
    let kind = event.get("type");
    if event.get("eventTime").text().is_empty() {
        causes.push(Cause::required("eventTime", ""));
    }
    if !matches!(kind.text(), "Normal" | "Warning") {
        causes.push(Cause::invalid("type", "", &format!("has invalid value: {}", kind.text())));
    }
    let is_set = [
        ("firstTimestamp", event.get("firstTimestamp").is_set()),
        ("lastTimestamp", event.get("lastTimestamp").is_set()),
        ("count", event.get("count").int().unwrap_or(0) != 0),
        ("source", event.get("source").entries().any(|(_, value)| !value.text().is_empty())),
    ];
    for (field, _) in is_set.iter().filter(|(_, set)| *set) {
        causes.push(Cause::invalid(*field, "", "needs to be unset"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// conformance: "should ensure that an event can be fetched, patched, deleted, and listed". That only the series of
    /// an Event changes is upstream's rule on paper: its strategy compares the new object with itself.
    #[test]
    fn conformance_an_events_note_is_patched() {
        let event = |note: &str| {
            json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "e", "namespace": "n" },
                "note": note, "reason": "Test", "type": "Normal", "action": "Do", "reportingInstance": "i",
                "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c",
                "regarding": { "namespace": "n", "kind": "Pod", "name": "p" } })
        };
        let mut causes = Vec::new();
        (EVENT_REGARDING.validate)(&EVENT_REGARDING, &event("second"), &mut causes);
        (EVENT_REGARDING.validate_update)(&EVENT_REGARDING, &event("second"), &event("first"), &mut causes);
        assert!(causes.is_empty(), "{causes:?}");
    }
}
