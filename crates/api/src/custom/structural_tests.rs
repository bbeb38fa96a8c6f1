//! What a schema must say to be structural, fault by fault.

use serde_json::{Value, json};

use super::patterns::Patterns;
use super::structural::validate;

fn of_root(schema: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    validate(schema, "s", &mut Patterns::default(), &mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// The faults of a field, by where they are below it.
fn of_field(field: &Value) -> Vec<String> {
    let faults = of_root(&json!({ "type": "object", "properties": { "f": field } }));
    faults.into_iter().map(|fault| fault.strip_prefix("s.properties[f]").unwrap_or(&fault).to_owned()).collect()
}

fn check(table: &[(Value, &[&str])]) {
    for (field, expected) in table {
        assert_eq!(of_field(field), *expected, "{field}");
    }
}

fn list(kind: &str, items: Value) -> Value {
    json!({ "type": "array", "x-kubernetes-list-type": kind, "items": items })
}

fn keyed(keys: &[&str], items: Value) -> Value {
    let mut keyed = list("map", items);
    keyed["x-kubernetes-list-map-keys"] = json!(keys);
    keyed
}

/// Items of this key, which is required, and another field.
fn item(key: Value) -> Value {
    let properties = json!({ "k": key, "l": { "type": "string" } });
    json!({ "type": "object", "required": ["k"], "properties": properties })
}

#[test]
fn conformance_every_field_has_a_type() {
    let missing = "Required value: must not be empty for specified object fields";
    check(&[
        (json!({ "type": "string" }), &[]),
        (json!({ "x-kubernetes-preserve-unknown-fields": true }), &[]),
        (json!({ "x-kubernetes-int-or-string": true }), &[]),
        (json!({}), &[&format!(".type: {missing}")]),
        (json!({ "type": "object", "properties": { "g": {} } }), &[&format!(".properties[g].type: {missing}")]),
        (json!({ "type": "object", "additionalProperties": {} }), &[&format!(".additionalProperties.type: {missing}")]),
        (
            json!({ "type": "array", "items": {} }),
            &[".items.type: Required value: must not be empty for specified array items"],
        ),
        (
            json!({ "type": "zap" }),
            &[".type: Unsupported value: \"zap\": supported values: \"array\", \"boolean\", \
            \"integer\", \"number\", \"object\", \"string\""],
        ),
        (
            json!({ "x-kubernetes-embedded-resource": true }),
            &[".type: Required value: must be object if x-kubernetes-embedded-resource is true"],
        ),
        (
            json!({ "type": "string", "x-kubernetes-embedded-resource": true }),
            &[".type: Invalid value: \"string\": must be object if x-kubernetes-embedded-resource is true"],
        ),
        (json!({ "type": "object", "x-kubernetes-embedded-resource": true }), &[]),
        (json!({ "type": "array" }), &[".items: Required value: must be specified"]),
        (
            json!({ "type": "array", "items": [{ "type": "string" }] }),
            &[".items: Forbidden: items must be a schema object and not an array"],
        ),
    ]);
    assert_eq!(of_root(&json!({ "properties": {} })), ["s.type: Required value: must not be empty at the root"]);
    let root = of_root(&json!({ "type": "array", "items": { "type": "string" } }));
    assert_eq!(root, ["s.type: Invalid value: \"array\": must be object at the root"]);
    assert_eq!(of_root(&json!({ "type": "object" })), Vec::<String>::new());
}

#[test]
fn conformance_what_a_structural_schema_may_not_say() {
    for name in [
        "definitions",
        "dependencies",
        "deprecated",
        "discriminator",
        "id",
        "patternProperties",
        "readOnly",
        "writeOnly",
        "xml",
        "$ref",
    ] {
        let said = json!({ "type": "string", name: true });
        assert_eq!(of_field(&said), [format!(".{name}: Forbidden: {name} is not supported")]);
        assert_eq!(of_field(&json!({ "type": "string", name: null })), Vec::<String>::new());
    }
    let exclusive = ".additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive";
    let text = json!({ "type": "string" });
    check(&[
        (
            json!({ "type": "array", "items": text, "uniqueItems": true }),
            &[".uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes \
                quadratic"],
        ),
        (json!({ "type": "array", "items": text, "uniqueItems": false }), &[]),
        (
            json!({ "type": "object", "additionalProperties": false }),
            &[".additionalProperties: Forbidden: additionalProperties cannot be set to false"],
        ),
        (json!({ "type": "object", "additionalProperties": true }), &[]),
        (json!({ "type": "object", "additionalProperties": null, "properties": { "a": text } }), &[]),
        (json!({ "type": "object", "additionalProperties": text, "properties": { "a": text } }), &[exclusive]),
        (json!({ "type": "object", "additionalProperties": text, "properties": {} }), &[]),
        (json!({ "type": "string", "nullable": true }), &[]),
        (json!({ "type": "string", "pattern": "^a$" }), &[]),
    ]);
    assert!(of_field(&json!({ "type": "string", "pattern": "(" }))[0].starts_with(".pattern: Invalid value: \"(\""));
    let root = |more: Value| {
        let mut root = json!({ "type": "object" });
        crate::object::merge(&mut root, more);
        of_root(&root)
    };
    let at_root = ["s.additionalProperties: Forbidden: must not be used at the root"];
    assert_eq!(root(json!({ "additionalProperties": { "type": "string" } })), at_root);
    assert_eq!(root(json!({ "additionalProperties": true })), at_root);
    assert_eq!(
        root(json!({ "additionalProperties": false })),
        ["s.additionalProperties: Forbidden: additionalProperties cannot be set to false"]
    );
    assert_eq!(root(json!({ "nullable": true })), ["s.nullable: Forbidden: nullable cannot be true at the root"]);
}

#[test]
fn conformance_what_the_root_may_say_of_what_every_object_has() {
    let text = json!({ "type": "string" });
    let own = |name: &str, field: Value| of_root(&json!({ "type": "object", "properties": { name: field } }));
    let none = Vec::<String>::new();
    for name in ["apiVersion", "kind"] {
        assert_eq!(own(name, text.clone()), none);
        let wrong = own(name, json!({ "type": "integer" }));
        assert_eq!(wrong, [format!("s.properties[{name}].type: Invalid value: \"integer\": must be string")]);
    }
    let wrong = own("metadata", text.clone());
    assert_eq!(wrong, ["s.properties[metadata].type: Invalid value: \"string\": must be object"]);
    let metadata = |names: &[&str]| {
        let fields: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
        json!({ "type": "object", "properties": fields })
    };
    assert_eq!(own("metadata", metadata(&["name", "generateName"])), none);
    let more = own("metadata", metadata(&["name", "labels"]));
    assert_eq!(
        more,
        ["s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, \
        but metadata is implicitly specified"]
    );
    // A field of the same name further down is like any other.
    let below =
        json!({ "type": "object", "properties": { "metadata": metadata(&["labels"]), "kind": { "type": "integer" } } });
    assert_eq!(of_field(&below), none);
}

#[test]
fn conformance_keyed_lists_say_by_what() {
    let text = json!({ "type": "string" });
    check(&[
        (keyed(&["k"], item(text.clone())), &[]),
        (
            keyed(&[], item(text.clone())),
            &[".x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"],
        ),
        (
            json!({ "type": "array", "x-kubernetes-list-type": "set", "x-kubernetes-list-map-keys": ["k"],
                "items": text }),
            &[".x-kubernetes-list-map-keys: Forbidden: must not be specified if x-kubernetes-list-type is not map"],
        ),
        (
            keyed(&["z"], item(text.clone())),
            &[".x-kubernetes-list-map-keys: Invalid value: [\"z\"]: entries must all be names of item properties"],
        ),
        (
            keyed(&["k", "k"], item(text.clone())),
            &[".x-kubernetes-list-map-keys: Invalid value: [\"k\",\"k\"]: must not contain duplicate entries"],
        ),
        (
            keyed(&["k", "l"], item(text.clone())),
            &[".items.properties[l].default: Required value: this property is in x-kubernetes-list-map-keys, so it \
                must have a default or be a required property"],
        ),
        (
            keyed(&["k"], item(json!({ "type": "object" }))),
            &[".items.properties[k].type: Invalid value: \"object\": must be a scalar type if parent array's \
                x-kubernetes-list-type is map"],
        ),
        (
            keyed(&["k"], item(json!({ "type": "string", "nullable": true }))),
            &[".items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it \
                cannot be nullable"],
        ),
    ]);
    // A key may have a default instead of being required; items that are no objects have none.
    let defaulted = json!({ "type": "object", "properties": { "k": { "type": "string", "default": "d" } } });
    assert_eq!(of_field(&keyed(&["k"], defaulted)), Vec::<String>::new());
    let mut untyped = item(text);
    untyped["type"] = "string".into();
    assert_eq!(
        of_field(&keyed(&["k"], untyped)),
        [".items.type: Invalid value: \"string\": must be object if parent array's x-kubernetes-list-type is map"]
    );
}

#[test]
fn conformance_lists_and_maps_say_how_they_are_merged() {
    let text = json!({ "type": "string" });
    let atomic = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let array_in = |own: &str| json!({ "type": "array", "x-kubernetes-list-type": own, "items": text });
    check(&[
        (list("atomic", text.clone()), &[]),
        (list("set", text.clone()), &[]),
        (
            list("zap", text.clone()),
            &[".x-kubernetes-list-type: Unsupported value: \"zap\": supported values: \"atomic\", \"map\", \"set\""],
        ),
        (
            json!({ "type": "string", "x-kubernetes-list-type": "atomic" }),
            &[".type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified"],
        ),
        (
            list("set", json!({ "type": "string", "nullable": true })),
            &[".items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is set"],
        ),
        (list("atomic", json!({ "type": "string", "nullable": true })), &[]),
        (list("set", array_in("atomic")), &[]),
        (list("set", json!({ "type": "array", "items": text })), &[]),
        (list("set", array_in("set")), &[&format!(".items.x-kubernetes-list-type: Invalid value: \"set\": {atomic}")]),
        (list("atomic", array_in("set")), &[]),
        (
            list("set", json!({ "type": "object" })),
            &[&format!(".items.x-kubernetes-map-type: Invalid value: \"\": {atomic}")],
        ),
        (list("set", json!({ "type": "object", "x-kubernetes-map-type": "atomic" })), &[]),
        (json!({ "type": "object", "x-kubernetes-map-type": "granular" }), &[]),
        (
            json!({ "type": "object", "x-kubernetes-map-type": "zap" }),
            &[".x-kubernetes-map-type: Unsupported value: \"zap\": supported values: \"atomic\", \"granular\""],
        ),
        (
            json!({ "type": "string", "x-kubernetes-map-type": "atomic" }),
            &[".type: Invalid value: \"string\": must be object if x-kubernetes-map-type is specified"],
        ),
    ]);
}

#[test]
fn conformance_what_stands_below_a_junctor_is_known_outside() {
    let fields =
        json!({ "a": { "type": "array", "items": { "type": "object", "properties": { "b": { "type": "string" } } } } });
    let with = |word: &str, schema: Value| json!({ "type": "object", "properties": fields, word: schema });
    let none: &[&str] = &[];
    let b = |inner: Value| json!({ "properties": { "a": { "items": { "properties": { "b": inner } } } } });
    for word in ["allOf", "anyOf", "oneOf"] {
        assert_eq!(of_field(&with(word, json!([b(json!({ "minLength": 1 }))]))), none);
        assert_eq!(
            of_field(&with(word, json!([{}, { "properties": { "z": {} } }]))),
            [format!(
                ".properties[z]: Required value: because it is defined in s.properties[f].{word}[1].properties[z]"
            )]
        );
    }
    assert_eq!(of_field(&with("not", b(json!({ "maxLength": 1 })))), none);
    assert_eq!(
        of_field(&with("not", json!({ "items": { "minimum": 1 } }))),
        [".items: Required value: because it is defined in s.properties[f].not.items"]
    );
    // Said in vain is not said.
    let empty =
        json!({ "type": "", "nullable": false, "default": null, "x-kubernetes-list-map-keys": [], "description": "" });
    assert_eq!(of_field(&with("not", empty)), none);
    for (name, value, why) in [
        ("type", json!("string"), "empty"),
        ("additionalProperties", json!({}), "undefined"),
        ("default", json!(0), "undefined"),
        ("title", json!("t"), "empty"),
        ("nullable", json!(true), "false"),
        ("x-kubernetes-list-map-keys", json!(["k"]), "empty"),
        ("x-kubernetes-map-type", json!("atomic"), "undefined"),
    ] {
        assert_eq!(
            of_field(&with("not", json!({ name: value }))),
            [format!(".not.{name}: Forbidden: must be {why} to be structural")]
        );
    }
    let nested = with("not", json!({ "properties": { "a": {}, "metadata": {} } }));
    assert!(
        of_field(&nested)
            .contains(&".not.properties[metadata]: Forbidden: must not be specified in a nested context".to_owned())
    );
    // Lists below say nothing of how they are merged, and are not asked to.
    assert_eq!(of_field(&with("allOf", json!([{ "properties": { "a": { "items": {} } } }]))), none);
}

#[test]
fn x4_schemas_are_nested_up_to_a_bound() {
    let nested = |depth: usize| {
        (0..depth).fold(json!({ "type": "string" }), |below, _| json!({ "type": "array", "items": below }))
    };
    assert_eq!(of_field(&nested(99)), Vec::<String>::new());
    let deeper = of_field(&nested(100));
    assert!(
        deeper.len() == 1 && deeper[0].ends_with("Forbidden: schemas may not be nested deeper than 100"),
        "{deeper:?}"
    );
    for word in ["additionalProperties", "properties"] {
        let inside = |below: Value| if word == "properties" { json!({ "p": below }) } else { below };
        let nested =
            (0..200).fold(json!({ "type": "string" }), |below, _| json!({ "type": "object", word: inside(below) }));
        assert_eq!(of_field(&nested).len(), 1, "{word}");
    }
    let many: serde_json::Map<String, Value> = (0..1_000).map(|number| (number.to_string(), json!({}))).collect();
    assert_eq!(of_field(&json!({ "type": "object", "properties": many })).len(), 100);
}
