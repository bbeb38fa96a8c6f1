//! `log`, `exec`, `attach`, `portforward`: passed on to the kubelet of the pod's node, byte for byte.
//!
//! The server looks into nothing: upgrade headers (SPDY or WebSocket) go through both ways, and then both directions
//! are copied until either side ends; only where a WebSocket's frames end is seen ([`super::frames`]).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mainstay_api::kinds::Subresource;
use mainstay_api::parameters::is_true;
use mainstay_api::{Kind, Status, kinds, object};
use mainstay_tasks::listen::Connection;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::frames::FrameByFrame;
use super::objects::pod_of;
use super::received::Received;
use super::respond::Body;
use super::route::{Target, parameters};
use super::{Server, socket};
use crate::auth::User;

/// How long a kubelet may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a kubelet may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// So much of an answer that is passed on is read ahead of the client, which may never read it (bytes, X4). The
/// answer's head must fit.
const MAX_AHEAD: usize = 64 << 10;
/// The kubelet's port where a Node does not say.
const KUBELET_PORT: i64 = 10250;

/// What is streamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streaming {
    Log,
    Exec,
    Attach,
    PortForward,
}

impl Streaming {
    /// What a request streams, if it does.
    pub fn of(target: &Target) -> Option<Self> {
        match target.subresource.as_str() {
            "log" => Some(Self::Log),
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::PortForward),
            _ => None,
        }
    }

    /// Its row's name for it.
    pub fn subresource(self) -> Subresource {
        match self {
            Self::Log => Subresource::Log,
            Self::Exec => Subresource::Exec,
            Self::Attach => Subresource::Attach,
            Self::PortForward => Subresource::PortForward,
        }
    }
}

/// Passes a request on, and its answer back.
pub async fn stream(
    server: &Arc<Server>,
    target: &Target,
    what: Streaming,
    request: Request<Received>,
) -> Result<Response<Body>, Status> {
    let allowed = if what == Streaming::Log {
        *request.method() == Method::GET
    } else {
        matches!(*request.method(), Method::GET | Method::POST)
    };
    if !allowed {
        return Err(Status::method_not_allowed());
    }
    let pod = pod_of(server, target)?;
    let query = parameters(request.uri().query().unwrap_or(""));
    let path = kubelet_path(&pod, what, &query)?;
    let (node, address) = kubelet_address(server, &pod)?;
    let unreachable = |error: &dyn std::fmt::Display| Status::internal(format!("error dialing backend: {error}"));
    let connected = tokio::time::timeout(CONNECT, connect(&server.kubelet_tls, &address, node)).await;
    let io = connected
        .map_err(|_| unreachable(&format!("dial tcp {address}: i/o timeout")))?
        .map_err(|error| unreachable(&error))?;
    let mut sender = begin(TokioIo::new(io), "a kubelet's").await.map_err(|error| unreachable(&error))?;
    pass(&mut sender, request, &path, &address).await.map_err(|error| unreachable(&error))
}

/// Begins to speak HTTP/1.1, with upgrades, over a connection to where requests are passed on; `whose` it is, in words.
pub async fn begin<IO>(io: IO, whose: &'static str) -> hyper::Result<SendRequest<Received>>
where
    IO: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new().max_buf_size(MAX_AHEAD).handshake(io).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "{whose} connection ended early");
        }
    });
    Ok(sender)
}

async fn pass(
    sender: &mut SendRequest<Received>,
    mut request: Request<Received>,
    path: &str,
    address: &str,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let connection = request.extensions().get::<Connection>().cloned();
    let upgrading = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    head.uri = path.parse()?;
    head.version = http::Version::HTTP_11;
    // Who asked is settled; the kubelet is asked by this server, with its own certificate.
    head.headers.remove(header::AUTHORIZATION);
    head.headers.insert(header::HOST, HeaderValue::try_from(address)?);
    let mut answer = tokio::time::timeout(ANSWER, sender.send_request(Request::from_parts(head, body))).await??;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::Incoming));
    }
    join(upgrading, &mut answer, connection);
    let (head, _) = answer.into_parts();
    Ok(Response::from_parts(head, Body::Full(None)))
}

