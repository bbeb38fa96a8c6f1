//! A cluster that is full: how a server with very many pods uses memory, starts, and brings a node up to date, beside
//! the same when there was nothing. All over HTTP.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::{kinds, object};
use mainstay_client::{Client, ListOptions, PatchType, WatchEvent};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::{Cluster, NAMESPACE};
use super::table::{Table, Times, ms};
use super::{hollow, processes};

/// Hollow nodes, which only renew their Leases.
const NODES: usize = 1_000;
/// Pods, all bound to them and running.
const PODS: usize = 150_000;
/// Who makes them.
const CREATORS: usize = 32;
/// How often a change's way to the node is measured.
const ROUNDS: usize = 10;
/// Changes whose way to a watch is measured, and how many watches there are besides.
const CHANGES: usize = 200;
const WATCHES: usize = 5_000;
/// Watches by one client: as many as its user may have on a connection or two.
const PER_CLIENT: usize = 250;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(280);
/// How long it may take to make all pods.
const FILLED: Duration = Duration::from_secs(900);
/// Where the cluster's DNS server is.
const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);
/// An address of the node's own, which an endpoint can have: that of its pods' bridge.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Fills a cluster and measures it.
pub async fn measure(cluster: &mut Cluster, table: &mut Table) -> Result<()> {
    let empty = update_times(cluster, "before").await?;
    let events = event_times(cluster, 0).await?;
    let before = processes::memory(cluster.pid()?)?.rss;
    let mut leases = fill_nodes(cluster).await?;
    let begun = Instant::now();
    tokio::time::timeout(FILLED, fill(cluster)).await.context("the pods were not made in time")??;
    let rate = PODS as f64 / begun.elapsed().as_secs_f64();
    table.row(
        &format!("{PODS} bound pods made and run, by {CREATORS} clients"),
        format!("{rate:.0} pods/s"),
        "",
        "",
        "",
    );
    let after = processes::memory(cluster.pid()?)?.rss;
    let each = format!("{:.1} KiB per pod", after.saturating_sub(before) as f64 / PODS as f64);
    table.row("the server's RSS then", format!("{} MiB", after / 1024), each, "", "");
    let full = update_times(cluster, "then").await?;
    for ((what, then), (_, before)) in full.into_iter().zip(empty) {
        table.row(&format!("{what}, with {PODS} pods"), then.summary(), format!("empty: {}", before.summary()), "", "");
    }
    let crowded = event_times(cluster, WATCHES).await?;
    let beside = format!("p99 {}; empty, alone: {}", ms(crowded.quantile(0.99)), events.summary());
    table.row(&format!("patch to event, {WATCHES} other nodes' watches"), crowded.summary(), beside, "", "");
    leases.abort_all();
    cluster.stop().await?;
    let started = cluster.up().await?;
    table.row(&format!("start with {PODS} pods: API, node ready"), ms(started.api), ms(started.node), "", "");
    let again = processes::memory(cluster.pid()?)?.rss;
    let each = format!("{:.1} KiB per pod", again.saturating_sub(before) as f64 / PODS as f64);
    table.row("the server's RSS after that start", format!("{} MiB", again / 1024), each, "", "");
    Ok(())
}

