//! Walkthrough 3: PostgreSQL as a Deployment, as a StatefulSet, and with replication.

use crate::harness::{Cluster, ROOMY, text};

fn psql(cluster: &Cluster, pod: &str, sql: &str) -> String {
    cluster.exec(pod, &["psql", "-U", "postgres", "-h", "/run/postgresql", "-At", "-c", sql]).trim().to_owned()
}

fn accepts(cluster: &Cluster, pod: &str) {
    cluster.eventually(&format!("{pod} takes connections"), || {
        cluster
            .try_kubectl(&["exec", pod, "--", "pg_isready", "-U", "postgres", "-h", "/run/postgresql"])
            .status
            .success()
    });
}

/// The one pod, which takes connections.
fn only_pod(cluster: &Cluster) -> String {
    cluster.eventually("exactly one pod runs", || {
        let pods = cluster.kubectl(&["get", "pods", "-l", "app=pg", "--no-headers"]);
        pods.lines().count() == 1 && pods.contains("Running")
    });
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=pg", "-o", "jsonpath={.items[0].metadata.name}"]);
    accepts(cluster, &pod);
    pod
}

fn no_pods(cluster: &Cluster) {
    cluster.eventually("the pods are gone", || cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}

fn restarted(cluster: &Cluster, workload: &str) {
    cluster.kubectl(&["rollout", "restart", workload]);
    rolled_out(cluster, workload);
}

fn rolled_out(cluster: &Cluster, workload: &str) {
    cluster.kubectl(&["rollout", "status", workload, "--timeout=240s"]);
}

fn containers(cluster: &Cluster) -> String {
    cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=pg",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].containerID}",
    ])
}

#[test]
fn steps_1_to_3_a_deployment_then_a_stateful_set() {
    let mut cluster = Cluster::new();
    cluster.load(&["postgres"]);
    let manifest = cluster.manifest("pg-deployment.yaml");
    let host = manifest.lines().find_map(|line| line.trim().strip_prefix("path: ")).expect("a host path").to_owned();
    std::fs::create_dir_all(&host).expect("the volume's folder");
    step_1_with_a_claim(&cluster, &manifest);
    let deleted = cluster.kubectl_with(&["delete", "-f", "-"], &manifest);
    assert!(deleted.status.success(), "{}", text(&deleted));
    no_pods(&cluster);
    step_1_without_a_claim(&cluster, &manifest);
    step_2(&cluster);
    step_3(&mut cluster);
}

fn step_1_with_a_claim(cluster: &Cluster, manifest: &str) {
    cluster.apply(manifest);
    let first = only_pod(cluster);
    let set = cluster.kubectl(&["get", "replicasets", "-o", "jsonpath={.items[0].metadata.name}"]);
    let hash = cluster.field(&format!("pod/{first}"), "{.metadata.labels.pod-template-hash}");
    assert_eq!(set, format!("pg-{hash}"));
    assert!(
        first.strip_prefix(&format!("pg-{hash}-")).is_some_and(|random| random.len() == 5),
        "pg-<hash>-<random>: {first}"
    );
    psql(cluster, &first, "create table users (name text); insert into users values ('ada'), ('grace')");
    restarted(cluster, "deployment/pg");
    let second = only_pod(cluster);
    assert_ne!(first, second);
    assert_eq!(psql(cluster, &second, "select string_agg(name, ' ') from users"), "ada grace");
}

/// The same Deployment without a volume.
fn step_1_without_a_claim(cluster: &Cluster, manifest: &str) {
    let deployment = manifest.split("---").find(|part| part.contains("kind: Deployment")).expect("the Deployment");
    cluster.apply(deployment.split("          volumeMounts:").next().expect("the part before the mounts"));
    let first = only_pod(cluster);
    psql(cluster, &first, "create table users (name text)");
    restarted(cluster, "deployment/pg");
    let second = only_pod(cluster);
    assert_eq!(
        psql(cluster, &second, "select count(*) from pg_tables where tablename = 'users'"),
        "0",
        "the table is gone"
    );
    cluster.kubectl(&["delete", "deployment", "pg"]);
    no_pods(cluster);
}

