//! What a node may (M4), as upstream's node authorizer has it: Secrets, ConfigMaps, claims and service accounts' tokens
//! only of the pods that are bound to it, its own Node, Lease and CSINode.
//!
//! Which pod needs what is an index by node, fed by the store's watch of pods; a request costs two look-ups, however
//! many pods there are. A mirror pod needs nothing: a node makes those itself, and what one names must not become what
//! the node may read, whatever admission let pass. What a request writes is looked at in `restriction`, when the object
//! is known.
//!
//! Differs: our node is also the network, DNS and volumes of its machine, so it reads all nodes, namespaces, Services,
//! endpoint slices, volumes and snapshot contents; upstream's proxy and drivers have certificates of their own for
//! that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mainstay_api::kinds::pod;
use mainstay_api::selector::Fields;
use mainstay_api::{ObjectKey, object};
use mainstay_logic::nodes::LEASES;
use mainstay_store::{ReadError, Store};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Attributes;
use crate::api::{Follower, News};

/// What all pods' keys begin with.
const PODS: &str = "/core/pods/";

/// What a node reads whole: what its network, its DNS and its volumes are made of.
const READS: [(&str, &str); 11] = [
    ("", "namespaces"),
    ("", "services"),
    ("", "endpoints"),
    ("", "persistentvolumes"),
    ("discovery.k8s.io", "endpointslices"),
    ("networking.k8s.io", "servicecidrs"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "csidrivers"),
    ("node.k8s.io", "runtimeclasses"),
    ("snapshot.storage.k8s.io", "volumesnapshotcontents"),
    ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents"),
];

/// What a pod may need: the plural of its kind. The namespace is the pod's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Need {
    plural: &'static str,
    key: ObjectKey,
}

#[derive(Debug)]
struct Placed {
    node: Arc<str>,
    needs: Vec<Need>,
}

/// What each node's pods need.
#[derive(Debug)]
pub struct Graph {
    stored: Follower,
    pods: HashMap<ObjectKey, Placed>,
    /// How many pods of the node need it.
    needed: HashMap<Arc<str>, HashMap<Need, usize>>,
}

impl Graph {
    /// The graph of what the store holds.
    pub fn new(store: &Store) -> Result<Self, ReadError> {
        let mut graph = Self { stored: Follower::new(store, PODS), pods: HashMap::new(), needed: HashMap::new() };
        graph.take_in()?;
        Ok(graph)
    }

    /// Takes in what has happened since it was asked last.
    pub fn catch_up(&mut self) {
        if let Err(error) = self.take_in() {
            tracing::error!(%error, "pods could not be read again; no node may read for any until they can");
            self.pods.clear();
            self.needed.clear();
        }
    }

    fn take_in(&mut self) -> Result<(), ReadError> {
        match self.stored.news()? {
            News::Changes(changes) => {
                changes.iter().for_each(|event| self.change(&event.key, (!event.deleted).then_some(&event.value[..])));
            }
            News::All(entries) => {
                self.pods.clear();
                self.needed.clear();
                entries.iter().for_each(|entry| self.change(&entry.key, Some(&entry.value)));
            }
        }
        Ok(())
    }

