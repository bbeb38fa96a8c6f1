//! What of a pod its containers may be told: `fieldRef` and `resourceFieldRef`, in variables and in files.

use super::field::Field;
use crate::quantity::Quantity;
use crate::status::Cause;

/// The fields that a variable may have, in upstream's order.
const OF_VARIABLES: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Those that a file may have.
const OF_FILES: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Those that are no field of either, and yet names of fields.
const OTHERS: [&str; 4] = ["spec.restartPolicy", "spec.schedulerName", "status.phase", "spec.host"];
/// The resources of a container, beside huge pages.
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What amounts in bytes may be divided by.
const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Who is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A variable.
    Variable,
    /// A file in a volume.
    File,
}

/// A `fieldRef`.
pub fn field(at: &Field, told: Told, causes: &mut Vec<Cause>) {
    let path = at.get("fieldPath");
    if !path.need_text(causes) {
        return;
    }
    if let Some((field, key)) = subscripted(path.text()) {
        let key = match field {
            "metadata.labels" => key.to_owned(),
            "metadata.annotations" => key.to_lowercase(),
            _ => {
                let why =
                    format!("error converting fieldPath: field label does not support subscript: {}", path.text());
                return causes.push(path.invalid(&why));
            }
        };
        return causes.extend(crate::names::qualified(&key).iter().map(|why| Cause::invalid(&at.path, &*key, why)));
    }
    let known = if told == Told::Variable { &OF_VARIABLES[..] } else { &OF_FILES[..] };
    let name = if path.text() == "spec.host" { "spec.nodeName" } else { path.text() };
    if known.contains(&name) {
        return;
    }
    if OF_VARIABLES.contains(&name) || OF_FILES.contains(&name) || OTHERS.contains(&name) {
        causes.push(Cause::not_supported(&path.path, name, known));
    } else {
        causes.push(path.invalid(&format!("error converting fieldPath: field label not supported: {name}")));
    }
}

/// The field and the key of `metadata.labels['key']`.
fn subscripted(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['").filter(|(field, _)| !field.is_empty())
}

/// A `resourceFieldRef`.
pub fn resource(at: &Field, told: Told, causes: &mut Vec<Cause>) {
    if told == Told::File && !at.get("containerName").need_text(causes) {
        return;
    }
    let resource = at.get("resource");
    if !resource.need_text(causes) {
        return;
    }
    let name = resource.text();
    let is_of_pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| name.starts_with(prefix));
    if !is_of_pages && !RESOURCES.contains(&name) {
        return causes.push(Cause::not_supported(&resource.path, name, &RESOURCES));
    }
    let (divisors, what) = match name.split_once('.').map_or("", |(_, what)| what) {
        "cpu" => (&["1m", "1"][..], "cpu resource"),
        "memory" => (&BYTES[..], "memory resource"),
        "ephemeral-storage" => (&BYTES[..], "local ephemeral storage resource"),
        _ => (&BYTES[..], "hugepages resource"),
    };
    let divisor = at.get("divisor");
    let Ok(value) = divisor.text().parse::<Quantity>() else { return };
    if !value.is_zero() && !divisors.contains(&divisor.text()) {
        let why = format!("only divisor's values {} are supported with the {what}", divisors.join(", "));
        let why = if divisors.len() == 2 { why.replace(", ", " and ") } else { why };
        causes.push(Cause::invalid(&divisor.path, name, &why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(check: fn(&Field, Told, &mut Vec<Cause>), told: Told, value: Value) -> Vec<String> {
        let mut causes = Vec::new();
        check(&Field { value: &value, path: "f".into() }, told, &mut causes);
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    /// Conformance, Downward API: what cannot be told is refused when the pod is made, not when it starts.
    #[test]
    fn conformance_only_fields_that_can_be_told_are_taken() {
        let faults = |told, path: &str| of(field, told, json!({ "fieldPath": path })).join("; ");
        for path in OF_VARIABLES.into_iter().chain(["metadata.labels['a/b']", "metadata.annotations['A']", "spec.host"])
        {
            assert_eq!(faults(Told::Variable, path), "", "{path}");
        }
        for path in OF_FILES.into_iter().chain(["metadata.labels['a']"]) {
            assert_eq!(faults(Told::File, path), "", "{path}");
        }
        let only = "f.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \
                    \"metadata.namespace\", \"metadata.uid\"";
        assert!(faults(Told::Variable, "metadata.labels").starts_with(only));
        assert!(faults(Told::File, "status.podIP").contains("supported values: \"metadata.annotations\""));
        let unknown = "f.fieldPath: Invalid value: \"spec.hostname\": error converting fieldPath: field label not \
                       supported: spec.hostname";
        assert_eq!(faults(Told::Variable, "spec.hostname"), unknown);
        assert!(faults(Told::Variable, "metadata.name['a']").contains("does not support subscript"));
        assert!(faults(Told::Variable, "metadata.labels['']").starts_with("f: Invalid value: \"\": name part must be"));
        assert_eq!(faults(Told::File, ""), "f.fieldPath: Required value");
    }

    #[test]
    fn conformance_resources_are_told_in_units_that_there_are() {
        let faults = |told, name: &str, divisor: &str| {
            of(resource, told, json!({ "containerName": "c", "resource": name, "divisor": divisor })).join("; ")
        };
        for (name, divisor) in
            [("limits.cpu", "1m"), ("limits.cpu", "0"), ("requests.memory", "1Mi"), ("limits.hugepages-2Mi", "1Ki")]
        {
            assert_eq!(faults(Told::File, name, divisor), "", "{name} {divisor}");
        }
        assert_eq!(
            faults(Told::Variable, "limits.cpu", "1Mi"),
            "f.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu \
             resource"
        );
        assert!(faults(Told::Variable, "limits.memory", "2Mi").ends_with("1Ei are supported with the memory resource"));
        assert!(faults(Told::Variable, "limits.gpu", "1").starts_with("f.resource: Unsupported value: \"limits.gpu\""));
        let nameless = of(resource, Told::File, json!({ "resource": "limits.cpu" }));
        assert_eq!(nameless, ["f.containerName: Required value"]);
    }
}
