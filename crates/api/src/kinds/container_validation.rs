//! What a container must look like: name, image, ports, environment, mounts, probes, resources.

use std::collections::BTreeSet;

use super::downward_validation::{self, Told};
use super::field::Field;
use super::pod_spec_validation::validate_amount;
use super::security_validation;
use crate::names;
use crate::status::Cause;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];

/// One container; `volumes` are the names that it may mount.
pub fn validate(container: &Field, init: bool, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    container.get("name").need(causes, names::label);
    let image = container.get("image");
    if image.need_text(causes) && image.text().trim() != image.text() {
        causes.push(image.invalid("must not have leading or trailing whitespace"));
    }
    container.get("imagePullPolicy").need_one_of(causes, &["Always", "IfNotPresent", "Never"]);
    let policy = container.get("terminationMessagePolicy");
    if !matches!(policy.text(), "" | "File" | "FallbackToLogsOnError") {
        causes.push(policy.invalid("must be 'File' or 'FallbackToLogsOnError'"));
    }
    ports(&container.get("ports"), causes);
    for variable in container.get("env").items() {
        environment(&variable, causes);
    }
    for source in container.get("envFrom").items() {
        env_from(&source, causes);
    }
    mounts(&container.get("volumeMounts"), volumes, causes);
    devices(&container.get("volumeDevices"), volumes, causes);
    let sidecar = container.get("restartPolicy").text() == "Always";
    for name in PROBES {
        let probe = container.get(name);
        if probe.is_set() && init && !sidecar {
            causes
                .push(Cause::forbidden(&probe.path, "may not be set for init containers without restartPolicy=Always"));
        } else if probe.is_set() {
            validate_probe(&probe, name, causes);
        }
    }
    let lifecycle = container.get("lifecycle");
    if lifecycle.is_set() && init && !sidecar {
        causes
            .push(Cause::forbidden(&lifecycle.path, "may not be set for init containers without restartPolicy=Always"));
    }
    for hook in ["postStart", "preStop"].map(|hook| lifecycle.get(hook)) {
        if hook.is_set() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], causes);
        }
    }
    resources(&container.get("resources"), causes);
    restarts(container, causes);
    security_validation::container(container, causes);
}

/// Rules of one container, and exit codes of one rule, as upstream.
const MAX_RESTART_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// When it is restarted, also for being resized.
fn restarts(container: &Field, causes: &mut Vec<Cause>) {
    container.get("restartPolicy").one_of(causes, &["Always", "Never", "OnFailure"]);
    let rules = container.get("restartPolicyRules");
    if rules.len() > 0 && !container.get("restartPolicy").is_set() {
        let path = container.get("restartPolicy").path;
        causes.push(Cause::required(path, "must specify restartPolicy when restart rules are used"));
    }
    if rules.len() > MAX_RESTART_RULES {
        causes.push(Cause::too_many(&rules.path, rules.len(), MAX_RESTART_RULES));
    }
    for rule in rules.items() {
        rule.get("action").need_one_of(causes, &["Restart", "RestartAllContainers"]);
        let codes = rule.get("exitCodes");
        if codes.is_set() {
            codes.get("operator").need_one_of(causes, &["In", "NotIn"]);
            let values = codes.get("values");
            if values.len() > MAX_EXIT_CODES {
                causes.push(Cause::too_many(&values.path, values.len(), MAX_EXIT_CODES));
            }
        } else {
            causes.push(Cause::required(&codes.path, "must be specified"));
        }
    }
    let (list, mut seen) = (container.get("resizePolicy"), BTreeSet::new());
    for policy in list.items() {
        let resource = policy.get("resourceName");
        resource.need_one_of(causes, &["cpu", "memory"]);
        policy.get("restartPolicy").need_one_of(causes, &["NotRequired", "RestartContainer"]);
        if !seen.insert(resource.text()) {
            causes.push(Cause::duplicate(&policy.path, resource.text()));
        }
    }
}

