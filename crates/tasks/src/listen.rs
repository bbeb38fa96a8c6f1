//! TLS connections within [`Slots`] and deadlines: what server and node accept with.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::slots::{Slot, Slots};

/// How long a stranger may be without a request under way: for its handshake and its first request, and between two.
const STRANGER_IDLE: Duration = Duration::from_secs(10);
/// How long a stranger stays at most, whatever it does.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// How long a client that has proved who it is may be without a request under way, as upstream.
const IDLE: Duration = Duration::from_secs(90);
/// How long nothing comes from a peer before it is asked whether it is there, and between two such questions. The
/// kernel asks nine times.
const SILENCE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(15);
/// The pause after an `accept` that failed for want of descriptors or memory, unless a connection ends before.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What connections are given to finish when the listener closes.
const DRAIN: Duration = Duration::from_secs(2);

/// One connection, as those who answer its requests see it. Cloning shares it; its slot is free when all are dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    slot: Slot,
    begun: Instant,
    is_known: AtomicBool,
    /// Requests under way, and when that last changed.
    active: watch::Sender<(usize, Instant)>,
    is_over: watch::Sender<bool>,
}

/// A request under way; over when dropped.
#[derive(Debug)]
pub struct Active(Connection);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.shared.active.send_modify(|active| *active = (active.0.saturating_sub(1), Instant::now()));
    }
}

impl Connection {
    fn new(slot: Slot) -> Self {
        let begun = Instant::now();
        let active = watch::Sender::new((0, begun));
        let (is_known, is_over) = (AtomicBool::new(false), watch::Sender::new(false));
        Self { shared: Arc::new(Shared { slot, begun, is_known, active, is_over }) }
    }

    /// Notes who is at the other end. False where there are too many users with connections.
    pub fn authenticate(&self, user: &str, is_system: bool) -> bool {
        if self.shared.is_known.load(Ordering::Relaxed) {
            return true;
        }
        let admitted = self.shared.slot.authenticate(user, is_system);
        self.shared.is_known.store(admitted, Ordering::Relaxed);
        admitted
    }

    /// Notes that a request is under way, until the answer's last byte is sent.
    pub fn begin(&self) -> Active {
        self.shared.active.send_modify(|active| *active = (active.0 + 1, Instant::now()));
        Active(self.clone())
    }

    /// Ends it.
    pub fn cut(&self) {
        self.shared.slot.cut();
    }

    /// Resolves when the connection has to give way to others: at once.
    pub async fn gives_way(&self) {
        self.shared.slot.gives_way().await;
    }

    /// Resolves when the connection's time is over: it has a moment to end in good order.
    pub fn is_over(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut is_over = self.shared.is_over.subscribe();
        async move {
            // An error means that nobody holds the connection any more.
            let _ = is_over.wait_for(|is_over| *is_over).await;
        }
    }

    async fn times_out(&self) {
        let mut active = self.shared.active.subscribe();
        loop {
            let (count, since) = *active.borrow_and_update();
            let is_known = self.shared.is_known.load(Ordering::Relaxed);
            let idle = (count == 0).then(|| since + if is_known { IDLE } else { STRANGER_IDLE });
            let life = (!is_known).then(|| self.shared.begun + STRANGER_LIFE);
            let deadline = [idle, life].into_iter().flatten().min();
            tokio::select! {
                // The sender is ours, so this never fails.
                _ = active.changed() => {}
                () = sleep_until(deadline) => {
                    // A request may have proved who it is since.
                    let known_now = self.shared.is_known.load(Ordering::Relaxed);
                    if is_known == known_now && !active.has_changed().unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }
}

/// Sleeps until then; for ever where there is no deadline.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Packets go out at once, and a peer that is gone without a word (a machine without power, a path that a firewall
/// forgot) is found to be after about three minutes, also where nobody has anything to say: what runs for it ends.
fn prepare(stream: &impl AsFd) {
    let (socket, keepalive) = (SockRef::from(stream), TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE));
    if let Err(error) = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%error, "a connection keeps its own ways");
    }
}

/// Accepts connections until `closing` resolves, then gives those that are there two seconds. Each is served by what
/// `serve` makes of it, and cut when it has to give way or its time is over.
pub async fn accept<F>(
    listener: &TcpListener,
    tls: Arc<rustls::ServerConfig>,
    slots: Arc<Slots>,
    closing: impl Future<Output = ()>,
    serve: impl Fn(TlsStream<TcpStream>, Connection) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    let mut closing = std::pin::pin!(closing);
    loop {
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                prepare(&stream);
                let connection = Connection::new(slots.admit(address.ip()));
                connections.spawn(run(acceptor.accept(stream), connection, serve.clone()));
            }
            Err(error) => {
                // Out of file descriptors, mostly: the ones in use come back when their connections end.
                slots.relieve();
                tracing::warn!(%error, "accepting a connection failed");
                tokio::select! {
                    () = &mut closing => break,
                    _ = connections.join_next(), if !connections.is_empty() => {}
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    connections.abort_all();
}

async fn run<F: Future<Output = ()>>(
    handshake: tokio_rustls::Accept<TcpStream>,
    connection: Connection,
    serve: impl FnOnce(TlsStream<TcpStream>, Connection) -> F,
) {
    let work = async {
        if let Ok(stream) = handshake.await {
            serve(stream, connection.clone()).await;
        }
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = connection.gives_way() => {}
        () = connection.times_out() => {
            connection.shared.is_over.send_replace(true);
            let _ = tokio::time::timeout(DRAIN, work).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command whose client's machine lost power holds its place in the container until then.
    #[test]
    fn s12_x7_peers_that_are_gone_without_a_word_are_looked_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        prepare(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), SILENCE);
    }
}
