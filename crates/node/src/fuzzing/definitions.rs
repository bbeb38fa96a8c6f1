//! CustomResourceDefinitions and objects of the kinds that they define: the structural check, what is pruned, what is
//! defaulted, what is wrong. Their code is in `api`.

use mainstay_api::custom::rows::rows;
use mainstay_api::schema::decode::{FieldValidation, decode, decode_bytes};
use mainstay_api::{Kind, kinds};
use mainstay_runtime::fuzzing::{join, parts};
use serde_json::json;

const SCHEMA: &str = r#"{"type":"object","required":["spec"],"properties":{"spec":{"type":"object","default":{},"properties":{
"size":{"type":"integer","minimum":1,"maximum":9,"default":3},"name":{"type":"string","pattern":"^[a-z]*$","maxLength":5},
"mode":{"type":"string","enum":["a","b"],"default":"a"},"port":{"x-kubernetes-int-or-string":true},
"free":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"at":{"type":"string","format":"date-time"},
"map":{"type":"object","additionalProperties":{"type":"object","properties":{"v":{"type":"boolean","default":true}}}},
"set":{"type":"array","x-kubernetes-list-type":"set","maxItems":3,"items":{"type":"string"}},
"keyed":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],
"properties":{"k":{"type":"string"},"n":{"type":"number","nullable":true,"multipleOf":0.5}}}},
"pod":{"type":"object","x-kubernetes-embedded-resource":true,"x-kubernetes-preserve-unknown-fields":true}},
"oneOf":[{"required":["name"]},{"not":{"required":["mode"]}}],
"x-kubernetes-validations":[{"rule":"self.size < 9 || has(self.name)","message":"no"}]}}}"#;

const OBJECT: &str = r#"{"apiVersion":"a.example.com/v1","kind":"Thing","metadata":{"name":"x","labels":{"a":"b"}},"spec":{"size":4,
"name":"abc","mode":"b","port":"http","free":{"x":{"y":[1]}},"at":"2026-11-21T22:00:00Z","map":{"k":{"w":1},"l":{"v":false}},
"set":["a","b"],"keyed":[{"k":"a","n":1.5},{"k":"b","n":null}],"pod":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}},"z":1}}"#;

fn definition(schema: &str) -> String {
    let schema: serde_json::Value = serde_json::from_str(schema).expect("JSON");
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.a.example.com" },
        "spec": { "group": "a.example.com", "scope": "Namespaced",
            "names": { "plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList",
                "shortNames": ["th"] },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {},
                "scale": { "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size" } },
                "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }],
                "selectableFields": [{ "jsonPath": ".spec.mode" }], "schema": { "openAPIV3Schema": schema } }] } })
    .to_string()
}

/// A definition and an object each.
pub fn seeds() -> Vec<Vec<u8>> {
    let anything = r#"{"type":"object","x-kubernetes-preserve-unknown-fields":true}"#;
    [SCHEMA, anything].iter().map(|schema| join(&[definition(schema).as_bytes(), OBJECT.as_bytes()])).collect()
}

/// One definition, and one object of it where it is sound.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let kind = &kinds::CUSTOM_RESOURCE_DEFINITION;
    let Ok((mut definition, _)) = decode_bytes(kind, part(0), FieldValidation::Warn) else { return };
    (kind.defaults)(kind, &mut definition);
    (kind.prepare_create)(kind, &mut definition);
    let mut causes = Vec::new();
    (kind.validate)(kind, &definition, &mut causes);
    (kind.validate_create)(kind, &definition, &mut causes);
    if !causes.is_empty() {
        return;
    }
    definition["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
    for kind in rows(&definition.to_string().into()).unwrap_or_default() {
        object(&kind, part(1));
    }
}

fn object(kind: &Kind, body: &[u8]) {
    let Ok((mut object, _)) = decode_bytes(kind, body, FieldValidation::Warn) else { return };
    (kind.defaults)(kind, &mut object);
    let mut again = object.clone();
    if decode(kind, &mut again, FieldValidation::Ignore).is_ok() {
        (kind.defaults)(kind, &mut again);
        assert_eq!(again, object, "what was pruned and defaulted once stays as it is");
    }
    (kind.validate)(kind, &object, &mut Vec::new());
    (kind.validate_update)(kind, &object, &again, &mut Vec::new());
}
