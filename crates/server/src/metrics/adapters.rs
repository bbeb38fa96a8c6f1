//! Metrics that other servers serve for autoscalers: `custom.metrics.k8s.io` and `external.metrics.k8s.io`, which
//! prometheus-adapter, KEDA and others register. They are asked in the name of upstream's controller, to which their
//! manifests give the right to read them.
//!
//! A server that is slow delays nobody but who asks it: each of the two groups has connections of its own, and what is
//! not answered in time is an answer, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_api::quantity::Quantity;
use mainstay_api::{names, object};
use mainstay_logic::measured::{About, Answers, Question, Sample};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::aggregation::availability::{self, Answer, Sender};
use crate::aggregation::{Extension, Services};
use crate::api::{self, Api, codec, key};
use crate::backends;

/// Questions to a group under way at once.
const AT_ONCE: usize = 8;
/// How long one answer may take, and all of them together.
const PATIENCE: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(10);
/// How many questions there may be at a time.
const MOST: usize = 2_000;
/// An answer beyond this is refused (bytes).
const MAX_ANSWER: usize = 1 << 20;
const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// In whose name they are asked.
const CONTROLLER: Sender<'static> = Sender {
    user: "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
    groups: &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
};

/// What autoscalers ask for, each with the selector of the pods that it is about.
pub type Questions = BTreeMap<Question, String>;

/// What these autoscalers ask for.
pub fn questions(api: &Api, scalers: &[Value]) -> Questions {
    let mut all = Questions::new();
    for scaler in scalers {
        for question in Question::all(scaler) {
            let pods = if matches!(question.about, About::Pods(_)) { pods_of(api, scaler) } else { String::new() };
            all.insert(question, pods);
        }
    }
    all
}

/// Which pods an autoscaler's target has, as a label selector's text.
fn pods_of(api: &Api, scaler: &Value) -> String {
    let of = |field: &str| object::text(scaler, &["spec", "scaleTargetRef", field]);
    let (group, version) = of("apiVersion").split_once('/').unwrap_or(("", of("apiVersion")));
    let registry = api.served.now();
    let found = registry.find_kind(group, version, of("kind")).and_then(|kind| {
        let entry = api.store.get(&key::object(kind, object::namespace(scaler), of("name")))?;
        let scale = api::scale_of(kind, &codec::decode(&entry.value).ok()?);
        Some(object::text(&scale, &["status", "selector"]).to_owned())
    });
    found.unwrap_or_default()
}

/// Asks all of it. Every question has an answer afterwards.
pub async fn ask(api: &Api, services: &Services, questions: Questions) -> Answers {
    let until = Instant::now() + ALL;
    let (custom, external) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(AT_ONCE)));
    let mut answers = Answers::new();
    let mut asked = JoinSet::new();
    for (number, (question, pods)) in questions.into_iter().enumerate() {
        if number >= MOST {
            let why = format!("more than {MOST} metrics are asked for at a time");
            answers.insert(question, Err(why));
            continue;
        }
        let places = if question.about == About::External { &external } else { &custom };
        let (api, services, places) = (api.clone(), services.clone(), places.clone());
        asked.spawn(async move {
            let work = async {
                let _place = places.acquire().await.map_err(|error| error.to_string())?;
                tokio::time::timeout(PATIENCE, one(&api, &services, &question, &pods)).await.unwrap_or_else(late)
            };
            let answer = tokio::time::timeout_at(until, work).await.unwrap_or_else(late);
            let named = if question.about == About::External { "external" } else { "custom" };
            let answer = answer.map_err(|why| format!("unable to fetch metrics from {named} metrics API: {why}"));
            (question, answer)
        });
    }
    while let Some(done) = asked.join_next().await {
        answers.extend(done.ok());
    }
    answers
}

fn late<T>(_: tokio::time::error::Elapsed) -> Result<T, String> {
    Err("context deadline exceeded".to_owned())
}

