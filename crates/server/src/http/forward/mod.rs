//! The `proxy` subresources of Pods, Services and Nodes: HTTP requests passed on to what they name, upgrades included.
//!
//! As upstream: the name may carry scheme and port (`https:web:8080`), a path that is empty is redirected to one that
//! ends with a slash, `Location` headers and the links of HTML pages lead back through the proxy ([`links`]), and
//! addresses that are nobody's but the machine's own (loopback, link-local) are refused. What the client sent to prove
//! who it is stays here.

mod links;
mod target;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mainstay_api::Status;
use mainstay_tasks::listen::Connection;
use tokio_rustls::TlsConnector;

use super::received::Received;
use super::respond::{self, Body};
use super::route::Target;
use super::{Server, proxy};
use crate::backends::dial;
use target::Backend;

/// How long what is asked may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(60);
/// The largest HTML page whose links are rewritten (bytes); a larger one is a 502.
const MAX_PAGE: usize = 8 << 20;
/// The same in KiB.
const PAGE_KIB: u32 = 8 << 10;
/// How long such a page may take to arrive.
const PAGE: Duration = Duration::from_secs(30);

/// Passes a request on, and its answer back.
///
/// # Errors
/// 400 for a name, a scheme or an address that cannot be asked, 503 where a Service has no endpoints, 503 with
/// upstream's words where nobody answers.
pub async fn serve(
    server: &Arc<Server>,
    user: &str,
    target: &Target,
    request: Request<Received>,
) -> Result<Response<Body>, Status> {
    let (prefix, rest) = split(request.uri().path());
    if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(redirect(&prefix, request.uri().query()));
    }
    let backend = target::resolve(server, target)?;
    let path = match request.uri().query() {
        Some(query) => format!("{}?{query}", if rest.is_empty() { "/" } else { &rest }),
        None if rest.is_empty() => "/".to_owned(),
        None => rest,
    };
    let unreachable = |error: &dyn std::fmt::Display| {
        Status::new(503, "ServiceUnavailable", format!("error trying to reach service: {error}"))
    };
    let connected = tokio::time::timeout(CONNECT, connect(server, &backend)).await;
    let (io, address) = connected
        .map_err(|_| unreachable(&format!("dial tcp {}: i/o timeout", backend.addresses.join(", "))))?
        .map_err(|why| unreachable(&why))?;
    let mut sender = proxy::begin(io, "a proxied").await.map_err(|error| unreachable(&error))?;
    let answer = pass(&mut sender, request, &path, &prefix, address).await.map_err(|error| unreachable(&error))?;
    lead_back(server, user, answer, &prefix, address).await
}

/// `/api/v1/…/proxy` and what comes after it, both as the client encoded them. A pod may itself be called `proxy`: what
/// counts is the segment's index.
fn split(path: &str) -> (String, String) {
    let is_namespaced = path.split('/').nth(3) == Some("namespaces");
    let slashes = if is_namespaced { 8 } else { 6 };
    let end = path.match_indices('/').nth(slashes - 1).map_or(path.len(), |(at, _)| at);
    let (prefix, rest) = path.split_at(end);
    (prefix.to_owned(), rest.to_owned())
}

fn redirect(prefix: &str, query: Option<&str>) -> Response<Body> {
    let location = query.map_or_else(|| format!("{prefix}/"), |query| format!("{prefix}/?{query}"));
    let mut response = respond::text(301, Bytes::new());
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A byte stream to a backend.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to a backend; gives at which of its addresses.
async fn connect<'a>(server: &Server, backend: &'a Backend) -> Result<(TokioIo<Box<dyn Stream>>, &'a str), String> {
    let words = |address: &str, error: &std::io::Error| format!("dial tcp {address}: {error}");
    if let (target::Tls::Kubelet(node), Some(address)) = (&backend.tls, backend.addresses.first()) {
        let stream = proxy::connect(&server.kubelet_tls, address, node).await;
        return Ok((TokioIo::new(Box::new(stream.map_err(|error| words(address, &error))?)), address));
    }
    let (stream, address) = dial(&backend.addresses).await?;
    if backend.tls != target::Tls::Unverified {
        return Ok((TokioIo::new(Box::new(stream)), address));
    }
    let tls = target::unverified_tls().map_err(|error| error.to_string())?;
    let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = rustls::pki_types::ServerName::try_from(host).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| words(address, &error))?;
    Ok((TokioIo::new(Box::new(stream)), address))
}

