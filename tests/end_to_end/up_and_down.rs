//! `mainstay up` and `down`: what is made, what is adopted, what is left.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Cluster, Kubectl, text};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: 'test.local/busybox:1', command: [sleep, '100000']}
";

#[test]
fn a_restart_adopts_and_down_leaves_nothing() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
    let identity = |cluster: &Cluster| {
        cluster.field("pod/sleeper", "{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.podIP}")
    };
    let before = identity(&cluster);
    cluster.stop();
    cluster.up();
    assert_eq!(identity(&cluster), before, "V7, S11");
    cluster.kill9();
    cluster.up();
    assert_eq!(identity(&cluster), before, "V7, S11");
    assert_eq!(cluster.exec("sleeper", &["hostname"]).trim(), "sleeper");

    let second = cluster
        .mainstay(&["up", "--listen", "127.0.0.1:7443", "--data-dir"])
        .arg(cluster.data_dir())
        .output()
        .expect("run");
    assert!(!second.status.success() && text(&second).contains("in use by another mainstay"), "{}", text(&second));

    cluster.stop();
    let down = cluster.mainstay(&["down", "--data-dir"]).arg(cluster.data_dir()).output().expect("run");
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(cluster.left_over(), Vec::<String>::new());
}

/// X5, N4: a server that listens on the loopback alone is there for this machine's pods, by their bridge's address, and
/// for what runs on the machine's own network; not for whoever comes by another link, whatever address that one asks.
#[test]
fn x5_n4_pods_reach_an_api_on_the_loopback_and_other_machines_do_not() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
    let authority = cluster.folder().join("ca.crt");
    let stored = cluster.field("configmap/kube-root-ca.crt", "{.data.ca\\.crt}");
    std::fs::write(&authority, stored).expect("written");
    let asked = |mut curl: std::process::Command, host: &str, url: &str| -> String {
        curl.args(["-s", "-m", "5", "--noproxy", "*", "--resolve", host, "-w", " %{http_code}", "--cacert"]);
        let output = curl.arg(&authority).arg(url).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let service = ("kubernetes.default.svc:443:10.96.0.1", "https://kubernetes.default.svc/readyz");
    let bridge = ("-kubernetes:443", "https://10.244.0.1:6443/readyz");
    let is_reached = |cluster: &Cluster| {
        for (host, url) in [service, bridge] {
            for who in ["a pod", "the machine"] {
                cluster.eventually(&format!("{who} reaches {url}"), || {
                    let curl = match who {
                        "a pod" => cluster.in_network_of("sleeper", "curl"),
                        _ => cluster.inside("curl"),
                    };
                    asked(curl, host, url) == "ok 200"
                });
            }
        }
    };
    is_reached(&cluster);

    // Another machine, which sends what is for the bridge's address to this one.
    let mut other = std::process::Command::new("unshare")
        .args(["--net", "sleep", "1000"])
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("unshare");
    let far = other.id().to_string();
    let own = format!("/proc/{far}/ns/net");
    let host = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    cluster.eventually("the other machine is there", || std::fs::read_link(&own).is_ok_and(|at| at != host));
    let run = |mut command: std::process::Command, words: &str| {
        let output = command.args(words.split_whitespace()).output().expect("run");
        assert!(output.status.success(), "{words}: {}", text(&output));
    };
    let there = |program: &str| {
        let mut command = std::process::Command::new("nsenter");
        command.args(["--net", "-t", &far, "--", program]).stdin(std::process::Stdio::null());
        command
    };
    run(cluster.inside("ip"), &format!("link add outer type veth peer name far netns {far}"));
    run(cluster.inside("ip"), "address add 192.0.2.1/24 dev outer");
    run(cluster.inside("ip"), "link set outer up");
    run(there("ip"), "address add 192.0.2.2/24 dev far");
    run(there("ip"), "link set far up");
    run(there("ip"), "route add 10.0.0.0/8 via 192.0.2.1");
    // The way there is open: the pods' bridge answers on another port, with a refusal.
    let refused = there("curl").args(["-s", "-m", "5", "http://10.244.0.1:6444/"]).status().expect("curl");
    assert_eq!(refused.code(), Some(7), "nobody listens there");
    for url in ["https://192.0.2.1:6443/readyz", "https://10.244.0.1:6443/readyz"] {
        assert_eq!(asked(there("curl"), bridge.0, url).trim(), "000", "{url}");
    }
    other.kill().expect("killed");
    other.wait().expect("reaped");

    // Also after a crash, and when somebody has taken the bridge away.
    cluster.kill9();
    cluster.up();
    is_reached(&cluster);
    run(cluster.inside("ip"), "link del mst-pods");
    is_reached(&cluster);
    cluster.stop();
    let down = cluster.mainstay(&["down", "--data-dir"]).arg(cluster.data_dir()).output().expect("run");
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(cluster.left_over(), Vec::<String>::new());
}

