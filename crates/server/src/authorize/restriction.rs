//! What a node writes, looked at when the object is known (M4), as upstream's NodeRestriction admission.
//!
//! A node changes only its own Node, and no label of it that steers pods; the status of its own pods and claims; its
//! own Lease and CSINode; of a volume only that it made, worked on or released it.

use std::collections::BTreeSet;

use mainstay_api::kinds::pod;
use mainstay_api::{Kind, Status, kinds, object};
use mainstay_logic::nodes::{LEASES, MACHINE};
use serde_json::{Value, json};

use super::{Attributes, node};
use crate::api::{Batch, Part};

/// Labels of Kubernetes' own that a kubelet may set on its Node.
const KUBELET_LABELS: [&str; 13] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "kubernetes.io/role",
];
/// Groups of labels that a kubelet may set.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The node that asks, where one does.
fn node_of(batch: &Batch<'_>) -> Option<String> {
    batch.requester.as_ref()?.user.node().map(str::to_owned)
}

/// Refuses what a node may not write. `old` is the stored object of an update.
pub fn check(batch: &mut Batch<'_>, kind: &Kind, part: Part, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(node) = node_of(batch) else { return Ok(()) };
    let name = object::name(new).to_owned();
    let checked = match (&*kind.group, &*kind.plural) {
        ("", "nodes") => check_node(&node, new, old),
        ("", "pods") => match old {
            Some(old) => check_pod(&node, part, new, old),
            None => {
                let found = batch.get(&kinds::NODE, "", &node)?;
                check_mirror(&node, found.as_ref().map_or("", object::uid), new)
            }
        },
        ("", "persistentvolumeclaims") => check_claim(&node, part, new, old),
        ("", "persistentvolumes") => check_volume(batch, &node, new, old),
        ("coordination.k8s.io", "leases") if object::namespace(new) != LEASES || name != node => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("storage.k8s.io", "csinodes") if name != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        ("snapshot.storage.k8s.io", "volumesnapshotcontents")
        | ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents") => check_content(&node, new, old),
        _ => Ok(()),
    };
    checked.map_err(|why| Status::forbidden(kind, &name, &why))
}

/// Refuses what a node may not delete or evict: pods of others, and Nodes, Leases and CSINodes that are not its own.
pub fn check_delete(batch: &Batch<'_>, kind: &Kind, old: &Value) -> Result<(), Status> {
    let Some(node) = node_of(batch) else { return Ok(()) };
    let name = object::name(old);
    let is_own = match (&*kind.group, &*kind.plural) {
        ("", "pods") => object::text(old, &["spec", "nodeName"]) == node,
        ("", "nodes") | ("coordination.k8s.io", "leases") | ("storage.k8s.io", "csinodes") => name == node,
        _ => false,
    };
    if is_own && *kind == kinds::NODE {
        return check_leaving(&node, old).map_err(|why| Status::forbidden(kind, name, &why));
    }
    if is_own {
        return Ok(());
    }
    let why = format!("node {node:?} can only delete {} that are its own", kind.plural);
    let why = match *kind == kinds::POD {
        true => format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
        false => why,
    };
    Err(Status::forbidden(kind, name, &why))
}

/// A node that leaves takes its Node away, but not what somebody else wrote on it to keep pods away or apart: it would
/// come back without. Differs: upstream's nodes delete no Node.
fn check_leaving(node: &str, old: &Value) -> Result<(), String> {
    let taints = object::at(old, &["spec", "taints"]).and_then(Value::as_array).into_iter().flatten();
    let mut keys = taints.map(|taint| object::text(taint, &["key"]));
    if let Some(key) = keys.find(|key| !key.starts_with("node.kubernetes.io/")) {
        return Err(format!("node {node:?} is not allowed to delete a node with the taint {key}"));
    }
    let labels = object::at(old, &["metadata", "labels"]).and_then(Value::as_object).into_iter().flatten();
    match labels.map(|(key, _)| key).find(|key| is_forbidden_label(key)) {
        Some(key) => Err(format!("node {node:?} is not allowed to delete a node with the label {key}")),
        None => Ok(()),
    }
}

