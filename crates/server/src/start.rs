//! Starting and stopping a server.

mod begin;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_api::schema::yaml;
use mainstay_client::Rotating;
use mainstay_store::{OpenError, Store};
use mainstay_tasks::Health;
use mainstay_tasks::keep::keep_until;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{Api, Batch, Body, Cidr, Env, Outcome, Tokens};
use crate::audit;
use crate::auth::config::{Authentication, StaticTokens};
use crate::auth::oidc::Issuers;
use crate::credentials::accounts;
use crate::encryption::Encryption;
use crate::http::{Authenticators, Server};
use crate::kubeconfig::WriteError;
use crate::pki::{self, Identity, Pki, PkiError};
use crate::pods::{self, LinkIndex};
use crate::{bootstrap, identity, origin, sealed};

/// How long what a former instance held may still be held: the kernel lets go of a killed process's lock and port only
/// when the system calls that it was in have ended.
const HANDOVER: Duration = Duration::from_secs(2);
/// Between two attempts to open a store in an etcd that does not answer.
const ETCD_AGAIN: Duration = Duration::from_secs(1);
/// How often it is said that a server waits for etcd.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Between two attempts to have them.
const LOOK: Duration = Duration::from_millis(10);

/// The folder, in that of keys, of the CA by which extension servers know us.
const FRONT_PROXY: &str = "front-proxy";

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where everything lasting is; made with mode 0700 where it is missing.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where pods and other machines reach the server; the port is the one that is listened on. `None` is `listen`'s
    /// address.
    pub advertise: Option<IpAddr>,
    /// Where Service addresses come from: `10.96.0.0/16`.
    pub service_cidr: String,
    /// Where pod addresses come from: `10.244.0.0/16`.
    pub cluster_cidr: String,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// How packets get from one machine's pods to another's: `vxlan` or `routes`.
    pub pod_network: String,
    /// The node that runs in this process, if one does.
    pub node: Option<LocalNode>,
    /// The etcd cluster that the store is in; `None`: it is in the folder.
    pub etcd: Option<mainstay_store::Etcd>,
    /// The file of the seal, where the store is in etcd; `<data>/seal.key` unless told.
    pub seal: Option<PathBuf>,
    /// What is known of the cluster that the folder holds.
    pub cluster: identity::Expected,
    /// The cluster's keys are gone or are to be others: what is missing is made anew, and what is there is taken.
    pub new_keys: bool,
}

/// A node that runs in the server's process, and has its certificate from it without asking.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Its name.
    pub name: String,
    /// Its addresses, for its kubelet's certificate.
    pub addresses: Vec<IpAddr>,
    /// The address of its pods' bridge, where they are to reach a server that is on the loopback alone
    /// ([`Running::serve_pods`]).
    pub pods: Option<Ipv4Addr>,
}

/// Files by which a server is told who may come in and what is recorded, and one that it writes; all may be absent.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `--authentication-config`: an `AuthenticationConfiguration`.
    pub authentication: Option<PathBuf>,
    /// `--token-auth-file`: lines of `token,user,uid[,"group1,group2"]`.
    pub tokens: Option<PathBuf>,
    /// `--encryption-provider-config`: an `EncryptionConfiguration`.
    pub encryption: Option<PathBuf>,
    /// `--kubeconfig`: where the administrator's kubeconfig is to be as well.
    pub kubeconfig: Option<PathBuf>,
    /// `--audit-policy-file`: an `audit.k8s.io/v1` Policy.
    pub audit_policy: Option<PathBuf>,
    /// `--audit-log-path`: where to; `-` is standard output.
    pub audit_log: Option<PathBuf>,
}