/// Headers that are about one connection only.
const HOP_BY_HOP: [header::HeaderName; 5] =
    [header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION, header::TE, header::TRAILER, header::TRANSFER_ENCODING];

async fn pass(
    sender: &mut SendRequest<Received>,
    mut request: Request<Received>,
    path: &str,
    prefix: &str,
    address: &str,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    let connection = request.extensions().get::<Connection>().cloned();
    let upgrading = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    head.uri = path.parse()?;
    head.version = http::Version::HTTP_11;
    forwarded(&mut head.headers, prefix, path)?;
    for name in HOP_BY_HOP {
        head.headers.remove(name);
    }
    if !is_upgrade {
        head.headers.remove(header::CONNECTION);
    }
    head.headers.remove(header::AUTHORIZATION);
    head.headers.insert(header::HOST, HeaderValue::try_from(address)?);
    let mut answer = tokio::time::timeout(ANSWER, sender.send_request(Request::from_parts(head, body))).await??;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS && !is_upgrade {
        return Err("the backend switched protocols without being asked to".into());
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::Incoming));
    }
    proxy::join(upgrading, &mut answer, connection);
    let (head, _) = answer.into_parts();
    Ok(Response::from_parts(head, Body::Full(None)))
}

/// Where the client thinks that it is.
fn forwarded(headers: &mut HeaderMap, prefix: &str, path: &str) -> Result<(), http::header::InvalidHeaderValue> {
    let path = path.split('?').next().unwrap_or("");
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert("x-forwarded-host", host);
    }
    headers.insert("x-forwarded-uri", HeaderValue::try_from(format!("{prefix}{path}"))?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    Ok(())
}

/// The answer with `Location` and, in a page, links that lead through the proxy again.
async fn lead_back(
    server: &Server,
    user: &str,
    answer: Response<Body>,
    prefix: &str,
    address: &str,
) -> Result<Response<Body>, Status> {
    let (mut head, body) = answer.into_parts();
    head.headers.remove(header::CONNECTION);
    head.headers.remove(header::TRANSFER_ENCODING);
    let location = head.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    if let Some(led) = location.and_then(|location| links::lead(location, prefix, address))
        && let Ok(led) = HeaderValue::try_from(led)
    {
        head.headers.insert(header::LOCATION, led);
    }
    let is_page = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|media| media.to_str().ok())
        .is_some_and(|media| media.split(';').next().unwrap_or("").trim() == "text/html");
    let is_plain = !head.headers.contains_key(header::CONTENT_ENCODING);
    let Body::Incoming(incoming) = body else { return Ok(Response::from_parts(head, body)) };
    if !is_page || !is_plain {
        return Ok(Response::from_parts(head, Body::Incoming(incoming)));
    }
    let unreadable = |why: &str| Status::new(502, "InternalError", format!("error trying to read the page: {why}"));
    let collected = async {
        // A page is in memory as a whole: it is paid for like any other large answer.
        let share = server.bounds.answers.take(user, PAGE_KIB).await;
        (Limited::new(incoming, MAX_PAGE).collect().await, share)
    };
    let (collected, _share) =
        tokio::time::timeout(PAGE, collected).await.map_err(|_| unreadable("it did not arrive in time"))?;
    let bytes = collected.map_err(|error| match error.is::<LengthLimitError>() {
        true => unreadable(&format!("the page is larger than {MAX_PAGE} bytes")),
        false => unreadable(&error.to_string()),
    })?;
    let page = links::rewrite(&bytes.to_bytes(), prefix, address);
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::Full(Some(page.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_after_the_subresource() {
        let table = [
            ("/api/v1/namespaces/a/pods/b/proxy", "/api/v1/namespaces/a/pods/b/proxy", ""),
            ("/api/v1/namespaces/a/pods/b/proxy/", "/api/v1/namespaces/a/pods/b/proxy", "/"),
            (
                "/api/v1/namespaces/a/services/proxy/proxy/x%2Fy/proxy",
                "/api/v1/namespaces/a/services/proxy/proxy",
                "/x%2Fy/proxy",
            ),
            ("/api/v1/nodes/n:10250/proxy/logs/", "/api/v1/nodes/n:10250/proxy", "/logs/"),
        ];
        for (path, prefix, rest) in table {
            assert_eq!(split(path), (prefix.to_owned(), rest.to_owned()), "{path}");
        }
    }
}
