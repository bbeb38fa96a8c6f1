//! Walkthrough 1, to the letter: static NFS volumes, claims and pods, on Mainstay's own server and on a foreign one.

use std::fs;
use std::process::{Command, Output};

use crate::harness::nfs_server::{NfsServer, Software};
use crate::harness::{Cluster, text};

const THIRD_VOLUME: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: {name: nfs-0003}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  # Six seconds of silence are an error: a test need not wait longer.
  mountOptions: [timeo=30, retrans=1]
  nfs: {server: 127.0.0.1, path: /exports/data-0003}
";

const THIRD_CLAIM: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim-third}
spec: {accessModes: [ReadWriteOnce], storageClassName: '', resources: {requests: {storage: 1Gi}}}
";

const OTHER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: 'test.local/busybox:1', command: [sleep, '1000000']}]
";

/// The manifest of one of the walkthrough's pods, perhaps under another name and with another claim.
fn pod(cluster: &Cluster, name: &str, as_name: &str, claim: &str) -> String {
    let all = cluster.manifest("nfs-pods.yaml");
    let one = all.split("---").find(|one| one.contains(&format!("name: {name}\n"))).expect("a pod of that name");
    let named = one.replacen(&format!("name: {name}\n"), &format!("name: {as_name}\n"), 1);
    let own = named.lines().find_map(|line| line.trim().strip_prefix("claimName: ")).expect("a claim").to_owned();
    named.replace(&own, claim)
}

/// `kubectl create -f`.
fn create(cluster: &Cluster, manifest: &str) {
    let output = cluster.kubectl_with(&["create", "-f", "-"], manifest);
    assert!(output.status.success(), "kubectl create\n{manifest}\n{}", text(&output));
}

fn phase_is(cluster: &Cluster, object: &str, phase: &str) {
    cluster.eventually(&format!("{object} is {phase}"), || cluster.field(object, "{.status.phase}") == phase);
}

fn curl_command(cluster: &Cluster, pod: &str) -> Command {
    let address = cluster.field(&format!("pod/{pod}"), "{.status.podIP}");
    let mut curl = cluster.inside("curl");
    curl.args(["-sS", "--fail", "--max-time", "60", &format!("http://{address}/")]);
    curl
}

fn curl(cluster: &Cluster, pod: &str) -> Output {
    curl_command(cluster, pod).output().expect("curl")
}

/// The page of a pod as soon as its server listens.
fn page(cluster: &Cluster, pod: &str) -> String {
    cluster.eventually(&format!("{pod} answers"), || curl(cluster, pod).status.success());
    text(&curl(cluster, pod))
}

/// The columns of a line of `kubectl get`, which two spaces divide; those of a header have one space within.
fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

fn sql(cluster: &Cluster, statement: &str) -> Output {
    let password = "-pyourpassword";
    cluster.try_kubectl(&[
        "exec",
        "mysql",
        "--",
        "mariadb",
        "-h",
        "127.0.0.1",
        "-uroot",
        password,
        "-N",
        "-e",
        statement,
    ])
}

fn database_answers(cluster: &Cluster) {
    cluster.eventually("the database takes connections", || sql(cluster, "select 1").status.success());
}

/// Pods with their containers and restarts.
fn containers(cluster: &Cluster) -> String {
    let each = "{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} \
        {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    cluster.kubectl(&["get", "pods", "-o", &format!("jsonpath={each}")])
}

struct World {
    cluster: Cluster,
    server: NfsServer,
}

impl World {
    fn walk(software: Software) {
        let cluster = Cluster::new();
        let server = NfsServer::start(&cluster, software, &["data-0001", "data-0002", "data-0003"]);
        cluster.load(&["nginx", "mariadb", "busybox"]);
        let mut world = Self { cluster, server };
        world.step_2_volumes();
        world.step_3_claims();
        world.steps_4_and_5_pods();
        world.step_6_another_pod_and_a_killed_agent();
        world.step_7_reclaim();
        world.step_8_a_server_that_stops();
    }

