//! Exec and attach over SPDY: one stream per channel, named by its `streamtype` header.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, Stream};
use crate::streaming::channels::{Channels, ErrorStyle, Wanted};

/// How long the client may take to open all of its streams (upstream's streamCreationTimeout).
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// `v1.channel.k8s.io` to `v4.channel.k8s.io`, best first.
pub const PROTOCOLS: [(&str, Protocol); 4] = [
    ("v4.channel.k8s.io", Protocol { resize: true, style: ErrorStyle::Status }),
    ("v3.channel.k8s.io", Protocol { resize: true, style: ErrorStyle::Text }),
    ("v2.channel.k8s.io", Protocol { resize: false, style: ErrorStyle::Text }),
    ("channel.k8s.io", Protocol { resize: false, style: ErrorStyle::Text }),
];

/// What a version of the protocol has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// A stream with the terminal's sizes.
    pub resize: bool,
    pub style: ErrorStyle,
}

#[derive(Default)]
struct Came {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Came {
    fn all(&self, wanted: Wanted, protocol: Protocol) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr)
            && (self.resize.is_some() || !wanted.tty || !protocol.resize)
    }
}

/// Waits for all streams that the request announced. None if they do not come in time.
pub async fn open<IO: AsyncRead + AsyncWrite + Send + 'static>(
    io: IO,
    protocol: Protocol,
    wanted: Wanted,
    idle_timeout: Duration,
) -> Option<Channels> {
    let (mut streams, link) = Connection::start(io, idle_timeout).into_parts();
    let mut came = Came::default();
    let deadline = tokio::time::Instant::now() + STREAM_CREATION_TIMEOUT;
    while !came.all(wanted, protocol) {
        let stream = tokio::time::timeout_at(deadline, streams.recv()).await.ok()??;
        let slot = match stream.headers.get("streamtype") {
            Some("error") => &mut came.error,
            Some("stdin") => &mut came.stdin,
            Some("stdout") => &mut came.stdout,
            Some("stderr") => &mut came.stderr,
            Some("resize") => &mut came.resize,
            other => {
                tracing::debug!(streamtype = other, "a stream of no known type");
                return None;
            }
        };
        *slot = Some(stream);
    }
    Some(Channels {
        stdin: came.stdin.map(|stream| stream.input),
        stdout: came.stdout.map(|stream| stream.output),
        stderr: came.stderr.map(|stream| stream.output),
        error: came.error?.output,
        resize: came.resize.map(|stream| stream.input),
        style: protocol.style,
        link,
    })
}