impl Files {
    /// How Secrets and others are encrypted on the disk.
    fn encryption(&self) -> Result<Option<Arc<Encryption>>, StartError> {
        let Some(path) = &self.encryption else { return Ok(None) };
        let wrong = |why: String| StartError::File { path: path.clone(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let parsed = Encryption::parse(&path.display().to_string(), &text).map_err(wrong)?;
        Ok(Some(Arc::new(parsed)))
    }

    fn read(&self) -> Result<(Authenticators, Option<Arc<audit::Log>>), StartError> {
        let text = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| StartError::File { path: path.to_owned(), why: error.to_string() })
        };
        let mut others = Authenticators::default();
        if let Some(path) = &self.tokens {
            let wrong = |why: String| StartError::File { path: path.clone(), why };
            others.tokens = StaticTokens::parse(&text(path)?).map_err(|error| wrong(error.to_string()))?;
        }
        if let Some(path) = &self.authentication {
            let wrong = |why: String| StartError::File { path: path.clone(), why };
            others.config = Authentication::parse(&text(path)?).map_err(|error| wrong(error.to_string()))?;
            others.issuers = Issuers::new(&others.config.jwt).map_err(wrong)?;
        }
        let audit = match (&self.audit_policy, &self.audit_log) {
            (Some(policy), Some(log)) => {
                let wrong = |why: String| StartError::File { path: policy.clone(), why };
                let parsed: audit::policy::Policy = yaml::read(&text(policy)?).map_err(wrong)?;
                if !parsed.is_known() {
                    return Err(wrong("not a Policy of audit.k8s.io/v1".to_owned()));
                }
                let opened = audit::Log::open(parsed, log);
                Some(Arc::new(opened.map_err(|error| StartError::File { path: log.clone(), why: error.to_string() })?))
            }
            _ => None,
        };
        Ok((others, audit))
    }
}

/// Why a server did not start. Each says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A configured range makes no sense.
    #[error("{option} {value:?} is not an IPv4 range such as 10.96.0.0/16, of at least 32 addresses")]
    Cidr { option: &'static str, value: String },
    /// The data folder cannot be made or entered.
    #[error("the data folder {path} cannot be used: {source}")]
    DataDir { path: PathBuf, source: std::io::Error },
    /// Another instance has it.
    #[error("the data folder {0} is in use by another mainstay; stop that one, or choose another --data-dir")]
    InUse(PathBuf),
    /// The store's file cannot be used.
    #[error("the store in {path} cannot be opened: {source}{hint}", hint = identity::hint(source))]
    Store { path: PathBuf, source: OpenError },
    /// etcd's store cannot be used.
    #[error("the store in etcd cannot be used: {why}{hint}")]
    Etcd { why: OpenError, hint: &'static str },
    /// etcd does not answer; a server that starts waits.
    #[error("etcd does not answer: {0}")]
    Silent(String),
    /// The note beside the store makes no sense.
    #[error(
        "{0}, which names the cluster of this folder, is damaged; if the store beside it is the right one, remove it"
    )]
    Note(PathBuf),
    /// The volumes are another cluster's.
    #[error(
        "{path} holds the volumes of cluster {found}, and its store is cluster {cluster}'s; bring the store of those \
         volumes back, or start with --new-cluster if they are to be left unused"
    )]
    OtherVolumes { path: PathBuf, found: String, cluster: String },
    /// The folder has a store, and another is named.
    #[error(
        "{0} holds a store of its own, and --store names another; move the cluster with `mainstay store export` and \
         `import`, or choose another --data-dir"
    )]
    TwoStores(PathBuf),
    /// The cluster's keys are sealed.
    #[error(
        "the cluster's keys are sealed, and {0} is not there: bring it from a server or a backup that has it, or name it \
         with --seal-key-file; if it is lost for good, stop all servers and start one with --new-keys"
    )]
    NoSeal(PathBuf),
    /// The seal is another cluster's, or damaged.
    #[error(
        "{0} does not open the cluster's keys: it is another cluster's, or damaged; bring it from a server or a backup"
    )]
    OtherSeal(PathBuf),
    /// The cluster was made with something else.
    #[error(
        "this cluster was made with {option} {was}, and this start says {given}: start it with what it was made with \
         ({hint})"
    )]
    Origin { option: &'static str, was: String, given: String, hint: &'static str },
    /// What the cluster was made with is noted in no way that is known here.
    #[error("what this cluster was made with cannot be read ({0}): is it a newer version's?")]
    OriginUnreadable(String),
    /// Keys of the cluster are gone.
    #[error(
        "{folder} has not the keys of the cluster that the store holds ({missing}): bring that folder back from a \
         backup; or start with --new-keys, after which no kubeconfig, no machine that joined and no service account \
         token of before is known any more"
    )]
    NoKeys { folder: PathBuf, missing: String },
    /// The keys are not the cluster's.
    #[error(
        "{0} has the keys of another cluster than the store: bring its own back from a backup; or start with \
         --new-keys, after which no kubeconfig, no machine that joined and no service account token of before is known \
         any more"
    )]
    OtherKeys(PathBuf),
    /// Keys are not replaced under servers that show them.
    #[error("--new-keys: another server of this cluster runs, and has its keys; stop all of them first")]
    KeysInUse,
    /// A file that was named cannot be used.
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    /// A kubeconfig could not be written.
    #[error(transparent)]
    Kubeconfig(#[from] WriteError),
    /// Keys or certificates cannot be used.
    #[error("keys and certificates: {0}")]
    Pki(#[from] PkiError),
    /// TLS refused them.
    #[error("TLS: {0}")]
    Tls(String),
    /// Somebody listens there already.
    #[error("{0} is in use by another program; choose another address with --listen")]
    AddressInUse(SocketAddr),
    /// Listening failed.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    /// The first objects could not be written.
    #[error("the cluster's first objects could not be made: {0}")]
    Bootstrap(String),
}

/// An identity with its kubeconfig.
#[derive(Clone)]
pub struct Credentials {
    /// Certificate and key, PEM.
    pub identity: Identity,
    /// The same as it is at any time: it is made anew before it ends.
    pub rotating: Arc<Rotating>,
    /// The kubeconfig's content: secret.
    pub kubeconfig: String,
    /// Where it was written, with mode 0600.
    pub path: PathBuf,
}

/// A server that answers.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The cluster's own name: 32 hexadecimal digits.
    pub cluster: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// `kubernetes-admin`, who may do everything.
    pub admin: Credentials,
    /// The node of this process; its certificate also serves its kubelet port.
    pub node: Option<Credentials>,
    /// The address of the cluster's DNS server.
    pub dns_address: IpAddr,
    /// The pipeline, for those in the same process.
    pub api: Api,
    /// Notified when a request that took much memory is over: time to give the kernel back what is free.
    pub freed: Arc<tokio::sync::Notify>,
    closing: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    doors: Doors,
}

