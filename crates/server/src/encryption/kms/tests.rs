//! With a plugin that is there: gRPC over a unix socket, as plugins are asked.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay_api::kinds;
use mainstay_client::grpc::{framed, unframed};
use mainstay_client::{Client, Config};
use serde_json::json;

use super::*;
use crate::{Files, Running, ServerConfig, start_with};

const ROW: &[u8] = b"/core/secrets/default/a";
/// How long is waited for what happens sooner or later.
const PATIENCE: Duration = Duration::from_secs(120);

/// A plugin, until it is dropped. It seals by xor with the number of its key, which is as good as any to see who asked.
struct Plugin {
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    key: Arc<AtomicU64>,
    /// How often it was asked to encrypt and to decrypt.
    asked: Arc<[AtomicU64; 2]>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("a thread").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the plugin broke");
    }
}

struct Answer(std::collections::VecDeque<Frame<Bytes>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn answered(message: &[u8], status: &'static str) -> http::Response<Answer> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    let frames = [Frame::data(framed(message)), Frame::trailers(trailers)];
    http::Response::new(Answer(frames.into_iter().collect()))
}

fn put(parts: &[(u64, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    parts.iter().for_each(|(number, bytes)| put_nonempty(&mut message, *number, bytes));
    message
}

async fn answer(request: http::Request<Incoming>, key: u64, asked: &[AtomicU64; 2]) -> http::Response<Answer> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("a request").to_bytes();
    let parts = fields(unframed(&body).expect("a message")).expect("fields");
    let part = |number: u64| {
        let mut found = parts.iter().filter(|(of, _)| *of == number);
        match found.next() {
            Some((_, Field::Bytes(bytes))) => *bytes,
            _ => &[],
        }
    };
    let id = format!("key-{key}");
    let xor = |bytes: &[u8]| bytes.iter().map(|byte| byte ^ key as u8).collect::<Vec<u8>>();
    match path.as_str() {
        // Key 0 is out of order.
        "/v2.KeyManagementService/Status" if key == 0 => answered(&put(&[(1, b"v2"), (2, b"sealed"), (3, b"k")]), "0"),
        "/v2.KeyManagementService/Status" => answered(&put(&[(1, b"v2"), (2, b"ok"), (3, id.as_bytes())]), "0"),
        "/v2.KeyManagementService/Encrypt" => {
            asked[0].fetch_add(1, Ordering::Relaxed);
            let note = put(&[(1, b"note.example.com"), (2, b"a note")]);
            answered(&put(&[(1, &xor(part(1))), (2, id.as_bytes()), (3, &note)]), "0")
        }
        "/v2.KeyManagementService/Decrypt" => {
            asked[1].fetch_add(1, Ordering::Relaxed);
            let by: u8 = std::str::from_utf8(part(3)).unwrap().strip_prefix("key-").unwrap().parse().unwrap();
            assert!(parts.iter().any(|(number, _)| *number == 4), "annotations come back");
            let plain: Vec<u8> = part(1).iter().map(|byte| byte ^ by).collect();
            answered(&put(&[(1, &plain)]), "0")
        }
        _ => answered(&[], "12"),
    }
}

impl Plugin {
    fn start(socket: &Path, key: u64) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
        listener.set_nonblocking(true).expect("set");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (key, asked) = (Arc::new(AtomicU64::new(key)), Arc::<[AtomicU64; 2]>::default());
        let (by, counts) = (key.clone(), asked.clone());
        let serve = async move {
            let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
            let mut tasks = tokio::task::JoinSet::new();
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let (by, counts) = (by.clone(), counts.clone());
                    let service = hyper::service::service_fn(move |request| {
                        let (key, counts) = (by.load(Ordering::Relaxed), counts.clone());
                        async move { Ok::<_, std::convert::Infallible>(answer(request, key, &counts).await) }
                    });
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tasks.spawn(serving.serve_connection(TokioIo::new(stream), service));
                }
            };
            tokio::select! {
                () = accept => {}
                _ = stopped => {}
            }
        };
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(serve);
        });
        Self { thread: Some(thread), stop: Some(stop), key, asked }
    }

    fn asked(&self) -> [u64; 2] {
        [0, 1].map(|at: usize| self.asked[at].load(Ordering::Relaxed))
    }
}

fn kms(socket: &Path) -> Kms {
    Kms::new("vault".to_owned(), socket.to_owned(), Duration::from_secs(20))
}

