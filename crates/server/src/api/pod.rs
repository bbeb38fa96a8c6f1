//! The parts of a Pod that have subresources of their own: of the pod that is sent only that part is looked at.

use std::collections::BTreeMap;

use mainstay_api::status::Cause;
use mainstay_api::{kinds, object};
use serde_json::Value;

/// The stored pod with the ephemeral containers of the one that was sent.
pub(super) fn only_ephemeral_containers(new: &Value, old: &Value) -> Value {
    let mut kept = with_preconditions(new, old);
    let spec = object::ensure(&mut kept, &["spec"]);
    match object::at(new, &["spec", "ephemeralContainers"]) {
        Some(sent) => spec.insert("ephemeralContainers".to_owned(), sent.clone()),
        None => spec.remove("ephemeralContainers"),
    };
    kept
}

/// The stored pod with the resources (and resize policies) that the one that was sent has for containers of the same
/// names.
pub(super) fn only_resources(new: &Value, old: &Value) -> Value {
    let mut kept = with_preconditions(new, old);
    for list in ["containers", "initContainers"] {
        let sent: BTreeMap<&str, &Value> =
            items(new, list).map(|container| (object::text(container, &["name"]), container)).collect();
        let stored = object::ensure(&mut kept, &["spec"]).get_mut(list).and_then(Value::as_array_mut);
        for container in stored.into_iter().flatten() {
            let Some(sent) = sent.get(object::text(container, &["name"])) else { continue };
            let fields = object::ensure(container, &[]);
            for field in ["resources", "resizePolicy"] {
                match sent.get(field) {
                    Some(value) => fields.insert(field.to_owned(), value.clone()),
                    None => fields.remove(field),
                };
            }
        }
    }
    kept
}

/// The stored pod, with the uid, the resourceVersion and the managers that the sent one names (A8).
fn with_preconditions(new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    let metadata = object::ensure(&mut kept, &["metadata"]);
    for field in ["uid", "resourceVersion", "managedFields"] {
        if let Some(value) = object::at(new, &["metadata", field]) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    kept
}

/// Ephemeral containers are added, never changed or taken away; their names are nobody else's.
pub(super) fn validate_ephemeral_containers(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let path = "spec.ephemeralContainers";
    let named = |container: &Value| object::text(container, &["name"]).to_owned();
    let now: BTreeMap<String, &Value> =
        items(new, "ephemeralContainers").map(|container| (named(container), container)).collect();
    for before in items(old, "ephemeralContainers") {
        let name = named(before);
        let why = match now.get(&name) {
            None => format!("existing ephemeral containers {name:?} may not be removed\n"),
            Some(after) if *after != before => format!("existing ephemeral containers {name:?} may not be changed\n"),
            Some(_) => continue,
        };
        causes.push(Cause::forbidden(path, &why));
    }
    let others = ["containers", "initContainers"].into_iter().flat_map(|list| items(new, list)).map(named);
    let mut taken: std::collections::BTreeSet<String> = others.collect();
    for (index, container) in items(new, "ephemeralContainers").enumerate() {
        let name = named(container);
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}[{index}].name"), ""));
        } else if !taken.insert(name.clone()) {
            causes.push(Cause::duplicate(format!("{path}[{index}].name"), name));
        }
        if object::text(container, &["image"]).is_empty() {
            causes.push(Cause::required(format!("{path}[{index}].image"), ""));
        }
    }
}

/// A resize changes amounts of cpu and memory; it takes none away, and the pod's class of service stays.
pub(super) fn validate_resize(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let class = kinds::pod::qos_class(new);
    if class != kinds::pod::qos_class(old) {
        causes.push(Cause::invalid("metadata", class, "Pod QOS Class may not change as a result of resizing"));
    }
    for list in ["containers", "initContainers"] {
        for (index, (now, before)) in items(new, list).zip(items(old, list)).enumerate() {
            if now.get("resizePolicy") != before.get("resizePolicy") {
                causes.push(Cause::forbidden("spec", "only cpu and memory resources are mutable"));
            }
            for part in ["requests", "limits"] {
                let path = format!("spec.{list}[{index}].resources.{part}");
                let of = |container: &Value| {
                    object::at(container, &["resources", part]).and_then(Value::as_object).cloned().unwrap_or_default()
                };
                let (now, before) = (of(now), of(before));
                let is_removed = |name: &&str| before.contains_key(*name) && !now.contains_key(*name);
                if RESIZABLE.iter().any(is_removed) {
                    causes.push(Cause::forbidden(&path, &format!("resource {part} cannot be removed")));
                }
                let others = |all: &serde_json::Map<String, Value>| {
                    let other = |(name, _): &(&String, &Value)| !RESIZABLE.contains(&name.as_str());
                    all.iter().filter(other).map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
                };
                if others(&now) != others(&before) {
                    causes.push(Cause::forbidden("spec", "only cpu and memory resources are mutable"));
                }
            }
        }
    }
}

/// What a resize is about.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

fn items<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    object::at(pod, &["spec", list]).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({
            "metadata": { "name": "p", "uid": "u" },
            "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i", "resources": {} }] },
        })
    }

    #[test]
    fn of_a_pod_that_is_sent_to_a_subresource_only_its_part_counts() {
        let added = json!([{ "name": "e", "image": "i" }]);
        let sent = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "x", "ephemeralContainers": added } });
        let mut wanted = pod();
        wanted["spec"]["ephemeralContainers"] = added;
        assert_eq!(only_ephemeral_containers(&sent, &pod()), wanted);
        let cpu = json!({ "limits": { "cpu": "1" } });
        let sent =
            json!({ "spec": { "containers": [{ "name": "c", "image": "other", "resources": cpu }, { "name": "x" }] } });
        let mut wanted = pod();
        wanted["spec"]["containers"][0]["resources"] = cpu;
        assert_eq!(only_resources(&sent, &pod()), wanted);
    }

    #[test]
    fn ephemeral_containers_are_only_ever_added() {
        let with = |list: Value| {
            let mut pod = pod();
            pod["spec"]["ephemeralContainers"] = list;
            pod
        };
        let old = with(json!([{ "name": "e", "image": "i" }]));
        let table = [
            (json!([{ "name": "e", "image": "i" }, { "name": "f", "image": "i" }]), None),
            (json!([]), Some("may not be removed")),
            (json!([{ "name": "e", "image": "j" }]), Some("may not be changed")),
            (json!([{ "name": "e", "image": "i" }, { "name": "c", "image": "i" }]), Some("Duplicate value")),
            (json!([{ "name": "e", "image": "i" }, { "image": "i" }]), Some("Required value")),
        ];
        for (list, wanted) in table {
            let mut causes = Vec::new();
            validate_ephemeral_containers(&with(list.clone()), &old, &mut causes);
            match wanted {
                None => assert_eq!(causes, []),
                Some(words) => assert!(causes.iter().any(|cause| cause.message.contains(words)), "{list}: {causes:?}"),
            }
        }
    }
}
