//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Where a cluster lives unless something else is said.
pub const DATA_DIR: &str = "/var/lib/mainstay";

/// Kubernetes for stateful applications, in one binary.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a StatefulSet is: a throw-away cluster, three replicas, and what happens to them.
    Demo(DemoArgs),
    /// Run a cluster on this machine: API server, controllers, node, network, DNS, volumes.
    Up(Box<UpArgs>),
    /// Run a server without a node: API and controllers.
    Server(Box<ServeArgs>),
    /// Make this machine a node of a cluster, and run it.
    Join(Box<JoinArgs>),
    /// Take this machine out of its cluster: its pods go elsewhere, its Node is deleted. Volumes stay here.
    Leave(LeaveArgs),
    /// Tokens by which machines join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Stop every pod and take away all that `up` or `join` made on this machine. Volumes and the cluster's state stay.
    Down(DownArgs),
    /// The node's images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// The cluster's store, while `up` does not run.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Export folders of this machine over NFSv3.
    NfsServer(NfsServerArgs),
    /// Ask the cluster's DNS (inside a pod): `lookup NAME [A|AAAA|SRV|PTR|CNAME|TXT]`.
    Lookup {
        /// A name, by the search list of /etc/resolv.conf, or an address for PTR.
        name: String,
        /// The record type.
        #[arg(default_value = "A")]
        record_type: String,
    },
    /// Get a page over HTTP and print it.
    Fetch {
        /// `http://host[:port]/path`.
        url: String,
    },
    /// The demonstration's web server: answers with the pod's name and a counter of visits kept in /data.
    #[command(hide = true)]
    DemoServer {
        /// Where the counter is kept.
        #[arg(long, default_value = "/data")]
        data: PathBuf,
        /// The port to listen on.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

/// `mainstay demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print lines only, without colours.
    #[arg(long)]
    pub plain: bool,
}

/// `mainstay up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Where the cluster's state, images and volumes are kept.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `mainstay server`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Where the cluster's state is kept.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What a server is told.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// Where to write the administrator's kubeconfig [default: DIR/kubeconfig].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// The address by which nodes and pods reach the API server [default: that of --listen, or of this machine].
    #[arg(long, value_name = "ADDR")]
    pub advertise_address: Option<std::net::Ipv4Addr>,
    /// All pods' addresses.
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub cluster_cidr: String,
    /// All Services' addresses.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: String,
    /// The cluster's DNS domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// How packets get from one machine's pods to another's: `vxlan`, `routes` or `wireguard`.
    #[arg(long, value_name = "KIND", default_value = "vxlan", value_parser = pod_network)]
    pub pod_network: String,
    #[command(flatten)]
    pub store: StoreArgs,
    /// The key that seals the cluster's keys in etcd, the same on every server [default: DIR/seal.key].
    #[arg(long, value_name = "FILE")]
    pub seal_key_file: Option<PathBuf>,
    /// Further issuers of tokens, and the paths that anonymous requests may read: an AuthenticationConfiguration.
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// Users by fixed tokens: lines of `token,user,uid,"group1,group2"`.
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Which resources are encrypted on the disk, and by which keys: an EncryptionConfiguration.
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// What the audit log records of requests: an audit.k8s.io/v1 Policy.
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where the audit log is written; `-` is standard output.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,
    /// Begin a new, empty cluster in a folder that holds another one's data: its store is set aside, its pods are
    /// stopped, its volumes stay where they are and are used by nobody.
    #[arg(long)]
    pub new_cluster: bool,
    /// Begin with new keys where the cluster's own are gone, or take those of DIR/pki where they are others:
    /// kubeconfigs, service account tokens and machines that joined are not known any more. Keys that are the
    /// cluster's are kept.
    #[arg(long)]
    pub new_keys: bool,
}

/// Reads a kind of pod network.
fn pod_network(text: &str) -> Result<String, String> {
    match text {
        "vxlan" | "routes" | "wireguard" => Ok(text.to_owned()),
        _ => Err("there are vxlan, routes and wireguard".to_owned()),
    }
}

/// Where the cluster's state is.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// Where the cluster's state is kept: `embedded` (in DIR), or `etcd=https://A:2379,https://B:2379` for several
    /// servers.
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    pub store: String,
    /// The CA of etcd's members.
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// This server's certificate for etcd.
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with.
    #[arg(long, value_name = "PREFIX", default_value = "/mainstay")]
    pub etcd_prefix: String,
}

impl StoreArgs {
    /// Whether other servers may share it.
    pub fn is_shared(&self) -> bool {
        self.store != "embedded"
    }
}

