//! What becomes of a cluster whose folder, machine, name or terminal is another than before.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::{ANY_DISK, Cluster, text};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: 'test.local/busybox:1', command: [sleep, '100000']}
";

const KEEPER: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: test.local/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
";

/// A cluster with a pod that is Ready.
fn with(manifest: &str, pod: &str) -> Cluster {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(manifest);
    cluster.kubectl(&["wait", "--for=condition=Ready", pod, "--timeout=60s"]);
    cluster
}

/// What comes of a connection from the machine to a port of the pod that nobody listens on.
fn refusal(cluster: &Cluster) -> String {
    let address = cluster.field("pod/sleeper", "{.status.podIP}");
    let connect = format!("timeout 3 bash -c 'echo > /dev/tcp/{address}/9'");
    text(&cluster.inside("bash").args(["-c", &connect]).output().expect("bash"))
}

fn is_reached(cluster: &Cluster) -> bool {
    refusal(cluster).contains("Connection refused")
}

fn down(cluster: &Cluster, data_dir: &Path) -> String {
    let down = cluster.mainstay(&["down", "--data-dir"]).arg(data_dir).output().expect("run");
    assert!(down.status.success(), "{}", text(&down));
    text(&down)
}

/// `mainstay up` on a folder, which is not waited for; what it says on standard error goes to a file.
fn begin(cluster: &Cluster, data_dir: &Path, node: &str, said: &Path) -> Child {
    begin_with(cluster, data_dir, node, said, &[])
}

fn begin_with(cluster: &Cluster, data_dir: &Path, node: &str, said: &Path, more: &[&str]) -> Child {
    let mut command = cluster.mainstay(&["up", "--listen", "127.0.0.1:6443", ANY_DISK, "--node-name", node]);
    command.args(more);
    command.arg("--kubeconfig").arg(cluster.folder().join("kubeconfig")).arg("--data-dir").arg(data_dir);
    let said = fs::File::create(said).expect("a file");
    command.stdout(Stdio::null()).stderr(said).spawn().expect("mainstay")
}

fn end(mut server: Child) {
    assert!(Command::new("kill").arg(server.id().to_string()).status().expect("kill").success());
    assert!(server.wait().expect("reaped").success());
}

#[test]
fn v7_n1_a_running_clusters_network_is_nobody_elses_to_take_and_is_made_again() {
    let mut cluster = with(POD, "pod/sleeper");
    let other = cluster.folder().join("other");
    let ports = ["--listen", "127.0.0.1:7443", "--node-port", "10251", "--node-name", "other", "--data-dir"];
    let second = cluster.mainstay(&[&["up"], &ports[..]].concat()).arg(&other).output().expect("run");
    let said = text(&second);
    assert!(!second.status.success() && said.contains("another node runs in this network already"), "{said}");
    assert!(is_reached(&cluster), "{}", refusal(&cluster));
    let said = down(&cluster, &other);
    assert!(said.contains("stay: the pod network here is that of"), "{said}");
    assert!(is_reached(&cluster), "{}", refusal(&cluster));
    // Its containers go on while it does not run, and so does their network.
    cluster.stop();
    down(&cluster, &other);
    cluster.up();
    assert!(is_reached(&cluster), "{}", refusal(&cluster));

    let ip = |cluster: &Cluster, args: &[&str]| {
        assert!(cluster.inside("ip").args(args).status().expect("ip").success());
    };
    ip(&cluster, &["link", "del", "mst-pods"]);
    cluster.eventually("the bridge is there again", || is_reached(&cluster));
    let links = text(&cluster.inside("ip").args(["-o", "link", "show", "type", "veth"]).output().expect("ip"));
    let pair = links.split(": ").nth(1).and_then(|name| name.split('@').next()).expect("the pod's pair");
    cluster.stop();
    ip(&cluster, &["link", "del", pair]);
    ip(&cluster, &["link", "del", "mst-services"]);
    cluster.up();
    cluster.eventually("the pod's pair is there again", || is_reached(&cluster));
    assert_eq!(cluster.field("pod/sleeper", "{.status.containerStatuses[0].restartCount}"), "0");
}

