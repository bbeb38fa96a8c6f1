//! A pod's life as kubectl tells it: init containers, sidecars, probes, restarts, ends.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::{Checks, Cluster, text};

/// What kubectl shows as the pod's status.
fn shown(cluster: &Cluster, pod: &str) -> String {
    let line = cluster.kubectl(&["get", "pod", pod, "--no-headers"]);
    line.split_whitespace().nth(2).unwrap_or("").to_owned()
}

/// A field of the pod's only container's status.
fn container(cluster: &Cluster, pod: &str, path: &str) -> String {
    cluster.field(&format!("pod/{pod}"), &format!("{{.status.containerStatuses[0]{path}}}"))
}

fn shows(cluster: &Cluster, pod: &str, wanted: &[&str]) {
    cluster.eventually(&format!("{pod} shows {wanted:?}"), || wanted.contains(&shown(cluster, pod).as_str()));
}

fn events(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}")])
}

#[test]
fn from_the_first_container_to_the_last_signal() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(&cluster.manifest("lifecycle.yaml"));
    let checks = Checks::default();
    init_containers(&cluster, &checks);
    probes(&cluster, &checks);
    ends(&cluster, &checks);
    images(&cluster, &checks);
    logs(&cluster, &checks);
    termination(&cluster, &checks);
}

fn init_containers(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/ordered", "--timeout=60s"]);
    let order = cluster.kubectl(&["exec", "ordered", "-c", "main", "--", "cat", "/log/order"]);
    checks.equal("init containers and the sidecar come in order", &order, "one\nbeside\ntwo\nmain");
    let ready = cluster.kubectl(&["get", "pod", "ordered", "--no-headers"]);
    checks.contains("a sidecar counts", &ready, " 2/2 ");
    shows(cluster, "init-fails", &["Init:Error"]);
    checks.equal("nothing else began", &cluster.field("pod/init-fails", "{.status.phase}"), "Failed");
    shows(cluster, "init-again", &["Init:CrashLoopBackOff", "Init:Error"]);
    shows(cluster, "init-again", &["Init:CrashLoopBackOff"]);
    checks.equal("it waits for its init container", &cluster.field("pod/init-again", "{.status.phase}"), "Pending");
}

fn probes(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/probed", "--timeout=60s"]);
    let ip = cluster.field("pod/probed", "{.status.podIP}");
    let endpoints = || cluster.kubectl(&["get", "endpoints", "probed", "--no-headers"]);
    cluster.eventually("a ready pod is an endpoint", || endpoints().contains(&format!("{ip}:8080")));
    cluster.exec("probed", &["rm", "/tmp/ready"]);
    cluster.eventually("a pod that is not ready is no endpoint", || !endpoints().contains(&ip));
    checks.equal("readiness restarts nothing", &container(cluster, "probed", ".restartCount"), "0");
    checks.contains("and says why", &events(cluster, "probed"), "Readiness probe failed");
    cluster.exec("probed", &["touch", "/tmp/ready"]);
    cluster.eventually("ready again", || endpoints().contains(&ip));
    cluster.exec("probed", &["rm", "/www/alive"]);
    cluster.eventually("liveness restarts the container", || container(cluster, "probed", ".restartCount") == "1");
    let said = events(cluster, "probed");
    checks.contains("the liveness event", &said, "Liveness probe failed: HTTP probe failed with statuscode: 404");
    checks.contains("the killing event", &said, "Container main failed liveness probe, will be restarted");
    cluster.eventually("and it serves again", || endpoints().contains(&ip));
    cluster.eventually("a failed startup probe restarts", || {
        container(cluster, "never-starts", ".restartCount").parse::<u32>().is_ok_and(|count| count > 0)
    });
    checks.equal("not started, not ready", &container(cluster, "never-starts", ".ready"), "false");
    checks.contains("the startup event", &events(cluster, "never-starts"), "Startup probe failed");
}

fn ends(cluster: &Cluster, checks: &Checks) {
    shows(cluster, "completes", &["Completed"]);
    checks.equal("its last message", &container(cluster, "completes", ".state.terminated.message"), "bye");
    checks.equal("its reason", &container(cluster, "completes", ".state.terminated.reason"), "Completed");
    checks.equal("its phase", &cluster.field("pod/completes", "{.status.phase}"), "Succeeded");
    shows(cluster, "fails", &["Error"]);
    checks.equal("its exit code", &container(cluster, "fails", ".state.terminated.exitCode"), "3");
    checks.equal("FallbackToLogsOnError", &container(cluster, "fails", ".state.terminated.message"), "last words");
    shows(cluster, "crashes", &["CrashLoopBackOff"]);
    // Between two looks it may run again: the sentence is waited for by itself.
    cluster.eventually("the back-off is told in words", || {
        container(cluster, "crashes", ".state.waiting.message")
            .contains("restarting failed container=main pod=crashes_default(")
    });
    checks.contains(
        "its event",
        &events(cluster, "crashes"),
        "Back-off restarting failed container main in pod crashes_default",
    );
    shows(cluster, "on-failure", &["Completed"]);
    checks.equal("OnFailure runs it again, until it succeeds", &container(cluster, "on-failure", ".restartCount"), "1");
    shows(cluster, "eats-memory", &["OOMKilled"]);
    checks.equal("its exit code", &container(cluster, "eats-memory", ".state.terminated.exitCode"), "137");
    shows(cluster, "no-command", &["StartError"]);
    checks.contains(
        "why it does not start",
        &container(cluster, "no-command", ".state.terminated.message"),
        "/no/such/program",
    );
    checks.equal("what never starts has failed", &cluster.field("pod/no-command", "{.status.phase}"), "Failed");
    // RunContainerError stands only until the back-off does: late on a busy machine, it is seen once in minutes.
    cluster.eventually("what cannot start is tried again", || {
        container(cluster, "no-command-again", ".restartCount").parse::<u32>().is_ok_and(|count| count > 0)
    });
    cluster.eventually("the deadline ends a pod", || {
        cluster.field("pod/deadline", "{.status.phase} {.status.reason}") == "Failed DeadlineExceeded"
    });
    let asked = cluster.kubectl(&["get", "pods", "--field-selector=status.phase=Failed", "-o", "name"]);
    checks.holds("phases can be selected", asked.contains("pod/fails") && !asked.contains("completes"), &asked);
}

