//! What a pod may not do, what a node does not take, and what pods get that they asked for: X6, X8.

use crate::harness::{Checks, Cluster};

const STAT_INTERVAL: &str = "/proc/sys/vm/stat_interval";

/// A pod of one container that waits; `more` goes into its spec, `own` into the container.
fn pod(name: &str, more: &str, own: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
         containers:\n  - name: main\n    image: test.local/busybox:1\n    command: [sleep, '100000']\n{own}"
    )
}

#[test]
fn pods_are_kept_to_themselves_and_get_what_they_ask_for() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    let checks = Checks::default();
    write_too_much(&cluster);
    refusals(&cluster, &checks);
    admission(&cluster, &checks);
    confinement(&cluster, &checks);
    output(&cluster, &checks);
    own_users(&cluster, &checks);
    shared_processes(&cluster, &checks);
    own_dev(&cluster, &checks);
    host_ports(&cluster, &checks);
    ephemeral_containers(&cluster, &checks);
    image_volumes_and_late_keys(&cluster, &checks);
    nobody_takes_the_apis_port(&cluster, &checks);
    evictions(&cluster, &checks);
}

/// Pods that write more to the node's disk than they may, and one that may.
fn write_too_much(cluster: &Cluster) {
    let write = |file: &str| format!("[sh, -c, 'dd if=/dev/zero of={file} bs=1M count=8; sleep 100000']");
    let volume = |limit: &str| format!("  volumes: [{{name: e, emptyDir: {limit}}}]\n");
    let limited = |limit: &str| format!("    resources: {{limits: {{ephemeral-storage: {limit}}}}}\n");
    let mount = "    volumeMounts: [{name: e, mountPath: /e}]\n";
    for (name, more, own, file) in [
        ("in-volume", volume("{sizeLimit: 2Mi}"), mount.to_owned(), "/e/file"),
        ("in-root", String::new(), limited("3Mi"), "/file"),
        ("in-hosts", String::new(), limited("3Mi"), "/etc/hosts"),
        ("within", volume("{sizeLimit: 20Mi}"), mount.to_owned() + &limited("30Mi"), "/e/file"),
    ] {
        cluster.apply(&pod(name, &more, &own).replace("[sleep, '100000']", &write(file)));
    }
}

/// X6: they are evicted, in upstream's words, and the files of the volume go with them.
fn evictions(cluster: &Cluster, checks: &Checks) {
    for (name, message) in [
        ("in-volume", "Usage of EmptyDir volume \"e\" exceeds the limit \"2Mi\". "),
        ("in-root", "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
        ("in-hosts", "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
    ] {
        let of = |path: &str| cluster.field(&format!("pod/{name}"), path);
        cluster
            .eventually(&format!("{name} is evicted"), || of("{.status.phase} {.status.reason}") == "Failed Evicted");
        checks.equal(name, &of("{.status.message}"), message.trim_end());
        checks.equal(name, &of("{.status.conditions[?(@.type=='DisruptionTarget')].reason}"), "TerminationByKubelet");
    }
    let folder = cluster.data_dir().join("pods").join(cluster.uid("pod/in-volume")).join("volumes/e");
    cluster.eventually("the volume is gone", || !folder.exists());
    checks.equal("within its limits", &cluster.field("pod/within", "{.status.phase}"), "Running");
}

/// X5, X7: neither a pod nor a Service gets connections that are meant for the API.
fn nobody_takes_the_apis_port(cluster: &Cluster, checks: &Checks) {
    let own = "    ports: [{containerPort: 81, hostPort: 18081}]\n";
    let serve =
        "[sh, -c, 'while true; do echo thief | nc -l -p 80; done & while true; do echo up | nc -l -p 81; done']";
    cluster.apply(&pod("thief", "", own).replace("[sleep, '100000']", serve));
    cluster.kubectl(&["label", "pod", "thief", "app=thief"]);
    let ask = || {
        let script = "exec 3<>/dev/tcp/127.0.0.1/18081 && timeout 5 cat <&3";
        let output = cluster.inside("bash").args(["-c", script]).output().expect("bash");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    cluster.eventually("its other port is its own", || ask() == "up");
    checks.equal("the API is there", &cluster.kubectl(&["get", "--raw", "/livez"]), "ok");
    for address in ["127.0.0.1", "0.0.0.0", "169.254.169.254"] {
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: thief}}\nspec: {{selector: {{a: b}}, \
             externalIPs: [{address}], ports: [{{port: 6443}}]}}"
        );
        let output = cluster.kubectl_with(&["apply", "-f", "-"], &manifest);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        checks.holds(address, error.contains("spec.externalIPs[0]: Invalid value"), &error);
    }
    ports_that_are_not_to_be_had(cluster, checks);
    cluster.kubectl(&["delete", "pod", "thief"]);
}

