//! Walkthrough 1 with Mainstay's own NFS server: static volumes, claims, pods, Recycle, a server that hangs.
//! The web server is Apache, and the database a shell that keeps a file: what is tested is the volumes.

mod harness;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use harness::{Cluster, text};

/// A running `mainstay nfs-server` with two exports.
struct Server {
    child: Child,
    exports: PathBuf,
}

impl Server {
    fn start(cluster: &Cluster) -> Self {
        let exports = cluster.data_dir().with_file_name("exports");
        let mut command = cluster.mainstay(&["nfs-server", "--listen", "127.0.0.1:2049", "--state-dir"]);
        command.arg(exports.join("state"));
        for name in ["data-0001", "data-0002"] {
            fs::create_dir_all(exports.join(name)).expect("a folder to export");
            command.arg("--export").arg(format!("{}:no_root_squash,clients=127.0.0.1", exports.join(name).display()));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("mainstay nfs-server");
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut output, &mut line).expect("the server's word");
        assert!(line.contains("NFS ready"), "{line}");
        Self { child, exports }
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MANIFEST: &str = r"
{apiVersion: v1, kind: PersistentVolume, metadata: {name: nfs-0001}, spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce, ReadWriteMany],
  persistentVolumeReclaimPolicy: Recycle, mountOptions: ['timeo=30', 'retrans=1'], nfs: {server: 127.0.0.1, path: EXPORTS/data-0001}}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: nfs-0002}, spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce, ReadWriteMany],
  persistentVolumeReclaimPolicy: Retain, mountOptions: ['timeo=30', 'retrans=1'], nfs: {server: 127.0.0.1, path: EXPORTS/data-0002}}}
";

fn claim(name: &str, size: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteOnce], \
         storageClassName: '', resources: {{requests: {{storage: {size}}}}}}}}}"
    )
}

fn pod(name: &str, image: &str, claim: &str, path: &str) -> String {
    let command = if image == "busybox" { ", command: [/bin/sh, -c, 'echo kept > /data/row; sync; exec sleep 1000000']" } else { "" };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: \
         'test.local/{image}:1'{command}, volumeMounts: [{{name: v, mountPath: {path}}}]}}], volumes: [{{name: v, \
         persistentVolumeClaim: {{claimName: {claim}}}}}]}}}}"
    )
}

/// kubectl takes what begins with a brace for JSON; these are YAML's flow style.
fn apply(cluster: &Cluster, manifest: &str) {
    cluster.apply(&format!("# YAML\n{manifest}"));
}

fn running(cluster: &Cluster, name: &str) {
    cluster.eventually(&format!("{name} runs"), || cluster.field(&format!("pod/{name}"), "{.status.phase}") == "Running");
}

fn page(cluster: &Cluster, pod: &str) -> String {
    let address = cluster.field(&format!("pod/{pod}"), "{.status.podIP}");
    let output = cluster.mainstay(&["fetch", &format!("http://{address}/")]).output().expect("mainstay fetch");
    text(&output)
}

fn phase_is(cluster: &Cluster, object: &str, phase: &str) {
    cluster.eventually(&format!("{object} is {phase}"), || cluster.field(object, "{.status.phase}") == phase);
}