    fn change(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some(key) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(PODS)) else { return };
        let Some((namespace, name)) = key.split_once('/') else { return };
        let key = ObjectKey::new(namespace, name);
        self.forget(&key);
        let pod = value.and_then(|value| serde_json::from_slice::<PodView>(value).ok());
        let Some(PodView { metadata, spec: Some(spec) }) = pod.filter(|pod| pod.is_bound()) else { return };
        let needs: Vec<Need> = match metadata.is_mirror() {
            true => Vec::new(),
            false => needs(&key, &spec).into_iter().collect(),
        };
        let node: Arc<str> = spec.node_name.as_str().into();
        let counts = self.needed.entry(node.clone()).or_default();
        needs.iter().for_each(|need| *counts.entry(need.clone()).or_default() += 1);
        self.pods.insert(key, Placed { node, needs });
    }

    fn forget(&mut self, pod: &ObjectKey) {
        let Some(Placed { node, needs }) = self.pods.remove(pod) else { return };
        let Some(counts) = self.needed.get_mut(&node) else { return };
        for need in needs {
            if let Some(count) = counts.get_mut(&need) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&need);
                }
            }
        }
        if counts.is_empty() {
            self.needed.remove(&node);
        }
    }

    fn has(&self, node: &str, plural: &'static str, namespace: &str, name: &str) -> bool {
        let need = Need { plural, key: ObjectKey::new(namespace, name) };
        self.needed.get(node).is_some_and(|needs| needs.contains_key(&need))
    }

    /// Whether a pod of the node uses the claim.
    pub fn uses_claim(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.has(node, "persistentvolumeclaims", namespace, name)
    }

    /// Whether the node may; else why not, in upstream's words where it has any.
    pub fn allows(&self, node: &str, what: &Attributes) -> Result<(), String> {
        let reads = matches!(what.verb.as_str(), "get" | "list" | "watch");
        let may = |may: bool| if may { Ok(()) } else { Err(String::new()) };
        let subresource = what.subresource.as_str();
        match (what.group.as_str(), what.resource.as_str()) {
            ("", "secrets") => self.reads(node, "secrets", what),
            ("", "configmaps") => self.reads(node, "configmaps", what),
            ("", "persistentvolumeclaims") if subresource == "status" => match what.verb.as_str() {
                "get" | "update" | "patch" => self.related(node, "persistentvolumeclaims", what),
                _ => Err("can only get/update/patch this type".to_owned()),
            },
            ("", "persistentvolumeclaims") => self.gets(node, "persistentvolumeclaims", what),
            ("resource.k8s.io", "resourceclaims") => self.gets(node, "resourceclaims", what),
            ("", "serviceaccounts") if what.verb == "get" && subresource.is_empty() => {
                self.related(node, "serviceaccounts", what)
            }
            ("", "serviceaccounts") if what.verb != "create" || what.name.is_empty() => {
                Err("can only create tokens for individual service accounts".to_owned())
            }
            ("", "serviceaccounts") if subresource != "token" => {
                Err("can only create token subresource of serviceaccount".to_owned())
            }
            ("", "serviceaccounts") => self.related(node, "serviceaccounts", what),
            ("coordination.k8s.io", "leases") => lease(node, what),
            ("storage.k8s.io", "csinodes") => own(node, what, "CSINode"),
            ("storage.k8s.io", "volumeattachments") => may(what.verb == "get" && subresource.is_empty()),
            ("", "nodes") => match (what.verb.as_str(), subresource) {
                // Whose Node is written is seen when it is known.
                ("create", "") => Ok(()),
                ("update" | "patch", "" | "status") | ("delete", "") => named(node, what),
                // The pod network between machines is made of all Nodes.
                ("get" | "list" | "watch", "") => Ok(()),
                _ => Err(String::new()),
            },
            ("", "pods") => match (what.verb.as_str(), subresource) {
                ("create" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => Ok(()),
                ("get", "") => self.gets_pod(node, what),
                // One pod by its path is a matter of whose it is. What is named by the selector is looked for among the
                // node's own, as it says: a node asks so whether a name is another's by now.
                ("list" | "watch", "") if selects(&what.fields, node) => {
                    let is_path =
                        !what.name.is_empty() && !what.namespace.is_empty() && !names(&what.fields, &what.name);
                    if is_path { self.gets_pod(node, what) } else { Ok(()) }
                }
                ("list" | "watch", "") => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
                _ => Err(String::new()),
            },
            ("", "persistentvolumes")
            | ("snapshot.storage.k8s.io", "volumesnapshotcontents")
            | ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents")
                if matches!(what.verb.as_str(), "update" | "patch") =>
            {
                may(matches!(subresource, "" | "status"))
            }
            ("", "events") | ("events.k8s.io", "events") => {
                may(matches!(what.verb.as_str(), "create" | "update" | "patch") && subresource.is_empty())
            }
            ("certificates.k8s.io", "certificatesigningrequests") => {
                may((what.verb == "create" || reads) && subresource.is_empty())
            }
            ("authentication.k8s.io", "tokenreviews")
            | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
                may(what.verb == "create")
            }
            resource => may(reads && subresource.is_empty() && READS.contains(&resource)),
        }
    }

    /// A pod of the node, or one that is not there: that it is gone is its to know.
    fn gets_pod(&self, node: &str, what: &Attributes) -> Result<(), String> {
        let key = ObjectKey::new(what.namespace.as_str(), what.name.as_str());
        let is_own = match self.pods.get(&key) {
            Some(placed) => &*placed.node == node,
            None => self.stored.store().get(format!("{PODS}{}/{}", what.namespace, what.name).as_bytes()).is_none(),
        };
        if is_own { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
    }

    /// One object of a kind that a pod may mount.
    fn reads(&self, node: &str, plural: &'static str, what: &Attributes) -> Result<(), String> {
        if !matches!(what.verb.as_str(), "get" | "list" | "watch") {
            return Err("can only read resources of this type".to_owned());
        }
        if !what.subresource.is_empty() {
            return Err("cannot read subresource".to_owned());
        }
        if what.namespace.is_empty() {
            return Err("can only read namespaced object of this type".to_owned());
        }
        self.related(node, plural, what)
    }

    fn gets(&self, node: &str, plural: &'static str, what: &Attributes) -> Result<(), String> {
        if what.verb != "get" {
            return Err("can only get individual resources of this type".to_owned());
        }
        if !what.subresource.is_empty() {
            return Err("cannot get subresource".to_owned());
        }
        self.related(node, plural, what)
    }

    fn related(&self, node: &str, plural: &'static str, what: &Attributes) -> Result<(), String> {
        if what.name.is_empty() {
            return Err("No Object name found".to_owned());
        }
        if self.has(node, plural, &what.namespace, &what.name) {
            return Ok(());
        }
        Err(format!("no relationship found between node '{node}' and this object"))
    }
}