/// Begins to pass bytes on between a client and who has answered it with an upgrade, until both directions have ended;
/// an error on one ends the other.
pub fn join(client: OnUpgrade, answer: &mut Response<Incoming>, connection: Option<Connection>) {
    let is_websocket = socket::is_websocket(answer.headers());
    tokio::spawn(copy(client, hyper::upgrade::on(answer), is_websocket, connection));
}

async fn copy(client: OnUpgrade, backend: OnUpgrade, is_websocket: bool, connection: Option<Connection>) {
    let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
    let mut client = FrameByFrame::new(TokioIo::new(client), is_websocket);
    let mut backend = TokioIo::new(backend);
    // The client's connection is still one of those that are counted.
    let _active = connection.as_ref().map(Connection::begin);
    let gives_way = async {
        match &connection {
            Some(connection) => connection.gives_way().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut backend) => {}
        () = gives_way => {}
    }
}

/// What a connection asks for, as admission sees it: the options' kind, and an object of it.
pub fn options(kind: &Kind, subresource: &str, uri: &http::Uri) -> (&'static str, Value) {
    let query = parameters(uri.query().unwrap_or(""));
    let all = |field: &str| -> Vec<&str> {
        query.iter().filter(|(name, _)| name == field).map(|(_, value)| value.as_str()).collect()
    };
    let (type_name, mut options) = match subresource {
        "exec" => ("PodExecOptions", json!({ "command": all("command") })),
        "attach" => ("PodAttachOptions", json!({})),
        "portforward" => {
            let ports: Vec<i64> = all("ports").iter().filter_map(|port| port.parse().ok()).collect();
            ("PodPortForwardOptions", json!({ "ports": ports }))
        }
        _ => {
            let slashes = if uri.path().split('/').nth(3) == Some("namespaces") { 8 } else { 6 };
            let path = uri.path().match_indices('/').nth(slashes - 1).and_then(|(at, _)| uri.path().get(at..));
            let type_name = match &*kind.kind {
                "Service" => "ServiceProxyOptions",
                "Node" => "NodeProxyOptions",
                _ => "PodProxyOptions",
            };
            (type_name, json!({ "path": path.unwrap_or("") }))
        }
    };
    if matches!(subresource, "exec" | "attach") {
        for flag in ["stdin", "stdout", "stderr", "tty"] {
            if all(flag).iter().any(|value| is_true(value)) {
                options[flag] = true.into();
            }
        }
        if let Some(container) = all("container").first() {
            options["container"] = (*container).into();
        }
    }
    options["kind"] = type_name.into();
    options["apiVersion"] = "v1".into();
    (type_name, options)
}

/// A connection to a node's kubelet. Its certificate is of our CA, has the address, and is that node's: another node's
/// does not do, whatever addresses it has.
pub async fn connect(
    tls: &Arc<rustls::ClientConfig>,
    address: &str,
    node: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = rustls::pki_types::ServerName::try_from(host).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| User::of_certificate(chain.first()?));
    match shown.as_ref().and_then(User::node) {
        Some(shown) if shown == node => Ok(stream),
        _ => {
            let who = shown.map_or_else(|| "nobody".to_owned(), |user| user.name);
            Err(std::io::Error::other(format!("the certificate at {address} is that of {who}, not of node {node}")))
        }
    }
}

/// The pod's node, and where its kubelet listens.
fn kubelet_address<'a>(server: &Server, pod: &'a Value) -> Result<(&'a str, String), Status> {
    let node = object::text(pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", object::name(pod))));
    }
    Ok((node, kubelet_address_of(&server.api.batch().must_get(&kinds::NODE, "", node)?)?))
}

