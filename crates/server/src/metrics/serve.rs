//! `metrics.k8s.io/v1beta1`: `kubectl top nodes` and `kubectl top pods`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use mainstay_api::quantity::{Format, Quantity};
use mainstay_api::table::{IncludeObject, Representation, partial, partial_list, table};
use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use super::{NodeAddress, Usage, address_of};
use crate::api::{Query, Selection, codec, key};
use crate::http::{Body, Server, Target, bounded, printed};

/// Answers a `get` or `list` of NodeMetrics or PodMetrics. Who could not be measured (a pod that has just started, a
/// node that does not answer) is left out of a list, as upstream.
///
/// # Errors
/// 404 with upstream's words for one that could not be measured.
pub async fn serve(
    server: &Arc<Server>,
    user: &str,
    target: Target,
    query: Query,
    form: Representation,
) -> Result<Response<Body>, Status> {
    let is_of_pods = target.kind.namespaced;
    let all =
        if is_of_pods { pods(server, user, &target, &query).await? } else { nodes(server, &target, &query).await? };
    let include = IncludeObject::from_parameter(query.get("includeObject").map_or("", String::as_str));
    let include = include.unwrap_or(IncludeObject::Metadata);
    let now = server.api.now();
    let kind = &target.kind;
    form.of(&kind.kind, target.name.is_empty())?;
    if target.name.is_empty() {
        let list = match form {
            Representation::Table(version) => table(kind, &all, json!({}), (include, version), true, now),
            Representation::Partial(version) | Representation::PartialList(version) => {
                partial_list(&all, json!({}), version)
            }
            Representation::Object => {
                json!({ "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": {},
                    "items": all })
            }
        };
        return Ok(printed(200, &list));
    }
    let [found] = all.as_slice() else { return Err(not_found(&target)) };
    Ok(printed(
        200,
        &match form {
            Representation::Table(version) => table(kind, [found], json!({}), (include, version), true, now),
            Representation::Partial(version) | Representation::PartialList(version) => partial(found, version),
            Representation::Object => found.clone(),
        },
    ))
}

/// As metrics-server says it.
fn not_found(target: &Target) -> Status {
    let (resource, name) = match target.kind.namespaced {
        true => ("podmetrics", format!("{}/{}", target.namespace, target.name)),
        false => ("nodemetrics", target.name.clone()),
    };
    Status::new(404, "NotFound", format!("{resource}.metrics.k8s.io {name:?} not found"))
        .with_details(json!({ "name": name, "group": kinds::podmetrics::GROUP, "kind": resource }))
}

/// The stored objects that a request is about: those of another kind, of which it asks what they use.
fn selected(server: &Server, kind: &mainstay_api::Kind, target: &Target, query: &Query) -> Result<Vec<Value>, Status> {
    let store = &server.api.store;
    if !target.name.is_empty() {
        let found = store.get(&key::object(kind, &target.namespace, &target.name));
        return found.iter().map(|entry| codec::decode(&entry.value)).collect();
    }
    let selection = Selection::new(kind, &target.namespace, query)?;
    let page = store.range(&selection.prefix(), None, usize::MAX, None);
    let page = page.map_err(crate::api::read_error)?;
    let chosen = page.entries.iter().filter_map(|entry| match selection.matches(&entry.value) {
        Ok(true) => Some(codec::decode(&entry.value)),
        Ok(false) => None,
        Err(error) => Some(Err(error)),
    });
    chosen.collect()
}

async fn nodes(server: &Arc<Server>, target: &Target, query: &Query) -> Result<Vec<Value>, Status> {
    let chosen = selected(server, &kinds::NODE, target, query)?;
    if target.name.is_empty() && query.get("labelSelector").is_none_or(String::is_empty) {
        server.metrics.keep_only(|name| chosen.iter().any(|node| object::name(node) == name));
    }
    let figures = server.metrics.of_nodes(chosen.iter().filter_map(address_of).collect()).await;
    let all = chosen.iter().filter_map(|node| {
        let figures = figures.get(object::name(node))?;
        Some(json!({
            "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(node, figures.at),
            "timestamp": mainstay_api::time::rfc3339(figures.at), "window": duration(figures.window),
            "usage": usage(figures.usage?),
        }))
    });
    Ok(all.collect())
}