fn step_2(cluster: &Cluster) {
    let class = cluster.kubectl(&["get", "sc"]);
    assert!(class.contains("local-path (default)"), "{class}");
    cluster.apply(&cluster.manifest("pg-statefulset.yaml"));
    rolled_out(cluster, "statefulset/pg");
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]), "pg-0 pg-1 pg-2");
    assert_eq!(
        cluster.kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].metadata.name}"]),
        "pvc-pg-0 pvc-pg-1 pvc-pg-2"
    );
    let volumes = cluster.kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].spec.volumeName}"]);
    let mut volumes: Vec<&str> = volumes.split(' ').collect();
    volumes.sort_unstable();
    volumes.dedup();
    assert_eq!(volumes.len(), 3, "three volumes, one per replica");
}

fn step_3(cluster: &mut Cluster) {
    for ordinal in 0..3 {
        psql(
            cluster,
            &format!("pg-{ordinal}"),
            &format!("create table rows (n int); insert into rows values ({ordinal})"),
        );
    }
    let own_rows = |cluster: &Cluster| {
        for ordinal in 0..3 {
            let pod = format!("pg-{ordinal}");
            accepts(cluster, &pod);
            assert_eq!(psql(cluster, &pod, "select n from rows"), ordinal.to_string(), "V4");
        }
    };
    let deleted: Vec<String> = (0..3).map(|ordinal| cluster.uid(&format!("pod/pg-{ordinal}"))).collect();
    cluster.kubectl(&["delete", "pod", "-l", "app=pg", "--wait=false"]);
    cluster.eventually("three new pods are Ready", || {
        (0..3).all(|ordinal| {
            let seen =
                cluster.field(&format!("pod/pg-{ordinal}"), "{.metadata.uid} {.status.containerStatuses[0].ready}");
            seen.strip_suffix(" true").is_some_and(|uid| !deleted.iter().any(|old| old == uid))
        })
    });
    own_rows(cluster);
    restarted(cluster, "statefulset/pg");
    own_rows(cluster);

    let before = containers(cluster);
    cluster.stop();
    cluster.up();
    assert_eq!(containers(cluster), before, "V7, S11: no container restarts because the server did");
    cluster.kill9();
    cluster.up();
    assert_eq!(containers(cluster), before, "V7, S11");
    own_rows(cluster);
    // As after a power cut: every process, those of the pods as well.
    cluster.kill9_everything();
    cluster.up();
    cluster.eventually("each has a new container", || {
        let now = containers(cluster);
        now.split(' ').count() == 3 && before.split(' ').all(|old| !now.contains(old))
    });
    rolled_out(cluster, "statefulset/pg");
    own_rows(cluster);
}

/// The pods of the replication example: what the example says about them, looked at by their own databases.
struct Replication(Cluster);

impl Replication {
    fn ask(&self, ordinal: usize, sql: &str) -> String {
        psql(&self.0, &format!("pg-{ordinal}"), sql)
    }

    fn insert(&self, row: &str) {
        self.ask(0, &format!("insert into rows values ('{row}')"));
    }

    /// Every replica has exactly these rows, now or soon.
    fn all_have(&self, replicas: usize, rows: &str) {
        for ordinal in 0..replicas {
            let sql = "select string_agg(name, ' ' order by name) from rows";
            self.0.eventually(&format!("pg-{ordinal} has {rows}"), || self.ask(ordinal, sql) == rows);
        }
    }

    /// Who streams from the primary, and since when.
    fn streams(&self) -> String {
        let sql =
            "select application_name, backend_start from pg_stat_replication where state = 'streaming' order by 1";
        self.ask(0, sql)
    }

    fn streaming(&self, names: &[&str]) {
        self.0.eventually(&format!("{names:?} stream from the primary"), || {
            let streams = self.streams();
            streams.lines().map(|line| line.split('|').next().unwrap_or_default()).eq(names.iter().copied())
        });
    }

    /// From whom a replica took its data: its own word, and what pg_basebackup wrote down about the server it asked.
    fn cloned(&self, ordinal: usize, source: &str, role: &str) {
        let pod = format!("pg-{ordinal}");
        let log = self.0.kubectl(&["logs", &pod, "-c", "clone"]);
        assert!(
            log.contains(&format!("{pod} clones from {source}.pg")) && log.contains("base backup completed"),
            "{log}"
        );
        let label = self.0.exec(&pod, &["sh", "-c", "cat $PGDATA/backup_label.old"]);
        assert!(label.contains(&format!("BACKUP FROM: {role}")), "{label}");
        assert_eq!(self.ask(ordinal, "select pg_is_in_recovery()"), "t");
    }

