//! HTTPS: connections, requests, answers.

mod bounds;
mod decoding;
mod documents;
mod extension;
mod forward;
mod frames;
mod health;
mod indent;
mod listing;
mod objects;
mod openapi;
mod proxy;
mod received;
mod respond;
mod reviews;
mod route;
mod sending;
mod serve;
pub(crate) mod shape;
mod socket;
mod watching;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use mainstay_tasks::Health;
use mainstay_tasks::listen::{self, Connection};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

pub use self::bounds::Bounds;
pub use self::documents::COMMIT;
pub use self::openapi::Hashes;
pub use self::proxy::{connect as connect_kubelet, kubelet_address_of};
#[cfg(any(test, feature = "fuzzing"))]
pub use self::respond::warned;
pub use self::respond::{Body, printed};
pub use self::route::{Target, decode};

use crate::aggregation::Services;
use crate::api::{Api, Tokens};
use crate::auth::User;
use crate::authorize::Authorizer;
use crate::encryption::Encryption;
use crate::fairness::Fairness;
use crate::instruments::Instruments;
use crate::metrics::Collector;
use crate::{audit, auth};

/// How long a client that is known may take over a request's head, from the end of the one before it; strangers have
/// less (see [`mainstay_tasks::listen`]).
const HEAD: Duration = Duration::from_secs(90);
/// Requests at a time on one HTTP/2 connection, as upstream.
const MAX_STREAMS: u32 = 250;
/// A request head beyond this is refused, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// One beyond this (or with more fields) is refused before it is understood, so without words.
const MAX_RAW_HEAD: usize = 256 << 10;
const MAX_FIELDS: usize = 512;
/// What of an answer waits in the connection for the client to read it, in bytes, for each request.
const MAX_UNSENT: usize = 128 << 10;
/// How often a quiet HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How often it is looked whether a connection's certificate has run out.
const LOOK: Duration = Duration::from_secs(60);

/// Counts for `/metrics`.
#[derive(Default)]
pub struct Counters {
    requests: AtomicU64,
    failures: AtomicU64,
    connections: AtomicU64,
    watches: AtomicU64,
}

/// Ways to say who one is that are configured by files.
#[derive(Default)]
pub struct Authenticators {
    /// `--token-auth-file`.
    pub tokens: auth::config::StaticTokens,
    /// `--authentication-config`.
    pub config: auth::config::Authentication,
    /// The issuers of that.
    pub issuers: auth::oidc::Issuers,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// By their certificate, and until when that is good.
    certified: Option<(User, Timestamp)>,
    /// Their address.
    pub address: String,
}

impl Peer {
    /// Who they are by their certificate. It was looked at when the connection was made (or the TLS session that the
    /// connection goes on with), which may be longer ago than it is good for.
    pub fn certified(&self, now: Timestamp) -> Option<User> {
        self.certified.as_ref().filter(|(_, end)| now <= *end).map(|(user, _)| user.clone())
    }
}

/// What every request needs.
pub struct Server {
    /// The pipeline.
    pub api: Api,
    /// Where pods and other machines reach the server.
    pub advertise: std::net::SocketAddr,
    /// Further ways to say who one is.
    pub authenticators: Authenticators,
    /// Whose turn it is.
    pub fairness: Fairness,
    /// The audit log, where there is one.
    pub audit: Option<Arc<audit::Log>>,
    /// Who may do what.
    pub authorizer: Arc<Authorizer>,
    /// Signs and checks service account tokens.
    pub tokens: Tokens,
    /// How the server proves itself to kubelets.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// Whether the cluster's first objects are there.
    pub ready: watch::Receiver<bool>,
    /// Stored objects that do not decode: controllers that look at their kinds stand still (A10).
    pub undecodable: watch::Receiver<Vec<String>>,
    /// Turns true when the server stops.
    pub closing: watch::Receiver<bool>,
    /// How the long-lived tasks are.
    pub health: Health,
    /// Groups that other servers answer.
    pub extensions: Services,
    /// What nodes and pods use.
    pub metrics: Arc<Collector>,
    /// The hashes of the OpenAPI documents.
    pub openapi: openapi::Hashes,
    /// What clients share.
    pub bounds: Bounds,
    /// For `/metrics`.
    pub counters: Counters,
    /// What is counted under upstream's names.
    pub instruments: Arc<Instruments>,
    /// What is encrypted on the disk, where anything is.
    pub encryption: Option<Arc<Encryption>>,
    /// The store's file, for its size.
    pub store_file: std::path::PathBuf,
}

impl Server {
    /// Resolves when the server stops.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closing = self.closing.clone();
        async move {
            // An error means that the other end is gone, and so is the server.
            let _ = closing.wait_for(|closing| *closing).await;
        }
    }
}

/// Does work that takes long for a user, on a thread that not all connections share.
///
/// # Errors
/// 429 where too much of it waits.
pub async fn bounded<T: Send + 'static>(
    server: &Server,
    user: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, mainstay_api::Status> {
    server.bounds.heavy.run(user, work).await.map_err(bounds::refused)
}

/// Accepts connections until the server stops, then lets requests under way finish.
pub async fn accept(server: Arc<Server>, listener: Arc<TcpListener>, tls: Arc<rustls::ServerConfig>) {
    let (slots, closing) = (server.bounds.slots.clone(), server.closing());
    let serve = move |stream, connection| serve_connection(server.clone(), stream, connection);
    listen::accept(&listener, tls, slots, closing, serve).await;
}

/// Counts a connection while it is there.
struct Counted(Arc<Server>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_connection(server: Arc<Server>, stream: TlsStream<TcpStream>, connection: Connection) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certified = certificate.and_then(|der| Some((User::of_certificate(der)?, crate::pki::end(der)?)));
    let end = certified.as_ref().map(|(_, end)| *end);
    if let Some((user, _)) = &certified {
        // Where there are too many, its requests are told so.
        connection.authenticate(&user.name, serve::is_system(user));
    }
    let address = stream.get_ref().0.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let peer = Peer { certified, address };
    server.counters.connections.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(server.clone());
    let service = {
        let (server, connection) = (server.clone(), connection.clone());
        service_fn(move |request| {
            let (server, connection, peer) = (server.clone(), connection.clone(), peer.clone());
            async move { Ok::<_, Infallible>(serve::serve(server, connection, peer, request).await) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_RAW_HEAD)
        .max_headers(MAX_FIELDS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_RAW_HEAD).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_UNSENT)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let mut http = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        // Its watches end with what let them begin.
        () = until(&server.api, end) => Ok(()),
        () = either(server.closing(), connection.is_over()) => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Resolves when a certificate's time is over.
async fn until(api: &Api, end: Option<Timestamp>) {
    let Some(end) = end else { return std::future::pending().await };
    loop {
        let left = end.duration_since(api.now());
        if left.is_negative() {
            return;
        }
        // The clock may be set meanwhile.
        let left = Duration::try_from(left).unwrap_or_default().saturating_add(Duration::from_millis(1));
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x1_a_certificate_is_its_users_while_it_is_good_however_old_the_connection_is() {
        let end = Timestamp::from_second(1000).expect("a time");
        let peer = Peer { certified: Some((User::service_account("a", "b"), end)), address: String::new() };
        assert!(peer.certified(end).is_some());
        assert_eq!(peer.certified(Timestamp::from_second(1001).expect("a time")), None);
    }
}
