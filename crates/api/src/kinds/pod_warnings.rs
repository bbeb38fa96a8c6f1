//! What whoever writes a pod or a pod template is told in `Warning` headers: what is deprecated, does nothing, or does
//! something else than it looks like. In upstream's words and order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Row;
use super::field::Field;
use crate::names;
use crate::quantity::Quantity;

const CRITICAL: &str = "non-functional in v1.16+; use the \"priorityClassName\" field instead";
const SYSCTLS: &str = "non-functional in v1.11+; use the \"sysctls\" field instead";
const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
const APPARMOR: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";

/// Annotations that have no meaning any more.
const ANNOTATIONS: [(&str, &str); 3] = [
    ("scheduler.alpha.kubernetes.io/critical-pod", CRITICAL),
    ("security.alpha.kubernetes.io/sysctls", SYSCTLS),
    ("security.alpha.kubernetes.io/unsafe-sysctls", SYSCTLS),
];

/// Labels of nodes that have other names now.
const NODE_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Kinds of volumes that do not work any more.
const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Ports of one number that others are compared with: what a pod's author is told may not cost the square of what was
/// sent (X4).
const MAX_COMPARED: usize = 100;
/// What is told of ports at most; clients are shown fewer.
const MAX_TOLD: usize = 1000;

/// The warnings of a Pod.
pub fn of_pod(_: &Row, pod: &Value) -> Vec<String> {
    let pod = Field::root(pod);
    let what = "the Pod's hostname";
    let mut warnings: Vec<String> = of_name(&pod, what).into_iter().collect();
    warnings.extend(of_pods(&pod, false));
    warnings
}

/// The warnings of an object that makes pods by `spec.template`.
pub fn of_template(_: &Row, object: &Value) -> Vec<String> {
    of_pods(&Field::root(object).dig(&["spec", "template"]), true)
}

/// The same, of one whose pods are named after it.
pub fn of_named_template(row: &Row, object: &Value) -> Vec<String> {
    let mut warnings: Vec<String> = of_name(&Field::root(object), POD_NAMES).into_iter().collect();
    warnings.extend(of_template(row, object));
    warnings
}

/// The warnings of a PersistentVolumeClaim.
pub fn of_claim(_: &Row, claim: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    of_amounts(&Field::root(claim).dig(&["spec", "resources", "requests"]), &mut warnings);
    warnings
}

/// What a workload's name is used for.
pub const POD_NAMES: &str = "Pod names and hostnames";

/// The warning of a name that is no host name, which pods are given; told once, when the object is new.
pub fn of_name(object: &Field, what: &str) -> Option<String> {
    if object.dig(&["metadata", "generation"]).int().is_some_and(|generation| generation > 1) {
        return None;
    }
    let wrong = names::label(object.dig(&["metadata", "name"]).text());
    let wrong = Some(wrong.join(" ")).filter(|wrong| !wrong.is_empty())?;
    Some(format!(
        "metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: \
            [{wrong}]"
    ))
}

/// The warnings of a pod, or of a template of pods.
pub fn of_pods(pod: &Field, is_template: bool) -> Vec<String> {
    let (spec, annotations) = (pod.get("spec"), pod.dig(&["metadata", "annotations"]));
    let mut warnings = Vec::new();
    of_node_labels(&spec, &mut warnings);
    for (key, why) in ANNOTATIONS {
        warnings.extend(of_annotation(&annotations, key, why));
    }
    of_volumes(&spec, &mut warnings);
    of_lists(&spec, &mut warnings);
    of_amounts(&spec.get("overhead"), &mut warnings);
    let context = spec.get("securityContext");
    if !context.get("seccompProfile").is_set() {
        warnings.extend(of_annotation(&annotations, "seccomp.security.alpha.kubernetes.io/pod", SECCOMP));
    }
    let has_profile = context.get("appArmorProfile").is_set();
    for container in containers(&spec) {
        let (name, context) = (container.get("name").text(), container.get("securityContext"));
        if !context.get("seccompProfile").is_set() {
            let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
            warnings.extend(of_annotation(&annotations, &key, SECCOMP));
        }
        if is_template && !has_profile && !context.get("appArmorProfile").is_set() {
            let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
            warnings.extend(of_annotation(&annotations, &key, APPARMOR));
        }
        of_amounts(&container.dig(&["resources", "limits"]), &mut warnings);
        of_amounts(&container.dig(&["resources", "requests"]), &mut warnings);
        of_environment(&container.get("env"), &mut warnings);
    }
    of_ports(&spec, &mut warnings);
    let grace = spec.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds < 0) {
        warnings.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", grace.path));
    }
    of_affinity(&spec.get("affinity"), &mut warnings);
    warnings
}