    fn step_2_volumes(&self) {
        let cluster = &self.cluster;
        create(cluster, &cluster.manifest("nfs-volumes.yaml"));
        phase_is(cluster, "pv/nfs-0001", "Available");
        phase_is(cluster, "pv/nfs-0002", "Available");
        let listed = cluster.kubectl(&["get", "pv"]);
        let lines: Vec<Vec<&str>> = listed.lines().map(columns).collect();
        assert_eq!(
            lines[0][..7],
            ["NAME", "CAPACITY", "ACCESS MODES", "RECLAIM POLICY", "STATUS", "CLAIM", "STORAGECLASS"],
            "{listed}"
        );
        assert_eq!(lines[1][..5], ["nfs-0001", "2Gi", "RWO,RWX", "Recycle", "Available"], "{listed}");
        assert_eq!(lines[2][..5], ["nfs-0002", "5Gi", "RWO,RWX", "Recycle", "Available"], "{listed}");
    }

    fn step_3_claims(&self) {
        let cluster = &self.cluster;
        create(cluster, &cluster.manifest("nfs-claims.yaml"));
        phase_is(cluster, "pvc/claim-mysql", "Bound");
        phase_is(cluster, "pvc/claim-http", "Bound");
        let listed = cluster.kubectl(&["get", "pvc"]);
        let lines: Vec<Vec<&str>> = listed.lines().map(columns).collect();
        assert_eq!(lines[1][..5], ["claim-http", "Bound", "nfs-0001", "2Gi", "RWO,RWX"], "{listed}");
        assert_eq!(lines[2][..5], ["claim-mysql", "Bound", "nfs-0002", "5Gi", "RWO,RWX"], "{listed}");
        create(cluster, THIRD_CLAIM);
        create(cluster, &pod(cluster, "www", "www3", "claim-third"));
        cluster.eventually("it is said why the pod waits", || {
            cluster.kubectl(&["describe", "pod", "www3"]).contains("FailedScheduling")
        });
    }

    fn steps_4_and_5_pods(&self) {
        let cluster = &self.cluster;
        create(cluster, &cluster.manifest("nfs-pods.yaml"));
        phase_is(cluster, "pod/mysql", "Running");
        phase_is(cluster, "pod/www", "Running");
        for waiting in ["pvc/claim-third", "pod/www3"] {
            assert_eq!(cluster.field(waiting, "{.status.phase}"), "Pending");
        }
        fs::write(self.server.file("/exports/data-0003/index.html"), "third\n").expect("written on the server");
        create(cluster, THIRD_VOLUME);
        phase_is(cluster, "pvc/claim-third", "Bound");
        phase_is(cluster, "pod/www3", "Running");
        assert_eq!(page(cluster, "www3"), "third\n");

        let index = self.server.file("/exports/data-0001/index.html");
        fs::write(&index, "Hello World\n").expect("written on the server");
        assert_eq!(page(cluster, "www"), "Hello World\n");
        // Of the same length: only its time tells that it is another.
        fs::write(&index, "Hello Earth\n").expect("written on the server");
        assert_eq!(text(&curl(cluster, "www")), "Hello Earth\n", "the next curl has the new text");
    }

    fn step_6_another_pod_and_a_killed_agent(&mut self) {
        database_answers(&self.cluster);
        let made = sql(
            &self.cluster,
            "create database app; create table app.users (name text); insert into app.users values ('ada')",
        );
        assert!(made.status.success(), "{}", text(&made));
        let cluster = &self.cluster;
        cluster.kubectl(&["delete", "pod", "www", "mysql"]);
        create(cluster, &pod(cluster, "www", "www2", "claim-http"));
        create(cluster, &pod(cluster, "mysql", "mysql", "claim-mysql"));
        phase_is(cluster, "pod/www2", "Running");
        assert_eq!(page(cluster, "www2"), "Hello Earth\n");
        phase_is(cluster, "pod/mysql", "Running");
        database_answers(cluster);
        assert_eq!(text(&sql(cluster, "select name from app.users")).trim(), "ada", "the database is on the volume");

        let before = containers(cluster);
        assert!(before.lines().count() == 3 && before.lines().all(|line| line.ends_with(" 0")), "{before}");
        self.cluster.kill9();
        self.cluster.up();
        let cluster = &self.cluster;
        assert_eq!(containers(cluster), before, "V7: no container restarts");
        assert_eq!(text(&curl(cluster, "www2")), "Hello Earth\n");
        assert_eq!(text(&sql(cluster, "select name from app.users")).trim(), "ada");
    }

