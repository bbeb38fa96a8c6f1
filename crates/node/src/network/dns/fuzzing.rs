//! A datagram as a pod sends it, against a cluster of a few Services.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_tasks::Shares;
use serde_json::{Value, json};

use super::upstream::Over;
use super::{Shared, question, wire};
use crate::network::view::View;

/// A server in front of a Service `web` with one endpoint `web-0`, an alias of it, and an alias of itself.
pub(super) fn server() -> Shared {
    let view = View::new("cluster.local", "n");
    let put = |kind: &Kind, namespace: &str, name: &str, mut object: Value| {
        object["metadata"] =
            json!({ "name": name, "namespace": namespace, "labels": { "kubernetes.io/service-name": "web" } });
        view.put(kind, ObjectKey::new(namespace, name), &object);
    };
    put(&kinds::NAMESPACE, "", "default", json!({}));
    let ports = json!([{ "name": "http", "port": 80, "protocol": "TCP" }]);
    let spec = json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": ports, "selector": { "a": "b" },
        "type": "ClusterIP" });
    put(&kinds::SERVICE, "default", "web", json!({ "spec": spec }));
    let endpoints = json!([{ "addresses": ["10.244.0.5"], "hostname": "web-0", "conditions": { "ready": true } }]);
    put(
        &kinds::ENDPOINT_SLICE,
        "default",
        "web-x",
        json!({ "addressType": "IPv4", "endpoints": endpoints, "ports": ports }),
    );
    put(
        &kinds::SERVICE,
        "default",
        "alias",
        json!({ "spec": { "type": "ExternalName", "externalName": "web.default.svc.cluster.local" } }),
    );
    put(
        &kinds::SERVICE,
        "default",
        "loop",
        json!({ "spec": { "type": "ExternalName", "externalName": "loop.default.svc.cluster.local" } }),
    );
    put(
        &kinds::SERVICE,
        "default",
        "gone",
        json!({ "spec": { "type": "ExternalName", "externalName": "web-9.web.default.svc.cluster.local" } }),
    );
    let domain = Name::from_ascii("cluster.local.").expect("a name");
    Shared { view, domain, upstreams: Vec::new(), forwarded: Shares::new(1, 1) }
}

/// One datagram.
pub fn run(input: &[u8]) {
    thread_local! {
        static SERVER: Shared = server();
    }
    let Some((question, limit)) = question(input) else { return };
    SERVER.with(|server| {
        let client = Ipv4Addr::LOCALHOST.into();
        let answer = server.cluster_answer(&question, limit).unwrap_or_else(|| {
            mainstay_runtime::fuzzing::block_on(server.upstream_answer(&question, input, client, Over::Udp))
        });
        if let Some(bytes) = wire::bytes(answer, limit) {
            let again = Message::from_vec(&bytes).expect("what is sent can be read");
            assert!(again.metadata.truncation || bytes.len() <= usize::from(limit), "{} bytes", bytes.len());
        }
    });
}

/// Questions of each type for what is there and what is not.
pub fn seeds() -> Vec<Vec<u8>> {
    let names = [
        "web.default.svc.cluster.local.",
        "web-0.web.default.svc.cluster.local.",
        "_http._tcp.web.default.svc.cluster.local.",
        "alias.default.svc.cluster.local.",
        "loop.default.svc.cluster.local.",
        "none.default.svc.cluster.local.",
        "5.0.244.10.in-addr.arpa.",
        "example.invalid.",
    ];
    let types = [RecordType::A, RecordType::SRV, RecordType::PTR, RecordType::ANY];
    let mut seeds = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), types[number % types.len()]));
        if number % 2 == 0 {
            let mut edns = Edns::new();
            edns.set_max_payload(4096);
            message.edns = Some(edns);
        }
        seeds.push(message.to_vec().expect("a message"));
    }
    seeds
}