/// Another machine, another folder, another name: an API that can be asked, pods that believe it, and a node.
#[test]
fn x1_a_store_that_is_restored_elsewhere_is_a_cluster_again() {
    let mut cluster = with(POD, "pod/sleeper");
    cluster.stop();
    let data = cluster.data_dir();
    let store = |command: &str, file: &Path| {
        let output =
            cluster.mainstay(&["store", command]).arg(file).arg("--data-dir").arg(&data).output().expect("run");
        assert!(output.status.success(), "{}", text(&output));
    };
    let export = cluster.folder().join("export");
    store("export", &export);
    down(&cluster, &data);
    fs::rename(&data, cluster.folder().join("before")).expect("moved away");
    store("restore", &export);

    // The old machine may be alive, so its name is not taken; but the API is there for a person to say so.
    // Nor are new keys made without a word: every kubeconfig and token of the cluster would be nobody's.
    let without =
        cluster.mainstay(&["up", "--listen", "127.0.0.1:6443", "--data-dir"]).arg(&data).output().expect("run");
    assert!(!without.status.success() && text(&without).contains("--new-keys"), "{}", text(&without));
    let said = cluster.folder().join("said");
    let server = begin_with(&cluster, &data, "node-1", &said, &["--new-keys"]);
    let told = || fs::read_to_string(&said).unwrap_or_default();
    cluster.eventually("the API is there", || cluster.try_kubectl(&["get", "nodes"]).status.success());
    cluster.eventually("why it is no node is said", || told().contains("another machine is node node-1 already"));
    let ca = fs::read_to_string(data.join("pki/ca.crt")).expect("a CA");
    let before = fs::read_to_string(cluster.folder().join("before/pki/ca.crt")).expect("a CA");
    assert_ne!(ca, before);
    cluster.kubectl(&["create", "namespace", "made-after"]);
    cluster.kubectl(&["create", "namespace", "made-later"]);
    for namespace in ["kube-system", "default", "made-after", "made-later"] {
        let published = || {
            let map = ["get", "configmap", "kube-root-ca.crt", "-n", namespace, "-o", "jsonpath={.data.ca\\.crt}"];
            text(&cluster.try_kubectl(&map))
        };
        cluster.eventually("pods have the present CA", || published() == ca);
    }
    cluster.kubectl(&["delete", "node", "node-1"]);
    let ready = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
    cluster.eventually("the machine is a node", || cluster.field("node/node-1", ready) == "True");
    end(server);

    // As a node of another name it has another range than the one that is there.
    down(&cluster, &data);
    fs::rename(&data, cluster.folder().join("before-2")).expect("moved away");
    store("restore", &export);
    cluster.up_with(&["--node-name", "node-2", "--new-keys"]);
    assert_eq!(cluster.field("node/node-2", "{.spec.podCIDR}"), "10.244.1.0/24");
    cluster.stop();
    let mut renamed = cluster.mainstay(&["up", "--listen", "127.0.0.1:6443", "--node-name", "node-3", "--data-dir"]);
    let renamed = text(&renamed.arg(&data).output().expect("run"));
    assert!(renamed.contains("this machine is node node-2") && renamed.trim().lines().count() == 1, "{renamed}");
}

#[test]
fn v5_a_data_folder_that_was_moved_has_its_volumes() {
    let mut cluster = with(KEEPER, "pod/keeper");
    cluster.exec("keeper", &["sh", "-c", "echo ada > /data/row && sync"]);
    cluster.stop();
    let moved = cluster.folder().join("moved");
    down(&cluster, &cluster.data_dir());
    fs::rename(cluster.data_dir(), &moved).expect("moved");
    let server = begin(&cluster, &moved, "node-1", &cluster.folder().join("said"));
    let running = || {
        String::from_utf8_lossy(&cluster.try_kubectl(&["exec", "keeper", "--", "cat", "/data/row"]).stdout).into_owned()
    };
    cluster.eventually("the pod has its volume", || running() == "ada\n");
    let volume = cluster.field("pvc/data", "{.spec.volumeName}");
    cluster.kubectl(&["delete", "pod/keeper", "pvc/data", "--wait=true", "--timeout=60s"]);
    cluster.eventually("the volume is gone", || !moved.join("volumes").join(&volume).exists());
    end(server);
    down(&cluster, &moved);
}

/// Whoever reads what it says may end: `mainstay up | head -1`.
#[test]
fn v7_nothing_ends_because_nobody_reads_any_more() {
    let first_line = |mut command: Command| {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("mainstay");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        child
    };
    let mut demo = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    demo.args(["demo", "--plain"]);
    let mut demo = first_line(demo);
    let folder = std::env::temp_dir().join(format!("mainstay-demo-{}", demo.id()));
    demo.wait().expect("reaped");
    assert!(!folder.exists(), "the demonstration takes everything away again");

    let cluster = Cluster::unstarted();
    let mut up = cluster.mainstay(&["up", "--listen", "127.0.0.1:6443", ANY_DISK, "--node-name", "node-1"]);
    up.arg("--kubeconfig").arg(cluster.folder().join("kubeconfig")).arg("--data-dir").arg(cluster.data_dir());
    let server = first_line(up);
    let ready = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
    cluster.eventually("the node is there", || cluster.field("node/node-1", ready) == "True");
    end(server);
    assert!(!cluster.data_dir().join("pid").exists(), "it stopped in order");
}
