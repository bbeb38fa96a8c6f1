//! How a machine becomes a node of a cluster that runs elsewhere, and stays one.
//!
//! With a bootstrap token and the hash of the CA it comes to know the cluster ([`discovery`]), asks for a client
//! certificate ([`request`]), makes its Node and has its range of pod addresses in the answer ([`claim`]), reads what
//! all nodes have in common (a ConfigMap), and asks for its server's certificate. All of it is kept ([`kept`]): from
//! then on it starts without a token, and even while no server answers. Both certificates are replaced in time
//! ([`rotation`]).

mod claim;
mod discovery;
mod kept;
mod request;
mod rotation;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_api::kinds;
use mainstay_api::object::text;
use mainstay_client::{Client, Config, ConfigError, Error, Informer, ListOptions, Notice, Rotating};
use mainstay_logic::kubelet::hold::HELD_BY;
use mainstay_logic::nodes::LEASES;
use serde_json::Value;

use crate::kubelet::lease::Hold;

pub use claim::{claim, claim_or_other};
pub use discovery::{hash_of, parse_hash};
pub use kept::{Kept, Member, OwnNode, Settings, keep_own_node, known_machine, lock, machine, own_node};
pub use mainstay_logic::nodes::MACHINE;
pub use rotation::{Certificates, keep_fresh};

/// The ConfigMap in `kube-system` of what all nodes have in common.
const SETTINGS: &str = "mainstay-cluster";
/// How long a node that is known to the cluster waits for a server before it starts with what it has kept.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a machine joins with.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// Where all is kept: `<data>/node`.
    pub data_dir: PathBuf,
    /// `host:port` of a server, the token, and the SHA-256 of the CA's public key: for the first time.
    pub invitation: Option<Invitation>,
    /// The Node's name; that which it had, or the host's.
    pub node_name: Option<String>,
    /// The host's name.
    pub host_name: String,
    /// The address by which others reach this machine; that by which it reaches the server where it is not given.
    pub node_ip: Option<Ipv4Addr>,
    /// How long the node's Lease is, in seconds; what it was, where it is not given.
    pub lease_seconds: Option<u32>,
    /// The run of this node elsewhere, of which a person says that all that it ran has ended; empty for none.
    pub take_over: String,
}

/// What `mainstay token create` prints.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// `host:port`
    pub server: String,
    /// `<id>.<secret>`
    pub token: String,
    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    pub ca_hash: [u8; 32],
}

/// A machine that is a node of its cluster.
pub struct Joined {
    /// As the node.
    pub client: Client,
    /// What is known of cluster and node.
    pub member: Member,
    /// The certificates, which [`keep_fresh`] replaces in time.
    pub certificates: Certificates,
    /// Which machine this is.
    pub machine: String,
    /// A server has answered; else the node goes on as it was.
    pub is_reached: bool,
}

/// Why a machine is no node. Each says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0} is in use by another mainstay; stop that one, or choose another --data-dir")]
    InUse(PathBuf),
    #[error("{0} cannot be read; `mainstay leave --force`, then join again with a token")]
    Damaged(PathBuf),
    #[error(
        "this machine is no node of a cluster yet: run what `mainstay token create` prints on the server, \
         `mainstay join https://SERVER:6443 --token … --ca-hash sha256:…`"
    )]
    NotInvited,
    #[error("this machine is node {0}; to join under another name, `mainstay leave` first")]
    OtherName(String),
    #[error(
        "this machine is node {0} of another cluster than --ca-hash says; to join that one, `mainstay leave` first"
    )]
    OtherCluster(String),
    #[error("{server} does not answer as a cluster does: {why}")]
    Discovery { server: String, why: String },
    #[error("the CA of {0} has another hash than --ca-hash says: it is not the cluster that the token is for")]
    OtherCa(String),
    #[error("the token is not known to the cluster, or its time is over; make one with `mainstay token create`")]
    Token,
    #[error("{what}: {source}")]
    Api { what: &'static str, source: Error },
    #[error(
        "the certificate request {0} was not approved; a person may do it with `kubectl certificate approve {0}`, then \
         join again"
    )]
    NotApproved(String),
    #[error("the certificate request {name} was refused: {why}")]
    Refused { name: String, why: String },
    #[error(
        "another machine is node {0} already; choose another --node-name, or `kubectl delete node {0}` if that machine \
         is gone for good"
    )]
    NameTaken(String),
    #[error("{0} cannot be read; remove it, and start with the --node-name that this machine had")]
    OwnDamaged(PathBuf),
    #[error(
        "another node has {0} by now, and pods of this machine have addresses of it; `mainstay down` stops them, then \
         start again"
    )]
    RangeTaken(String),
    #[error("the cluster has no range of pod addresses left for node {0}")]
    NoRange(String),
    #[error("this node was last heard of from another machine or folder")]
    Elsewhere,
    #[error("this node's certificate has expired; join again with a token")]
    Expired,
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no address of this machine leads to {0}; give one with --node-ip")]
    NoAddress(String),
}

