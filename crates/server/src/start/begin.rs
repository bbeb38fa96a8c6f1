//! One start, step by step: what there is, what the server shows, the first objects, and what runs from then on.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mainstay_logic::measured::Measured;
use mainstay_store::Store;
use mainstay_tasks::Health;
use mainstay_tasks::keep::keep_until;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{
    Credentials, Doors, FRONT_PROXY, Files, Running, ServerConfig, StartError, client_tls, fill_token_secrets,
    handed_over, listen, not_begun, open_pki, ranges, reachable, server_tls, serving_names, system_env,
};
use crate::aggregation::{Services, availability};
use crate::api::{Allocated, Api, Batch, Cidr, Env, Served, Settings, Tokens};
use crate::authorize::Authorizer;
use crate::backends::Slices;
use crate::credentials::{Issuer, Open};
use crate::dynamic::Hooks;
use crate::encryption::Encryption;
use crate::fairness::Fairness;
use crate::http::{Bounds, Counters, Hashes, Server, accept};
use crate::instruments::{Controllers, Instruments};
use crate::kubeconfig::{Refused, WriteError};
use crate::leadership::Candidate;
use crate::metrics::Collector;
use crate::pki::{self, Durable, Pki, PkiError};
use crate::presence::Kubeconfigs;
use crate::renewal::{ADMIN, Issued, Renewal, Source};
use crate::{bootstrap, driver, identity, kubeconfig, metrics, origin, presence};

/// A start that etcd's silence ends.
pub(super) async fn begin(config: &ServerConfig, files: &Files) -> Result<Running, StartError> {
    let (authenticators, audit) = files.read()?;
    let encryption = encryption(config, files).await?;
    let ground = Ground::open(config, encryption.clone()).await?;
    let shown = Shown::make(config, files, &ground)?;
    let api = ground.api();
    let extensions = first_objects(config, &ground, &shown, &api).await?;
    let fairness = Fairness::new(&api.store);
    let authorizer = Authorizer::new(&api.store).map_err(|error| StartError::Bootstrap(error.to_string()))?;
    let authorizer = Arc::new(authorizer);
    let (closing, is_closing) = watch::channel(false);
    let (_, ready) = watch::channel(true);
    let (noted, undecodable) = watch::channel(Vec::new());
    let health = Health::default();
    let instruments = Arc::new(Instruments::default());
    let counts = instruments.controllers.clone();
    let bounds = Bounds::new();
    let freed = bounds.freed.clone();
    let kubelet_tls = Arc::new(client_tls(&ground.pki, shown.renewal.kubelet_client())?);
    let metrics = Arc::new(Collector::new(kubelet_tls.clone()));
    let kubeconfigs = shown.kubeconfigs(files, &ground);
    let Ground { advertise, addr, cluster, dns_address, pki, listener, .. } = ground;
    let Shown { renewal, tls, tokens, pods, names, admin, node, .. } = shown;
    let server = Arc::new(Server {
        api: api.clone(),
        advertise,
        authenticators,
        fairness,
        audit,
        authorizer: authorizer.clone(),
        tokens,
        kubelet_tls,
        extensions: extensions.clone(),
        metrics: metrics.clone(),
        ready,
        undecodable,
        closing: is_closing,
        health: health.clone(),
        openapi: Hashes::default(),
        bounds,
        counters: Counters::default(),
        instruments,
        encryption,
        store_file: config.data_dir.join(identity::STORE).join(mainstay_store::FILE),
    });
    let ca_pem = pki.ca_pem().to_owned();
    let (measured, seen) = watch::channel(Arc::default());
    let led = Led { authorizer, pki, names, advertise, metrics, extensions, measured, seen, noted, counts };
    let tasks = Tasks { server: &server, renewal, kubeconfigs, data_dir: &config.data_dir, addr };
    let tasks = tasks.begin(Arc::new(listener), &tls, led);
    let doors = Doors { server, tls, health, pods, open: Mutex::default() };
    Ok(Running { addr, cluster, ca_pem, admin, node, dns_address, api, freed, closing, tasks, doors })
}

