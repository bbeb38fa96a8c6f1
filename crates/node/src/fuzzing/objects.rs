//! What the API server reads: bodies in JSON and protobuf, patches, selectors, quantities. Their code is in `api`; they
//! are tried here, where memory can be counted.

use mainstay_api::apply::{self, Writer};
use mainstay_api::patch::{PatchType, apply_patch};
use mainstay_api::quantity::Quantity;
use mainstay_api::schema::decode::{self, FieldValidation};
use mainstay_api::selector::{Fields, Labels};
use mainstay_api::{Kind, int_or_string, jiff, kinds, names, protobuf, time};
use serde_json::{Value, json};

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"app":"a"},"annotations":{"x":"y"}},
"spec":{"containers":[{"name":"a","image":"b","ports":[{"containerPort":80,"protocol":"TCP"}],
"resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"env":[{"name":"A","value":"b"}]}],"tolerations":[{"key":"k","operator":"Exists"}]}}"#;

const STRATEGIC: &str = r#"{"metadata":{"labels":{"$retainKeys":["a"],"app":null}},"spec":{"$setElementOrder/containers":[{"name":"b"},
{"name":"a"}],"containers":[{"name":"a","$patch":"delete"},{"name":"b","image":"c","ports":[{"$patch":"replace"},{"containerPort":1}]}],
"$deleteFromPrimitiveList/finalizers":["x"]}}"#;

const JSON_PATCH: &str = r#"[{"op":"test","path":"/metadata/name","value":"a"},{"op":"copy","from":"/spec","path":"/metadata/labels/x"},
{"op":"move","from":"/metadata/annotations","path":"/metadata/b"},{"op":"add","path":"/spec/containers/-","value":{"name":"c"}},
{"op":"replace","path":"/spec/containers/0/image","value":"d"},{"op":"remove","path":"/spec/tolerations/0"}]"#;

const APPLIED: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"b":"c"}},"spec":{"containers":[{"name":"a","image":"e"}]}}"#;

/// What kubectl sends for a ConfigMap, and the Pod above with a few fields of each wire type.
const CONFIG_MAP: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0*\x002\x008\0B\0\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";
const DELETE_OPTIONS: &[u8] = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x04\x08\x1e\x22\0";
const POD_MESSAGE: &[u8] =
    b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x28\x0a\x0b\x0a\x01aZ\x06\x0a\x01k\x12\x01v\x12\x15\x12\x09\x0a\x01a\x12\x01b\x2a\x01c(\x1e2\x06Always";

/// The first byte says what the rest is.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts: [(u8, &[u8]); 14] = [
        (0, POD.as_bytes()),
        (1, JSON_PATCH.as_bytes()),
        (2, br#"{"metadata":{"labels":{"app":null,"x":"y"}},"spec":{"containers":[]}}"#),
        (3, STRATEGIC.as_bytes()),
        (4, APPLIED.as_bytes()),
        (5, CONFIG_MAP),
        (5, DELETE_OPTIONS),
        (5, POD_MESSAGE),
        (6, b"app in (a, b),!x,y notin (c),z=1,w!=2,v==3"),
        (7, b"metadata.name=a,status.phase!=Running,spec.nodeName==b\\,c"),
        (8, b"1.5Gi"),
        (8, b"-100e-3"),
        (9, b"2026-11-21T08:00:00.123456Z"),
        (9, b"33%"),
    ];
    texts.into_iter().map(|(what, text)| [&[what], text].concat()).collect()
}

/// One body or parameter.
pub fn run(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    let text = std::str::from_utf8(rest).unwrap_or_default();
    match what % 10 {
        0 => drop(decode::decode_bytes(&kinds::POD, rest, FieldValidation::Warn).map(|(object, _)| object.to_string())),
        1 => patch(PatchType::Json, rest),
        2 => patch(PatchType::Merge, rest),
        3 => patch(PatchType::Strategic, rest),
        4 => server_side_apply(rest),
        5 => message(rest),
        6 => {
            if let Ok(selector) = Labels::parse(text) {
                selector.matches_object(&pod());
                selector.matches_json(None);
            }
        }
        7 => drop(Fields::parse(&kinds::POD, text).map(|fields| fields.matches(&kinds::POD, &pod()))),
        8 => amount(text),
        _ => {
            time::parse(text).map(|found| (time::rfc3339(found), time::micro(found), time::age(found, now())));
            int_or_string::percent(text);
            int_or_string::scaled(&json!(text), i64::MAX, true);
            for rule in [
                names::subdomain,
                names::label,
                names::qualified,
                names::label_value,
                names::config_key,
                names::port_name,
            ] {
                rule(text);
            }
            names::safe_encode(text);
        }
    }
}

fn pod() -> Value {
    serde_json::from_str(POD).expect("JSON")
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

fn patch(patch_type: PatchType, patch: &[u8]) {
    if let Ok(mut patched) = apply_patch(&kinds::POD, patch_type, &pod(), patch)
        && decode::decode(&kinds::POD, &mut patched, FieldValidation::Strict).is_ok()
    {
        let writer = Writer { manager: "fuzz", subresource: "", now: now() };
        apply::manage_update(&kinds::POD, Some(&mut pod()), &mut patched, writer);
    }
}

fn server_side_apply(body: &[u8]) {
    let Ok((config, _)) = decode::decode_bytes(&kinds::POD, body, FieldValidation::Ignore) else { return };
    let writer = Writer { manager: "fuzz", subresource: "", now: now() };
    let Ok(made) = apply::apply(&kinds::POD, None, &config, false, writer) else { return };
    let again = apply::apply(&kinds::POD, Some(&made), &config, false, writer);
    assert_eq!(again.as_ref().ok(), Some(&made), "applying twice is applying once");
    let _ = apply::apply(&kinds::POD, Some(&pod()), &config, true, Writer { manager: "other", ..writer });
}

fn message(body: &[u8]) {
    let _ = protobuf::read_any(body);
    let kinds: [&Kind; 2] = [&kinds::POD, &kinds::CONFIG_MAP];
    for kind in kinds {
        if let Ok(mut object) = protobuf::read(kind, body) {
            let _ = decode::decode(kind, &mut object, FieldValidation::Warn);
        }
    }
}

fn amount(text: &str) {
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let shown = quantity.to_string();
    let again: Quantity = shown.parse().expect("what is printed is read");
    assert!(again == quantity, "{text} is printed as {shown}");
    let _ = (quantity + quantity, quantity - again, quantity.units(), quantity.milli());
}