fn containers<'a>(spec: &Field<'a>) -> impl Iterator<Item = Field<'a>> + use<'a> {
    let lists = ["initContainers", "containers", "ephemeralContainers"].map(|name| spec.get(name));
    lists.into_iter().flat_map(|list| list.items())
}

fn keyed(field: &Field, key: &str) -> String {
    format!("{}[{key}]", field.path)
}

fn of_annotation(annotations: &Field, key: &str, why: &str) -> Option<String> {
    let is_there = annotations.value.get(key).is_some();
    is_there.then(|| format!("{}: {why}", keyed(annotations, key)))
}

fn of_label(label: &str) -> Option<&'static str> {
    NODE_LABELS.iter().find(|(known, _)| *known == label).map(|(_, why)| *why)
}

fn of_node_labels(spec: &Field, warnings: &mut Vec<String>) {
    let selector = spec.get("nodeSelector");
    for (label, _) in selector.entries() {
        warnings.extend(of_label(label).map(|why| format!("{}: {why}", keyed(&selector, label))));
    }
    let mut of_term = |term: &Field| {
        for expression in term.get("matchExpressions").items() {
            let key = expression.get("key");
            warnings.extend(of_label(key.text()).map(|why| format!("{}: {} is {why}", key.path, key.text())));
        }
    };
    let affinity = spec.dig(&["affinity", "nodeAffinity"]);
    let required = affinity.dig(&["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"]);
    required.items().for_each(|term| of_term(&term));
    let preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution");
    preferred.items().for_each(|term| of_term(&term.get("preference")));
    for constraint in spec.get("topologySpreadConstraints").items() {
        let key = constraint.get("topologyKey");
        warnings.extend(of_label(key.text()).map(|why| format!("{}: {} is {why}", key.path, key.text())));
        of_selector(&constraint.get("labelSelector"), warnings);
    }
}

/// A selector that is left out selects nothing.
fn of_selector(selector: &Field, warnings: &mut Vec<String>) {
    if !selector.is_set() {
        warnings.push(format!("{}: a null labelSelector results in matching no pod", selector.path));
    }
}

fn of_affinity(affinity: &Field, warnings: &mut Vec<String>) {
    for rules in ["podAffinity", "podAntiAffinity"].map(|name| affinity.get(name)) {
        for term in rules.get("requiredDuringSchedulingIgnoredDuringExecution").items() {
            of_selector(&term.get("labelSelector"), warnings);
        }
        for term in rules.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
            of_selector(&term.dig(&["podAffinityTerm", "labelSelector"]), warnings);
        }
    }
}

fn sources<'a>(volume: &Field<'a>) -> Field<'a> {
    volume.dig(&["projected", "sources"])
}

