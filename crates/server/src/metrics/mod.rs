//! What nodes and pods use: asked of the nodes when somebody wants to know (`kubectl top`, the autoscaler), never else.
//!
//! A node's kubelet gives counters of CPU time; a rate is of two answers. The last answer of each node is kept, so who
//! asks now and then gets the mean since; who asks for the first time waits a moment for a second answer. What began
//! after the first answer has the mean since it began, as upstream's metrics-server has it for a fresh container (which
//! leaves those out that are younger than ten seconds; here they are left out for one).

mod adapters;
pub mod feed;
pub mod serve;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use mainstay_api::object;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::http::connect_kubelet;

/// Figures that are younger than this are given out again.
const FRESH: Duration = Duration::from_secs(5);
/// An answer that is older says nothing about now.
const STALE: Duration = Duration::from_secs(120);
/// How long a first look waits for its second: the kernel counts in steps.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest answer of a node (bytes).
const MAX_ANSWER: usize = 8 << 20;
/// Nodes that are asked at a time.
const AT_A_TIME: usize = 32;

/// What somebody used over a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Nanoseconds of CPU time per second.
    pub cpu: u64,
    /// The working set at the window's end, bytes.
    pub memory: u64,
}

/// What a node and its pods used.
#[derive(Debug)]
pub struct NodeFigures {
    /// When the window ended.
    pub at: Timestamp,
    /// How long it was.
    pub window: Duration,
    /// The whole machine.
    pub usage: Option<Usage>,
    /// The containers of each pod, by its uid: those that ran all that time, or since they began.
    pub pods: BTreeMap<String, PodFigures>,
}

/// What a pod's containers used.
#[derive(Debug)]
pub struct PodFigures {
    /// When the window ended.
    pub at: Timestamp,
    /// How long it was.
    pub window: Duration,
    /// By name.
    pub containers: BTreeMap<String, Usage>,
}

/// A node's answer: `/stats/summary`.
#[derive(Deserialize)]
struct Summary {
    node: Measured,
    #[serde(default)]
    pods: Vec<PodSummary>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSummary {
    pod_ref: PodRef,
    #[serde(default)]
    containers: Vec<Measured>,
}

#[derive(Deserialize)]
struct PodRef {
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    #[serde(default)]
    name: String,
    /// Another start is another container.
    #[serde(default)]
    start_time: Option<String>,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    usage_core_nano_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    working_set_bytes: u64,
}

/// What is kept of a node.
#[derive(Default)]
struct Kept {
    last: Option<(Instant, Summary)>,
    figures: Option<(Instant, Arc<NodeFigures>)>,
}

/// Asks the nodes.
pub struct Collector {
    tls: Arc<rustls::ClientConfig>,
    nodes: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Kept>>>>,
    at_a_time: Arc<Semaphore>,
}

/// A node, and where its kubelet listens.
#[derive(Clone, Debug)]
pub struct NodeAddress {
    /// The node's name.
    pub name: String,
    /// `192.0.2.1:10250`
    pub address: String,
}

impl Collector {
    /// With how the server proves itself to kubelets.
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self { tls, nodes: Mutex::default(), at_a_time: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Asks some nodes, a few at a time. A node that does not answer is left out.
    pub async fn of_nodes(self: &Arc<Self>, nodes: Vec<NodeAddress>) -> BTreeMap<String, Arc<NodeFigures>> {
        let mut asked = tokio::task::JoinSet::new();
        for node in nodes {
            let collector = self.clone();
            asked.spawn(async move {
                let _turn = collector.at_a_time.clone().acquire_owned().await.ok()?;
                let figures = collector.of_node(&node).await?;
                Some((node.name, figures))
            });
        }
        let mut all = BTreeMap::new();
        while let Some(answered) = asked.join_next().await {
            all.extend(answered.ok().flatten());
        }
        all
    }

    /// Forgets the nodes that are no more.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| is_there(name));
    }

    async fn of_node(&self, node: &NodeAddress) -> Option<Arc<NodeFigures>> {
        let kept =
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(node.name.clone()).or_default().clone();
        // One question at a time: others wait for its answer, which is fresh then.
        let mut kept = kept.lock().await;
        if let Some((_, figures)) = kept.figures.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(figures.clone());
        }
        let first = kept.last.take().filter(|(at, _)| (SETTLE..STALE).contains(&at.elapsed()));
        let (_, first) = match first {
            Some(first) => first,
            None => {
                let first = (Instant::now(), self.ask(node).await?);
                tokio::time::sleep(SETTLE).await;
                first
            }
        };
        let second = self.ask(node).await?;
        let figures = Arc::new(compare(&first, &second)?);
        let now = Instant::now();
        *kept = Kept { last: Some((now, second)), figures: Some((now, figures.clone())) };
        Some(figures)
    }

    async fn ask(&self, node: &NodeAddress) -> Option<Summary> {
        let asked = tokio::time::timeout(ANSWER, self.fetch(node)).await;
        let asked = asked.unwrap_or_else(|_| Err("it does not answer in time".into()));
        asked.inspect_err(|error| tracing::debug!(node = node.name, %error, "a node does not say what it uses")).ok()
    }