async fn pods(server: &Arc<Server>, user: &str, target: &Target, query: &Query) -> Result<Vec<Value>, Status> {
    // There may be many: they are looked through on another thread.
    let look = {
        let (server, target, query) = (server.clone(), target.clone(), query.clone());
        move || selected(&server, &kinds::POD, &target, &query)
    };
    let chosen = bounded(server, user, look).await??;
    let names: std::collections::BTreeSet<&str> =
        chosen.iter().map(|pod| object::text(pod, &["spec", "nodeName"])).filter(|name| !name.is_empty()).collect();
    let entries = names.iter().filter_map(|name| server.api.store.get(&key::object(&kinds::NODE, "", name)));
    let addresses: Vec<NodeAddress> =
        entries.filter_map(|entry| address_of(&codec::decode(&entry.value).ok()?)).collect();
    let figures = server.metrics.of_nodes(addresses).await;
    let all = chosen.iter().filter_map(|pod| {
        let node = figures.get(object::text(pod, &["spec", "nodeName"]))?;
        let figures = node.pods.get(object::text(pod, &["metadata", "uid"]))?;
        let containers: Vec<Value> =
            figures.containers.iter().map(|(name, used)| json!({ "name": name, "usage": usage(*used) })).collect();
        Some(json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(pod, figures.at),
            "timestamp": mainstay_api::time::rfc3339(figures.at), "window": duration(figures.window),
            "containers": containers,
        }))
    });
    Ok(all.collect())
}

fn metadata(of: &Value, at: jiff::Timestamp) -> Value {
    let mut metadata: BTreeMap<&str, Value> = BTreeMap::from([
        ("name", object::name(of).into()),
        ("creationTimestamp", mainstay_api::time::rfc3339(at).into()),
    ]);
    if !object::namespace(of).is_empty() {
        metadata.insert("namespace", object::namespace(of).into());
    }
    if let Some(labels) = object::at(of, &["metadata", "labels"]) {
        metadata.insert("labels", labels.clone());
    }
    json!(metadata)
}

/// `cpu` in nanocores, `memory` in bytes, both as metrics-server writes them.
fn usage(usage: Usage) -> Value {
    let cpu = if usage.cpu == 0 { "0".to_owned() } else { format!("{}n", usage.cpu) };
    let memory = i64::try_from(usage.memory).unwrap_or(i64::MAX);
    let memory = match memory % 1024 {
        0 if memory > 0 => format!("{}Ki", memory / 1024),
        _ => Quantity::from_units(memory, Format::BinarySi).to_string(),
    };
    json!({ "cpu": cpu, "memory": memory })
}

/// As Go prints a duration: `15.05s`, `1m2.5s`.
fn duration(duration: Duration) -> String {
    let mut out = String::new();
    let (minutes, millis) = (duration.as_secs() / 60, duration.as_millis() % 60_000);
    if minutes > 0 {
        let _ = write!(out, "{minutes}m");
    }
    let fraction = format!("{:03}", millis % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let _ = write!(out, "{}{point}{fraction}s", millis / 1000);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_upstreams() {
        assert_eq!(
            usage(Usage { cpu: 1_234_567, memory: 12 << 20 }),
            json!({ "cpu": "1234567n", "memory": "12288Ki" })
        );
        assert_eq!(usage(Usage { cpu: 0, memory: 0 }), json!({ "cpu": "0", "memory": "0" }));
        for (millis, text) in [(15_050, "15.05s"), (62_500, "1m2.5s"), (60_000, "1m0s"), (1_001, "1.001s")] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
