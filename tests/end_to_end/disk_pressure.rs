//! X4 on a node whose disk is small: who fills it goes, and a database whose volume fills it stays.

use crate::harness::{Checks, Cluster};

/// The node's own file system, and how much of it should be left.
const SIZE: &str = "1g";
const THRESHOLD: &str = "nodefs.available<200Mi";
/// MiB that are left by who fills it.
const LEFT: u64 = 120;

fn pod(name: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
         containers:\n  - name: c\n    image: test.local/busybox:1\n    imagePullPolicy: Never\n    \
         command: [sh, -c, '{script} sleep 100000']\n"
    )
}

const DATABASE: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  replicas: 1
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: c
          image: test.local/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "echo begun; sleep 1000000"]
          volumeMounts: [{ name: data, mountPath: /data }]
  volumeClaimTemplates:
    - metadata: { name: data }
      spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: SIZE } } }
"#;

/// MiB that the node's file system has left.
fn room(cluster: &Cluster) -> u64 {
    let output = cluster.inside("df").args(["-BM", "--output=avail"]).arg(cluster.data_dir()).output().expect("df");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().last().and_then(|line| line.trim().trim_end_matches('M').parse().ok()).expect("a number")
}

/// A condition's status and reason, and the taints.
fn node(cluster: &Cluster) -> String {
    let of = "{.status.conditions[?(@.type==\"DiskPressure\")].status} \
              {.status.conditions[?(@.type==\"DiskPressure\")].reason} {.spec.taints[*].key}";
    cluster.field("node/node-1", of)
}

#[test]
fn x4_who_fills_the_nodes_disk_goes_and_a_database_whose_volume_does_stays() {
    let checks = Checks::default();
    let mut cluster = Cluster::unstarted();
    let data = cluster.data_dir();
    std::fs::create_dir(&data).expect("a folder");
    let size = format!("size={SIZE},mode=700");
    let mounted = cluster.inside("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&data).status();
    assert!(mounted.expect("mount").success());
    let policy = format!("--eviction-hard={THRESHOLD}");
    cluster.up_with(&[&policy, "--eviction-pressure-transition-period=3s"]);
    cluster.load(&["busybox"]);
    // Room for the volume is promised before it is used.
    cluster.apply(&DATABASE.replace("SIZE", &format!("{}Mi", room(&cluster) - 50)));
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    let identity = || cluster.field("pod/db-0", "{.metadata.uid} {.status.containerStatuses[*].restartCount}");
    let before = identity();
    cluster.apply(&pod("modest", "dd if=/dev/zero of=/file bs=1M count=3;", ""));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/modest", "--timeout=60s"]);
    let capacity = r#"{"status":{"capacity":{"example.com/socket":"3"}}}"#;
    cluster.kubectl(&["patch", "node", "node-1", "--subresource=status", "--type=merge", "-p", capacity]);
    let allocatable = "{.status.allocatable.example\\.com/socket}";
    cluster.eventually("what somebody notes is allocatable", || cluster.field("node/node-1", allocatable) == "3");
    checks.equal("well", &node(&cluster), "False KubeletHasNoDiskPressure");
    who_fills_it_goes(&cluster, &checks);
    checks.equal("the database did not notice", &identity(), &before);
    checks.equal("who is modest stays", &cluster.field("pod/modest", "{.status.phase}"), "Running");

    // Now the volume: nobody's end would give anything back.
    let count = format!("count={}", room(&cluster) - LEFT);
    cluster.exec("db-0", &["dd", "if=/dev/zero", "of=/data/large", "bs=1M", &count, "conv=fsync"]);
    cluster.eventually("a volume fills the disk", || node(&cluster).starts_with("True"));
    cluster.eventually("it is said that no eviction would help", || {
        cluster.kubectl(&["get", "events", "-A"]).contains("no pod has enough of its own there")
    });
    checks.equal("the database runs", &identity(), &before);
    checks.equal("who is modest stays", &cluster.field("pod/modest", "{.status.phase}"), "Running");
    // Somebody gives the machine a larger disk.
    let grown = cluster.inside("mount").args(["-o", "remount,size=3g"]).arg(&data).status();
    assert!(grown.expect("mount").success());
    cluster.eventually("there is room again", || node(&cluster) == "False KubeletHasNoDiskPressure ");
    checks.equal("the database runs", &identity(), &before);
}

fn who_fills_it_goes(cluster: &Cluster, checks: &Checks) {
    let both = "  volumes: [{name: e, emptyDir: {}}]\n";
    let half = (room(cluster) - LEFT) / 2;
    let fill = format!("for file in /file /e/file; do dd if=/dev/zero of=$file bs=1M count={half}; done;");
    let mount = "    volumeMounts: [{name: e, mountPath: /e}]\n";
    cluster.apply(&(pod("hog", &fill, both) + mount));
    let of = |pod: &str, path: &str| cluster.field(&format!("pod/{pod}"), path);
    cluster.eventually("the node says so", || {
        node(cluster) == "True KubeletHasDiskPressure node.kubernetes.io/disk-pressure"
    });
    // Bound by name, so that only the node can refuse it; and one that waits for the scheduler.
    cluster.apply(&pod("named", "", "  nodeName: node-1\n"));
    cluster.apply(&pod("late", "", ""));
    cluster.eventually("it is evicted", || of("hog", "{.status.phase} {.status.reason}") == "Failed Evicted");
    let message = of("hog", "{.status.message}");
    let begins = "The node was low on resource: ephemeral-storage. Threshold quantity: 200Mi, available: ";
    checks.holds("in upstream's words", message.starts_with(begins), &message);
    let ends = "Container c was using ";
    checks.holds("with who had what", message.contains(ends) && message.contains(", request is 0, "), &message);
    let disrupted = "{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}";
    checks.equal("it was not its own doing", &of("hog", disrupted), "TerminationByKubelet");
    cluster.eventually("there is room again", || node(cluster) == "False KubeletHasNoDiskPressure ");
    let named = of("named", "{.status.phase} {.status.reason} {.status.message}");
    let refused = "Failed Evicted Pod was rejected: The node had condition: [DiskPressure]. ";
    checks.holds("a pod that came meanwhile", named == refused || named.starts_with("Running"), &named);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]);
    let events = cluster.kubectl(&["get", "events", "-A", "-o", "custom-columns=R:.reason,M:.message"]);
    for (reason, message) in [
        ("EvictionThresholdMet", "Attempting to reclaim ephemeral-storage"),
        ("NodeHasDiskPressure", "Node node-1 status is now: NodeHasDiskPressure"),
        ("NodeHasNoDiskPressure", "Node node-1 status is now: NodeHasNoDiskPressure"),
        ("NodeReady", "Node node-1 status is now: NodeReady"),
        ("Starting", "Starting kubelet."),
        ("RegisteredNode", "Node node-1 event: Registered Node node-1 in Controller"),
    ] {
        let line = events.lines().find(|line| line.starts_with(reason) && line.contains(message));
        checks.holds(reason, line.is_some(), &events);
    }
}
