//! Claims as people see them: which volume they get, in which words they are told why not, and what they may ask for
//! afterwards. What each controller decides is tested in `logic`; here the whole is asked by kubectl.

use crate::harness::Cluster;

const STATIC: &str = "
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: PersistentVolume, metadata: {name: large, labels: {tier: gold}},
     spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}}
  - {apiVersion: v1, kind: PersistentVolume, metadata: {name: small},
     spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}}
  - {apiVersion: v1, kind: PersistentVolume, metadata: {name: kept},
     spec: {capacity: {storage: 9Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}, claimRef: {namespace: \
         default, name: keeper}}}
";

/// A claim; `extra` are more fields of its spec.
fn claim(name: &str, class: &str, size: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{storageClassName: '{class}', \
         accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{extra}}}\n"
    )
}

fn class(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: \
            rancher.io/local-path\n{extra}\n"
    )
}

fn pod(name: &str, claim: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 0{extra}, \
            containers: [{{name: main, \
         image: 'test.local/busybox:1', command: [sleep, '100000'], volumeMounts: [{{name: data, mountPath: \
             /data}}]}}], \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]}}\n"
    )
}

fn bound(cluster: &Cluster, claim: &str) -> String {
    cluster.field(&format!("pvc/{claim}"), "{.status.phase} {.spec.volumeName}")
}

/// Waits until `describe` of an object says this.
fn says(cluster: &Cluster, object: &str, text: &str) {
    cluster.eventually(&format!("{object} says: {text}"), || cluster.kubectl(&["describe", object]).contains(text));
}

