//! `mainstay demo`: what makes a StatefulSet, shown on a real cluster and checked while it is shown.
//!
//! Every line that is printed comes from the cluster's API, its DNS or a pod's own page; what does not hold ends the
//! demonstration with an error.

mod pods;
mod screen;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mainstay_api::kinds;
use mainstay_client::{Client, ListOptions, PatchType};
use serde_json::{Value, json};

use crate::tools;
use pods::{Pods, Seen};
pub use screen::Screen;

/// The image that the binary makes from itself.
pub const IMAGE: &str = "mainstay.local/demo:1";
/// The longest that one step may take.
const STEP: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "default";

/// How the cluster came up.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// From the start of the process to an API that answers.
    pub api: Duration,
    /// From the start of the process to a node that is Ready.
    pub node: Duration,
}

/// The objects of the demonstration; `examples/demo.yaml` has the same in YAML.
fn manifests() -> [Value; 2] {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080}]},
    });
    let container = json!({
        "name": "web", "image": IMAGE, "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {
            "serviceName": "web", "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
            }],
        },
    });
    [service, set]
}

/// Runs the demonstration against a fresh cluster.
///
/// # Errors
/// The first thing that was not as a StatefulSet promises, or a step that took over 30 s.
pub async fn run(client: &Client, screen: &Screen, started: Started) -> Result<()> {
    let begun = Instant::now();
    screen.title("Mainstay: what a StatefulSet promises, on a real cluster made for this minute");
    screen.line(&format!(
        "API ready after {}, node ready after {}",
        screen::millis(started.api),
        screen::millis(started.node)
    ));
    let mut demo = Demo { client, screen, pods: Pods::watch(client.clone()), times: Vec::new() };
    demo.times.push(("exec to API ready", started.api));
    demo.times.push(("exec to node Ready", started.node));
    demo.start().await?;
    demo.names().await?;
    demo.identity_returns().await?;
    demo.scale().await?;
    demo.claims_stay().await?;
    screen.title("Measured");
    for (what, took) in &demo.times {
        screen.line(&format!("{what:<44} {:>9}", screen::millis(*took)));
    }
    screen.line(&format!("{:<44} {:>9}", "the whole demonstration", screen::millis(begun.elapsed())));
    screen.good("every promise held");
    Ok(())
}

struct Demo<'a> {
    client: &'a Client,
    screen: &'a Screen,
    pods: Pods,
    times: Vec<(&'static str, Duration)>,
}

