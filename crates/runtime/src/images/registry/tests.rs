//! Registries that lie, stall, never end, or send whoever asks elsewhere (X4, X2).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use serde_json::json;

use super::wire::{Wire, client_tls};
use super::{Budget, Patience, Registry};
use crate::images::archive::digest_of;
use crate::images::{Image, ImageStore, Reference, RegistryAuth};

/// More than any limit of a document, and than what may lie in sockets' buffers: who takes so much has no limit.
const TOO_MUCH: u64 = 128 << 20;

/// What a registry answers: a head without its status line's beginning, then a body.
#[derive(Clone)]
enum Reply {
    Whole(String, Vec<u8>),
    /// As much of it, then the connection ends.
    Broken(String, Vec<u8>, usize),
    /// The same byte, until nobody takes it any more or [`TOO_MUCH`] was taken.
    Endless(String, u8),
    /// A byte now and then.
    Drip(String),
    /// Nothing.
    Silence,
}

fn ok(body: impl Into<Vec<u8>>) -> Reply {
    Reply::Whole("200 OK".to_owned(), body.into())
}

fn refused(status: &str, header: &str) -> Reply {
    Reply::Whole(format!("{status}\r\n{header}"), Vec::new())
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    path: String,
    authorization: Option<String>,
    range: Option<String>,
}

type Answers = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// A server on the loopback that ends with the test's process.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Bytes of bodies that were taken.
    sent: Arc<AtomicU64>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn new(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            port: listener.local_addr().unwrap().port(),
            asked: Arc::default(),
            sent: Arc::default(),
            connections: Arc::default(),
        };
        let (asked, sent, connections) = (server.asked.clone(), server.sent.clone(), server.connections.clone());
        let answers: Answers = Arc::new(answers);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, sent, answers) = (asked.clone(), sent.clone(), answers.clone());
                std::thread::spawn(move || serve(connection, &asked, &sent, &answers));
            }
        });
        server
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }

    fn image(&self) -> String {
        format!("127.0.0.1:{}/team/app:1", self.port)
    }
}

fn serve(connection: TcpStream, asked: &Mutex<Vec<Asked>>, sent: &AtomicU64, answers: &Answers) {
    let mut writer = connection.try_clone().unwrap();
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader) {
        asked.lock().unwrap().push(request.clone());
        if answer(&mut writer, answers(&request), sent).is_none() {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let header = |wanted: &str| {
        lines.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
        })
    };
    Some(Asked { path, authorization: header("authorization"), range: header("range") })
}

/// None where the connection is of no more use.
fn answer(writer: &mut impl Write, reply: Reply, sent: &AtomicU64) -> Option<()> {
    match reply {
        Reply::Whole(head, body) => {
            let head = format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n", head.trim_end(), body.len());
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).ok()?;
            sent.fetch_add(body.len() as u64, Ordering::SeqCst);
            Some(())
        }
        Reply::Broken(head, body, length) => {
            let head = format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n", head.trim_end(), body.len());
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body[..length])).ok()?;
            None
        }
        Reply::Endless(head, byte) => {
            let head = format!("HTTP/1.1 {}\r\nTransfer-Encoding: chunked\r\n\r\n", head.trim_end());
            writer.write_all(head.as_bytes()).ok()?;
            let chunk = [b"10000\r\n".as_slice(), &[byte; 0x10000], b"\r\n"].concat();
            while sent.load(Ordering::SeqCst) < TOO_MUCH {
                writer.write_all(&chunk).ok()?;
                sent.fetch_add(0x10000, Ordering::SeqCst);
            }
            None
        }
        Reply::Drip(head) => {
            let head = format!("HTTP/1.1 {}\r\nContent-Length: 1000000\r\n\r\n", head.trim_end());
            writer.write_all(head.as_bytes()).ok()?;
            loop {
                writer.write_all(b" ").and_then(|()| writer.flush()).ok()?;
                sent.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Reply::Silence => {
            std::thread::sleep(Duration::from_secs(3600));
            None
        }
    }
}

