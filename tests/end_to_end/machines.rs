//! Several machines: they join, are reached, renew their certificates, come back, and leave; their pods talk to each
//! other.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::machines::{Lan, machines};
use crate::harness::{Checks, Cluster, text, workspace};

/// A pod on a node of its own, that serves its name.
fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {{nodeName: {node}, \
         terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test.local/busybox:1', \
         imagePullPolicy: Never, command: [sh, -c, 'mkdir /w; hostname > /w/index.html; echo started; \
         head -c 3000000 /dev/zero > /w/large; exec httpd -f -p 8080 -h /w']}}]}}\n"
    )
}

fn joined(first: &Cluster, second: &mut Cluster, name: &str) {
    let mut words = first.invitation();
    words.extend(["--node-name".to_owned(), name.to_owned()]);
    second.join(&words);
}

fn node_ready(cluster: &Cluster, node: &str) -> String {
    cluster.field(&format!("node/{node}"), "{.status.conditions[?(@.type==\"Ready\")].status}")
}

/// One command on the first machine, and every node has the image; what is none is refused by each of them.
fn load_everywhere(first: &Cluster) {
    let load = |archive: &Path| {
        let mut command = first.mainstay(&["image", "load", "--all-nodes", "--data-dir"]);
        command.arg(first.data_dir()).arg(archive).output().expect("mainstay image load")
    };
    let broken = first.folder().join("broken.tar");
    std::fs::write(&broken, "no archive".repeat(100_000)).expect("written");
    let output = load(&broken);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("not every node has the images: node-1, node-2"), "{said}");
    let output = load(&workspace().join(".cache/images/busybox.tar"));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for node in ["node-1", "node-2"] {
        assert!(said.contains(&format!("loaded test.local/busybox:1 on {node}\n")), "{said}");
    }
}

