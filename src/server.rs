//! `mainstay server`: a server without a node; and the server's part of `mainstay up`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use mainstay_cli::args::{ServeArgs, ServerArgs};
use mainstay_client::Config;
use mainstay_server::LocalNode;
use tokio::signal::unix::{SignalKind, signal};

/// `mainstay server`. Needs no root: it makes no namespaces, mounts or rules.
pub fn run(args: &ServeArgs) -> Result<()> {
    let begun = Instant::now();
    crate::up::log_to_stderr();
    if let Err(error) = mainstay_runtime::kernel::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::up::runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let address = match (args.server.advertise_address, args.server.listen.ip()) {
            (Some(address), _) => address,
            (None, IpAddr::V4(address)) if !address.is_unspecified() => address,
            _ => {
                crate::up::default_address().context("no address for this server; give one with --advertise-address")?
            }
        };
        let server = start(&args.data_dir, &args.server, None, address).await?;
        crate::up::note_instance(&args.data_dir);
        let url = Config::parse(server.admin.kubeconfig.as_bytes())?.server;
        println!("mainstay: API ready    https://{url}   {} ms", begun.elapsed().as_millis());
        let kubeconfig = args.server.kubeconfig.as_ref().unwrap_or(&server.admin.path);
        println!("mainstay: kubeconfig   export KUBECONFIG={}", kubeconfig.display());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!("mainstay: stopping; the nodes' containers go on");
        server.shutdown().await;
        // Only a note for `mainstay down`; without it nothing is amiss.
        let _ = std::fs::remove_file(crate::up::pid_file(&args.data_dir));
        Ok(())
    })
}

/// Starts the server on a machine of this address; returns when the API answers.
pub async fn start(
    data_dir: &Path,
    args: &ServerArgs,
    node: Option<LocalNode>,
    address: Ipv4Addr,
) -> Result<mainstay_server::Running> {
    let advertise = match args.advertise_address {
        Some(address) => IpAddr::V4(address),
        None if args.listen.ip().is_unspecified() => IpAddr::V4(address),
        None => args.listen.ip(),
    };
    let cluster = mainstay_server::identity::Expected {
        new: args.new_cluster,
        volumes_of: mainstay_node::volumes::owner::noted(data_dir)?,
    };
    let files = mainstay_server::Files {
        authentication: args.authentication_config.clone(),
        tokens: args.token_auth_file.clone(),
        encryption: args.encryption_provider_config.clone(),
        audit_policy: args.audit_policy_file.clone(),
        audit_log: args.audit_log_path.clone(),
    };
    let config = mainstay_server::ServerConfig {
        data_dir: data_dir.to_owned(),
        listen: args.listen,
        advertise: Some(advertise),
        service_cidr: args.service_cidr.clone(),
        cluster_cidr: args.cluster_cidr.clone(),
        cluster_domain: args.cluster_domain.clone(),
        pod_network: args.pod_network.clone(),
        node,
        cluster,
    };
    let server = mainstay_server::start_with(config, &files).await?;
    if let Some(path) = &args.kubeconfig {
        mainstay_server::pki::write_private(path, server.admin.kubeconfig.as_bytes()).context("the kubeconfig")?;
    }
    Ok(server)
}
