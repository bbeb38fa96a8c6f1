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