/// Whether a field selector takes the object of this name alone.
fn names(fields: &str, name: &str) -> bool {
    Fields::required_by(fields, "metadata.name").as_deref() == Some(name)
}

/// Whether a field selector leaves only the pods of a node.
fn selects(fields: &str, node: &str) -> bool {
    Fields::required_by(fields, "spec.nodeName").as_deref() == Some(node)
}

fn lease(node: &str, what: &Attributes) -> Result<(), String> {
    if !matches!(what.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a node lease".to_owned());
    }
    if what.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    if what.verb != "create" && what.name != node {
        return Err("can only access node lease with the same name as the requesting node".to_owned());
    }
    Ok(())
}

fn own(node: &str, what: &Attributes, kind: &str) -> Result<(), String> {
    if !matches!(what.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return Err(format!("can only get, create, update, patch, or delete a {kind}"));
    }
    if !what.subresource.is_empty() {
        return Err(format!("cannot authorize {kind} subresources"));
    }
    if what.verb != "create" && what.name != node {
        return Err(format!("can only access {kind} with the same name as the requesting node"));
    }
    Ok(())
}

fn named(node: &str, what: &Attributes) -> Result<(), String> {
    if what.name == node {
        return Ok(());
    }
    Err(format!("node '{node}' cannot {} '{}', only its own Node object", what.verb, what.name))
}

/// Whether a volume is this node's business: it lives here, or work on it was given to this node, or a pod here uses
/// its claim.
pub fn owns_volume(graph: &Graph, node: &str, volume: &Value) -> bool {
    let annotations = ["mainstay.io/made-on", "mainstay.io/work-on", "mainstay.io/recycle-on"];
    if annotations.iter().any(|name| object::text(volume, &["metadata", "annotations", name]) == node) {
        return true;
    }
    let terms =
        object::at(volume, &["spec", "nodeAffinity", "required", "nodeSelectorTerms"]).and_then(Value::as_array);
    if let Some(terms) = terms {
        let mut hosts = terms
            .iter()
            .flat_map(|term| term.get("matchExpressions").and_then(Value::as_array).into_iter().flatten())
            .filter(|expression| object::text(expression, &["key"]) == "kubernetes.io/hostname")
            .flat_map(|expression| expression.get("values").and_then(Value::as_array).into_iter().flatten());
        return hosts.any(|host| host.as_str() == Some(node));
    }
    let claim = |field: &str| object::text(volume, &["spec", "claimRef", field]);
    graph.uses_claim(node, claim("namespace"), claim("name"))
}

/// What of a pod names other objects; everything else is passed over.
#[derive(Deserialize)]
struct PodView {
    #[serde(default)]
    metadata: MetadataView,
    spec: Option<SpecView>,
}