fn of_volumes(spec: &Field, warnings: &mut Vec<String>) {
    let volumes = spec.get("volumes");
    for volume in volumes.items() {
        for (source, why) in VOLUMES {
            let source = volume.get(source);
            if source.is_set() {
                // Upstream's path is that of its Go field.
                warnings.push(format!("{}: {why}", source.path.replace("storageos", "storageOS")));
            }
        }
        of_amounts(&volume.dig(&["ephemeral", "volumeClaimTemplate", "spec", "resources", "requests"]), warnings);
    }
    let mut tokens = BTreeSet::new();
    for source in volumes.items().flat_map(|volume| sources(&volume).items()) {
        tokens.extend(Some(source.dig(&["serviceAccountToken", "path"]).text()).filter(|path| !path.is_empty()));
    }
    for volume in volumes.items().filter(|_| !tokens.is_empty()) {
        let at = sources(&volume).path;
        for source in sources(&volume).items() {
            for (name, shown) in [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")] {
                for (index, item) in source.dig(&[name, "items"]).items().enumerate() {
                    let path = item.get("path").text();
                    if tokens.contains(path) {
                        let place = format!("{at}.{shown}[{index}]");
                        warnings.push(format!("{place}: has duplicated path with ServiceAccountToken {path:?}"));
                    }
                }
            }
            let path = source.dig(&["clusterTrustBundle", "path"]).text();
            if tokens.contains(path) {
                let place = format!("{at}.ClusterTrustBundle");
                warnings.push(format!("{place}: has duplicated path with ServiceAccountToken {path:?}"));
            }
        }
    }
}

/// Items that are there twice, of which one counts.
fn of_lists(spec: &Field, warnings: &mut Vec<String>) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = BTreeSet::new();
        for item in spec.get(list).items().map(|item| item.get(key)).filter(|item| !seen.insert(item.text())) {
            warnings.push(format!("{}: duplicate {key} {:?}", item.path, item.text()));
        }
    }
    for name in spec.get("imagePullSecrets").items().map(|secret| secret.get("name")) {
        if name.text().is_empty() {
            warnings.push(format!("{}: invalid empty name \"\"", name.path));
        }
    }
}

/// Bytes that are no whole number.
fn of_amounts(amounts: &Field, warnings: &mut Vec<String>) {
    for resource in ["memory", "ephemeral-storage", "storage"] {
        let amount = amounts.value.get(resource).and_then(|amount| Quantity::of(amount).ok());
        // A claim's requests name `storage`, and nothing else does.
        if let Some(amount) = amount.filter(|amount| amount.milli() % 1000 != 0) {
            let at = keyed(amounts, resource);
            warnings.push(format!("{at}: fractional byte value \"{amount}\" is invalid, must be an integer"));
        }
    }
}

/// A variable that is there twice, unless the second is made from the first.
fn of_environment(env: &Field, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for variable in env.items() {
        let (name, value) = (variable.get("name").text(), variable.get("value").text());
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        if variable.get("valueFrom").is_set() || value == reference || !value.contains(&reference) {
            warnings.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                variable.path
            ));
        }
    }
}