async fn one(api: &Api, services: &Services, question: &Question, pods: &str) -> Result<Vec<Sample>, String> {
    let (group, versions): (&str, &[&str]) = match question.about {
        About::External => (EXTERNAL, &["v1beta1"]),
        _ => (CUSTOM, &["v1beta2", "v1beta1"]),
    };
    let extension = server_of(services, api, group, versions).ok_or_else(|| match question.about {
        About::External => "the server could not find the requested resource".to_owned(),
        _ => "no known available metric versions found".to_owned(),
    })?;
    let path = path_of(api, question, pods, &extension.version)?;
    let addresses = backends::addresses(api, &extension.namespace, &extension.service, extension.port)?;
    let answer = availability::get(&extension, &addresses, &CONTROLLER, &path, "", MAX_ANSWER).await?;
    read(&answer, question)
}

/// Who answers for a group: in the first of these versions that is available, else in the first that is registered.
fn server_of(services: &Services, api: &Api, group: &str, versions: &[&str]) -> Option<Arc<Extension>> {
    let all = services.now(&api.served.now());
    let of = |version: &&str| all.iter().find(|one| one.group == group && one.version == *version).cloned();
    let registered: Vec<Arc<Extension>> = versions.iter().filter_map(of).collect();
    registered.iter().find(|one| one.is_available()).or(registered.first()).cloned()
}

/// Where a question's answer is.
fn path_of(api: &Api, question: &Question, pods: &str, version: &str) -> Result<String, String> {
    let Question { namespace, about, metric, selector } = question;
    // A name that is no segment would lead elsewhere.
    for name in [metric, if let About::Object { name, .. } = about { name } else { metric }] {
        if let Some(wrong) = names::path_segment(name).first() {
            return Err(format!("{name:?} is no name: {wrong}"));
        }
    }
    let (metric, selector) = (escaped(metric), escaped(selector));
    let narrowed = |name: &str| if selector.is_empty() { String::new() } else { format!("{name}={selector}") };
    let custom = format!("/apis/{CUSTOM}/{version}/namespaces");
    Ok(match about {
        About::External => {
            let query = narrowed("?labelSelector");
            format!("/apis/{EXTERNAL}/{version}/namespaces/{namespace}/{metric}{query}")
        }
        About::Pods(_) => {
            let (pods, query) = (escaped(pods), narrowed("&metricLabelSelector"));
            format!("{custom}/{namespace}/pods/%2A/{metric}?labelSelector={pods}{query}")
        }
        About::Object { api_version, kind, .. } if kind == "Namespace" && matches!(&**api_version, "" | "v1") => {
            format!("{custom}/{namespace}/metrics/{metric}{}", narrowed("?metricLabelSelector"))
        }
        About::Object { api_version, kind, name } => {
            let (group, kind_version) = api_version.split_once('/').unwrap_or(("", api_version));
            let registry = api.served.now();
            let known = registry.find_kind(group, kind_version, kind);
            let known = known.ok_or_else(|| format!("no matches for kind {kind:?} in version {api_version:?}"))?;
            let (resource, name) = (escaped(&known.resource()), escaped(name));
            format!("{custom}/{namespace}/{resource}/{name}/{metric}{}", narrowed("?metricLabelSelector"))
        }
    })
}

