//! The discovery documents: which groups, versions and resources there are. All of it comes from
//! a [`Registry`] and from the few kinds that are only ever created ([`REVIEWS`]).
//!
//! Two forms: the documents of each group and version, that every client knows, and the aggregated
//! form, that clients since 1.26 ask for with an `Accept` header ([`wants_aggregated`]).

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::kinds::{Kind, Subresource};
use crate::registry::{Registry, preference};

/// The verbs of a stored resource, in upstream's order.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// The same without `deletecollection`: one request must not remove every namespace.
const VERBS_ONE_BY_ONE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];

/// A resource that is created and answered, but not stored.
pub struct Review {
    /// The API group; the version is `v1`.
    pub group: &'static str,
    /// The kind that is posted and answered.
    pub kind: &'static str,
    /// The resource.
    pub plural: &'static str,
    /// Whether the path names a namespace.
    pub namespaced: bool,
}

/// The resources that are answered and not stored.
pub static REVIEWS: &[Review] = &[
    Review { group: "", kind: "Binding", plural: "bindings", namespaced: true },
    Review { group: "authentication.k8s.io", kind: "TokenReview", plural: "tokenreviews", namespaced: false },
    Review {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        namespaced: true,
    },
];

/// A group and version, and what is in it.
struct GroupVersion<'a> {
    group: &'a str,
    version: &'a str,
    kinds: Vec<&'a Kind>,
    reviews: Vec<&'static Review>,
}

/// Every group and version: the core group first, then in the order of the registry; of one group the preferred
/// version first.
fn group_versions(registry: &Registry) -> Vec<GroupVersion<'_>> {
    let mut order: HashMap<&str, usize> = HashMap::from([("", 0)]);
    let mut all: BTreeMap<(usize, &str), GroupVersion<'_>> = BTreeMap::new();
    let mut index_of = |group| {
        let next = order.len();
        *order.entry(group).or_insert(next)
    };
    let empty = |group, version| GroupVersion { group, version, kinds: Vec::new(), reviews: Vec::new() };
    for kind in registry.all() {
        let (group, version) = (&*kind.group, &*kind.version);
        all.entry((index_of(group), version)).or_insert_with(|| empty(group, version)).kinds.push(kind);
    }
    for review in REVIEWS {
        all.entry((index_of(review.group), "v1")).or_insert_with(|| empty(review.group, "v1")).reviews.push(review);
    }
    let mut all: Vec<(usize, GroupVersion<'_>)> = all.into_iter().map(|((index, _), gv)| (index, gv)).collect();
    all.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| preference(one.version, other.version)));
    all.into_iter().map(|(_, gv)| gv).collect()
}

impl GroupVersion<'_> {
    fn name(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// All versions of all groups as `(group, version)`, the core group's first.
pub fn served_versions(registry: &Registry) -> Vec<(&str, &str)> {
    group_versions(registry).iter().map(|gv| (gv.group, gv.version)).collect()
}

/// `/api`: `APIVersions`. `address` is where clients reach this server, as `192.168.0.1:6443`.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
    })
}

