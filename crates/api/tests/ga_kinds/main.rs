//! The kinds of the GA groups from outside: of each a full object, an empty one, one with unknown fields and invalid
//! ones, and the row that kubectl prints.

mod admission;
mod flowcontrol;
mod networking;
mod resource;
mod workloads;

use mainstay_api::jiff::Timestamp;
use mainstay_api::schema::{FieldValidation, decode};
use mainstay_api::{Kind, Status, metadata};
use serde_json::{Map, Value, json};

/// What is expected of one kind.
pub struct Case {
    pub kind: &'static Kind,
    /// An object with every field that matters, as a client sends it.
    pub full: Value,
    /// Its cells, but the last (age) where the kind has one, joined with `|`.
    pub row: &'static str,
    /// What is wrong with an object that has a name and nothing else; nothing where that will do.
    pub empty: &'static [&'static str],
    /// A merge patch of the full object, and what is wrong then.
    pub invalid: Vec<(Value, &'static str)>,
    /// A merge patch of the full object as an update, and what is wrong with that.
    pub frozen: Vec<(Value, &'static str)>,
}

/// `patch` laid over `base`, as a merge patch.
pub fn with(base: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut out = base.as_object().cloned().unwrap_or_else(Map::new);
    for (key, value) in patch {
        if value.is_null() {
            out.remove(key);
        } else {
            let merged = with(out.get(key).unwrap_or(&Value::Null), value);
            out.insert(key.clone(), merged);
        }
    }
    out.into()
}

/// Whether everything of `sent` is in `stored`, which may have more fields.
fn holds(stored: &Value, sent: &Value) -> bool {
    match (stored, sent) {
        (Value::Object(stored), Value::Object(sent)) => {
            sent.iter().all(|(name, value)| stored.get(name).is_some_and(|stored| holds(stored, value)))
        }
        (Value::Array(stored), Value::Array(sent)) => {
            stored.len() == sent.len() && stored.iter().zip(sent).all(|(stored, sent)| holds(stored, sent))
        }
        _ => stored == sent,
    }
}

/// The object as it is stored, or the message of the 422.
pub fn create(kind: &Kind, object: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    decode(kind, &mut object, FieldValidation::Strict).map_err(|status| status.message)?;
    (kind.defaults)(kind, &mut object);
    (kind.prepare_create)(kind, &mut object);
    let mut causes = Vec::new();
    metadata::validate(kind, &object, &mut causes);
    (kind.validate)(kind, &object, &mut causes);
    (kind.validate_create)(kind, &object, &mut causes);
    let name = object["metadata"]["name"].as_str().unwrap_or("");
    if causes.is_empty() { Ok(object) } else { Err(Status::invalid(kind, name, &causes).message) }
}

/// The object after an update, or the message of the 422.
pub fn update(kind: &Kind, old: &Value, new: &Value) -> Result<Value, String> {
    let mut new = new.clone();
    (kind.defaults)(kind, &mut new);
    (kind.prepare_update)(kind, &mut new, old);
    let mut causes = Vec::new();
    metadata::validate_update(&new, old, &mut causes);
    (kind.validate)(kind, &new, &mut causes);
    (kind.validate_update)(kind, &new, old, &mut causes);
    if causes.is_empty() { Ok(new) } else { Err(Status::invalid(kind, "", &causes).message) }
}

/// The cells of a row.
pub fn cells(kind: &Kind, object: &Value) -> String {
    let cells = (kind.row)(kind, object, Timestamp::UNIX_EPOCH);
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    let is_age = |index: usize| kind.columns.get(index).is_some_and(|column| column.name == "Age");
    let shown = cells.iter().enumerate().filter(|(index, _)| !is_age(*index)).map(|(_, cell)| text(cell));
    shown.collect::<Vec<_>>().join("|")
}

fn check(case: &Case) {
    let kind = case.kind;
    let stored = create(kind, &case.full).unwrap_or_else(|why| panic!("{kind:?} full: {why}"));
    // Nothing lost: everything that was sent is there, but what a client may not write.
    let mut sent = case.full.clone();
    sent.as_object_mut().map(|map| map.remove("status"));
    assert!(holds(&stored, &sent), "{kind:?}: {stored}\nwas sent {sent}");
    assert_eq!(cells(kind, &with(&stored, &case.full)), case.row, "{kind:?}");
    assert_eq!(update(kind, &stored, &stored).as_ref(), Ok(&stored), "{kind:?}: an update that changes nothing");

    let mut empty = json!({ "metadata": { "name": "e" } });
    if kind.namespaced {
        empty["metadata"]["namespace"] = json!("default");
    }
    match create(kind, &empty) {
        Ok(_) => assert!(case.empty.is_empty(), "{kind:?} empty is accepted"),
        Err(message) => {
            assert!(!case.empty.is_empty(), "{kind:?} empty: {message}");
            for wrong in case.empty {
                assert!(message.contains(wrong), "{kind:?} empty: {message}\nshould say {wrong}");
            }
        }
    }

    let mut unknown = case.full.clone();
    unknown["nobodyKnows"] = json!({ "this": 1 });
    let said = create(kind, &unknown).expect_err("strict");
    assert!(said.contains("unknown field \"nobodyKnows\""), "{kind:?}: {said}");
    let warnings = decode(kind, &mut unknown, FieldValidation::Warn).expect("dropped");
    assert_eq!((warnings.len(), unknown.get("nobodyKnows")), (1, None), "{kind:?}: {warnings:?}");

    for (patch, wrong) in &case.invalid {
        let said = create(kind, &with(&case.full, patch)).expect_err(wrong);
        assert!(said.contains(wrong), "{kind:?} {patch}: {said}\nshould say {wrong}");
    }
    for (patch, wrong) in &case.frozen {
        let said = update(kind, &stored, &with(&stored, patch)).expect_err(wrong);
        assert!(said.contains(wrong), "{kind:?} {patch}: {said}\nshould say {wrong}");
    }
}

#[test]
fn every_kind_takes_and_refuses_what_upstreams_does() {
    let all = [networking::cases(), workloads::cases(), admission::cases(), flowcontrol::cases(), resource::cases()];
    let mut seen = Vec::new();
    for case in all.iter().flatten() {
        check(case);
        seen.push((case.kind.api_version(), case.kind.kind.to_string()));
    }
    assert_eq!(seen.len(), 30, "{seen:?}");
}