fn images(cluster: &Cluster, checks: &Checks) {
    shows(cluster, "image-never", &["ErrImageNeverPull"]);
    checks.contains(
        "why",
        &container(cluster, "image-never", ".state.waiting.message"),
        "is not present with pull policy of Never",
    );
    shows(cluster, "image-invalid", &["InvalidImageName"]);
    shows(cluster, "image-unreachable", &["ErrImagePull", "ImagePullBackOff"]);
    shows(cluster, "image-unreachable", &["ImagePullBackOff"]);
    checks.contains("why", &container(cluster, "image-unreachable", ".state.waiting.message"), "127.0.0.1:1/nothing:1");
    let said = events(cluster, "image-unreachable");
    for wanted in [
        "Pulling image \"127.0.0.1:1/nothing:1\"",
        "Failed to pull image",
        "Error: ErrImagePull",
        "Back-off pulling image",
    ] {
        checks.contains("the events of a failed pull", &said, wanted);
    }
}

fn logs(cluster: &Cluster, checks: &Checks) {
    cluster.eventually("the container ran twice", || {
        container(cluster, "crashes", ".restartCount").parse::<u32>().is_ok_and(|count| count > 0)
    });
    checks.contains("the log of the run before", &cluster.kubectl(&["logs", "crashes", "--previous"]), "try");
    let none = cluster.refused(&["logs", "stubborn", "--previous"]);
    checks.contains(
        "there was no run before",
        &none,
        "previous terminated container \"main\" in pod \"stubborn\" not found",
    );
    cluster
        .eventually("the long story is told", || cluster.kubectl(&["logs", "talks", "--tail=1"]).trim() == "the end");
    let uid = cluster.uid("pod/talks");
    let folder = cluster.data_dir().join("logs").join(format!("default_talks_{uid}")).join("main");
    let files: Vec<_> = fs::read_dir(&folder).map(|entries| entries.flatten().collect()).unwrap_or_default();
    let seen =
        files.iter().map(|file| format!("{} {}", file.path().display(), file.metadata().map_or(0, |data| data.len())));
    let seen = seen.collect::<Vec<_>>().join("\n");
    let within = files.iter().all(|file| file.metadata().is_ok_and(|data| data.len() <= 11 << 20));
    checks.holds(
        "logs are rotated",
        files.len() > 1 && files.len() <= 5 && within,
        &format!("{}: {seen}", folder.display()),
    );
    let line = fs::read_to_string(folder.join("0.log")).unwrap_or_default();
    let first = line.lines().next().unwrap_or("").to_owned();
    checks.holds(
        "the CRI log format",
        first.split(' ').nth(1) == Some("stdout") && first.split(' ').nth(2) == Some("F"),
        &first,
    );
}

fn termination(cluster: &Cluster, checks: &Checks) {
    let told = || fs::read_to_string(cluster.folder().join("host/graceful")).unwrap_or_default();
    cluster.eventually("postStart ran", || told() == "started\n");
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/graceful", "--timeout=60s"]);
    cluster.kubectl(&["delete", "pod", "graceful", "--wait=false"]);
    checks.equal("it ends", &shown(cluster, "graceful"), "Terminating");
    cluster.kubectl(&["wait", "--for=delete", "pod/graceful", "--timeout=60s"]);
    checks.equal("preStop, then SIGTERM, then its own end", &told(), "started\npre-stop\nterm\ndone");
    let begun = Instant::now();
    cluster.kubectl(&["delete", "pod", "stubborn"]);
    let took = begun.elapsed();
    let within = took > Duration::from_millis(1500) && took < Duration::from_secs(15);
    checks.holds("SIGKILL after the grace period", within, &format!("{took:?}"));
    let begun = Instant::now();
    let forced = cluster.try_kubectl(&["delete", "pod", "talks", "--grace-period=0", "--force"]);
    checks.holds("a forced end", forced.status.success() && begun.elapsed() < Duration::from_secs(15), &text(&forced));
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=60s"]);
    checks.equal("nothing is left", &cluster.kubectl(&["get", "pods", "-o", "name"]), "");
}