/// A good image, as paths of a registry: its manifest's bytes, and `kind` of each other path.
struct Good {
    files: BTreeMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    config: String,
    layer: String,
}

fn good() -> Good {
    good_of(b"hello")
}

/// With a layer of one file with this content.
fn good_of(content: &[u8]) -> Good {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", content).unwrap();
    let layer = tar.into_inner().unwrap();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({ "architecture": architecture, "os": "linux", "config": { "Cmd": ["/run"] },
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer)] } });
    let config = config.to_string().into_bytes();
    let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(&config),
            "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(&layer),
            "size": layer.len() }] });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [
            { "digest": digest_of(b"other"), "size": 5, "platform": { "os": "linux", "architecture": "mips" } },
            { "digest": digest_of(&manifest), "size": manifest.len(),
                "platform": { "os": "linux", "architecture": architecture } }] });
    let blob = |bytes: &[u8]| format!("/v2/team/app/blobs/{}", digest_of(bytes));
    let (config_path, layer_path) = (blob(&config), blob(&layer));
    let files = BTreeMap::from([
        ("/v2/team/app/manifests/1".to_owned(), manifest.clone()),
        ("/v2/team/app/manifests/index".to_owned(), index.to_string().into_bytes()),
        (format!("/v2/team/app/manifests/{}", digest_of(&manifest)), manifest.clone()),
        (config_path.clone(), config),
        (layer_path.clone(), layer),
    ]);
    Good { files, manifest, config: config_path, layer: layer_path }
}

impl Good {
    fn answer(&self, asked: &Asked) -> Reply {
        let unknown = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown\u001b"}]}"#;
        let file = self.files.get(asked.path.split('?').next().unwrap_or_default());
        file.map_or_else(|| Reply::Whole("404 Not Found".to_owned(), unknown.to_vec()), |file| ok(file.clone()))
    }

    /// Answers as it should, but for one path.
    fn but(self, path: &str, reply: Reply) -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
        let path = path.to_owned();
        move |asked| if asked.path.starts_with(&path) { reply.clone() } else { self.answer(asked) }
    }
}

const MANIFEST: &str = "/v2/team/app/manifests/1";

struct Puller {
    store: ImageStore,
    tokio: tokio::runtime::Runtime,
    patience: Patience,
    auth: Option<RegistryAuth>,
    _dir: tempfile::TempDir,
}

impl Puller {
    fn new() -> Puller {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Puller { store, tokio, patience: Patience::default(), auth: None, _dir: dir }
    }

    fn with_password() -> Puller {
        let auth = RegistryAuth { username: "user".to_owned(), password: "secret".to_owned() };
        Puller { auth: Some(auth), ..Puller::new() }
    }

    fn pull(&self, name: &str) -> Result<Image, String> {
        let reference = Reference::parse(name).unwrap();
        let registry = Registry::new(&reference, self.auth.as_ref(), self.patience, &Budget::new()).unwrap();
        let mut progress = |_| ();
        let pull = self.store.pull_from(registry, name, &reference, &mut progress);
        self.tokio.block_on(pull).map_err(|error| error.to_string())
    }

    fn fails(&self, server: &Server) -> String {
        let error = self.pull(&server.image()).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(self.store.root().join("tmp")).unwrap().flatten().collect();
        assert!(left.is_empty() && self.store.list().is_empty(), "{left:?}");
        assert!(error.len() < 1000 && !error.contains('\u{1b}'), "{error}");
        error
    }
}