    fn step_7_reclaim(&self) {
        let cluster = &self.cluster;
        let index = self.server.file("/exports/data-0001/index.html");
        cluster.kubectl(&["delete", "pvc", "claim-http", "--wait=false"]);
        let listed = cluster.kubectl(&["get", "pvc", "claim-http"]);
        assert!(listed.contains("Terminating"), "V2: a claim in use is kept: {listed}");
        assert_eq!(text(&curl(cluster, "www2")), "Hello Earth\n");
        assert!(index.exists());
        cluster.kubectl(&["delete", "pod", "www2"]);
        cluster
            .eventually("the claim is gone", || !cluster.try_kubectl(&["get", "pvc", "claim-http"]).status.success());
        phase_is(cluster, "pv/nfs-0001", "Available");
        let left = fs::read_dir(self.server.file("/exports/data-0001")).expect("the export itself stays");
        assert_eq!(left.count(), 0, "V3: Recycle empties the volume");

        cluster.kubectl(&["patch", "pv", "nfs-0002", "-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#]);
        cluster.kubectl(&["delete", "pod", "mysql"]);
        let kept = self.files_of("/exports/data-0002");
        assert!(kept.len() > 50, "a database: {kept:?}");
        cluster.kubectl(&["delete", "pvc", "claim-mysql"]);
        phase_is(cluster, "pv/nfs-0002", "Released");
        assert_eq!(self.files_of("/exports/data-0002"), kept, "V3: Retain keeps every byte");
    }

    /// Every file below a folder of the server's, with the sum of its bytes.
    fn files_of(&self, path: &str) -> Vec<String> {
        let mut sums = Command::new("sh");
        let output =
            sums.args(["-c", "cd \"$1\" && find . -type f -exec cksum {} + | sort", "sh"]).arg(self.server.file(path));
        String::from_utf8_lossy(&output.output().expect("find, cksum").stdout).lines().map(str::to_owned).collect()
    }

    fn step_8_a_server_that_stops(&mut self) {
        create(&self.cluster, OTHER);
        phase_is(&self.cluster, "pod/other", "Running");
        self.server.kill9();
        self.others_are_responsive();
        self.server.go_on();
        assert_eq!(page(&self.cluster, "www3"), "third\n", "its reads work again");

        // One that hangs: the pod that waits for it can be deleted (V11).
        self.server.signal("-STOP");
        let mut waits = curl_command(&self.cluster, "www3").spawn().expect("curl");
        self.others_are_responsive();
        self.cluster.kill9();
        self.cluster.up();
        self.others_are_responsive();
        self.cluster.kubectl(&["delete", "pod", "www3", "--timeout=100s"]);
        assert!(!waits.wait().expect("curl").success());
        self.server.signal("-CONT");
        create(&self.cluster, &pod(&self.cluster, "www", "www3", "claim-third"));
        phase_is(&self.cluster, "pod/www3", "Running");
        assert_eq!(page(&self.cluster, "www3"), "third\n");
    }

    /// The API, other pods and new ones do not wait for the server.
    fn others_are_responsive(&self) {
        assert_eq!(self.cluster.exec("other", &["echo", "here"]), "here\n");
        self.cluster.kubectl(&["delete", "pod", "other"]);
        create(&self.cluster, OTHER);
        phase_is(&self.cluster, "pod/other", "Running");
    }
}

#[test]
fn walkthrough_1_on_our_own_server() {
    World::walk(Software::Mainstay);
}

#[test]
fn walkthrough_1_on_a_foreign_server() {
    World::walk(Software::Ganesha);
}