/// How rows are sealed on the disk, where a file says so.
async fn encryption(config: &ServerConfig, files: &Files) -> Result<Option<Arc<Encryption>>, StartError> {
    let encryption = files.encryption()?;
    if let (Some(path), true) = (&files.encryption, config.etcd.is_some()) {
        let why = "only the embedded store encrypts; with --store etcd=… nothing would be encrypted".to_owned();
        return Err(StartError::File { path: path.clone(), why });
    }
    if let Some(encryption) = &encryption {
        // Who is away is said, and asked again later.
        encryption.check().await;
    }
    Ok(encryption)
}

/// What a start finds and takes: the folder, its store, the address, the keys.
struct Ground {
    env: Arc<Env>,
    now: jiff::Timestamp,
    service_cidr: Cidr,
    cluster_cidr: Cidr,
    dns_address: IpAddr,
    store: Store,
    /// The cluster's name.
    cluster: String,
    made_with: origin::Origin,
    listener: TcpListener,
    /// Where it listens, and where it says that it does.
    addr: SocketAddr,
    advertise: SocketAddr,
    pki: Arc<Pki>,
}

impl Ground {
    async fn open(config: &ServerConfig, encryption: Option<Arc<Encryption>>) -> Result<Self, StartError> {
        let seal = encryption.map(|encryption| encryption as Arc<dyn mainstay_store::Seal>);
        let (service_cidr, cluster_cidr, dns_address) = ranges(config)?;
        let env = system_env();
        let now = (env.now)();
        pki::make_private_folder(&config.data_dir).map_err(|error| match error {
            PkiError::File { path, source } => StartError::DataDir { path, source },
            other => StartError::Pki(other),
        })?;
        // The store comes first: whoever has its lock owns the folder.
        let mut id = [0; 16];
        (env.random)(&mut id);
        let open = async || {
            let (id, config, seal) = (u128::from_be_bytes(id), config.clone(), seal.clone());
            let open = move || identity::open_store(&config.data_dir, &config.cluster, id, seal, config.etcd.as_ref());
            // It blocks, for seconds where etcd does not answer.
            let opened = tokio::task::spawn_blocking(open).await;
            opened.unwrap_or_else(|error| Err(StartError::Bootstrap(error.to_string())))
        };
        let store = handed_over(open).await?;
        let cluster = store.cluster().map(|cluster| cluster.to_string()).unwrap_or_default();
        let mut made_with = origin::Origin {
            service_cidr: service_cidr.to_string(),
            cluster_cidr: cluster_cidr.to_string(),
            cluster_domain: config.cluster_domain.clone(),
            ca: String::new(),
        };
        let found = origin::check(&store, &made_with)?;
        let listener = handed_over(async || listen(config.listen).await).await?;
        let addr = listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let advertise = SocketAddr::new(config.advertise.unwrap_or(addr.ip()), addr.port());
        let pki = Arc::new(open_pki(config, &store, &found, &env, now).await?);
        made_with.ca = pki.ca_hash()?;
        Ok(Self {
            env: Arc::new(env),
            now,
            service_cidr,
            cluster_cidr,
            dns_address,
            store,
            cluster,
            made_with,
            listener,
            addr,
            advertise,
            pki,
        })
    }

    /// The pipeline on that store.
    fn api(&self) -> Api {
        let (service_cidr, cluster_cidr) = (self.service_cidr, self.cluster_cidr);
        let settings = Settings { service_cidr, cluster_cidr, ca_pem: self.pki.ca_pem().to_owned() };
        let store = self.store.clone();
        Api {
            allocated: Allocated::of(&store),
            hooks: Hooks::of(&store),
            requests: Open::of(&store),
            converters: Default::default(),
            slices: Slices::of(&store),
            served: Served::of(&store),
            store,
            env: self.env.clone(),
            settings: Arc::new(settings),
            term: None,
        }
    }

    /// Writes the kubeconfig of a user into the data folder.
    fn credentials(&self, data_dir: &Path, issued: &Issued, user: &str, file: &str) -> Result<Credentials, StartError> {
        let (identity, rotating) = (issued.identity(), issued.rotating.clone());
        let kubeconfig = pki::kubeconfig(&[reachable(self.addr).to_string()], self.pki.ca_pem(), user, &identity);
        let path = data_dir.join(file);
        match kubeconfig::write(&path, &kubeconfig, Durable::No) {
            // It was torn when the machine crashed.
            Err(WriteError::Refused { why: Refused::Foreign, .. }) => {
                pki::replace_private(&path, kubeconfig.as_bytes(), Durable::No)?;
            }
            Err(error @ WriteError::Refused { .. }) => tracing::warn!(%error, "the kubeconfig stays as it is"),
            written => written?,
        }
        Ok(Credentials { identity, rotating, kubeconfig, path })
    }
}