/// X8: what is not served is said, on the pod or on the Service.
fn ports_that_are_not_to_be_had(cluster: &Cluster, checks: &Checks) {
    let own = "    ports: [{containerPort: 80, hostPort: 10250}]\n";
    cluster.apply(&pod("waits", "", own));
    cluster.apply(&pod("bound", "  nodeName: node-1\n", own));
    let free = "node(s) didn't have free ports for the requested pod ports";
    let of = |pod: &str, path: &str| cluster.field(&format!("pod/{pod}"), path);
    let why = "{.status.conditions[?(@.type=='PodScheduled')].message}";
    cluster.eventually("no node has the port", || of("waits", why).contains(&format!("1 {free}")));
    cluster.eventually("it is refused", || of("bound", "{.status.phase} {.status.reason}") == "Failed NodePorts");
    let message = format!("Pod was rejected: Predicate NodePorts failed: {free}");
    checks.equal("in words", &of("bound", "{.status.message}"), &message);
    cluster.kubectl(&["delete", "pod", "waits", "bound"]);
    let service = |name: &str, port: &str| {
        let spec = format!("{{selector: {{app: thief}}, externalIPs: [192.0.2.77], ports: [{{port: {port}}}]}}");
        cluster.apply(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}"));
    };
    for (name, port) in [("kubelets", "10250"), ("first", "88"), ("second", "88")] {
        service(name, port);
    }
    let said = |name: &str, what: &str| {
        let about = format!("involvedObject.name={name},reason=PortAlreadyAllocated");
        let events = cluster.kubectl(&["get", "events", "--field-selector", &about, "-o", "jsonpath={..message}"]);
        events.contains(what)
    };
    let kept = "On node node-1, 192.0.2.77:10250/TCP is not served: it is the cluster's own";
    cluster.eventually("the guard says so", || said("kubelets", kept));
    let lost = "On node node-1, 192.0.2.77:88/TCP is not served: default/first has it";
    cluster.eventually("who came second hears of it", || said("second", lost));
    checks.holds("who has it hears nothing", !said("first", "is not served"), "");
    cluster.kubectl(&["delete", "service", "kubelets", "first", "second"]);
}

