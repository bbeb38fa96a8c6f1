//! Behaviours of upstream's conformance suite that need a whole cluster; docs/conformance.md says where the others are.

use crate::harness::{Checks, Cluster};

const RESIZED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: test.local/busybox:1
    command: [sleep, '100000']
    resizePolicy: [{resourceName: cpu, restartPolicy: POLICY}]
    resources: {requests: {cpu: 100m, memory: 20Mi}, limits: {cpu: 200m, memory: 40Mi}}
"#;

const LIMITS: &str = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max 2>/dev/null || \
                      cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes";

/// Conformance, Pod InPlace Resize Container: limits change under a running process; where the policy says so, the
/// container is restarted; what a node cannot hold stays undone and says why.
#[test]
fn conformance_running_pods_are_resized() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    let checks = Checks::default();
    let change = |cpu: &str| {
        format!(
            r#"{{"spec":{{"containers":[{{"name":"main","resources":{{"requests":{{"cpu":"{cpu}","memory":"30Mi"}},"limits":{{"cpu":"{cpu}","memory":"60Mi"}}}}}}]}}}}"#
        )
    };
    for (name, policy, restarts) in [("kept", "NotRequired", "0"), ("restarted", "RestartContainer", "1")] {
        cluster.apply(&RESIZED.replace("NAME", name).replace("POLICY", policy));
        let pod = format!("pod/{name}");
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &pod]);
        cluster.kubectl(&["patch", &pod, "--subresource=resize", "-p", &change("300m")]);
        let shown = "{.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount} \
                     {.status.containerStatuses[0].state.running.startedAt}";
        cluster.eventually(&format!("{name} is resized"), || {
            cluster.field(&pod, shown).starts_with(&format!("300m {restarts} 2"))
        });
        let limits = cluster.kubectl(&["exec", name, "--", "sh", "-c", LIMITS]);
        let numbers: Vec<&str> = limits.split_whitespace().collect();
        checks.equal(&format!("{name}: its CPU"), numbers.first().copied().unwrap_or(""), "30000");
        checks.equal(&format!("{name}: its memory"), numbers.last().copied().unwrap_or(""), "62914560");
    }
    cluster.kubectl(&["patch", "pod/kept", "--subresource=resize", "-p", &change("900")]);
    let pending = r#"{.status.conditions[?(@.type=="PodResizePending")].reason}"#;
    cluster.eventually("it is infeasible", || cluster.field("pod/kept", pending) == "Infeasible");
    // Another agent adopts what was resized, and resizes nothing again.
    cluster.kubectl(&["patch", "pod/kept", "--subresource=resize", "-p", &change("250m")]);
    cluster.eventually("it fits again", || cluster.field("pod/kept", pending).is_empty());
    cluster.kill9();
    cluster.up();
    let kept = "{.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount}";
    checks.equal("after a restart of the agent", &cluster.field("pod/kept", kept), "250m 0");
}

/// Bodies and answers are YAML where that is asked for (`application/yaml`), and JSON has lines and indents for those
/// programs that show people what they get, as upstream. Of a watch no YAML is made.
#[test]
fn conformance_answers_are_yaml_where_it_is_asked_for_and_lines_for_people() {
    let cluster = Cluster::new();
    let checks = Checks::default();
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "all",
        "--clusterrole=admin",
        "--serviceaccount=default:default",
    ]);
    let token = cluster.kubectl(&["create", "token", "default"]);
    let ask = |path: &str, more: &[&str]| {
        let url = format!("https://127.0.0.1:6443/api/v1/namespaces/default/{path}");
        let bearer = format!("Authorization: Bearer {}", token.trim());
        let fixed = ["-sk", "-m", "20", "--noproxy", "*", "-w", "%{http_code} %{content_type}", "-H", &bearer, &url];
        let output = cluster.inside("curl").args(fixed).args(more).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let yaml = ["-H", "Accept: application/yaml"];
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  labels: {of: test}\ndata:\n  when: '2026'\n  \
        text: |\n    one\n    two\n";
    let made =
        ask("configmaps", &[&yaml[..], &["-H", "Content-Type: application/yaml", "--data-binary", body]].concat());
    for part in [
        "apiVersion: v1\ndata:\n  text: |\n    one\n    two\n  when: \"2026\"\nkind: ConfigMap\nmetadata:\n  \
         creationTimestamp: \"20",
        "\n201 application/yaml",
    ] {
        checks.contains("a body and an answer", &made, part);
    }
    let list = ask("configmaps?labelSelector=of=test", &yaml);
    checks.contains("a list", &list, "apiVersion: v1\nitems:\n- apiVersion: v1\n  data:\n    text: |\n      one\n");
    checks.contains("a list", &list, "\nkind: ConfigMapList\nmetadata:\n  resourceVersion: \"");
    checks.contains("no items", &ask("configmaps?labelSelector=of=none", &yaml), "apiVersion: v1\nitems: []\nkind:");
    let table = ["-H", "Accept: application/yaml;as=Table;v=v1;g=meta.k8s.io"];
    let table = ask("configmaps?labelSelector=of=test", &table);
    checks.contains("a table", &table, "\nkind: Table\nmetadata:\n  resourceVersion: \"");
    checks.contains("a table", &table, "\nrows:\n- cells:\n  - a\n  - 2\n");
    let missing = ask("configmaps/none", &yaml);
    checks.contains("a failure", &missing, "kind: Status\nmessage: configmaps \"none\" not found\n");
    let watch = ask("configmaps?watch=true&timeoutSeconds=1", &yaml);
    checks.contains(
        "a watch",
        &watch,
        "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
    );
    checks.contains("a watch", &watch, "406 ");
    let lines = ask("configmaps?labelSelector=of=test", &[]);
    checks.contains(
        "lines",
        &lines,
        "{\n  \"kind\": \"ConfigMapList\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n",
    );
    checks.contains("lines", &lines, "\n  \"items\": [\n    {\n");
    checks.contains("lines", &lines, "\n    }\n  ]\n}200 application/json");
    checks.contains("no lines", &ask("configmaps/a?pretty=false", &[]), "{\"kind\":\"ConfigMap\",");
    checks.contains("no lines", &ask("configmaps/a", &["-A", "a-program/1"]), "{\"kind\":\"ConfigMap\",");
}
