//! What a container finds around itself: variables, arguments, volumes, rights, names.

use std::fs;

use crate::harness::{Checks, Cluster, text};

fn start() -> Cluster {
    let mut cluster = Cluster::unstarted().open_to_pods();
    cluster.replace_file("/etc/resolv.conf", "nameserver 127.0.0.53\nsearch outside.example\n");
    cluster.up();
    cluster.load(&["busybox"]);
    cluster.apply(&cluster.manifest("environment.yaml"));
    for pod in ["env", "volumes", "secure", "names", "dns-none", "dns-default", "on-host"] {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }
    cluster
}

#[test]
fn a_container_finds_what_it_asked_for() {
    let cluster = start();
    let checks = Checks::default();
    variables(&cluster, &checks);
    volumes(&cluster, &checks);
    rights(&cluster, &checks);
    names(&cluster, &checks);
    updates(&cluster, &checks);
}

fn variables(cluster: &Cluster, checks: &Checks) {
    let all = cluster.exec("env", &["cat", "/tmp/env"]);
    let ip = cluster.field("pod/env", "{.status.podIP}");
    let host = cluster.field("pod/env", "{.status.hostIP}");
    let uid = cluster.uid("pod/env");
    for (name, value) in [
        ("COLOUR", "blue"),
        ("SECRET_PASSWORD", "s3cret"),
        ("PLAIN", "text"),
        ("GREETING", "hi text blue 10.96.7.7"),
        ("FROM_MAP", "first"),
        ("FROM_SECRET", "s3cret"),
        ("POD_NAME", "env"),
        ("POD_UID", &uid),
        ("POD_IP", &ip),
        ("HOST_IP", &host),
        ("NODE", "node-1"),
        ("ACCOUNT", "default"),
        ("TIER", "gold"),
        ("NOTE", "hello"),
        ("LIMIT", "33554432"),
        ("MILLI", "500"),
        ("HOSTNAME", "env"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("REDIS_MAIN_SERVICE_PORT", "6379"),
        ("REDIS_MAIN_PORT_6379_TCP", "tcp://10.96.7.7:6379"),
    ] {
        checks.holds(name, all.lines().any(|line| line == format!("{name}={value}")), &all);
    }
    checks.holds("an optional key that is absent is no variable", !all.contains("ABSENT"), &all);
    checks.equal(
        "$(VAR) in arguments",
        &cluster.exec("env", &["cat", "/tmp/args"]),
        "hi text blue 10.96.7.7 $(GREETING)-$(UNKNOWN)",
    );
    checks.equal("workingDir", &cluster.exec("env", &["pwd"]), "/usr");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", cluster.process_of("env"))).expect("running");
    let group = cgroup
        .lines()
        .find(|line| line.contains("memory") || line.starts_with("0::"))
        .and_then(|line| line.rsplit(':').next());
    let group = group.expect("a cgroup").to_owned();
    let limit = |v1: &str, v2: &str| {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let first = read(format!("/sys/fs/cgroup/{v1}").replace("HERE", group.trim_matches('/')));
        if first.is_empty() { read(format!("/sys/fs/cgroup{group}/{v2}")) } else { first }
    };
    checks.equal(
        "the memory limit in the cgroup",
        &limit("memory/HERE/memory.limit_in_bytes", "memory.max"),
        "33554432",
    );
    let cpu = limit("cpu/HERE/cpu.cfs_quota_us", "cpu.max");
    checks.holds("the cpu limit in the cgroup", cpu.starts_with("50000"), &cpu);
    checks.equal("QoS", &cluster.field("pod/env", "{.status.qosClass}"), "Burstable");
}

fn volumes(cluster: &Cluster, checks: &Checks) {
    let sh = |script: &str| cluster.exec("volumes", &["sh", "-c", script]);
    sh("echo shared > /scratch/file");
    let other = cluster.kubectl(&["exec", "volumes", "-c", "other", "--", "cat", "/shared/file"]);
    checks.equal("emptyDir is shared between containers", &other, "shared");
    checks.equal("emptyDir in memory", &sh("awk '$2 == \"/memory\" {print $3}' /proc/mounts"), "tmpfs");
    let full = cluster.try_kubectl(&[
        "exec",
        "volumes",
        "-c",
        "main",
        "--",
        "sh",
        "-c",
        "dd if=/dev/zero of=/memory/big bs=1048576 count=2",
    ]);
    checks.contains("its sizeLimit holds", &text(&full), "No space left");
    sh("echo from-pod > /host/page");
    let made = cluster.folder().join("host/made");
    checks.equal("hostPath", &fs::read_to_string(made.join("page")).unwrap_or_default(), "from-pod");
    checks.holds("FileOrCreate", made.join("file").is_file(), "no file");
    checks.equal("a config map's file", &sh("cat /map/app.conf"), "level = 1");
    checks.equal("an item's path and mode", &sh("stat -L -c %a /map/deep/motto"), "400");
    checks.equal("only the items", &sh("ls /map"), "app.conf\ndeep");
    checks.equal("subPath of one file", &sh("cat /etc/app.conf"), "level = 1");
    checks.equal(
        "a secret, its mode, read-only",
        &sh("cat /secret/PASSWORD; stat -L -c ' %a' /secret/PASSWORD"),
        "s3cret 440",
    );
    checks.contains(
        "a read-only mount",
        &text(&cluster.try_kubectl(&["exec", "volumes", "--", "touch", "/secret/x"])),
        "Read-only",
    );
    checks.equal("projected", &sh("cat /mix/PASSWORD /mix/motto"), "s3cretfirst");
    checks.contains("downward API", &sh("cat /mix/labels"), "tier=\"gold\"");
    let token = sh("cut -d. -f2 /mix/token | tr _- /+ | base64 -d 2>/dev/null; true");
    checks.contains("a token for its audience", &token, "\"vault\"");
    checks.contains("a token for its pod", &token, &cluster.uid("pod/volumes"));
    sh("echo kept > /part/file");
    checks.equal("subPathExpr", &sh("cat /claim/parts/me/file"), "kept");
    checks.equal("the claim is bound", &cluster.field("pvc/claim", "{.status.phase}"), "Bound");
    let same = "cmp /image/usr/bin/busybox /bin/busybox && cmp /programs/busybox /bin/busybox && echo same";
    checks.equal("an image volume, and a part of it", &sh(same), "same");
    let tried = sh("touch /image/x 2>&1; touch /programs/x 2>&1; /image/usr/bin/busybox true 2>&1; true");
    checks.holds("is read-only", tried.matches("Read-only").count() == 2, &tried);
    checks.contains("and nothing of it is executed", &tried, "Permission denied");
    cluster.eventually("a missing hostPath is told", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=bad-host-path"]);
        events.contains("FailedMount") && events.contains("hostPath type check failed")
    });
    let waiting = cluster.kubectl(&["get", "pod", "bad-host-path", "--no-headers"]);
    checks.contains("it waits", &waiting, "ContainerCreating");
}

