//! kill -9 of server and node at random moments of walkthrough 2: nothing that was acknowledged is lost, no container
//! restarts because of it, the set converges (A2, S1, S11, S12, V7).

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{Cluster, ROOMY, text};

/// How often the server is killed.
const KILLS: usize = 20;
/// The latest moment after a step's start at which it is killed (milliseconds).
const LATEST_MS: u64 = 900;

/// Container ids and restart counts by pod uid.
fn containers(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let path = "{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} \
        {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let listed = cluster.kubectl(&["get", "pods", "-l", "app=httpd", "-o", &format!("jsonpath={path}")]);
    let line = |line: &str| -> Option<(String, (String, String))> {
        let mut words = line.split(' ').map(str::to_owned);
        Some((words.next()?, (words.next().filter(|id| !id.is_empty())?, words.next()?)))
    };
    listed.lines().filter_map(line).collect()
}

/// A step of the walkthrough, as kubectl's arguments.
fn step(number: usize, random: &mut Random) -> Vec<String> {
    let words: Vec<String> = match number % 4 {
        0 => vec![
            "create".into(),
            "configmap".into(),
            format!("acknowledged-{number}"),
            format!("--from-literal=n={number}"),
        ],
        1 => vec!["scale".into(), "statefulset/apache-http".into(), format!("--replicas={}", 2 + random.below(4))],
        2 => vec![
            "delete".into(),
            "pod".into(),
            "apache-http-1".into(),
            "--ignore-not-found".into(),
            "--wait=false".into(),
        ],
        _ => vec!["label".into(), "statefulset/apache-http".into(), format!("step=s{number}"), "--overwrite".into()],
    };
    words
}

#[test]
fn twenty_kills_lose_nothing_and_restart_nothing() {
    let mut random = Random::new();
    let mut cluster = Cluster::with_disk(ROOMY);
    cluster.up();
    cluster.load(&["httpd"]);
    for manifest in ["httpd-service.yaml", "fast-sc.yaml", "httpd-ss.yaml"] {
        cluster.apply(&cluster.manifest(manifest));
    }
    let mut acknowledged = Vec::new();
    for number in 0..KILLS {
        let before = containers(&cluster);
        let words = step(number, &mut random);
        let mut kubectl = cluster.inside(cluster.kubectl_path());
        let running = kubectl.args(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
        std::thread::sleep(Duration::from_millis(random.below(LATEST_MS)));
        cluster.kill9();
        let output = running.wait_with_output().expect("kubectl");
        cluster.up();
        if output.status.success() && words[0] == "create" {
            acknowledged.push(words[2].clone());
        }
        if words[0] != "create" && !output.status.success() {
            // Not acknowledged: a person would type it again, and nothing may stand in the way.
            let again: Vec<&str> = words.iter().map(String::as_str).collect();
            let again = cluster.try_kubectl(&again);
            assert!(again.status.success(), "{words:?} after a crash: {}", text(&again));
        }
        for name in &acknowledged {
            assert!(
                cluster.try_kubectl(&["get", "configmap", name]).status.success(),
                "A2: {name} was acknowledged and is lost"
            );
        }
        for (uid, (id, restarts)) in containers(&cluster) {
            assert_eq!(restarts, "0", "S11: the container of pod {uid} was restarted");
            assert!(before.get(&uid).is_none_or(|(old, _)| *old == id), "V7: pod {uid} has another container");
        }
    }
    assert!(!acknowledged.is_empty());
    cluster.kubectl(&["scale", "statefulset/apache-http", "--replicas=3"]);
    cluster.eventually("the set has converged", || {
        let status = cluster
            .field("statefulset/apache-http", "{.status.readyReplicas} {.status.replicas} {.status.currentReplicas}");
        status == "3 3 3" && containers(&cluster).len() == 3
    });
    assert!(containers(&cluster).values().all(|(_, restarts)| restarts == "0"));
    cluster.no_promise_is_broken();
}

const WAITS_FOR_ITS_IMAGE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: cut-off}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, command: [sleep, '100000']}]
";

/// A crash between the making of a pod's namespaces and of its files, played exactly: the note that says that they are
/// complete is not there, and neither are the files.
#[test]
fn a_sandbox_that_was_cut_off_is_completed() {
    let mut cluster = Cluster::new();
    cluster.apply(WAITS_FOR_ITS_IMAGE);
    cluster.eventually("the pod has its sandbox and no image", || {
        let seen = cluster.field("pod/cut-off", "{.status.containerStatuses[0].state.waiting.reason} {.status.podIP}");
        seen.starts_with("ErrImageNeverPull 10.")
    });
    let address = cluster.field("pod/cut-off", "{.status.podIP}");
    let uid = cluster.uid("pod/cut-off");
    cluster.kill9();
    let sandboxes = cluster.data_dir().join("containers/s");
    let folder = std::fs::read_dir(sandboxes).expect("sandboxes").flatten().next().expect("the pod's").path();
    let record = std::fs::read_to_string(folder.join("sandbox.json")).expect("its record");
    let note = format!("\"mainstay.io/pod-ip\":\"{address}\"");
    assert!(record.contains(&note), "{record}");
    std::fs::write(folder.join("sandbox.json"), record.replace(&note, "")).expect("written");
    std::fs::remove_dir_all(cluster.data_dir().join("pods").join(uid).join("files")).expect("the pod's files");
    cluster.up();
    cluster.load(&["busybox"]);
    cluster.eventually("it runs", || cluster.field("pod/cut-off", "{.status.phase}") == "Running");
    assert!(cluster.exec("cut-off", &["cat", "/etc/hosts"]).contains(&format!("{address}\tcut-off")));
    assert_eq!(cluster.field("pod/cut-off", "{.status.podIP}"), address);
}
