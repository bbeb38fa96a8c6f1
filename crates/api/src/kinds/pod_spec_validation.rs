//! What a PodSpec must look like, wherever one stands. Upstream's paths and words, for what people hit.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::Field;
use super::{
    claims_validation, container_validation, placement_validation, pod_level, security_validation, systems_validation,
    volume_validation,
};
use crate::names;
use crate::selector::Labels;
use crate::status::{Cause, MAX_CAUSES};

/// A kernel parameter's name: its longest length, and its form as upstream shows it.
const MAX_SYSCTL: usize = 253;
const SYSCTL_PATTERN: &str = r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\.\/])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";

/// A workload's template: labels that the selector takes, and pods that are always restarted. `owner` is the kind.
///
/// `claims` are names of volumes that the owner adds to its pods: a StatefulSet's claim templates.
pub fn validate_template(template: &Field, selector: &Field, owner: &str, claims: &[&str], causes: &mut Vec<Cause>) {
    let labels = template.dig(&["metadata", "labels"]);
    match Labels::from_json(Some(selector.value)) {
        Ok(wanted) if !wanted.is_everything() && !wanted.matches_json(Some(labels.value)) => {
            let value = if labels.is_set() { labels.value.clone() } else { serde_json::json!({}) };
            causes.push(Cause::invalid(&labels.path, value, "`selector` does not match template `labels`"));
        }
        _ => {}
    }
    validate_pod_template(template, claims, causes);
    let spec = template.get("spec");
    let restart = spec.get("restartPolicy");
    if restart.text() != "Always" {
        causes.push(Cause::not_supported(&restart.path, restart.value.clone(), &["Always"]));
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.is_set() {
        causes.push(Cause::forbidden(&deadline.path, &format!("activeDeadlineSeconds in {owner} is not Supported")));
    }
}

/// Labels, annotations and spec of a template, whoever makes pods of it. `claims` are as in [`validate_template`].
pub fn validate_pod_template(template: &Field, claims: &[&str], causes: &mut Vec<Cause>) {
    crate::metadata::validate_labels(&template.dig(&["metadata", "labels"]), causes);
    crate::metadata::validate_annotations(&template.dig(&["metadata", "annotations"]), causes);
    validate_with(&template.get("spec"), claims, causes);
}

/// A selector that must be there and select something.
pub fn validate_selector(selector: &Field, owner: &str, causes: &mut Vec<Cause>) {
    if !selector.is_set() {
        causes.push(Cause::required(&selector.path, ""));
        return;
    }
    if selector.get("matchLabels").len() + selector.get("matchExpressions").len() == 0 {
        causes.push(selector.invalid(&format!("empty selector is invalid for {owner}")));
    }
    crate::metadata::validate_label_selector(selector, causes);
}

/// A whole PodSpec, defaults applied.
pub fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    validate_with(spec, &[], causes);
}

