//! What was measured of pods, and what nobody stores in a form that logic reads: observed by the server, which asks the
//! nodes, and part of a snapshot like everything else.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::selector::Labels;
use serde::Deserialize as _;
use serde_json::Value;

/// What a container used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a core, the mean over the window.
    pub cpu_milli: i64,
    /// Bytes, at the window's end.
    pub memory: i64,
}

/// What a pod's containers used.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// When the window ended.
    pub at: Timestamp,
    /// How long it was.
    pub window: SignedDuration,
    /// By name.
    pub containers: BTreeMap<String, Usage>,
}

/// The scale of an object whose kind logic sees by metadata only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// How many there shall be.
    pub replicas: i32,
    /// How many there are.
    pub current: i32,
    /// Which pods they are.
    pub selector: String,
    /// Where the object has the number that is to be changed: `spec`, `replicas`.
    pub path: Vec<String>,
}

/// A metric that another server serves, as an autoscaler asks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The autoscaler's.
    pub namespace: String,
    /// What it is a metric of.
    pub about: About,
    /// The metric's name.
    pub metric: String,
    /// Which of its series, as a label selector's text; empty for all.
    pub selector: String,
}

/// What a metric is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The pods of this autoscaler's target.
    Pods(String),
    /// An object in the autoscaler's namespace, or that namespace.
    Object {
        /// `apps/v1`.
        api_version: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Nothing in the cluster.
    External,
}

/// A value of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The object that it is of; empty for what is outside of the cluster.
    pub name: String,
    /// Thousandths.
    pub milli: i64,
}

/// What was answered: values, or upstream's words about why there are none.
pub type Answers = BTreeMap<Question, Result<Vec<Sample>, String>>;

impl Question {
    /// All that a stored autoscaler asks other servers for.
    pub fn all(scaler: &Value) -> Vec<Self> {
        let Ok(scaler) = HorizontalPodAutoscaler::deserialize(scaler) else { return Vec::new() };
        let specs = scaler.spec.metrics.iter().flatten();
        specs.filter_map(|spec| Self::of(&scaler.metadata, spec)?.ok()).collect()
    }

    /// What an autoscaler's metric asks other servers for; `None` where that is nothing.
    ///
    /// # Errors
    /// A selector that is none.
    pub fn of(scaler: &ObjectMeta, spec: &MetricSpec) -> Option<Result<Self, String>> {
        let (about, metric) = match (spec.type_.as_str(), &spec.pods, &spec.object, &spec.external) {
            ("Pods", Some(pods), ..) => (About::Pods(scaler.name.clone().unwrap_or_default()), &pods.metric),
            ("Object", _, Some(object), _) => {
                let of = &object.described_object;
                let api_version = of.api_version.clone().unwrap_or_default();
                (About::Object { api_version, kind: of.kind.clone(), name: of.name.clone() }, &object.metric)
            }
            ("External", _, _, Some(external)) => (About::External, &external.metric),
            _ => return None,
        };
        // Without a selector all series are asked for.
        let selector = match &metric.selector {
            None => Ok(String::new()),
            Some(selector) => Labels::from_typed(Some(selector)).map(|labels| labels.to_string()),
        };
        Some(selector.map(|selector| Self {
            namespace: scaler.namespace.clone().unwrap_or_default(),
            about,
            metric: metric.name.clone(),
            selector,
        }))
    }
}

/// Everything that was measured, at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// By pod uid.
    pub pods: BTreeMap<String, PodUsage>,
    /// By `apiVersion/kind/namespace/name`, of custom resources that an autoscaler scales.
    pub scales: BTreeMap<String, Scale>,
    /// What other servers answered. A question that is not among them was not answered yet.
    pub answers: Answers,
}
