//! Where an object is in the store: `/<group or "core">/<plural>/<namespace or "">/<name>`, of the kind whose form is
//! stored: all versions of a kind are at one key.

use std::borrow::Cow;

use bytes::Bytes;
use mainstay_api::{Kind, ObjectKey, Registry};
use mainstay_store::Index;
use serde::Deserialize;

/// Pods by the node that they are bound to; `""` are those that have none.
pub const PODS_BY_NODE: Index = Index { prefix: b"/core/pods/", text_of: node_of };

/// The field by which clients ask for [`PODS_BY_NODE`].
pub const NODE_OF_POD: &str = "spec.nodeName";

fn node_of(pod: &[u8]) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Pod<'a> {
        #[serde(borrow, default)]
        spec: Option<Spec<'a>>,
    }
    #[derive(Deserialize)]
    struct Spec<'a> {
        #[serde(borrow, default, rename = "nodeName")]
        node_name: Option<Cow<'a, str>>,
    }
    let pod: Pod<'_> = serde_json::from_slice(pod).ok()?;
    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    Some(Bytes::copy_from_slice(node.as_bytes()))
}

fn group_segment(kind: &Kind) -> &str {
    if kind.group.is_empty() { "core" } else { &kind.group }
}

/// The key of one object.
pub fn object(kind: &Kind, namespace: &str, name: &str) -> Bytes {
    let kind = kind.stored();
    Bytes::from(format!("/{}/{}/{namespace}/{name}", group_segment(kind), kind.plural))
}

/// What all keys of a kind start with; with a namespace, those of that namespace.
pub fn prefix(kind: &Kind, namespace: Option<&str>) -> Bytes {
    let kind = kind.stored();
    match namespace {
        Some(namespace) => Bytes::from(format!("/{}/{}/{namespace}/", group_segment(kind), kind.plural)),
        None => Bytes::from(format!("/{}/{}/", group_segment(kind), kind.plural)),
    }
}

/// The stored kind and the name behind a key; `None` for keys that hold no object (allocations).
pub fn parse(registry: &Registry, key: &[u8]) -> Option<(Kind, ObjectKey)> {
    let key = std::str::from_utf8(key).ok()?;
    let mut segments = key.strip_prefix('/')?.splitn(4, '/');
    let (group, plural, namespace, name) = (segments.next()?, segments.next()?, segments.next()?, segments.next()?);
    let group = if group == "core" { "" } else { group };
    let kind = registry.stored(group, plural)?;
    Some((kind.clone(), ObjectKey::new(namespace, name)))
}

/// The name in an object's key.
pub fn name_in(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.rsplit_once('/').map(|(_, name)| name)
}

/// The key that is taken by whoever has this Service address. It exists as long as the Service does, in the same
/// transactions, so no two Services can get one address, whatever they have read before.
pub fn cluster_ip(address: &str) -> Bytes {
    Bytes::from(format!("/!allocated/clusterips/{address}"))
}

/// The key that changes with the set of a namespace's quotas, and is there while it has any.
pub fn quotas(namespace: &str) -> Bytes {
    Bytes::from(format!("/!quotas/namespaces/{namespace}"))
}

/// The key that is taken by whoever has this node port.
pub fn node_port(port: i64) -> Bytes {
    Bytes::from(format!("/!allocated/nodeports/{port}"))
}

/// The key that is taken by the node that has this range of pod addresses.
pub fn pod_range(range: &str) -> Bytes {
    Bytes::from(format!("/!allocated/podranges/{}", range.replace('/', "-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lead_back_to_their_objects() {
        let registry = Registry::built_in();
        for kind in registry.all_stored() {
            let namespace = if kind.namespaced { "ns" } else { "" };
            assert_eq!(
                parse(&registry, &object(kind, namespace, "a.b")),
                Some((kind.clone(), ObjectKey::new(namespace, "a.b")))
            );
        }
        assert_eq!(prefix(&mainstay_api::kinds::POD, None), PODS_BY_NODE.prefix);
        assert_eq!(parse(&registry, &cluster_ip("10.96.0.1")), None);
        assert_eq!(parse(&registry, b"/core/pods"), None);
        assert_eq!(parse(&registry, b"\xff"), None);
    }
}
