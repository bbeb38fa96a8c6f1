//! A watch over a WebSocket: each event is a message of its own, text for JSON, binary for protobuf, as upstream.

use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mainstay_api::Status;
use mainstay_api::table::Media;
use mainstay_tasks::listen::Connection;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::received::Received;
use super::respond::{self, Body};
use super::watching::WatchBody;

/// The largest message that is taken (bytes): what a client says here means nothing.
const MAX_HEARD: usize = 4 << 10;

/// A WebSocket that a request asks for.
pub struct Asked {
    upgrade: OnUpgrade,
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
    connection: Option<Connection>,
}

impl Asked {
    /// What a request asks for; `None` where it asks for no WebSocket.
    ///
    /// # Errors
    /// 400 for one without a key.
    pub fn of(request: &mut Request<Received>) -> Result<Option<Self>, Status> {
        if !is_websocket(request.headers()) {
            return Ok(None);
        }
        let key = request
            .headers()
            .get(header::SEC_WEBSOCKET_KEY)
            .ok_or_else(|| Status::bad_request("unable to upgrade: missing Sec-WebSocket-Key"))?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
            .map_err(|error| Status::bad_request(error.to_string()))?;
        // A watch has one protocol: whichever the client likes best.
        let offered = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
        let first = offered.and_then(|all| all.split(',').next()).map(str::trim).filter(|name| !name.is_empty());
        let protocol = first.and_then(|name| HeaderValue::try_from(name).ok());
        let connection = request.extensions().get::<Connection>().cloned();
        Ok(Some(Self { upgrade: hyper::upgrade::on(request), accept, protocol, connection }))
    }

    /// Carries a watch; any other answer goes as it is.
    pub fn carry(self, mut response: Response<Body>) -> Response<Body> {
        let Body::Watch(_) = response.body() else { return response };
        let Body::Watch(watch) = std::mem::replace(response.body_mut(), Body::Full(None)) else { return response };
        let mut switching = respond::json(StatusCode::SWITCHING_PROTOCOLS.as_u16(), Bytes::new());
        let headers = switching.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        tokio::spawn(run(self.upgrade, *watch, self.connection));
        switching
    }
}

/// Whether a request asks for a WebSocket, or an answer begins one.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::UPGRADE).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case("websocket"))
}

async fn run(upgrade: OnUpgrade, watch: WatchBody, connection: Option<Connection>) {
    let Ok(upgraded) = upgrade.await else { return };
    // The connection is still one of those that are counted.
    let _active = connection.as_ref().map(Connection::begin);
    let gives_way = async {
        match &connection {
            Some(connection) => connection.gives_way().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = send(upgraded, watch) => {}
        () = gives_way => {}
    }
}

async fn send(upgraded: hyper::upgrade::Upgraded, mut watch: WatchBody) {
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_HEARD)).max_frame_size(Some(MAX_HEARD));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    let media = watch.media();
    let (mut write, mut read) = socket.split();
    loop {
        tokio::select! {
            chunk = std::future::poll_fn(|cx| watch.poll(cx)) => {
                let Some(chunk) = chunk else { break };
                for message in messages(media, chunk) {
                    if write.send(message).await.is_err() {
                        return;
                    }
                }
            }
            heard = read.next() => match heard {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    if write.send(Message::Close(Some(close))).await.is_ok() {
        // The client's own Close ends the connection in order.
        while let Some(Ok(_)) = read.next().await {}
    }
    if let Ok(mut socket) = write.reunite(read) {
        let _ = socket.get_mut().shutdown().await;
    }
}

/// The events of a chunk of a watch's body: lines of JSON, or messages behind their lengths.
fn messages(media: Media, mut chunk: Bytes) -> Vec<Message> {
    let mut all = Vec::new();
    while !chunk.is_empty() {
        match media {
            Media::Json | Media::Yaml => {
                let end = chunk.iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |at| at + 1);
                let line = chunk.split_to(end);
                all.push(Message::text(String::from_utf8_lossy(&line).into_owned()));
            }
            Media::Protobuf => {
                let Ok(length) = chunk.try_get_u32() else { break };
                let end = chunk.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                all.push(Message::Binary(chunk.split_to(end)));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_a_message() {
        let json = messages(Media::Json, Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"));
        assert_eq!(json, [Message::text("{\"a\":1}\n"), Message::text("{\"b\":2}\n")]);
        let raw = messages(Media::Protobuf, Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"));
        assert_eq!(raw, [Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])]);
        assert_eq!(messages(Media::Protobuf, Bytes::from_static(b"\0\0")), []);
    }
}
