//! `mainstay server`: a server without a node; and the server's part of `mainstay up`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use mainstay_cli::args::{ServeArgs, ServerArgs, StoreArgs};
use mainstay_client::{Config, Rotating};
use mainstay_server::{Endpoint, Etcd, LocalNode};
use tokio::signal::unix::{SignalKind, signal};

/// `mainstay server`. Needs no root: it makes no namespaces, mounts or rules.
pub fn run(args: &ServeArgs) -> Result<()> {
    let begun = Instant::now();
    crate::up::log_to_stderr();
    if let Err(error) = mainstay_runtime::kernel::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::instance::take(&args.data_dir)?;
    let _held = crate::instance::hold(&args.data_dir)?;
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
        let server = tokio::select! {
            started = start(&args.data_dir, &args.server, None, address) => started?,
            // It may wait for etcd.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        crate::up::note_instance(&args.data_dir);
        let url = Config::parse(server.admin.kubeconfig.as_bytes())?.server;
        say!("mainstay: API ready    https://{url}   {} ms", begun.elapsed().as_millis());
        let kubeconfig = args.server.kubeconfig.as_ref().unwrap_or(&server.admin.path);
        say!("mainstay: kubeconfig   export KUBECONFIG={}", kubeconfig.display());
        if let Some(other) = mainstay_server::kubeconfig::other_context(kubeconfig) {
            say!("mainstay: kubeconfig   its present context is {other:?}: this cluster's is `--context mainstay`");
        }
        if let Some(why) = unreached(&args.server) {
            tell!("mainstay: {why}");
        }
        tokio::spawn(release_start());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        say!("mainstay: stopping; the nodes' containers go on");
        server.shutdown().await;
        // Only a note for `mainstay down`; without it nothing is amiss.
        let _ = std::fs::remove_file(crate::up::pid_file(&args.data_dir));
        Ok(())
    })
}

/// The etcd cluster that `--store` names, if it does.
pub fn etcd(args: &StoreArgs) -> Result<Option<Etcd>> {
    let Some(list) = args.store.strip_prefix("etcd=") else {
        if args.store != "embedded" {
            bail!("--store {:?} is neither `embedded` nor `etcd=URL,URL…`", args.store);
        }
        return Ok(None);
    };
    if list.contains("https://") && args.etcd_cafile.is_none() {
        bail!("--store names https://…: name the CA of etcd's members with --etcd-cafile");
    }
    let endpoint =
        |url: &str| Endpoint::parse(url).with_context(|| format!("--store: {url:?} is not http(s)://HOST:PORT"));
    let endpoints = list.split(',').map(endpoint).collect::<Result<Vec<_>>>()?;
    let read = |path: &Option<PathBuf>| {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        path.as_ref().map(read).transpose()
    };
    let tls = match read(&args.etcd_cafile)? {
        None => None,
        Some(ca_pem) => {
            let files = args.etcd_certfile.as_deref().zip(args.etcd_keyfile.as_deref());
            let rotating = files.map(|(certificate, key)| Rotating::of_files(certificate, key)).transpose();
            let config = Config { ca_pem, rotating: rotating.context("etcd's certificates")?, ..Config::default() };
            Some(Arc::new(config.tls(&[b"h2"]).context("etcd's certificates")?))
        }
    };
    Ok(Some(Etcd { endpoints, tls, prefix: args.etcd_prefix.clone().into() }))
}

/// Where etcd's members are, by host and port.
pub fn etcd_members(args: &StoreArgs) -> Result<Vec<(String, u16)>> {
    let endpoints = etcd(args)?.map(|etcd| etcd.endpoints).unwrap_or_default();
    Ok(endpoints.iter().map(|endpoint| (endpoint.at().0.to_owned(), endpoint.at().1)).collect())
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
        // A link stays one.
        kubeconfig: args.kubeconfig.as_ref().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())),
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
        etcd: etcd(&args.store)?,
        seal: args.seal_key_file.clone(),
        node,
        cluster,
        new_keys: args.new_keys,
    };
    let server = mainstay_server::start_with(config, &files).await?;
    tokio::spawn(give_back(server.freed.clone(), LOOK));
    Ok(server)
}

/// What a person should know of a server that listens on the loopback alone: pods have no way to it, nor have other
/// machines (endpoints may not be there, so the Service `kubernetes` has none).
pub fn unreached(args: &ServerArgs) -> Option<String> {
    let is_alone = args.listen.ip().is_loopback() && args.advertise_address.is_none_or(|address| address.is_loopback());
    is_alone.then(|| {
        let (ip, port) = (args.listen.ip(), args.listen.port());
        format!(
            "pods and other machines cannot reach the API, since it listens on {ip} alone (the Service `kubernetes` \
             refuses connections): --listen 0.0.0.0:{port}, or an address of this machine, lets them"
        )
    })
}

/// How long nothing happens before memory is looked through: after a start, and after large requests.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(1);

/// Gives the kernel back what the start took, when it is well over: also the program's own pages.
pub async fn release_start() {
    tokio::time::sleep(SETTLE).await;
    let _ = tokio::task::spawn_blocking(mainstay_runtime::kernel::release_start).await;
}

/// How often memory is looked through where no large request was the reason.
pub const LOOK: std::time::Duration = std::time::Duration::from_mins(1);

/// A process that has less of its own (bytes) has nothing that is worth the look.
const LITTLE: u64 = 16 << 20;

/// Gives the kernel back what nobody needs any more: after each flood of large requests, and now and then, since many
/// small ones (connections, watches) come to as much, and the allocator keeps it otherwise.
pub async fn give_back(freed: std::sync::Arc<tokio::sync::Notify>, look: std::time::Duration) {
    loop {
        if tokio::time::timeout(look, freed.notified()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        } else if mainstay_runtime::kernel::own_memory() <= LITTLE {
            continue;
        }
        let _ = tokio::task::spawn_blocking(mainstay_runtime::kernel::release_memory).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Freed blocks below one that is in use, in several of the allocator's arenas: it gives none of them back.
    fn flood() -> Vec<Vec<u8>> {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    let blocks: Vec<Vec<u8>> = (0..8000).map(|_| vec![1; 4000]).collect();
                    let last = vec![1; 4000];
                    drop(blocks);
                    last
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("joined")).collect()
    }

    #[tokio::test]
    async fn x7_memory_that_a_flood_of_small_requests_took_is_given_back() {
        let own = mainstay_runtime::kernel::own_memory;
        let before = own();
        let _in_use = flood();
        let peak = own();
        assert!(peak > before + (64 << 20), "the allocator keeps it: {before} {peak}");
        let keep = tokio::spawn(give_back(std::sync::Arc::default(), std::time::Duration::from_millis(10)));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while own() > before + (16 << 20) {
            assert!(std::time::Instant::now() < deadline, "{before}, {peak}, {}", own());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        keep.abort();
    }
}
