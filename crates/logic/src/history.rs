//! Revisions of a pod template: what they hold, when two are the same, how they are named.
//!
//! `data` is upstream's format, a strategic merge patch `{"spec":{"template":{…,"$patch":"replace"}}}`, so that
//! `kubectl rollout history` and `undo` work on it. Two templates are the same when they are equal after this server's
//! defaults were applied to both: a server that spells a default differently restarts nothing (S11).

use k8s_openapi::api::core::v1::PodTemplateSpec;
use mainstay_api::Kind;
use mainstay_api::schema;
use serde_json::{Value, json};

pub use revisions::{Chosen, History, name};

mod revisions;

/// The label of a ControllerRevision with its hash.
pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// The label of a pod with the revision that it was made from: a StatefulSet's by the ControllerRevision's name, a
/// DaemonSet's by its hash.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// The data of a ControllerRevision for a template.
pub fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    if let Value::Object(fields) = &mut template {
        fields.insert("$patch".into(), json!("replace"));
    }
    json!({ "spec": { "template": template } })
}

/// The template in a ControllerRevision's data; the default one where there is none that can be read.
pub fn template(data: &Value) -> PodTemplateSpec {
    let template = data.pointer("/spec/template").cloned().unwrap_or_default();
    serde_json::from_value(template).unwrap_or_default()
}

/// A template as it compares: with `kind`'s defaults, without what means "not set" and without what revisions add to
/// it.
pub fn normal(kind: &Kind, template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove("pod-template-hash");
    }
    let mut object = json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "spec": { "template": template } });
    // As every write is read: what was stored before a server did so (`annotations: {}`) is no other template.
    schema::drop_empty(kind, &mut object);
    (kind.defaults)(kind, &mut object);
    object.pointer_mut("/spec/template").map(Value::take).unwrap_or_default()
}

/// The hash of a template that names its revision; `collisions` tells apart different templates of one hash.
pub fn hash(normal: &Value, collisions: i32) -> String {
    let mut hash = fnv1a(FNV_OFFSET, normal.to_string().as_bytes());
    if collisions > 0 {
        hash = fnv1a(hash, &collisions.to_le_bytes());
    }
    safe(hash)
}

/// Five letters for a generated name, the same for the same seed: decisions have no randomness.
pub fn suffix(uid: &str, revision: u64, index: u64) -> String {
    let mut hash = fnv1a(FNV_OFFSET, uid.as_bytes());
    hash = fnv1a(hash, &revision.to_le_bytes());
    let mut hash = fnv1a(hash, &index.to_le_bytes());
    let mut name = String::new();
    for _ in 0..5 {
        name.push(letter(hash));
        hash = hash.wrapping_mul(16_777_619) ^ (hash >> 15);
    }
    name
}

const FNV_OFFSET: u32 = 2_166_136_261;

fn fnv1a(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

/// Kubernetes' alphabet for generated names: no vowels and nothing that looks like one, so that no name is a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn letter(number: u32) -> char {
    char::from(ALPHABET[(number % 27) as usize])
}

fn safe(hash: u32) -> String {
    hash.to_string().bytes().map(|digit| letter(u32::from(digit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_api::kinds::STATEFUL_SET;

    fn template_of(json: Value) -> PodTemplateSpec {
        serde_json::from_value(json).unwrap_or_default()
    }

    /// S11: a name of a revision is one for good; a server that hashes otherwise would find none of the old ones.
    #[test]
    fn s11_a_template_has_the_name_that_it_always_had() {
        let template = template_of(
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}),
        );
        let name = |collisions| hash(&normal(&STATEFUL_SET, &template), collisions);
        assert_eq!((name(0), name(1)), ("5f47fb68b7".to_owned(), "68cb44cc86".to_owned()));
    }

    /// S11: what differs only in how it is written is the same revision.
    #[test]
    fn equal_by_content_s11() {
        let plain = template_of(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        );
        let stored = template(&data(&plain));
        assert_eq!(normal(&STATEFUL_SET, &plain), normal(&STATEFUL_SET, &stored));
        let mut defaulted = json!({"spec": {"template": plain}});
        (STATEFUL_SET.defaults)(&STATEFUL_SET, &mut defaulted);
        let defaulted = template(&defaulted);
        assert_eq!(hash(&normal(&STATEFUL_SET, &plain), 0), hash(&normal(&STATEFUL_SET, &defaulted), 0));
        let other = template_of(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "j"}]}}),
        );
        assert_ne!(normal(&STATEFUL_SET, &plain), normal(&STATEFUL_SET, &other));
        let emptied = template_of(json!({"metadata": {"labels": {"a": "b"}, "annotations": {}}, "spec": {
            "hostNetwork": false, "volumes": [], "nodeSelector": {}, "containers": [{"name": "c", "image": "i",
                "resources": {"limits": {}}, "tty": false, "env": []}]}}));
        assert_eq!(normal(&STATEFUL_SET, &plain), normal(&STATEFUL_SET, &emptied), "upstream leaves out what is empty");
        assert_ne!(hash(&normal(&STATEFUL_SET, &plain), 0), hash(&normal(&STATEFUL_SET, &plain), 1));
        let divided = |divisor: Option<&str>| {
            let reference = json!({"resource": "limits.cpu", "divisor": divisor});
            template_of(json!({"spec": {"containers": [{"name": "c", "image": "i",
                "env": [{"name": "C", "valueFrom": {"resourceFieldRef": reference}}]}]}}))
        };
        assert_eq!(normal(&STATEFUL_SET, &divided(None)), normal(&STATEFUL_SET, &divided(Some("0"))));
        assert_ne!(normal(&STATEFUL_SET, &divided(None)), normal(&STATEFUL_SET, &divided(Some("1m"))));
    }
}
