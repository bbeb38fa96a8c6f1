//! Objects written as protobuf and read again, and messages that somebody else wrote. Their code is in `api`.

use mainstay_api::schema::decode::{self, FieldValidation};
use mainstay_api::{Kind, kinds, protobuf};
use serde_json::Value;

const SET: &str = r#"{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"a","creationTimestamp":"2026-11-21T22:00:00Z",
"managedFields":[{"manager":"m","operation":"Update","time":"2026-11-21T22:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]},
"spec":{"replicas":3,"serviceName":"s","selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{
"containers":[{"name":"c","image":"i","ports":[{"containerPort":80,"hostPort":0}],"livenessProbe":{"httpGet":{"port":"http","path":"/"}},
"resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"securityContext":{"runAsUser":-1,"privileged":false}}],"tolerations":[{"operator":"Exists"}]}},
"volumeClaimTemplates":[{"metadata":{"name":"d"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}]}}"#;

const SECRET: &str = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"},"data":{"k":"AAEC/w=="},"immutable":true,"type":"Opaque"}"#;

const DEFINITION: &str = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"a.b.c"},"spec":{
"group":"b.c","scope":"Cluster","names":{"plural":"a","kind":"A"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{
"type":"object","properties":{"x":{"type":"array","items":{"type":"string","enum":["a",1,null]},"default":[1.5,{"a":true}]},
"y":{"type":"object","additionalProperties":{"x-kubernetes-int-or-string":true,"minimum":0.5}}}}}}]}}"#;

const KINDS: [(&Kind, &str); 3] =
    [(&kinds::STATEFUL_SET, SET), (&kinds::SECRET, SECRET), (&kinds::CUSTOM_RESOURCE_DEFINITION, DEFINITION)];

/// The first byte says which kind, and whether what follows is JSON or a message.
pub fn seeds() -> Vec<Vec<u8>> {
    let both = KINDS.iter().zip(0_u8..).flat_map(|((kind, text), index)| {
        let object: Value = serde_json::from_str(text).expect("JSON");
        let message = protobuf::write(&kind.type_name, &object).expect("a message");
        [[&[2 * index], text.as_bytes()].concat(), [&[2 * index + 1], &message[..]].concat()]
    });
    both.collect()
}

/// One object, or one message.
pub fn run(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    let Some((kind, _)) = KINDS.get(usize::from(what / 2) % KINDS.len()) else { return };
    let read = if what % 2 == 0 {
        decode::decode_bytes(kind, rest, FieldValidation::Ignore).map(|(object, _)| object)
    } else {
        protobuf::read(kind, rest).and_then(|mut object| {
            decode::decode(kind, &mut object, FieldValidation::Ignore)?;
            Ok(object)
        })
    };
    let Ok(object) = read else { return };
    // Empty texts and lists that Go's structs do not tell from missing ones are lost once; nothing is lost twice.
    let Some(once) = again(kind, &object) else { return };
    let twice = again(kind, &once);
    assert_eq!(twice.as_ref(), Some(&once), "written and read, it is another object");
}

fn again(kind: &Kind, object: &Value) -> Option<Value> {
    let message = protobuf::write(&kind.type_name, object).ok()?;
    let mut back = protobuf::read(kind, &message).expect("what is written is read");
    decode::decode(kind, &mut back, FieldValidation::Ignore).expect("and is of the type");
    Some(back)
}
