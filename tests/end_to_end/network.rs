//! The network as pods and the host see it: Services of every kind, the API from a pod, and no gap in any of it while
//! server and node are killed and come back. `mainstay up` finds no `nft` and no `iptables` here.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Checks, Cluster, text};

/// What "refused at once" may take on a busy machine: far less than any timeout.
const AT_ONCE: Duration = Duration::from_secs(3);

fn start() -> Cluster {
    let mut cluster = Cluster::unstarted().open_to_pods().with_path("/nonexistent");
    for program in ["/usr/sbin/nft", "/usr/sbin/iptables"] {
        if std::path::Path::new(program).exists() {
            assert!(cluster.inside("mount").args(["--bind", "/dev/null", program]).status().expect("mount").success());
        }
    }
    cluster.up();
    cluster.load(&["busybox", "dnsutils"]);
    cluster.apply(&cluster.manifest("network.yaml"));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/tools", "--timeout=120s"]);
    cluster
}

fn fetched(mut curl: Command, url: &str) -> (String, Duration) {
    let begun = Instant::now();
    let output = curl.args(["-sS", "-m", "10", "--noproxy", "*", url]).output().expect("curl");
    (text(&output).trim().to_owned(), begun.elapsed())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn services_of_every_kind() {
    let mut cluster = start();
    let checks = Checks::default();
    let address = |service: &str| cluster.field(&format!("service/{service}"), "{.spec.clusterIP}");
    let from_pod = |url: &str| fetched(cluster.in_network_of("tools", "curl"), url);
    let from_host = |url: &str| fetched(cluster.inside("curl"), url);
    let listed = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}\n{end}",
    ]);
    let pods: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    let all: BTreeSet<String> = pods.iter().map(|(name, _)| (*name).to_owned()).collect();

    for (name, ip) in &pods {
        checks.equal("pod to pod", &from_pod(&format!("http://{ip}:8080/")).0, name);
        checks.equal("host to pod", &from_host(&format!("http://{ip}:8080/")).0, name);
    }
    let reached = |fetch: &dyn Fn() -> String| (0..24).map(|_| fetch()).collect::<BTreeSet<_>>();
    let web = format!("http://{}/", address("web"));
    // The rollout is over when the pods are ready; the node hears of it with the slice, a moment later.
    let reach_all = |who: &str, fetch: &dyn Fn() -> String| {
        cluster.eventually(&format!("a {who} reaches every backend of a Service"), || {
            let met = reached(fetch);
            assert!(met.is_subset(&all), "{who}: {met:?}, not {all:?}");
            met == all
        });
    };
    reach_all("pod", &|| from_pod(&web).0);
    reach_all("host", &|| from_host(&web).0);
    // A second range of addresses, Services, "should create Services and serve on different Service CIDRs".
    cluster.apply(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [203.0.113.0/24]}",
    );
    cluster.kubectl(&["wait", "--for=condition=Ready", "servicecidr/more", "--timeout=60s"]);
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: far}\n\
            spec: {clusterIP: 203.0.113.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}",
    );
    let far = "http://203.0.113.10/";
    cluster.eventually("the node leads the second range to its Services", || all.contains(&from_host(far).0));
    reach_all("pod", &|| from_pod(far).0);
    reach_all("host", &|| from_host(far).0);
    checks.equal(
        "an address is shown",
        &cluster.field("ipaddress/203.0.113.10", "{.spec.parentRef.resource}/{.spec.parentRef.name}"),
        "services/far",
    );
    cluster.kubectl(&["delete", "servicecidr/more", "--wait=false"]);
    cluster.kubectl(&["wait", "--for=condition=Ready=false", "servicecidr/more", "--timeout=60s"]);
    checks.holds("V2: a range that is used stays", all.contains(&from_host(far).0), far);
    cluster.kubectl(&["delete", "service/far"]);
    cluster.kubectl(&["wait", "--for=delete", "servicecidr/more", "--timeout=60s"]);
    let sticky = format!("http://{}/", address("sticky"));
    let met = reached(&|| from_pod(&sticky).0);
    checks.holds(
        "session affinity by client keeps to one backend",
        met.len() == 1 && met.is_subset(&all),
        &format!("{met:?}"),
    );
    let node = cluster.field("node/node-1", "{.status.addresses[?(@.type=='InternalIP')].address}");
    let port = format!("http://{node}:30080/");
    checks.holds("a node port leads to all backends", reached(&|| from_host(&port).0) == all, &listed);
    let (said, took) = from_host("http://127.0.0.1:30080/");
    checks.holds("a node port has no loopback address", said.contains("connect to server") && took < AT_ONCE, &said);
    checks.holds("a node port from a pod", all.contains(&from_pod(&format!("http://{node}:30080/")).0), &node);
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: balanced}\nspec: {type: LoadBalancer, \
            externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}",
    );
    let health = format!("http://{node}:{}/healthz", cluster.field("service/balanced", "{.spec.healthCheckNodePort}"));
    let has_endpoints = |count: usize| from_host(&health).0.contains(&format!("\"localEndpoints\": {count},"));
    cluster.eventually("load balancers are told of a node's endpoints", || has_endpoints(all.len()));
    cluster.kubectl(&["patch", "service/balanced", "-p", "{\"spec\":{\"selector\":{\"app\":\"nobody\"}}}"]);
    cluster.eventually("and of their end", || has_endpoints(0));
    cluster.kubectl(&["delete", "service/balanced"]);
    cluster.eventually("nobody answers for what is gone", || from_host(&health).0.contains("onnect"));
    checks.equal(
        "hairpin",
        &fetched(cluster.in_network_of("db-0", "curl"), &format!("http://{}/", address("itself"))).0,
        "db-0",
    );
    let by_name = cluster.exec("tools", &["wget", "-q", "-O", "-", "http://web/"]);
    checks.holds("by name, through the search list", all.contains(by_name.trim()), &by_name);

    let nobody = format!("http://{}/", address("nobody"));
    for (who, (said, took)) in [("pod", from_pod(&nobody)), ("host", from_host(&nobody))] {
        checks.contains(&format!("N4: {who} to a Service without endpoints"), &said, "connect to server");
        checks.holds(&format!("N4: {who} is refused at once"), took < AT_ONCE, &format!("{took:?}"));
    }
    let unknown = from_pod("http://10.96.200.200/");
    checks.holds(
        "N4: no Service has this address",
        !unknown.0.contains("timed out") && unknown.1 < AT_ONCE,
        &format!("{unknown:?}"),
    );
    let over_udp = cluster.kubectl(&[
        "exec",
        "tools",
        "--",
        "dig",
        "+short",
        "-p",
        "5300",
        &format!("@{}", address("names")),
        "web.default.svc.cluster.local",
    ]);
    checks.equal("UDP, to endpoints written by hand", &over_udp, &address("web"));
    api_from_a_pod(&cluster, &checks);
    let dns = cluster.kubectl(&["get", "endpoints", "-n", "kube-system", "kube-dns", "--no-headers"]);
    checks.contains("kube-dns has endpoints", &dns, ":53");
    let slices = cluster.kubectl(&[
        "get",
        "endpointslices",
        "-n",
        "kube-system",
        "-l",
        "kubernetes.io/service-name=kube-dns",
        "--no-headers",
    ]);
    checks.contains("kube-dns has a slice", &slices, "53");
    no_gap(&mut cluster, &checks);
}

