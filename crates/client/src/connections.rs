//! Connections to the API server: how many requests each carries, and when another one is opened.
//!
//! HTTP/2 lets a client have only so many requests on one connection (250 at this server, as upstream); the next one
//! would wait for an answer that, after a watch, does not come. So requests that are answered at once and those that
//! last (watches) never share a connection, and there are as many connections of the second kind as it takes.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// Requests at a time on one connection: fewer than the server allows, since it counts those that have just ended.
const STREAMS: usize = 200;

/// How a request uses its connection.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// A new connection, and to which server (`host:port`).
pub(crate) struct Opened {
    pub sender: Sender,
    pub server: Arc<str>,
}

/// Connections of one kind.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Locked while one is opened, so that those who wait for it do not open more.
    open: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    sender: Sender,
    server: Arc<str>,
    room: Arc<Semaphore>,
}

/// A request's part of a connection; free again when dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    pub sender: Sender,
    /// `host:port`
    pub server: Arc<str>,
    room: OwnedSemaphorePermit,
}

impl Connections {
    /// A connection with room for one more request, to this server where one is named; `connect` opens one where there
    /// is none.
    pub async fn stream<E>(
        &self,
        server: Option<&str>,
        connect: impl Future<Output = Result<Opened, E>>,
    ) -> Result<Stream, E> {
        let mut open = self.open.lock().await;
        open.retain(|connection| !connection.sender.is_closed());
        let mut those = open.iter().filter(|connection| server.is_none_or(|server| *connection.server == *server));
        let roomy = those.find_map(|connection| {
            let room = connection.room.clone().try_acquire_owned().ok()?;
            Some(Stream { sender: connection.sender.clone(), server: connection.server.clone(), room })
        });
        if let Some(stream) = roomy {
            return Ok(stream);
        }
        let Opened { sender, server } = connect.await?;
        let (room, made) = (Arc::new(Semaphore::new(STREAMS)), sender.clone());
        let connection = Connection { sender: made, server: server.clone(), room };
        let room = connection.room.clone();
        open.push(connection);
        drop(open);
        // A new one has room, and nobody closes the semaphore.
        loop {
            if let Ok(room) = room.clone().acquire_owned().await {
                return Ok(Stream { sender, server, room });
            }
        }
    }

    /// No further request goes over the connections to this server, unless one is opened at this moment.
    pub fn forget_all(&self, server: &str) {
        if let Ok(mut open) = self.open.try_lock() {
            open.retain(|connection| *connection.server != *server);
        }
    }

    /// No further request goes over this one's connection; those that are under way end as they will.
    pub async fn forget(&self, stream: &Stream) {
        self.open.lock().await.retain(|connection| !Arc::ptr_eq(&connection.room, stream.room.semaphore()));
    }
}
