//! `mountPropagation`, on a machine whose root passes no mounts on.

use crate::harness::Cluster;

const SHARED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: giver
      image: test.local/busybox:1
      securityContext: {privileged: true}
      command: [sleep, '100000']
      volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]
    - name: taker
      image: test.local/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]
    - name: other
      image: test.local/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
";

const REFUSED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: refused}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: test.local/busybox:1
      securityContext: {privileged: true}
      command: [sleep, '100000']
      volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]
  volumes: [{name: v, hostPath: {path: /opt}}]
";

#[test]
fn x8_what_a_pod_mounts_is_propagated_in_its_volumes_and_refused_where_it_cannot_be() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(SHARED);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/shared", "--timeout=60s"]);
    let read = |container: &str| {
        let seen = cluster.try_kubectl(&["exec", "shared", "-c", container, "--", "cat", "/v/m/file"]);
        String::from_utf8_lossy(&seen.stdout).into_owned()
    };
    // Only now: who starts later has what is there then, as upstream.
    let mount = "mkdir -p /v/m && mount -t tmpfs given /v/m && echo hello > /v/m/file";
    cluster.kubectl(&["exec", "shared", "-c", "giver", "--", "sh", "-c", mount]);
    assert_eq!(read("giver"), "hello\n");
    cluster.eventually("it is propagated", || read("taker") == "hello\n");
    assert_eq!(read("other"), "", "only to who asked");
    // V7: an agent that comes back leaves it as it is.
    let container = "{.status.containerStatuses[0].containerID}";
    let before = cluster.field("pod/shared", container);
    cluster.kill9();
    cluster.up();
    cluster.eventually("it answers", || cluster.field("pod/shared", container) == before);
    let seen = cluster.exec("shared", &["cat", "/v/m/file"]);
    assert_eq!(seen, "hello\n");

    cluster.apply(REFUSED);
    let why =
        "{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}";
    cluster.eventually("the pod says why", || {
        let said = cluster.field("pod/refused", why);
        said.starts_with("CreateContainerError") && said.contains("but it is not a shared mount")
    });
    cluster.kubectl(&["delete", "pod", "shared", "refused"]);
    // Its grace is none: the API lets it go before the node has.
    cluster.eventually("nothing of it is mounted", || !cluster.left_over().iter().any(|line| line.contains(" given ")));
}