fn asking(what: &'static str) -> impl FnOnce(Error) -> JoinError {
    move |source| JoinError::Api { what, source }
}

/// Joins the cluster, or comes back as the node that this machine is.
///
/// # Errors
/// See [`JoinError`]. A node that is known starts without its server where none answers.
pub async fn join(config: &JoinConfig) -> Result<Joined, JoinError> {
    let kept = Kept::open(&config.data_dir)?;
    match kept.read()? {
        Some(member) if config.node_name.as_ref().is_some_and(|name| *name != member.node) => {
            Err(JoinError::OtherName(member.node))
        }
        Some(member) => come_back(config, &kept, member).await,
        None => first_time(config, &kept).await,
    }
}

/// The node's own user.
fn user(node: &str) -> String {
    format!("system:node:{node}")
}

fn client_of(member: &Member, identity: Arc<Rotating>) -> Result<Client, ConfigError> {
    Client::new(Config {
        server: member.server.clone(),
        ca_pem: member.ca_pem.clone(),
        rotating: Some(identity),
        ..Config::default()
    })
}

async fn first_time(config: &JoinConfig, kept: &Kept) -> Result<Joined, JoinError> {
    let Some(invitation) = &config.invitation else { return Err(JoinError::NotInvited) };
    let ca_pem = discovery::discover(invitation).await?;
    let node = config.node_name.as_ref().unwrap_or(&config.host_name);
    let address = match config.node_ip {
        Some(address) => address,
        None => towards(&invitation.server).ok_or_else(|| JoinError::NoAddress(invitation.server.clone()))?,
    };
    let machine = machine(&config.data_dir)?;
    let pair = introduce(kept, invitation, &ca_pem, node).await?;
    let identity = Rotating::new(&pair.certificate, &pair.key)?;
    let mut member = Member {
        server: invitation.server.clone(),
        ca_pem,
        node: node.clone(),
        address,
        is_address_given: Some(config.node_ip.is_some()),
        pod_cidr: String::new(),
        lease_seconds: config.lease_seconds,
        settings: Settings::default(),
    };
    let client = client_of(&member, identity.clone())?;
    member.settings = settings(&client).await?;
    member.pod_cidr = claim(&client, node, &machine, address, None).await?;
    let pair = request::serving(&client, kept, node, address).await?;
    kept.write_serving(&pair)?;
    let serving = Rotating::new(&pair.certificate, &pair.key)?;
    kept.write(&member)?;
    Ok(Joined { client, member, certificates: Certificates { identity, serving }, machine, is_reached: true })
}

/// A client certificate by the token.
async fn introduce(kept: &Kept, invitation: &Invitation, ca_pem: &str, node: &str) -> Result<kept::Pair, JoinError> {
    let stranger = Client::new(Config {
        server: invitation.server.clone(),
        ca_pem: ca_pem.to_owned(),
        token: Some(invitation.token.clone()),
        ..Config::default()
    })?;
    let pair = request::client(&stranger, kept, node).await?;
    kept.write_client(&pair)?;
    Ok(pair)
}

