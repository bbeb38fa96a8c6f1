//! PostgreSQL under kill -9: of Mainstay alone, of the database, of its pod by force, of everything at once. Its client
//! goes on all the time and notes what was acknowledged; nothing of that may be missing, and the database's own checks
//! must pass (V4, V7).

use std::time::Duration;

use crate::harness::Cluster;
use crate::harness::postgres::{Client, POD, TABLE};
use crate::harness::random::Random;

/// The latest moment at which something is killed, after the inserts have gone on (milliseconds).
const LATEST_MS: u64 = 700;

/// What a restart of Mainstay must not change.
fn untouched(cluster: &Cluster) -> (String, Vec<String>, String) {
    let path = "{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    (cluster.field("pod/pg-0", path), cluster.mounts(), POD.psql(cluster, "select pg_postmaster_start_time()"))
}

#[test]
fn v4_v7_postgres_loses_no_acknowledged_row() {
    let mut random = Random::new();
    let mut cluster = Cluster::new();
    cluster.load(&["postgres"]);
    // Its client stays connected, for which a shutdown waits: no longer than this.
    let grace = "    spec:\n      terminationGracePeriodSeconds: 2\n      containers:";
    let manifest = cluster.manifest("pg-statefulset.yaml").replace("replicas: 3", "replicas: 1");
    cluster.apply(&manifest.replace("    spec:\n      containers:", grace));
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=120s"]);
    POD.accepts(&cluster);
    POD.psql(&cluster, TABLE);
    let client = Client::start(vec![cluster.group_name()]);
    let mut wait = |cluster: &Cluster| {
        client.goes_on(cluster, "before the next kill");
        // Not awaited: the moment is what the test is about.
        std::thread::sleep(Duration::from_millis(random.below(LATEST_MS)));
    };

    // V7: Mainstay alone. The database does not notice.
    let before = untouched(&cluster);
    for _ in 0..3 {
        wait(&cluster);
        cluster.kill9();
        client.goes_on(&cluster, "while Mainstay is down");
        cluster.up();
        client.goes_on(&cluster, "after Mainstay is back");
    }
    assert_eq!(untouched(&cluster), before, "V7");
    POD.check(&cluster, &client, "kill -9 of Mainstay");

    wait(&cluster);
    let uid = cluster.uid("pod/pg-0");
    cluster.kill_process(&uid, "postgres");
    client.goes_on(&cluster, "after kill -9 of the database");
    POD.check(&cluster, &client, "kill -9 of the database");
    assert_eq!(cluster.uid("pod/pg-0"), uid);

    wait(&cluster);
    cluster.kubectl(&["delete", "pod", "pg-0", "--force", "--grace-period=0", "--wait=false"]);
    cluster.eventually("another pod has its name", || !["", uid.as_str()].contains(&cluster.uid("pod/pg-0").as_str()));
    client.goes_on(&cluster, "after the pod was deleted by force");
    POD.check(&cluster, &client, "a deletion by force");

    for mounts in [true, false] {
        wait(&cluster);
        cluster.kill9_everything();
        if !mounts {
            cluster.unmount_all();
        }
        cluster.up();
        client.goes_on(&cluster, "after everything crashed");
        POD.check(&cluster, &client, "a crash of everything");
    }
    println!("{} rows", client.noted().len());
}