impl PodView {
    fn is_bound(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MetadataView {
    annotations: Option<BTreeMap<String, IgnoredAny>>,
}

impl MetadataView {
    fn is_mirror(&self) -> bool {
        self.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(pod::MIRROR))
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SpecView {
    node_name: String,
    service_account_name: String,
    image_pull_secrets: Option<Vec<NameView>>,
    volumes: Option<Vec<Value>>,
    containers: Option<Vec<ContainerView>>,
    init_containers: Option<Vec<ContainerView>>,
    ephemeral_containers: Option<Vec<ContainerView>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NameView {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerView {
    env: Option<Vec<Value>>,
    env_from: Option<Vec<Value>>,
}

/// What a pod names of the cluster's, as the plural of its kind; nothing where it names nothing. Service accounts are
/// not looked at. What cannot be read may name anything.
pub fn names_any(pod: &Value) -> Option<&'static str> {
    let Ok(PodView { spec, .. }) = PodView::deserialize(pod) else { return Some("objects") };
    let key = ObjectKey::new(object::namespace(pod), object::name(pod));
    named_by(&key, &spec.unwrap_or_default()).into_iter().next().map(|need| need.plural)
}

/// Whether a pod names an object of this kind; one that cannot be read may.
pub fn names_one(pod: &Value, plural: &str) -> bool {
    let Ok(PodView { spec, .. }) = PodView::deserialize(pod) else { return true };
    let key = ObjectKey::new(object::namespace(pod), object::name(pod));
    named_by(&key, &spec.unwrap_or_default()).iter().any(|need| need.plural == plural)
}

fn needs(pod: &ObjectKey, spec: &SpecView) -> BTreeSet<Need> {
    let mut needs = named_by(pod, spec);
    let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
    needs.insert(Need { plural: "serviceaccounts", key: ObjectKey::new(pod.namespace.clone(), account) });
    needs
}

/// What containers and volumes of a pod name.
fn named_by(pod: &ObjectKey, spec: &SpecView) -> BTreeSet<Need> {
    let mut needs = BTreeSet::new();
    let mut add = |plural: &'static str, name: &str| {
        if !name.is_empty() {
            needs.insert(Need { plural, key: ObjectKey::new(pod.namespace.clone(), name) });
        }
    };
    spec.image_pull_secrets.iter().flatten().for_each(|secret| add("secrets", &secret.name));
    let all = [&spec.containers, &spec.init_containers, &spec.ephemeral_containers];
    for container in all.into_iter().flatten().flatten() {
        for env in container.env.iter().flatten() {
            add("secrets", object::text(env, &["valueFrom", "secretKeyRef", "name"]));
            add("configmaps", object::text(env, &["valueFrom", "configMapKeyRef", "name"]));
        }
        for from in container.env_from.iter().flatten() {
            add("secrets", object::text(from, &["secretRef", "name"]));
            add("configmaps", object::text(from, &["configMapRef", "name"]));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        add("secrets", object::text(volume, &["secret", "secretName"]));
        add("configmaps", object::text(volume, &["configMap", "name"]));
        add("persistentvolumeclaims", object::text(volume, &["persistentVolumeClaim", "claimName"]));
        if volume.get("ephemeral").is_some() {
            add("persistentvolumeclaims", &format!("{}-{}", pod.name, object::text(volume, &["name"])));
        }
        for driver in ["csi", "cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            for reference in ["nodePublishSecretRef", "secretRef"] {
                add("secrets", object::text(volume, &[driver, reference, "name"]));
            }
        }
        let sources = object::at(volume, &["projected", "sources"]).and_then(Value::as_array).into_iter().flatten();
        for source in sources {
            add("secrets", object::text(source, &["secret", "name"]));
            add("configmaps", object::text(source, &["configMap", "name"]));
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asks(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    fn graph() -> Graph {
        let disk = mainstay_store::Source::backend(redb::backends::InMemoryBackend::new());
        let store = Store::open(disk, mainstay_store::Options::inline()).expect("a store");
        Graph::new(&store).expect("a graph")
    }

    #[test]
    fn m4_a_node_reads_what_its_pods_name_while_they_are_there() {
        let mut graph = graph();
        let pod = |node: &str| {
            json!({ "metadata": { "namespace": "a", "name": "p" }, "spec": {
                "nodeName": node, "serviceAccountName": "sa", "imagePullSecrets": [{ "name": "pull" }],
                "containers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } }],
                    "envFrom": [{ "configMapRef": { "name": "from" } }] }],
                "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "claim" } },
                    { "name": "e", "ephemeral": {} },
                    { "name": "p", "projected": { "sources": [{ "secret": { "name": "projected" } }] } }],
            } })
            .to_string()
        };
        let wanted = [
            asks("get", "secrets", "a", "pull"),
            asks("watch", "secrets", "a", "env"),
            asks("list", "configmaps", "a", "from"),
            asks("get", "secrets", "a", "projected"),
            asks("get", "persistentvolumeclaims", "a", "claim"),
            asks("patch", "persistentvolumeclaims/status", "a", "claim"),
            asks("get", "persistentvolumeclaims", "a", "p-e"),
            asks("create", "serviceaccounts/token", "a", "sa"),
        ];
        let key = b"/core/pods/a/p";
        let may = |graph: &Graph, node: &str| wanted.iter().filter(|what| graph.allows(node, what).is_ok()).count();
        assert_eq!(may(&graph, "n1"), 0);
        graph.change(key, Some(pod("n1").as_bytes()));
        assert_eq!((may(&graph, "n1"), may(&graph, "n2")), (wanted.len(), 0));
        for beyond in [
            asks("get", "secrets", "a", "other"),
            asks("get", "secrets", "b", "env"),
            asks("list", "secrets", "a", ""),
            asks("list", "secrets", "", ""),
            asks("delete", "secrets", "a", "env"),
            asks("patch", "persistentvolumeclaims", "a", "claim"),
            asks("create", "serviceaccounts/token", "a", "default"),
            asks("patch", "nodes", "", "n2"),
            asks("delete", "nodes", "", "n2"),
            asks("deletecollection", "nodes", "", ""),
            asks("update", "pods", "a", "p"),
            asks("get", "roles", "a", "r"),
        ] {
            assert!(graph.allows("n1", &beyond).is_err(), "{beyond:?}");
        }
        assert!(graph.allows("n1", &asks("get", "pods", "a", "p")).is_ok(), "its own");
        assert!(graph.allows("n2", &asks("get", "pods", "a", "p")).is_err(), "another's");
        assert!(graph.allows("n2", &asks("get", "pods", "a", "gone")).is_ok());
        for (fields, may) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n1,metadata.name=p", true),
            ("", false),
            ("spec.nodeName=n2", false),
            ("spec.nodeName!=n1", false),
            ("metadata.name=spec.nodeName=n1", false),
            (r"metadata.namespace!=x\,spec.nodeName=n1", false),
        ] {
            let list = Attributes { fields: fields.to_owned(), ..asks("list", "pods", "", "") };
            assert_eq!(graph.allows("n1", &list).is_ok(), may, "{fields}");
        }
        for (node, may) in [("n1", true), ("n2", false)] {
            let fields = format!("spec.nodeName={node}");
            let one = Attributes { fields, ..asks("watch", "pods", "a", "p") };
            assert_eq!(graph.allows(node, &one).is_ok(), may, "{node}");
        }
        graph.change(key, Some(pod("n2").as_bytes()));
        assert_eq!((may(&graph, "n1"), may(&graph, "n2")), (0, wanted.len()));
        graph.change(key, None);
        assert_eq!(may(&graph, "n2"), 0);
        assert!(graph.needed.is_empty() && graph.pods.is_empty());
    }

    /// A node makes its mirror pods itself, so what one names gives the node nothing, whatever admission let pass.
    #[test]
    fn m4_a_mirror_pod_gives_its_node_nothing() {
        let mut graph = graph();
        let pod = json!({
            "metadata": { "namespace": "kube-system", "name": "p",
                "annotations": { "kubernetes.io/config.mirror": "" } },
            "spec": { "nodeName": "n1", "serviceAccountName": "sa", "imagePullSecrets": [{ "name": "pull" }],
                "containers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } }] }],
                "volumes": [{ "name": "e", "ephemeral": {} }] },
        });
        graph.change(b"/core/pods/kube-system/p", Some(pod.to_string().as_bytes()));
        for what in [
            asks("get", "secrets", "kube-system", "pull"),
            asks("get", "secrets", "kube-system", "env"),
            asks("get", "persistentvolumeclaims", "kube-system", "p-e"),
            asks("create", "serviceaccounts/token", "kube-system", "sa"),
            asks("create", "serviceaccounts/token", "kube-system", "default"),
        ] {
            assert!(graph.allows("n1", &what).is_err(), "{what:?}");
        }
        assert!(graph.allows("n1", &asks("get", "pods", "kube-system", "p")).is_ok(), "the pod is its own");
    }
}