/// Refuses a token that is not for a pod of the node.
pub fn check_token(batch: &mut Batch<'_>, namespace: &str, account: &str, request: &Value) -> Result<(), Status> {
    let Some(node) = node_of(batch) else { return Ok(()) };
    let refuse = |why: &str| Err(Status::forbidden(&kinds::SERVICE_ACCOUNT, account, why));
    let reference = |field: &str| object::text(request, &["spec", "boundObjectRef", field]);
    if reference("kind") != "Pod" || reference("name").is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if reference("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let Some(pod) = batch.get(&kinds::POD, namespace, reference("name"))? else {
        return Err(Status::not_found(&kinds::POD, reference("name")));
    };
    if object::text(&pod, &["spec", "nodeName"]) != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    check_audience(batch, &pod, account, request)
        .map_err(|why| Status::forbidden(&kinds::SERVICE_ACCOUNT, account, &why))
}

/// A node asks for what the pod itself has: a token for an audience that one of its volumes names, its drivers' or its
/// own. Others need the right to, as upstream.
fn check_audience(batch: &mut Batch<'_>, pod: &Value, account: &str, request: &Value) -> Result<(), String> {
    let asked = object::at(request, &["spec", "audiences"]).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let audience = match asked {
        [] => "",
        [one] => one.as_str().unwrap_or(""),
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    if has_audience(batch, pod, audience) {
        return Ok(());
    }
    let Some(requester) = &batch.requester else { return Ok(()) };
    let what = Attributes {
        verb: "request-serviceaccounts-token-audience".to_owned(),
        resource: audience.to_owned(),
        namespace: object::namespace(pod).to_owned(),
        name: account.to_owned(),
        ..Attributes::default()
    };
    let user = &requester.user;
    requester.authorizer.allows(user, &what).map_err(|_| {
        format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this \
                audience",
            user.name
        )
    })
}

/// Whether a volume of the pod's brings a token for this audience (`""`: the API server's).
fn has_audience(batch: &mut Batch<'_>, pod: &Value, audience: &str) -> bool {
    let list = |value: &Value, path: &[&str]| -> Vec<Value> {
        object::at(value, path).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut drivers = BTreeSet::new();
    for volume in list(pod, &["spec", "volumes"]) {
        let projected = list(&volume, &["projected", "sources"]);
        let mut tokens = projected.iter().filter_map(|source| source.get("serviceAccountToken"));
        if tokens.any(|token| object::text(token, &["audience"]) == audience) {
            return true;
        }
        let inline = object::text(&volume, &["csi", "driver"]);
        drivers.extend(Some(inline.to_owned()).filter(|driver| !driver.is_empty()));
        let claim = match object::text(&volume, &["persistentVolumeClaim", "claimName"]) {
            "" if volume.get("ephemeral").is_some() => {
                format!("{}-{}", object::name(pod), object::text(&volume, &["name"]))
            }
            claim => claim.to_owned(),
        };
        let found = |batch: &mut Batch<'_>, kind: &Kind, namespace: &str, name: &str| match name {
            "" => None,
            name => batch.get(kind, namespace, name).ok().flatten(),
        };
        let bound = found(batch, &kinds::PERSISTENT_VOLUME_CLAIM, object::namespace(pod), &claim);
        let volume = bound.and_then(|claim| {
            found(batch, &kinds::PERSISTENT_VOLUME, "", object::text(&claim, &["spec", "volumeName"]))
        });
        drivers.extend(volume.map(|volume| object::text(&volume, &["spec", "csi", "driver"]).to_owned()));
    }
    drivers.into_iter().filter(|driver| !driver.is_empty()).any(|driver| {
        let driver = batch.get(&kinds::CSI_DRIVER, "", &driver).ok().flatten();
        let requests = driver.map(|driver| list(&driver, &["spec", "tokenRequests"])).unwrap_or_default();
        requests.iter().any(|request| object::text(request, &["audience"]) == audience)
    })
}

