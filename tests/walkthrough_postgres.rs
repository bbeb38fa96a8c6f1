//! Walkthrough 3, steps 1 to 3: PostgreSQL as a Deployment, then as a StatefulSet.

mod harness;

use harness::Cluster;

fn psql(cluster: &Cluster, pod: &str, sql: &str) -> String {
    cluster.exec(pod, &["psql", "-U", "postgres", "-h", "/run/postgresql", "-At", "-c", sql]).trim().to_owned()
}

fn accepts(cluster: &Cluster, pod: &str) {
    cluster.eventually(&format!("{pod} takes connections"), || {
        cluster.try_kubectl(&["exec", pod, "--", "pg_isready", "-U", "postgres", "-h", "/run/postgresql"]).status.success()
    });
}

fn only_pod(cluster: &Cluster) -> String {
    cluster.eventually("exactly one pod runs", || {
        let pods = cluster.kubectl(&["get", "pods", "-l", "app=pg", "--no-headers"]);
        pods.lines().count() == 1 && pods.contains("Running")
    });
    cluster.kubectl(&["get", "pods", "-l", "app=pg", "-o", "jsonpath={.items[0].metadata.name}"])
}

#[test]
fn step_1_a_deployment_keeps_rows_only_on_a_claim() {
    let cluster = Cluster::new();
    cluster.load(&["postgres"]);
    let manifest = cluster.manifest("pg-deployment.yaml");
    let host = manifest.lines().find_map(|line| line.trim().strip_prefix("path: ")).expect("a host path").to_owned();
    std::fs::create_dir_all(&host).expect("the volume's folder");
    cluster.apply(&manifest);
    let first = only_pod(&cluster);
    accepts(&cluster, &first);
    assert_eq!(
        psql(&cluster, &first, "create table users (name text); insert into users values ('ada'), ('grace'); select count(*) from users")
            .lines()
            .last(),
        Some("2")
    );
    cluster.kubectl(&["rollout", "restart", "deployment/pg"]);
    cluster.kubectl(&["rollout", "status", "deployment/pg", "--timeout=120s"]);
    let second = only_pod(&cluster);
    assert_ne!(first, second);
    accepts(&cluster, &second);
    assert_eq!(psql(&cluster, &second, "select string_agg(name, ' ') from users"), "ada grace");
    cluster.kubectl(&["delete", "deployment", "pg"]);
    cluster.eventually("the pod is gone", || cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty());

    let deployment = manifest.split("---").find(|part| part.contains("kind: Deployment")).expect("the Deployment");
    let bare: String = deployment.split("          volumeMounts:").next().expect("the part before the mounts").to_owned();
    cluster.apply(&bare);
    let third = only_pod(&cluster);
    accepts(&cluster, &third);
    psql(&cluster, &third, "create table users (name text)");
    cluster.kubectl(&["rollout", "restart", "deployment/pg"]);
    cluster.kubectl(&["rollout", "status", "deployment/pg", "--timeout=120s"]);
    let fourth = only_pod(&cluster);
    accepts(&cluster, &fourth);
    assert_eq!(
        psql(&cluster, &fourth, "select count(*) from pg_tables where tablename = 'users'"),
        "0",
        "without a claim the table is gone"
    );
}

#[test]
fn steps_2_and_3_a_stateful_set_keeps_each_replicas_rows() {
    let mut cluster = Cluster::new();
    cluster.load(&["postgres"]);
    let class = cluster.kubectl(&["get", "sc"]);
    assert!(class.contains("local-path (default)"), "{class}");
    cluster.apply(&cluster.manifest("pg-statefulset.yaml"));
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=120s"]);
    let volumes = cluster.kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].spec.volumeName}"]);
    let mut volumes: Vec<&str> = volumes.split(' ').collect();
    volumes.sort_unstable();
    volumes.dedup();
    assert_eq!(volumes.len(), 3, "three volumes, one per replica");
    for ordinal in 0..3 {
        psql(&cluster, &format!("pg-{ordinal}"), &format!("create table rows (n int); insert into rows values ({ordinal})"));
    }
    let own_rows = |cluster: &Cluster| {
        for ordinal in 0..3 {
            let pod = format!("pg-{ordinal}");
            accepts(cluster, &pod);
            assert_eq!(psql(cluster, &pod, "select n from rows"), ordinal.to_string(), "V4");
        }
    };
    cluster.kubectl(&["delete", "pod", "pg-1", "--wait=false"]);
    cluster.kubectl(&["rollout", "restart", "statefulset/pg"]);
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=240s"]);
    own_rows(&cluster);
    let before = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].containerID}"]);
    cluster.kill9();
    cluster.up();
    own_rows(&cluster);
    let after = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].containerID}"]);
    assert_eq!(before, after, "V7, S11: no container restarts because the server did");
}