fn opened(kms: &Kms, stored: &[u8]) -> Result<(Vec<u8>, bool), Closed> {
    kms.open(ROW, stored.strip_prefix(b"k8s:enc:kms:v2:vault:").expect("the provider's prefix"))
}

#[tokio::test]
async fn a10_seeds_are_made_once_for_a_key_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, random) = (folder.path().join("kms.sock"), SystemRandom::new());
    let plugin = Plugin::start(&socket, 1);
    let one = kms(&socket);
    assert!(one.ready(Instant::now()).is_err() && one.seal(ROW, b"hunter2", &random).is_none(), "no seed yet");
    assert!(one.check(&random).await && one.check(&random).await);
    let stored = one.seal(ROW, b"hunter2", &random).expect("sealed");
    let again = one.seal(ROW, b"hunter2", &random).expect("sealed");
    assert!(stored != again && !stored.windows(7).any(|part| part == b"hunter2"));
    assert_eq!(opened(&one, &stored), Ok((b"hunter2".to_vec(), false)));
    assert_eq!(plugin.asked(), [1, 0], "one seed, which nobody needs to decrypt");
    // A server that is started anew asks once for all of a seed's values.
    let other = kms(&socket);
    assert_eq!(opened(&other, &stored), Ok((b"hunter2".to_vec(), false)));
    assert_eq!(opened(&other, &again), Ok((b"hunter2".to_vec(), false)));
    assert_eq!(plugin.asked(), [1, 1]);
    // Another key: what is written from now on is sealed by it, and older values are to be written anew.
    plugin.key.store(2, Ordering::Relaxed);
    assert!(one.check(&random).await);
    assert_eq!(opened(&one, &stored), Ok((b"hunter2".to_vec(), true)));
    let newer = one.seal(ROW, b"hunter3", &random).expect("sealed");
    assert_eq!(opened(&one, &newer), Ok((b"hunter3".to_vec(), false)));
    // What was opened once is opened without the plugin.
    drop(plugin);
    assert_eq!(opened(&one, &stored), Ok((b"hunter2".to_vec(), true)));
    assert!(matches!(opened(&kms(&socket), &stored), Err(Closed::Now(_))));
    assert_eq!(one.open(b"/core/secrets/default/b", &stored[21..]), Err(Closed::Damaged), "another row's");
    for at in [21, stored.len() / 2, stored.len() - 3] {
        let mut changed = stored.clone();
        changed[at] ^= 1;
        assert!(opened(&one, &changed).is_err(), "changed at {at}");
    }
}

#[tokio::test]
async fn a10_writes_end_three_minutes_after_the_last_good_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, random) = (folder.path().join("kms.sock"), SystemRandom::new());
    let plugin = Plugin::start(&socket, 1);
    let kms = kms(&socket);
    assert!(kms.trouble().is_some());
    let before = Instant::now();
    assert!(kms.check(&random).await);
    assert_eq!(kms.trouble(), None);
    let after = Instant::now();
    plugin.key.store(0, Ordering::Relaxed);
    assert!(!kms.check(&random).await);
    let trouble = kms.trouble().expect("trouble");
    assert!(trouble.contains("kmsv2 Provider vault is not healthy, error: got unexpected healthz"), "{trouble}");
    assert_eq!(kms.ready(before + WRITES), Ok(()));
    let refused = kms.ready(after + WRITES + Duration::from_millis(1)).expect_err("too late");
    assert!(refused.contains("nothing is stored plain") && refused.contains("healthz status: sealed"), "{refused}");
    drop(plugin);
    assert!(!kms.check(&random).await);
    assert!(kms.trouble().is_some_and(|trouble| trouble.contains("failed to perform status section")));
}

#[test]
fn x4_hostile_envelopes_are_refused() {
    let kms = kms(Path::new("/nowhere"));
    for stored in [&b""[..], b"\x0a\xff", b"\x12\x01k", b"\x0a\x01x\x12\x01k\x1a\x00", b"\xff\xff\xff\xff\xff\xff\xff"]
    {
        assert_eq!(kms.open(ROW, stored), Err(Closed::Damaged), "{stored:?}");
    }
    let long = SealedSeed { key_id: "k".repeat(MAX_KEY_ID + 1), bytes: vec![1], ..SealedSeed::default() };
    assert!(long.check().is_err());
    let name = |name: &str| {
        let annotations = BTreeMap::from([(name.to_owned(), Vec::new())]);
        SealedSeed { key_id: "k".to_owned(), bytes: vec![1], annotations }.check().is_ok()
    };
    assert!(name("a.example.com") && !name("example") && !name("A.example.com") && !name("-a.example.com"));
}