/// What it takes to answer elsewhere, too.
struct Doors {
    server: Arc<Server>,
    tls: Arc<rustls::ServerConfig>,
    health: Health,
    /// Where pods are told to reach the server, if it has a door of its own for them.
    pods: Option<SocketAddr>,
    open: Mutex<Vec<JoinHandle<()>>>,
}

impl Running {
    /// Stops listening, lets requests under way finish, and closes the store. Containers are not the server's.
    pub async fn shutdown(self) {
        self.closing.send_replace(true);
        let doors = self.doors.open.into_inner().unwrap_or_else(PoisonError::into_inner);
        for task in self.tasks.into_iter().chain(doors) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the server had panicked");
            }
        }
    }
}

impl Running {
    /// Answers pods at their bridge's address, too, where the server was started with one: by the `bridge` alone, and
    /// what runs on this machine's own network. To be called when the node has its network; `address` is the bridge's
    /// own. Does nothing where pods reach the server anyway, or the second time.
    pub async fn serve_pods(&self, address: Ipv4Addr, bridge: &'static str, index: LinkIndex) {
        let Doors { server, tls, health, pods: known, open } = &self.doors;
        let Some(known) = *known else { return };
        let address = SocketAddr::new(address.into(), known.port());
        for (name, link) in [("serving pods", bridge), ("serving this machine", pods::LOOPBACK)] {
            let (server, tls, closing) = (server.clone(), tls.clone(), self.closing.subscribe());
            let serve = move || pods::serve(server.clone(), tls.clone(), address, link, index);
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() < 2 {
                open.push(tokio::spawn(keep_until(health.clone(), name, closing, serve)));
            }
        }
        if address != known {
            // The node was given another range than it was to have; the certificate names its bridge from the next
            // start on.
            let publish = |batch: &mut Batch<'_>| {
                bootstrap::publish_servers(batch, &[], Some(address))?;
                Ok(Outcome { code: 200, body: Body::Value(serde_json::Value::Null) })
            };
            if let Err(status) = self.api.write(false, publish).await {
                tracing::error!(error = status.message, "pods are told of another address than that of their bridge");
            }
        }
    }
}

