//! Bodies that are not as they should be, and those of custom resources.

use base64::Engine as _;
use serde_json::{Value, json};

use super::decode::{
    FieldValidation, MAX_STRICT_ERRORS, decode, decode_bytes, decode_config, decode_patched, decode_yaml, fits_depth,
};
use super::parse::MAX_DEPTH;
use crate::kinds::{self, Kind};

const STRICT: FieldValidation = FieldValidation::Strict;

fn foo() -> Kind {
    let definition = json!({
        "metadata": { "name": "foos.x.io" },
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "plural": "foos", "kind": "Foo" }, "versions": [{
            "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object",
                "properties": { "spec": { "type": "object", "properties": { "size": { "type": "integer" },
                    "tags": { "type": "array", "items": { "type": "string" } } } } } } } }] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    crate::custom::rows::rows(&definition.to_string().into()).expect("JSON").remove(0)
}

#[test]
fn conformance_bodies_of_custom_resources_are_cleaned_by_their_schema_and_metadata() {
    let kind = foo();
    let body = json!({ "metadata": { "name": "a", "labels": { "l": null }, "annotations": {}, "zz": 1,
        "creationTimestamp": "2026-11-21T06:25:07+02:00" },
        "spec": { "size": 0, "tags": [], "yy": { "a": 1 } }, "xx": 1 });
    let (object, mut found) = decode_bytes(&kind, body.to_string().as_bytes(), FieldValidation::Warn).expect("read");
    found.sort();
    let unknown = |name: &str| format!("unknown field \"{name}\"");
    assert_eq!(found, [unknown("metadata.zz"), unknown("spec.yy"), unknown("xx")]);
    // What is empty says something in a custom resource, but not in its metadata.
    let expected = json!({ "apiVersion": "x.io/v1", "kind": "Foo", "spec": { "size": 0, "tags": [] },
        "metadata": { "name": "a", "labels": { "l": "" }, "creationTimestamp": "2026-11-21T04:25:07Z" } });
    assert_eq!(object, expected);
    assert_eq!(decode_yaml(&kind, body.to_string().as_bytes(), FieldValidation::Ignore), Ok((expected, Vec::new())));
    let refused = decode_bytes(&kind, body.to_string().as_bytes(), STRICT).expect_err("strict");
    assert!(refused.message.contains("strict decoding error: ") && refused.message.contains("\"spec.yy\""));
    for wrong in [json!({ "metadata": { "labels": { "a": 1 } } }), json!({ "metadata": "a" })] {
        let refused = decode(&kind, &mut wrong.clone(), FieldValidation::Ignore).expect_err("no metadata");
        assert_eq!(refused.code, 400, "{wrong}");
        assert!(refused.message.contains("json: cannot unmarshal"), "{}", refused.message);
    }
}

#[test]
fn conformance_field_validation_has_three_words() {
    for (word, expected) in [
        ("", Some(FieldValidation::Warn)),
        ("Warn", Some(FieldValidation::Warn)),
        ("Ignore", Some(FieldValidation::Ignore)),
        ("Strict", Some(STRICT)),
        ("strict", None),
        ("x", None),
    ] {
        assert_eq!(FieldValidation::from_parameter(word), expected, "{word}");
    }
}