fn check_node(node: &str, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let name = object::name(new);
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let labels = |value: Option<&Value>| {
        value
            .and_then(|value| object::at(value, &["metadata", "labels"]))
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let (after, before) = (labels(Some(new)), labels(old));
    let mut changed: Vec<&String> =
        after.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(key, _)| key).collect();
    changed.extend(before.keys().filter(|key| !after.contains_key(*key)));
    changed.retain(|key| is_forbidden_label(key));
    if !changed.is_empty() {
        changed.sort();
        let list: Vec<&str> = changed.iter().map(|key| key.as_str()).collect();
        let act = if old.is_some() {
            "is not allowed to modify labels"
        } else {
            "is not allowed to set the following labels"
        };
        return Err(format!("node {node:?} {act}: {}", list.join(", ")));
    }
    if let Some(old) = old {
        let field = |value: &Value, path: &[&str]| object::at(value, path).cloned().unwrap_or_default();
        for (path, what) in [
            (["spec", "taints"], "taints"),
            (["metadata", "ownerReferences"], "ownerReferences"),
            (["spec", "podCIDR"], "podCIDR"),
            (["spec", "configSource"], "configSource"),
        ] {
            if field(new, &path) != field(old, &path) {
                return Err(format!("node {node:?} is not allowed to modify {what}"));
            }
        }
        // Two machines of one name have one certificate's name as well: which of them the Node is, the first one says.
        let machine = |node: &Value| object::text(node, &["metadata", "annotations", MACHINE]).to_owned();
        if !machine(old).is_empty() && machine(new) != machine(old) {
            return Err(format!(
                "node {node:?} is not allowed to modify which machine it is: another one has its name"
            ));
        }
    }
    Ok(())
}

/// Labels by which administrators keep workloads apart, and those of Kubernetes that are not the kubelet's.
fn is_forbidden_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    let is_in = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if is_in("node-restriction.kubernetes.io") {
        return true;
    }
    (is_in("kubernetes.io") || is_in("k8s.io"))
        && !KUBELET_LABELS.contains(&key)
        && !KUBELET_DOMAINS.iter().any(|domain| is_in(domain))
}