#[test]
fn static_volumes_on_our_own_server() {
    const HTDOCS: &str = "/usr/local/apache2/htdocs";
    let mut cluster = Cluster::new();
    cluster.load(&["httpd", "busybox"]);
    let server = Server::start(&cluster);
    apply(&cluster, &MANIFEST.replace("EXPORTS", &server.exports.display().to_string()));
    phase_is(&cluster, "pv/nfs-0001", "Available");
    phase_is(&cluster, "pv/nfs-0002", "Available");
    let listed = cluster.kubectl(&["get", "pv", "nfs-0001", "--no-headers"]);
    assert!(["2Gi", "RWO,RWX", "Recycle", "Available"].iter().all(|word| listed.contains(word)), "{listed}");

    // Claims: each gets the smallest volume that fits; the third waits, and its pod with it.
    apply(&cluster, &claim("claim-mysql", "3Gi"));
    phase_is(&cluster, "pvc/claim-mysql", "Bound");
    apply(&cluster, &[claim("claim-http", "1Gi"), claim("claim-third", "1Gi")].join("\n---\n"));
    cluster.eventually("one of two claims of a size is bound", || {
        cluster.kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].spec.volumeName}"]).split_whitespace().count() == 2
    });
    let (http, third) = match cluster.field("pvc/claim-http", "{.spec.volumeName}").is_empty() {
        false => ("claim-http", "claim-third"),
        true => ("claim-third", "claim-http"),
    };
    assert_eq!(cluster.field(&format!("pvc/{http}"), "{.spec.volumeName}"), "nfs-0001");
    assert_eq!(cluster.field("pvc/claim-mysql", "{.spec.volumeName}"), "nfs-0002");
    assert_eq!(cluster.field(&format!("pvc/{third}"), "{.status.phase}"), "Pending");

    let manifests =
        [pod("mysql", "busybox", "claim-mysql", "/data"), pod("www", "httpd", http, HTDOCS), pod("waits", "httpd", third, HTDOCS)];
    apply(&cluster, &manifests.join("\n---\n"));
    running(&cluster, "mysql");
    running(&cluster, "www");
    assert_eq!(cluster.field("pod/waits", "{.status.phase}"), "Pending");
    cluster.kubectl(&["delete", "pod", "waits"]);
    cluster.kubectl(&["delete", "pvc", third]);

    // What is written on the server is served, and what is overwritten there is served anew.
    let index = server.exports.join("data-0001/index.html");
    for content in ["Hello World\n", "Hello again, World\n"] {
        fs::write(&index, content).expect("written on the server");
        cluster.eventually("the page is the server's", || page(&cluster, "www") == content);
    }

    // V7: kill -9 of the agent unmounts nothing and restarts no container.
    let container = cluster.field("pod/www", "{.status.containerStatuses[0].containerID}");
    cluster.kill9();
    cluster.up();
    assert_eq!(page(&cluster, "www"), "Hello again, World\n");
    assert_eq!(cluster.field("pod/www", "{.status.containerStatuses[0].containerID}"), container);

    // V11: a server that hangs slows nobody else; the pod that uses it can be deleted; when it is back, reads work.
    server.signal("-STOP");
    apply(
        &cluster,
        "{apiVersion: v1, kind: Pod, metadata: {name: other}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: \
         'test.local/busybox:1', command: [/bin/sleep, '1000000']}]}}",
    );
    running(&cluster, "other");
    cluster.kubectl(&["delete", "pod", "other", "www", "--timeout=100s"]);
    server.signal("-CONT");
    assert_eq!(cluster.exec("mysql", &["cat", "/data/row"]).trim(), "kept");

    apply(&cluster, &pod("www2", "httpd", http, HTDOCS));
    running(&cluster, "www2");
    cluster.eventually("the page is still there", || page(&cluster, "www2") == "Hello again, World\n");

    // A claim in use stays until its pod is gone (V2); then Recycle empties the volume, Retain keeps every byte (V3).
    cluster.kubectl(&["delete", "pvc", http, "--wait=false"]);
    assert!(!cluster.field(&format!("pvc/{http}"), "{.metadata.deletionTimestamp}").is_empty());
    assert!(index.exists());
    cluster.kubectl(&["delete", "pod", "www2", "mysql"]);
    phase_is(&cluster, "pv/nfs-0001", "Available");
    assert_eq!(fs::read_dir(server.exports.join("data-0001")).expect("the export").count(), 0);
    cluster.kubectl(&["delete", "pvc", "claim-mysql"]);
    phase_is(&cluster, "pv/nfs-0002", "Released");
    assert_eq!(fs::read_to_string(server.exports.join("data-0002/row")).expect("kept"), "kept\n");
}
