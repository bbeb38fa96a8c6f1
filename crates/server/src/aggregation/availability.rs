//! Whether extension servers answer: the Available condition of their APIServices, and what they offer.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use mainstay_api::{kinds, object};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::described::reduced;
use super::{Extension, Services};
use crate::api::{self, Api, Batch, Part, key};
use crate::backends;

/// How often a server is asked (upstream asks as often).
const AGAIN: Duration = Duration::from_secs(30);
/// How often one that did not answer.
const SOON: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A discovery document beyond this is refused (bytes).
const MAX_DOCUMENT: usize = 1 << 20;
/// An OpenAPI document beyond this is passed over (bytes).
const MAX_DESCRIPTION: usize = 8 << 20;
/// How often it is asked for (upstream asks as often).
const DESCRIBE_AGAIN: Duration = Duration::from_secs(60);

/// Why a server is not available: upstream's reason and words.
struct Missing(&'static str, String);

/// Keeps the conditions until the server stops. Asks when an APIService changes, and from time to time while there are
/// any.
pub async fn run(api: Api, services: Services, mut closing: watch::Receiver<bool>) {
    let prefix = key::prefix(&kinds::API_SERVICE, None);
    while !*closing.borrow() {
        if api.store.is_closed() {
            // There is nothing to be seen any more.
            return drop(closing.wait_for(|closing| *closing).await);
        }
        let Ok(mut watcher) = api.store.watch(prefix.clone(), api.store.revision()) else { return };
        loop {
            let all = services.now(&api.served.now());
            let mut asked = JoinSet::new();
            for extension in &all {
                let (api, extension) = (api.clone(), extension.clone());
                asked.spawn(async move { look(&api, &extension).await });
            }
            let mut is_well = true;
            while let Some(well) = asked.join_next().await {
                is_well &= well.unwrap_or(false);
            }
            // Nothing is asked where nothing is registered.
            let pause = async {
                match all.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(if is_well { AGAIN } else { SOON }).await,
                }
            };
            tokio::select! {
                event = watcher.next() => if event.is_err() { break },
                () = pause => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
    }
}

/// Asks one server and says what came of it; whether it answered.
async fn look(api: &Api, extension: &Arc<Extension>) -> bool {
    let looked = tokio::time::timeout(PATIENCE, check(api, extension)).await;
    let looked = looked.unwrap_or_else(|_| {
        let url = format!("https://{}:{}{}", extension.host(), extension.port, extension.path());
        Err(failed(&url, "context deadline exceeded"))
    });
    let (resources, condition) = match looked {
        Ok(resources) => (Some(resources), ("True", "Passed", "all checks passed".to_owned())),
        Err(Missing(reason, message)) => (None, ("False", reason, message)),
    };
    let is_well = resources.is_some();
    extension.note(resources);
    if is_well && let Ok(Err(why)) = tokio::time::timeout(PATIENCE, describe(api, extension)).await {
        tracing::debug!(service = extension.name, why, "an extension server has no OpenAPI document");
    }
    let noted = api.write(false, |batch| note(batch, &extension.name, &condition)).await;
    if let Err(status) = noted.map(|_| ()).or_else(|status| if status.code == 404 { Ok(()) } else { Err(status) }) {
        tracing::warn!(service = extension.name, message = %status.message, "an APIService's status was not written");
    }
    is_well
}

fn failed(url: &str, why: &str) -> Missing {
    Missing("FailedDiscoveryCheck", format!("failing or missing response from {url}: Get \"{url}\": {why}"))
}

async fn check(api: &Api, extension: &Extension) -> Result<Value, Missing> {
    let (namespace, name) = (&extension.namespace, &extension.service);
    if api.store.get(&key::object(&kinds::SERVICE, namespace, name)).is_none() {
        return Err(Missing("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    }
    let addresses = backends::addresses(api, namespace, name, extension.port).map_err(|_| {
        let why = format!("endpoints for service/{name} in {namespace:?} have no addresses with port name \"\"");
        Missing("MissingEndpoints", why)
    })?;
    let first = addresses.first().map_or("", String::as_str);
    let url = format!("https://{first}{}", extension.path());
    let answer = get(extension, &addresses, &AGGREGATOR, &extension.path(), "", MAX_DOCUMENT).await;
    let document = answer.and_then(|answer| parsed(&answer)).map_err(|why| failed(&url, &why))?;
    if object::text(&document, &["kind"]) != "APIResourceList" {
        return Err(failed(&url, "the answer is no APIResourceList"));
    }
    Ok(document)
}

/// An answer: its code, its hash, and its body.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub tag: String,
    pub body: Bytes,
}

/// In whose name a server is asked.
pub(crate) struct Sender<'a> {
    pub user: &'a str,
    pub groups: &'a [&'a str],
}

/// Who asks for what there is.
const AGGREGATOR: Sender<'static> = Sender { user: "system:kube-aggregator", groups: &["system:masters"] };

/// What a server was asked for and has given, as JSON whose size in memory is bounded.
fn parsed(answer: &Answer) -> Result<Value, String> {
    if !answer.status.is_success() {
        return Err(format!("bad status from the server: {}", answer.status.as_u16()));
    }
    let parsed = mainstay_api::schema::parse::parse(&answer.body).map_err(|error| error.to_string())?;
    Ok(parsed.value)
}

/// Takes in what a server says of its kinds, where it has not been asked lately and has something new to say.
async fn describe(api: &Api, extension: &Arc<Extension>) -> Result<(), String> {
    let tag = {
        let mut description = extension.description.lock().unwrap_or_else(PoisonError::into_inner);
        if description.asked.is_some_and(|asked| asked.elapsed() < DESCRIBE_AGAIN) {
            return Ok(());
        }
        description.asked = Some(Instant::now());
        description.tag.clone()
    };
    let addresses = backends::addresses(api, &extension.namespace, &extension.service, extension.port)?;
    let answer = get(extension, &addresses, &AGGREGATOR, "/openapi/v2", &tag, MAX_DESCRIPTION).await?;
    if answer.status == StatusCode::NOT_MODIFIED {
        return Ok(());
    }
    let document = parsed(&answer)?;
    // Documents are large: not on the threads that all connections share.
    let (group, version) = (extension.group.clone(), extension.version.clone());
    let part = tokio::task::spawn_blocking(move || reduced(document, &group, &version)).await;
    let part = part.map_err(|error| error.to_string())?;
    let mut description = extension.description.lock().unwrap_or_else(PoisonError::into_inner);
    (description.tag, description.document) = (answer.tag, Some(Arc::new(part)));
    Ok(())
}

/// Asks one of a server's addresses for a path; who has what has this hash is told so.
pub(crate) async fn get(
    extension: &Extension,
    addresses: &[String],
    sender: &Sender<'_>,
    path: &str,
    known: &str,
    limit: usize,
) -> Result<Answer, String> {
    let tls = extension.tls.clone()?;
    let (stream, _) = backends::dial(addresses).await?;
    let stream = TlsConnector::from(tls).connect(extension.server_name()?, stream).await;
    let stream = stream.map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
    let words = |error: hyper::Error| error.to_string();
    let (mut door, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let mut request = http::Request::get(path);
    if !known.is_empty() {
        request = request.header(header::IF_NONE_MATCH, known);
    }
    request = request.header("x-remote-user", sender.user);
    for group in sender.groups {
        request = request.header("x-remote-group", *group);
    }
    let request = request
        .header(header::HOST, extension.host())
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let work = async {
        let answer = door.send_request(request).await.map_err(words)?;
        let tag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or("").to_owned();
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limit).collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { status, tag, body: body.to_bytes() })
    };
    let mut work = std::pin::pin!(work);
    // The connection is driven as long as the answer is awaited; what it has brought by its end is still read.
    tokio::select! {
        biased;
        done = work.as_mut() => done,
        _ = connection => work.await,
    }
}

/// Writes the condition, where it has changed.
fn note(
    batch: &mut Batch<'_>,
    name: &str,
    (status, reason, message): &(&str, &str, String),
) -> Result<api::Outcome, mainstay_api::Status> {
    let now = mainstay_api::time::rfc3339(batch.now);
    let change = |old: &Value| {
        let mut new = old.clone();
        let conditions = object::ensure(&mut new, &["status"]).entry("conditions").or_insert_with(|| json!([]));
        let Some(all) = conditions.as_array_mut() else { return Ok(new) };
        let known = all.iter().position(|condition| object::text(condition, &["type"]) == "Available");
        let known = known.map(|index| all.remove(index));
        let since = known.filter(|known| object::text(known, &["status"]) == *status);
        let since = since.and_then(|known| known.get("lastTransitionTime").cloned()).unwrap_or_else(|| json!(now));
        all.push(json!({ "type": "Available", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since }));
        Ok(new)
    };
    api::patch(batch, &kinds::API_SERVICE, "", name, Part::Status, &change)
}
