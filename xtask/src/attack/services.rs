//! Addresses that are others': whoever may make Services, slices and pods tries to get the connections that are meant
//! for the API, for other Services, or for what listens on this machine alone (N4, X5, X7).

use anyhow::{Result, ensure};
use mainstay_api::kinds;
use serde_json::{Value, json};

use crate::bench::cluster::{Cluster, NAMESPACE};

/// The image of the pod that takes them.
const IMAGE: &str = "test.local/busybox:1";
/// The API server's port, and the kubelet's.
const PORTS: [u16; 2] = [6443, 10250];
/// Addresses that no Service and no endpoint may have.
const SPECIAL: [&str; 4] = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1"];

async fn is_refused(cluster: &Cluster, kind: &mainstay_api::Kind, object: &Value) -> Result<bool> {
    match cluster.client.create(kind, NAMESPACE, object).await {
        Err(error) => Ok(error.code() == Some(422)),
        Ok(_) => Ok(false),
    }
}

/// All of it. What is made stays until its namespace goes.
pub async fn stolen(cluster: &Cluster) -> Result<String> {
    let mut tried = 0;
    let spec = |address: &str, port: u16| {
        json!({ "selector": { "app": "thief" }, "externalIPs": [address],
        "ports": [{ "port": port, "targetPort": 80 }] })
    };
    for address in SPECIAL {
        let service = json!({ "metadata": { "name": "special" }, "spec": spec(address, 80) });
        ensure!(is_refused(cluster, &kinds::SERVICE, &service).await?, "a Service has {address}");
        let endpoints = json!({ "metadata": { "name": "special" }, "subsets": [{ "addresses": [{ "ip": address }],
            "ports": [{ "port": 80 }] }] });
        ensure!(is_refused(cluster, &kinds::ENDPOINTS, &endpoints).await?, "an endpoint is {address}");
        let slice = json!({ "metadata": { "name": "special" }, "addressType": "IPv4",
            "endpoints": [{ "addresses": [address] }], "ports": [{ "port": 80 }] });
        ensure!(is_refused(cluster, &kinds::ENDPOINT_SLICE, &slice).await?, "a slice has {address}");
        tried += 3;
    }
    let ports: Vec<Value> = PORTS.iter().map(|port| json!({ "containerPort": 80, "hostPort": port })).collect();
    let serve = "while true; do echo thief | nc -l -p 80; done";
    let thief = json!({ "metadata": { "name": "thief", "labels": { "app": "thief" } }, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "c", "image": IMAGE, "command": ["sh", "-c", serve] }] } });
    cluster.client.create(&kinds::POD, NAMESPACE, &thief).await?;
    // Past the scheduler, which would find no node for it.
    let mut bound = thief.clone();
    bound["metadata"]["name"] = json!("thief-bound");
    bound["spec"]["nodeName"] = json!("node-1");
    bound["spec"]["containers"][0]["ports"] = json!(ports);
    cluster.client.create(&kinds::POD, NAMESPACE, &bound).await?;
    let node = cluster.client.list(&kinds::NODE, "", &mainstay_client::ListOptions::default()).await?;
    let address = node.pointer("/items/0/status/addresses/0/address").and_then(Value::as_str).unwrap_or("").to_owned();
    let api = cluster.client.get(&kinds::SERVICE, "default", "kubernetes").await?;
    let api = api.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or("").to_owned();
    let wanted = PORTS.iter().map(|port| (address.clone(), *port)).chain([(api, 443)]);
    for (index, (address, port)) in wanted.enumerate() {
        let service = json!({ "metadata": { "name": format!("thief-{index}") }, "spec": spec(&address, port) });
        cluster.client.create(&kinds::SERVICE, NAMESPACE, &service).await?;
        // Two of one address: neither fails for the other.
        let again = json!({ "metadata": { "name": format!("thief-{index}-again") }, "spec": spec(&address, port) });
        cluster.client.create(&kinds::SERVICE, NAMESPACE, &again).await?;
        tried += 2;
        for _ in 0..20 {
            cluster.client.get_text("/livez").await?;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let said = ask(&address, port).await;
            ensure!(!said.contains("thief"), "connections to {address}:{port} go to a pod");
        }
    }
    let now = json!({ "gracePeriodSeconds": 0 });
    cluster.client.delete(&kinds::POD, NAMESPACE, "thief-bound", &now).await?;
    cluster.client.delete(&kinds::POD, NAMESPACE, "thief", &now).await?;
    Ok(format!("{tried} Services, endpoints and slices with addresses that are others', a pod with their ports"))
}

/// What whoever listens there says by itself.
async fn ask(address: &str, port: u16) -> String {
    use tokio::io::AsyncReadExt as _;
    let reading = async {
        let mut stream = tokio::net::TcpStream::connect((address, port)).await?;
        let mut said = [0; 16];
        let read = stream.read(&mut said).await?;
        std::io::Result::Ok(String::from_utf8_lossy(said.get(..read).unwrap_or_default()).into_owned())
    };
    let limited = tokio::time::timeout(std::time::Duration::from_millis(200), reading).await;
    limited.map_or_else(|_| String::new(), Result::unwrap_or_default)
}