fn validate_with(spec: &Field, claims: &[&str], causes: &mut Vec<Cause>) {
    let mut volumes = volume_validation::validate(&spec.get("volumes"), causes);
    volumes.extend(claims);
    let containers = spec.get("containers");
    if containers.len() == 0 {
        causes.push(Cause::required(&containers.path, ""));
    }
    let mut seen = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for container in spec.get(list).items() {
            if causes.len() > MAX_CAUSES {
                return;
            }
            container_validation::validate(&container, list == "initContainers", &volumes, causes);
            let name = container.get("name");
            if !name.text().is_empty() && !seen.insert(name.text()) {
                causes.push(Cause::duplicate(&name.path, name.text()));
            }
        }
    }
    pod_level::validate(spec, causes);
    spec.get("restartPolicy").need_one_of(causes, &["Always", "OnFailure", "Never"]);
    spec.get("dnsPolicy").need_one_of(causes, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    if spec.get("dnsPolicy").text() == "None" && spec.dig(&["dnsConfig", "nameservers"]).len() == 0 {
        causes.push(Cause::required(
            format!("{}.dnsConfig.nameservers", spec.path),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    spec.get("terminationGracePeriodSeconds").not_negative(causes);
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.int().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        causes.push(deadline.invalid("must be between 1 and 2147483647, inclusive"));
    }
    for field in ["hostname", "subdomain"] {
        spec.get(field).check(causes, names::label);
    }
    for field in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        spec.get(field).check(causes, names::subdomain);
    }
    for (key, entry) in spec.get("nodeSelector").entries() {
        causes.extend(
            names::qualified(key).iter().map(|wrong| Cause::invalid(format!("{}.nodeSelector", spec.path), key, wrong)),
        );
        entry.check(causes, names::label_value);
    }
    for toleration in spec.get("tolerations").items() {
        validate_toleration(&toleration, causes);
    }
    for alias in spec.get("hostAliases").items() {
        let ip = alias.get("ip");
        if ip.text().parse::<std::net::IpAddr>().is_err() {
            causes.push(ip.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
        }
    }
    let os = spec.get("os");
    if os.is_set() {
        os.get("name").need_one_of(causes, &["linux", "windows"]);
    }
    systems_validation::validate(spec, causes);
    claims_validation::validate(spec, causes);
    spec.get("hostnameOverride").check(causes, names::subdomain);
    placement_validation::pod(spec, causes);
    security_validation::names_and_servers(spec, causes);
    security_validation::pod(&spec.get("securityContext"), causes);
    validate_host_ports(spec, causes);
    validate_sleeps(spec, causes);
    validate_sysctls(spec, causes);
    validate_users(spec, causes);
}

/// A user namespace of the pod's own goes with no other namespace of the host's, and all of /proc goes with nothing
/// else.
fn validate_users(spec: &Field, causes: &mut Vec<Cause>) {
    if spec.get("hostUsers").value == &Value::Bool(false) {
        for field in ["hostNetwork", "hostPID", "hostIPC"].map(|field| spec.get(field)) {
            if field.is_true() {
                causes.push(Cause::forbidden(&field.path, "when `hostUsers` is false"));
            }
        }
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get(list).items() {
            let kind = container.dig(&["securityContext", "procMount"]);
            if kind.text() == "Unmasked" {
                causes.push(kind.invalid("`hostUsers` must be false to use `Unmasked`"));
            }
        }
    }
}

/// The names' form, and that none is named twice or is the host's own namespace's.
fn validate_sysctls(spec: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for sysctl in spec.dig(&["securityContext", "sysctls"]).items() {
        let name = sysctl.get("name");
        if name.text().is_empty() {
            causes.push(Cause::required(&name.path, ""));
        } else if !is_sysctl(name.text()) {
            causes.push(
                name.invalid(&format!("must have at most {MAX_SYSCTL} characters and match regex ^{SYSCTL_PATTERN}$")),
            );
        } else if !seen.insert(name.text()) {
            causes.push(Cause::duplicate(&name.path, name.text()));
        }
        let dotted = name.text().replace('/', ".");
        let is_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if spec.get("hostNetwork").is_true() && dotted.starts_with("net.") {
            causes.push(name.invalid("sysctl not allowed with host network enabled"));
        } else if spec.get("hostIPC").is_true() && (is_ipc || dotted == "kernel.sem") {
            causes.push(name.invalid("sysctl not allowed with host ipc enabled"));
        }
    }
}

/// Segments of lower-case letters, digits, `-` and `_`, between dots or slashes.
fn is_sysctl(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let segment = |text: &str| {
        let bytes = text.as_bytes();
        bytes.iter().all(|byte| inner(*byte) || matches!(byte, b'-' | b'_'))
            && bytes.first().zip(bytes.last()).is_some_and(|(first, last)| inner(*first) && inner(*last))
    };
    name.len() <= MAX_SYSCTL && name.split(['.', '/']).all(segment)
}

fn validate_toleration(toleration: &Field, causes: &mut Vec<Cause>) {
    let (key, operator, value) = (toleration.get("key"), toleration.get("operator"), toleration.get("value"));
    key.check(causes, names::qualified);
    if key.text().is_empty() && operator.text() != "Exists" {
        causes.push(
            operator
                .invalid("operator must be Exists when `key` is empty, which means \"match all values and all keys\""),
        );
    }
    match operator.text() {
        "" | "Equal" => value.check(causes, names::label_value),
        "Exists" if !value.text().is_empty() => {
            causes.push(Cause::invalid(
                &operator.path,
                value.value.clone(),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        "Exists" => {}
        other => causes.push(Cause::not_supported(&operator.path, other, &["Equal", "Exists"])),
    }
    let effect = toleration.get("effect");
    effect.one_of(causes, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    if toleration.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
        causes.push(effect.invalid("effect must be 'NoExecute' when `tolerationSeconds` is set"));
    }
}

/// No hook sleeps longer than the pod has to end.
fn validate_sleeps(spec: &Field, causes: &mut Vec<Cause>) {
    let Some(grace) = spec.get("terminationGracePeriodSeconds").int() else { return };
    let containers = ["containers", "initContainers"].map(|list| spec.get(list));
    for container in containers.iter().flat_map(Field::items) {
        for hook in ["postStart", "preStop"] {
            let sleep = container.dig(&["lifecycle", hook, "sleep"]);
            let seconds = sleep.get("seconds").int().unwrap_or(0);
            if sleep.is_set() && !(0..=grace).contains(&seconds) {
                let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                causes.push(Cause::invalid(&sleep.path, seconds, &why));
            }
        }
    }
}

/// No two containers may want the same port of the host.
fn validate_host_ports(spec: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    let is_of_host = spec.get("hostNetwork").is_true();
    for container in spec.get("containers").items() {
        for port in container.get("ports").items() {
            let host = port.get("hostPort");
            let Some(number) = host.int().filter(|n| *n != 0) else { continue };
            if is_of_host && port.get("containerPort").int() != Some(number) {
                causes.push(host.invalid("must match `containerPort` when `hostNetwork` is true"));
            }
            let key = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
            if !seen.insert(key.clone()) {
                causes.push(Cause::duplicate(&host.path, key));
            }
        }
    }
}

/// Whether the resource names and amounts of a list are right; used for containers, claims and volumes.
pub fn validate_amount(amount: &Field, causes: &mut Vec<Cause>) -> Option<crate::quantity::Quantity> {
    match crate::quantity::Quantity::of(amount.value) {
        Ok(quantity) if quantity.is_negative() => {
            causes.push(Cause::invalid(&amount.path, quantity.to_string(), "must be greater than or equal to 0"));
            None
        }
        Ok(quantity) => Some(quantity),
        Err(error) => {
            let shown =
                if let Value::String(text) = amount.value { Value::from(text.as_str()) } else { amount.value.clone() };
            causes.push(Cause::invalid(&amount.path, shown, &error.to_string()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn x8_a_user_namespace_goes_with_no_namespace_of_the_host() {
        let refused = |spec: Value| {
            let mut causes = Vec::new();
            validate_users(&Field::root(&json!({ "spec": spec })).get("spec"), &mut causes);
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
        };
        let unmasked = json!([{ "name": "c", "securityContext": { "procMount": "Unmasked" } }]);
        assert_eq!(refused(json!({ "hostUsers": false, "containers": unmasked })), [""; 0]);
        assert_eq!(refused(json!({ "hostUsers": true, "hostNetwork": true, "hostPID": true })), [""; 0]);
        assert_eq!(
            refused(json!({ "hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true })),
            [
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.hostPID: Forbidden: when `hostUsers` is false",
                "spec.hostIPC: Forbidden: when `hostUsers` is false",
            ]
        );
        assert_eq!(
            refused(json!({ "containers": unmasked })),
            ["spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false \
                    to \
              use `Unmasked`"]
        );
    }
}
