//! As much gRPC as a unary call needs, over HTTP/2 without a code generator: what node and server ask of programs that
//! others wrote (probes of containers, key management plugins). A connection is made for each call.
//!
//! A message on the wire is one byte (compressed: never), its length in four, and itself; how a call ended
//! (`grpc-status`) is in the trailers, or in the headers of an answer without a body.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay_api::protobuf::put_varint;
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest `grpc-message` that is passed on, in characters.
const MAX_MESSAGE: usize = 1024;
/// A message's own heading: whether it is compressed, and its length.
const HEADING: usize = 5;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `/package.Service/Method`.
    pub path: &'a str,
    /// What the server knows itself by: `host:port`.
    pub authority: &'a str,
    /// Who asks.
    pub agent: &'a str,
    /// What the server is told of the time that there is; keeping it is the caller's to do.
    pub timeout: Duration,
    /// The request, without heading.
    pub message: &'a [u8],
    /// How many bytes of an answer are read at most, with its heading.
    pub most: usize,
}

/// A call that brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcError {
    /// The server's `grpc-status`, which is not 0, and its message.
    Status(u32, String),
    /// What came is no gRPC, or nothing came.
    Transport(String),
}

impl std::fmt::Display for GrpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(code, message) => write!(f, "rpc error: code = {} desc = {message}", name(*code)),
            Self::Transport(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for GrpcError {}

impl From<hyper::Error> for GrpcError {
    fn from(error: hyper::Error) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self::Transport(format!("{error}{}", source.unwrap_or_default()))
    }
}

/// What a `grpc-status` is called.
pub fn name(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
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
    NAMES.get(status as usize).copied().unwrap_or("Unknown")
}

/// Makes a call over a connection of its own. The answer's message, without heading.
///
/// # Errors
/// What the server says, and whatever is no answer: none at all, more than [`Call::most`] bytes, no `grpc-status`.
pub async fn unary<I>(io: I, call: Call<'_>) -> Result<Vec<u8>, GrpcError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    // Ends with this call: it lives in the set, not beside it.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let request = http::Request::post(format!("http://{}{}", call.authority, call.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", call.agent)
        .header("grpc-timeout", format!("{}m", call.timeout.as_millis()))
        .body(Full::new(framed(call.message)))
        .map_err(|error| GrpcError::Transport(error.to_string()))?;
    let mut response = sender.send_request(request).await?;
    if response.status() != http::StatusCode::OK {
        return Err(GrpcError::Transport(format!("unexpected HTTP status code {}", response.status())));
    }
    let mut answer = Vec::new();
    let mut status = ended(response.headers());
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            answer.extend_from_slice(data);
        }
        if let Some(trailers) = frame.trailers_ref() {
            status = ended(trailers).or(status);
        }
        if answer.len() > call.most {
            return Err(GrpcError::Transport(format!("an answer of more than {} bytes", call.most)));
        }
    }
    match status {
        Some((0, _)) => {
            let message = unframed(&answer).map(<[u8]>::to_vec);
            message.ok_or_else(|| GrpcError::Transport("a malformed answer".to_owned()))
        }
        Some((code, message)) => Err(GrpcError::Status(code, message)),
        None => Err(GrpcError::Transport("the server sent no grpc-status".to_owned())),
    }
}

fn ended(headers: &http::HeaderMap) -> Option<(u32, String)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let message = text("grpc-message").unwrap_or_default().chars().take(MAX_MESSAGE).collect();
    Some((text("grpc-status")?.parse().ok()?, message))
}

/// A message with its heading.
pub fn framed(message: &[u8]) -> Bytes {
    let mut all = vec![0];
    all.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    all.extend(message);
    all.into()
}

/// The one message of an answer; `None` where it is compressed, cut, or not alone.
pub fn unframed(answer: &[u8]) -> Option<&[u8]> {
    let (heading, message) = answer.split_at_checked(HEADING)?;
    let [compressed, length @ ..] = heading else { return None };
    let length = u32::from_be_bytes(length.try_into().ok()?);
    (*compressed == 0 && message.len() == length as usize).then_some(message)
}

/// A field of a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number.
    Varint(u64),
    /// Bytes, text, or a message.
    Bytes(&'a [u8]),
    /// Of a fixed length, which nothing here has.
    Fixed,
}

/// The fields of a message by their numbers, in order; `None` where it is malformed.
pub fn fields(mut message: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut all = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let field = match tag & 7 {
            0 => Field::Varint(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Field::Bytes(bytes)
            }
            wire @ (1 | 5) => {
                let length = if wire == 1 { 8 } else { 4 };
                message = message.get(length..)?;
                Field::Fixed
            }
            _ => return None,
        };
        all.push((tag >> 3, field));
    }
    Some(all)
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

/// Adds a field of bytes, text, or a message. One that is empty is left out, as in proto3.
pub fn put_nonempty(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_varint(out, number << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// Adds a number; zero is left out.
pub fn put_number(out: &mut Vec<u8>, number: u64, value: u64) {
    if value != 0 {
        put_varint(out, number << 3);
        put_varint(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_hostile_messages_are_refused() {
        for answer in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x02\x08\x01", b"\0\xff\xff\xff\xff\x08\x01"] {
            assert_eq!(unframed(answer), None, "{answer:?}");
        }
        for message in [
            &b"\x08\xff"[..],
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x12\xff\x01",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x09\0",
            b"\x0b",
        ] {
            assert_eq!(fields(message), None, "{message:?}");
        }
        let known = fields(b"\x12\x01x\x1d\0\0\0\0\x08\x03");
        assert_eq!(known, Some(vec![(2, Field::Bytes(b"x")), (3, Field::Fixed), (1, Field::Varint(3))]));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put_nonempty(&mut message, 1, &[7; 200]);
        put_nonempty(&mut message, 2, b"");
        put_number(&mut message, 5, 300);
        put_number(&mut message, 6, 0);
        assert_eq!(fields(&message), Some(vec![(1, Field::Bytes(&[7; 200])), (5, Field::Varint(300))]));
        assert_eq!(unframed(&framed(&message)), Some(&*message));
    }
}