/// As who it was; what has changed meanwhile is asked of the server, if one answers.
async fn come_back(config: &JoinConfig, kept: &Kept, mut member: Member) -> Result<Joined, JoinError> {
    if config.invitation.as_ref().is_some_and(|invitation| !discovery::is_of(&member.ca_pem, invitation)) {
        return Err(JoinError::OtherCluster(member.node));
    }
    let machine = machine(&config.data_dir)?;
    let pair = kept.client()?.ok_or_else(|| JoinError::Damaged(kept.folder().to_owned()))?;
    let identity = Rotating::new(&pair.certificate, &pair.key)?;
    if rotation::seconds_left(&identity, Timestamp::now()) <= 0 {
        let Some(invitation) = &config.invitation else { return Err(JoinError::Expired) };
        let pair = introduce(kept, invitation, &member.ca_pem, &member.node).await?;
        identity.replace(&pair.certificate, &pair.key)?;
    }
    if let Some(invitation) = &config.invitation {
        // The server may have moved; it is the same cluster's, or its certificate would not do.
        member.server.clone_from(&invitation.server);
    }
    settle_address(config, &mut member);
    member.lease_seconds = config.lease_seconds.or(member.lease_seconds);
    let client = client_of(&member, identity.clone())?;
    let kept_serving = kept.serving()?;
    let is_good = |serving: &Rotating| {
        rotation::seconds_left(serving, Timestamp::now()) > 0 && rotation::carries(serving, IpAddr::V4(member.address))
    };
    let mut serving = match &kept_serving {
        Some(pair) => Some(Rotating::new(&pair.certificate, &pair.key)?),
        None => None,
    };
    let mut is_reached = false;
    let hold = Hold::new(&machine, Some(&config.data_dir), &config.take_over);
    let asked = tokio::time::timeout(PATIENCE, async {
        let (node, address, wanted) = (&member.node, member.address, &member.pod_cidr);
        if is_held_elsewhere(&client, node, &hold).await? {
            // Its address stays what that one says.
            return Err(JoinError::Elsewhere);
        }
        let range = claim_or_other(&client, &config.data_dir, node, &machine, address, wanted).await?;
        let settings = settings(&client).await?;
        Ok::<_, JoinError>((range, settings))
    });
    match asked.await {
        Ok(Ok((range, settings))) => {
            (member.pod_cidr, member.settings, is_reached) = (range, settings, true);
            if !serving.as_ref().is_some_and(|serving| is_good(serving)) {
                let pair = request::serving(&client, kept, &member.node, member.address).await?;
                kept.write_serving(&pair)?;
                serving = Some(Rotating::new(&pair.certificate, &pair.key)?);
            }
            kept.write(&member)?;
        }
        Ok(Err(error)) if !error.is_silence() => return Err(error),
        Ok(Err(error)) => tracing::warn!(server = member.server, %error, "this node goes on as it was"),
        Err(_) => tracing::warn!(server = member.server, "no server answers; this node goes on as it was"),
    }
    let serving = serving.ok_or_else(|| JoinError::Damaged(kept.folder().to_owned()))?;
    Ok(Joined { client, member, certificates: Certificates { identity, serving }, machine, is_reached })
}

/// Whether the node is another copy's of its folder, which may live.
async fn is_held_elsewhere(client: &Client, node: &str, hold: &Hold) -> Result<bool, JoinError> {
    match client.get(&kinds::LEASE, LEASES, node).await {
        Ok(lease) => Ok(hold.is_of_another(text(&lease, &["metadata", "annotations", HELD_BY]))),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(JoinError::Api { what: "reading this node's Lease", source: error }),
    }
}

/// The address that was given, now or before, or the one by which this machine reaches its server by now.
fn settle_address(config: &JoinConfig, member: &mut Member) {
    if let Some(address) = config.node_ip {
        (member.address, member.is_address_given) = (address, Some(true));
    }
    // What an older agent kept may have been given: it is as good as given while it is on a link.
    let is_fixed = member.is_address_given.unwrap_or_else(|| is_own(member.address));
    if is_fixed {
        if !is_own(member.address) {
            tracing::error!(address = %member.address, "no link of this machine has its address: nobody reaches this \
                node unless that is translated; give another one with --node-ip");
        }
        return;
    }
    let first = member.server.split(',').next().unwrap_or_default();
    if let Some(found) = towards(first).filter(|found| *found != member.address) {
        tracing::warn!(before = %member.address, now = %found, "this machine's address has changed");
        member.address = found;
    }
}

