//! Requests for groups that another server answers (see [`crate::aggregation`]): passed on with the name of whoever
//! asks in headers that only the front proxy may set, upgrades included.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mainstay_api::Status;
use mainstay_tasks::listen::Connection;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::received::Received;
use super::respond::{self, Body};
use super::{Server, proxy};
use crate::aggregation::Extension;
use crate::auth::User;
use crate::backends;

/// How long a server may take to take a connection, and to begin its answer.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// What every header begins with that says who asks; a client's own are not passed on.
const REMOTE: &str = "x-remote-";

/// Passes a request on, and its answer back.
///
/// # Errors
/// 503 where the server is not available or nobody answers.
pub async fn serve(
    server: &Server,
    user: &User,
    extension: &Extension,
    request: Request<Received>,
) -> Result<Response<Body>, Status> {
    if !extension.is_available() {
        return Err(Status::unavailable("service unavailable"));
    }
    let unreachable =
        |why: &dyn std::fmt::Display| Status::unavailable(format!("error trying to reach service: {why}"));
    let addresses = backends::addresses(&server.api, &extension.namespace, &extension.service, extension.port)
        .map_err(|why| unreachable(&why))?;
    let connected = tokio::time::timeout(CONNECT, connect(extension, &addresses)).await;
    let io = connected
        .map_err(|_| unreachable(&format!("dial tcp {}: i/o timeout", addresses.join(", "))))?
        .map_err(|why| unreachable(&why))?;
    let io = TokioIo::new(io);
    let mut sender = proxy::begin(io, "an extension server's").await.map_err(|error| unreachable(&error))?;
    pass(&mut sender, user, extension, request).await.map_err(|error| unreachable(&error))
}

async fn connect(extension: &Extension, addresses: &[String]) -> Result<TlsStream<TcpStream>, String> {
    let tls = extension.tls.clone()?;
    let (stream, _) = backends::dial(addresses).await?;
    let stream = TlsConnector::from(tls).connect(extension.server_name()?, stream).await;
    stream.map_err(|error| format!("tls: failed to verify certificate: {error}"))
}

async fn pass(
    sender: &mut SendRequest<Received>,
    user: &User,
    extension: &Extension,
    mut request: Request<Received>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    let connection = request.extensions().get::<Connection>().cloned();
    let upgrading = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    // A client of HTTP/2 names scheme and host too.
    head.uri = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    head.version = http::Version::HTTP_11;
    identify(&mut head.headers, user)?;
    for name in [header::TE, header::TRAILER, header::TRANSFER_ENCODING, header::PROXY_AUTHORIZATION] {
        head.headers.remove(name);
    }
    // Whatever else a client lists there, the next hop would take out: also what says who asks.
    head.headers.remove(header::CONNECTION);
    if is_upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    head.headers.insert(header::HOST, HeaderValue::try_from(format!("{}:{}", extension.host(), extension.port))?);
    let mut answer = tokio::time::timeout(ANSWER, sender.send_request(Request::from_parts(head, body))).await??;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS && !is_upgrade {
        return Err("the backend switched protocols without being asked to".into());
    }
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        // As upstream: what is said with a client's rights does not lead it elsewhere.
        return Ok(respond::text(502, "the backend attempted to redirect this request, which is not permitted"));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut head, body) = answer.into_parts();
        head.headers.remove(header::CONNECTION);
        head.headers.remove(header::TRANSFER_ENCODING);
        return Ok(Response::from_parts(head, Body::Incoming(body)));
    }
    proxy::join(upgrading, &mut answer, connection);
    let (head, _) = answer.into_parts();
    Ok(Response::from_parts(head, Body::Full(None)))
}

/// Says who asks, instead of whatever the client said or proved itself with.
fn identify(headers: &mut HeaderMap, user: &User) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let said: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(REMOTE) || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in said {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    headers.insert("x-remote-user", HeaderValue::try_from(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", HeaderValue::try_from(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", HeaderValue::try_from(group)?);
    }
    for (key, values) in &user.extra {
        let name = HeaderName::try_from(format!("x-remote-extra-{}", escaped(key)))?;
        for value in values {
            headers.append(name.clone(), HeaderValue::try_from(value)?);
        }
    }
    Ok(())
}

/// What no header's name may hold, percent-encoded, as upstream.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a String does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x1_nobody_says_themselves_who_they_are() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("impersonate-user", "root"),
            ("authorization", "Bearer secret"),
            ("accept", "application/json"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let user = User {
            name: "jane".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("example.org/scope".to_owned(), vec!["x".to_owned()])].into(),
            ..User::default()
        };
        identify(&mut headers, &user).expect("headers");
        let all = |name: &str| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>();
        assert_eq!((all("x-remote-user"), all("x-remote-group")), (vec!["jane"], vec!["a", "b"]));
        assert_eq!(all("x-remote-extra-example.org%2fscope"), ["x"]);
        assert_eq!(all("accept"), ["application/json"]);
        for gone in ["authorization", "impersonate-user", "x-remote-extra-a"] {
            assert!(all(gone).is_empty(), "{gone}");
        }
    }
}
