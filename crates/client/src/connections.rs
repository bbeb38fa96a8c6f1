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

/// Connections of one kind.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Locked while one is opened, so that those who wait for it do not open more.
    open: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    sender: Sender,
    room: Arc<Semaphore>,
}

/// A request's part of a connection; free again when dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    pub sender: Sender,
    room: OwnedSemaphorePermit,
}

impl Connections {
    /// A connection with room for one more request; `connect` opens one where there is none.
    pub async fn stream<E>(&self, connect: impl Future<Output = Result<Sender, E>>) -> Result<Stream, E> {
        let mut open = self.open.lock().await;
        open.retain(|connection| !connection.sender.is_closed());
        let roomy = open.iter().find_map(|connection| {
            let room = connection.room.clone().try_acquire_owned().ok()?;
            Some(Stream { sender: connection.sender.clone(), room })
        });
        if let Some(stream) = roomy {
            return Ok(stream);
        }
        let connection = Connection { sender: connect.await?, room: Arc::new(Semaphore::new(STREAMS)) };
        let sender = connection.sender.clone();
        let room = connection.room.clone();
        open.push(connection);
        drop(open);
        // A new one has room, and nobody closes the semaphore.
        loop {
            if let Ok(room) = room.clone().acquire_owned().await {
                return Ok(Stream { sender, room });
            }
        }
    }

    /// No further request goes over this one's connection; those that are under way end as they will.
    pub async fn forget(&self, stream: &Stream) {
        self.open.lock().await.retain(|connection| !Arc::ptr_eq(&connection.room, stream.room.semaphore()));
    }
}
