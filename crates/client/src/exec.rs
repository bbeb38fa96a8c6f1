//! Commands in containers: one WebSocket per command, in Kubernetes' `v5.channel.k8s.io`.

use std::time::Duration;

use futures_util::StreamExt;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, Request};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::request::{Client, Error, escape, status_error};

/// The subprotocol asked for: each message begins with a byte that names its channel.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// The largest output (both streams together, bytes) that is collected.
const MAX_OUTPUT: usize = 64 << 20;
/// The largest message that is taken.
const MAX_MESSAGE: usize = 1 << 20;
/// How long connecting and the server's first answer may take.
const START_TIMEOUT: Duration = Duration::from_secs(40);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;

/// What a command wrote, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its exit code; 128 + the signal where one ended it.
    pub code: i32,
}

impl Client {
    /// Runs a command in a container (`""`: the pod's default or only one) without stdin or terminal and waits for its
    /// end. There is no time limit on the command itself: wrap the call where you need one; dropping it kills the
    /// command.
    ///
    /// # Errors
    /// `Status` where the server refuses (no such pod, container not running, command not found); `Transport` where the
    /// connection ends before the command's result came.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> Result<ExecOutput, Error> {
        let mut path =
            format!("/api/v1/namespaces/{}/pods/{}/exec?stdout=true&stderr=true", escape(namespace), escape(pod));
        if !container.is_empty() {
            path.push_str(&format!("&container={}", escape(container)));
        }
        for word in command {
            path.push_str(&format!("&command={}", escape(word)));
        }
        let socket = tokio::time::timeout(START_TIMEOUT, self.websocket(&path)).await.map_err(|_| Error::Timeout)??;
        collect(socket).await
    }

    async fn websocket(&self, path: &str) -> Result<WebSocketStream<TlsStream<TcpStream>>, Error> {
        let config = self.config();
        let server = self.present_server();
        let malformed = |error: &dyn std::fmt::Display| Error::Malformed(error.to_string());
        let mut request: Request<()> =
            tungstenite::client::IntoClientRequest::into_client_request(format!("wss://{server}{path}"))
                .map_err(|error| malformed(&error))?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        if let Some(token) = &config.token {
            let value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| malformed(&error))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let stream = self.dial(&server).await?;
        let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        match client_async_with_config(request, stream, Some(limits)).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => {
                Err(refusal(answer.status().as_u16(), answer.body().as_deref().unwrap_or_default()))
            }
            Err(error) => Err(Error::Transport(error.to_string())),
        }
    }
}

/// What the server said instead of switching protocols.
fn refusal(code: u16, body: &[u8]) -> Error {
    match serde_json::from_slice::<Value>(body) {
        Ok(status) if status.is_object() => status_error(code, &status),
        _ => Error::Status { code, reason: String::new(), message: String::from_utf8_lossy(body).trim().to_owned() },
    }
}

async fn collect(mut socket: WebSocketStream<TlsStream<TcpStream>>) -> Result<ExecOutput, Error> {
    let mut output = ExecOutput::default();
    while let Some(message) = socket.next().await {
        let bytes = match message.map_err(|error| Error::Transport(error.to_string()))? {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => break,
            _ => continue,
        };
        let Some((channel, content)) = bytes.split_first() else { continue };
        let room = MAX_OUTPUT.saturating_sub(output.stdout.len() + output.stderr.len());
        if content.len() > room {
            return Err(Error::Malformed(format!("a command's output of more than {MAX_OUTPUT} bytes")));
        }
        match *channel {
            STDOUT => output.stdout.extend_from_slice(content),
            STDERR => output.stderr.extend_from_slice(content),
            // The result comes last and only once.
            ERROR if !content.is_empty() => {
                output.code = exit_code(content)?;
                return Ok(output);
            }
            _ => {}
        }
    }
    Err(Error::Transport("the connection ended before the command's result came".to_owned()))
}

/// The exit code in the `metav1.Status` of the error channel; a failure without one is an error.
fn exit_code(status: &[u8]) -> Result<i32, Error> {
    let status: Value = serde_json::from_slice(status).map_err(|error| Error::Malformed(error.to_string()))?;
    if status.get("status").and_then(Value::as_str) == Some("Success") {
        return Ok(0);
    }
    let causes = status.pointer("/details/causes").and_then(Value::as_array).into_iter().flatten();
    let code = causes
        .filter(|cause| cause.get("reason").and_then(Value::as_str) == Some("ExitCode"))
        .find_map(|cause| cause.get("message").and_then(Value::as_str)?.parse().ok());
    let said = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
    code.ok_or_else(|| status_error(said, &status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_exit_codes_or_errors() {
        let code = |status: &str| exit_code(status.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(code(r#"{"metadata":{},"status":"Success"}"#), Ok(0));
        let three = r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]},"message":"no"}"#;
        assert_eq!(code(three), Ok(3));
        assert_eq!(
            code(r#"{"status":"Failure","reason":"InternalError","message":"no such file","code":500}"#),
            Err("no such file".into())
        );
        assert!(code("nonsense").is_err());
    }

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        let status =
            refusal(404, br#"{"kind":"Status","reason":"NotFound","message":"pods \"a\" not found","code":404}"#);
        assert!(status.is_not_found() && status.to_string() == r#"pods "a" not found"#);
        assert_eq!(refusal(502, b"bad gateway\n").to_string(), "bad gateway");
    }
}