/// `/apis`: `APIGroupList`, without the core group.
pub fn api_group_list(registry: &Registry) -> Value {
    let all = group_versions(registry);
    let mut names: Vec<&str> = all.iter().map(|gv| gv.group).filter(|group| !group.is_empty()).collect();
    names.dedup();
    let groups: Vec<Value> = names.into_iter().map(|name| group(name, &all)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/<group>`: `APIGroup`.
pub fn api_group(registry: &Registry, name: &str) -> Option<Value> {
    let all = group_versions(registry);
    if name.is_empty() || !all.iter().any(|gv| gv.group == name) {
        return None;
    }
    let mut document = group(name, &all);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn group(name: &str, all: &[GroupVersion]) -> Value {
    let versions: Vec<Value> = all
        .iter()
        .filter(|gv| gv.group == name)
        .map(|gv| json!({ "groupVersion": gv.name(), "version": gv.version }))
        .collect();
    json!({ "name": name, "preferredVersion": versions.first(), "versions": versions })
}

/// Upstream's name for the options of a kind's `proxy` subresource.
fn proxy_options(kind: &Kind) -> &'static str {
    match &*kind.kind {
        "Service" => "ServiceProxyOptions",
        "Node" => "NodeProxyOptions",
        _ => "PodProxyOptions",
    }
}

/// What a subresource takes or answers, and its verbs: `(group, version, kind, verbs)`.
pub(crate) fn subresource(kind: &Kind, subresource: Subresource) -> (&str, &str, &str, &'static [&'static str]) {
    match subresource {
        Subresource::Scale => ("autoscaling", "v1", "Scale", READ_WRITE),
        Subresource::Binding => ("", "v1", "Binding", &["create"]),
        Subresource::Eviction => ("policy", "v1", "Eviction", &["create"]),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        Subresource::Exec => ("", "v1", "PodExecOptions", &["create", "get"]),
        Subresource::Attach => ("", "v1", "PodAttachOptions", &["create", "get"]),
        Subresource::PortForward => ("", "v1", "PodPortForwardOptions", &["create", "get"]),
        Subresource::Proxy => ("", "v1", proxy_options(kind), &["create", "delete", "get", "patch", "update"]),
        Subresource::Log => (&kind.group, &kind.version, &kind.kind, &["get"]),
        Subresource::Finalize => (&kind.group, &kind.version, &kind.kind, &["update"]),
        Subresource::Status | Subresource::Resize | Subresource::EphemeralContainers | Subresource::Approval => {
            (&kind.group, &kind.version, &kind.kind, READ_WRITE)
        }
    }
}

/// The path segment of a subresource.
pub fn segment(subresource: Subresource) -> &'static str {
    match subresource {
        Subresource::Status => "status",
        Subresource::Scale => "scale",
        Subresource::Binding => "binding",
        Subresource::Eviction => "eviction",
        Subresource::Log => "log",
        Subresource::Proxy => "proxy",
        Subresource::Exec => "exec",
        Subresource::Attach => "attach",
        Subresource::PortForward => "portforward",
        Subresource::Token => "token",
        Subresource::Finalize => "finalize",
        Subresource::Resize => "resize",
        Subresource::EphemeralContainers => "ephemeralcontainers",
        Subresource::Approval => "approval",
    }
}

fn verbs(kind: &Kind) -> &[&'static str] {
    match &*kind.verbs {
        [] if kind.subresources.contains(&Subresource::Finalize) => VERBS_ONE_BY_ONE,
        [] => VERBS,
        verbs => verbs,
    }
}

/// `/api/v1` and `/apis/<group>/<version>`: `APIResourceList`.
pub fn api_resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let gv = group_versions(registry).into_iter().find(|gv| gv.group == group && gv.version == version)?;
    let mut resources = Vec::new();
    for review in &gv.reviews {
        let singular = review.kind.to_lowercase();
        resources.push(json!({ "name": review.plural, "singularName": singular, "namespaced": review.namespaced,
            "kind": review.kind, "verbs": ["create"] }));
    }
    for kind in &gv.kinds {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
                "verbs": verbs(kind),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for &sub in kind.subresources.iter() {
            let (group, version, name, verbs) = subresource(kind, sub);
            let path = format!("{}/{}", kind.plural, segment(sub));
            let mut resource = json!({ "name": path, "singularName": "", "namespaced": kind.namespaced, "kind": name,
                "verbs": verbs });
            if (group, version) != (&*kind.group, &*kind.version) {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
            resources.push(resource);
        }
    }
    Some(json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv.name(), "resources": resources }))
}

/// The version of aggregated discovery that an `Accept` header asks for before any other JSON: `v2` or `v2beta1`.
///
/// The answer's content type is [`aggregated_content_type`] of it.
pub fn wants_aggregated(accept: &str) -> Option<&'static str> {
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let parameters: Vec<&str> = parts.collect();
        let aggregated =
            parameters.contains(&"g=apidiscovery.k8s.io") && parameters.contains(&"as=APIGroupDiscoveryList");
        match media {
            "application/json" if aggregated && parameters.contains(&"v=v2") => Some(Some("v2")),
            "application/json" if aggregated && parameters.contains(&"v=v2beta1") => Some(Some("v2beta1")),
            "application/json" if parameters.iter().all(|parameter| !parameter.starts_with("as=")) => Some(None),
            _ => None,
        }
    })?
}

/// The `Content-Type` of [`aggregated`].
pub fn aggregated_content_type(version: &str) -> String {
    format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
}

/// `/api` (`core`) or `/apis` in the aggregated form, of version `v2` or `v2beta1` (their fields are the same).
pub fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let all = group_versions(registry);
    let mut names: Vec<&str> = all.iter().map(|gv| gv.group).filter(|group| group.is_empty() == core).collect();
    names.dedup();
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = all.iter().filter(|gv| gv.group == name).map(aggregated_version).collect();
            let metadata = if name.is_empty() {
                json!({ "creationTimestamp": null })
            } else {
                json!({ "name": name, "creationTimestamp": null })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items })
}

fn aggregated_version(gv: &GroupVersion) -> Value {
    let scope = |namespaced| if namespaced { "Namespaced" } else { "Cluster" };
    // An empty group or version stands for the surrounding one.
    let response = |group: &str, version: &str, kind: &str| {
        let own = (group, version) == (gv.group, gv.version);
        json!({ "group": if own { "" } else { group }, "version": if own { "" } else { version }, "kind": kind })
    };
    let mut resources: Vec<Value> = gv
        .reviews
        .iter()
        .map(|review| {
            json!({ "resource": review.plural, "responseKind": response(gv.group, gv.version, review.kind),
                "scope": scope(review.namespaced),
                "singularResource": review.kind.to_lowercase(), "verbs": ["create"] })
        })
        .collect();
    for kind in &gv.kinds {
        let mut resource = json!({
            "resource": kind.plural, "responseKind": response(&kind.group, &kind.version, &kind.kind),
                "scope": scope(kind.namespaced),
            "singularResource": kind.singular, "verbs": verbs(kind),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        if !kind.subresources.is_empty() {
            let subresources = kind.subresources.iter().map(|&sub| {
                let (group, version, name, verbs) = subresource(kind, sub);
                json!({ "subresource": segment(sub), "responseKind": response(group, version, name), "verbs": verbs })
            });
            resource["subresources"] = subresources.collect();
        }
        resources.push(resource);
    }
    json!({ "version": gv.version, "freshness": "Current", "resources": resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_discovered_in_both_forms() {
        let mut aggregated_names = Vec::new();
        for list in [true, false].map(|core| aggregated(&Registry::built_in(), core, "v2")) {
            for item in list["items"].as_array().expect("items") {
                let group = item["metadata"]["name"].as_str().unwrap_or("");
                for version in item["versions"].as_array().expect("versions") {
                    for resource in version["resources"].as_array().expect("resources") {
                        aggregated_names
                            .push(format!("{group}/{}/{}", version["version"], resource["resource"]).replace('"', ""));
                    }
                }
            }
        }
        for kind in Registry::built_in().all() {
            let list = api_resource_list(&Registry::built_in(), &kind.group, &kind.version).expect("a list");
            let row = list["resources"]
                .as_array()
                .expect("resources")
                .iter()
                .find(|row| row["name"] == *kind.plural)
                .expect("a row");
            assert_eq!((&row["kind"], &row["namespaced"]), (&json!(kind.kind), &kind.namespaced.into()));
            assert!(aggregated_names.contains(&format!("{}/{}/{}", kind.group, kind.version, kind.plural)));
        }
        assert!(
            api_resource_list(&Registry::built_in(), "nope", "v1").is_none()
                && api_group(&Registry::built_in(), "").is_none()
                && api_group(&Registry::built_in(), "apps").is_some()
        );
    }

    #[test]
    fn groups_are_listed_once_with_the_newest_version_first() {
        let list = api_group_list(&Registry::built_in());
        let mut names: Vec<&str> =
            list["groups"].as_array().expect("groups").iter().filter_map(|group| group["name"].as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(served_versions(&Registry::built_in()).first(), Some(&("", "v1")));
        let apps = api_group(&Registry::built_in(), "apps").expect("apps");
        assert_eq!(apps["preferredVersion"], json!({ "groupVersion": "apps/v1", "version": "v1" }));
    }

    #[test]
    fn pods_as_upstream() {
        let list = api_resource_list(&Registry::built_in(), "", "v1").expect("core");
        let find = |name: &str| {
            list["resources"].as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name)).cloned()
        };
        assert_eq!(find("pods").map(|row| row["shortNames"].clone()), Some(json!(["po"])));
        assert_eq!(
            find("pods/eviction"),
            Some(json!({ "name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy",
                    "version": "v1", "kind": "Eviction", "verbs": ["create"] }))
        );
    }

    #[test]
    fn accept_headers_of_kubectl() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(wants_aggregated(kubectl), Some("v2"));
        assert_eq!(
            wants_aggregated(
                "application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io,application/json"
            ),
            Some("v2beta1")
        );
        assert_eq!(wants_aggregated("application/json, */*"), None);
        assert_eq!(wants_aggregated(""), None);
    }
}
