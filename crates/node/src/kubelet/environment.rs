//! A container's environment: all of Kubernetes' sources, and `$(VAR)` in values, commands and arguments.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Container, EnvVarSource};
use mainstay_api::ObjectKey;
use serde_json::Value;

use super::objects::{Reference, ServiceAddress, Watched};
use super::{Kubelet, PodContext, resources};

/// What a container's environment and volumes depend on.
pub type Dependencies = BTreeMap<Reference, Arc<Watched>>;

/// Service variables, then `envFrom`, then `env`; later ones win. An error is a `CreateContainerConfigError`.
pub async fn build(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &Container,
    pod_ip: Option<&str>,
    dependencies: &mut Dependencies,
) -> Result<Vec<(String, String)>, String> {
    let mut all = BTreeMap::new();
    let links = context.spec().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    if let Some(services) = kubelet.objects.services().await?.as_ref() {
        for (key, service) in services {
            let kubernetes = &*key.namespace == "default" && &*key.name == "kubernetes";
            if kubernetes || (links && *key.namespace == *context.namespace) {
                all.extend(service_variables(&key.name, service));
            }
        }
    }
    let mut ordered: Vec<(String, String)> = all.into_iter().collect();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let (plural, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => ("configmaps", &map.name, map.optional),
            (_, Some(secret)) => ("secrets", &secret.name, secret.optional),
            _ => continue,
        };
        if let Some(object) = object(kubelet, context, plural, name, optional == Some(true), dependencies).await? {
            for (key, value) in data(&object)? {
                // What is not text cannot be a variable.
                if let Ok(value) = String::from_utf8(value) {
                    set(&mut ordered, format!("{prefix}{key}"), value);
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or(""), &ordered)),
            Some(source) => from_source(kubelet, context, container, source, pod_ip, dependencies).await?,
        };
        if let Some(value) = value {
            set(&mut ordered, variable.name.clone(), value);
        }
    }
    Ok(ordered)
}

fn set(all: &mut Vec<(String, String)>, name: String, value: String) {
    match all.iter_mut().find(|(old, _)| *old == name) {
        Some(old) => old.1 = value,
        None => all.push((name, value)),
    }
}

async fn from_source(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &Container,
    source: &EnvVarSource,
    pod_ip: Option<&str>,
    dependencies: &mut Dependencies,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(kubelet, context, &field.field_path, pod_ip).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        let of = field.container_name.as_deref().and_then(|name| context.container(name)).unwrap_or(container);
        return resources::field(of, &field.resource, field.divisor.as_ref()).map(Some);
    }
    let (plural, kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => ("configmaps", "ConfigMap", &map.name, &map.key, map.optional == Some(true)),
        (_, Some(secret)) => ("secrets", "Secret", &secret.name, &secret.key, secret.optional == Some(true)),
        _ => return Err("an environment variable has an unsupported source".to_owned()),
    };
    let Some(object) = object(kubelet, context, plural, name, optional, dependencies).await? else { return Ok(None) };
    match data(&object)?.remove(key) {
        Some(value) => String::from_utf8(value)
            .map(Some)
            .map_err(|_| format!("key {key} in {kind} {}/{name} is not text", context.namespace)),
        None if optional => Ok(None),
        None => Err(format!("couldn't find key {key} in {kind} {}/{name}", context.namespace)),
    }
}

/// A ConfigMap or Secret of the pod's namespace, watched from now on.
pub async fn object(
    kubelet: &Kubelet,
    context: &PodContext,
    plural: &'static str,
    name: &str,
    optional: bool,
    dependencies: &mut Dependencies,
) -> Result<Option<Arc<Value>>, String> {
    let reference = Reference { plural, key: ObjectKey::new(context.namespace.as_str(), name) };
    let watched = kubelet.objects.watch(&reference);
    let found = watched.get().await;
    dependencies.insert(reference, watched);
    match found? {
        None if !optional => Err(format!("{} \"{name}\" not found", plural.trim_end_matches('s'))),
        found => Ok(found),
    }
}

