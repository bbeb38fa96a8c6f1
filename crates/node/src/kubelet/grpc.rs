//! The health protocol of gRPC, as far as a probe needs it: one call of `grpc.health.v1.Health/Check` over plain
//! HTTP/2.

use std::time::Duration;

use mainstay_client::grpc::{self, Call, Field, GrpcError, unary};
use mainstay_logic::kubelet::ProbeOutcome;
use tokio::net::TcpStream;

/// How much of an answer is read: a status is two bytes, and a message tells a person why.
const MAX_ANSWER: usize = 4096;

/// `grpc-status` where the server does not know the service, and where it knows no such protocol.
const UNIMPLEMENTED: u32 = 12;
const DEADLINE_EXCEEDED: u32 = 4;
/// `ServingStatus` by number.
const SERVING: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

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
        Err(_) | Ok(Err(GrpcError::Status(DEADLINE_EXCEEDED, _))) => {
            ProbeOutcome::Failure(format!("timeout: health rpc did not complete within {seconds}s"))
        }
        Ok(Ok(1)) => ProbeOutcome::Success,
        Ok(Ok(status)) => {
            let name = SERVING.get(status as usize).map_or_else(|| status.to_string(), |name| (*name).to_owned());
            ProbeOutcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(GrpcError::Status(UNIMPLEMENTED, message))) => ProbeOutcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Ok(Err(GrpcError::Status(code, message))) => {
            let name = grpc::name(code);
            let why = format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}");
            ProbeOutcome::Failure(why)
        }
        Ok(Err(GrpcError::Transport(why))) => ProbeOutcome::Failure(format!("error: health rpc probe failed: {why}")),
    }
}

async fn call(tcp: TcpStream, address: &str, service: &str, timeout: Duration) -> Result<u32, GrpcError> {
    let mut message = Vec::new();
    grpc::put_nonempty(&mut message, 1, service.as_bytes());
    let call = Call {
        path: "/grpc.health.v1.Health/Check",
        authority: address,
        agent: "kube-probe/1.37",
        timeout,
        message: &message,
        most: MAX_ANSWER,
    };
    let answer = unary(tcp, call).await?;
    serving_status(&answer).ok_or_else(|| GrpcError::Transport("a malformed answer".to_owned()))
}

/// `HealthCheckResponse.status`; 0 where the message does not have it. Unknown fields are passed over.
fn serving_status(answer: &[u8]) -> Option<u32> {
    let mut status = 0;
    for field in grpc::fields(answer)? {
        if let (1, Field::Varint(number)) = field {
            status = u32::try_from(number).ok()?;
        }
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http_body::{Body, Frame};
    use hyper_util::rt::{TokioExecutor, TokioIo};

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
        for answer in [&b"\x08\xff"[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x12\xff\x01"] {
            assert_eq!(serving_status(answer), None, "{answer:?}");
        }
        assert_eq!(serving_status(b"\x12\x01x\x1a\0\x08\x03"), Some(3), "unknown fields are passed over");
    }
}
