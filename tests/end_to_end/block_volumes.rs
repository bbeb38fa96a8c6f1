//! Block devices of claims (`volumeMode: Block`) that outlive agent, pod and growth.

use crate::harness::Cluster;

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: raw}
spec: {clusterIP: None, selector: {app: raw}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: raw}
spec:
  serviceName: raw
  selector: {matchLabels: {app: raw}}
  template:
    metadata: {labels: {app: raw}}
    spec:
      terminationGracePeriodSeconds: 0
      initContainers:
        - name: first
          image: test.local/busybox:1
          command: [sh, -c, 'test -b /dev/data && (head -c 5 /dev/data | grep hello > /dev/termination-log; true)']
          volumeDevices: [{name: data, devicePath: /dev/data}]
      containers:
        - name: main
          image: test.local/busybox:1
          command: [sleep, '100000']
          volumeDevices: [{name: data, devicePath: /dev/data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 32Mi}}}
";

fn ready(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "statefulset/raw", "--timeout=120s"]);
}

fn read(cluster: &Cluster) -> String {
    cluster.exec("raw-0", &["head", "-c", "5", "/dev/data"])
}

fn size(cluster: &Cluster) -> String {
    cluster.exec("raw-0", &["blockdev", "--getsize64", "/dev/data"]).trim().to_owned()
}

#[test]
fn v4_v7_v10_a_sets_block_device_outlives_agent_and_pod_and_grows() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(SET);
    ready(&cluster);
    assert_eq!(size(&cluster), (32 << 20).to_string(), "V10");
    let write = "printf hello | dd of=/dev/data conv=notrunc,fsync 2>&1; stat -c %t:%T /dev/data";
    cluster.exec("raw-0", &["sh", "-c", write]);
    let identity = || cluster.field("pod/raw-0", "{.metadata.uid} {.status.containerStatuses[0].containerID}");
    let before = identity();

    // V7: with the agent gone and back the same container reads the same device.
    cluster.kill9();
    cluster.up();
    ready(&cluster);
    let identity = || cluster.field("pod/raw-0", "{.metadata.uid} {.status.containerStatuses[0].containerID}");
    assert_eq!((read(&cluster), identity()), ("hello".to_owned(), before));

    // V10: it grows while it is in use.
    cluster.kubectl(&["patch", "pvc/data-raw-0", "-p", r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#]);
    cluster
        .eventually("the claim has grown", || cluster.field("pvc/data-raw-0", "{.status.capacity.storage}") == "64Mi");
    assert_eq!(size(&cluster), (64 << 20).to_string());

    // X6: a container that comes later gets the device as a device, and never the folder of all containers' nodes.
    let mut pod: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "pod/raw-0", "-o", "json"])).unwrap();
    let look = |name: &str, field: &str, given: serde_json::Value| {
        let command = ["sh", "-c", "head -c 5 /dev/data > /dev/termination-log"];
        serde_json::json!({"name": name, "image": "test.local/busybox:1", "command": command, field: [given]})
    };
    pod["spec"]["ephemeralContainers"] = serde_json::json!([
        look("look", "volumeDevices", serde_json::json!({"name": "data", "devicePath": "/dev/data"})),
        look("wrong", "volumeMounts", serde_json::json!({"name": "data", "mountPath": "/nodes"})),
    ]);
    let path = "/api/v1/namespaces/default/pods/raw-0/ephemeralcontainers";
    let output = cluster.kubectl_with(&["replace", "--raw", path, "-f", "-"], &pod.to_string());
    assert!(output.status.success(), "{output:?}");
    let state = |index: u8, of: &str| {
        cluster.field("pod/raw-0", &format!("{{.status.ephemeralContainerStatuses[{index}].state.{of}.message}}"))
    };
    cluster.eventually("the device was read", || state(0, "terminated") == "hello");
    let why = "volume data has volumeMode Block, but is specified in volumeMounts";
    cluster.eventually("the mount is refused", || state(1, "waiting").contains(why));

    // V4: the next pod of the same identity has it, and so has its init container.
    cluster.kubectl(&["delete", "pod/raw-0"]);
    ready(&cluster);
    assert_eq!(read(&cluster), "hello");
    let said = "{.status.initContainerStatuses[0].state.terminated.message}";
    assert_eq!(cluster.field("pod/raw-0", said).trim(), "hello");

    // X8: a set that mounts it as a file system is told why it waits.
    let wrong = "
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  containers:
    - {name: main, image: 'test.local/busybox:1', volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: data-raw-0}}]