/// All keys of a ConfigMap or Secret, decoded.
pub fn data(object: &Value) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let secret = object.get("kind").and_then(Value::as_str) == Some("Secret");
    let mut all = BTreeMap::new();
    for (field, encoded) in [("data", secret), ("binaryData", true)] {
        for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
            let text = value.as_str().unwrap_or("");
            let bytes = if encoded {
                base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| format!("key {key}: {error}"))?
            } else {
                text.as_bytes().to_vec()
            };
            all.insert(key.clone(), bytes);
        }
    }
    Ok(all)
}

/// The downward API: a field of the pod as text.
pub fn field_value(
    kubelet: &Kubelet,
    context: &PodContext,
    path: &str,
    pod_ip: Option<&str>,
) -> Result<String, String> {
    let metadata = &context.pod.metadata;
    let spec = context.spec();
    let node_ip = kubelet.config.node_ip.to_string();
    let keyed = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    if let Some(value) =
        keyed(&metadata.labels, "metadata.labels['").or_else(|| keyed(&metadata.annotations, "metadata.annotations['"))
    {
        return Ok(value);
    }
    match path {
        "metadata.name" => Ok(context.name.clone()),
        "metadata.namespace" => Ok(context.namespace.clone()),
        "metadata.uid" => Ok(context.uid.clone()),
        "metadata.labels" => Ok(format_map(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(metadata.annotations.as_ref())),
        "spec.nodeName" => Ok(spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        "spec.serviceAccountName" => Ok(spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()),
        "status.hostIP" | "status.hostIPs" => Ok(node_ip),
        "status.podIP" | "status.podIPs" => Ok(pod_ip.unwrap_or_default().to_owned()),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `key="value"` per line, quoted as upstream quotes.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// `NAME_SERVICE_HOST` and its companions, as Docker links had them.
fn service_variables(name: &str, service: &ServiceAddress) -> Vec<(String, String)> {
    let name = name.to_uppercase().replace('-', "_");
    let ip = &service.cluster_ip;
    let mut all = vec![(format!("{name}_SERVICE_HOST"), ip.clone())];
    if let Some(first) = service.ports.first() {
        all.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    }
    for port in &service.ports {
        if !port.name.is_empty() {
            all.push((
                format!("{name}_SERVICE_PORT_{}", port.name.to_uppercase().replace('-', "_")),
                port.port.to_string(),
            ));
        }
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = port.protocol.to_lowercase();
        let url = format!("{protocol}://{ip}:{}", port.port);
        if index == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        all.push((prefix.clone(), url));
        all.push((format!("{prefix}_PROTO"), protocol));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), ip.clone()));
    }
    all
}

/// Replaces `$(NAME)` where the name is known; `$$` is a dollar sign, anything else stays as it is.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(rest.get(..position).unwrap_or(""));
        rest = rest.get(position + 1..).unwrap_or("");
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::objects::ServicePort;

    #[test]
    fn references_are_expanded_as_upstream_expands_them() {
        let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn service_variables_have_dockers_names() {
        let port = ServicePort { name: "web".into(), port: 80, protocol: "TCP".into() };
        let all = service_variables("my-db", &ServiceAddress { cluster_ip: "10.0.0.5".into(), ports: vec![port] });
        let text: Vec<String> = all.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text.join("\n"),
            "MY_DB_SERVICE_HOST=10.0.0.5\nMY_DB_SERVICE_PORT=80\nMY_DB_SERVICE_PORT_WEB=80\nMY_DB_PORT=tcp://10.0.0.5:80\n\
             MY_DB_PORT_80_TCP=tcp://10.0.0.5:80\nMY_DB_PORT_80_TCP_PROTO=tcp\nMY_DB_PORT_80_TCP_PORT=80\nMY_DB_PORT_80_TCP_ADDR=10.0.0.5"
        );
    }
}