#[test]
fn v1_v3_static_volumes_go_to_the_claim_that_they_fit_and_say_so() {
    let cluster = Cluster::new();
    cluster.apply(STATIC);
    for claim in [
        claim("first", "", "1Gi", ""),
        claim("keeper", "", "1Gi", ""),
        claim("second", "", "1Gi", ", volumeName: small"),
    ] {
        cluster.apply(&claim);
    }
    cluster.apply(&claim("golden", "", "2Gi", ", selector: {matchLabels: {tier: gold}}"));
    cluster.eventually("the claims are bound", || {
        ["first", "keeper", "golden"].map(|name| bound(&cluster, name)) == ["Bound small", "Bound kept", "Bound large"]
    });
    says(&cluster, "pvc/second", "volume \"small\" already bound to a different claim.");
    cluster.apply(&claim("none", "", "1Gi", ""));
    says(&cluster, "pvc/none", "no persistent volumes available for this claim and no storage class is set");
    cluster.apply(&claim("typo", "fats", "1Gi", ""));
    says(&cluster, "pvc/typo", "storageclass.storage.k8s.io \"fats\" not found");
    let table = cluster.kubectl(&["get", "pvc,pv"]);
    for row in [
        &["persistentvolumeclaim/first", "Bound", "small", "1Gi", "RWO"][..],
        &["persistentvolumeclaim/none", "Pending"],
        &["persistentvolume/large", "5Gi", "RWO", "Retain", "Bound", "default/golden"],
    ] {
        let found = table.lines().any(|line| row.iter().all(|cell| line.split_whitespace().any(|word| word == *cell)));
        assert!(found, "{row:?} in\n{table}");
    }
    // The volume first, then its claim: it stays as long as it is in use, and Retain removes nothing but the object.
    cluster.kubectl(&["delete", "pv/kept", "--wait=false"]);
    assert!(cluster.kubectl(&["get", "pv/kept"]).contains("Terminating"));
    cluster.kubectl(&["delete", "pvc/keeper"]);
    cluster.kubectl(&["wait", "--for=delete", "pv/kept", "--timeout=60s"]);
    // A volume that had a claim is nobody's until a person says so; a claim whose volume is torn away is Lost.
    cluster.kubectl(&["delete", "pvc/first"]);
    cluster.eventually("it is released", || cluster.field("pv/small", "{.status.phase}") == "Released");
    assert_eq!(
        (bound(&cluster, "none"), bound(&cluster, "second")),
        ("Pending ".to_owned(), "Pending small".to_owned())
    );
    cluster.kubectl(&["patch", "pv/small", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/claimRef"}]"#]);
    cluster.eventually("it is free again", || {
        cluster.field("pv/small", "{.status.phase} {.spec.claimRef.namespace}") == "Bound default"
    });
    cluster.kubectl(&["delete", "pv/large", "--wait=false"]);
    cluster.kubectl(&["patch", "pv/large", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    says(&cluster, "pvc/golden", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    assert_eq!(bound(&cluster, "golden"), "Lost large");
    cluster.no_promise_is_broken();
}

#[test]
fn v9_v10_a_claim_gets_no_more_than_there_is_and_one_pod_where_it_says_so() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(&class("grows", "allowVolumeExpansion: true"));
    cluster.apply(&class("fixed", ""));
    for (name, class) in [("grows", "grows"), ("fixed", "fixed")] {
        cluster.apply(&claim(name, class, "64Mi", ""));
        cluster.eventually("it is bound", || bound(&cluster, name).starts_with("Bound pvc-"));
    }
    says(&cluster, "pvc/grows", "ProvisioningSucceeded");
    let ask = |claim: &str, size: &str| {
        [
            "patch".to_owned(),
            claim.to_owned(),
            "-p".to_owned(),
            format!(r#"{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}"#),
        ]
    };
    let refused = cluster.refused(&ask("pvc/fixed", "128Mi").each_ref().map(String::as_str));
    assert!(refused.contains("the storageclass that provisions the pvc must support resize"), "{refused}");
    // More than the machine has is refused and can be taken back.
    cluster.kubectl(&ask("pvc/grows", "900Ti").each_ref().map(String::as_str));
    let progress =
        "{.status.allocatedResourceStatuses.storage} {.status.conditions[*].type} {.status.capacity.storage}";
    cluster.eventually("there is no room", || {
        cluster.field("pvc/grows", progress) == "ControllerResizeInfeasible ControllerResizeError 64Mi"
    });
    says(&cluster, "pvc/grows", "node(s) did not have enough free storage");
    cluster.kubectl(&ask("pvc/grows", "128Mi").each_ref().map(String::as_str));
    cluster.eventually("it has grown", || cluster.field("pvc/grows", progress).trim() == "128Mi");
    cluster.apply(&claim("huge", "local-path", "900Ti", ""));
    cluster.apply(&pod("huge", "huge", ""));
    says(&cluster, "pod/huge", "0/1 nodes are available: 1 node(s) did not have enough free storage");
    says(&cluster, "pvc/huge", "waiting for pod huge to be scheduled");

    // V9: the scheduler keeps the second pod away, and the node one that no scheduler has seen.
    let node = cluster.field("nodes", "{.items[0].metadata.name}");
    cluster.apply(&claim("alone", "local-path", "64Mi", "").replace("ReadWriteOnce", "ReadWriteOncePod"));
    cluster.apply(&pod("one", "alone", ""));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
    cluster.apply(&pod("two", "alone", ""));
    cluster.apply(&pod("three", "alone", &format!(", nodeName: {node}")));
    says(
        &cluster,
        "pod/two",
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
    );
    says(&cluster, "pod/three", "volume uses the ReadWriteOncePod access mode and is already in use by another pod");
    cluster.kubectl(&["delete", "pod/one", "pod/two"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/three", "--timeout=120s"]);

    // Attributes that nobody can change, and the class that is kept as long as a claim names it.
    cluster.apply(
        "apiVersion: storage.k8s.io/v1\nkind: VolumeAttributesClass\nmetadata: {name: gold}\ndriverName: \
            rancher.io/local-path\n\
         parameters: {iops: '9'}\n",
    );
    cluster.kubectl(&["patch", "pvc/grows", "-p", r#"{"spec":{"volumeAttributesClassName":"gold"}}"#]);
    cluster.eventually("it is infeasible", || {
        cluster.field("pvc/grows", "{.status.modifyVolumeStatus.status} {.status.conditions[*].type}")
            == "Infeasible ModifyVolumeError"
    });
    cluster.kubectl(&["delete", "vac/gold", "--wait=false"]);
    assert!(cluster.kubectl(&["get", "vac"]).contains("gold"), "a class in use is kept");
    cluster.kubectl(&["patch", "pvc/grows", "-p", r#"{"spec":{"volumeAttributesClassName":null}}"#]);
    cluster.kubectl(&["wait", "--for=delete", "vac/gold", "--timeout=60s"]);
    let volume = cluster.field("pvc/grows", "{.spec.volumeName}");
    for (object, text) in [
        ("sc/grows", "AllowVolumeExpansion:  True"),
        (&*format!("pv/{volume}"), "Node Affinity:"),
        ("pvc/grows", "128Mi"),
    ] {
        says(&cluster, object, text);
    }
    cluster.no_promise_is_broken();
}