#[test]
fn a_machine_joins_is_reached_comes_back_and_leaves_m4() {
    let lan = Lan::new();
    let (first, [mut second, third]) = machines(&lan, &[]);
    let named = |words: Vec<String>, name: &str| [words, vec!["--node-name".to_owned(), name.to_owned()]].concat();

    // Another cluster's CA, another token: nothing is told, nothing is kept.
    let words = first.invitation();
    let other_hash = words.iter().map(|word| match word.strip_prefix("sha256:") {
        Some(_) => format!("sha256:{}", "0".repeat(64)),
        None => word.clone(),
    });
    let said = second.refused_to_join(&other_hash.collect::<Vec<_>>());
    assert!(said.contains("has another hash than --ca-hash says"), "{said}");
    let other_token: Vec<String> = words
        .iter()
        .map(|word| {
            if word.contains('.') && !word.contains('/') { "aaaaaa.aaaaaaaaaaaaaaaa".to_owned() } else { word.clone() }
        })
        .collect();
    let said = second.refused_to_join(&other_token);
    assert!(said.contains("the token is not known to the cluster"), "{said}");
    assert!(second.refused_to_join::<&str>(&[]).contains("mainstay token create"));

    let begun = Instant::now();
    second.join(&named(words, "node-2"));
    let took = begun.elapsed();
    eprintln!("joined and Ready after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(2), "Ready after {took:?}:\n{}", second.log());
    assert_eq!(node_ready(&first, "node-2"), "True");
    assert_eq!(first.field("node/node-1", "{.spec.podCIDR}"), "10.244.0.0/24");
    assert_eq!(first.field("node/node-2", "{.spec.podCIDR}"), "10.244.1.0/24");

    // Nobody else is this node.
    let said = third.refused_to_join(&named(first.invitation(), "node-2"));
    assert!(said.contains("another machine is node node-2 already"), "{said}");

    load_everywhere(&first);
    first.apply(&pod("web-2", "node-2"));
    first.kubectl(&["wait", "--for=condition=Ready", "pod/web-2", "--timeout=60s"]);
    let reached = |first: &Cluster| {
        assert_eq!(first.exec("web-2", &["hostname"]).trim(), "web-2");
        assert!(first.kubectl(&["logs", "web-2"]).contains("started"));
        assert_eq!(first.kubectl(&["get", "--raw", "/api/v1/nodes/node-2/proxy/healthz"]), "ok");
    };
    reached(&first);
    assert_eq!(forwarded(&first).trim(), "web-2");

    // M4: with the node's own certificate.
    let as_node = |args: &[&str]| {
        let pem = second.data_dir().join("node/client.pem");
        let mut command = second.inside(first.kubectl_path());
        command.env_remove("KUBECONFIG").args(["--server=https://172.30.0.1:6443", "--insecure-skip-tls-verify"]);
        command.arg("--client-certificate").arg(&pem).arg("--client-key").arg(&pem);
        text(&command.args(args).output().expect("kubectl"))
    };
    assert!(as_node(&["get", "pod", "web-2", "-o", "name"]).contains("pod/web-2"));
    assert!(as_node(&["get", "secrets", "-A"]).contains("Forbidden"));
    let label = as_node(&["label", "node", "node-1", "a=b"]);
    assert!(label.contains("Forbidden"), "{label}");
    assert!(as_node(&["delete", "node", "node-1"]).contains("Forbidden"));

    // Both certificates are replaced while it runs, and are those with which it comes back.
    let before = std::fs::read(second.data_dir().join("node/serving.pem")).expect("a certificate");
    assert!(Command::new("kill").args(["-HUP", &second.pid()]).status().expect("kill").success());
    let serving = second.data_dir().join("node/serving.pem");
    first.eventually("there is a new certificate", || std::fs::read(&serving).expect("a certificate") != before);
    reached(&first);
    let container = first.field("pod/web-2", "{.status.containerStatuses[0].containerID}");
    second.stop();
    // Also while no server answers: what runs goes on, and is the cluster's again as soon as it is reached.
    lan.cut(2, true);
    second.join_until::<&str>(&[], "started");
    lan.cut(2, false);
    first.eventually("the machine is reached again", || {
        first.try_kubectl(&["exec", "web-2", "--", "true"]).status.success()
    });
    reached(&first);
    assert_eq!(first.field("pod/web-2", "{.status.containerStatuses[0].containerID}"), container, "V7");

    leaves(&first, &mut second);
}

fn forwarded(first: &Cluster) -> String {
    let mut forward = first.inside(first.kubectl_path());
    let mut forward =
        forward.args(["port-forward", "pod/web-2", ":8080"]).stdout(Stdio::piped()).spawn().expect("kubectl");
    // Kept open: kubectl writes a line for each connection.
    let mut said = BufReader::new(forward.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let port = line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()).expect("a port").to_owned();
    let url = format!("http://127.0.0.1:{port}/");
    let output = first.inside("curl").args(["-sS", "-m", "10", "--noproxy", "*", &url]).output().expect("curl");
    forward.kill().expect("killed");
    forward.wait().expect("reaped");
    text(&output)
}

fn leaves(first: &Cluster, second: &mut Cluster) {
    // Drained and deleted by an administrator: its pods are gone, also from the machine.
    let drained = first.kubectl(&["drain", "node-2", "--force", "--timeout=60s"]);
    assert!(drained.contains("node/node-2 drained"), "{drained}");
    first.kubectl(&["delete", "node", "node-2"]);
    assert_eq!(first.kubectl(&["get", "pods", "-o", "name"]), "");
    // It comes back as itself, with its range.
    second.stop();
    second.join::<&str>(&[]);
    assert_eq!(first.field("node/node-2", "{.spec.podCIDR}"), "10.244.1.0/24");
    first.apply(&pod("web-3", "node-2"));
    first.kubectl(&["wait", "--for=condition=Ready", "pod/web-3", "--timeout=60s"]);
    let left = second.mainstay(&["leave", "--data-dir"]).arg(second.data_dir()).output().expect("run");
    assert!(left.status.success(), "{}\n{}", text(&left), second.log());
    assert_eq!(second.left_over(), Vec::<String>::new());
    assert_eq!(first.kubectl(&["get", "nodes,pods", "-o", "name"]), "node/node-1\n");
    assert!(second.refused_to_join::<&str>(&[]).contains("no node of a cluster yet"));
    second.gone();
}

#[test]
fn pods_reach_each_other_between_machines_n4() {
    for (between, mtu) in [("vxlan", "1450"), ("routes", "1500")] {
        let lan = Lan::new();
        let (first, [mut second]) = machines(&lan, &["--pod-network", between]);
        joined(&first, &mut second, "node-2");
        [&first, &second].into_iter().for_each(|machine| machine.load(&["busybox"]));
        first.apply(&(pod("web-1", "node-1") + &pod("web-2", "node-2")));
        first.kubectl(&[
            "expose",
            "pod",
            "web-1",
            "--name=web",
            "--selector=app=web",
            "--port=80",
            "--target-port=8080",
            "--type=NodePort",
        ]);
        first.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
        talk(&first, &second, between, mtu);
        // A restart of the agents interrupts nothing, and what they left they find again.
        second.stop();
        let ip = first.field("pod/web-2", "{.status.podIP}");
        let fetch =
            first.inside("curl").args(["-sS", "-m", "10", "--noproxy", "*", &format!("http://{ip}:8080/")]).output();
        assert_eq!(text(&fetch.expect("curl")).trim(), "web-2", "{between}: without the agent");
        second.join::<&str>(&[]);
        first.kubectl(&["delete", "node", "node-2"]);
        first.eventually("the route is gone", || {
            let routes = first.inside("ip").args(["route", "show", "10.244.1.0/24"]).output().expect("ip");
            text(&routes).is_empty()
        });
    }
}

/// Everybody reaches everybody, whatever the way.
fn talk(first: &Cluster, second: &Cluster, between: &str, mtu: &str) {
    let checks = Checks::default();
    let port = first.field("service/web", "{.spec.ports[0].nodePort}");
    let service = first.field("service/web", "{.spec.clusterIP}");
    let ips = ["web-1", "web-2"].map(|pod| first.field(&format!("pod/{pod}"), "{.status.podIP}"));
    let curl = |mut curl: Command, url: &str| {
        let output = curl.args(["-skS", "-m", "20", "--noproxy", "*", url]).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let fetched = |pod: &str, url: &str| curl(first.in_network_of(pod, "curl"), url);
    let both = |fetch: &dyn Fn() -> String| {
        let all: std::collections::BTreeSet<String> = (0..24).map(|_| fetch()).collect();
        all.into_iter().collect::<Vec<_>>().join(" ")
    };
    // Rules follow the pods' readiness by a moment.
    for pod in ["web-1", "web-2"] {
        let has_both = || both(&|| fetched(pod, &format!("http://{service}/"))) == "web-1 web-2";
        first.eventually(&format!("{between}: {pod} reaches both"), has_both);
    }
    for (pod, other, ip) in [("web-1", "web-2", &ips[1]), ("web-2", "web-1", &ips[0])] {
        let name = |what: &str| format!("{between}: {pod} reaches {what}");
        checks.equal(&name("the other pod"), &fetched(pod, &format!("http://{ip}:8080/")), other);
        let large = fetched(pod, &format!("http://{ip}:8080/large"));
        checks.equal(&name("all of a large page"), &large.len().to_string(), "3000000");
        checks.equal(&name("a Service"), &both(&|| fetched(pod, &format!("http://{service}/"))), "web-1 web-2");
        let named = first.exec(pod, &["nslookup", "web.default.svc.cluster.local", "10.96.0.10"]);
        checks.contains(&name("the cluster's DNS"), &named, &service);
        checks.equal(&name("the API"), &fetched(pod, "https://10.96.0.1/healthz"), "ok");
        checks.contains(&name("at its size"), &first.exec(pod, &["cat", "/sys/class/net/eth0/mtu"]), mtu);
    }
    for (machine, name) in [(first, "node-1"), (second, "node-2")] {
        let fetched = |url: &str| curl(machine.inside("curl"), url);
        for (pod, ip) in ["web-1", "web-2"].iter().zip(&ips) {
            checks.equal(&format!("{between}: {name} reaches a pod"), &fetched(&format!("http://{ip}:8080/")), pod);
        }
        let reached = both(&|| fetched(&format!("http://{service}/")));
        checks.equal(&format!("{between}: {name} reaches a Service"), &reached, "web-1 web-2");
        for node in ["172.30.0.1", "172.30.0.2"] {
            let reached = both(&|| fetched(&format!("http://{node}:{port}/")));
            checks.equal(&format!("{between}: {name} reaches node port of {node}"), &reached, "web-1 web-2");
        }
    }
}

#[test]
fn a_local_volume_keeps_its_pods_on_its_machine_v5_v9() {
    let lan = Lan::new();
    let (first, [mut second]) = machines(&lan, &["--pod-network", "routes"]);
    joined(&first, &mut second, "node-2");
    [&first, &second].into_iter().for_each(|machine| machine.load(&["busybox"]));
    let claim = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n\
        spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}\n";
    let user = |name: &str, selector: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n\
            {selector}  containers: [{{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, \
            command: [sleep, '100000'], volumeMounts: [{{name: data, mountPath: /data}}]}}]\n  \
            volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]\n"
        )
    };
    let on = |node: &str| format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n");
    first.apply(&(claim.to_owned() + &user("writer", &on("node-2"))));
    first.kubectl(&["wait", "--for=condition=Ready", "pod/writer", "--timeout=60s"]);
    first.exec("writer", &["sh", "-c", "echo precious > /data/file && sync"]);

    // Another machine has no such volume: a pod that must run there waits, and finds no empty folder.
    first.apply(&user("elsewhere", &on("node-1")));
    let message = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    first.eventually("V9: the pod waits while another node has the volume", || {
        first.field("pod/elsewhere", message).contains("a ReadWriteOnce volume that is in use on another node")
    });
    first.kubectl(&["delete", "pod", "writer"]);
    first.eventually("V5: the pod waits for its volume's node", || {
        let message = first.field("pod/elsewhere", message);
        !message.is_empty() && !message.contains("ReadWriteOnce volume that is in use")
    });
    assert_eq!(first.field("pod/elsewhere", "{.spec.nodeName}"), "", "V5");
    first.kubectl(&["delete", "pod", "elsewhere"]);
    first.kubectl(&["cordon", "node-2"]);
    first.apply(&user("again", ""));
    first.eventually("the pod waits for its volume's node", || !first.field("pod/again", message).is_empty());
    assert_eq!(first.field("pod/again", "{.spec.nodeName}"), "", "V5");
    first.kubectl(&["uncordon", "node-2"]);
    first.kubectl(&["wait", "--for=condition=Ready", "pod/again", "--timeout=60s"]);
    assert_eq!(first.exec("again", &["cat", "/data/file"]).trim(), "precious");

    // A machine with volumes does not leave without being told to.
    let left = second.mainstay(&["leave", "--data-dir"]).arg(second.data_dir()).output().expect("run");
    assert!(!left.status.success() && text(&left).contains("volumes live on this machine"), "{}", text(&left));
    assert_eq!(node_ready(&first, "node-2"), "True");
}