";
    cluster.apply(wrong);
    cluster.eventually("the pod is told", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=wrong"]);
        events.contains("volume data has volumeMode Block, but is specified in volumeMounts")
    });
    cluster.kubectl(&["delete", "pod/wrong", "--grace-period=0", "--force"]);

    // V3: what nobody uses any more goes with its claim, and no loop device is left.
    cluster.kubectl(&["delete", "statefulset/raw"]);
    cluster.eventually("the pod is gone", || cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    cluster.kubectl(&["delete", "pvc/data-raw-0"]);
    cluster.eventually("the volume is gone", || cluster.kubectl(&["get", "pv", "-o", "name"]).is_empty());
    let data = cluster.data_dir().display().to_string();
    let file = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    let mut attached = std::fs::read_dir("/sys/block").expect("/sys").flatten().filter_map(file);
    assert!(!attached.any(|file| file.contains(&data)));
}

const SNAPSHOT: &str = "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: first}
spec: {source: {persistentVolumeClaimName: data-raw-0}}
";

/// A claim that starts as something else, and a pod that says what its first bytes are.
const COPY: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: MODE
  resources: {requests: {storage: 64Mi}}
  dataSource: {SOURCE}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: test.local/busybox:1
      command: [sh, -c, 'echo $(head -c 5 /dev/data) $(blockdev --getsize64 /dev/data) > /dev/termination-log']
      volumeDevices: [{name: data, devicePath: /dev/data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: NAME}}]
";

#[test]
fn v4_a_block_device_is_copied_by_snapshot_and_clone_and_never_half() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(SET);
    ready(&cluster);
    cluster.exec("raw-0", &["sh", "-c", "printf hello | dd of=/dev/data conv=notrunc,fsync 2>&1"]);
    cluster.apply(SNAPSHOT);
    // In use it is copied only where the machine's file system shares blocks; else it is said what to do.
    let is_ready = || cluster.field("vs/first", "{.status.readyToUse}") == "true";
    cluster.eventually("the snapshot is taken, or told why not", || {
        let said = cluster.field("vs/first", "{.status.error.message}");
        is_ready() || said.contains("it can be copied while no pod uses it")
    });
    cluster.kubectl(&["scale", "statefulset/raw", "--replicas=0"]);
    cluster.eventually("the snapshot is taken", is_ready);
    let content = cluster.field("vs/first", "{.status.boundVolumeSnapshotContentName}");
    let mode = cluster.field(&format!("vsc/{content}"), "{.spec.sourceVolumeMode}");
    assert_eq!((mode.as_str(), cluster.field("vs/first", "{.status.error}").as_str()), ("Block", ""));

    let snapshot = "apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: first";
    let claim = "kind: PersistentVolumeClaim, name: data-raw-0";
    let copy = |name: &str, mode: &str, source: &str| {
        cluster.apply(&COPY.replace("NAME", name).replace("MODE", mode).replace("SOURCE", source));
    };
    copy("restored", "Block", snapshot);
    copy("cloned", "Block", claim);
    copy("other", "Filesystem", snapshot);
    copy("wrong", "Filesystem", claim);
    for name in ["restored", "cloned"] {
        let said = "{.status.containerStatuses[0].state.terminated.message}";
        cluster.eventually("the copy was read", || {
            cluster.field(&format!("pod/{name}"), said).trim() == format!("hello {}", 64 << 20)
        });
    }
    for (name, why) in [
        ("other", "requested volume other modifies the mode of the source volume but does not have permission"),
        ("wrong", "the source PVC and destination PVCs must have the same volume mode for cloning"),
    ] {
        cluster.eventually("a claim of the other mode is told", || {
            cluster.kubectl(&["describe", "pvc", name]).contains(why)
        });
        assert_eq!(cluster.field(&format!("pvc/{name}"), "{.status.phase}{.spec.volumeName}"), "Pending");
    }
    // The source goes on as it was.
    cluster.kubectl(&["scale", "statefulset/raw", "--replicas=1"]);
    ready(&cluster);
    assert_eq!(read(&cluster), "hello");
}