/// Everything but letters, digits, `-`, `.`, `_` and `~` by its number.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The values in an answer, or what the server said instead.
fn read(answer: &Answer, question: &Question) -> Result<Vec<Sample>, String> {
    let parsed = mainstay_api::schema::parse::parse(&answer.body).map(|parsed| parsed.value);
    if !answer.status.is_success() {
        let code = answer.status.as_u16();
        let said = parsed.map(|status| object::text(&status, &["message"]).chars().take(1 << 10).collect::<String>());
        return Err(match said {
            Ok(message) if !message.is_empty() => message,
            _ => format!("the server answered with code {code}"),
        });
    }
    let list = parsed.map_err(|error| error.to_string())?;
    let items = list.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = |item: &Value| {
        let value = item.get("value").unwrap_or(&Value::Null);
        let amount = Quantity::of(value).map_err(|error| format!("a value is no quantity: {error}"))?;
        let name = object::text(item, &["describedObject", "name"]).to_owned();
        Ok(Sample { name, milli: amount.milli() })
    };
    match (&question.about, items.len()) {
        (About::External, 0) => Err("no metrics returned from external metrics API".to_owned()),
        (About::Pods(_), 0) => Err("no metrics returned from custom metrics API".to_owned()),
        (About::Object { .. }, count) if count != 1 => {
            Err(format!("the custom metrics API server returned {count} results when we asked for exactly one"))
        }
        _ => items.iter().map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    fn question(about: About, metric: &str, selector: &str) -> Question {
        Question { namespace: "ns".into(), about, metric: metric.into(), selector: selector.into() }
    }

    fn object(api_version: &str, kind: &str, name: &str) -> About {
        About::Object { api_version: api_version.into(), kind: kind.into(), name: name.into() }
    }

    #[test]
    fn conformance_metrics_are_asked_for_where_upstream_asks() {
        let cluster = crate::api::tests::Cluster::new();
        let path = |about: About, metric: &str, selector: &str| {
            path_of(&cluster.api, &question(about, metric, selector), "app=web", "v1beta1")
        };
        let custom = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/ns";
        for (about, selector, wanted) in [
            (About::Pods("h".into()), "", format!("{custom}/pods/%2A/hits?labelSelector=app%3Dweb")),
            (
                About::Pods("h".into()),
                "a in (b,c)",
                format!("{custom}/pods/%2A/hits?labelSelector=app%3Dweb&metricLabelSelector=a%20in%20%28b%2Cc%29"),
            ),
            (object("v1", "Service", "s"), "", format!("{custom}/services/s/hits")),
            (
                object("networking.k8s.io/v1", "Ingress", "i"),
                "a=b",
                format!("{custom}/ingresses.networking.k8s.io/i/hits?metricLabelSelector=a%3Db"),
            ),
            (object("v1", "Namespace", "ns"), "", format!("{custom}/metrics/hits")),
            (
                About::External,
                "q=a",
                "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/hits?labelSelector=q%3Da".to_owned(),
            ),
        ] {
            assert_eq!(path(about, "hits", selector), Ok(wanted));
        }
        for (about, metric) in [
            (About::External, ".."),
            (About::External, "a/b"),
            (About::Pods("h".into()), "%2e"),
            (object("v1", "Service", ".."), "hits"),
            (object("v1", "Nothing", "a"), "hits"),
        ] {
            assert!(path(about.clone(), metric, "").is_err(), "{about:?} {metric}");
        }
    }

    #[test]
    fn x4_what_an_adapter_answers_is_values_or_words() {
        let of = |about: About, code: u16, body: String| {
            let status = StatusCode::from_u16(code).expect("a code");
            read(&Answer { status, tag: String::new(), body: Bytes::from(body) }, &question(about, "hits", ""))
        };
        let items = |items: Value| json!({ "kind": "MetricValueList", "items": items }).to_string();
        let item = |name: &str, value: Value| json!({ "describedObject": { "name": name }, "value": value });
        let pods = || About::Pods("h".into());
        let two = items(json!([item("a", json!("500m")), item("b", json!(3))]));
        let sample = |name: &str, milli: i64| Sample { name: name.to_owned(), milli };
        assert_eq!(of(pods(), 200, two.clone()), Ok(vec![sample("a", 500), sample("b", 3000)]));
        let one = object("v1", "Service", "a");
        assert!(of(one.clone(), 200, two).is_err_and(|why| why.contains("returned 2 results when we asked for")));
        assert_eq!(of(one.clone(), 200, items(json!([item("a", json!("2"))]))), Ok(vec![sample("a", 2000)]));
        assert!(of(one, 200, items(json!([]))).is_err_and(|why| why.contains("returned 0 results")));
        let outside = items(json!([{ "metricName": "hits", "metricLabels": {}, "value": "7" }]));
        assert_eq!(of(About::External, 200, outside), Ok(vec![sample("", 7000)]));
        assert!(of(About::External, 200, items(json!([]))).is_err_and(|why| why.contains("from external metrics API")));
        let refused = json!({ "kind": "Status", "message": "the server could not find the metric hits for pods" });
        let words = of(pods(), 404, refused.to_string()).expect_err("refused");
        assert_eq!(words, "the server could not find the metric hits for pods");
        assert!(of(pods(), 500, "x".to_owned()).is_err_and(|why| why.ends_with("500")));
        for body in ["", "[]", "{\"items\":[{\"value\":\"many\"}]}", "{\"items\":{}}"] {
            assert!(of(pods(), 200, body.to_owned()).is_err(), "{body}");
        }
        let long = json!({ "message": "m".repeat(1 << 20) }).to_string();
        assert!(of(pods(), 500, long).is_err_and(|why| why.len() <= 1 << 10));
    }
}