/// Ports of all containers that are one and the same. Each is compared with the first [`MAX_COMPARED`] of its number.
fn of_ports(spec: &Field, warnings: &mut Vec<String>) {
    let mut known: BTreeMap<(i64, &str), Vec<Field>> = BTreeMap::new();
    let host = |port: &Field<'_>| port.get("hostPort").int().unwrap_or(0);
    for port in containers(spec).flat_map(|container| container.get("ports").items()) {
        let key = (port.get("containerPort").int().unwrap_or(0), port.value["protocol"].as_str().unwrap_or("TCP"));
        if warnings.len() >= MAX_TOLD {
            return;
        }
        let others = known.entry(key).or_default();
        let (ip, number) = (port.value["hostIP"].as_str().unwrap_or(""), host(&port));
        for other in others.iter() {
            let (its_ip, its_number) = (other.value["hostIP"].as_str().unwrap_or(""), host(other));
            let how = match () {
                () if ip == its_ip && number == its_number => "duplicate",
                () if number == 0 || its_number == 0 => "overlapping",
                () if number == its_number && ip.is_empty() != its_ip.is_empty() => "dangerously ambiguous",
                () => continue,
            };
            warnings.push(format!("{}: {how} port definition with {}", port.path, other.path));
        }
        if others.len() < MAX_COMPARED {
            others.push(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{CRON_JOB, DEPLOYMENT, POD};

    fn of_spec(spec: Value) -> Vec<String> {
        (POD.warnings)(&POD, &json!({ "metadata": { "name": "a" }, "spec": spec }))
    }

    #[test]
    fn nothing_is_told_of_what_is_sound() {
        let spec = json!({ "nodeSelector": { "kubernetes.io/os": "linux" }, "imagePullSecrets": [{ "name": "a" }],
            "containers": [{ "name": "c", "ports": [{ "containerPort": 53, "protocol": "UDP" },
                { "containerPort": 53 }],
                "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "$(A)2" }],
                "resources": { "limits": { "memory": "1Gi", "cpu": "100m" } } }] });
        assert_eq!(of_spec(spec), Vec::<String>::new());
    }

    #[test]
    fn x4_what_is_told_grows_with_what_was_sent_and_not_with_its_square() {
        let ports: Vec<Value> = (0..50_000).map(|_| json!({ "containerPort": 1 })).collect();
        let told = of_spec(json!({ "containers": [{ "name": "c", "ports": ports }] }));
        assert!((MAX_TOLD..MAX_TOLD + MAX_COMPARED).contains(&told.len()), "{}", told.len());
        // Ports that differ are compared as well.
        let ports: Vec<Value> = (1..50_000).map(|host| json!({ "containerPort": 1, "hostPort": host })).collect();
        let told = of_spec(json!({ "containers": [{ "name": "c", "ports": ports }] }));
        assert_eq!(told, Vec::<String>::new());
    }

    #[test]
    fn what_a_pods_author_is_told() {
        let spec = json!({
            "nodeSelector": { "beta.kubernetes.io/os": "linux" },
            "imagePullSecrets": [{ "name": "" }, {}],
            "hostAliases": [{ "ip": "1.1.1.1" }, { "ip": "1.1.1.1" }],
            "volumes": [{ "name": "v", "gitRepo": { "repository": "r" } }],
            "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{}] } },
            "containers": [
                { "name": "c", "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }],
                    "ports": [{ "containerPort": 80, "protocol": "TCP" }],
                    "resources": { "limits": { "memory": "1500m" } } },
                { "name": "d", "ports": [{ "containerPort": 80 }, { "containerPort": 80, "hostPort": 8080 }] },
            ],
        });
        assert_eq!(
            of_spec(spec),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11",
                "spec.hostAliases[1].ip: duplicate ip \"1.1.1.1\"",
                "spec.imagePullSecrets[1].name: duplicate name \"\"",
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
                "spec.imagePullSecrets[1].name: invalid empty name \"\"",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an \
                    integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[1].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[1].ports[1]: overlapping port definition with spec.containers[1].ports[0]",
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null \
                    labelSelector results in matching no pod",
            ]
        );
    }

    #[test]
    fn a_template_is_told_where_it_stands() {
        let template = json!({ "metadata": { "annotations": {
            "container.apparmor.security.beta.kubernetes.io/c": "runtime/default" } },
            "spec": { "terminationGracePeriodSeconds": -1, "containers": [{ "name": "c" }] } });
        let deployment = json!({ "metadata": { "name": "a.b" }, "spec": { "template": template } });
        let told = (DEPLOYMENT.warnings)(&DEPLOYMENT, &deployment);
        assert!(told[0].starts_with("metadata.name: this is used in Pod names and hostnames, which can"), "{told:?}");
        assert_eq!(
            told[1..],
            [
                "spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated \
                    since \
                    v1.30; use the \"appArmorProfile\" field instead",
                "spec.template.spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will \
                    be \
                    treated as 1",
            ]
        );
        let job = json!({ "metadata": { "name": "a" }, "spec": { "schedule": "TZ=UTC 0 0 * * *",
            "jobTemplate": { "spec": { "template": template } } } });
        let told = (CRON_JOB.warnings)(&CRON_JOB, &job);
        assert!(told[0].starts_with("spec.jobTemplate.spec.template.metadata.annotations["), "{told:?}");
    }
}
