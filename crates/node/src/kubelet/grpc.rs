//! The health protocol of gRPC, as far as a probe needs it: one call of `grpc.health.v1.Health/Check` over plain
//! HTTP/2.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay_logic::kubelet::ProbeOutcome;
use tokio::net::TcpStream;

/// How much of an answer is read: a status is two bytes, and a message tells a person why.
const MAX_ANSWER: usize = 4096;
/// Longest message of a server that is passed on.
const MAX_MESSAGE: usize = 1024;
/// A gRPC message's own heading: whether it is compressed, and its length.
const HEADING: usize = 5;

/// `grpc-status` where the server does not know the service, and where it knows no such protocol.
const UNIMPLEMENTED: u32 = 12;
const DEADLINE_EXCEEDED: u32 = 4;
/// `ServingStatus` by number.
const SERVING: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const STATUS_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Asks the server at `address` (`host:port`) how `service` is (`""`: the server as a whole). Failures in upstream's
/// words.
pub async fn check(address: &str, service: &str, timeout: Duration) -> ProbeOutcome {
    let until = tokio::time::Instant::now() + timeout;
    let seconds = timeout.as_secs();
    let tcp = match tokio::time::timeout_at(until, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            let why = format!("error: failed to connect service at {address:?}: {error}");
            return ProbeOutcome::Failure(why);
        }
        Err(_) => {
            let why =
                format!("timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded");
            return ProbeOutcome::Failure(why);
        }
    };
    match tokio::time::timeout_at(until, call(tcp, address, service, timeout)).await {
        Err(_) | Ok(Err(Wrong::Status(DEADLINE_EXCEEDED, _))) => {
            ProbeOutcome::Failure(format!("timeout: health rpc did not complete within {seconds}s"))
        }
        Ok(Ok(1)) => ProbeOutcome::Success,
        Ok(Ok(status)) => {
            let name = SERVING.get(status as usize).map_or_else(|| status.to_string(), |name| (*name).to_owned());
            ProbeOutcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(Wrong::Status(UNIMPLEMENTED, message))) => ProbeOutcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Ok(Err(Wrong::Status(code, message))) => {
            let name = STATUS_NAMES.get(code as usize).copied().unwrap_or("Unknown");
            let why = format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}");
            ProbeOutcome::Failure(why)
        }
        Ok(Err(Wrong::Transport(why))) => ProbeOutcome::Failure(format!("error: health rpc probe failed: {why}")),
    }
}

/// A call that brought no answer.
enum Wrong {
    /// The server's `grpc-status` and its message.
    Status(u32, String),
    Transport(String),
}

impl From<hyper::Error> for Wrong {
    fn from(error: hyper::Error) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Wrong::Transport(format!("{error}{}", source.unwrap_or_default()))
    }
}

async fn call(tcp: TcpStream, address: &str, service: &str, timeout: Duration) -> Result<u32, Wrong> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
    // Ends with this call: it lives in the set, not beside it.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .header("grpc-timeout", format!("{}m", timeout.as_millis()))
        .body(Once(Some(message(service))))
        .map_err(|error| Wrong::Transport(error.to_string()))?;
    let mut response = sender.send_request(request).await?;
    if response.status() != http::StatusCode::OK {
        return Err(Wrong::Transport(format!("unexpected HTTP status code {}", response.status())));
    }
    let mut answer = Vec::new();
    let mut status = grpc_status(response.headers());
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(response.body_mut()).poll_frame(context)).await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            answer.extend_from_slice(data);
        }
        if let Some(trailers) = frame.trailers_ref() {
            status = grpc_status(trailers).or(status);
        }
        if answer.len() > MAX_ANSWER {
            return Err(Wrong::Transport(format!("an answer of more than {MAX_ANSWER} bytes")));
        }
    }
    match status {
        Some((0, _)) => serving_status(&answer).ok_or_else(|| Wrong::Transport("a malformed answer".to_owned())),
        Some((code, message)) => Err(Wrong::Status(code, message)),
        None => Err(Wrong::Transport("the server sent no grpc-status".to_owned())),
    }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<(u32, String)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let message: String = text("grpc-message").unwrap_or_default().chars().take(MAX_MESSAGE).collect();
    Some((text("grpc-status")?.parse().ok()?, message))
}