impl Demo<'_> {
    async fn start(&mut self) -> Result<()> {
        self.screen.title("1. Ordered start: each pod waits until the one before it is Ready");
        self.screen.command(
            "kubectl apply -f demo.yaml     # headless Service web, StatefulSet web: 3 replicas, a claim each",
        );
        let begun = Instant::now();
        let [service, set] = manifests();
        self.client.create(&kinds::SERVICE, NAMESPACE, &service).await.context("making the Service")?;
        self.client.create(&kinds::STATEFUL_SET, NAMESPACE, &set).await.context("making the StatefulSet")?;
        self.grow(0..3, begun).await?;
        self.times.push(("3 replicas with claims, creation to Ready", begun.elapsed()));
        self.table().await
    }

    /// Waits until the pods of `ordinals` are Ready and checks that none was there before its predecessor was Ready
    /// (S4).
    async fn grow(&mut self, ordinals: std::ops::Range<usize>, begun: Instant) -> Result<()> {
        let mut next = ordinals.start;
        while next < ordinals.end {
            let seen = self.pods.next(STEP).await.with_context(|| format!("waiting for web-{next} to be Ready"))?;
            let Seen::Pod { name, .. } = &seen else { continue };
            for late in next + 1..ordinals.end {
                ensure!(*name != format!("web-{late}"), "web-{late} was made before web-{next} was Ready");
            }
            if *name == format!("web-{next}") && self.pods.is_ready(name) {
                self.screen.good(&format!("web-{next} Ready  {:>9}", screen::millis(begun.elapsed())));
                next += 1;
            }
        }
        Ok(())
    }

    /// Pods, claims and volumes side by side, with what each pod says of itself.
    async fn table(&self) -> Result<()> {
        let claims = self.client.list(&kinds::PERSISTENT_VOLUME_CLAIM, NAMESPACE, &ListOptions::default()).await?;
        let mut rows = vec![["POD", "UID", "IP", "CLAIM", "VOLUME", "ITS PAGE SAYS"].map(str::to_owned)];
        let mut volumes = BTreeMap::new();
        for pod in self.pods.all() {
            let claim = format!("data-{}", pod.name);
            let bound = claims["items"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|item| item["metadata"]["name"] == claim.as_str());
            let volume = bound.and_then(|claim| claim["spec"]["volumeName"].as_str()).unwrap_or("").to_owned();
            ensure!(!volume.is_empty(), "claim {claim} is not bound");
            if let Some(other) = volumes.insert(volume.clone(), pod.name.clone()) {
                bail!("{other} and {} share volume {volume}", pod.name);
            }
            let page = self.page(&pod.name).await?;
            ensure!(page.contains(&format!("pod {0} host {0} ", pod.name)), "the page of {} says: {page}", pod.name);
            rows.push([
                pod.name.clone(),
                short(&pod.uid),
                pod.ip.clone(),
                claim,
                short(volume.trim_start_matches("pvc-")),
                page,
            ]);
        }
        self.screen.table(&rows);
        Ok(())
    }

    /// The page of a pod, over a real socket.
    async fn page(&self, pod: &str) -> Result<String> {
        let ip = self.pods.ip(pod).with_context(|| format!("{pod} has no address"))?;
        let server = SocketAddr::new(ip.parse()?, 8080);
        let page = tokio::task::spawn_blocking(move || tools::get(server, "web", "/")).await?;
        Ok(page.with_context(|| format!("the page of {pod}"))?.trim().to_owned())
    }

    async fn visits(&self, pod: &str) -> Result<u64> {
        let page = self.page(pod).await?;
        page.rsplit(' ')
            .next()
            .and_then(|count| count.parse().ok())
            .with_context(|| format!("the page of {pod} says: {page}"))
    }

    /// Runs `lookup` inside a pod and gives its lines.
    async fn lookup(&self, from: &str, name: &str, record_type: &str) -> Result<Vec<String>> {
        self.screen.command(&format!("kubectl exec {from} -- /mainstay lookup {name} {record_type}"));
        let command = ["/mainstay", "lookup", name, record_type];
        let output =
            self.client.exec(NAMESPACE, from, "web", &command).await.with_context(|| format!("exec in {from}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.code == 0,
            "lookup {name} {record_type} failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.iter().for_each(|line| self.screen.line(line));
        Ok(lines)
    }

    async fn names(&self) -> Result<()> {
        self.screen.title("2. Stable names: asked inside web-0, of the cluster's DNS");
        let all = self.lookup("web-0", "web", "A").await?;
        let mut wanted: Vec<String> =
            self.pods.all().map(|pod| format!("web.default.svc.cluster.local A {}", pod.ip)).collect();
        wanted.sort();
        ensure!(all == wanted, "the Service's addresses are not the pods'");
        let services = self.lookup("web-0", "_http._tcp.web", "SRV").await?;
        ensure!(
            services.len() == 3 && services[0].contains("web-0.web.default.svc.cluster.local"),
            "SRV records do not name the pods"
        );
        let one = self.lookup("web-0", "web-1.web", "A").await?;
        let ip = self.pods.ip("web-1").unwrap_or_default();
        ensure!(one == [format!("web-1.web.default.svc.cluster.local A {ip}")], "web-1.web is not web-1");
        Ok(())
    }

    async fn identity_returns(&mut self) -> Result<()> {
        self.screen.title("3. Identity: a pod that is deleted comes back as itself");
        for _ in 0..2 {
            self.visits("web-1").await?;
        }
        let visits = self.visits("web-1").await?;
        let before = self.pods.get("web-1").context("web-1 is gone")?.clone();
        self.screen.line(&format!("web-1 has uid {}, address {}, {visits} visits", short(&before.uid), before.ip));
        self.screen.command("kubectl delete pod web-1");
        let begun = Instant::now();
        self.client.delete(&kinds::POD, NAMESPACE, "web-1", &json!({})).await?;
        while self.pods.get("web-1").is_none_or(|pod| pod.uid == before.uid || !pod.ready) {
            self.pods.next(STEP).await.context("waiting for web-1 to come back")?;
        }
        self.times.push(("deleted pod Ready again under its name", begun.elapsed()));
        let after = self.pods.get("web-1").context("web-1 is gone")?.clone();
        let now = self.visits("web-1").await?;
        self.screen.line(&format!("web-1 has uid {}, address {}, {now} visits", short(&after.uid), after.ip));
        ensure!(now == visits + 1, "the counter went from {visits} to {now}");
        self.screen.good("same name, same claim, same counter; new uid");
        Ok(())
    }

    async fn scale(&mut self) -> Result<()> {
        self.screen.title("4. Scaling: upwards in order, downwards in the opposite order");
        self.screen.command("kubectl scale statefulset web --replicas=5");
        let begun = Instant::now();
        self.scale_to(5).await?;
        self.grow(3..5, begun).await?;
        self.screen.command("kubectl scale statefulset web --replicas=2");
        let begun = Instant::now();
        self.scale_to(2).await?;
        let mut last = 4;
        while last >= 2 {
            let seen = self.pods.next(STEP).await.with_context(|| format!("waiting for web-{last} to go"))?;
            match seen {
                Seen::Gone { name } => {
                    ensure!(name == format!("web-{last}"), "{name} went before web-{last}");
                    self.screen.good(&format!("web-{last} gone   {:>9}", screen::millis(begun.elapsed())));
                    last -= 1;
                }
                Seen::Pod { name, terminating } => {
                    ensure!(
                        !terminating || name == format!("web-{last}"),
                        "{name} is deleted while web-{last} is still there"
                    );
                }
            }
        }
        self.times.push(("5 replicas down to 2, in order", begun.elapsed()));
        Ok(())
    }

    async fn scale_to(&self, replicas: u64) -> Result<()> {
        let patch = json!({"spec": {"replicas": replicas}});
        self.client
            .patch(&kinds::STATEFUL_SET, NAMESPACE, "web", "scale", PatchType::Merge, &patch)
            .await
            .context("scaling")?;
        Ok(())
    }

    async fn claims_stay(&mut self) -> Result<()> {
        self.screen.title("5. Data outlives the set");
        self.screen.command("kubectl delete statefulset web");
        let begun = Instant::now();
        self.client.delete(&kinds::STATEFUL_SET, NAMESPACE, "web", &json!({"propagationPolicy": "Background"})).await?;
        while self.pods.all().next().is_some() {
            self.pods.next(STEP).await.context("waiting for the pods to go")?;
        }
        self.times.push(("set deleted, last pod gone", begun.elapsed()));
        self.screen.command("kubectl get persistentvolumeclaims");
        let claims = self.client.list(&kinds::PERSISTENT_VOLUME_CLAIM, NAMESPACE, &ListOptions::default()).await?;
        let mut rows = vec![["NAME", "STATUS", "VOLUME", "CAPACITY", "STORAGECLASS", ""].map(str::to_owned)];
        for claim in claims["items"].as_array().into_iter().flatten() {
            let text = |pointer: &str| claim.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
            rows.push([
                text("/metadata/name"),
                text("/status/phase"),
                short(text("/spec/volumeName").trim_start_matches("pvc-")),
                text("/status/capacity/storage"),
                text("/spec/storageClassName"),
                String::new(),
            ]);
        }
        self.screen.table(&rows);
        ensure!(rows.len() == 6, "5 claims were made, {} are left", rows.len() - 1);
        ensure!(rows[1..].iter().all(|row| row[1] == "Bound"), "a claim is not Bound any more");
        self.screen.good("no pods; all five claims and volumes are still there");
        Ok(())
    }
}

/// The first part of a uid.
fn short(uid: &str) -> String {
    uid.chars().take(8).collect()
}
