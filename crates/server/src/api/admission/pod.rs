//! What a new pod is given: its service account, that account's token, the usual tolerations.

use mainstay_api::{Status, kinds, names, object};
use serde_json::{Value, json};

use crate::api::Batch;
use crate::authorize::node;

/// Where a container finds its service account's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What its volume's name begins with.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// How long a projected token is good for, in seconds: upstream's odd number, which tells a default from a wish.
const TOKEN_SECONDS: i64 = 3607;

/// Upstream's ServiceAccount and DefaultTolerationSeconds plugins. A mirror pod is given no account and no token: it is
/// what its node says it is.
pub fn admit(batch: &mut Batch<'_>, pod: &mut Value) -> Result<(), Status> {
    kinds::pod::admit(pod);
    if kinds::pod::is_mirror(pod) {
        return match mirror_names(pod) {
            Some(what) => {
                let why = format!("a mirror pod may not {what}");
                Err(Status::forbidden(&kinds::POD, object::name(pod), &why))
            }
            None => Ok(()),
        };
    }
    let account_name = object::text(pod, &["spec", "serviceAccountName"]).to_owned();
    object::ensure(pod, &["spec"]).insert("serviceAccount".to_owned(), account_name.clone().into());
    let namespace = object::namespace(pod).to_owned();
    let Some(account) = batch.look_at(&kinds::SERVICE_ACCOUNT, &namespace, &account_name)? else {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        return Err(Status::forbidden(&kinds::POD, object::name(pod), &why));
    };
    let spec = object::ensure(pod, &["spec"]);
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) =
            account.get("imagePullSecrets").filter(|secrets| secrets.as_array().is_some_and(|list| !list.is_empty()))
    {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    let of_pod = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    let of_account = account.get("automountServiceAccountToken").and_then(Value::as_bool);
    if of_pod.or(of_account).unwrap_or(true) {
        mount_token(batch, pod);
    }
    Ok(())
}

/// What a mirror pod names and must not, in upstream's words.
fn mirror_names(pod: &Value) -> Option<&'static str> {
    if !object::text(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Some("reference service accounts");
    }
    if node::names_one(pod, "secrets") {
        return Some("reference secrets");
    }
    let volumes = object::at(pod, &["spec", "volumes"]).and_then(Value::as_array).into_iter().flatten();
    let mut sources =
        volumes.flat_map(|volume| object::at(volume, &["projected", "sources"]).and_then(Value::as_array)).flatten();
    let has_token = sources.any(|source| source.get("serviceAccountToken").is_some());
    has_token.then_some("use service account token volume projections")
}

/// Adds the projected volume with token, CA and namespace, and mounts it where nothing is mounted there yet.
fn mount_token(batch: &Batch<'_>, pod: &mut Value) {
    let volumes = object::at(pod, &["spec", "volumes"]).and_then(Value::as_array).into_iter().flatten();
    let known = volumes.map(|volume| object::text(volume, &["name"])).find(|name| name.starts_with(TOKEN_VOLUME));
    let known = known.map(str::to_owned);
    let name = known.clone().unwrap_or_else(|| names::generated(TOKEN_VOLUME, batch.random()));
    let spec = object::ensure(pod, &["spec"]);
    let mut is_mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().all(|mount| object::text(mount, &["mountPath"]) != TOKEN_PATH) {
                mounts.push(json!({ "name": name, "mountPath": TOKEN_PATH, "readOnly": true }));
                is_mounted = true;
            }
        }
    }
    if !is_mounted || known.is_some() {
        return;
    }
    let volume = json!({ "name": name, "projected": { "defaultMode": 420, "sources": [
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1",
            "fieldPath": "metadata.namespace" } }] } },
    ] } });
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}