    async fn fetch(&self, node: &NodeAddress) -> Result<Summary, Box<dyn std::error::Error + Send + Sync>> {
        let io = connect_kubelet(&self.tls, &node.address, &node.name).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let connection = Aborting(tokio::spawn(connection));
        let request =
            http::Request::get("/stats/summary?only_cpu_and_memory=true").header(http::header::HOST, &node.address);
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()).into());
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        drop(connection);
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Ends a task with its owner.
struct Aborting<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The rates between two answers.
fn compare(first: &Summary, second: &Summary) -> Option<NodeFigures> {
    let of = |before: Option<&Measured>, now: &Measured| -> Option<(Usage, Timestamp, Duration)> {
        let new = now.cpu.as_ref()?;
        let before = before.filter(|before| before.start_time == now.start_time);
        let (since, old) = match before.map(|before| before.cpu.as_ref()) {
            Some(cpu) => cpu.map(|cpu| (cpu.time, cpu.usage_core_nano_seconds))?,
            None => (began_lately(now, new.time)?, 0),
        };
        let window = Duration::try_from(new.time.duration_since(since)).ok().filter(|window| !window.is_zero())?;
        let used = new.usage_core_nano_seconds.checked_sub(old)?;
        let cpu = u64::try_from(u128::from(used) * 1_000_000_000 / window.as_nanos()).unwrap_or(u64::MAX);
        Some((Usage { cpu, memory: now.memory.as_ref()?.working_set_bytes }, new.time, window))
    };
    let (usage, at, window) = of(Some(&first.node), &second.node)?;
    let before: BTreeMap<(&str, &str), &Measured> = first
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(|one| ((pod.pod_ref.uid.as_str(), one.name.as_str()), one)))
        .collect();
    let mut pods = BTreeMap::new();
    for pod in &second.pods {
        let mut figures = PodFigures { at, window, containers: BTreeMap::new() };
        for one in &pod.containers {
            let before = before.get(&(pod.pod_ref.uid.as_str(), one.name.as_str())).copied();
            if let Some((usage, at, window)) = of(before, one) {
                figures.containers.insert(one.name.clone(), usage);
                (figures.at, figures.window) = (at, window);
            }
        }
        if !figures.containers.is_empty() {
            pods.insert(pod.pod_ref.uid.clone(), figures);
        }
    }
    Some(NodeFigures { at, window, usage: Some(usage), pods })
}

/// When what was measured began, if that is neither too short ago for a rate nor so long ago that it says nothing about
/// now.
fn began_lately(measured: &Measured, now: Timestamp) -> Option<Timestamp> {
    let began = mainstay_api::time::parse(measured.start_time.as_deref()?)?;
    let age = Duration::try_from(now.duration_since(began)).ok()?;
    (SETTLE..STALE).contains(&age).then_some(began)
}

/// Where the kubelet of a stored Node listens; `None` of one that does not say.
pub fn address_of(node: &serde_json::Value) -> Option<NodeAddress> {
    let address = crate::http::kubelet_address_of(node).ok()?;
    Some(NodeAddress { name: object::name(node).to_owned(), address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn summary(second: i64, node: u64, containers: &[(&str, &str, u64)]) -> Summary {
        let time = format!("2026-11-21T10:00:{second:02}Z");
        let measured = |cpu: u64| json!({ "time": time, "usageCoreNanoSeconds": cpu });
        let memory = json!({ "workingSetBytes": 4096 });
        let containers: Vec<_> = containers
            .iter()
            .map(|(name, start, cpu)| {
                json!({ "name": name, "startTime": start, "cpu": measured(*cpu),
                "memory": memory })
            })
            .collect();
        let pod = json!({ "podRef": { "uid": "u" }, "containers": containers });
        let whole = json!({ "node": { "cpu": measured(node), "memory": memory }, "pods": [pod] });
        serde_json::from_value(whole).expect("a summary")
    }

    #[test]
    fn rates_are_of_what_ran_all_the_time() {
        let first = summary(10, 0, &[("a", "1", 100), ("b", "1", 100), ("c", "1", 900)]);
        let second =
            summary(20, 5_000_000_000, &[("a", "1", 1_000_000_100), ("b", "2", 200), ("c", "1", 1), ("d", "1", 1)]);
        let figures = compare(&first, &second).expect("figures");
        assert_eq!(figures.usage, Some(Usage { cpu: 500_000_000, memory: 4096 }));
        assert_eq!(figures.window, Duration::from_secs(10));
        let pod: Vec<_> = figures.pods["u"].containers.iter().collect();
        assert_eq!(pod, [(&"a".to_owned(), &Usage { cpu: 100_000_000, memory: 4096 })]);
        assert!(compare(&first, &first).is_none(), "no time has passed");
    }

    #[test]
    fn what_began_since_the_last_look_is_shown_with_its_mean_since() {
        let at = |second: i64| format!("2026-11-21T10:00:{second:02}Z");
        let (new, again, old, just_now) = (at(16), at(12), "2026-11-21T09:00:00Z", at(20));
        let first = summary(10, 0, &[("again", old, 7_000_000_000)]);
        let second = summary(
            20,
            5_000_000_000,
            &[
                ("new", new.as_str(), 2_000_000_000),
                ("again", again.as_str(), 800_000_000),
                ("old", old, 9),
                ("just-now", just_now.as_str(), 9),
            ],
        );
        let figures = compare(&first, &second).expect("figures");
        let pod = &figures.pods["u"];
        let cpu: Vec<_> = pod.containers.iter().map(|(name, usage)| (name.as_str(), usage.cpu)).collect();
        assert_eq!(cpu, [("again", 100_000_000), ("new", 500_000_000)]);
        assert_eq!(pod.window, Duration::from_secs(8), "of the last one");
    }
}
