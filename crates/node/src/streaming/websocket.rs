//! WebSockets: exec and attach over `v5.channel.k8s.io` and its older siblings, port-forward over `v4.channel.k8s.io`,
//! and the tunnel that kubectl 1.31 and later put SPDY's port-forward into.
//!
//! The first byte of each message is its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 `[255, n]`
//! closes channel n, which is how stdin ends. The base64 variants carry text: a digit, then base64.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::channels::{
    Activity, Channels, ErrorStyle, Input, Link, MAX_PIECE, Outgoing, Output, PIECES_QUEUED, Wanted,
};

/// The largest message that is taken (bytes); a larger one ends the connection.
pub const MAX_MESSAGE: usize = 4 << 20;
/// What the tunnel holds in each direction (bytes).
const TUNNEL: usize = 64 * 1024;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The end of a session as kubectl wants it: a close frame without a code counts as an error there.
fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// What a version of the protocol has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Text messages with base64.
    pub base64: bool,
    /// `[255, n]` closes channel n.
    pub close: bool,
    pub style: ErrorStyle,
}

const BINARY: Protocol = Protocol { base64: false, close: false, style: ErrorStyle::Text };

/// Subprotocols of exec and attach, best first.
pub const PROTOCOLS: [(&str, Protocol); 5] = [
    ("v5.channel.k8s.io", Protocol { close: true, style: ErrorStyle::Status, ..BINARY }),
    ("v4.channel.k8s.io", Protocol { style: ErrorStyle::Status, ..BINARY }),
    ("v4.base64.channel.k8s.io", Protocol { base64: true, style: ErrorStyle::Status, ..BINARY }),
    ("channel.k8s.io", BINARY),
    ("base64.channel.k8s.io", Protocol { base64: true, ..BINARY }),
];

/// The subprotocol of port-forward.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

async fn socket<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await
}

/// The channels of an exec or attach on a connection that was upgraded.
pub async fn open<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
    protocol: Protocol,
    wanted: Wanted,
    idle_timeout: Duration,
) -> Channels {
    let (write, read) = socket(io).await.split();
    let (outgoing, to_write) = mpsc::channel(PIECES_QUEUED);
    let (closed, is_closed) = watch::channel(false);
    let closed = Arc::new(closed);
    let activity = Activity::new();
    let (stdin_sender, stdin) = Input::new();
    let (resize_sender, resize) = Input::new();
    let reading = Reading {
        protocol,
        stdin: wanted.stdin.then_some(stdin_sender),
        resize: wanted.tty.then_some(resize_sender),
        activity: activity.clone(),
    };
    let (read_to_end, half) = oneshot::channel();
    let reader = tokio::spawn({
        let closed = closed.clone();
        async move {
            let mut read = read;
            reading.run(&mut read).await;
            let _ = read_to_end.send(read);
            let _ = closed.send(true);
        }
    });
    let writer = tokio::spawn({
        let activity = activity.clone();
        async move {
            let mut write = write;
            run_writer(&mut write, to_write, protocol, &activity).await;
            // The client's answer to our Close is still to come: only the reader knows when it is gone.
            if let Ok(read) = half.await {
                shut_down(read, write).await;
            }
        }
    });
    let output = |channel: u8| Output::new(u32::from(channel), outgoing.clone(), is_closed.clone(), None);
    let mut channels = Channels {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then(|| output(STDOUT)),
        stderr: wanted.stderr.then(|| output(STDERR)),
        error: output(ERROR),
        resize: wanted.tty.then_some(resize),
        style: protocol.style,
        link: Link::new(reader, writer, outgoing.clone(), is_closed.clone(), activity, idle_timeout),
    };
    // An empty message on the lowest channel tells the client that the connection stands, as upstream does.
    let first = channels.stdout.as_mut().or(channels.stderr.as_mut()).unwrap_or(&mut channels.error);
    let _ = first.write(Bytes::new()).await;
    channels
}

struct Reading {
    protocol: Protocol,
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<Bytes>>,
    activity: Activity,
}

impl Reading {
    async fn run<IO: AsyncRead + AsyncWrite + Unpin>(mut self, read: &mut SplitStream<WebSocketStream<IO>>) {
        while let Some(Ok(message)) = read.next().await {
            self.activity.touch();
            let (channel, content) = match message {
                // Upstream takes either kind of frame for either protocol.
                Message::Binary(_) | Message::Text(_) => {
                    let content = message.into_data();
                    if content.is_empty() {
                        continue;
                    }
                    let Some(parts) = decode(self.protocol, &content) else { return };
                    parts
                }
                // The answer is on its way; the stream ends by itself when it was sent.
                _ => continue,
            };
            self.take(channel, content).await;
        }
    }

