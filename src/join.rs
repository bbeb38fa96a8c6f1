//! `mainstay join`: a node of a cluster whose server is elsewhere.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use mainstay_cli::args::JoinArgs;
use mainstay_node::Fencing;
use mainstay_node::join::{self, Invitation, JoinConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// `mainstay join`. SIGHUP has both certificates replaced at once.
pub fn run(args: &JoinArgs) -> Result<()> {
    let begun = Instant::now();
    crate::need_root("mainstay join")?;
    crate::up::eviction_policy(&args.node)?;
    crate::up::log_to_stderr();
    let config = config(args)?;
    if let Err(error) = mainstay_runtime::kernel::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::instance::take(&args.data_dir)?;
    let _held = crate::instance::hold(&args.data_dir)?;
    crate::up::runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let joined = join::join(&config).await?;
        let (member, certificates) = (joined.member, joined.certificates);
        mainstay_node::volumes::owner::take(&args.data_dir, &member.settings.cluster, false)?;
        crate::up::note_instance(&args.data_dir);
        let serving = certificates.serving.clone();
        let client = joined.client;
        let fencing = if member.settings.fencing == "by-default" { Fencing::ByDefault } else { Fencing::OnRequest };
        let (at, machine) = (&args.data_dir, joined.machine);
        let node = crate::up::node_config(at, &args.node, &member, client.clone(), serving, machine, fencing)?;
        let node = mainstay_node::start(node).await?;
        let said = if joined.is_reached { "joined       https://" } else { "started, and waits for https://" };
        say!("mainstay: {said}{}   {} ms", member.server, begun.elapsed().as_millis());
        let now = Arc::new(Notify::new());
        let (folder, replaced) = (args.data_dir.clone(), node.kubelet.hold.replaced());
        let fresh = join::keep_fresh(client.clone(), folder, member.clone(), certificates, now.clone(), replaced);
        let servers = join::follow_servers(client.clone(), args.data_dir.clone(), member.clone());
        let work = async {
            // Of a node that another machine is, too, the API may say that it is ready.
            if node.kubelet.hold.held().await {
                let ready = crate::up::node_ready(&client, &member.node, begun).await;
                say!("mainstay: node ready   {}   {} ms", member.node, ready.as_millis());
            }
            crate::up::make_demo_image(&node).await;
            crate::server::release_start().await;
            crate::server::give_back(Arc::default(), crate::server::LOOK).await;
        };
        let renew = async {
            while hangup.recv().await.is_some() {
                now.notify_one();
            }
        };
        tokio::select! {
            () = work => {}
            () = fresh => {}
            () = servers => {}
            () = renew => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        say!("mainstay: stopping; containers go on (`mainstay down` stops them)");
        node.stop().await;
        // Only a note for `mainstay down`; without it nothing is amiss.
        let _ = std::fs::remove_file(crate::up::pid_file(&args.data_dir));
        Ok(())
    })
}

fn config(args: &JoinArgs) -> Result<JoinConfig> {
    if args.data_dir.join(mainstay_server::identity::STORE).exists() {
        bail!("{} holds a cluster of its own; choose another --data-dir", args.data_dir.display());
    }
    let invitation = match (&args.url, &args.token, &args.ca_hash) {
        (Some(url), Some(token), Some(hash)) => {
            let server = url.strip_prefix("https://").map(|server| server.trim_end_matches('/'));
            let server =
                server.filter(|server| server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()));
            Some(Invitation {
                server: server.with_context(|| format!("{url:?} is not https://HOST:PORT"))?.to_owned(),
                token: token.clone(),
                ca_hash: join::parse_hash(hash)
                    .with_context(|| format!("--ca-hash {hash:?} is not sha256: and 64 hexadecimal digits"))?,
            })
        }
        _ => None,
    };
    Ok(JoinConfig {
        data_dir: args.data_dir.clone(),
        invitation,
        node_name: args.node.node_name.clone(),
        host_name: crate::up::host_name()?,
        node_ip: args.node.node_ip,
        lease_seconds: args.node.node_lease_duration,
        take_over: args.node.take_over.clone().unwrap_or_default(),
    })
}