/// `kubernetes.default` with the pod's own token.
fn api_from_a_pod(cluster: &Cluster, checks: &Checks) {
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let token = cluster.exec("tools", &["cat", &format!("{account}/token")]);
    let authority = cluster.folder().join("pod-ca.crt");
    std::fs::write(&authority, cluster.exec("tools", &["cat", &format!("{account}/ca.crt")])).expect("written");
    checks.equal("the pod's namespace", &cluster.exec("tools", &["cat", &format!("{account}/namespace")]), "default");
    let api = cluster.field("service/kubernetes", "{.spec.clusterIP}");
    checks.equal(
        "kubernetes.default resolves",
        &cluster.exec("tools", &["dig", "+short", "+search", "kubernetes.default"]),
        &api,
    );
    let ask = |path: &str, token: &str| {
        let mut curl = cluster.in_network_of("tools", "curl");
        curl.arg("--cacert").arg(&authority).args(["--resolve", &format!("kubernetes.default:443:{api}")]);
        curl.args(["-H", &format!("Authorization: Bearer {token}")]);
        fetched(curl, &format!("https://kubernetes.default{path}")).0
    };
    checks.contains(
        "the token is valid",
        &ask("/api/v1/namespaces/default/pods", &token),
        "system:serviceaccount:default:default",
    );
    checks.contains("discovery is open to service accounts", &ask("/apis", &token), "APIGroupList");
    checks.contains("a false token is none", &ask("/apis", "nonsense"), "Unauthorized");
}

/// A pod asks a Service without a pause while the server and node are killed and come back.
fn no_gap(cluster: &mut Cluster, checks: &Checks) {
    let asking = "while [ ! -e /tmp/end ]; do timeout 2 wget -q -O /dev/null http://$0/ && echo ok || echo lost; done \
        > /tmp/asked";
    let web = cluster.field("service/web", "{.spec.clusterIP}");
    cluster.exec("tools", &["sh", "-c", &format!("sh -c '{asking}' {web} < /dev/null > /dev/null 2>&1 &")]);
    let count = |cluster: &Cluster, what: &str| -> usize {
        let said = cluster.exec("tools", &["sh", "-c", &format!("grep -c {what} /tmp/asked; true")]);
        said.trim().parse().unwrap_or(0)
    };
    cluster.eventually("the pod asks", || count(cluster, "ok") > 0);
    let before = count(cluster, "ok");
    cluster.kill9();
    cluster.up();
    cluster.exec("tools", &["sh", "-c", "sleep 2; touch /tmp/end"]);
    let after = count(cluster, "ok");
    println!("{} answers during the restart", after - before);
    checks.holds("the Service answers during the restart", after > before + 5, &format!("{before} then {after}"));
    checks.equal("nothing is lost during the restart", &count(cluster, "lost").to_string(), "0");
}
