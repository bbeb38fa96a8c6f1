//! Fencing by deadline (S13): a machine dies or is cut off, nobody comes, and its pods run elsewhere, never twice.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::Cluster;
use crate::harness::machines::{Lan, machines};
use crate::harness::nfs_server::{NfsServer, Software};

/// Seconds: the nodes' lease, which is the shortest deadline that there is.
const LEASE: &str = "5";
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A set whose pod writes down where it runs, on a volume that any node reaches. It does not go when it is asked to.
const SET: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: nfs}
provisioner: mainstay.io/nfs
parameters: {server: 172.30.0.1, share: /exports/data}
mountOptions: ['TIMEO']
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {mainstay.io/fence: deadline}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
        - name: main
          image: test.local/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, 'WRITER']
          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {storageClassName: nfs, accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
";

/// What [`SET`] runs.
const WRITER: &str = "trap \"\" TERM HUP; while :; do echo $NODE >> /data/written; sleep 0.05; done";
/// A program that ends by itself, its writer with it, when nothing was written for a second. The file is open: what it
/// waits for is a write, at the place where its successor begins.
const IMPATIENT: &str = "(exec >> /data/written; echo from $NODE; while :; do echo $NODE; touch /beat; sleep 0.05; \
    done) & while rm -f /beat; sleep 1; [ -e /beat ]; do :; done";

/// Whether any process of a pod is there, whose the machine may be.
fn runs(uid: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).any(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        // One that has ended is in its group until somebody reaps it.
        read("cgroup").contains(uid) && !read("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

/// The pod's machine is disturbed, and the pod is looked after until it is Ready elsewhere.
fn moves(first: &Cluster, what: &str, to: &str, disturb: impl FnOnce()) -> String {
    let old = first.uid("pod/web-0");
    assert!(runs(&old), "{what}: it runs");
    let begun = Instant::now();
    disturb();
    let mut ended = None;
    let mut waited = String::new();
    let new = loop {
        assert!(begun.elapsed() < PATIENCE, "{what}: it does not move\n{}", first.kubectl(&["get", "pod,event"]));
        if ended.is_none() && !runs(&old) {
            ended = Some(begun.elapsed());
        }
        let pod = first.kubectl(&[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.metadata.uid} \
            {.status.conditions[?(@.type==\"mainstay.io/NameFree\")].message}{end}",
        ]);
        match pod.split_once(' ') {
            Some((uid, _)) if uid != old => break uid.to_owned(),
            Some((_, why)) if !why.is_empty() => waited = why.to_owned(),
            _ => {}
        }
    };
    let freed = begun.elapsed();
    assert!(ended.is_some(), "S13: {what}: the name is free while {old} runs");
    assert!(!runs(&old), "S13: {what}: it runs again");
    first.kubectl(&["wait", "--for=condition=Ready", "pod/web-0", "--timeout=60s"]);
    let ready = begun.elapsed();
    eprintln!(
        "{what}: nothing of it runs after {} ms, its name is free after {} ms, Ready again after {} ms",
        ended.unwrap_or_default().as_millis(),
        freed.as_millis(),
        ready.as_millis()
    );
    assert!(!runs(&old), "S13: {what}: two writers");
    assert_eq!(first.field("pod/web-0", "{.spec.nodeName}"), to, "{what}");
    assert!(waited.contains("the containers stop by themselves, and the name is free at"), "{what}: {waited:?}");
    let events = first.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.split(' ').any(|reason| reason == "Fenced"), "{what}: {events}");
    new
}

/// Where the pod has written, in order, once for each stay.
fn written(server: &NfsServer) -> Vec<String> {
    let folder = fs::read_dir(server.file("/exports/data")).expect("an export").flatten().next().expect("a volume");
    let text = fs::read_to_string(folder.path().join("written")).expect("written");
    let mut stays: Vec<String> = text.lines().map(str::to_owned).collect();
    stays.dedup();
    stays
}

fn rejoined(first: &Cluster, name: &str, node: &Cluster) {
    first.eventually(&format!("{name} is back"), || {
        first.field(&format!("node/{name}"), "{.status.conditions[?(@.type==\"Ready\")].status}") == "True"
            && !first.field(&format!("node/{name}"), "{.spec.taints[*].key}").contains("unreachable")
    });
    first.eventually(&format!("{name} has nothing of the pod"), || {
        fs::read_dir(node.data_dir().join("containers/s")).is_ok_and(|mut left| left.next().is_none())
            && fs::read_dir(node.data_dir().join("containers/c")).is_ok_and(|mut left| left.next().is_none())
    });
}

/// Three machines, a file server on the first, and the pod on the second; the third is free.
fn on_node_2(lan: &Lan) -> (Cluster, [Cluster; 2], NfsServer) {
    on_node_2_with(lan, WRITER, "timeo=20")
}

fn on_node_2_with(lan: &Lan, writer: &str, timeo: &str) -> (Cluster, [Cluster; 2], NfsServer) {
    let (first, [mut second, mut third]) = machines(lan, &["--pod-network", "routes"]);
    for (machine, name) in [(&mut second, "node-2"), (&mut third, "node-3")] {
        let mut words = first.invitation();
        words.extend(["--node-name", name, "--node-lease-duration", LEASE].map(str::to_owned));
        machine.join(&words);
        machine.load(&["busybox"]);
    }
    let server = NfsServer::start(&first, Software::Mainstay, &["data"]).moved("172.30.0.1", "172.30.0.0/24");
    first.kubectl(&["cordon", "node-1", "node-3"]);
    first.apply(&SET.replace("WRITER", writer).replace("TIMEO", timeo));
    first.eventually("there is a pod", || !first.uid("pod/web-0").is_empty());
    first.kubectl(&["wait", "--for=condition=Ready", "pod/web-0", "--timeout=60s"]);
    let noted = "{.status.conditions[?(@.type==\"mainstay.io/FencingDeadline\")].reason}";
    assert_eq!(first.field("pod/web-0", noted), "After5Seconds");
    first.kubectl(&["uncordon", "node-3"]);
    (first, [second, third], server)
}

#[test]
fn s13_a_node_that_is_not_heard_or_has_no_power_has_no_writer_when_another_begins() {
    let lan = Lan::new();
    let (first, [second, mut third], server) = on_node_2(&lan);

    // The server's answers are lost: the node's requests still arrive.
    moves(&first, "a link cut one way", "node-3", || lan.cut_one_way(&first, 2, true));
    lan.cut_one_way(&first, 2, false);
    rejoined(&first, "node-2", &second);

    // The power goes: nothing is left to confirm anything.
    moves(&first, "a power cut", "node-2", || third.kill9_everything());
    third.join(&["--node-lease-duration", LEASE]);
    rejoined(&first, "node-3", &third);

    assert_eq!(written(&server), ["node-2", "node-3", "node-2"], "S13: never two writers");
    first.kubectl(&["delete", "statefulset", "web", "--timeout=60s"]);
    first.eventually("the pod is gone", || first.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}

#[test]
fn s13_a_silent_nodes_pod_ends_by_itself_and_only_then_runs_elsewhere() {
    let lan = Lan::new();
    let (first, [mut second, _third], server) = on_node_2(&lan);

    // An agent that is killed and comes again goes on pushing the deadline (V7).
    let container = first.field("pod/web-0", "{.status.containerStatuses[0].containerID}");
    second.kill9();
    second.join(&["--node-lease-duration", LEASE]);
    let renewed = || -> f64 {
        let text = fs::read(second.data_dir().join("containers/renewals")).expect("the page of renewals");
        u64::from_ne_bytes(text[..8].try_into().expect("a word")) as f64 / 1e9
    };
    let before = renewed();
    first.eventually("the lease was renewed for longer than the deadline", || renewed() > before + 6.0);
    assert_eq!(first.field("pod/web-0", "{.status.containerStatuses[0].containerID}"), container, "V7");

    // Cut off, both ways: agent and containers run, and nobody can tell them anything.
    moves(&first, "a cut link", "node-3", || lan.cut(2, true));
    lan.cut(2, false);
    rejoined(&first, "node-2", &second);

    assert_eq!(written(&server), ["node-2", "node-3"], "S13: never two writers");
    // Nothing is left for the machines' end to wait for.
    first.kubectl(&["delete", "statefulset", "web", "--timeout=60s"]);
    first.eventually("the pod is gone", || first.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}

/// A container that ends by itself while its machine is cut off leaves no supervisor, and here no agent either: what it
/// was writing is dropped at its deadline all the same, and does not arrive when the link is well again.
#[test]
fn s13_what_a_container_was_writing_that_ended_by_itself_does_not_arrive_after_its_deadline() {
    let lan = Lan::new();
    let (first, [mut second, _third], server) = on_node_2_with(&lan, IMPATIENT, "timeo=300");
    moves(&first, "a container that ends by itself, cut off", "node-3", || {
        second.kill9();
        lan.cut(2, true);
    });
    lan.cut(2, false);
    let sockets = || fs::read_to_string(format!("/proc/{}/net/tcp", second.holder_pid())).expect("its sockets");
    // Local and remote address, state, what is to be sent and was not received.
    let unsent = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(2).is_some_and(|remote| remote.ends_with(":0801"))
            && words.get(4).is_some_and(|queues| !queues.starts_with("00000000:"))
    };
    first.eventually("nothing is on its way", || !sockets().lines().any(unsent));
    second.join(&["--node-lease-duration", LEASE]);
    rejoined(&first, "node-2", &second);
    let expected = ["from node-2", "node-2", "from node-3", "node-3"];
    assert_eq!(written(&server), expected, "S13: never two writers");
    first.kubectl(&["delete", "statefulset", "web", "--timeout=60s"]);
    first.eventually("the pod is gone", || first.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}

/// The node is heard again after its containers have stopped by themselves and before their names were given free: they
/// start again in the same pod, whose volume was cut off meanwhile.
#[test]
fn s13_v6_what_its_deadline_ended_starts_again_on_its_volume_and_on_no_empty_folder() {
    let lan = Lan::new();
    let (first, [second, _third], server) = on_node_2(&lan);
    let lines = || {
        let folder = fs::read_dir(server.file("/exports/data")).expect("an export").flatten().next().expect("a volume");
        fs::read_to_string(folder.path().join("written")).unwrap_or_default().lines().count()
    };
    // Where the machine is so slow that the name is free already, the pod is another one: it is tried again.
    for _ in 0..3 {
        let uid = first.uid("pod/web-0");
        let on = u8::from(first.field("pod/web-0", "{.spec.nodeName}") == "node-3") + 2;
        lan.cut(on, true);
        first.eventually("its supervisor has stopped it", || !runs(&uid));
        lan.cut(on, false);
        first.eventually("it is Ready again", || {
            first.field("pod/web-0", "{.metadata.uid} {.status.containerStatuses[0].ready}").ends_with(" true")
                && runs(&first.uid("pod/web-0"))
        });
        if first.uid("pod/web-0") == uid {
            let (before, begun) = (lines(), Instant::now());
            while lines() <= before {
                assert!(begun.elapsed() < Duration::from_secs(10), "V6: it writes elsewhere\n{}", second.log());
            }
            assert_eq!(first.field("pod/web-0", "{.status.containerStatuses[0].restartCount}"), "1");
            first.kubectl(&["delete", "statefulset", "web", "--timeout=60s"]);
            first.eventually("the pod is gone", || first.kubectl(&["get", "pods", "-o", "name"]).is_empty());
            return;
        }
    }
    panic!("the node is never heard in time");
}

/// Two pods for a node of one name: one with a deadline, one without.
const PINNED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: fenced, annotations: {mainstay.io/fence: deadline}}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node-2
  tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}]
  containers: [{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, command: [sleep, '3600']}]
---
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node-2
  tolerations: [{operator: Exists}]
  containers: [{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, command: [sleep, '3600']}]
";

/// A machine is cut off, its Node is deleted, and another machine joins by its name: when it is heard again it is not
/// that node any more, whatever its agent knew. It writes over nothing, starts nothing, and ends what runs.
#[test]
fn s1_s13_a_machine_whose_name_another_has_by_now_runs_nothing() {
    let lan = Lan::new();
    let (first, [mut second, mut third]) = machines(&lan, &[]);
    let mut words = first.invitation();
    words.extend(["--node-name", "node-2", "--node-lease-duration", LEASE].map(str::to_owned));
    second.join(&words);
    second.load(&["busybox"]);
    first.apply(PINNED);
    first.kubectl(&["wait", "--for=condition=Ready", "pod/fenced", "pod/bare", "--timeout=60s"]);
    let container = |machine: &Cluster| {
        let left = fs::read_dir(machine.data_dir().join("containers/c"));
        left.map_or(0, |left| left.count())
    };
    assert_eq!(container(&second), 2);

    lan.cut(2, true);
    first.kubectl(&["delete", "node", "node-2"]);
    third.join(&words);
    third.load(&["busybox"]);
    let machine = fs::read_to_string(third.data_dir().join("node/machine")).expect("which machine it is");
    let is_thirds = || first.field("node/node-2", "{.metadata.annotations.mainstay\\.io/machine}") == machine.trim();
    assert!(is_thirds());

    lan.cut(2, false);
    first.eventually("the former machine runs nothing", || container(&second) == 0);
    assert!(second.log().contains("another machine is this node now"), "{}", second.log());
    first.eventually("the other machine is the node", || {
        is_thirds() && first.field("node/node-2", "{.status.conditions[?(@.type==\"Ready\")].status}") == "True"
    });
    let held = first.kubectl(&["get", "lease", "node-2", "-n", "kube-node-lease", "-o", "yaml"]);
    assert!(held.contains(machine.trim()), "{held}");
    assert_eq!(container(&second), 0, "S1");

    // Its agent is not started again by that name either, and leaving takes nothing away from the other.
    second.kill9();
    let said = second.refused_to_join(&["--node-lease-duration", LEASE]);
    assert!(said.contains("another machine is node node-2 already"), "{said}");
    assert!(is_thirds());
    first.kubectl(&["delete", "pod", "fenced", "bare", "--ignore-not-found", "--timeout=60s"]);
}

/// A machine is cut off, and its data folder, restored on another one, is started there: it cannot know whether the
/// first one runs on, so nothing begins until a person says that it does not. What is over is named: the first one,
/// which lives after all, is not meant by what was said of an earlier run.
#[test]
fn s1_a_copy_of_a_data_folder_runs_nothing_until_a_person_says_that_its_original_is_over() {
    let lan = Lan::new();
    let (first, [mut second, mut third]) = machines(&lan, &[]);
    let mut words = first.invitation();
    words.extend(["--node-name", "node-2", "--node-lease-duration", LEASE].map(str::to_owned));
    second.join(&words);
    second.load(&["busybox"]);
    third.load(&["busybox"]);
    first.apply(PINNED);
    first.kubectl(&["delete", "pod", "fenced", "--timeout=60s"]);
    first.kubectl(&["wait", "--for=condition=Ready", "pod/bare", "--timeout=60s"]);
    let containers = |machine: &Cluster| {
        let left = fs::read_dir(machine.data_dir().join("containers/c"));
        left.map_or(0, |left| left.count())
    };
    let run = || {
        let path = "jsonpath={.metadata.annotations.mainstay\\.io/held-by}";
        let held = first.kubectl(&["get", "lease", "node-2", "-n", "kube-node-lease", "-o", path]);
        held.split(' ').nth(1).map(str::to_owned).unwrap_or_else(|| panic!("{held}"))
    };
    let of_original = run();

    lan.cut(2, true);
    let copied = Command::new("cp").arg("-a").args([second.data_dir().join("node"), third.data_dir()]).status();
    assert!(copied.expect("cp").success());
    third.join_until(&["--take-over", "0123456789abcdef"], "started, and waits for");
    let word = format!("--take-over={of_original}");
    first.eventually("the copy says what it waits for", || third.log().contains(&word));
    // Longer than a Lease stands still that may be taken.
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!((containers(&third), run()), (0, of_original.clone()), "S1");

    lan.cut(2, false);
    first.eventually("the copy gives up", || third.log().contains("another machine is this node now"));
    assert_eq!((containers(&second), containers(&third), run()), (1, 0, of_original.clone()), "the original goes on");

    // Now it is over.
    third.kill9();
    second.kill9_everything();
    lan.cut(2, true);
    third.join(&["--take-over", &of_original]);
    first.eventually("its pod runs on the copy", || {
        containers(&third) == 1 && first.field("pod/bare", "{.status.containerStatuses[0].ready}") == "true"
    });
    assert_ne!(run(), of_original);
    // An agent of the same place needs no word.
    third.kill9();
    third.join(&["--node-lease-duration", LEASE]);
    first.kubectl(&["delete", "pod", "bare", "--timeout=60s"]);
}