/// What the server shows of itself, and gives its administrator and its node.
struct Shown {
    /// Where pods are told to reach it, if it has a door of its own for them.
    pods: Option<SocketAddr>,
    /// Every name that it is called by.
    names: Vec<String>,
    renewal: Arc<Renewal>,
    tls: Arc<rustls::ServerConfig>,
    tokens: Tokens,
    admin: Credentials,
    node: Option<Credentials>,
    node_user: String,
}

impl Shown {
    fn make(config: &ServerConfig, files: &Files, ground: &Ground) -> Result<Self, StartError> {
        let Ground { addr, advertise, pki, now, .. } = ground;
        let is_alone = addr.ip().is_loopback() && advertise.ip().is_loopback();
        let pods = config.node.as_ref().and_then(|node| node.pods).filter(|_| is_alone);
        let pods = pods.map(|address| SocketAddr::new(address.into(), addr.port()));
        let mut names = serving_names(config, &ground.service_cidr, advertise.ip(), addr.ip());
        names.extend(pods.map(|pods| pods.ip().to_string()));
        let node = config.node.as_ref().map(|node| {
            let addresses = node.addresses.iter().map(IpAddr::to_string);
            let others = [node.name.clone(), "127.0.0.1".to_owned(), "localhost".to_owned()];
            (node.name.clone(), addresses.chain(others).collect())
        });
        let proxy = Pki::open(&config.data_dir.join("pki").join(FRONT_PROXY), *now)?;
        let renewal = Arc::new(Renewal::new(Source { pki: pki.clone(), proxy, names: names.clone(), node }, *now)?);
        let tls = Arc::new(server_tls(pki, renewal.serving())?);
        let tokens = Tokens::new(pki.token_key()?.serialized_der()).ok_or(PkiError::Pem)?;
        let admin = ground.credentials(&config.data_dir, &renewal.admin(), ADMIN, "kubeconfig")?;
        if let Some(path) = &files.kubeconfig {
            kubeconfig::write(path, &admin.kubeconfig, Durable::No)?;
        }
        let node_user = config.node.as_ref().map(|node| format!("system:node:{}", node.name)).unwrap_or_default();
        let node = |issued: Arc<Issued>| ground.credentials(&config.data_dir, &issued, &node_user, "node.kubeconfig");
        let node = renewal.node().map(node).transpose()?;
        Ok(Self { pods, names, renewal, tls, tokens, admin, node, node_user })
    }

    /// The kubeconfigs as they were written; from now on they follow servers and certificates.
    fn kubeconfigs(&self, files: &Files, ground: &Ground) -> Kubeconfigs {
        let (renewal, admin) = (&self.renewal, |path: &PathBuf| (path.clone(), ADMIN.to_owned(), self.renewal.admin()));
        let mut written = vec![admin(&self.admin.path)];
        written.extend(files.kubeconfig.iter().map(admin));
        let node = self.node.iter().zip(renewal.node());
        written.extend(node.map(|(node, issued)| (node.path.clone(), self.node_user.clone(), issued)));
        Kubeconfigs::new(ground.pki.ca_pem().to_owned(), written, vec![reachable(ground.addr).to_string()])
    }
}

/// Writes what a cluster has from the beginning, and what this start says of it.
async fn first_objects(
    config: &ServerConfig,
    ground: &Ground,
    shown: &Shown,
    api: &Api,
) -> Result<Services, StartError> {
    let about = bootstrap::About {
        cluster: ground.cluster.clone(),
        domain: config.cluster_domain.clone(),
        pod_network: config.pod_network.clone(),
        is_shared: api.store.is_shared(),
        pods: shown.pods,
    };
    origin::note(&api.store, &ground.made_with).await?;
    let first = |batch: &mut Batch<'_>| bootstrap::bootstrap(batch, ground.advertise, &about);
    bootstrap::write_all(api, first).await.map_err(not_begun)?;
    let extensions = Services::new(&api.store, shown.renewal.front_proxy());
    let (ca, proxy_ca) = (ground.pki.ca_pem(), shown.renewal.proxy_ca_pem());
    let authorities = |batch: &mut Batch<'_>| bootstrap::publish_authorities(batch, ca, proxy_ca);
    bootstrap::write_all(api, authorities).await.map_err(not_begun)?;
    Ok(extensions)
}