fn config(data_dir: &Path) -> ServerConfig {
    ServerConfig {
        data_dir: data_dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        service_cidr: "10.96.0.0/16".into(),
        cluster_cidr: "10.244.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
        pod_network: "routes".into(),
        etcd: None,
        seal: None,
        node: None,
        cluster: crate::identity::Expected::default(),
        new_keys: false,
    }
}

async fn server(folder: &Path, socket: &Path) -> (Running, Client) {
    let file = folder.join("enc.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - kms: {{ apiVersion: v2, name: vault, endpoint: 'unix://{}', timeout: 5s }}\n  \
         - identity: {{}}\n",
        socket.display()
    );
    std::fs::write(&file, text).expect("written");
    let files = Files { encryption: Some(file), ..Files::default() };
    let running = start_with(config(&folder.join("data")), &files).await.expect("started");
    let client = Client::new(Config::parse(running.admin.kubeconfig.as_bytes()).expect("a kubeconfig"));
    (running, client.expect("a client"))
}

fn secret(name: &str) -> serde_json::Value {
    json!({ "metadata": { "name": name }, "stringData": { "password": "hunter2-plain" } })
}

fn on_disk(folder: &Path, text: &str) -> bool {
    let file = std::fs::read(folder.join("data").join(crate::identity::STORE).join(mainstay_store::FILE));
    file.expect("the store's file").windows(text.len()).any(|window| window == text.as_bytes())
}

/// A plugin that is away when the server starts: everything else works, its secrets are errors and stay, and are there
/// when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a10_a_plugin_that_is_away_at_the_start_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("kms.sock");
    let plugin = Plugin::start(&socket, 1);
    let (first, client) = server(folder.path(), &socket).await;
    client.create(&kinds::SECRET, "default", &secret("a")).await.expect("made");
    assert_eq!(client.get_text("/readyz/kms-providers").await.expect("well"), "ok");
    // One that goes away later keeps nobody from reading.
    drop(plugin);
    let read = client.get(&kinds::SECRET, "default", "a").await.expect("read");
    assert_eq!(read["data"]["password"], "aHVudGVyMi1wbGFpbg==");
    first.shutdown().await;
    assert!(on_disk(folder.path(), "k8s:enc:kms:v2:vault:") && !on_disk(folder.path(), "aHVudGVyMi1wbGFpbg"));

    let (second, client) = server(folder.path(), &socket).await;
    let map = json!({ "metadata": { "name": "m" } });
    client.create(&kinds::CONFIG_MAP, "default", &map).await.expect("what is not encrypted is written");
    let ready = client.get_text("/readyz/kms-providers").await.expect_err("not ready").to_string();
    assert!(ready.contains("kmsv2 Provider vault is not healthy"), "{ready}");
    let refused = [
        client.get(&kinds::SECRET, "default", "a").await.map(drop),
        client.get_text("/api/v1/namespaces/default/secrets").await.map(drop),
        client.get_text("/api/v1/secrets?labelSelector=a%3Db").await.map(drop),
        client.delete(&kinds::SECRET, "default", "a", &json!({})).await.map(drop),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let Err(why) = refused else { panic!("{number} is answered") };
        let why = why.to_string();
        assert!(why.contains("failed to decrypt DEK"), "{number}: {why}");
    }
    let unwritten = client.create(&kinds::SECRET, "default", &secret("b")).await.expect_err("refused").to_string();
    assert!(unwritten.contains("nothing is stored plain"), "{unwritten}");

    // The same key, in another process.
    let plugin = Plugin::start(&socket, 1);
    let begun = Instant::now();
    let read = loop {
        match client.get(&kinds::SECRET, "default", "a").await {
            Ok(read) => break read,
            Err(why) => assert!(begun.elapsed() < PATIENCE, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(read["data"]["password"], "aHVudGVyMi1wbGFpbg==");
    client.create(&kinds::SECRET, "default", &secret("b")).await.expect("written now");
    while client.get_text("/readyz/kms-providers").await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    second.shutdown().await;
    assert!(!on_disk(folder.path(), "aHVudGVyMi1wbGFpbg"));
    drop(plugin);
}