    /// One runs before the next is made.
    fn in_order(&self, first: usize, second: usize) {
        let started =
            self.0.field(&format!("pod/pg-{first}"), "{.status.containerStatuses[0].state.running.startedAt}");
        let made = self.0.field(&format!("pod/pg-{second}"), "{.metadata.creationTimestamp}");
        assert!(
            !started.is_empty() && started <= made,
            "pg-{first} runs since {started}, pg-{second} was made at {made}"
        );
    }

    /// By its stable name the primary takes whoever has the password, and nobody else.
    fn passwords_count(&self) {
        let by_name = ["psql", "-w", "-U", "postgres", "-h", "pg-0.pg", "-Atc", "select 'in'"];
        assert_eq!(self.0.exec("pg-2", &by_name), "in\n");
        let refused = self.0.refused(&[&["exec", "pg-2", "--", "env", "PGPASSWORD=wrong"][..], &by_name].concat());
        assert!(refused.contains("password authentication failed"), "{refused}");
    }
}

#[test]
fn step_4_replicas_clone_from_each_other_and_stream_from_the_primary() {
    let example = std::fs::read_to_string("examples/postgres-replication.yaml").expect("the example");
    // Passwords with all that could be taken for something else on their way.
    let example = example.replace("-password: postgres", r#"-password: "it's:\\ $(HOME)""#);
    let example = example.replace("-password: replicator", r#"-password: "'re:\\p' %s""#);
    let mut set = Replication(Cluster::with_disk(ROOMY));
    set.0.up();
    set.0.load(&["postgres"]);
    set.0.apply(&example.replace("image: postgres:15", "image: test.local/postgres:1"));
    rolled_out(&set.0, "statefulset/pg");
    assert_eq!(set.ask(0, "select pg_is_in_recovery()"), "f", "pg-0 is the primary");
    set.cloned(1, "pg-0", "primary");
    set.cloned(2, "pg-1", "standby");
    set.streaming(&["pg-1", "pg-2"]);
    set.passwords_count();
    set.ask(0, "create table rows (name text)");
    set.insert("a");
    set.all_have(3, "a");

    // A replica that is deleted comes back as itself and catches up with what it missed.
    let claim = set.0.uid("pvc/data-pg-1");
    let old = set.0.uid("pod/pg-1");
    set.0.kubectl(&["delete", "pod", "pg-1", "--wait=false"]);
    set.insert("b");
    set.0.eventually("pg-1 is back", || {
        let pod = set.0.field("pod/pg-1", "{.metadata.uid} {.status.containerStatuses[0].ready}");
        pod.ends_with(" true") && !pod.starts_with(&old)
    });
    set.all_have(3, "a b");
    assert_eq!(set.0.uid("pvc/data-pg-1"), claim);
    let log = set.0.kubectl(&["logs", "pg-1", "-c", "clone"]);
    assert!(log.contains("pg-1 has its data"), "it did not clone again: {log}");
    set.streaming(&["pg-1", "pg-2"]);

    // Three become five, and the server is killed in the middle: connections, containers and order stay.
    let (streams, before) = (set.streams(), containers(&set.0));
    set.0.kubectl(&["scale", "statefulset", "pg", "--replicas=5"]);
    set.0.eventually("pg-3 is made", || !set.0.uid("pod/pg-3").is_empty());
    set.0.kill9();
    set.0.up();
    rolled_out(&set.0, "statefulset/pg");
    set.cloned(3, "pg-2", "standby");
    set.cloned(4, "pg-3", "standby");
    set.in_order(3, 4);
    set.streaming(&["pg-1", "pg-2", "pg-3", "pg-4"]);
    assert!(set.streams().starts_with(&streams), "the same connections:\n{streams}\n{}", set.streams());
    assert!(containers(&set.0).starts_with(&before), "V7");
    assert_eq!(
        set.0.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"]),
        "0 0 0 0 0"
    );
    set.insert("c");
    set.all_have(5, "a b c");

    // The primary comes back under its name, and all find it there.
    let old = set.0.uid("pod/pg-0");
    set.0.kubectl(&["delete", "pod", "pg-0", "--wait=false"]);
    set.0.eventually("pg-0 is back", || {
        let pod = set.0.field("pod/pg-0", "{.metadata.uid} {.status.containerStatuses[0].ready}");
        pod.ends_with(" true") && !pod.starts_with(&old)
    });
    set.insert("d");
    set.all_have(5, "a b c d");
}
