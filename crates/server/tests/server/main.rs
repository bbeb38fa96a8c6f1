//! The server as it runs, asked over loopback; the store and the controllers without it in `placement`.

mod access;
mod aggregation;
mod authentication;
mod authorization;
mod forms;
mod hostile;
mod placement;
mod pressure;
mod tls;
mod webhooks;

use std::path::Path;

use mainstay_client::{Client, Config};
use mainstay_server::identity::Expected;
use mainstay_server::{LocalNode, Running, ServerConfig};

/// A server on any free port of loopback, with a node.
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
        node: Some(LocalNode { name: "n1".into(), addresses: vec![[127, 0, 0, 1].into()], pods: None }),
        cluster: Expected::default(),
        new_keys: false,
    }
}

/// What a kubeconfig lets its reader be.
fn client(kubeconfig: &str) -> Client {
    Client::new(Config::parse(kubeconfig.as_bytes()).expect("a kubeconfig")).expect("a client")
}

fn admin(server: &Running) -> Client {
    client(&server.admin.kubeconfig)
}

/// The same server, with a token.
fn bearer(server: &Running, token: &str) -> Client {
    as_other(server, Some(token))
}

/// The same server, with nothing to show.
fn anonymous(server: &Running) -> Client {
    as_other(server, None)
}

fn as_other(server: &Running, token: Option<&str>) -> Client {
    let mut config = Config::parse(server.admin.kubeconfig.as_bytes()).expect("a kubeconfig");
    config.identity = None;
    config.token = token.map(str::to_owned);
    Client::new(config).expect("a client")
}
