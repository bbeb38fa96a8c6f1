//! A client's bytes after the upgrade, in SPDY and in WebSockets, read to their end.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::channels::{Channels, Input, Wanted};
use super::spdy::frame::{Decoder, Encoder, Frame};
use super::spdy::headers::Headers;
use super::{spdy, websocket};
use mainstay_runtime::fuzzing::block_on;

const WANTED: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
const IDLE: Duration = Duration::from_secs(3600);

/// A client that has sent these bytes and is gone.
async fn sent(bytes: &[u8]) -> DuplexStream {
    let (mut client, server) = tokio::io::duplex(bytes.len().max(1));
    let _ = client.write_all(bytes).await;
    server
}

async fn drain(input: Option<Input>) {
    let Some(mut input) = input else { return };
    while input.read().await.is_some() {}
}

/// Reads all that the client has to say, and lets go.
async fn read_all(channels: Channels) {
    let Channels { stdin, resize, stdout, stderr, error, link, .. } = channels;
    tokio::join!(drain(stdin), drain(resize), link.closed());
    drop((stdout, stderr, error));
}

/// The first byte says how many bytes come at a time; what is decoded is encoded and decoded again.
pub fn run_spdy(input: &[u8]) {
    let Some((step, bytes)) = input.split_first() else { return };
    let (mut decoder, mut encoder, mut frames) = (Decoder::default(), Encoder::default(), Vec::new());
    'whole: for piece in bytes.chunks(usize::from(*step).max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => break 'whole,
            }
        }
    }
    let mut wire = BytesMut::new();
    frames.iter().for_each(|frame| encoder.encode(frame, &mut wire));
    let mut again = Decoder::default();
    again.feed(&wire);
    for frame in frames.iter().filter(|frame| !matches!(frame, Frame::Unknown { .. })) {
        assert_eq!(again.next().as_ref(), Ok(&Some(frame.clone())));
    }
    let protocol = spdy::channels::PROTOCOLS[usize::from(*step) % spdy::channels::PROTOCOLS.len()].1;
    block_on(async {
        if let Some(channels) = spdy::channels::open(sent(bytes).await, protocol, WANTED, IDLE).await {
            read_all(channels).await;
        }
    });
}

/// The first byte chooses the protocol.
pub fn run_websocket(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    let protocol = websocket::PROTOCOLS[usize::from(*which) % websocket::PROTOCOLS.len()].1;
    block_on(async {
        read_all(websocket::open(sent(bytes).await, protocol, WANTED, IDLE).await).await;
        let (mut inside, pumps) = websocket::tunnel(sent(bytes).await).await;
        let reading = async {
            let mut buffer = [0; 4096];
            while let Ok(1..) = inside.read(&mut buffer).await {}
            drop(inside);
        };
        tokio::join!(reading, pumps);
    });
}

/// An exec's streams, in small pieces and at once.
pub fn spdy_seeds() -> Vec<Vec<u8>> {
    let headers =
        |name: &str| Headers(vec![("streamtype".to_owned(), name.to_owned()), ("port".to_owned(), "80".to_owned())]);
    let mut frames: Vec<Frame> = ["error", "stdin", "stdout", "resize"]
        .into_iter()
        .zip([1, 3, 5, 7])
        .map(|(name, stream)| Frame::SynStream { stream, headers: headers(name), fin: name == "error" })
        .collect();
    frames.extend([
        Frame::Data { stream: 3, bytes: b"input"[..].into(), fin: false },
        Frame::Data { stream: 7, bytes: br#"{"Width":80,"Height":24}"#[..].into(), fin: true },
        Frame::Ping { id: 1 },
        Frame::Settings,
        Frame::WindowUpdate { stream: 3, delta: 100 },
        Frame::Headers { stream: 3, headers: headers("x"), fin: true },
        Frame::Reset { stream: 5, status: 5 },
        Frame::GoAway { last_stream: 7, status: 0 },
    ]);
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    frames.iter().for_each(|frame| encoder.encode(frame, &mut wire));
    [1, 7, 255].into_iter().map(|step| [&[step], &wire[..]].concat()).collect()
}

/// Masked frames as a client sends them: text, binary, in fragments, ping, close.
pub fn websocket_seeds() -> Vec<Vec<u8>> {
    let frame = |first: u8, payload: &[u8]| {
        let mask = [1, 2, 3, 4];
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [first, 0x80 | payload.len() as u8].into_iter().chain(mask).chain(masked).collect::<Vec<u8>>()
    };
    let binary = [
        frame(0x82, b"\0input"),
        frame(0x82, b"\x04{\"Width\":80,\"Height\":24}"),
        frame(0x89, b"ping"),
        frame(0x82, b"\xff\0"),
    ];
    let text = [frame(0x81, b"0aW5wdXQ="), frame(0x01, b"4e30"), frame(0x80, b"="), frame(0x88, &[0x03, 0xe8])];
    let mut long = vec![0x82, 0xfe, 0x10, 0x00, 1, 2, 3, 4];
    long.resize(8 + 4096, 7);
    let mut seeds = Vec::new();
    for which in 0..websocket::PROTOCOLS.len() as u8 {
        seeds.push([&[which], &binary.concat()[..]].concat());
        seeds.push([&[which], &text.concat()[..]].concat());
    }
    seeds.push([&[0], &long[..]].concat());
    seeds
}
