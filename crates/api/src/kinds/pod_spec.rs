//! The defaults of a PodSpec, wherever one stands: in a Pod, or in the template of a workload.

use serde_json::{Value, json};

use super::field::{default, each, inner, made};
use crate::quantity;

/// Mode of the files of projected volumes, 0644.
const FILE_MODE: i64 = 0o644;
/// Lifetime of a projected service account token, seconds.
const TOKEN_SECONDS: i64 = 3600;

/// Fills in the defaults of a pod template (`spec.template` of a workload).
pub fn template_defaults(template: &mut Value) {
    if let Some(spec) = made(template, "spec") {
        defaults(spec);
    }
}

/// Fills in what upstream fills in for every PodSpec.
pub fn defaults(spec: &mut Value) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "securityContext", json!({}));
    service_account(spec);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in each(spec, list) {
            container_defaults(container);
        }
    }
    for volume in each(spec, "volumes") {
        volume_defaults(volume);
    }
    quantity::canonicalize_list(spec.get_mut("overhead"));
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are stored, the new one leads.
fn service_account(spec: &mut Value) {
    let lead = ["serviceAccountName", "serviceAccount"];
    let name =
        lead.iter().filter_map(|f| spec.get(f).and_then(Value::as_str)).find(|n| !n.is_empty()).map(str::to_owned);
    if let (Some(name), Value::Object(map)) = (name, spec) {
        for field in lead {
            map.insert(field.to_owned(), name.clone().into());
        }
    }
}

fn container_defaults(container: &mut Value) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in each(container, "ports") {
        default(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(source) = inner(variable, "valueFrom") {
            reference_defaults(source);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = inner(container, probe) {
            probe_defaults(probe);
        }
    }
    if let Some(lifecycle) = inner(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(get) = inner(lifecycle, hook).and_then(|hook| inner(hook, "httpGet")) {
                http_defaults(get);
            }
        }
    }
    if let Some(resources) = inner(container, "resources") {
        quantity::canonicalize_list(resources.get_mut("limits"));
        quantity::canonicalize_list(resources.get_mut("requests"));
    }
}

fn probe_defaults(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        // Zero is what a client sends who leaves the field out in a typed language.
        if probe.get(field).and_then(Value::as_i64) == Some(0) {
            super::field::remove(probe, field);
        }
        default(probe, field, value);
    }
    if let Some(get) = inner(probe, "httpGet") {
        http_defaults(get);
    }
    if let Some(grpc) = inner(probe, "grpc") {
        default(grpc, "service", "");
    }
}

fn http_defaults(get: &mut Value) {
    default(get, "path", "/");
    default(get, "scheme", "HTTP");
}

fn volume_defaults(volume: &mut Value) {
    let sources = volume
        .as_object()
        .map_or(0, |map| map.iter().filter(|(key, value)| *key != "name" && !value.is_null()).count());
    if sources == 0 {
        default(volume, "emptyDir", json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = inner(volume, kind) {
            default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = inner(volume, "hostPath") {
        default(path, "type", "");
    }
    if let Some(limit) = inner(volume, "emptyDir").and_then(|dir| dir.get_mut("sizeLimit")) {
        quantity::canonicalize(limit);
    }
    if let Some(source) = inner(volume, "downwardAPI") {
        downward_defaults(source);
    }
    if let Some(projected) = inner(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(downward) = inner(source, "downwardAPI") {
                downward_defaults(downward);
            }
            if let Some(token) = inner(source, "serviceAccountToken") {
                default(token, "expirationSeconds", TOKEN_SECONDS);
            }
        }
    }
    if let Some(claim) = inner(volume, "ephemeral").and_then(|e| inner(e, "volumeClaimTemplate")) {
        super::persistentvolumeclaim::spec_defaults(claim);
    }
    if let Some(iscsi) = inner(volume, "iscsi") {
        default(iscsi, "iscsiInterface", "default");
    }
}

fn downward_defaults(source: &mut Value) {
    each(source, "items").for_each(reference_defaults);
}

/// A reference to a field of the pod. A divisor of 0 stands for none; Go's JSON always has it.
fn reference_defaults(source: &mut Value) {
    if let Some(field) = inner(source, "fieldRef") {
        default(field, "apiVersion", "v1");
    }
    if let Some(field) = inner(source, "resourceFieldRef") {
        default(field, "divisor", "0");
    }
}

/// Whether an image names no version: no tag and no digest, or the tag `latest`.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, ""), |(name, digest)| (name, digest));
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_empty(),
    }
}

/// A pod's requests that are not given are its limits; only pods get this, templates do not.
pub fn requests_from_limits(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for resources in each(spec, list).filter_map(|container| inner(container, "resources")) {
            let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { continue };
            if let Some(requests) = made(resources, "requests") {
                for (name, limit) in limits {
                    default(requests, &name, limit);
                }
            }
        }
    }
}

/// With `hostNetwork`, each container port is the host's; upstream writes that down for pods.
pub fn host_ports(spec: &mut Value) {
    if spec.get("hostNetwork").and_then(Value::as_bool) != Some(true) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for port in each(spec, list).flat_map(|container| each(container, "ports")) {
            if let Some(number) = port.get("containerPort").cloned() {
                default(port, "hostPort", number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("a", true),
            ("a:latest", true),
            ("a:1", false),
            ("host:5000/a", true),
            ("host:5000/a:1", false),
            ("a@sha256:00", false),
            ("a:latest@sha256:00", true),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_spec_gets_upstreams_defaults_and_keeps_unknown_fields() {
        let mut spec = json!({
            "new": 1, "serviceAccount": "x",
            "containers": [{ "name": "a", "image": "a:1", "ports": [{ "containerPort": 80 }],
                "resources": { "limits": { "cpu": 0.5 } },
                "livenessProbe": { "httpGet": { "port": 80 }, "periodSeconds": 0 } }],
            "volumes": [{ "name": "e" }, { "name": "c", "configMap": { "name": "c" } },
                { "name": "h", "hostPath": { "path": "/" } }],
        });
        defaults(&mut spec);
        let expected = json!({
            "new": 1, "serviceAccount": "x", "serviceAccountName": "x", "restartPolicy": "Always",
                "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "securityContext": {},
            "containers": [{ "name": "a", "image": "a:1", "ports": [{ "containerPort": 80, "protocol": "TCP" }],
                "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                "resources": { "limits": { "cpu": "500m" } },
                "livenessProbe": { "httpGet": { "port": 80, "path": "/", "scheme": "HTTP" }, "timeoutSeconds": 1,
                    "periodSeconds": 10,
                    "successThreshold": 1, "failureThreshold": 3 } }],
            "volumes": [{ "name": "e", "emptyDir": {} }, { "name": "c",
                "configMap": { "name": "c", "defaultMode": 420 } },
                { "name": "h", "hostPath": { "path": "/", "type": "" } }],
        });
        assert_eq!(spec, expected);
        let once = spec.clone();
        defaults(&mut spec);
        assert_eq!(spec, once, "S11: defaulting twice changes nothing");
    }
}
