//! Bytes that are sent over a connection of their own, however many: a file, to a node behind the API server.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::request::{Client, Error, failure, status_error};

/// How many bytes are sent at once.
const PIECE: usize = 256 << 10;
/// How long connecting and the server's first answer may take.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a piece may take to be taken, and the last one until there is an answer.
const PIECE_TIMEOUT: Duration = Duration::from_secs(600);
/// The largest answer.
const MAX_ANSWER: u64 = 1 << 20;

impl Client {
    /// Sends all of `bytes` to a path whose server switches to `protocol`, then reads its answer, a `metav1.Status`.
    /// `sent` hears how many bytes have gone.
    ///
    /// # Errors
    /// `Status` where the server refuses, or says at the end that it failed; `Transport` where the connection ends
    /// before that.
    pub async fn upload(
        &self,
        path: &str,
        protocol: &'static str,
        mut bytes: impl AsyncRead + Unpin,
        mut sent: impl FnMut(u64),
    ) -> Result<Value, Error> {
        let starting = tokio::time::timeout(START_TIMEOUT, self.upgrade(path, protocol)).await;
        let mut stream = TokioIo::new(starting.map_err(|_| Error::Timeout)??);
        let broken = |error: std::io::Error| Error::Transport(error.to_string());
        let (mut piece, mut done) = (vec![0; PIECE], 0);
        loop {
            let length = bytes.read(&mut piece).await.map_err(broken)?;
            if length == 0 {
                break;
            }
            let writing = stream.write_all(piece.get(..length).unwrap_or_default());
            tokio::time::timeout(PIECE_TIMEOUT, writing).await.map_err(|_| Error::Timeout)?.map_err(broken)?;
            done += length as u64;
            sent(done);
        }
        let mut answer = Vec::new();
        let reading = async {
            stream.flush().await?;
            (&mut stream).take(MAX_ANSWER).read_to_end(&mut answer).await
        };
        let read = tokio::time::timeout(PIECE_TIMEOUT, reading).await.map_err(|_| Error::Timeout)?;
        // An end without TLS's own goodbye is an end: the answer says by itself whether it is whole.
        let status = serde_json::from_slice::<Value>(&answer)
            .map_err(|error| read.map_or_else(broken, |_| Error::Malformed(error.to_string())))?;
        if status.get("status").and_then(Value::as_str) == Some("Success") {
            return Ok(status);
        }
        let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        Err(status_error(code.unwrap_or(500), &status))
    }

    async fn upgrade(&self, path: &str, protocol: &'static str) -> Result<hyper::upgrade::Upgraded, Error> {
        let server = self.present_server();
        let broken = |error: hyper::Error| Error::Transport(error.to_string());
        let stream = self.dial(&server).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
                .await
                .map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(Method::POST).uri(path).header(HOST, &server);
        request = request.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
        if let Some(token) = &self.config().token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::new()).map_err(|error| Error::Malformed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(failure(answer).await);
        }
        hyper::upgrade::on(answer).await.map_err(broken)
    }
}
