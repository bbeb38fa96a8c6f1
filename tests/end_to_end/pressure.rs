//! X7 and V11 on a node: what a pod asks for in great number does not touch the node's lease.

use crate::harness::{Cluster, text};

/// More than one HTTP/2 connection has streams.
const MAPS: usize = 600;

#[test]
fn x7_a_pod_of_very_many_configmaps_starts_and_its_node_stays_ready() {
    let mut cluster = Cluster::unstarted();
    cluster.up();
    cluster.load(&["busybox"]);
    let maps: Vec<String> = (0..MAPS)
        .map(|index| {
            format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"m{index}"}},"data":{{"k":"{index}"}}}}"#
            )
        })
        .collect();
    let list = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, maps.join(","));
    let made = cluster.kubectl_with(&["create", "-f", "-"], &list);
    assert!(made.status.success(), "{}", text(&made));
    let sources: Vec<String> = (0..MAPS)
        .map(|index| format!(r#"{{"configMap":{{"name":"m{index}","items":[{{"key":"k","path":"{index}"}}]}}}}"#))
        .collect();
    let pod = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"many"}},"spec":{{"terminationGracePeriodSeconds":0,
        "containers":[{{"name":"c","image":"test.local/busybox:1","imagePullPolicy":"Never","command":["sleep","1000"],
            "volumeMounts":[{{"name":"v","mountPath":"/v"}}]}}],
        "volumes":[{{"name":"v","projected":{{"sources":[{}]}}}}]}}}}"#,
        sources.join(",")
    );
    cluster.apply(&pod);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/many", "--timeout=90s"]);
    assert_eq!(cluster.exec("many", &["sh", "-c", "ls /v | wc -l"]).trim(), MAPS.to_string());
    let renewed =
        || cluster.kubectl(&["get", "lease", "-n", "kube-node-lease", "node-1", "-o", "jsonpath={.spec.renewTime}"]);
    let before = renewed();
    cluster.eventually("the lease is renewed", || renewed() != before);
    cluster.kubectl(&["wait", "--for=condition=Ready", "node/node-1", "--timeout=10s"]);
    cluster.kubectl(&["patch", "configmap", "m599", "--type=merge", "-p", r#"{"data":{"k":"new"}}"#]);
    cluster.eventually("the last of them is watched too", || cluster.exec("many", &["cat", "/v/599"]).trim() == "new");
    // A drain that is only tried evicts nobody.
    let uid = cluster.uid("pod/many");
    cluster.kubectl(&["drain", "node-1", "--dry-run=server", "--force", "--ignore-daemonsets"]);
    assert_eq!(cluster.uid("pod/many"), uid);
    assert_eq!(cluster.field("pod/many", "{.metadata.deletionTimestamp}"), "");
}
