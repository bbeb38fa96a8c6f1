//! Programs with the official Python client (Debian's python3-kubernetes), in pods: a client that does everything, and
//! an operator that may do nothing but what its Role says.

use crate::harness::{Cluster, text, workspace};

/// A cluster that has the programs of this folder in the ConfigMap `programs`.
fn cluster(images: &[&str]) -> Cluster {
    let mut cluster = Cluster::unstarted().open_to_pods();
    cluster.up();
    cluster.load(images);
    let files = ["client.py", "operator.py"].map(|name| format!("--from-file={}", path(name)));
    cluster.kubectl(&["create", "configmap", "programs", &files[0], &files[1]]);
    cluster
}

fn path(name: &str) -> String {
    workspace().join("tests/end_to_end/python").join(name).display().to_string()
}

#[test]
fn conformance_the_python_client_does_everything_from_within_a_pod() {
    let cluster = cluster(&["python", "busybox", "httpd"]);
    cluster.kubectl(&["apply", "-f", &path("pod.yaml")]);
    let phase = || cluster.field("pod/python", "{.status.phase}");
    cluster.eventually("the program has ended", || ["Succeeded", "Failed"].contains(&phase().as_str()));
    let said = cluster.kubectl(&["logs", "python"]);
    println!("{said}");
    assert_eq!(phase(), "Succeeded", "{said}");
    cluster.no_promise_is_broken();
}

/// The pod whose operator leads.
fn leader(cluster: &Cluster) -> String {
    cluster.field("lease/operator", "{.spec.holderIdentity}")
}

fn logs(cluster: &Cluster) -> String {
    text(&cluster.try_kubectl(&["logs", "--selector=app=operator", "--prefix", "--tail=-1"]))
}

/// Waits until a Fleet's status says that so many ships are ready.
fn are_ready(cluster: &Cluster, size: &str) {
    let ready = || cluster.field("fleet/first", "{.status.ready}") == size;
    cluster.eventually(&format!("{size} ships are ready"), ready);
}

#[test]
fn conformance_an_operator_needs_nothing_but_its_own_role() {
    let cluster = cluster(&["python", "busybox"]);
    cluster.kubectl(&["apply", "-f", &path("operator.yaml")]);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/fleets.fleets.example.com", "--timeout=30s"]);
    let fleet = "apiVersion: fleets.example.com/v1\nkind: Fleet\nmetadata: {name: first}\nspec: {size: SIZE}\n";
    let refused = text(&cluster.kubectl_with(&["apply", "-f", "-"], &fleet.replace("SIZE", "4")));
    assert!(refused.contains("no more than 3 ships, not 4"), "{refused}");
    cluster.apply(&fleet.replace("SIZE", "2"));
    are_ready(&cluster, "2");
    let owner = cluster.field("statefulset/first", "{.metadata.ownerReferences[0].uid}");
    assert_eq!(owner, cluster.uid("fleet/first"));

    // The other one takes the lease over, and goes on.
    let first = leader(&cluster);
    cluster.kubectl(&["delete", "pod", &first, "--force", "--grace-period=0"]);
    cluster.kubectl(&["scale", "fleet/first", "--replicas=3"]);
    are_ready(&cluster, "3");
    assert_ne!(leader(&cluster), first);
    assert!(cluster.field("lease/operator", "{.spec.leaseTransitions}").parse::<u32>().is_ok_and(|count| count > 0));

    cluster.kubectl(&["delete", "fleet/first", "--timeout=60s"]);
    cluster.eventually("what it owned is gone", || {
        cluster.kubectl(&["get", "statefulsets,pods", "--selector=fleet=first", "-o", "name"]).is_empty()
    });
    let events =
        cluster.kubectl(&["get", "events", "-o", "jsonpath={range .items[*]}{.involvedObject.kind} {.reason}\n{end}"]);
    for reason in ["Launched", "Scaled", "Farewell"] {
        assert!(events.contains(&format!("Fleet {reason}\n")), "{reason}: {events}\n{}", logs(&cluster));
    }
    let restarts = "{.items[*].status.containerStatuses[0].restartCount}";
    let path = format!("jsonpath={restarts}");
    let restarted = cluster.kubectl(&["get", "pods", "--selector=app=operator", "-o", &path]);
    assert_eq!(restarted, "0 0", "a refusal ends the operator\n{}", logs(&cluster));
    let account = "system:serviceaccount:default:operator";
    let asked = cluster.try_kubectl(&["auth", "can-i", "get", "secrets", "--as", account]);
    assert_eq!(text(&asked).trim(), "no");
    cluster.no_promise_is_broken();
}