fn ports(ports: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            let wrong = names::port_name(name.text());
            if wrong.is_empty() && !seen.insert(name.text()) {
                causes.push(Cause::duplicate(&name.path, name.text()));
            }
            causes.extend(wrong.iter().map(|wrong| name.invalid(wrong)));
        }
        let number = port.get("containerPort");
        if number.int().unwrap_or(0) == 0 {
            causes.push(Cause::required(&number.path, ""));
        } else {
            number.port(causes);
        }
        if port.get("hostPort").int() != Some(0) {
            port.get("hostPort").port(causes);
        }
        port.get("protocol").need_one_of(causes, &["SCTP", "TCP", "UDP"]);
    }
}

fn environment(variable: &Field, causes: &mut Vec<Cause>) {
    let name = variable.get("name");
    if name.need_text(causes) {
        name.check(causes, names::env_name);
    }
    let from = variable.get("valueFrom");
    if !from.is_set() {
        return;
    }
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let set: Vec<&str> = SOURCES.into_iter().filter(|s| from.get(s).is_set()).collect();
    match set.len() {
        0 => causes.push(from.invalid(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        )),
        _ if !variable.get("value").text().is_empty() => {
            causes.push(from.invalid("may not be specified when `value` is not empty"))
        }
        1 => {}
        _ => causes.push(from.invalid("may not have more than one field specified at a time")),
    }
    for source in set {
        let source_field = from.get(source);
        match source {
            "configMapKeyRef" | "secretKeyRef" => {
                source_field.get("name").need_text(causes);
                source_field.get("key").need(causes, names::config_key);
            }
            "fieldRef" => downward_validation::field(&source_field, Told::Variable, causes),
            "resourceFieldRef" => downward_validation::resource(&source_field, Told::Variable, causes),
            "fileKeyRef" => {
                source_field.get("key").need(causes, names::env_name);
                source_field.get("volumeName").need(causes, names::label);
                let path = source_field.get("path");
                if path.need_text(causes) {
                    no_backsteps(&path, causes);
                }
            }
            _ => {}
        }
    }
}

fn env_from(source: &Field, causes: &mut Vec<Cause>) {
    let (map, secret) = (source.get("configMapRef"), source.get("secretRef"));
    match (map.is_set(), secret.is_set()) {
        (false, false) => {
            causes.push(Cause::invalid(&source.path, "", "must specify one of: `configMapRef` or `secretRef`"))
        }
        (true, true) => {
            causes.push(Cause::invalid(&source.path, "", "may not have more than one field specified at a time"))
        }
        (true, false) => drop(map.get("name").need_text(causes)),
        (false, true) => drop(secret.get("name").need_text(causes)),
    }
}

fn mounts(mounts: &Field, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let mut paths = BTreeSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if name.need_text(causes) && !volumes.contains(name.text()) {
            causes.push(Cause::not_found(&name.path, name.text()));
        }
        if path.need_text(causes) && !paths.insert(path.text()) {
            causes.push(path.invalid("must be unique"));
        }
        // X3: a subPath can't lead out of its volume.
        for sub in [mount.get("subPath"), mount.get("subPathExpr")] {
            local_path(&sub, causes);
        }
        mount.get("mountPropagation").one_of(causes, &["Bidirectional", "HostToContainer", "None"]);
    }
}

/// Volumes that a container has as devices.
fn devices(devices: &Field, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let (mut named, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in devices.items() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        if name.need_text(causes) {
            if !volumes.contains(name.text()) {
                causes.push(Cause::not_found(&name.path, name.text()));
            }
            if !named.insert(name.text()) {
                causes.push(name.invalid("must be unique"));
            }
        }
        if path.need_text(causes) && !paths.insert(path.text()) {
            causes.push(path.invalid("must be unique"));
        }
    }
}

/// A relative path without `..`.
pub fn local_path(path: &Field, causes: &mut Vec<Cause>) {
    if path.text().starts_with('/') {
        causes.push(path.invalid("must be a relative path"));
    }
    no_backsteps(path, causes);
}

/// A relative path without `..`, whose beginning is not one of the names that a volume keeps for itself.
pub fn file_path(path: &Field, causes: &mut Vec<Cause>) {
    let before = causes.len();
    local_path(path, causes);
    if path.text().starts_with("..") && causes.len() == before {
        causes.push(path.invalid("must not start with '..'"));
    }
}