/// Time and randomness of this machine.
pub fn system_env() -> Env {
    let random = ring::rand::SystemRandom::new();
    Env {
        now: Box::new(jiff::Timestamp::now),
        random: Box::new(move |bytes| {
            use ring::rand::SecureRandom;
            if random.fill(bytes).is_err() {
                // Without randomness every uid and token would be guessable: better none.
                tracing::error!("the system has no randomness");
                std::process::abort();
            }
        }),
    }
}

/// Starts a server: returns when it answers.
pub async fn start(config: ServerConfig) -> Result<Running, StartError> {
    start_with(config, &Files::default()).await
}

/// As [`start`], with what files say. Where the store is in etcd and etcd does not answer, it is waited for.
pub async fn start_with(config: ServerConfig, files: &Files) -> Result<Running, StartError> {
    let mut said: Option<tokio::time::Instant> = None;
    loop {
        match begin::begin(&config, files).await {
            Err(StartError::Silent(why)) => {
                if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                    let members = config.etcd.as_ref().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(members, why, "waiting for etcd to answer");
                    said = Some(tokio::time::Instant::now());
                }
                tokio::time::sleep(ETCD_AGAIN).await;
            }
            begun => return begun,
        }
    }
}

/// The keys: the folder's, or those that the servers of a store in etcd share.
async fn open_pki(
    config: &ServerConfig,
    store: &Store,
    found: &origin::Found,
    env: &Env,
    now: jiff::Timestamp,
) -> Result<Pki, StartError> {
    let folder = config.data_dir.join("pki");
    let opened = |folder: &Path| -> Result<Pki, StartError> {
        if config.new_keys {
            pki::set_half_aside(folder)?;
        } else {
            found.may_make_keys(folder)?;
        }
        let pki = Pki::open(folder, now)?;
        if !config.new_keys {
            found.may_have_ca(folder, &pki.ca_hash()?)?;
        }
        Ok(pki)
    };
    if !store.is_shared() {
        return opened(&folder);
    }
    let seal = config.seal.clone().unwrap_or_else(|| config.data_dir.join(sealed::SEAL));
    pki::make_private_folder(&folder)?;
    if config.new_keys {
        sealed::forget_lost(store, &seal, &folder).await?;
    }
    // Where another server is quicker, theirs are the cluster's.
    while !sealed::unseal(store, &seal, &folder, &sealed::KEYS)? {
        opened(&folder)?.token_key()?;
        sealed::seal(store, env, &seal, &folder, &sealed::KEYS).await?;
    }
    let proxy = folder.join(FRONT_PROXY);
    pki::make_private_folder(&proxy)?;
    while !sealed::unseal(store, &seal, &proxy, &sealed::FRONT_PROXY)? {
        Pki::open(&proxy, now)?;
        sealed::seal(store, env, &seal, &proxy, &sealed::FRONT_PROXY).await?;
    }
    Ok(Pki::open(&folder, now)?)
}

/// Keeps the Secrets that hold tokens of service accounts.
async fn fill_token_secrets(api: Api, pki: Arc<Pki>, stop: watch::Receiver<bool>) {
    match pki.token_key().map(|key| Tokens::new(key.serialized_der())) {
        Ok(Some(tokens)) => accounts::run(api, tokens, stop).await,
        Ok(None) => tracing::error!("the key of service account tokens cannot be read"),
        Err(error) => tracing::error!(%error, "the key of service account tokens cannot be read"),
    }
}

/// Why the first objects were not made.
fn not_begun(status: mainstay_api::Status) -> StartError {
    // Nobody is served yet, so nothing else is answered like that.
    if matches!(status.code, 503 | 504) {
        StartError::Silent(status.message)
    } else {
        StartError::Bootstrap(status.message)
    }
}

