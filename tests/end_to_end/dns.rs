//! The cluster's DNS, asked by `dig` from a pod: every kind of record, names that come and go (N1 to N3), and the world
//! outside.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::upstream::{ADDRESS, Upstream};
use crate::harness::{Checks, Cluster};

/// N1 asks for 100 ms from the status to the answer. Both are seen here through programs (kubectl's watch, one dig
/// after the other in the pod) on a machine that does other things too.
const SOON: Duration = Duration::from_millis(1000);

const LATE: &str = "
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {clusterIP: None, selector: {app: late}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: late}, ports: [{name: http, port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: late}
spec:
  serviceName: late
  selector: {matchLabels: {app: late}}
  template:
    metadata: {labels: {app: late}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: main
          image: test.local/busybox:1
          command: [sh, -c, 'trap \"sleep 4; exit 0\" TERM; touch /tmp/up; while :; do sleep 0.1; done']
          readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
";

fn start() -> (Cluster, Upstream) {
    let mut cluster = Cluster::unstarted();
    cluster.replace_file("/etc/resolv.conf", "nameserver 127.0.0.53\n");
    let upstream = Upstream::in_namespace_of(cluster.holder_pid());
    cluster.up();
    cluster.load(&["busybox", "dnsutils"]);
    cluster.apply(&cluster.manifest("network.yaml"));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/tools", "--timeout=120s"]);
    (cluster, upstream)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn records_of_every_kind() {
    let (cluster, upstream) = start();
    let checks = Checks::default();
    let dig =
        |args: &[&str]| cluster.exec("tools", &[&["dig", "+short", "+search", "+time=2", "+tries=1"], args].concat());
    let status = |args: &[&str]| {
        let said = cluster.exec("tools", &[&["dig", "+search", "+time=2", "+tries=1"], args].concat());
        let head = said.lines().find(|line| line.contains("status:")).unwrap_or("").to_owned();
        head.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("no answer").to_owned()
    };
    let web = cluster.field("service/web", "{.spec.clusterIP}");
    let pods: Vec<String> =
        (0..2).map(|number| cluster.field(&format!("pod/db-{number}"), "{.status.podIP}")).collect();

    for name in
        ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "WEB.Default.Svc.Cluster.Local"]
    {
        checks.equal(&format!("A of {name}"), &dig(&[name, "A"]), &web);
        checks.equal(&format!("A of {name} over TCP"), &dig(&["+tcp", name, "A"]), &web);
    }
    checks.equal("no AAAA, but the name exists", &status(&["web", "AAAA"]), "NOERROR");
    let headless = dig(&["db", "A"]);
    let mut wanted: Vec<&str> = pods.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    checks.holds("A of a headless Service", sorted(&headless) == wanted, &headless);
    checks.equal("A of a stable name", &dig(&["db-1.db", "A"]), &pods[1]);
    let full = "default.svc.cluster.local.";
    checks.equal("SRV of a Service", &dig(&["_http._tcp.web", "SRV"]), &format!("0 100 80 web.{full}"));
    let records = dig(&["_sql._tcp.db.default.svc.cluster.local", "SRV"]);
    let targets: Vec<&str> = sorted(&records).iter().filter_map(|line| line.split(' ').nth(3)).collect();
    checks.holds(
        "SRV of a headless Service",
        targets == [format!("db-0.db.{full}"), format!("db-1.db.{full}")],
        &records,
    );
    checks.equal("PTR of a pod with a stable name", &dig(&["-x", &pods[0]]), &format!("db-0.db.{full}"));
    checks.equal("PTR of a Service", &dig(&["-x", &web]), &format!("web.{full}"));
    checks.equal(
        "A of a pod by its address",
        &dig(&[&format!("{}.default.pod.cluster.local", pods[0].replace('.', "-")), "A"]),
        &pods[0],
    );
    checks.equal("the schema's version", &dig(&["dns-version.cluster.local", "TXT"]), "\"1.1.0\"");
    checks.equal("CNAME", &dig(&["outside", "CNAME"]), "www.outside.example.");
    checks.equal("a CNAME to a Service is followed", &dig(&["alias", "A"]), &format!("web.{full}\n{web}"));
    let address = ADDRESS.map(|part| part.to_string()).join(".");
    checks.equal(
        "a CNAME to the outside is followed",
        &dig(&["outside", "A"]),
        &format!("www.outside.example.\n{address}"),
    );
    checks.equal("upstream", &dig(&["other.outside.example.", "A"]), &address);
    checks.equal("upstream over TCP", &dig(&["+tcp", "other.outside.example.", "A"]), &address);
    checks.equal("upstream knows no such name", &status(&["nothing.example.", "A"]), "NXDOMAIN");
    for name in ["nothing.default.svc.cluster.local", "web.nowhere.svc.cluster.local", "nothing.cluster.local"] {
        checks.equal(name, &status(&[name, "A"]), "NXDOMAIN");
    }
    let asked = upstream.asked();
    checks.holds(
        "names of the cluster are not asked upstream",
        asked.iter().all(|name| !name.contains("cluster.local")),
        &asked.join(" "),
    );
    let libc = cluster.exec("tools", &["sh", "-c", "wget -q -O - http://web.default/"]);
    checks.contains("by the C library", &libc, "web-");
    names_come_and_go(&cluster, &checks);
}

/// N1, N2 and N3.
fn names_come_and_go(cluster: &Cluster, checks: &Checks) {
    let dig = |name: &str| cluster.exec("tools", &["dig", "+short", "+search", name, "A"]).trim().to_owned();
    let stable = "late-0.late.default.svc.cluster.local";
    checks.equal("nobody is there yet", &dig(stable), "");
    cluster.apply(LATE);
    cluster.eventually("late-0 has an address", || !cluster.field("pod/late-0", "{.status.podIP}").is_empty());
    let address = cluster.field("pod/late-0", "{.status.podIP}");
    checks.equal("N1: not before it is Ready", &dig(stable), "");
    cluster.eventually("publishNotReadyAddresses", || dig("early") == address);

    let mut asking = cluster.inside(cluster.kubectl_path());
    let question = format!("until dig +short +time=1 +tries=1 {stable} | grep -q .; do :; done; echo resolved");
    let mut asking =
        asking.args(["exec", "tools", "--", "sh", "-c", &question]).stdout(Stdio::piped()).spawn().expect("kubectl");
    let answers = BufReader::new(asking.stdout.take().expect("piped"));
    let resolved = std::thread::spawn(move || {
        answers.lines().map_while(Result::ok).find(|line| line == "resolved").map(|_| Instant::now())
    });
    let mut watching = cluster.inside(cluster.kubectl_path());
    let mut watching =
        watching.args(["get", "pod", "late-0", "-w", "--no-headers"]).stdout(Stdio::piped()).spawn().expect("kubectl");
    let states = BufReader::new(watching.stdout.take().expect("piped"));
    let ready = std::thread::spawn(move || {
        states.lines().map_while(Result::ok).find(|line| line.contains("1/1")).map(|_| Instant::now())
    });
    cluster.exec("late-0", &["touch", "/tmp/ready"]);
    let (ready, resolved) =
        (ready.join().expect("no panic").expect("Ready"), resolved.join().expect("no panic").expect("resolved"));
    let _ = watching.kill();
    let _ = (watching.wait(), asking.wait());
    println!(
        "N1: resolved {:?} after it was seen Ready ({:?} before)",
        resolved.saturating_duration_since(ready),
        ready.saturating_duration_since(resolved)
    );
    checks.holds(
        "N1: resolves at once, though it was asked for before",
        resolved < ready + SOON,
        &format!("{:?}", resolved - ready),
    );

    cluster.kubectl(&["delete", "pod", "late-0", "--wait=false"]);
    let deleted = Instant::now();
    let mut gone = dig(stable);
    while !gone.is_empty() && deleted.elapsed() < SOON * 2 {
        gone = dig(stable);
    }
    println!("N2: stopped resolving within {:?}", deleted.elapsed());
    let deleting = cluster.field("pod/late-0", "{.metadata.deletionTimestamp}{.status.podIP}");
    checks.equal("N2: the name of a pod that is being deleted", &gone, "");
    checks.contains("N2: while the pod still ends", &deleting, &address);
    checks.equal("N2: but where not-ready addresses are published", &dig("early"), &address);
    cluster.eventually("its successor is there", || {
        let next = cluster.field("pod/late-0", "{.status.podIP} {.metadata.deletionTimestamp}");
        next.trim() != address && next.len() > 2 && next.ends_with(' ')
    });
    let next = cluster.field("pod/late-0", "{.status.podIP}");
    cluster.eventually("N3: only the successor's address is told", || dig("early") == next);
    checks.equal(
        "N3: the dead pod's address has no name",
        &cluster.exec("tools", &["dig", "+short", "-x", &address]),
        "",
    );
}
