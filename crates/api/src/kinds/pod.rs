//! Pod: containers that run together on one node.

use std::borrow::Cow::Borrowed;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, text_column, wide};
use super::field::{Field, default, each, made};
use super::{BASE, Kind, Row, Subresource, pod_level, pod_row, pod_spec, pod_spec_validation, pod_warnings, workload};
use crate::object::{at, text};
use crate::quantity::Quantity;
use crate::status::Cause;

/// How long a pod stays on a node that is not ready or not reachable, seconds; admission writes it into every pod.
pub const EVICTION_SECONDS: i64 = 300;
const UPDATE_FORBIDDEN: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
    additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
    previously negative)";

/// The row of Pod.
pub static POD: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Pod"),
    plural: Borrowed("pods"),
    singular: Borrowed("pod"),
    short_names: Borrowed(&[Borrowed("po")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::Log,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::EphemeralContainers,
    ]),
    type_name: Borrowed("io.k8s.api.core.v1.Pod"),
    fields: |_, object| fields(object),
    columns: Borrowed(&[
        NAME,
        text_column("Ready", "Containers that are ready, of all."),
        text_column("Status", "What the pod is doing, in one word."),
        text_column("Restarts", "Restarts of its containers, and when the last was."),
        AGE,
        wide("IP", "Address of the pod."),
        wide("Node", "Node that it is bound to."),
        wide("Nominated Node", "Node that it may get when others have made room."),
        wide("Readiness Gates", "Readiness gates that have passed, of all."),
    ]),
    row: |_, object, now| pod_row::row(object, now),
    defaults: |_, pod| {
        let Some(spec) = made(pod, "spec") else { return };
        pod_spec::defaults(spec);
        pod_spec::requests_from_limits(spec);
        pod_level::default_requests(spec);
        pod_spec::host_ports(spec);
        default(spec, "enableServiceLinks", true);
    },
    prepare_create: |_, pod| {
        let status = json!({ "phase": "Pending", "qosClass": qos_class(pod) });
        workload::prepare_create(pod, status);
    },
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, pod, causes| pod_spec_validation::validate(&Field::root(pod).get("spec"), causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    validate_status: |_, new, old, causes| validate_mirror(new, old, causes),
    warnings: pod_warnings::of_pod,
    ..BASE
});

fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let host_network = at(pod, &["spec", "hostNetwork"]).and_then(Value::as_bool).unwrap_or(false);
    let spec = |field| text(pod, &["spec", field]).to_owned();
    let status = |field| text(pod, &["status", field]).to_owned();
    vec![
        ("spec.nodeName", spec("nodeName")),
        ("spec.restartPolicy", spec("restartPolicy")),
        ("spec.schedulerName", spec("schedulerName")),
        ("spec.serviceAccountName", spec("serviceAccountName")),
        ("spec.hostNetwork", host_network.to_string()),
        ("status.phase", status("phase")),
        ("status.podIP", status("podIP")),
        ("status.nominatedNodeName", status("nominatedNodeName")),
    ]
}

/// The annotation of a pod that its node runs of its own accord and only tells of: it has no service account.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether a pod is the mirror of one that its node runs of its own accord.
pub fn is_mirror(pod: &Value) -> bool {
    at(pod, &["metadata", "annotations", MIRROR]).is_some()
}

/// A pod stays what it is, a mirror or none, as upstream: what its node may read hangs on it.
fn validate_mirror(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let of = |pod: &Value| at(pod, &["metadata", "annotations", MIRROR]).cloned();
    let why = match (of(new), of(old)) {
        (new, old) if new == old => return,
        (_, None) => "may not add mirror pod annotation",
        _ => "may not remove or update mirror pod annotation",
    };
    causes.push(Cause::forbidden(format!("metadata.annotations[{MIRROR}]"), why));
}

/// What upstream's admission plugins write into every new pod: the service account, and the tolerations that keep it
/// for five minutes on a node that is lost. To be called after the defaults, on create only.
pub fn admit(pod: &mut Value) {
    let is_mirror = is_mirror(pod);
    let Some(spec) = made(pod, "spec") else { return };
    if !is_mirror && spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("").is_empty() {
        for field in ["serviceAccountName", "serviceAccount"] {
            super::field::remove(spec, field);
            default(spec, field, "default");
        }
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = each(spec, "tolerations").any(|t| tolerates(t, key));
        if !tolerated {
            default(spec, "tolerations", json!([]));
            if let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
                let seconds = EVICTION_SECONDS;
                list.push(
                    json!({ "effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": seconds }),
                );
            }
        }
    }
}

/// Whether a toleration already covers the NoExecute taint `key`.
fn tolerates(toleration: &Value, key: &str) -> bool {
    let effect = text(toleration, &["effect"]);
    matches!(text(toleration, &["key"]), "" | "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable")
        && (text(toleration, &["key"]) == key || text(toleration, &["key"]).is_empty())
        && matches!(effect, "" | "NoExecute")
}