fn rights(cluster: &Cluster, checks: &Checks) {
    let sh = |container: &str, script: &str| {
        text(&cluster.try_kubectl(&["exec", "secure", "-c", container, "--", "sh", "-c", script])).trim().to_owned()
    };
    checks.equal("user, group and groups", &sh("main", "id -u; id -g; id -G"), "1234\n2345\n2345 3456 4567");
    checks.contains("readOnlyRootFilesystem", &sh("main", "touch /x"), "Read-only file system");
    checks.equal(
        "fsGroup",
        &sh("main", "touch /scratch/file && stat -c %g /scratch/file && stat -c %a /scratch"),
        "3456\n2777",
    );
    checks.equal(
        "fsGroup in a subPath that was made for it",
        &sh("main", "touch /part/file && stat -c %g:%a /part /scratch/of && stat -c %g /part/file"),
        "3456:2777\n3456:2777\n3456",
    );
    let status =
        |container: &str, field: &str| sh(container, &format!("awk '/^{field}:/ {{print $2}}' /proc/self/status"));
    checks.equal("drop ALL", &status("main", "CapBnd"), "0000000000000000");
    checks.equal("allowPrivilegeEscalation: false", &status("main", "NoNewPrivs"), "1");
    let capabilities = u64::from_str_radix(&status("root", "CapEff"), 16).unwrap_or(0);
    checks.holds(
        "NET_ADMIN is added, CHOWN dropped",
        capabilities & (1 << 12) != 0 && capabilities & 1 == 0,
        &format!("{capabilities:x}"),
    );
    let own = fs::read_to_string("/proc/self/status").expect("/proc");
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or("").trim();
    checks.equal("privileged has all", &status("privileged", "CapEff"), bounding);
    checks.equal("a safe sysctl", &sh("main", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "80");
    checks.contains(
        "masked paths",
        &sh("root", "cat /proc/kcore | head -c 1 | wc -c; echo x > /proc/sys/kernel/hostname"),
        "Read-only",
    );
    cluster.eventually("runAsNonRoot keeps a root image from starting", || {
        let state = cluster.field("pod/not-root", "{.status.containerStatuses[0].state.waiting}");
        state.contains("CreateContainerConfigError") && state.contains("image will run as root")
    });
}

fn names(cluster: &Cluster, checks: &Checks) {
    let read = |pod: &str, path: &str| cluster.exec(pod, &["cat", path]);
    checks.equal("hostname", &cluster.exec("names", &["hostname"]), "custom");
    checks.equal("/etc/hostname", &read("names", "/etc/hostname"), "custom");
    let hosts = read("names", "/etc/hosts");
    let ip = cluster.field("pod/names", "{.status.podIP}");
    checks.contains("the pod's own name", &hosts, &format!("{ip}\tcustom.sub.default.svc.cluster.local\tcustom"));
    checks.contains("hostAliases", &hosts, "192.0.2.7\tseven\tseven.example");
    let processes = cluster.exec("names", &["ps", "-o", "args"]);
    checks.contains("shareProcessNamespace", &processes, "sleep 200000");
    let first = cluster.exec("env", &["cat", "/proc/1/comm"]);
    checks.equal("a process namespace of its own", &first, "sleep");
    checks.equal(
        "resolv.conf, ClusterFirst with dnsConfig",
        &read("names", "/etc/resolv.conf"),
        "nameserver 10.96.0.10\nnameserver 192.0.2.1\nsearch default.svc.cluster.local svc.cluster.local \
            cluster.local outside.example more.example\noptions ndots:2",
    );
    checks.equal(
        "resolv.conf, None",
        &read("dns-none", "/etc/resolv.conf"),
        "nameserver 192.0.2.9\nsearch only.example",
    );
    checks.equal(
        "resolv.conf, Default",
        &read("dns-default", "/etc/resolv.conf"),
        "nameserver 127.0.0.53\nsearch outside.example",
    );
    checks.contains(
        "resolv.conf, ClusterFirstWithHostNet",
        &read("on-host", "/etc/resolv.conf"),
        "nameserver 10.96.0.10",
    );
    checks.contains("hostNetwork", &cluster.exec("on-host", &["ip", "addr"]), "mst-pods");
    let (pod, node) =
        (cluster.field("pod/on-host", "{.status.podIP}"), cluster.field("pod/on-host", "{.status.hostIP}"));
    checks.equal("a pod of the host's network has the node's address", &pod, &node);
    checks.holds(
        "hostPID",
        cluster.exec("on-host", &["cat", "/proc/1/comm"]) == fs::read_to_string("/proc/1/comm").unwrap_or_default(),
        "other",
    );
}

/// Changes of a config map and a secret reach the pod, but not a file mounted by subPath.
fn updates(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data":{"app.conf":"level = 2\n","motto":"second"}}"#,
    ]);
    cluster.kubectl(&["patch", "secret", "keys", "-p", r#"{"stringData":{"PASSWORD":"changed"}}"#]);
    cluster.kubectl(&["label", "pod", "volumes", "tier=silver", "--overwrite"]);
    let sh = |script: &str| cluster.exec("volumes", &["sh", "-c", script]);
    cluster.eventually("a config map's change reaches the pod", || sh("cat /map/app.conf").trim() == "level = 2");
    cluster.eventually("a secret's change reaches the pod", || sh("cat /secret/PASSWORD").trim() == "changed");
    cluster
        .eventually("both reach a projected volume", || sh("cat /mix/PASSWORD /mix/motto").trim() == "changedsecond");
    cluster.eventually("a label's change reaches the pod", || sh("cat /mix/labels").contains("silver"));
    checks.equal("subPath keeps what was there", &sh("cat /etc/app.conf"), "level = 1");
}
