//! What every namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.
//!
//! Relies on: the server giving both to a namespace when it is made; the CA in `kube-system` is the original.
//! Guarantees: both are made again when they are deleted, and the copy follows the original.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONFIG_MAP, NAMESPACE, SERVICE_ACCOUNT};
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Waiting, Write};
use crate::pods::is_terminating;
use crate::snapshot::{Change, ROOT_CA, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "serviceaccount-controller",
    permits: &[(Verb::Create, "serviceaccounts"), (Verb::Create, "configmaps"), (Verb::Patch, "configmaps")],
    reads: &["namespaces", "serviceaccounts", "configmaps"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == NAMESPACE {
        wake(change.key.clone());
    } else if change.kind == CONFIG_MAP && change.key == source() {
        after.namespaces.keys().for_each(|key| wake(key.clone()));
    } else if (change.kind == SERVICE_ACCOUNT && &*change.key.name == "default")
        || (change.kind == CONFIG_MAP && &*change.key.name == ROOT_CA)
    {
        wake(ObjectKey::new("", change.key.namespace.clone()));
    }
}

fn source() -> ObjectKey {
    ObjectKey::new("kube-system", ROOT_CA)
}

/// One namespace and what it has.
pub struct Observed<'a> {
    namespace: &'a str,
    account: bool,
    /// The CA as the server published it.
    original: Option<&'a ConfigMap>,
    copy: Option<&'a ConfigMap>,
}

/// The namespace at `key`, unless it is on its way out.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &'a ObjectKey) -> Option<Observed<'a>> {
    snapshot.namespaces.get(key).filter(|namespace| !is_terminating(&namespace.metadata))?;
    let of = |name: &str| ObjectKey::new(key.name.clone(), name);
    Some(Observed {
        namespace: &key.name,
        account: snapshot.service_accounts.contains_key(&of("default")),
        original: snapshot.root_cas.get(&source()).map(|map| &**map),
        copy: snapshot.root_cas.get(&of(ROOT_CA)).map(|map| &**map),
    })
}

/// One step of a namespace.
pub fn decide(o: &Observed, _: Timestamp) -> Decision {
    let mut d = Decision::default();
    if !o.account {
        let metadata = json!({ "namespace": o.namespace, "name": "default" });
        let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
        d.push_apart(Write::Create { kind: SERVICE_ACCOUNT.clone(), object });
    }
    match (o.original, o.copy) {
        (None, _) => d.waiting.push(Waiting::Missing { what: format!("configmap {}", source()) }),
        (Some(original), None) => {
            let metadata =
                json!({ "namespace": o.namespace, "name": ROOT_CA, "annotations": original.metadata.annotations });
            let object =
                json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": original.data });
            d.push_apart(Write::Create { kind: CONFIG_MAP.clone(), object });
        }
        (Some(original), Some(copy)) if original.data != copy.data => {
            let mut data = json!(original.data);
            // A merge patch keeps what it does not name; entries that are not the original's are nulled away.
            for name in copy.data.iter().flatten().map(|(name, _)| name) {
                if original.data.as_ref().is_none_or(|data| !data.contains_key(name)) {
                    data[name.as_str()] = json!(null);
                }
            }
            d.push_apart(Write::patch(&CONFIG_MAP, &copy.metadata, json!({ "data": data })));
        }
        _ => {}
    }
    d
}
