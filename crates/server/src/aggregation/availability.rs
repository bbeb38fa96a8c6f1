//! Whether extension servers answer: the Available condition of their APIServices, and what they offer.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use mainstay_api::{kinds, object};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{Extension, Services};
use crate::api::{self, Api, Batch, Part, key};
use crate::dynamic::dial_error;
use crate::http::service_address;

/// How often a server is asked (upstream asks as often).
const AGAIN: Duration = Duration::from_secs(30);
/// How often one that did not answer.
const SOON: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A discovery document beyond this is refused (bytes).
const MAX_DOCUMENT: usize = 1 << 20;

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
async fn look(api: &Api, extension: &Extension) -> bool {
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
    let address = service_address(api, namespace, name, extension.port).map_err(|_| {
        let why = format!("endpoints for service/{name} in {namespace:?} have no addresses with port name \"\"");
        Missing("MissingEndpoints", why)
    })?;
    let url = format!("https://{address}{}", extension.path());
    let document = get(extension, &address).await.map_err(|why| failed(&url, &why))?;
    if object::text(&document, &["kind"]) != "APIResourceList" {
        return Err(failed(&url, "the answer is no APIResourceList"));
    }
    Ok(document)
}

async fn get(extension: &Extension, address: &str) -> Result<Value, String> {
    let tls = extension.tls.clone()?;
    let stream = TcpStream::connect(address).await.map_err(|error| dial_error(address, &error))?;
    let stream = TlsConnector::from(tls).connect(extension.server_name()?, stream).await;
    let stream = stream.map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let request = http::Request::get(extension.path())
        .header(http::header::HOST, extension.host())
        .header(http::header::ACCEPT, "application/json")
        .header("x-remote-user", "system:kube-aggregator")
        .header("x-remote-group", "system:masters")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let work = async {
        let answer = sender.send_request(request).await.map_err(words)?;
        if !answer.status().is_success() {
            return Err(format!("bad status from the server: {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
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