/// `Guaranteed` where every container (or the pod as a whole) has equal requests and limits of cpu and memory,
/// `BestEffort` where none has any.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = Field::root(pod).get("spec");
    let (mut any, mut guaranteed) = (false, true);
    let containers = ["containers", "initContainers"].iter().flat_map(|list| spec.get(list).items());
    let counted: Vec<Field> = if pod_level::counts(&spec) { vec![spec.clone()] } else { containers.collect() };
    for container in counted {
        for name in ["cpu", "memory"] {
            let amount =
                |list| Quantity::of(container.dig(&["resources", list, name]).value).ok().filter(|q| !q.is_zero());
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The parts of a spec that an update may not touch.
fn fixed(pod: &Value) -> Value {
    let mut spec = pod.get("spec").cloned().unwrap_or_default();
    for list in ["containers", "initContainers"] {
        each(&mut spec, list).for_each(|container| super::field::remove(container, "image"));
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        super::field::remove(&mut spec, field);
    }
    spec
}

/// A stored pod as this server would store it.
fn as_written_now(pod: &Value) -> Value {
    let mut pod = pod.clone();
    crate::schema::drop_empty(&POD, &mut pod);
    (POD.defaults)(&POD, &mut pod);
    pod
}

fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    validate_mirror(new, old, causes);
    let count = |pod: &Value, list| Field::root(pod).dig(&["spec", list]).len();
    for list in ["containers", "initContainers"] {
        if count(new, list) != count(old, list) {
            causes.push(Cause::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return;
        }
    }
    let (mut now, before) = (fixed(new), fixed(old));
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(&before).is_some_and(|n| n < 0) && grace(&now) == Some(1) {
        super::field::keep(&mut now, &before, "terminationGracePeriodSeconds");
    }
    // What an older server stored without a default, or with something empty, is no change (S11).
    if now != before && now != fixed(&as_written_now(old)) {
        causes.push(Cause::forbidden("spec", UPDATE_FORBIDDEN));
    }
    let deadline = |pod: &Value| at(pod, &["spec", "activeDeadlineSeconds"]).and_then(Value::as_i64);
    let path = Field::root(new).dig(&["spec", "activeDeadlineSeconds"]);
    match (deadline(new), deadline(old)) {
        (Some(new), Some(old)) if new > old => {
            causes.push(path.invalid("must be less than or equal to previous value"))
        }
        (None, Some(_)) => causes.push(path.invalid("must not update from a positive integer to nil value")),
        _ => {}
    }
    let tolerations =
        |pod: &Value| at(pod, &["spec", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let (now, before) = (tolerations(new), tolerations(old));
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        super::field::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let now: HashSet<Value> = now.iter().map(without_seconds).collect();
    if !before.iter().all(|toleration| now.contains(&without_seconds(toleration))) {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let gates =
        |pod: &Value| at(pod, &["spec", "schedulingGates"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let before: HashSet<Value> = gates(old).into_iter().collect();
    if gates(new).iter().any(|gate| !before.contains(gate)) {
        causes
            .push(Cause::forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gates"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What upstream's JSON always says (`divisor: "0"`) is said here too; a pod that an older server stored without
    /// it, or with something empty, can still be replaced.
    #[test]
    fn s11_a_default_that_came_later_is_no_change_of_a_pod() {
        let reference = json!([{ "name": "M", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } } }]);
        let container = json!({ "name": "c", "image": "i:1", "env": reference, "tty": false });
        let item = json!({ "path": "x", "resourceFieldRef": { "resource": "limits.cpu", "containerName": "c" } });
        let volume = json!({ "name": "v", "downwardAPI": { "items": [item] } });
        let old = json!({ "metadata": { "name": "p" }, "spec": { "containers": [container], "volumes": [volume] } });
        let mut new = old.clone();
        new["spec"]["containers"][0].as_object_mut().expect("a container").remove("tty");
        (POD.defaults)(&POD, &mut new);
        let divisors = [
            "/spec/containers/0/env/0/valueFrom/resourceFieldRef/divisor",
            "/spec/volumes/0/downwardAPI/items/0/resourceFieldRef/divisor",
        ];
        for divisor in divisors {
            assert_eq!(new.pointer(divisor), Some(&json!("0")), "{divisor}");
        }
        let mut causes = Vec::new();
        (POD.validate_update)(&POD, &new, &old, &mut causes);
        assert!(causes.is_empty(), "{causes:?}");
        new["spec"]["containers"][0]["env"][0]["name"] = json!("N");
        (POD.validate_update)(&POD, &new, &old, &mut causes);
        assert_eq!(causes.len(), 1, "another name is a change");
    }
}