    async fn take(&mut self, channel: u8, mut content: Bytes) {
        if channel == CLOSE && self.protocol.close {
            match content.first() {
                Some(&STDIN) => self.stdin = None,
                Some(&RESIZE) => self.resize = None,
                _ => {}
            }
            return;
        }
        let input = match channel {
            STDIN => &self.stdin,
            RESIZE => &self.resize,
            _ => return,
        };
        let Some(input) = input else { return };
        while !content.is_empty() {
            // A command that has closed its input does not care for the rest.
            if input.send(content.split_to(content.len().min(MAX_PIECE))).await.is_err() {
                return;
            }
        }
    }
}

/// A message's channel and content: `<channel><bytes>`, in base64 `<digit><base64>`.
fn decode(protocol: Protocol, message: &Bytes) -> Option<(u8, Bytes)> {
    let (digit, content) = message.split_first()?;
    if !protocol.base64 {
        return Some((*digit, message.slice(1..)));
    }
    let channel = digit.checked_sub(b'0').filter(|channel| *channel <= 9)?;
    Some((channel, STANDARD.decode(content).ok()?.into()))
}

fn encode(protocol: Protocol, channel: u32, bytes: &[u8]) -> Message {
    let channel = channel as u8;
    if protocol.base64 {
        return Message::text(format!("{channel}{}", STANDARD.encode(bytes)));
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

async fn run_writer<IO: AsyncRead + AsyncWrite + Unpin>(
    write: &mut SplitSink<WebSocketStream<IO>, Message>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    protocol: Protocol,
    activity: &Activity,
) {
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Data(channel, bytes) => {
                if write.send(encode(protocol, channel, &bytes)).await.is_err() {
                    return;
                }
                activity.touch();
            }
            // A single channel's end is not told: the close of all is.
            Outgoing::End(_) => {}
            Outgoing::Flushed(done) => {
                let _ = done.send(());
            }
        }
    }
    let _ = write.send(normal_close()).await;
}

/// Ends the transport as TLS wants it: a connection that merely breaks off might have been cut by somebody else.
async fn shut_down<IO: AsyncRead + AsyncWrite + Unpin>(
    read: SplitStream<WebSocketStream<IO>>,
    write: SplitSink<WebSocketStream<IO>, Message>,
) {
    if let Ok(mut socket) = write.reunite(read) {
        let _ = socket.get_mut().shutdown().await;
    }
}