/// What one server of a cluster does for all of them, while it leads.
#[derive(Clone)]
struct Led {
    authorizer: Arc<Authorizer>,
    pki: Arc<Pki>,
    names: Vec<String>,
    advertise: SocketAddr,
    metrics: Arc<Collector>,
    extensions: Services,
    measured: watch::Sender<Arc<Measured>>,
    seen: watch::Receiver<Arc<Measured>>,
    noted: watch::Sender<Vec<String>>,
    counts: Arc<Controllers>,
}

impl Led {
    async fn run(self, api: Api, stop: watch::Receiver<bool>) {
        let Self { authorizer, pki, names, advertise, metrics, extensions, measured, seen, noted, counts } = self;
        let issuer = Arc::new(Issuer::new(api.clone(), authorizer, pki.clone(), names));
        let controllers = mainstay_logic::controllers::CONTROLLERS;
        // They end together, and whoever owns them begins them anew.
        tokio::select! {
            () = issuer.run(stop.clone()) => {}
            () = fill_token_secrets(api.clone(), pki, stop.clone()) => {}
            () = presence::publish(api.clone(), advertise, stop.clone()) => {}
            () = metrics::feed::run(api.clone(), metrics, extensions, measured, stop.clone()) => {}
            () = driver::run(api, controllers, noted, counts, seen, stop) => {}
        }
    }
}

/// What the server's tasks work with.
struct Tasks<'a> {
    server: &'a Arc<Server>,
    renewal: Arc<Renewal>,
    kubeconfigs: Kubeconfigs,
    data_dir: &'a Path,
    addr: SocketAddr,
}

impl Tasks<'_> {
    /// Begins them, each with an owner that begins it anew.
    fn begin(self, listener: Arc<TcpListener>, tls: &Arc<rustls::ServerConfig>, led: Led) -> Vec<JoinHandle<()>> {
        let Self { server, renewal, kubeconfigs, data_dir, addr } = self;
        let Server { api, advertise, health, closing: is_closing, .. } = &**server;
        let advertise = *advertise;
        let candidate = Candidate { api: api.clone(), id: presence::id(advertise) };
        let encryption = server.encryption.clone().filter(|encryption| encryption.has_plugins());
        let plugins = encryption.map(|encryption| {
            let (store, is_closing) = (api.store.clone(), is_closing.clone());
            tokio::spawn(keep_until(health.clone(), "kms", is_closing.clone(), move || {
                encryption.clone().keep(store.clone(), is_closing.clone())
            }))
        });
        let mut tasks = vec![
            tokio::spawn(keep_until(health.clone(), "note", is_closing.clone(), {
                let (store, data_dir, is_closing) = (api.store.clone(), data_dir.to_owned(), is_closing.clone());
                move || identity::keep_noted(store.clone(), data_dir.clone(), is_closing.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "certificates", is_closing.clone(), {
                let (env, files, is_closing) = (api.env.clone(), kubeconfigs.clone(), is_closing.clone());
                move || renewal.clone().run(env.clone(), files.clone(), is_closing.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "servers", is_closing.clone(), {
                let (api, is_closing, files) = (api.clone(), is_closing.clone(), kubeconfigs);
                move || presence::follow(api.clone(), reachable(addr), advertise, files.clone(), is_closing.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "serving", is_closing.clone(), {
                let (server, tls) = (server.clone(), tls.clone());
                move || accept(server.clone(), listener.clone(), tls.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "aggregation", is_closing.clone(), {
                let (api, extensions, is_closing) = (api.clone(), server.extensions.clone(), is_closing.clone());
                move || availability::run(api.clone(), extensions.clone(), is_closing.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "presence", is_closing.clone(), {
                let (api, is_closing) = (api.clone(), is_closing.clone());
                move || presence::keep(api.clone(), advertise, is_closing.clone())
            })),
            tokio::spawn(keep_until(health.clone(), "controllers", is_closing.clone(), {
                let is_closing = is_closing.clone();
                move || {
                    let led = led.clone();
                    candidate.clone().run(is_closing.clone(), move |api, stop| led.clone().run(api, stop))
                }
            })),
        ];
        tasks.extend(plugins);
        tasks
    }
}
