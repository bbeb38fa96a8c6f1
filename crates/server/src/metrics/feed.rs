//! What the autoscaler sees: while there is one, the nodes are asked every 15 seconds (upstream's sync period), and the
//! controllers are shown what they said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_api::{Kind, kinds, object};
use mainstay_logic::measured::{Measured, PodUsage, Scale, Usage};
use mainstay_store::WatchError;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Collector, adapters, address_of};
use crate::aggregation::Services;
use crate::api::{self, Api, codec, key};

/// Upstream's `--horizontal-pod-autoscaler-sync-period`.
const EVERY: Duration = Duration::from_secs(15);

/// Runs until the server stops.
pub async fn run(
    api: Api,
    collector: Arc<Collector>,
    services: Services,
    shown: watch::Sender<Arc<Measured>>,
    mut closing: watch::Receiver<bool>,
) {
    let prefix = key::prefix(&kinds::HORIZONTAL_POD_AUTOSCALER, None);
    while !*closing.borrow() {
        let Ok(page) = api.store.range(&prefix, None, usize::MAX, None) else { return };
        if page.entries.is_empty() {
            let Ok(mut watcher) = api.store.watch(prefix.clone(), page.revision) else { return };
            tokio::select! {
                heard = watcher.next() => if matches!(heard, Err(WatchError::Closed)) { return },
                _ = closing.wait_for(|closing| *closing) => return,
            }
            continue;
        }
        let scalers: Vec<Value> = page.entries.iter().filter_map(|entry| codec::decode(&entry.value).ok()).collect();
        let again = Instant::now() + EVERY;
        let questions = adapters::questions(&api, &scalers);
        let mut measured = measure(&api, &collector, &scalers).await;
        if !questions.is_empty() {
            // Who asks other servers for nothing does not wait for their answers.
            shown.send_replace(Arc::new(measured.clone()));
            tokio::select! {
                answers = adapters::ask(&api, &services, questions) => measured.answers = answers,
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
        shown.send_replace(Arc::new(measured));
        tokio::select! {
            () = tokio::time::sleep_until(again) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

async fn measure(api: &Api, collector: &Arc<Collector>, scalers: &[Value]) -> Measured {
    let nodes = api.store.range(&key::prefix(&kinds::NODE, None), None, usize::MAX, None);
    let nodes: Vec<Value> = nodes
        .map(|page| page.entries)
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| codec::decode(&entry.value).ok())
        .collect();
    let mut pods = BTreeMap::new();
    for figures in collector.of_nodes(nodes.iter().filter_map(address_of).collect()).await.values() {
        for (uid, pod) in &figures.pods {
            let containers = pod.containers.iter().map(|(name, used)| {
                // A container that uses anything at all does not use nothing.
                let cpu_milli = i64::try_from(used.cpu.div_ceil(1_000_000)).unwrap_or(i64::MAX);
                (name.clone(), Usage { cpu_milli, memory: i64::try_from(used.memory).unwrap_or(i64::MAX) })
            });
            let window = jiff::SignedDuration::try_from(pod.window).unwrap_or_default();
            pods.insert(uid.clone(), PodUsage { at: pod.at, window, containers: containers.collect() });
        }
    }
    Measured { pods, scales: scales(api, scalers), ..Measured::default() }
}

/// The scales of custom resources, of which logic sees the metadata alone.
fn scales(api: &Api, scalers: &[Value]) -> BTreeMap<String, Scale> {
    let registry = api.served.now();
    let scale = |scaler: &Value| {
        let of = |field: &str| object::text(scaler, &["spec", "scaleTargetRef", field]);
        let (api_version, kind_name, name) = (of("apiVersion"), of("kind"), of("name"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = registry.find_kind(group, version, kind_name).filter(|kind| kind.custom.is_some())?;
        let namespace = object::namespace(scaler);
        let entry = api.store.get(&key::object(kind, namespace, name))?;
        let scale = api::scale_of(kind, &codec::decode(&entry.value).ok()?);
        let number = |part: &str| {
            let number = object::at(&scale, &[part, "replicas"]).and_then(Value::as_i64);
            i32::try_from(number.unwrap_or(0)).unwrap_or(i32::MAX)
        };
        let found = Scale {
            replicas: number("spec"),
            current: number("status"),
            selector: object::text(&scale, &["status", "selector"]).to_owned(),
            path: replicas_path(kind)?,
        };
        Some((format!("{api_version}/{kind_name}/{namespace}/{name}"), found))
    };
    scalers.iter().filter_map(scale).collect()
}

/// Where a custom resource has the number that its scale sets.
fn replicas_path(kind: &Kind) -> Option<Vec<String>> {
    let scale = kind.custom.as_ref()?.scale.as_ref()?;
    let fields = scale.spec_replicas.fields()?;
    Some(fields.into_iter().map(str::to_owned).collect())
}