fn check_pod(node: &str, part: Part, new: &Value, old: &Value) -> Result<(), String> {
    let bound = |pod: &Value| object::text(pod, &["spec", "nodeName"]) == node;
    if part != Part::Status {
        return Err(format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"));
    }
    if !bound(old) {
        return Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if object::at(new, &["metadata", "labels"]) != object::at(old, &["metadata", "labels"]) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    Ok(())
}

/// A node makes no pods but the mirrors of its own, which name nothing of the cluster's: the node would make what it
/// may read. `uid` is its Node's, empty where there is none.
fn check_mirror(node: &str, uid: &str, pod: &Value) -> Result<(), String> {
    if !pod::is_mirror(pod) {
        let mirror = pod::MIRROR;
        return Err(format!("pod does not have {mirror:?} annotation, node {node:?} can only create mirror pods"));
    }
    if object::text(pod, &["spec", "nodeName"]) != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = object::at(pod, &["metadata", "ownerReferences"]).and_then(Value::as_array);
    let own = owners.and_then(|owners| match owners.as_slice() {
        [owner] if object::text(owner, &["kind"]) == "Node" && object::text(owner, &["name"]) == node => Some(owner),
        _ => None,
    });
    let Some(own) = own.filter(|owner| object::at(owner, &["controller"]) == Some(&json!(true))) else {
        return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
    };
    if object::at(own, &["blockOwnerDeletion"]) == Some(&json!(true)) {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let owner = object::text(own, &["uid"]);
    if uid.is_empty() || owner != uid {
        return Err(format!("node {node} UID mismatch: expected {owner} got {uid}"));
    }
    match refers(pod) {
        Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// What a mirror pod refers to that it must not.
fn refers(pod: &Value) -> Option<&'static str> {
    if !object::text(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Some("a service account");
    }
    if let Some(plural) = node::names_any(pod) {
        return Some(plural);
    }
    let list = |value: &Value, path: &[&str]| -> Vec<Value> {
        object::at(value, path).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    if !list(pod, &["spec", "resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    let volumes = list(pod, &["spec", "volumes"]);
    for (field, what) in
        [("secret", "secrets"), ("configMap", "configmaps"), ("persistentVolumeClaim", "persistentvolumeclaims")]
    {
        if volumes.iter().any(|volume| volume.get(field).is_some()) {
            return Some(what);
        }
    }
    let sources: Vec<Value> = volumes.iter().flat_map(|volume| list(volume, &["projected", "sources"])).collect();
    let of_cluster = [
        ("clusterTrustBundle", "clustertrustbundles"),
        ("serviceAccountToken", "a service account's token"),
        ("podCertificate", "pod certificates"),
    ];
    let found = of_cluster.into_iter().find(|(field, _)| sources.iter().any(|source| source.get(field).is_some()));
    found.map(|(_, what)| what)
}

fn check_claim(node: &str, part: Part, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let (Some(old), Part::Status) = (old, part) else { return Err("may only update PVC status".to_owned()) };
    let bare = |claim: &Value| {
        let mut claim = claim.clone();
        let metadata = object::ensure(&mut claim, &["metadata"]);
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
        if let Some(Value::Object(status)) = claim.get_mut("status") {
            for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
                status.remove(field);
            }
        }
        claim
    };
    if bare(new) == bare(old) {
        return Ok(());
    }
    Err(format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions"))
}

/// Notes of its work (annotations of ours) on volumes that are its business, and letting them go.
fn check_volume(batch: &Batch<'_>, node: &str, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let Some(old) = old else { return Err(format!("node {node:?} may not create volumes")) };
    let is_own = batch.requester.as_ref().is_some_and(|requester| requester.authorizer.owns_volume(node, old));
    if !is_own {
        return Err(format!("node {node:?} is not allowed to modify volumes of other nodes"));
    }
    let bare = |volume: &Value| {
        let mut volume = volume.clone();
        let metadata = object::ensure(&mut volume, &["metadata"]);
        for field in ["resourceVersion", "managedFields", "finalizers"] {
            metadata.remove(field);
        }
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.retain(|key, _| !key.starts_with("mainstay.io/"));
        }
        if metadata.get("annotations").is_some_and(|annotations| *annotations == json!({})) {
            metadata.remove("annotations");
        }
        volume
    };
    if bare(new) == bare(old) {
        return Ok(());
    }
    Err(format!("node {node:?} is not allowed to update fields other than its own annotations and finalizers"))
}

/// Snapshots that were given to this node.
fn check_content(node: &str, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let on =
        |content: &Value| object::text(content, &["metadata", "annotations", "mainstay.io/snapshot-on"]).to_owned();
    match old {
        Some(old) if on(old) == node && on(new) == node => Ok(()),
        _ => Err(format!("node {node:?} is not allowed to modify snapshots of other nodes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m4_a_node_keeps_its_hands_off_labels_that_steer_pods() {
        for forbidden in [
            "node-restriction.kubernetes.io/pci",
            "eu.node-restriction.kubernetes.io/x",
            "node-role.kubernetes.io/master",
            "example.k8s.io/x",
            "kubernetes.io/x",
        ] {
            assert!(is_forbidden_label(forbidden), "{forbidden}");
        }
        for free in
            ["kubernetes.io/hostname", "example.org/disk", "disk", "sub.node.kubernetes.io/x", "notkubernetes.io/x"]
        {
            assert!(!is_forbidden_label(free), "{free}");
        }
        let node = |labels: Value| json!({ "metadata": { "name": "n1", "labels": labels } });
        let (old, same) =
            (node(json!({ "node-role.kubernetes.io/a": "" })), node(json!({ "node-role.kubernetes.io/a": "" })));
        assert_eq!(check_node("n1", &same, Some(&old)), Ok(()));
        let gone = check_node("n1", &node(json!({})), Some(&old)).expect_err("taken away");
        assert_eq!(gone, "node \"n1\" is not allowed to modify labels: node-role.kubernetes.io/a");
        assert!(check_node("n2", &same, Some(&old)).is_err());
        let mut tainted = same.clone();
        tainted["spec"]["taints"] = json!([]);
        assert!(check_node("n1", &tainted, Some(&old)).is_err());
    }

    #[test]
    fn m4_a_node_tells_of_its_pods_and_claims_and_no_more() {
        let pod =
            |node: &str, label: &str| json!({ "metadata": { "labels": { "a": label } }, "spec": { "nodeName": node } });
        let status = |old: &Value, new: &Value| check_pod("n1", Part::Status, new, old);
        assert_eq!(status(&pod("n1", "x"), &pod("n1", "x")), Ok(()));
        assert!(status(&pod("n2", "x"), &pod("n2", "x")).is_err());
        assert!(status(&pod("n1", "x"), &pod("n1", "y")).is_err());
        assert!(check_pod("n1", Part::Main, &pod("n1", "x"), &pod("n1", "x")).is_err());
        assert!(check_mirror("n1", "u", &pod("n1", "x")).is_err());
        let claim = |capacity: &str, phase: &str| {
            json!({ "metadata": {},
            "status": { "capacity": { "storage": capacity }, "phase": phase } })
        };
        let told = |old: &Value, new: &Value| check_claim("n1", Part::Status, new, Some(old));
        assert_eq!(told(&claim("1Gi", "Bound"), &claim("2Gi", "Bound")), Ok(()));
        assert!(told(&claim("1Gi", "Bound"), &claim("1Gi", "Lost")).is_err());
    }
    #[test]
    fn m4_a_mirror_pod_names_nothing_of_the_clusters() {
        let mirror = |spec: Value, uid: &str| {
            let mut pod = json!({
                "metadata": { "namespace": "kube-system", "name": "p", "annotations": { pod::MIRROR: "x" },
                    "ownerReferences": [{ "kind": "Node", "name": "n1", "uid": uid, "controller": true }] },
                "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
            });
            if let (Some(all), Value::Object(more)) = (pod["spec"].as_object_mut(), spec) {
                all.extend(more);
            }
            pod
        };
        let of = |spec: Value| check_mirror("n1", "u", &mirror(spec, "u"));
        assert_eq!(of(json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/x" } }] })), Ok(()));
        assert!(check_mirror("n1", "u", &mirror(json!({}), "other")).is_err_and(|why| why.contains("UID mismatch")));
        assert!(check_mirror("n1", "", &mirror(json!({}), "")).is_err(), "there is no Node");
        let secret = json!({ "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } });
        let volume = |volume: Value| json!({ "volumes": [volume] });
        let source = |source: Value| json!({ "volumes": [{ "name": "v", "projected": { "sources": [source] } }] });
        for named in [
            json!({ "serviceAccountName": "default" }),
            json!({ "containers": [{ "name": "c", "env": [secret] }] }),
            json!({ "initContainers": [{ "name": "c", "envFrom": [{ "secretRef": { "name": "s" } }] }] }),
            json!({ "ephemeralContainers": [{ "name": "c", "envFrom": [{ "configMapRef": { "name": "s" } }] }] }),
            json!({ "imagePullSecrets": [{ "name": "pull" }] }),
            json!({ "resourceClaims": [{ "name": "r", "resourceClaimName": "r" }] }),
            volume(json!({ "name": "v", "secret": { "secretName": "s" } })),
            volume(json!({ "name": "v", "ephemeral": {} })),
            volume(json!({ "name": "v", "persistentVolumeClaim": { "claimName": "c" } })),
            volume(json!({ "name": "v", "csi": { "driver": "d", "nodePublishSecretRef": { "name": "s" } } })),
            volume(json!({ "name": "v", "iscsi": { "secretRef": { "name": "s" } } })),
            source(json!({ "secret": { "name": "s" } })),
            source(json!({ "configMap": { "name": "s" } })),
            source(json!({ "serviceAccountToken": { "path": "t", "audience": "vault" } })),
            source(json!({ "clusterTrustBundle": { "name": "b", "path": "t" } })),
        ] {
            let refused = of(named.clone());
            assert!(refused.is_err_and(|why| why.contains("can not create pods that reference")), "{named}");
        }
    }

    #[test]
    fn s1_which_machine_a_node_is_changes_only_from_none() {
        let node = |machine: Value| json!({ "metadata": { "name": "n1", "annotations": { MACHINE: machine } } });
        let bare = json!({ "metadata": { "name": "n1" } });
        assert_eq!(check_node("n1", &node(json!("a")), Some(&bare)), Ok(()));
        assert_eq!(check_node("n1", &node(json!("a")), Some(&node(json!("a")))), Ok(()));
        assert!(check_node("n1", &node(json!("b")), Some(&node(json!("a")))).is_err());
        assert!(check_node("n1", &bare, Some(&node(json!("a")))).is_err(), "nor by way of none");
    }
}