/// Subprotocols of port-forward over channels, and whether each carries text with base64; upstream has no v5 of it. A
/// client that names none gets binary messages.
pub const PORT_PROTOCOLS: [(&str, bool); 2] = [("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)];
/// Ports of one request: each has two channels, whose number is a byte.
pub const MAX_PORTS: usize = 127;

/// The channels of one port.
pub struct PortChannels {
    pub port: u16,
    pub input: Input,
    pub output: Output,
    pub errors: Output,
}

/// The channels of a port-forward, and what carries them.
pub struct Ports {
    pub pairs: Vec<PortChannels>,
    pub link: Link,
}

/// The channels of a port-forward on a connection that was upgraded: of the n-th port 2n (data) and 2n + 1 (errors).
pub async fn open_ports<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
    base64: bool,
    ports: Vec<u16>,
    idle_timeout: Duration,
) -> Ports {
    let protocol = Protocol { base64, ..BINARY };
    let (write, read) = socket(io).await.split();
    let (outgoing, to_write) = mpsc::channel(PIECES_QUEUED);
    let (closed, is_closed) = watch::channel(false);
    let activity = Activity::new();
    let mut senders = Vec::new();
    let mut pairs = Vec::new();
    for (channel, port) in (0..).step_by(2).zip(ports) {
        let (sender, input) = Input::new();
        senders.push(sender);
        let output = |channel| Output::new(channel, outgoing.clone(), is_closed.clone(), None);
        pairs.push(PortChannels { port, input, output: output(channel), errors: output(channel + 1) });
    }
    let (read_to_end, half) = oneshot::channel();
    let reader = tokio::spawn({
        let activity = activity.clone();
        async move {
            let mut read = read;
            read_ports(&mut read, protocol, senders, &activity).await;
            let _ = read_to_end.send(read);
            let _ = closed.send(true);
        }
    });
    let writer = tokio::spawn({
        let activity = activity.clone();
        async move {
            let mut write = write;
            run_writer(&mut write, to_write, protocol, &activity).await;
            if let Ok(read) = half.await {
                shut_down(read, write).await;
            }
        }
    });
    Ports { pairs, link: Link::new(reader, writer, outgoing, is_closed, activity, idle_timeout) }
}

async fn read_ports<IO: AsyncRead + AsyncWrite + Unpin>(
    read: &mut SplitStream<WebSocketStream<IO>>,
    protocol: Protocol,
    senders: Vec<mpsc::Sender<Bytes>>,
    activity: &Activity,
) {
    while let Some(Ok(message)) = read.next().await {
        activity.touch();
        if !matches!(message, Message::Binary(_) | Message::Text(_)) {
            continue;
        }
        let content = message.into_data();
        if content.is_empty() {
            continue;
        }
        let Some((channel, mut content)) = decode(protocol, &content) else { return };
        // What comes on an error channel means nothing.
        let input = (channel % 2 == 0).then(|| senders.get(usize::from(channel / 2))).flatten();
        let Some(input) = input else { continue };
        while !content.is_empty() {
            // A pod that has closed its end does not care for the rest.
            if input.send(content.split_to(content.len().min(MAX_PIECE))).await.is_err() {
                break;
            }
        }
    }
}

/// Subprotocols of a plain stream of bytes (a log), and whether each carries text with base64. A client that names none
/// gets binary messages.
pub const STREAM_PROTOCOLS: [(&str, bool); 2] = [("binary.k8s.io", false), ("base64.binary.k8s.io", true)];

/// Sends all that comes, each piece as a message, and closes; ends when the client does.
pub async fn send_all<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, mut coming: mpsc::Receiver<Bytes>, base64: bool) {
    let (mut write, mut read) = socket(io).await.split();
    loop {
        tokio::select! {
            piece = coming.recv() => {
                let Some(piece) = piece else { break };
                let message =
                    if base64 { Message::text(STANDARD.encode(&piece)) } else { Message::Binary(piece) };
                if write.send(message).await.is_err() {
                    return;
                }
            }
            // What a client says here means nothing but that it is there.
            heard = read.next() => match heard {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    if write.send(normal_close()).await.is_ok() {
        // The client's own Close ends the connection in order.
        while let Some(Ok(_)) = read.next().await {}
    }
    shut_down(read, write).await;
}

/// The bytes inside a tunnel: binary messages both ways. The pumps end with either side.
pub async fn tunnel<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
) -> (DuplexStream, impl Future<Output = ()>) {
    let (ours, theirs) = tokio::io::duplex(TUNNEL);
    let (mut write, mut read) = socket(io).await.split();
    let (mut inside_read, mut inside_write) = tokio::io::split(theirs);
    let inwards = async move {
        while let Some(Ok(message)) = read.next().await {
            if let Message::Binary(bytes) = message
                && inside_write.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        let _ = inside_write.shutdown().await;
        read
    };
    let outwards = async move {
        let mut buffer = vec![0u8; MAX_PIECE];
        while let Ok(length @ 1..) = inside_read.read(&mut buffer).await {
            let piece = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if write.send(Message::Binary(piece)).await.is_err() {
                return write;
            }
        }
        let _ = write.send(normal_close()).await;
        write
    };
    (ours, async move {
        let (read, write) = tokio::join!(inwards, outwards);
        shut_down(read, write).await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_messages_begin_with_their_channels_digit() {
        let base64 = Protocol { base64: true, ..BINARY };
        assert_eq!(encode(base64, 1, b"hi"), Message::text("1aGk="));
        let decoded = |text: &'static str| decode(base64, &Bytes::from_static(text.as_bytes()));
        assert_eq!(decoded("0aGk="), Some((0, Bytes::from_static(b"hi"))));
        for text in ["", "x", "0!", "\u{e9}aGk="] {
            assert_eq!(decoded(text), None, "{text:?}");
        }
        assert_eq!(decode(BINARY, &Bytes::from_static(b"\0hi")), Some((0, Bytes::from_static(b"hi"))));
    }
}