/// A folder that no instance worked in is a stranger's; and a cluster that runs is not cleared away below itself, also
/// where its process id is lost.
#[test]
fn v7_down_takes_nothing_away_that_is_not_its_own() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
    let links = || text(&cluster.inside("ip").args(["-o", "link"]).output().expect("ip"));
    let before = links();
    let refused = |data_dir: &std::path::Path, why: &str| {
        let down = cluster.mainstay(&["down", "--data-dir"]).arg(data_dir).output().expect("run");
        assert!(!down.status.success() && text(&down).contains(why), "{}", text(&down));
    };
    let strangers = cluster.folder().join("strangers");
    for file in ["pods/precious", "logs/precious", "network/precious", "pid"] {
        std::fs::create_dir_all(strangers.join(file).parent().expect("a folder")).expect("a folder");
        std::fs::write(strangers.join(file), "1").expect("a file");
    }
    refused(&strangers, "there is no cluster in");
    for file in ["pods/precious", "logs/precious", "network/precious"] {
        assert!(strangers.join(file).exists(), "{file}");
    }
    assert!(!strangers.join("images").exists());
    std::fs::remove_file(cluster.data_dir().join("pid")).expect("the process id");
    refused(&cluster.data_dir(), "does not say which process it is");
    assert_eq!(links(), before);
    assert_eq!(cluster.exec("sleeper", &["hostname"]).trim(), "sleeper");
}

/// Another spelling of the folder is the same folder, another network is left for the cluster's own; and a container's
/// restarts are counted on.
#[test]
fn down_finds_the_cluster_by_any_name_of_its_folder_and_from_any_network() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
    cluster.stop();
    let link = cluster.folder().join("link");
    std::os::unix::fs::symlink("data", &link).expect("a link");
    let elsewhere = std::process::Command::new("nsenter")
        .args(["--mount", "-t", &cluster.holder_pid().to_string(), "--", "unshare", "--net"])
        .arg(env!("CARGO_BIN_EXE_mainstay"))
        .args(["down", "--data-dir"])
        .arg(link.join("../link"))
        .output()
        .expect("run");
    assert!(elsewhere.status.success(), "{}", text(&elsewhere));
    assert!(!text(&elsewhere).contains("another network namespace"), "{}", text(&elsewhere));
    assert_eq!(cluster.left_over(), Vec::<String>::new());

    cluster.up();
    let status = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
    cluster.eventually("the pod runs again", || cluster.field("pod/sleeper", status) == "1 true");
    let last = "{.status.containerStatuses[0].lastState.terminated.reason}";
    assert_eq!(cluster.field("pod/sleeper", last), "ContainerStatusUnknown");
}

#[test]
fn keys_are_private_and_strangers_are_refused() {
    let cluster = Cluster::new();
    let mut folders = vec![cluster.data_dir().join("pki")];
    let mut keys = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("PRIVATE KEY")) {
                keys += 1;
                assert_eq!(
                    path.metadata().expect("metadata").permissions().mode() & 0o777,
                    0o600,
                    "X2: {}",
                    path.display()
                );
            }
        }
    }
    assert!(keys > 0);
    let code = |path: &str| {
        let url = format!("https://127.0.0.1:6443{path}");
        let output =
            cluster.inside("curl").args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(code("/healthz"), "200");
    assert_eq!(code("/version"), "200");
    assert_eq!(code("/api/v1/namespaces"), "403", "X1");
    assert_eq!(code("/api/v1/namespaces/kube-system/secrets"), "403", "X1");
}

#[test]
fn both_kubectls_see_a_cluster() {
    let mut cluster = Cluster::new();
    for kubectl in [Kubectl::Newest, Kubectl::Old] {
        cluster.use_kubectl(kubectl);
        let namespaces = cluster.kubectl(&["get", "namespaces", "-o", "name"]);
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            assert!(namespaces.contains(&format!("namespace/{name}\n")), "{namespaces}");
        }
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]);
        assert!(nodes.starts_with("node-1") && nodes.contains(" Ready "), "{nodes}");
        assert!(cluster.kubectl(&["version"]).contains("Server Version"));
        assert!(cluster.kubectl(&["cluster-info"]).contains("https://127.0.0.1:6443"));
        assert!(cluster.kubectl(&["api-resources"]).contains("statefulsets"));
        assert!(cluster.kubectl(&["explain", "statefulset.spec.replicas"]).contains("replicas"));
    }
}

#[test]
fn what_cannot_work_is_said_in_one_sentence() {
    let cluster = Cluster::new();
    let fails = |args: &[&str], wanted: &str| {
        let output = cluster.mainstay(args).output().expect("run");
        assert!(!output.status.success());
        let said = text(&output);
        assert!(said.contains(wanted), "{args:?} said: {said}");
        assert!(!said.contains("panicked") && said.trim().lines().count() <= 3, "{args:?} said: {said}");
    };
    let other = cluster.data_dir().with_file_name("other");
    let other = other.display().to_string();
    fails(&["up", "--data-dir", &other, "--listen", "127.0.0.1:6443"], "is in use by another program");
    fails(&["up", "--data-dir", &other, "--service-cidr", "nonsense"], "--service-cidr");
    fails(&["up", "--data-dir", "/proc/nope"], "/proc/nope");
    fails(&["image", "load", "--data-dir", &other, "/no/such/file.tar"], "/no/such/file.tar");
}

/// The README's first command: it makes a network of its own, where not even the loopback link is up.
#[test]
fn the_demonstration_holds_every_promise() {
    let demo = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay")).args(["demo", "--plain"]).output();
    let demo = demo.expect("mainstay demo");
    let said = String::from_utf8_lossy(&demo.stdout);
    let why = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success() && said.contains("every promise held"), "{said}{why}");
}