/// What a node is told.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// This node's name [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The address by which other machines reach this one [default: that of the default route, else the pod bridge's;
    /// of a machine that joins, that by which it reaches the server].
    #[arg(long, value_name = "ADDR")]
    pub node_ip: Option<std::net::Ipv4Addr>,
    /// The port of the node's own API (logs, exec, port-forward).
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub node_port: u16,
    /// How long this node may be silent, in seconds, before it counts as lost; it renews its lease four times in that
    /// [default: 40; of a machine that has joined before, what it was then].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(4..=300))]
    pub node_lease_duration: Option<u32>,
    /// The run of this node elsewhere of which all has ended, as the node names it that waits for it: this machine, to
    /// which the data folder was copied or moved, takes its place.
    #[arg(long, value_name = "RUN")]
    pub take_over: Option<String>,
    /// Whether containers that ask for no seccomp profile get RuntimeDefault.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    pub seccomp_default: bool,
    /// Kernel parameters of their namespaces that pods may set beside the safe ones, such as `net.core.*,kernel.msg*`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Below which amounts this node takes no new pods and evicts some, such as
    /// `nodefs.available<10%,memory.available<100Mi`; what is not named has no threshold, and nothing has where it is
    /// empty [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,
    /// imagefs.inodesFree<5%, and of the two disks' bytes at most 1Gi].
    #[arg(long, value_name = "SIGNAL<VALUE,…")]
    pub eviction_hard: Option<String>,
    /// How long a node says that it is short of something after it no longer is.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub eviction_pressure_transition_period: String,
}

/// `mainstay join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// The server, `https://HOST:PORT`; not needed by a machine that has joined before.
    #[arg(value_name = "URL", requires = "token")]
    pub url: Option<String>,
    /// The token that `mainstay token create` printed.
    #[arg(long, value_name = "TOKEN", requires = "ca_hash")]
    pub token: Option<String>,
    /// The hash of the cluster's CA, as it was printed with the token.
    #[arg(long, value_name = "sha256:HEX", requires = "url")]
    pub ca_hash: Option<String>,
    /// Where the node's images, volumes and certificates are kept.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `mainstay leave`.
#[derive(Clone, Debug, Args)]
pub struct LeaveArgs {
    /// The folder that `join` was given.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Leave although volumes live here, pods do not go in time, or no server answers.
    #[arg(long)]
    pub force: bool,
    /// How long pods may take to go, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

/// `mainstay token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print the line by which a machine joins with it.
    Create {
        #[command(flatten)]
        admin: AdminArgs,
        /// How long it may be used, such as 2h or 30m; 0 for ever.
        #[arg(long, value_name = "TIME", default_value = "24h")]
        ttl: String,
        /// What it is for.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// List the tokens, without their secrets.
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Delete a token.
    Delete {
        #[command(flatten)]
        admin: AdminArgs,
        /// The token, or what stands before its dot.
        #[arg(value_name = "TOKEN")]
        token: String,
    },
}

/// Where the cluster's administrator is known.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// The folder that `up` or `server` was given.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// The administrator's kubeconfig [default: DIR/kubeconfig].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `mainstay down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The folder that `up` or `join` was given.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
}

/// `mainstay nfs-server`.
#[derive(Debug, Args)]
pub struct NfsServerArgs {
    /// A folder to export, and how: `PATH[:ro,no_root_squash,all_squash,clients=CIDR…,provisioners=CIDR…]`.
    #[arg(long = "export", value_name = "PATH[:OPTIONS]", required = true)]
    pub exports: Vec<String>,
    /// Where NFS, the mount protocol and the port mapper's answers are served, over TCP.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:2049")]
    pub listen: SocketAddr,
    /// Leave port 111 alone; clients then name the port (`-o port=…,mountport=…`).
    #[arg(long)]
    pub no_portmapper: bool,
    /// Where the key that seals file handles is kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mainstay/nfs-server")]
    pub state_dir: PathBuf,
}

/// `mainstay image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load images from OCI or docker archives: on this machine, or on every node.
    Load {
        #[command(flatten)]
        admin: AdminArgs,
        /// Sends the archives to every node of the cluster, through its API server.
        #[arg(long)]
        all_nodes: bool,
        /// Archives (tar, also compressed) or unpacked OCI layouts.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List the images.
    Ls {
        /// The folder that `up` or `join` was given.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Pull an image from a registry.
    Pull {
        /// The folder that `up` or `join` was given.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        /// `[registry/]name[:tag|@digest]`.
        reference: String,
    },
}

/// `mainstay store …`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Look at every page and every row; name what is damaged. Changes nothing.
    Check {
        /// The folder that `up` or `server` was given.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Save every row that is sound, a line of JSON each; name what is damaged. Secrets are in it, encrypted where the
    /// store has them so.
    Export {
        /// The folder that `up` or `server` was given.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        #[command(flatten)]
        store: Box<StoreArgs>,
        /// The file to make; one that is there is not written over.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Put an export into etcd, where nothing of a cluster is yet. Its revision goes forward, beyond the export's. The
    /// store in DIR is set aside: the servers are started with the same --store from then on.
    Import {
        /// The folder that `up` or `server` was given: that of the cluster's keys.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        #[command(flatten)]
        store: Box<StoreArgs>,
        /// An export.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make the store anew from an export. Its revision goes forward, beyond all that was there before.
    Restore {
        /// The folder that `up` or `server` was given, or is to be given.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        /// An export.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Set aside the store that is there.
        #[arg(long)]
        replace: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }
}
