//! Volumes that hold what was asked for (V10), from a claim to the bytes of its pod.

use std::fs;

use crate::harness::Cluster;

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: main
          image: test.local/busybox:1
          command: [sleep, '100000']
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
";

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: SIZE}
provisioner: mainstay.io/local-path
volumeBindingMode: WaitForFirstConsumer
parameters: {mainstay.io/size: SIZE}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: SIZE}
spec: {storageClassName: SIZE, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
";

const PLAIN: &str = "
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: test.local/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: data, mountPath: /data}, {name: sized, mountPath: /sized}]
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: none}}
    - name: sized
      ephemeral:
        volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}}
";

const CLAIM: &str = "pvc/data-db-0";

fn ready(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
}

/// KiB, as `df` in the pod shows them.
fn df(cluster: &Cluster) -> u64 {
    let text = cluster.exec("db-0", &["df", "-k", "/data"]);
    let size = text.lines().last().and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    size.unwrap_or_else(|| panic!("{text}"))
}

fn identity(cluster: &Cluster) -> String {
    cluster.field("pod/db-0", "{.metadata.uid} {.status.containerStatuses[0].containerID}")
}

/// Loop devices that have an image of this cluster.
fn devices(cluster: &Cluster) -> Vec<String> {
    let data = cluster.data_dir().display().to_string();
    let file = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    fs::read_dir("/sys/block").expect("/sys").flatten().filter_map(file).filter(|file| file.contains(&data)).collect()
}

/// Whether the kernel lets root here grow a mounted file system: CAP_SYS_RESOURCE, which some sandboxes take away.
fn grows_mounted() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(bits.trim(), 16).expect("a number") & (1 << 24) != 0
}

#[test]
fn v10_a_claim_has_its_size_keeps_it_grows_and_goes() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(SET);
    ready(&cluster);
    assert_eq!(df(&cluster), 64 << 10);
    assert_eq!(cluster.exec("db-0", &["ls", "-A", "/data"]), "", "a new volume is empty");
    let full = cluster.try_kubectl(&["exec", "db-0", "--", "dd", "if=/dev/zero", "of=/data/big", "bs=1M", "count=80"]);
    assert!(
        !full.status.success() && crate::harness::text(&full).contains("No space left on device"),
        "{}",
        crate::harness::text(&full)
    );
    cluster.exec("db-0", &["sh", "-c", "rm /data/big && echo ada > /data/row && sync"]);
    assert_eq!(devices(&cluster).len(), 1);

    // V7: neither a crash of the agent nor its restart touches what is mounted.
    let before = identity(&cluster);
    cluster.kill9();
    cluster.up();
    assert_eq!((identity(&cluster), devices(&cluster).len()), (before.clone(), 1));
    assert_eq!(cluster.exec("db-0", &["cat", "/data/row"]), "ada\n");

    cluster.kubectl(&["patch", CLAIM, "-p", r#"{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}"#]);
    if !grows_mounted() {
        cluster.eventually("the claim waits for its pod", || {
            cluster.field(CLAIM, "{.status.conditions[*].type}") == "FileSystemResizePending"
                && cluster.kubectl(&["describe", CLAIM]).contains("CAP_SYS_RESOURCE")
        });
        assert_eq!(
            cluster.field(CLAIM, "{.status.capacity.storage} {.status.allocatedResources.storage}"),
            "64Mi 128Mi",
            "not yet real"
        );
        assert_eq!((identity(&cluster), df(&cluster)), (before.clone(), 64 << 10));
        cluster.kubectl(&["delete", "pod", "db-0", "--wait=false"]);
    }
    cluster.eventually("the claim has grown", || cluster.field(CLAIM, "{.status.capacity.storage}") == "128Mi");
    ready(&cluster);
    assert_eq!(grows_mounted(), identity(&cluster) == before, "it grows under its pod where the kernel allows that");
    assert_eq!(df(&cluster), 128 << 10);
    assert_eq!(cluster.field(CLAIM, "{.status.conditions[*].type}{.status.allocatedResourceStatuses}"), "");
    let told = cluster.kubectl(&["describe", CLAIM]);
    assert!(told.contains("FileSystemResizeRequired") && told.contains("FileSystemResizeSuccessful"), "{told}");
    let smaller = cluster.refused(&["patch", CLAIM, "-p", r#"{"spec":{"resources":{"requests":{"storage":"32Mi"}}}}"#]);
    assert!(smaller.contains("field can not be less than"), "{smaller}");
    assert_eq!(cluster.exec("db-0", &["cat", "/data/row"]), "ada\n");

    // Without a pod nothing is mounted; a new pod of the same name finds its data.
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=0"]);
    cluster.eventually("the volume is let go", || devices(&cluster).is_empty());
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=1"]);
    cluster.eventually("the pod is back", || cluster.field("pod/db-0", "{.status.phase}") == "Running");
    assert_eq!(cluster.exec("db-0", &["cat", "/data/row"]), "ada\n");

    let volume = cluster.field(CLAIM, "{.spec.volumeName}");
    let folder = cluster.data_dir().join("volumes").join(&volume);
    assert!(folder.join("image").is_file());
    cluster.kubectl(&["delete", "statefulset", "db"]);
    cluster.kubectl(&["delete", CLAIM]);
    cluster.eventually("the volume is gone", || {
        !folder.exists() && cluster.field(&format!("pv/{volume}"), "{.metadata.name}").is_empty()
    });
    assert_eq!(devices(&cluster), Vec::<String>::new());
}

#[test]
fn v10_a_class_without_sizes_says_so_and_one_that_is_not_understood_is_refused() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    for size in ["none", "huge"] {
        cluster.apply(&CLASS.replace("SIZE", size));
    }
    cluster.apply(PLAIN);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/plain", "--timeout=60s"]);
    let volume = cluster.field("pvc/none", "{.spec.volumeName}");
    assert_eq!(cluster.field(&format!("pv/{volume}"), "{.metadata.annotations.mainstay\\.io/size}"), "none");
    assert_eq!(devices(&cluster).len(), 1, "only the ephemeral volume, of the default class, is an image");
    cluster.eventually("the claim is told", || {
        let told = cluster.kubectl(&["describe", "pvc/huge"]);
        told.contains("ProvisioningFailed") && told.contains("\"huge\" is not one of auto, image, none")
    });
    // `down` leaves the data, and neither mounts nor devices.
    cluster.stop();
    let down = cluster.mainstay(&["down", "--data-dir"]).arg(cluster.data_dir()).output().expect("run");
    assert!(down.status.success(), "{}", crate::harness::text(&down));
    assert_eq!((cluster.left_over(), devices(&cluster)), (Vec::new(), Vec::new()));
    cluster.up();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/plain", "--timeout=60s"]);
    assert_eq!(devices(&cluster).len(), 1, "as after a reboot of the machine");
}