/// The Services' range, the pods', and the DNS server's address.
fn ranges(config: &ServerConfig) -> Result<(Cidr, Cidr, IpAddr), StartError> {
    let parse = |option, text: &str| {
        let cidr = Cidr::parse(text).filter(|cidr| cidr.len() >= 32);
        cidr.ok_or_else(|| StartError::Cidr { option, value: text.to_owned() })
    };
    let service = parse("--service-cidr", &config.service_cidr)?;
    let cluster = parse("--cluster-cidr", &config.cluster_cidr)?;
    let dns = service
        .nth(bootstrap::DNS_PLACE)
        .ok_or_else(|| StartError::Cidr { option: "--service-cidr", value: config.service_cidr.clone() })?;
    Ok((service, cluster, dns.into()))
}

/// Tries again for a while what a former instance may still hold.
async fn handed_over<T>(mut attempt: impl AsyncFnMut() -> Result<T, StartError>) -> Result<T, StartError> {
    let deadline = tokio::time::Instant::now() + HANDOVER;
    loop {
        match attempt().await {
            Err(StartError::InUse(_) | StartError::AddressInUse(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            done => return done,
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::Listen { address, source },
    })
}

/// An address that a client on this machine can use: a wildcard is no destination.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), addr.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), addr.port()),
        _ => addr,
    }
}

/// Every name that the server is called by.
fn serving_names(config: &ServerConfig, service_cidr: &Cidr, advertise: IpAddr, listen: IpAddr) -> Vec<String> {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    let first = service_cidr.nth(bootstrap::API_PLACE).map(IpAddr::from);
    // On all addresses, also of IPv6: then clients of this machine come by that.
    let local = Some(reachable(SocketAddr::new(listen, 0)).ip());
    let all = [Some(IpAddr::from([127, 0, 0, 1])), first, Some(advertise), Some(listen), local];
    for address in all.into_iter().flatten() {
        let text = address.to_string();
        if !address.is_unspecified() && !names.contains(&text) {
            names.push(text);
        }
    }
    names
}

fn roots(pki: &Pki) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).map_err(|_| PkiError::Pem)?;
    roots.add(ca).map_err(|error| StartError::Tls(error.to_string()))?;
    Ok(roots)
}

fn server_tls(pki: &Pki, serving: Arc<Rotating>) -> Result<rustls::ServerConfig, StartError> {
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Without a certificate a client may still have a token, or ask for what is public.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| tls(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_tls(pki: &Pki, identity: Arc<Rotating>) -> Result<rustls::ClientConfig, StartError> {
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_root_certificates(roots(pki)?)
        .with_client_cert_resolver(identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_former_instance_still_holds_is_asked_for_again_and_nothing_else_is() {
        let held = |tries| match tries {
            1 => Err(StartError::InUse(PathBuf::new())),
            2 => Err(StartError::AddressInUse(SocketAddr::from(([127, 0, 0, 1], 1)))),
            tries => Ok(tries),
        };
        let mut tries = 0;
        let let_go = handed_over(async || {
            tries += 1;
            held(tries)
        });
        assert_eq!(let_go.await.ok(), Some(3));
        let mut tries = 0;
        let wrong = handed_over(async || -> Result<(), _> {
            tries += 1;
            Err(StartError::KeysInUse)
        });
        assert!(matches!(wrong.await, Err(StartError::KeysInUse)));
        assert_eq!(tries, 1);
    }

    #[test]
    fn the_server_is_called_by_the_address_that_its_kubeconfigs_name() {
        let config = |listen: &str| ServerConfig {
            data_dir: PathBuf::new(),
            listen: listen.parse().expect("an address"),
            advertise: None,
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_cidr: "10.244.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            pod_network: "vxlan".to_owned(),
            node: None,
            etcd: None,
            seal: None,
            cluster: identity::Expected::default(),
            new_keys: false,
        };
        for listen in ["0.0.0.0:6443", "[::]:6443", "[::1]:6443", "192.0.2.1:6443"] {
            let config = config(listen);
            let (services, ..) = ranges(&config).expect("ranges");
            let names = serving_names(&config, &services, [192, 0, 2, 1].into(), config.listen.ip());
            assert!(names.contains(&reachable(config.listen).ip().to_string()), "{listen}: {names:?}");
        }
    }
}