#[test]
fn conformance_configurations_are_json_or_yaml() {
    let json =
        " \n{ \"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": { \"a\": \"1\", \"a\": \"2\" }, \"zz\": 1 }";
    let (config, found) = decode_config(&kinds::CONFIG_MAP, json.as_bytes()).expect("JSON");
    assert_eq!(config["data"], json!({ "a": "2" }));
    assert_eq!(found, ["duplicate field \"data.a\"", "unknown field \"zz\""]);
    let other =
        "{ \"zz\": 1, \"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": { \"a\": \"1\", \"a\": \"2\" } }";
    let (_, found) = decode_config(&kinds::CONFIG_MAP, other.as_bytes()).expect("JSON");
    assert_eq!(found, ["unknown field \"zz\"", "duplicate field \"data.a\""], "in the order of the body");
    let yaml = "zz: 1\napiVersion: v1\nkind: ConfigMap\ndata:\n  a: '1'\n  a: '2'\n";
    let (config, found) = decode_config(&kinds::CONFIG_MAP, yaml.as_bytes()).expect("YAML");
    assert_eq!(config["data"], json!({ "a": "2" }));
    assert!(
        found.len() == 2 && found[0].contains("yaml: unmarshal errors:") && found[1].contains("\"zz\""),
        "{found:?}"
    );
    for (wrong, word) in [
        ("{", "json parse error"),
        ("a: [", "error converting YAML to JSON"),
        ("[]", "cannot unmarshal array into Go value of type v1.ConfigMap"),
        ("{\"apiVersion\":\"v1\",\"kind\":\"Secret\"}", "Secret in version \"v1\" cannot be handled as a ConfigMap"),
    ] {
        let refused = decode_config(&kinds::CONFIG_MAP, wrong.as_bytes()).expect_err(wrong);
        assert!(refused.code == 400 && refused.message.contains(word), "{wrong}: {}", refused.message);
    }
    let named = decode_bytes(&kinds::CONFIG_MAP, b"{", STRICT).expect_err("no JSON").message;
    assert!(
        named.starts_with("the object provided is unrecognized (must be of type ConfigMap): couldn't get"),
        "{named}"
    );
}

#[test]
fn conformance_what_a_patch_makes_has_its_kind_and_no_other() {
    let made = |mut object: Value| {
        let judged = decode_patched(&kinds::POD, &mut object, Vec::new(), STRICT, &|_| String::new());
        judged.map(|_| object).map_err(|status| status.code)
    };
    assert_eq!(made(json!({})), Ok(json!({ "apiVersion": "v1", "kind": "Pod" })));
    assert_eq!(made(json!({ "kind": "Secret" })), Err(400));
    assert_eq!(made(json!(null)), Err(400));
    assert_eq!(made(json!({ "zz": 1 })), Err(422));
}

/// Paths of Go's errors have the fields that lead to a value, and the struct that it is in.
#[test]
fn conformance_errors_of_types_say_where() {
    let told =
        |object: Value| decode(&kinds::POD, &mut object.clone(), FieldValidation::Ignore).expect_err("wrong").message;
    let within =
        |what: &str| format!("Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal {what}");
    let containers = |second: Value| {
        json!({ "spec": { "nodeSelector": { "a": "b" }, "containers": [
        { "name": "a", "ports": [{ "containerPort": 1 }], "env": [{ "name": "A" }] }, second] } })
    };
    for (object, what) in [
        (containers(json!({ "name": 1 })), "number into Go struct field Container.spec.containers.name of type string"),
        (containers(json!("c")), "string into Go struct field PodSpec.spec.containers of type v1.Container"),
        (
            json!({ "metadata": { "labels": { "a": "b", "c": true } } }),
            "bool into Go struct field ObjectMeta.metadata.labels.c of type string",
        ),
        (
            json!({ "metadata": { "labels": ["a"] } }),
            "array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            json!({ "spec": { "hostNetwork": "true" } }),
            "string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            json!({ "metadata": { "labels": { "a": "b" } }, "spec": 1 }),
            "number into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            json!({ "metadata": { "generation": 1.5 } }),
            "number 1.5 into Go struct field ObjectMeta.metadata.generation of type int64",
        ),
        (
            json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": {} } }] } }),
            "object into Go struct field EmptyDirVolumeSource.spec.volumes.emptyDir.sizeLimit of type \
                resource.Quantity",
        ),
    ] {
        assert_eq!(told(object), within(what));
    }
    let port = |port: Value| json!({ "spec": { "ports": [{ "port": 1, "targetPort": port }] } });
    let mut wrong = port(json!(1_099_511_627_776_i64));
    let refused = decode(&kinds::SERVICE, &mut wrong, FieldValidation::Ignore).expect_err("too large").message;
    assert!(
        refused.ends_with(
            "number 1099511627776 into Go struct field ServicePort.spec.ports.targetPort of type \
        intstr.IntOrString"
        ),
        "{refused}"
    );
    assert!(decode(&kinds::SERVICE, &mut port(json!("http")), FieldValidation::Ignore).is_ok());
    let quantity = json!({ "spec": { "resources": { "requests": { "storage": "1GiB" } } } });
    let refused = decode(&kinds::PERSISTENT_VOLUME_CLAIM, &mut quantity.clone(), FieldValidation::Ignore);
    let refused = refused.expect_err("no quantity").message;
    assert!(refused.contains("quantities must match the regular expression"), "{refused}");
}

#[test]
fn conformance_bytes_are_base64_with_line_breaks() {
    let read = |text: &str| {
        let mut secret = json!({ "data": { "a": text } });
        decode(&kinds::SECRET, &mut secret, STRICT)
            .map(|_| secret["data"]["a"].clone())
            .map_err(|status| status.message)
    };
    let right = base64::engine::general_purpose::STANDARD.encode("hallo, welt");
    let (head, tail) = right.split_at(8);
    for between in ["", "\n", "\r", "\r\n\r\n"] {
        assert_eq!(read(&format!("{head}{between}{tail}")), Ok(json!(right)));
    }
    for (wrong, at) in [("a", 0), ("aGFsb", 4), ("aGFs bG8=", 4), ("a$==", 1), ("aGFsbG8", 4)] {
        let refused = read(wrong).expect_err(wrong);
        assert!(refused.ends_with(&format!("illegal base64 data at input byte {at}")), "{wrong}: {refused}");
    }
}

#[test]
fn x4_bodies_are_nested_up_to_a_bound_and_name_a_bounded_number_of_unknown_fields() {
    let nested = |depth: usize| {
        (0..depth)
            .fold(json!(1), |below, _| if depth.is_multiple_of(2) { json!([below]) } else { json!({ "a": below }) })
    };
    for depth in [0, 1, 6, 7] {
        let value = nested(depth);
        assert!(fits_depth(&value, depth) && fits_depth(&value, depth + 1), "{depth}");
        assert!(depth == 0 || !fits_depth(&value, depth - 1), "{depth}");
    }
    let wide = json!([1, [2], { "a": [[3]] }]);
    assert!(fits_depth(&wide, 4) && !fits_depth(&wide, 3));
    // Of what may be anything, as deep as there is room where it stands.
    let revision = |depth: usize| {
        let data = (0..depth).fold(json!(1), |below, _| json!({ "a": below }));
        decode(&kinds::CONTROLLER_REVISION, &mut json!({ "revision": 1, "data": data }), STRICT).is_ok()
    };
    assert!(revision(MAX_DEPTH - 1) && !revision(MAX_DEPTH));
    for count in [MAX_STRICT_ERRORS, MAX_STRICT_ERRORS + 1] {
        let fields: serde_json::Map<_, _> = (0..count).map(|number| (format!("u{number:03}"), json!(1))).collect();
        let both = json!({ "metadata": fields, "spec": fields });
        for kind in [&kinds::POD, &foo()] {
            let found = decode(kind, &mut both.clone(), FieldValidation::Warn).expect("read");
            assert_eq!(found.len(), MAX_STRICT_ERRORS);
        }
    }
}