/// `HealthCheckRequest { service }` with gRPC's heading.
fn message(service: &str) -> Bytes {
    let mut body = Vec::new();
    if !service.is_empty() {
        // Field 1, a string.
        body.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            body.push(length as u8 | 0x80);
            length >>= 7;
        }
        body.push(length as u8);
        body.extend_from_slice(service.as_bytes());
    }
    let mut all = vec![0];
    all.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    all.extend(body);
    all.into()
}

/// `HealthCheckResponse.status`; 0 where the message does not have it. Unknown fields are passed over.
fn serving_status(answer: &[u8]) -> Option<u32> {
    let (heading, mut message) = answer.split_at_checked(HEADING)?;
    let [compressed, length @ ..] = heading else { return None };
    let length = u32::from_be_bytes(length.try_into().ok()?);
    if *compressed != 0 || message.len() != length as usize {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = u32::try_from(varint(&mut message)?).ok()?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 1) => message = message.get(8..)?,
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A body of one piece.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames that a server answers with.
    struct Frames(std::collections::VecDeque<Frame<Bytes>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn frames(data: &'static [u8], status: &'static str, message: &'static str) -> Frames {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
        trailers.insert("grpc-message", http::HeaderValue::from_static(message));
        Frames([Frame::data(Bytes::from_static(data)), Frame::trailers(trailers)].into_iter().collect())
    }

    /// A server that serves as its service's name says.
    async fn serve() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let mut body = request.into_body();
                    let mut sent = Vec::new();
                    while let Some(frame) = std::future::poll_fn(|c| Pin::new(&mut body).poll_frame(c)).await {
                        sent.extend_from_slice(frame.unwrap().data_ref().unwrap());
                    }
                    Ok::<_, std::convert::Infallible>(http::Response::new(match sent.get(7..).unwrap_or_default() {
                        b"" => frames(&[0, 0, 0, 0, 2, 8, 1], "0", ""),
                        b"down" => frames(&[0, 0, 0, 0, 2, 8, 2], "0", ""),
                        b"absent" => frames(&[], "12", "unknown service"),
                        b"long" => frames(&[0; MAX_ANSWER + 1], "0", ""),
                        b"slow" => std::future::pending().await,
                        other => panic!("{other:?}"),
                    }))
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(serving.serve_connection(TokioIo::new(tcp), service));
            }
        });
        address
    }

    #[tokio::test]
    async fn a_server_is_asked_and_failures_are_told_in_upstreams_words() {
        let address = serve().await;
        let ask = async |service: &str| check(&address, service, Duration::from_secs(1)).await;
        assert_eq!(ask("").await, ProbeOutcome::Success);
        for (service, expected) in [
            ("down", "service unhealthy (responded with \"NOT_SERVING\")"),
            (
                "absent",
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown \
                    service",
            ),
            ("slow", "timeout: health rpc did not complete within 1s"),
            ("long", "error: health rpc probe failed: an answer of more than 4096 bytes"),
        ] {
            assert_eq!(ask(service).await, ProbeOutcome::Failure(expected.to_owned()));
        }
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let outcome = check(&closed, "", Duration::from_secs(1)).await;
        assert!(
            matches!(&outcome, ProbeOutcome::Failure(why) if why.starts_with("error: failed to connect service at ")),
            "{outcome:?}"
        );
    }

    #[test]
    fn hostile_answers_are_refused_x4() {
        for answer in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\xff\xff\xff\xff\x08\x01",
            b"\0\0\0\0\x02\x08\xff",
            b"\0\0\0\0\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\0\0\0\0\x03\x12\xff\x01",
        ] {
            assert_eq!(serving_status(answer), None, "{answer:?}");
        }
        assert_eq!(serving_status(b"\0\0\0\0\x07\x12\x01x\x1a\0\x08\x03"), Some(3), "unknown fields are passed over");
        assert_eq!(message(&"s".repeat(200)).get(5..8), Some(&[0x0a, 0xc8, 0x01][..]));
    }
}