/// A path without `..` as one of its parts.
pub fn no_backsteps(path: &Field, causes: &mut Vec<Cause>) {
    if path.text().split('/').any(|part| part == "..") {
        causes.push(path.invalid("must not contain '..'"));
    }
}

fn validate_probe(probe: &Field, name: &str, causes: &mut Vec<Cause>) {
    handler(probe, &HANDLERS, causes);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.get(field).not_negative(causes);
    }
    let success = probe.get("successThreshold");
    if name != "readinessProbe" && success.int().is_some_and(|n| n != 1) {
        causes.push(success.invalid("must be 1"));
    }
    let grace = probe.get("terminationGracePeriodSeconds");
    if grace.is_set() && name == "readinessProbe" {
        causes.push(grace.invalid("must not be set for readinessProbes"));
    } else if grace.int().is_some_and(|n| n < 1) {
        causes.push(grace.invalid("must be greater than 0"));
    }
}

fn handler(at: &Field, allowed: &[&str], causes: &mut Vec<Cause>) {
    let mut set = allowed.iter().map(|name| (*name, at.get(name))).filter(|(_, field)| field.is_set());
    let Some((name, field)) = set.next() else {
        causes.push(Cause::required(&at.path, "must specify a handler type"));
        return;
    };
    for (_, extra) in set {
        causes.push(Cause::forbidden(&extra.path, "may not specify more than 1 handler type"));
    }
    match name {
        "exec" if field.get("command").len() == 0 => {
            causes.push(Cause::required(format!("{}.command", field.path), ""))
        }
        "httpGet" => {
            field.get("path").need_text(causes);
            port_or_name(&field.get("port"), causes);
            field.get("scheme").one_of(causes, &["HTTP", "HTTPS"]);
            let headers = field.get("httpHeaders");
            for header in headers.items() {
                let name = header.get("name").text();
                let wrong = names::http_header(name);
                causes.extend(wrong.iter().map(|wrong| Cause::invalid(&headers.path, name, wrong)));
            }
        }
        "tcpSocket" => port_or_name(&field.get("port"), causes),
        "grpc" => causes.extend(
            names::port(field.get("port").int().unwrap_or(0)).iter().map(|wrong| field.get("port").invalid(wrong)),
        ),
        _ => {}
    }
}

/// An `IntOrString` that is a port's number or name.
pub fn port_or_name(port: &Field, causes: &mut Vec<Cause>) {
    if port.value.is_string() {
        causes.extend(names::port_name(port.text()).iter().map(|wrong| port.invalid(wrong)));
    } else {
        let number = port.int().unwrap_or(0);
        causes.extend(names::port(number).iter().map(|wrong| Cause::invalid(&port.path, number, wrong)));
    }
}

pub(super) fn resources(resources: &Field, causes: &mut Vec<Cause>) {
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    for (name, amount) in limits.entries().chain(requests.entries()) {
        resource_name(name, &amount, causes);
        validate_amount(&amount, causes);
    }
    for (name, request) in requests.entries() {
        let (Ok(request), Ok(limit)) =
            (crate::quantity::Quantity::of(request.value), crate::quantity::Quantity::of(limits.get(name).value))
        else {
            continue;
        };
        let overcommits =
            !name.starts_with("hugepages-") && (!name.contains('/') || name.starts_with("kubernetes.io/"));
        if overcommits && request > limit {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            causes.push(Cause::invalid(&requests.path, request.to_string(), &detail));
        } else if !overcommits && request != limit {
            causes.push(Cause::invalid(
                &requests.path,
                request.to_string(),
                &format!("must be equal to {name} limit of {limit}"),
            ));
        }
    }
}

fn resource_name(name: &str, amount: &Field, causes: &mut Vec<Cause>) {
    let wrong = names::qualified(name);
    causes.extend(wrong.iter().map(|wrong| Cause::invalid(&amount.path, name, wrong)));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if wrong.is_empty() && !name.contains('/') && !standard {
        causes.push(Cause::invalid(&amount.path, name, "must be a standard resource type or fully qualified"));
        causes.push(Cause::invalid(&amount.path, name, "must be a standard resource for containers"));
    }
}