/// X6, X8: what would change the host, and what the node cannot do, fails the pod with a reason.
fn refusals(cluster: &Cluster, checks: &Checks) {
    let before = std::fs::read_to_string(STAT_INTERVAL).expect("readable");
    for (name, spec, reason, message) in [
        (
            "sysctl",
            "  securityContext: {sysctls: [{name: vm.stat_interval, value: '9'}]}\n",
            "SysctlForbidden",
            "Pod was rejected: forbidden sysctl: \"vm.stat_interval\" not allowlisted",
        ),
        (
            "apparmor",
            "  securityContext: {appArmorProfile: {type: RuntimeDefault}}\n",
            "AppArmor",
            "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ),
    ] {
        cluster.apply(&pod(name, spec, ""));
        let phase = || cluster.field(&format!("pod/{name}"), "{.status.phase} {.status.reason}");
        cluster.eventually(&format!("{name} is refused"), || phase() == format!("Failed {reason}"));
        checks.equal(name, &cluster.field(&format!("pod/{name}"), "{.status.message}"), message);
    }
    checks.equal("the host's parameter", &std::fs::read_to_string(STAT_INTERVAL).expect("readable"), before.trim());
    let manifest = pod("named", "  securityContext: {sysctls: [{name: Vm..Stat, value: '9'}]}\n", "");
    let output = cluster.kubectl_with(&["apply", "-f", "-"], &manifest);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    checks.holds(
        "a name that is none is refused by the API",
        error.contains("must have at most 253 characters"),
        &error,
    );
}

/// A pod bound by name is taken or failed as by a kubelet, and its set makes it again.
fn admission(cluster: &Cluster, checks: &Checks) {
    cluster.apply(&pod("big", "  nodeName: node-1\n", "    resources: {requests: {cpu: '4000'}}\n"));
    cluster.eventually("a pod that is too big fails", || cluster.field("pod/big", "{.status.reason}") == "OutOfcpu");
    let message = cluster.field("pod/big", "{.status.message}");
    checks.holds("how much was there", message.contains("requested: 4000000, used: "), &message);
    cluster.apply(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: picky}\nspec:\n  serviceName: picky\n  \
         selector: {matchLabels: {app: picky}}\n  template:\n    metadata: {labels: {app: picky}}\n    spec:\n      \
         nodeName: node-1\n      nodeSelector: {disk: fast}\n      terminationGracePeriodSeconds: 0\n      \
         containers: [{name: main, image: 'test.local/busybox:1', command: [sleep, '100000']}]\n",
    );
    let first = std::cell::RefCell::new(String::new());
    cluster.eventually("the set's pod is refused", || {
        let [reason, uid] = ["{.status.reason}", "{.metadata.uid}"].map(|path| cluster.field("pod/picky-0", path));
        *first.borrow_mut() = uid;
        reason == "NodeAffinity"
    });
    cluster.eventually("the set makes it again", || cluster.uid("pod/picky-0") != *first.borrow());
    cluster.kubectl(&["label", "node", "node-1", "disk=fast"]);
    cluster.eventually("it is taken once it fits", || cluster.field("pod/picky-0", "{.status.phase}") == "Running");
    cluster.kubectl(&["delete", "statefulset", "picky"]);
}

