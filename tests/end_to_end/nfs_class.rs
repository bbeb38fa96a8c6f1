//! A class that gives every claim a folder of an NFS export: shared, with its size, on our own server and on another.

use std::fs;

use crate::harness::nfs_server::{NfsServer, Software};
use crate::harness::{Cluster, text};

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: nfs}
provisioner: mainstay.io/nfs
parameters: {server: 127.0.0.1, share: /exports/data, subDir: 'team/${pvc.metadata.name}'}
mountOptions: ['timeo=50']
allowVolumeExpansion: true
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: nfs-csi}
provisioner: nfs.csi.k8s.io
volumeBindingMode: WaitForFirstConsumer
parameters: {server: 127.0.0.1, share: /exports/data, onDelete: retain}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {storageClassName: nfs, accessModes: [ReadWriteMany], resources: {requests: {storage: 32Mi}}}
";

fn pod(name: &str, claim: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: main, image: 'test.local/busybox:1', command: [sleep, '100000'], volumeMounts: [{{name: data, \
        mountPath: /data}}]}}
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"
    )
}

fn ready(cluster: &Cluster, pods: &[&str]) {
    for pod in pods {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=120s"]);
    }
}

/// KiB, as `df` in a pod shows them.
fn df(cluster: &Cluster, pod: &str) -> u64 {
    let shown = cluster.exec(pod, &["df", "-kP", "/data"]);
    shown
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or_else(|| panic!("{shown}"))
}

#[test]
fn v10_a_folder_of_our_own_server_is_shared_has_its_size_grows_and_goes() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(CLASS);
    // No server yet: the claim is told so, and waits.
    cluster.eventually("the claim is told", || {
        cluster.kubectl(&["describe", "pvc", "shared"]).contains("ProvisioningFailed")
    });
    assert_eq!(cluster.field("pvc/shared", "{.status.phase}{.spec.volumeName}"), "Pending");
    let mut server = NfsServer::start(&cluster, Software::Mainstay, &["data"]);
    cluster.apply(&[pod("one", "shared"), pod("two", "shared")].join("\n---\n"));
    ready(&cluster, &["one", "two"]);
    let volume = cluster.field("pvc/shared", "{.spec.volumeName}");
    let of = |path: &str| cluster.field(&format!("pv/{volume}"), path);
    assert_eq!(of("{.metadata.annotations.mainstay\\.io/size} {.spec.mountOptions[*]}"), "server timeo=50");
    assert_eq!(of("{.spec.nfs.path}"), format!("/exports/data/team/shared/{volume}"));
    fs::write(server.file("/exports/data/team/neighbour"), "stays").expect("written on the server");

    // Shared: what one writes the other reads; together they have what was asked for, and no more.
    assert_eq!((df(&cluster, "one"), df(&cluster, "two")), (32 << 10, 32 << 10));
    cluster.exec("one", &["sh", "-c", "echo ada > /data/row"]);
    assert_eq!(cluster.exec("two", &["cat", "/data/row"]), "ada\n");
    let fill = |pod: &str, file: &str| {
        let of = format!("of=/data/{file}");
        cluster.try_kubectl(&["exec", pod, "--", "dd", "if=/dev/zero", &of, "bs=1M", "count=24", "conv=fsync"])
    };
    assert!(fill("one", "first").status.success());
    let full = fill("two", "second");
    assert!(!full.status.success() && text(&full).contains("No space left on device"), "{}", text(&full));

    // kill -9 of the server: it knows what is used.
    server.kill9();
    server.go_on();
    cluster.exec("two", &["rm", "/data/second"]);
    assert!(!fill("two", "second").status.success());

    // It grows under its pods.
    cluster.kubectl(&["patch", "pvc", "shared", "-p", r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#]);
    cluster.eventually("the claim has grown", || cluster.field("pvc/shared", "{.status.capacity.storage}") == "64Mi");
    assert_eq!(df(&cluster, "two"), 64 << 10);
    assert!(fill("two", "second").status.success());

    // V2, V3: a claim in use stays; then its folder goes, and nothing beside it.
    let folder = server.file(&format!("/exports/data/team/shared/{volume}"));
    cluster.kubectl(&["delete", "pvc", "shared", "--wait=false"]);
    assert_eq!(fs::read_to_string(folder.join("row")).expect("there"), "ada\n");
    cluster.kubectl(&["delete", "pod", "one", "two"]);
    cluster.eventually("the volume is gone", || of("{.metadata.name}").is_empty());
    assert!(!folder.exists());
    assert_eq!(fs::read_to_string(server.file("/exports/data/team/neighbour")).expect("there"), "stays");
}

#[test]
fn a_foreign_server_gives_folders_without_a_size_and_the_volume_says_so() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    let server = NfsServer::start(&cluster, Software::Ganesha, &["data"]);
    cluster.apply(
        &CLASS
            .replace("class: nfs,", "class: nfs-csi,")
            .replace("storageClassName: nfs,", "storageClassName: nfs-csi,"),
    );
    cluster.eventually("the claim waits for a pod", || {
        cluster.kubectl(&["describe", "pvc", "shared"]).contains("waiting for first consumer")
    });
    cluster.apply(&pod("one", "shared"));
    ready(&cluster, &["one"]);
    let volume = cluster.field("pvc/shared", "{.spec.volumeName}");
    assert_eq!(cluster.field(&format!("pv/{volume}"), "{.metadata.annotations.mainstay\\.io/size}"), "none");
    cluster.exec("one", &["sh", "-c", "echo ada > /data/row"]);
    cluster.kubectl(&["delete", "pod", "one"]);
    cluster.kubectl(&["delete", "pvc", "shared"]);
    cluster.eventually("the volume is gone", || cluster.field(&format!("pv/{volume}"), "{.metadata.name}").is_empty());
    let row = server.file(&format!("/exports/data/{volume}/row"));
    assert_eq!(fs::read_to_string(row).expect("onDelete: retain"), "ada\n");
}