/// Whether a link of this machine has the address. A socket is bound for it, which sends nothing.
fn is_own(address: Ipv4Addr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

impl JoinError {
    /// Nobody answered; it says nothing about this node, nor does it that another one of its folder lives, perhaps:
    /// the kubelet says what a person may do. Somebody whose certificate another CA has signed has answered: it is no
    /// server of this cluster's.
    fn is_silence(&self) -> bool {
        match self {
            Self::Api { source, .. } if is_of_other_ca(source) => false,
            Self::Api { source, .. } => source.code().is_none_or(|code| code >= 500 || code == 429),
            Self::Elsewhere => true,
            _ => false,
        }
    }
}

/// Somebody answered, with a certificate that another CA than the cluster's has signed.
fn is_of_other_ca(error: &Error) -> bool {
    // All clusters' CAs have one name: rustls finds the signature wrong.
    let words = ["UnknownIssuer", "BadSignature"];
    matches!(error, Error::Connect { reason, .. } if words.iter().any(|word| reason.contains(word)))
}

/// What all nodes of the cluster have in common.
async fn settings(client: &Client) -> Result<Settings, JoinError> {
    let map = client.get(&kinds::CONFIG_MAP, "kube-system", SETTINGS).await;
    Ok(settings_of(&map.map_err(asking("reading the cluster's settings"))?))
}

fn settings_of(map: &Value) -> Settings {
    let text = |key: &str| map["data"][key].as_str().unwrap_or_default().to_owned();
    Settings {
        cluster: text("cluster"),
        cluster_cidr: text("clusterCIDR"),
        service_cidr: text("serviceCIDR"),
        cluster_dns: text("clusterDNS").parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
        cluster_domain: text("clusterDomain"),
        pod_network: text("podNetwork"),
        servers: text("servers"),
        fencing: text("fencing"),
    }
}

/// Follows which servers there are, until dropped; kept for the next start.
pub async fn follow_servers(client: Client, data_dir: PathBuf, mut member: Member) {
    let options = ListOptions { field_selector: format!("metadata.name={SETTINGS}"), ..ListOptions::default() };
    let mut settings = Informer::new(client.clone(), &kinds::CONFIG_MAP, "kube-system", options);
    loop {
        let Notice::Put(_, map) = settings.next().await else { continue };
        let servers = from(&settings_of(&map).servers, &member.node);
        if servers.is_empty() || servers == member.server {
            continue;
        }
        client.set_servers(&servers);
        member.server = servers;
        if let Err(error) = Kept::open(&data_dir).and_then(|kept| kept.write(&member)) {
            tracing::warn!(%error, "the list of servers could not be kept");
        }
    }
}

/// The same list, from another server on for each node, so that they are spread over all.
fn from(servers: &str, node: &str) -> String {
    let mut all: Vec<&str> = servers.split(',').filter(|server| !server.is_empty()).collect();
    let sum = node.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let first = sum % all.len().max(1);
    all.rotate_left(first);
    all.join(",")
}

/// For the node of a server's own machine: follows which servers there are besides, until dropped. Its own stays the
/// first.
pub async fn follow_other_servers(client: Client) {
    let own = client.config().server.clone();
    let options = ListOptions { field_selector: format!("metadata.name={SETTINGS}"), ..ListOptions::default() };
    let mut settings = Informer::new(client.clone(), &kinds::CONFIG_MAP, "kube-system", options);
    loop {
        let Notice::Put(_, map) = settings.next().await else { continue };
        let servers = settings_of(&map).servers;
        let others = servers.split(',').filter(|server| !server.is_empty() && *server != own);
        client.set_servers(&std::iter::once(own.as_str()).chain(others).collect::<Vec<_>>().join(","));
    }
}

/// The address from which this machine reaches a server. A UDP socket is connected for it, which sends nothing.
fn towards(server: &str) -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(server).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}