fn confinement(cluster: &Cluster, checks: &Checks) {
    cluster.apply(&pod("plain", "", ""));
    cluster.apply(&pod("open", "  securityContext: {seccompProfile: {type: Unconfined}}\n", ""));
    for name in ["plain", "open"] {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    let seccomp = "grep -h '^Seccomp:' /proc/1/status /proc/self/status | tr -s '\\t\\n' '  '";
    checks.equal("the default profile", &cluster.exec("plain", &["sh", "-c", seccomp]), "Seccomp: 2 Seccomp: 2");
    checks.equal("none where asked for", &cluster.exec("open", &["sh", "-c", seccomp]), "Seccomp: 0 Seccomp: 0");
    let raise = "cd /sys/fs/cgroup && for f in */memory.limit_in_bytes */freezer.state */pids.max memory.max \
        cgroup.freeze; \
                 do [ -e $f ] && (echo 1 > $f) 2>/dev/null && echo wrote $f; done; true";
    checks.equal("no limit of its own is changed", &cluster.exec("plain", &["sh", "-c", raise]), "");
}

/// Logs are what the container wrote, whoever it runs as.
fn output(cluster: &Cluster, checks: &Checks) {
    let more = "  restartPolicy: Never\n  securityContext: {runAsUser: 1000, runAsGroup: 1000}\n";
    let manifest = pod("writer", more, "").replace(
        "[sleep, '100000']",
        "[sh, -c, 'echo one > /dev/stdout; echo two > /proc/1/fd/1; printf three; exit 3']\n    \
         terminationMessagePolicy: FallbackToLogsOnError",
    );
    cluster.apply(&manifest);
    let state = || cluster.field("pod/writer", "{.status.containerStatuses[0].state.terminated.exitCode}");
    cluster.eventually("the writer has ended", || state() == "3");
    checks.equal("its log", &cluster.kubectl(&["logs", "writer"]), "one\ntwo\nthree");
    let message = cluster.field("pod/writer", "{.status.containerStatuses[0].state.terminated.message}");
    checks.equal("its message", &message, "one\ntwo\nthree");
}

/// X6, S12: who debugs the processes of a pod sees nothing of the host's through the first of them, and a pod that
/// loses that one is made anew.
fn shared_processes(cluster: &Cluster, checks: &Checks) {
    let own = "    securityContext: {capabilities: {add: [SYS_PTRACE]}}\n";
    cluster.apply(&pod("debugged", "  shareProcessNamespace: true\n", own));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/debugged", "--timeout=60s"]);
    let look = "cd /proc/1; cat comm; tr '\\0' '|' < cmdline; echo; ls -A root/ | wc -l; ls fd | wc -l";
    let seen = cluster.exec("debugged", &["sh", "-c", look]);
    checks.equal("through the first process", &seen, "pause\n/pause|\n0\n0");
    let of = |path: &str| cluster.field("pod/debugged", &format!("{{.status.containerStatuses[0].{path}}}"));
    let before = of("containerID");
    cluster.kill_process(&cluster.uid("pod/debugged"), "pause");
    cluster.eventually("the pod is made anew", || of("ready") == "true" && of("containerID") != before);
    checks.equal("in the namespace of its own", &cluster.exec("debugged", &["cat", "/proc/1/comm"]), "pause");
    cluster.kubectl(&["delete", "pod", "debugged"]);
}

/// X6: a node agent has the node's own /dev, a volume can be a container's /dev, both again and again, and the node's
/// links and nodes stay as they are.
fn own_dev(cluster: &Cluster, checks: &Checks) {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |name: &str| std::fs::symlink_metadata(name).map(|file| (file.ino(), file.mode())).ok();
    let (before, place) = ((inode("/dev/ptmx"), inode("/dev/stdout")), std::path::Path::new("/dev/termination-log"));
    let had_place = place.exists();
    let restarts = "    volumeMounts: [{name: dev, mountPath: /dev}]\n";
    let node = "  volumes: [{name: dev, hostPath: {path: /dev}}]\n";
    let agent = pod("agent", node, &format!("{restarts}    securityContext: {{privileged: true}}\n"));
    let volume = pod("own-dev", "  volumes: [{name: dev, emptyDir: {}}]\n", restarts);
    for (name, manifest) in [("agent", agent), ("own-dev", volume)] {
        cluster
            .apply(&manifest.replace("[sleep, '100000']", "[sh, -c, 'trap exit TERM; while true; do sleep 1; done']"));
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        let count = || cluster.field(&format!("pod/{name}"), "{.status.containerStatuses[0].restartCount}");
        let ready = || cluster.field(&format!("pod/{name}"), "{.status.containerStatuses[0].ready}");
        let _ = cluster.try_kubectl(&["exec", name, "--", "sh", "-c", "kill 1"]);
        cluster.eventually(&format!("{name} starts again"), || count() == "1" && ready() == "true");
    }
    checks.equal("its /dev", &cluster.exec("agent", &["sh", "-c", "echo x > /dev/null && echo yes"]), "yes");
    let seen = cluster.exec("agent", &["sh", "-c", "stat -c %i /dev/zero"]);
    checks.equal("the node's own", &seen, &std::fs::metadata("/dev/zero").expect("a device").ino().to_string());
    checks.equal("of a volume", &cluster.exec("own-dev", &["ls", "/dev"]), "termination-log");
    checks.equal("the node's", &format!("{:?}", (inode("/dev/ptmx"), inode("/dev/stdout"))), &format!("{before:?}"));
    cluster.kubectl(&["delete", "pod", "agent", "own-dev"]);
    if !had_place {
        let _ = std::fs::remove_file(place);
    }
}

/// A pod with a user namespace has everything that another one has, and is nobody on the host.
fn own_users(cluster: &Cluster, checks: &Checks) {
    let volumes = "  securityContext: {fsGroup: 2000}\n  volumes:\n  - {name: claim, persistentVolumeClaim: \
        {claimName: users}}\n  \
                   - {name: memory, emptyDir: {medium: Memory}}\n  - {name: secret, secret: {secretName: users, \
                       defaultMode: 0400}}\n";
    let own = "    volumeMounts:\n    - {name: claim, mountPath: /claim, subPath: below/it}\n    - {name: memory, \
        mountPath: \
               /memory}\n    - {name: secret, mountPath: /secret}\n    readinessProbe: {exec: {command: [cat, \
                   /claim/file]}, \
               periodSeconds: 1}\n";
    let script = "echo of-root > /claim/file; trap 'echo bye > /dev/termination-log; exit 3' TERM; while true; do \
        sleep 0.1; done";
    let users = format!("  hostUsers: false\n  restartPolicy: Never\n{volumes}");
    let manifest = pod("users", &users, own).replace("[sleep, '100000']", &format!("[sh, -c, \"{script}\"]"));
    let others = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: users}\nspec: {accessModes: \
        [ReadWriteOnce], \
                  resources: {requests: {storage: 32Mi}}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: users}\n\
                  stringData: {word: hidden}\n---\n";
    cluster.apply(&format!("{others}{manifest}"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/users", "--timeout=60s"]);
    let look = "tr -s ' ' < /proc/1/uid_map | cut -d' ' -f2,4; id -u; cat /secret/word; echo; stat -c %u:%a /claim/.. \
        /tmp; \
                echo x > /memory/x && cat /memory/x; wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token | \
                    grep -c .";
    let seen = cluster.exec("users", &["sh", "-c", look]);
    let words: Vec<&str> = seen.split_whitespace().collect();
    checks.holds("its ids and its files", words.get(..5) == Some(&["0", "65536", "0", "hidden", "0:755"]), &seen);
    checks.holds("memory and token", words.ends_with(&["x", "1"]), &seen);
    cluster.kubectl(&["delete", "pod", "users", "--grace-period=10", "--wait=false"]);
    let message = || cluster.field("pod/users", "{.status.containerStatuses[0].state.terminated.message}");
    cluster.eventually("its termination message is read, or it is gone", || {
        message() == "bye" || cluster.field("pod/users", "{.metadata.uid}").is_empty()
    });
    cluster.kubectl(&["wait", "--for=delete", "pod/users", "--timeout=60s"]);
    let plain = "    volumeMounts:\n    - {name: claim, mountPath: /claim}\n";
    cluster.apply(&pod("plain-users", volumes, plain));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/plain-users", "--timeout=60s"]);
    let owner = cluster.exec("plain-users", &["stat", "-c", "%u:%g", "/claim/below/it/file"]);
    checks.equal("what its root wrote is root's, and the group's", &owner, "0:2000");

    let path = "  hostUsers: false\n  volumes:\n  - {name: sys, hostPath: {path: /proc/sys}}\n";
    cluster.apply(&pod("unmappable", path, "    volumeMounts:\n    - {name: sys, mountPath: /host}\n"));
    // It is tried again like one that ends at once, as upstream: why is in its last state then.
    let waiting = || cluster.field("pod/unmappable", "{.status.containerStatuses[0]}");
    cluster.eventually("a volume that cannot be mapped is refused in words", || {
        waiting().contains("failed to set MOUNT_ATTR_IDMAP on /proc/sys")
    });
    let manifest = pod("shared", "  hostUsers: false\n  hostNetwork: true\n", "");
    let output = cluster.kubectl_with(&["apply", "-f", "-"], &manifest);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = "spec.hostNetwork: Forbidden: when `hostUsers` is false";
    checks.holds("with a namespace of the host it is refused by the API", error.contains(words), &error);
    cluster.kubectl(&["delete", "pod", "plain-users", "unmappable", "--wait=false"]);
}

fn host_ports(cluster: &Cluster, checks: &Checks) {
    let address = cluster.field("node/node-1", "{.status.addresses[0].address}");
    let with_port = |name: &str, host: &str| {
        let ports = format!("    ports: [{{containerPort: 80, hostPort: 8088{host}}}]\n");
        let serve = format!("[sh, -c, 'while true; do echo {name} | nc -l -p 80; done']");
        pod(name, "", &ports).replace("[sleep, '100000']", &serve)
    };
    cluster.apply(&with_port("on-loopback", ", hostIP: 127.0.0.1"));
    cluster.apply(&with_port("on-address", &format!(", hostIP: {address}")));
    for name in ["on-loopback", "on-address"] {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    let ask = |host: &str| {
        let script = format!("exec 3<>/dev/tcp/{host}/8088 && timeout 5 cat <&3");
        let output = cluster.inside("bash").args(["-c", &script]).output().expect("bash");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    for (host, name) in [("127.0.0.1", "on-loopback"), (address.as_str(), "on-address")] {
        cluster.eventually(&format!("host port of {name} answers on {host}"), || ask(host) == name);
    }
    cluster.apply(&with_port("on-all", "").replace("spec:\n", "spec:\n  nodeName: node-1\n"));
    cluster.eventually("a port that is taken is refused", || {
        cluster.field("pod/on-all", "{.status.reason}") == "NodePorts"
    });
    cluster.kubectl(&["delete", "pod", "on-loopback", "on-address", "on-all"]);
    cluster.eventually("nobody answers any more", || ask("127.0.0.1").is_empty());
    checks.equal("nor on the node's address", &ask(&address), "");
}

fn ephemeral_containers(cluster: &Cluster, checks: &Checks) {
    let command = ["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"];
    let image = ["--image=test.local/busybox:1", "--image-pull-policy=IfNotPresent"];
    cluster.kubectl(&[&["debug", "plain", "--target=main", "-c", "look"], &image[..], &["--"], &command].concat());
    let code = || cluster.field("pod/plain", "{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}");
    cluster.eventually("the ephemeral container has run", || code() == "0");
    let log = cluster.kubectl(&["logs", "plain", "-c", "look"]);
    checks.equal("it sees its target's processes", log.trim(), "sleep 100000");
    checks.equal("the pod goes on", &cluster.field("pod/plain", "{.status.containerStatuses[0].restartCount}"), "0");
}

fn image_volumes_and_late_keys(cluster: &Cluster, checks: &Checks) {
    let volumes = "  volumes:\n  - {name: img, image: {reference: 'test.local/busybox:1', pullPolicy: \
        IfNotPresent}}\n  \
         - {name: later, projected: {sources: [{configMap: {name: later, optional: true, items: [{key: k, path: \
             a/k}]}}]}}\n";
    let mounts = "    volumeMounts: [{name: img, mountPath: /img}, {name: later, mountPath: /later}]\n";
    cluster.apply(&pod("volumes", volumes, mounts));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/volumes", "--timeout=60s"]);
    let sh = |script: &str| cluster.exec("volumes", &["sh", "-c", script]);
    checks.equal("the image's files", sh("cmp /img/bin/busybox /bin/busybox && echo same").trim(), "same");
    checks.equal("for reading only", sh("touch /img/x 2>/dev/null || echo refused").trim(), "refused");
    checks.equal("nothing there yet", sh("ls /later").trim(), "");
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=other=1"]);
    cluster.kubectl(&["patch", "configmap", "later", "-p", "{\"data\":{\"k\":\"v\"}}"]);
    cluster.eventually("a key that appeared later is there", || sh("cat /later/a/k 2>/dev/null; true") == "v");
    cluster.kubectl(&["delete", "configmap", "later"]);
    cluster.eventually("and goes with its object", || sh("cat /later/a/k 2>/dev/null; true").is_empty());
}

/// What a status says of its user is what the kernel says of the container's first process.
#[test]
fn conformance_a_status_says_who_a_container_began_as() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: ids }
spec:
  securityContext: { runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [60000], supplementalGroupsPolicy: Strict }
  containers:
  - { name: c, image: test.local/busybox:1, command: [sleep, "100000"] }
"#,
    );
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/ids", "--timeout=60s"]);
    let told = cluster.field("pod/ids", "{.status.containerStatuses[0].user.linux}");
    let told: serde_json::Value = serde_json::from_str(&told).expect("a user");
    assert_eq!(told, serde_json::json!({ "uid": 1000, "gid": 3000, "supplementalGroups": [3000, 60000] }));
    let status = cluster.exec("ids", &["cat", "/proc/1/status"]);
    let ids = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((ids("Uid:")[0].as_str(), ids("Gid:")[0].as_str()), ("1000", "3000"), "{status}");
    assert_eq!(ids("Groups:"), ["3000", "60000"], "{status}");
    assert_eq!(cluster.field("node/node-1", "{.status.features.supplementalGroupsPolicy}"), "true");
}