async fn fill_nodes(cluster: &Cluster) -> Result<JoinSet<Result<()>>> {
    let (mut made, mut leases) = (JoinSet::new(), JoinSet::new());
    for creator in 0..CREATORS {
        let client = cluster.another_client()?;
        made.spawn(async move {
            for number in (creator..NODES).step_by(CREATORS) {
                hollow::register(&client, &node(number), 2 * PODS / NODES).await?;
            }
            anyhow::Ok(client)
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = made.join_next().await {
        clients.push(client??);
    }
    for number in 0..NODES {
        let (client, name) = (clients[number % clients.len()].clone(), node(number));
        leases.spawn(async move { hollow::renew(&client, &name).await });
    }
    Ok(leases)
}

fn node(number: usize) -> String {
    format!("full-{number:05}")
}

fn pod(name: &str, node: &str, app: &str) -> Value {
    let container = json!({ "name": "main", "image": "test.local/busybox:1",
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } } });
    json!({ "metadata": { "name": name, "labels": { "app": app } }, "spec": { "nodeName": node,
        "containers": [container], "terminationGracePeriodSeconds": 0 } })
}

async fn fill(cluster: &Cluster) -> Result<()> {
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS {
        let client = cluster.another_client()?;
        creators.spawn(async move {
            for index in (creator..PODS).step_by(CREATORS) {
                let (name, number) = (format!("full-{index:06}"), index % NODES);
                let made = client.create(&kinds::POD, NAMESPACE, &pod(&name, &node(number), "full")).await?;
                let status = hollow::running(&made, number, index / NODES);
                client.patch(&kinds::POD, NAMESPACE, &name, "status", PatchType::Merge, &status).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = creators.join_next().await {
        done??;
    }
    Ok(())
}

/// How long it takes from a pod's becoming ready until the node's DNS server has it, and its packet filter.
async fn update_times(cluster: &Cluster, when: &str) -> Result<[(&'static str, Times); 2]> {
    let listener = tokio::net::TcpListener::bind((OWN, 0)).await.context("the address of the pods' bridge")?;
    let port = listener.local_addr()?.port();
    let accept = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    let (mut named, mut routed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("probe-{when}-{round}");
        let service = |name: &str, address: Option<&str>, app: &str| {
            json!({ "metadata": { "name": name }, "spec": { "selector": { "app": app }, "clusterIP": address,
                "ports": [{ "port": 80, "targetPort": port }] } })
        };
        let (headless, balanced) = (format!("{name}-h"), format!("{name}-b"));
        cluster.client.create(&kinds::SERVICE, NAMESPACE, &service(&headless, Some("None"), &name)).await?;
        let made = cluster.client.create(&kinds::SERVICE, NAMESPACE, &service(&balanced, None, &name)).await?;
        let address: Ipv4Addr = object::text(&made, &["spec", "clusterIP"]).parse()?;
        let made = cluster.client.create(&kinds::POD, NAMESPACE, &pod(&name, "full-probe", &name)).await?;
        let mut status = hollow::running(&made, 0, 0);
        status["status"]["podIP"] = OWN.to_string().into();
        status["status"]["podIPs"] = json!([{ "ip": OWN.to_string() }]);
        // What the Services themselves are takes its time too.
        wait_for(|| answers(&format!("{balanced}.{NAMESPACE}.svc.cluster.local"))).await?;
        let begun = Instant::now();
        cluster.client.patch(&kinds::POD, NAMESPACE, &name, "status", PatchType::Merge, &status).await?;
        let by_name = async {
            wait_for(|| answers(&format!("{headless}.{NAMESPACE}.svc.cluster.local"))).await?;
            anyhow::Ok(begun.elapsed())
        };
        let by_address = async {
            let target = SocketAddr::from((address, 80));
            while !matches!(
                tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(target)).await,
                Ok(Ok(_))
            ) {
                ensure!(begun.elapsed() < PATIENCE, "the Service is not reached");
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(begun.elapsed())
        };
        let (by_name, by_address) = tokio::try_join!(by_name, by_address)?;
        named.push(by_name);
        routed.push(by_address);
        cluster.client.delete(&kinds::POD, NAMESPACE, &name, &json!({ "gracePeriodSeconds": 0 })).await?;
        for service in [&headless, &balanced] {
            cluster.client.delete(&kinds::SERVICE, NAMESPACE, service, &json!({})).await?;
        }
    }
    accept.abort();
    Ok([("pod ready to its name", Times::new(named)), ("pod ready to its Service's address", Times::new(routed))])
}

async fn wait_for(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < PATIENCE, "waited in vain");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Whether a name has an address.
fn answers(name: &str) -> Result<bool> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(&query, DNS)?;
    let mut answer = [0; 512];
    let length = match socket.recv(&mut answer) {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    Ok(length >= 12 && answer[6..8] != [0, 0])
}

/// How long a change of a pod takes, from its request to its node's watch, while so many other nodes watch theirs.
async fn event_times(cluster: &Cluster, others: usize) -> Result<Times> {
    let mut idle = JoinSet::new();
    for first in (0..others).step_by(PER_CLIENT) {
        let client = cluster.another_client()?;
        for number in first..others.min(first + PER_CLIENT) {
            let mut watch = watch_node(&client, &format!("other-{number:05}")).await?;
            idle.spawn(async move { watch.next().await.map(|_| ()) });
        }
    }
    let name = format!("event-{others}");
    let client = cluster.another_client()?;
    client.create(&kinds::POD, NAMESPACE, &pod(&name, "full-events", "events")).await?;
    let mut watch = watch_node(&cluster.another_client()?, "full-events").await?;
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let message = round.to_string();
        let patch = json!({ "status": { "message": message } });
        let begun = Instant::now();
        let patched = client.patch(&kinds::POD, NAMESPACE, &name, "status", PatchType::Merge, &patch);
        let seen = async {
            loop {
                let event = watch.next().await?.context("the watch ended")?;
                if let WatchEvent::Put(pod) = event
                    && object::text(&pod, &["status", "message"]) == message
                {
                    return anyhow::Ok(begun.elapsed());
                }
            }
        };
        let (_, seen) = tokio::join!(patched, seen);
        times.push(seen?);
    }
    client.delete(&kinds::POD, NAMESPACE, &name, &json!({ "gracePeriodSeconds": 0 })).await?;
    Ok(Times::new(times))
}

async fn watch_node(client: &Client, node: &str) -> Result<mainstay_client::Watching> {
    let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    Ok(client.watch(&kinds::POD, "", &options).await?)
}
