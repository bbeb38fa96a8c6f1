//! Connections to the API server: how many requests each carries, and when another one is opened.
//!
//! HTTP/2 lets a client have only so many requests on one connection (250 at this server, as upstream); the next one
//! would wait for an answer that, after a watch, does not come. So requests that are answered at once and those that
//! last (watches) never share a connection, and there are as many connections of the second kind as it takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    open: Mutex<Vec<Connection>>,
    /// Held while one to any server is opened, so that those who wait for it do not open more.
    opening: tokio::sync::Mutex<()>,
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
    /// is none. Who names a server waits for nobody who names another or none: that one may not answer.
    pub async fn stream<E>(
        &self,
        server: Option<&str>,
        connect: impl Future<Output = Result<Opened, E>>,
    ) -> Result<Stream, E> {
        let _opening = match (self.with_room(server), server) {
            (Some(stream), _) => return Ok(stream),
            (None, Some(_)) => None,
            (None, None) => Some(self.opening.lock().await),
        };
        // Another one may have been opened meanwhile.
        if let Some(stream) = self.with_room(server) {
            return Ok(stream);
        }
        let Opened { sender, server } = connect.await?;
        let room = Arc::new(Semaphore::new(STREAMS));
        // Nobody closes it, and it is new: this waits for nobody.
        let taken = loop {
            if let Ok(taken) = room.clone().acquire_owned().await {
                break taken;
            }
        };
        self.connections().push(Connection { sender: sender.clone(), server: server.clone(), room });
        Ok(Stream { sender, server, room: taken })
    }

    /// Part of one that has room.
    fn with_room(&self, server: Option<&str>) -> Option<Stream> {
        let mut open = self.connections();
        open.retain(|connection| !connection.sender.is_closed());
        let mut those = open.iter().filter(|connection| server.is_none_or(|server| *connection.server == *server));
        those.find_map(|connection| {
            let room = connection.room.clone().try_acquire_owned().ok()?;
            Some(Stream { sender: connection.sender.clone(), server: connection.server.clone(), room })
        })
    }

    /// No further request goes over the connections to this server.
    pub fn forget_all(&self, server: &str) {
        self.connections().retain(|connection| *connection.server != *server);
    }

    /// No further request goes over this one's connection; those that are under way end as they will.
    pub fn forget(&self, stream: &Stream) {
        self.connections().retain(|connection| !Arc::ptr_eq(&connection.room, stream.room.semaphore()));
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