#[test]
fn images_are_pulled_by_tag_by_digest_and_through_an_index_over_few_connections() {
    let good = good();
    let digest = digest_of(&good.manifest);
    let (layer, server) = (good.layer.clone(), Server::new(move |asked| good.answer(asked)));
    let puller = Puller::new();
    let image = puller.pull(&server.image()).unwrap();
    assert_eq!(image.config.cmd, ["/run"]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{:?}", server.asked());
    let own = |rest: &str| format!("127.0.0.1:{}/team/app{rest}", server.port);
    assert_eq!(image.repo_digests, [own(&format!("@{digest}"))]);
    let again = puller.pull(&own(":index")).unwrap();
    assert_eq!((again.id, again.repo_digests.len()), (image.id.clone(), 2));
    assert_eq!(puller.pull(&own(&format!("@{digest}"))).unwrap().id, image.id);
    assert_eq!(server.paths().iter().filter(|path| **path == layer).count(), 1, "a layer that is there is not fetched");
}

#[test]
fn x4_a_manifest_a_config_and_a_refusal_without_end_are_not_read_whole() {
    let config = good().config;
    let table = [
        (MANIFEST, Reply::Endless("200 OK".to_owned(), b' '), "longer than 4194304 bytes", 4u64 << 20),
        (&config, Reply::Endless("200 OK".to_owned(), b' '), "it is longer than", 0),
        (MANIFEST, Reply::Endless("404 Not Found".to_owned(), b' '), "not found", 64 << 10),
        (MANIFEST, Reply::Endless("500 Oh".to_owned(), b' '), "unexpected status from GET request to http", 64 << 10),
        (MANIFEST, Reply::Endless("307 Away\r\nLocation: /away".to_owned(), b' '), "not found", 64 << 10),
    ];
    for (path, reply, expected, limit) in table {
        let server = Server::new(good().but(path, reply));
        let error = Puller::new().fails(&server);
        assert!(error.contains(expected), "{error}");
        // What lies in the sockets' buffers was sent too.
        let sent = server.sent.load(Ordering::SeqCst);
        assert!(sent < limit + (32 << 20), "{sent} bytes were taken: {error}");
    }
}

#[test]
fn x4_a_token_without_end_is_not_read_whole() {
    let realm = "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"/token\"";
    let good = good();
    let server = Server::new(move |asked| match asked.path.as_str() {
        path if path.starts_with("/token?") => Reply::Endless("200 OK".to_owned(), b' '),
        _ if asked.authorization.is_none() => refused(realm, ""),
        _ => good.answer(asked),
    });
    let error = Puller::new().fails(&server);
    assert!(error.contains("longer than 1048576 bytes"), "{error}");
    let sent = server.sent.load(Ordering::SeqCst);
    assert!(sent < 32 << 20, "{sent} bytes were taken");
}

#[test]
fn x4_a_head_without_end_is_given_up() {
    let endless =
        format!("200 OK\r\n{}", "X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(4000));
    let server = Server::new(good().but(MANIFEST, Reply::Whole(endless, Vec::new())));
    let error = Puller::new().fails(&server);
    assert!(error.contains("too large") || error.contains("header"), "{error}");
    assert_eq!(server.paths(), [MANIFEST]);
}

#[test]
fn x4_redirections_end() {
    let server = Server::new(good().but(MANIFEST, refused("307 Away", &format!("Location: {MANIFEST}?again"))));
    let error = Puller::new().fails(&server);
    assert!(error.contains("stopped after 5 redirects"), "{error}");
    assert_eq!(server.asked().len(), 6);
    for location in ["http://registry.example/x", "ftp://127.0.0.1/x", "http://"] {
        let server = Server::new(good().but(MANIFEST, refused("302 Away", &format!("Location: {location}"))));
        let error = Puller::new().fails(&server);
        assert!(error.contains("parse "), "{location}: {error}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[test]
fn x4_indexes_that_lead_to_indexes_end() {
    let mut files = BTreeMap::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut inner = good().manifest;
    for _ in 0..20 {
        files.insert(format!("/v2/team/app/manifests/{}", digest_of(&inner)), inner.clone());
        inner = json!({ "manifests": [{ "digest": digest_of(&inner), "size": 1,
            "platform": { "os": "linux", "architecture": architecture } }] })
        .to_string()
        .into_bytes();
    }
    files.insert(MANIFEST.to_owned(), inner);
    let good = Good { files, ..good() };
    let server = Server::new(move |asked| good.answer(asked));
    let error = Puller::new().fails(&server);
    assert!(error.contains("nested more than 4 deep"), "{error}");
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn x3_what_is_not_of_its_digest_or_its_length_is_refused() {
    let other = |path: &str, change: fn(&mut Vec<u8>)| {
        let mut changed = good();
        change(changed.files.get_mut(path).unwrap());
        let server = Server::new(move |asked| changed.answer(asked));
        let name = format!("127.0.0.1:{}/team/app@{}", server.port, digest_of(&good().manifest));
        Puller::new().pull(&name).unwrap_err()
    };
    let Good { config, layer, manifest, .. } = good();
    let by_digest = format!("/v2/team/app/manifests/{}", digest_of(&manifest));
    let flip: fn(&mut Vec<u8>) = |bytes| bytes[20] ^= 1;
    let longer: fn(&mut Vec<u8>) = |bytes| bytes.push(b' ');
    let shorter: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() - 1);
    for (path, change, expected) in [
        (&by_digest, flip, "its digest is sha256:"),
        (&by_digest, longer, "its digest is sha256:"),
        (&config, flip, "its digest is sha256:"),
        (&config, longer, "it is longer than"),
        (&config, shorter, "bytes, expected were"),
        (&layer, flip, "digest"),
        (&layer, longer, "the manifest says"),
        (&layer, shorter, "the manifest says"),
    ] {
        let error = other(path, change);
        assert!(error.contains(expected), "{path}: {error}");
    }
    let claimed = format!("200 OK\r\nDocker-Content-Digest: {}", digest_of(b"other"));
    let server = Server::new(good().but(MANIFEST, Reply::Whole(claimed, manifest)));
    assert!(Puller::new().fails(&server).contains("expected was"));
    for bad in ["\"sha256:../../../etc\"", "\"\"", "7"] {
        let manifest = format!("{{\"config\":{{\"digest\":{bad},\"size\":1}},\"layers\":[]}}");
        Puller::new().fails(&Server::new(good().but(MANIFEST, ok(manifest))));
    }
    for size in ["-1", "9000000", "18446744073709551615"] {
        let manifest = format!("{{\"config\":{{\"digest\":\"{}\",\"size\":{size}}},\"layers\":[]}}", digest_of(b""));
        let server = Server::new(good().but(MANIFEST, ok(manifest)));
        Puller::new().fails(&server);
        assert_eq!(server.asked().len(), 1, "it is not even asked for");
    }
}

#[test]
fn x4_a_layer_is_read_as_far_as_the_manifest_says() {
    let layer = good().layer;
    let server = Server::new(good().but(&layer, Reply::Endless("200 OK".to_owned(), 0)));
    let error = Puller::new().fails(&server);
    assert!(error.contains("longer than the"), "{error}");
    assert!(server.sent.load(Ordering::SeqCst) < 32 << 20);
}

#[test]
fn x4_a_registry_that_drips_or_is_silent_is_given_up() {
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(10),
        document: Duration::from_millis(500),
        span: Duration::from_millis(500),
        bytes_per_span: 1 << 20,
    };
    let Good { config, .. } = good();
    let drip = |status: &str| Reply::Drip(status.to_owned());
    for (path, reply) in [
        (MANIFEST, drip("200 OK")),
        (MANIFEST, drip("307 Away\r\nLocation: /away")),
        (MANIFEST, Reply::Silence),
        (&config, drip("200 OK\r\nX-More: x")),
    ] {
        let server = Server::new(good().but(path, reply));
        let error = Puller { patience, ..Puller::new() }.fails(&server);
        assert!(error.contains("i/o timeout") || error.contains("longer"), "{path}: {error}");
    }
    // A layer of the length that was announced, which never comes.
    let mut large = good();
    let text = String::from_utf8(large.manifest.clone()).unwrap();
    let layer_at = text.find("\"layers\"").unwrap();
    let (head, tail) = text.split_at(layer_at);
    let tail = tail.replacen(&format!("\"size\":{}", large.files[&large.layer].len()), "\"size\":1000000", 1);
    large.files.insert(MANIFEST.to_owned(), format!("{head}{tail}").into_bytes());
    let layer = large.layer.clone();
    let server = Server::new(large.but(&layer, drip("200 OK")));
    let error = Puller { patience, ..Puller::new() }.fails(&server);
    assert!(error.contains("too slowly"), "{error}");
    // Silence in the middle of it.
    let patience = Patience { silence: Duration::from_millis(500), ..Patience::default() };
    let server = Server::new(good().but(MANIFEST, Reply::Silence));
    let error = Puller { patience, ..Puller::new() }.fails(&server);
    assert!(error.contains("i/o timeout awaiting response headers"), "{error}");
}

#[test]
fn a_token_is_fetched_with_the_password_and_again_when_it_has_expired() {
    let good = good();
    let layer = good.layer.clone();
    let realm = "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"/token?x=1\",service=\"reg\"";
    let given = AtomicUsize::new(0);
    let server = Server::new(move |asked| {
        let shown = asked.authorization.as_deref();
        if asked.path.starts_with("/token") {
            assert_eq!(shown, Some("Basic dXNlcjpzZWNyZXQ="));
            assert_eq!(asked.path, "/token?x=1&service=reg&scope=repository:team/app:pull");
            let number = given.fetch_add(1, Ordering::SeqCst);
            return ok(json!({ "token": format!("t{number}") }).to_string());
        }
        // The first token is good for everything but the layer.
        let wanted = if asked.path == layer { "Bearer t1" } else { "Bearer t0" };
        if shown == Some(wanted) { good.answer(asked) } else { refused(realm, "") }
    });
    Puller::with_password().pull(&server.image()).unwrap();
    assert_eq!(server.paths().iter().filter(|path| path.starts_with("/token")).count(), 2);
}

#[test]
fn who_may_not_pull_is_told_so_in_the_registrys_words() {
    let said = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    let realm = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"";
    let server = Server::new(move |_| Reply::Whole(realm.to_owned(), said.to_vec()));
    for (puller, requests) in [(Puller::new(), 1), (Puller::with_password(), 3)] {
        let error = puller.fails(&server);
        assert!(error.contains("pull access denied for 127.0.0.1:"), "{error}");
        assert!(error.contains("unauthorized: authentication required"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(server.asked().len(), requests, "no question is put again and again");
    }
    let realm = "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"/token\"";
    let server = Server::new(move |asked| match asked.path.as_str() {
        MANIFEST => refused(realm, ""),
        _ => Reply::Whole("401 No".to_owned(), br#"{"details":"incorrect username or password"}"#.to_vec()),
    });
    let error = Puller::with_password().fails(&server);
    assert!(error.contains("failed to authorize: pull access denied"), "{error}");
    assert!(error.contains("incorrect username or password"), "{error}");
    let error =
        Puller::new().fails(&Server::new(|asked| good().answer(&Asked { path: String::new(), ..asked.clone() })));
    assert!(error.ends_with("/team/app:1: not found: manifest unknown: manifest unknown"), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Puller::new().pull(&format!("{gone}/team/app:1")).unwrap_err();
    assert!(error.contains(&format!("dial tcp {gone}: connect: connection refused")), "{error}");
}

#[test]
fn x2_credentials_are_shown_to_nobody_else() {
    // What is redirected to it is there; it asks for credentials of its own for anything else.
    let elsewhere = {
        let good = good();
        Server::new(move |asked| match good.answer(asked) {
            Reply::Whole(status, _) if status.starts_with("404") => {
                refused("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"")
            }
            reply => reply,
        })
    };
    let (good, port) = (good(), elsewhere.port);
    let (layer, away) = (good.layer.clone(), format!("Location: http://localhost:{port}"));
    let realm = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"";
    let server = Server::new(move |asked| match asked.path.as_str() {
        _ if asked.authorization.is_none() => refused(realm, ""),
        path if path == layer => refused("307 Away", &format!("{away}{path}?signature=1")),
        "/v2/team/app/manifests/2" => refused("307 Away", &format!("{away}/stolen?signature=1")),
        _ => good.answer(asked),
    });
    let puller = Puller::with_password();
    puller.pull(&server.image()).unwrap();
    let error = puller.pull(&format!("127.0.0.1:{}/team/app:2", server.port)).unwrap_err();
    assert!(error.contains("pull access denied") && !error.contains("signature"), "{error}");
    assert!(server.asked().iter().any(|asked| asked.authorization.is_some()));
    assert_eq!(elsewhere.asked().len(), 2);
    assert!(elsewhere.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", elsewhere.asked());
}

/// What the registry answers for its layer of 3 MB, by how often it was asked and from which byte on.
fn layered(
    answers: impl Fn(usize, Option<usize>, &[u8]) -> Reply + Send + Sync + 'static,
) -> (Server, impl Fn(&Server) -> Vec<Option<String>>) {
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let good = good_of(&content);
    let (layer, times) = (good.layer.clone(), AtomicUsize::new(0));
    let path = layer.clone();
    let server = Server::new(move |asked| {
        if asked.path != path {
            return good.answer(asked);
        }
        let range = asked.range.as_deref().map(|range| range.trim_start_matches("bytes=").trim_end_matches('-'));
        let from = range.map(|from| from.parse().unwrap());
        answers(times.fetch_add(1, Ordering::SeqCst), from, &good.files[&path])
    });
    let ranges = move |server: &Server| {
        let asked = server.asked().into_iter().filter(|asked| asked.path == layer);
        asked.map(|asked| asked.range).collect::<Vec<_>>()
    };
    (server, ranges)
}

fn rest(from: usize, bytes: &[u8]) -> Reply {
    let range = format!("206 Part\r\nContent-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::Whole(range, bytes[from..].to_vec())
}

fn breaks_off(bytes: &[u8], at: usize) -> Reply {
    Reply::Broken("200 OK".to_owned(), bytes.to_vec(), at)
}

fn is_whole(puller: &Puller, image: &Image) -> bool {
    let layers = puller.store.layer_dirs(&image.id).unwrap();
    let kept = std::fs::read_dir(puller.store.root().join("partial")).unwrap().count();
    std::fs::metadata(layers[0].join("hello")).unwrap().len() == 3_000_000 && kept == 0
}

#[test]
fn x4_a_layer_that_breaks_off_is_gone_on_with_from_where_it_ended() {
    let (server, ranges) = layered(|times, from, bytes| match (times, from) {
        (0, None) => breaks_off(bytes, 1_000_000),
        (1, Some(from)) => Reply::Broken(
            format!("206 Part\r\nContent-Range: bytes {from}-{}/*", bytes.len() - 1),
            bytes[from..].to_vec(),
            500_000,
        ),
        (_, from) => rest(from.unwrap(), bytes),
    });
    let puller = Puller::new();
    let image = puller.pull(&server.image()).unwrap();
    assert!(is_whole(&puller, &image));
    let expected = [None, Some("bytes=1000000-".to_owned()), Some("bytes=1500000-".to_owned())];
    assert_eq!(ranges(&server), expected);
    // Who brings nothing is not asked again and again, nor is who brings little each time.
    for (length, most) in [(0, 1), (1, 6)] {
        let (server, ranges) = layered(move |_, from, bytes| match from {
            Some(from) => Reply::Broken(
                format!("206 Part\r\nContent-Range: bytes {from}-{}/*", bytes.len() - 1),
                bytes[from..].to_vec(),
                length,
            ),
            None => breaks_off(bytes, length),
        });
        let error = Puller::new().fails(&server);
        assert!(error.contains("EOF") || error.contains("ends"), "{error}");
        assert_eq!(ranges(&server).len(), most);
    }
}

#[test]
fn x4_the_next_pull_goes_on_where_the_last_one_broke_off() {
    let is_back = Arc::new(AtomicUsize::new(0));
    let back = is_back.clone();
    let (server, ranges) = layered(move |times, from, bytes| match (times, from) {
        (0, _) => breaks_off(bytes, 2_000_000),
        _ if back.load(Ordering::SeqCst) == 0 => refused("503 Later", ""),
        (_, from) => rest(from.unwrap(), bytes),
    });
    let puller = Puller::new();
    assert!(puller.fails(&server).contains("503"));
    is_back.store(1, Ordering::SeqCst);
    let image = puller.pull(&server.image()).unwrap();
    assert!(is_whole(&puller, &image));
    assert_eq!(ranges(&server)[2].as_deref(), Some("bytes=2000000-"));
}

#[test]
fn x3_what_a_layer_is_gone_on_with_is_what_was_asked_for_or_nothing() {
    // Who knows no ranges sends all of it, and so does who has none of that.
    for status in ["200 OK", "416 No"] {
        let (server, ranges) = layered(move |times, from, bytes| match (times, from) {
            (0, _) => breaks_off(bytes, 1_000_000),
            (_, Some(_)) if status != "200 OK" => refused(status, ""),
            _ => ok(bytes.to_vec()),
        });
        let puller = Puller::new();
        let image = puller.pull(&server.image()).unwrap();
        assert!(is_whole(&puller, &image), "{status}");
        assert!(ranges(&server).len() <= 3);
    }
    // Another range than was asked for is none, also where its length would do.
    for range in ["bytes 0-1999999/3000000", "bytes 1000000-2000000/*", "bytes */3000000", "x", ""] {
        let (server, _) = layered(move |times, from, bytes| match (times, from) {
            (0, _) => breaks_off(bytes, 1_000_000),
            (_, Some(from)) => Reply::Whole(format!("206 Part\r\nContent-Range: {range}"), bytes[from..].to_vec()),
            _ => ok(bytes.to_vec()),
        });
        let error = Puller::new().fails(&server);
        assert!(error.contains("asked for bytes 1000000 to the end of"), "{range}: {error}");
    }
    // The right range with wrong bytes: everything is asked for once more, and no more often.
    for is_good_at_last in [true, false] {
        let (server, ranges) = layered(move |times, from, bytes| match (times, from) {
            (0, _) => breaks_off(bytes, 1_000_000),
            (_, Some(from)) => {
                let zeros = vec![0; bytes.len()];
                rest(from, &zeros)
            }
            _ if is_good_at_last => ok(bytes.to_vec()),
            _ => ok(vec![1; bytes.len()]),
        });
        let puller = Puller::new();
        match puller.pull(&server.image()) {
            Ok(image) => assert!(is_good_at_last && is_whole(&puller, &image)),
            Err(error) => assert!(!is_good_at_last && error.contains("its digest is"), "{error}"),
        }
        assert_eq!(ranges(&server).len(), 3);
    }
}

#[test]
fn x2_who_is_redirected_to_asks_for_credentials_in_vain_and_that_is_said() {
    let said = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#;
    let elsewhere =
        Server::new(|_| Reply::Whole("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"".into(), said.to_vec()));
    let (port, good) = (elsewhere.port, good());
    let layer = good.layer.clone();
    let server = Server::new(move |asked| match asked.path.as_str() {
        path if path == layer => refused("307 Away", &format!("Location: http://localhost:{port}/b?signature=1")),
        _ if asked.authorization.is_none() => refused("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", ""),
        _ => good.answer(asked),
    });
    let error = Puller::with_password().fails(&server);
    let expected = format!("the registry leads to http://localhost:{port}/b, which answers 401 Unauthorized");
    assert!(error.contains(&expected) && error.ends_with("who are you"), "{error}");
    assert!(!error.contains("signature"), "{error}");
    assert_eq!(elsewhere.asked().len(), 1);
    assert!(elsewhere.asked()[0].authorization.is_none());
}

#[test]
fn v11_a_store_that_somebody_has_locked_holds_up_no_thread_of_the_runtime() {
    let good = good();
    let server = Server::new(move |asked| good.answer(asked));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let puller = Puller { tokio, ..Puller::new() };
    let lock = std::fs::File::create(puller.store.root().join("lock")).unwrap();
    nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).map_or_else(
        |(_, error)| panic!("{error}"),
        |held| {
            let reference = Reference::parse(&server.image()).unwrap();
            let registry = Registry::new(&reference, None, puller.patience, &Budget::new()).unwrap();
            let mut progress = |_| ();
            let name = server.image();
            puller.tokio.block_on(async {
                let pull = puller.store.pull_from(registry, &name, &reference, &mut progress);
                // Whoever holds the lock lets it go on the runtime's one thread, once the layer was asked for.
                let release = async {
                    while server.asked().len() < 3 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    drop(held);
                };
                let (pulled, ()) = tokio::join!(pull, release);
                pulled.unwrap();
            });
        },
    );
}

/// A registry behind TLS, and the proxy through which it is reached: `CONNECT registry.test:443`, then a tunnel.
fn behind_a_proxy(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> (u16, rustls::ClientConfig, Server) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["registry.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = Arc::new(tls.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap());
    let inner = Server::new(|_| Reply::Silence);
    let (asked, sent, answers) = (inner.asked.clone(), inner.sent.clone(), Arc::new(answers) as Answers);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut tunnel in listener.incoming().flatten() {
            let (asked, sent, answers, tls) = (asked.clone(), sent.clone(), answers.clone(), tls.clone());
            std::thread::spawn(move || {
                let request = read_request(&mut BufReader::with_capacity(1, tunnel.try_clone().unwrap())).unwrap();
                asked.lock().unwrap().push(request);
                tunnel.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
                let session = rustls::ServerConnection::new(tls).unwrap();
                let mut stream = BufReader::with_capacity(1, rustls::StreamOwned::new(session, tunnel));
                while let Some(request) = read_request(&mut stream) {
                    asked.lock().unwrap().push(request.clone());
                    let _ = answer(stream.get_mut(), answers(&request), &sent);
                }
            });
        }
    });
    (port, client_tls(roots).unwrap(), inner)
}

#[test]
fn registries_are_reached_over_tls_and_through_the_proxy_of_the_environment() {
    let good = good();
    let (port, tls, server) = behind_a_proxy(move |asked| match asked.path.as_str() {
        "/v2/team/app/manifests/away" => refused("307 Away", "Location: http://127.0.0.1:1/"),
        _ => good.answer(asked),
    });
    let puller = Puller::new();
    let pull = |name: &str| {
        let proxies = Matcher::builder().all(format!("http://me:word@127.0.0.1:{port}")).build();
        let reference = Reference::parse(name).unwrap();
        let wire = Wire::with(puller.patience, proxies, tls.clone());
        let registry = Registry::over(wire, &reference, None, puller.patience, &Budget::new()).unwrap();
        let mut progress = |_| ();
        let pull = puller.store.pull_from(registry, name, &reference, &mut progress);
        puller.tokio.block_on(pull).map_err(|error| error.to_string())
    };
    pull("registry.test/team/app:1").unwrap();
    assert_eq!(server.paths()[..2], ["registry.test:443", MANIFEST]);
    let error = pull("registry.test/team/app:away").unwrap_err();
    assert!(error.contains("which is plain HTTP"), "{error}");
    let error = pull("other.test/team/app:1").unwrap_err();
    assert!(error.contains("tls: failed to verify certificate"), "{error}");
}