/// Who this machine is to its cluster, for commands beside the agent.
///
/// # Errors
/// [`JoinError::NotInvited`] where it is no node.
pub fn member(data_dir: &Path) -> Result<(Client, Member), JoinError> {
    let kept = Kept::open(data_dir)?;
    let member = kept.read()?.ok_or(JoinError::NotInvited)?;
    let pair = kept.client()?.ok_or_else(|| JoinError::Damaged(kept.folder().to_owned()))?;
    let client = client_of(&member, Rotating::new(&pair.certificate, &pair.key)?)?;
    Ok((client, member))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(address: Ipv4Addr, is_address_given: Option<bool>) -> Member {
        Member {
            server: "127.0.0.1:6443".to_owned(),
            ca_pem: String::new(),
            node: "n".to_owned(),
            address,
            is_address_given,
            pod_cidr: String::new(),
            lease_seconds: None,
            settings: Settings::default(),
        }
    }

    fn config(data_dir: &Path, node_ip: Option<Ipv4Addr>, invitation: Option<Invitation>) -> JoinConfig {
        JoinConfig {
            data_dir: data_dir.to_owned(),
            invitation,
            node_name: None,
            host_name: "n".to_owned(),
            node_ip,
            lease_seconds: None,
            take_over: String::new(),
        }
    }

    #[test]
    fn s12_an_address_that_was_given_stays_and_another_is_not_kept_for_ever() {
        let data = tempfile::tempdir().unwrap();
        let (own, gone) = (Ipv4Addr::new(127, 0, 0, 9), Ipv4Addr::new(192, 0, 2, 7));
        let settled = |member: &Member, node_ip| {
            let mut member = member.clone();
            settle_address(&config(data.path(), node_ip, None), &mut member);
            (member.address, member.is_address_given)
        };
        assert_eq!(settled(&member(gone, Some(true)), None), (gone, Some(true)));
        assert_eq!(settled(&member(own, None), None), (own, None), "an older agent's, still on a link");
        assert_eq!(settled(&member(gone, Some(false)), Some(own)), (own, Some(true)));
        // Towards a loopback server no address is found: what was kept stays.
        assert_eq!(settled(&member(gone, Some(false)), None), (gone, Some(false)));
    }

    #[tokio::test]
    async fn s12_a_node_of_one_cluster_does_not_join_another() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let own = parse_hash(&hash_of(&ca).unwrap()).unwrap();
        Kept::open(data.path()).unwrap().write(&Member { ca_pem: ca, ..member(Ipv4Addr::LOCALHOST, None) }).unwrap();
        let invited = |ca_hash| {
            let invitation = Invitation { server: "127.0.0.1:1".to_owned(), token: "a.b".to_owned(), ca_hash };
            config(data.path(), None, Some(invitation))
        };
        let refused = join(&invited([7; 32])).await.err().expect("another cluster's");
        assert!(matches!(&refused, JoinError::OtherCluster(node) if node == "n"), "{refused}");
        // Of its own cluster the next thing is looked at: there is no certificate.
        assert!(matches!(join(&invited(own)).await.err(), Some(JoinError::Damaged(_))));
    }

    #[test]
    fn s12_a_certificate_of_another_cluster_is_no_silence() {
        let of = |reason: &str| JoinError::Api {
            what: "x",
            source: Error::Connect { server: "s:1".to_owned(), reason: reason.to_owned() },
        };
        assert!(of("Connection refused (os error 111)").is_silence());
        assert!(!of("invalid peer certificate: UnknownIssuer").is_silence());
    }

    #[test]
    fn nodes_are_spread_over_the_servers() {
        let firsts: std::collections::BTreeSet<String> =
            (0..20).map(|node| from("a:1,b:1,c:1", &format!("node-{node}"))).collect();
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), ["a:1,b:1,c:1", "b:1,c:1,a:1", "c:1,a:1,b:1"]);
        assert_eq!((from("a:1", "n"), from("", "n")), ("a:1".to_owned(), String::new()));
    }
}
