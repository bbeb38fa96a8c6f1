//! Patroni in Kubernetes mode, as examples/patroni.yaml has it: three pods, a commit is acknowledged when two of them
//! have it. The leader is killed in every way while a client writes to the Service; another one leads within seconds,
//! and nothing that was acknowledged is missing (V4). `MAINSTAY_STORM_ROUNDS=20` for a long one.

use std::fs;
use std::time::Duration;

use crate::harness::postgres::{Access, Client, TABLE, WITHIN};
use crate::harness::random::{self, Random};
use crate::harness::{Cluster, processes, workspace};

/// Kills of one run, unless told.
const ROUNDS: u64 = 2;
/// Ways to kill a leader.
const WAYS: u64 = 4;
/// Until another one leads, at most: what Patroni waits for a leader that says nothing (20 s), on a loaded machine.
const FAILED_OVER: Duration = Duration::from_secs(60);
const MEMBERS: [&str; 3] = ["pg-0", "pg-1", "pg-2"];
/// Whoever leads, as everything in the cluster reaches it. What is sent to one that is gone is given up soon.
const SERVICE: Access = Access {
    pod: "client",
    connection: "host=pg user=postgres password=postgres connect_timeout=2 keepalives_idle=1 keepalives_interval=1 \
                 keepalives_count=2 tcp_user_timeout=3000",
};
const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: client, image: test.local/patroni:1, command: [sleep, '1000000']}
";

fn annotation(cluster: &Cluster, endpoints: &str, name: &str) -> String {
    cluster.field(&format!("endpoints/{endpoints}"), &format!("{{.metadata.annotations.{name}}}"))
}

/// Waits until one leads, another one has all that it has, and all three are ready; the leader's name.
fn leader(cluster: &Cluster) -> String {
    cluster.eventually("there is a leader, and another one has all that it has", || {
        let (leader, standby) = (annotation(cluster, "pg", "leader"), annotation(cluster, "pg-sync", "sync_standby"));
        let is_ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
        !leader.is_empty()
            && !["", leader.as_str()].contains(&standby.as_str())
            && MEMBERS.iter().all(|pod| cluster.field(&format!("pod/{pod}"), is_ready) == "True")
    });
    annotation(cluster, "pg", "leader")
}

/// Kills a leader, and waits until that has been noticed; what it was.
fn kill(cluster: &Cluster, leader: &str, way: u64) -> &'static str {
    let pod = format!("pod/{leader}");
    let uid = cluster.uid(&pod);
    let is_another = || !["", uid.as_str()].contains(&cluster.uid(&pod).as_str());
    match way {
        0 => {
            cluster.kubectl(&["delete", &pod, "--wait=false"]);
            cluster.eventually("another pod has its name", is_another);
            "the leader's pod was deleted"
        }
        1 => {
            cluster.kubectl(&["delete", &pod, "--force", "--grace-period=0", "--wait=false"]);
            cluster.eventually("another pod has its name", is_another);
            "the leader's pod was deleted by force"
        }
        2 => {
            cluster.kill_process(&uid, "postgres");
            cluster.eventually("another one leads", || {
                !["", leader].contains(&annotation(cluster, "pg", "leader").as_str())
            });
            "the leader's database was killed"
        }
        _ => {
            let restarts = || cluster.field(&pod, "{.status.containerStatuses[0].restartCount}");
            let before = restarts();
            let all = ["sh", "patroni", "postgres"].iter().flat_map(|name| processes::named(name, &uid));
            processes::kill(&all.collect::<Vec<_>>());
            cluster.eventually("the container was started again", || restarts() != before);
            "everything in the leader's container was killed"
        }
    }
}

#[test]
fn v4_patroni_fails_over_within_seconds_and_loses_no_acknowledged_row() {
    let mut random = Random::new();
    let mut cluster = Cluster::unstarted().open_to_pods();
    cluster.up();
    cluster.load(&["patroni"]);
    let example = fs::read_to_string(workspace().join("examples/patroni.yaml")).expect("the example");
    assert!(example.contains("image: patroni:3"), "the example is another one");
    cluster.apply(&example.replace("image: patroni:3", "image: test.local/patroni:1"));
    cluster.apply(CLIENT);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    let mut leads = leader(&cluster);
    SERVICE.accepts(&cluster);
    SERVICE.psql(&cluster, TABLE);
    let client = Client::of(&cluster, SERVICE);
    let (first, mut pauses) = (random.below(WAYS), Vec::new());
    for round in 0..random::rounds(ROUNDS) {
        client.goes_on(&cluster, "before the next kill");
        client.longest_pause();
        let named = kill(&cluster, &leads, (first + round) % WAYS);
        leads = leader(&cluster);
        client.goes_on(&cluster, &format!("after {named}"));
        let pause = client.longest_pause();
        eprintln!("{named}: no row for {} ms", pause.as_millis());
        assert!(pause < FAILED_OVER, "{named}");
        SERVICE.check(&cluster, &client, named);
        pauses.push(pause.as_millis());
    }
    let noted = client.noted();
    drop(client);
    for pod in MEMBERS {
        let member = Access { pod, connection: WITHIN };
        cluster.eventually(&format!("{pod} has all rows"), || noted.is_subset(&member.ids(&cluster)));
    }
    cluster.no_promise_is_broken();
    pauses.sort_unstable();
    println!("no row for {pauses:?} ms; {} rows", noted.len());
}
