//! A client that knows several servers of a cluster, some of which are not well (M3).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay_api::kinds;
use mainstay_client::{Client, Config};
use serde_json::json;
use tokio::net::TcpListener;

/// No read takes longer than this while any server answers (250 ms until another one is asked, and a loaded machine).
const MOST: Duration = Duration::from_secs(1);

/// What is the matter with a server.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Well,
    /// Nobody listens.
    Gone,
    /// The machine takes connections, and the process does nothing with them.
    Stopped,
    /// It takes requests and never answers.
    Hangs,
    /// It ends each connection when a request comes.
    Breaks,
}

struct Servers {
    list: String,
    ca_pem: String,
    /// How many requests of each method each has had.
    reads: Vec<Arc<AtomicUsize>>,
    writes: Vec<Arc<AtomicUsize>>,
}

impl Servers {
    async fn start(states: &[State]) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key);
        let mut tls = tls.expect("TLS");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let (mut list, mut reads, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for (number, state) in states.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            list.push(listener.local_addr().expect("its address").to_string());
            let (read, write) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            reads.push(read.clone());
            writes.push(write.clone());
            tokio::spawn(serve(listener, acceptor.clone(), *state, number, [read, write]));
        }
        Self { list: list.join(","), ca_pem: certified.cert.pem(), reads, writes }
    }

    fn client(&self) -> Client {
        let config = Config { server: self.list.clone(), ca_pem: self.ca_pem.clone(), ..Config::default() };
        Client::new(config).expect("a client")
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    state: State,
    number: usize,
    counts: [Arc<AtomicUsize>; 2],
) {
    if state == State::Gone {
        return;
    }
    let mut held = Vec::new();
    while let Ok((connection, _)) = listener.accept().await {
        if state == State::Stopped {
            held.push(connection);
            continue;
        }
        let (acceptor, counts) = (acceptor.clone(), counts.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(connection).await else { return };
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let end = Arc::new(std::sync::Mutex::new(Some(end)));
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (counts, end) = (counts.clone(), end.clone());
                async move {
                    counts[usize::from(request.method() != Method::GET)].fetch_add(1, Ordering::Relaxed);
                    let _ = request.into_body().collect().await;
                    match state {
                        State::Breaks => drop(end.lock().expect("unpoisoned").take()),
                        State::Well => {
                            let body = json!({ "metadata": { "name": number.to_string() } }).to_string();
                            return Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))));
                        }
                        _ => {}
                    }
                    std::future::pending().await
                }
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = http.serve_connection(TokioIo::new(tls), answer) => {}
                _ = ended => {}
            }
        });
    }
}

#[tokio::test]
async fn m3_a_read_waits_for_no_server_as_long_as_another_one_answers() {
    use State::{Breaks, Gone, Hangs, Stopped, Well};
    for ill in [Gone, Stopped, Hangs, Breaks] {
        for states in [[ill, Well, Well], [ill, ill, Well]] {
            let servers = Servers::start(&states).await;
            let client = servers.client();
            let begun = Instant::now();
            let read = client.get(&kinds::NAMESPACE, "", "any").await.expect("an answer");
            assert!(begun.elapsed() < MOST, "{:?}", begun.elapsed());
            let by: usize = read["metadata"]["name"].as_str().expect("a name").parse().expect("a number");
            assert!(states[by] == Well);
            // Whoever answered is asked first from then on.
            let before = servers.reads[0].load(Ordering::Relaxed);
            for _ in 0..20 {
                client.get(&kinds::NAMESPACE, "", "any").await.expect("an answer");
            }
            assert_eq!(servers.reads[0].load(Ordering::Relaxed), before, "the ill server is left");
        }
    }
}

#[tokio::test]
async fn m3_a_read_passes_by_one_server_that_hangs_and_one_that_takes_no_connection() {
    use State::{Hangs, Stopped, Well};
    let servers = Servers::start(&[Hangs, Stopped, Well]).await;
    let begun = Instant::now();
    let read = servers.client().get(&kinds::NAMESPACE, "", "any").await.expect("an answer");
    assert!(begun.elapsed() < MOST, "{:?}", begun.elapsed());
    assert_eq!(read["metadata"]["name"], "2");
}

#[tokio::test]
async fn m3_a9_a_write_goes_where_there_is_a_server_and_is_never_sent_twice() {
    use State::{Breaks, Gone, Stopped, Well};
    let object = json!({ "metadata": { "name": "any" } });
    for ill in [Gone, Stopped] {
        let servers = Servers::start(&[ill, Well]).await;
        let begun = Instant::now();
        servers.client().create(&kinds::NAMESPACE, "", &object).await.expect("made");
        assert!(begun.elapsed() < MOST, "{:?}", begun.elapsed());
        assert_eq!(servers.writes[1].load(Ordering::Relaxed), 1);
    }
    // Whether it was done is not known: the caller has to look.
    let servers = Servers::start(&[Breaks, Well]).await;
    let client = servers.client();
    let refused = client.create(&kinds::NAMESPACE, "", &object).await.expect_err("in doubt");
    assert!(matches!(refused, mainstay_client::Error::Transport(_)), "{refused}");
    assert_eq!([0, 1].map(|server: usize| servers.writes[server].load(Ordering::Relaxed)), [1, 0]);
    client.get(&kinds::NAMESPACE, "", "any").await.expect("the other one answers");
    client.create(&kinds::NAMESPACE, "", &object).await.expect("and takes writes");
    assert_eq!([0, 1].map(|server: usize| servers.writes[server].load(Ordering::Relaxed)), [1, 1]);
}

#[tokio::test]
async fn m3_a_write_that_hangs_keeps_no_other_waiting() {
    use State::{Hangs, Well};
    let servers = Servers::start(&[Hangs, Well]).await;
    let client = servers.client();
    let object = json!({ "metadata": { "name": "any" } });
    let begun = Instant::now();
    // One after the other: the first is in doubt until its connection is known to be dead, which is not waited for.
    let first = tokio::spawn({
        let (client, object) = (client.clone(), object.clone());
        async move { client.create(&kinds::NAMESPACE, "", &object).await }
    });
    while client.present_server() == servers.list.split(',').next().expect("the first") {
        tokio::task::yield_now().await;
        assert!(begun.elapsed() < 3 * MOST, "the server is left");
    }
    client.create(&kinds::NAMESPACE, "", &object).await.expect("made");
    assert!(begun.elapsed() < 3 * MOST, "{:?}", begun.elapsed());
    assert_eq!(servers.writes[1].load(Ordering::Relaxed), 1, "the one in doubt was not repeated");
    first.abort();
}
