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

/// A spec without what may change while a pod waits for its gates, which [`validate_placement`] looks at.
fn anywhere(mut spec: Value) -> Value {
    super::field::remove(&mut spec, "nodeSelector");
    if let Some(affinity) = spec.get_mut("affinity") {
        super::field::remove(affinity, "nodeAffinity");
        if affinity.is_null() || affinity.as_object().is_some_and(serde_json::Map::is_empty) {
            super::field::remove(&mut spec, "affinity");
        }
    }
    spec
}

/// Where a pod that waits for its gates may go: only ever to fewer nodes than before. What it prefers is free.
fn validate_placement(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let [new, old] = [new, old].map(|pod| Field::root(pod).get("spec"));
    let [selector, selected] = [&new, &old].map(|spec| spec.get("nodeSelector"));
    if selected.entries().any(|(key, value)| selector.value.get(key) != Some(value.value)) {
        causes.push(selector.invalid("only additions to spec.nodeSelector are allowed (no mutations or deletions)"));
    }
    const TERMS: [&str; 4] =
        ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let (terms, before) = (new.dig(&TERMS), old.dig(&TERMS));
    if before.len() == 0 {
        return;
    }
    if terms.len() != before.len() {
        causes.push(terms.invalid("no additions/deletions to non-empty NodeSelectorTerms list are allowed"));
        return;
    }
    let list = |term: &Value, name| term.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    for (term, before) in terms.items().zip(before.items()) {
        let [now, was] =
            [&term, &before].map(|term| ["matchExpressions", "matchFields"].map(|name| list(term.value, name)));
        // A term that says nothing selects no node: one that says something would select more.
        let is_narrower = match was.iter().all(Vec::is_empty) {
            true => now.iter().all(Vec::is_empty),
            false => now.iter().zip(&was).all(|(now, was)| now.starts_with(was)),
        };
        if !is_narrower {
            causes.push(term.invalid("only additions are allowed (no mutations or deletions)"));
        }
    }
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
    let is_gated = count(old, "schedulingGates") > 0;
    let fixed = |pod: &Value| if is_gated { anywhere(fixed(pod)) } else { fixed(pod) };
    if is_gated {
        validate_placement(new, old, causes);
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

    /// What queues do (Kueue): they say where a pod may go when they let it go, and never widen what its owner said.
    #[test]
    fn conformance_a_gated_pods_placement_can_be_narrowed() {
        let term = |keys: &[&str]| {
            let all: Vec<Value> = keys.iter().map(|key| json!({ "key": key, "operator": "Exists" })).collect();
            json!({ "matchExpressions": all })
        };
        let required = |terms: &[Value]| {
            let required = json!({ "nodeSelectorTerms": terms });
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } })
        };
        let preferred = json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution":
            [{ "weight": 1, "preference": term(&["p"]) }] } });
        let pods_apart = json!({ "podAntiAffinity": {} });
        let (a, ab, b) = (term(&["a"]), term(&["a", "b"]), term(&["b"]));
        let only = |term: &Value| required(std::slice::from_ref(term));
        // The old selector and affinity, the new ones, whether a pod with gates may be changed so.
        let table = [
            (json!({}), json!({ "x": "y" }), Value::Null, Value::Null, true),
            (json!({ "x": "y" }), json!({ "x": "y", "z": "1" }), Value::Null, Value::Null, true),
            (json!({ "x": "y" }), json!({ "x": "other" }), Value::Null, Value::Null, false),
            (json!({ "x": "y" }), json!({}), Value::Null, Value::Null, false),
            (json!({}), json!({}), Value::Null, only(&a), true),
            (json!({}), json!({}), preferred.clone(), only(&a), true),
            (json!({}), json!({}), only(&a), only(&ab), true),
            (json!({}), json!({}), only(&a), only(&b), false),
            (json!({}), json!({}), only(&ab), only(&a), false),
            (json!({}), json!({}), only(&a), required(&[a.clone(), b.clone()]), false),
            (json!({}), json!({}), only(&json!({})), only(&a), false),
            (json!({}), json!({}), only(&a), Value::Null, false),
            (json!({}), json!({}), Value::Null, pods_apart, false),
        ];
        for (selector, wanted, affinity, placed, is_fine) in table {
            let pod = |selector: &Value, affinity: &Value, gates: Value| {
                json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }],
                    "nodeSelector": selector, "affinity": affinity, "schedulingGates": gates } })
            };
            let gate = json!([{ "name": "queue" }]);
            let changed = |before: Value, after: Value| {
                let (old, new) = (pod(&selector, &affinity, before), pod(&wanted, &placed, after));
                let mut causes = Vec::new();
                (POD.validate_update)(&POD, &new, &old, &mut causes);
                causes
            };
            let shown = format!("{selector} {affinity} -> {wanted} {placed}");
            assert_eq!(changed(gate.clone(), gate.clone()).is_empty(), is_fine, "{shown}");
            assert_eq!(changed(gate, json!([])).is_empty(), is_fine, "with its last gate: {shown}");
            assert!(!changed(json!([]), json!([])).is_empty(), "without gates: {shown}");
        }
    }

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