/// Where a node's kubelet listens: `192.0.2.1:10250`.
pub fn kubelet_address_of(node: &Value) -> Result<String, Status> {
    let port = object::at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
        .and_then(Value::as_i64)
        .unwrap_or(KUBELET_PORT);
    let addresses = object::at(node, &["status", "addresses"]).and_then(Value::as_array).into_iter().flatten();
    let address = addresses
        .filter(|address| object::text(address, &["type"]) == "InternalIP")
        .map(|address| object::text(address, &["address"]))
        .next()
        .ok_or_else(|| {
            Status::internal(format!("no preferred addresses found; known addresses: []: node {}", object::name(node)))
        })?;
    Ok(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
}

/// The container that is meant: the one that is named, or the only one there is.
fn container_of(pod: &Value, asked: &str) -> Result<String, Status> {
    let pod_name = object::name(pod);
    let names = |list: &str| -> Vec<&str> {
        let containers = object::at(pod, &["spec", list]).and_then(Value::as_array).into_iter().flatten();
        containers.map(|container| object::text(container, &["name"])).collect()
    };
    let (own, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        return match own.iter().chain(&init).chain(&ephemeral).any(|name| *name == asked) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}"))),
        };
    }
    let preferred = object::text(pod, &["metadata", "annotations", "kubectl.kubernetes.io/default-container"]);
    match own.as_slice() {
        _ if own.contains(&preferred) => Ok(preferred.to_owned()),
        [only] => Ok((*only).to_owned()),
        _ if init.is_empty() => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            own.join(" ")
        ))),
        _ => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}] or one of the init \
                containers: [{}]",
            own.join(" "),
            init.join(" ")
        ))),
    }
}

/// The kubelet's path and query for it.
fn kubelet_path(pod: &Value, what: Streaming, query: &[(String, String)]) -> Result<String, Status> {
    let (namespace, name) = (object::namespace(pod), object::name(pod));
    let value = |field: &str| query.iter().find(|(name, _)| name == field).map_or("", |(_, value)| value.as_str());
    if what != Streaming::Log && matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        let phase = object::text(pod, &["status", "phase"]);
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let mut passed: Vec<(&str, String)> = Vec::new();
    let root = match what {
        Streaming::PortForward => {
            passed.extend(
                query
                    .iter()
                    .filter(|(name, _)| name == "ports" || name == "port")
                    .map(|(_, value)| ("port", value.clone())),
            );
            format!("/portForward/{namespace}/{name}")
        }
        Streaming::Log => {
            let options = ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes"];
            passed.extend(
                options
                    .into_iter()
                    .filter(|option| !value(option).is_empty())
                    .map(|option| (option, value(option).to_owned())),
            );
            format!("/containerLogs/{namespace}/{name}/{}", container_of(pod, value("container"))?)
        }
        Streaming::Exec | Streaming::Attach => {
            // The kubelet's names for the streams differ from the API's.
            for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
                if query.iter().any(|(name, value)| name == ours && is_true(value)) {
                    passed.push((theirs, "1".to_owned()));
                }
            }
            passed.extend(
                query.iter().filter(|(name, _)| name == "command").map(|(_, value)| ("command", value.clone())),
            );
            let verb = if what == Streaming::Exec { "exec" } else { "attach" };
            format!("/{verb}/{namespace}/{name}/{}", container_of(pod, value("container"))?)
        }
    };
    let query: Vec<String> = passed.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    Ok(if query.is_empty() { root } else { format!("{root}?{}", query.join("&")) })
}

/// Percent-encodes everything but letters, digits and `-._~`.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_the_kubelets() {
        let pod = json!({ "metadata": { "namespace": "a", "name": "b" }, "spec": { "containers": [{ "name": "c" }] } });
        let two = json!({ "metadata": { "namespace": "a", "name": "b" },
            "spec": { "containers": [{ "name": "c" }, { "name": "d" }] } });
        let path = |pod: &Value, what, query: &str| {
            kubelet_path(pod, what, &parameters(query)).map_err(|status| status.message)
        };
        assert_eq!(
            path(&pod, Streaming::Log, "follow=true&tailLines=5&x=y"),
            Ok("/containerLogs/a/b/c?follow=true&tailLines=5".into())
        );
        assert_eq!(
            path(
                &pod,
                Streaming::Exec,
                "command=sh&command=-c&command=echo+%26&container=c&stdin=true&stdout=true&tty=false"
            ),
            Ok("/exec/a/b/c?input=1&output=1&command=sh&command=-c&command=echo%20%26".into())
        );
        assert_eq!(path(&pod, Streaming::PortForward, "ports=80"), Ok("/portForward/a/b?port=80".into()));
        assert_eq!(
            path(&two, Streaming::Log, ""),
            Err("a container name must be specified for pod b, choose one of: [c d]".into())
        );
        assert_eq!(path(&two, Streaming::Log, "container=x"), Err("container x is not valid for pod b".into()));
    }
}
