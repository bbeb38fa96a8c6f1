//! What an ordinary pod (root, default settings, any program) gets of its host and of its neighbours (X2, X3, X6).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::pods;
use crate::bench::cluster::Cluster;

/// The image of all these pods.
const IMAGE: &str = "test.local/busybox:1";
/// What is on the host, and in the neighbour's volume.
const SECRET: &str = "a-secret-of-somebody-else";
/// How often a folder is exchanged for a link while a container with that subPath starts.
const RACES: usize = 12;

/// Every script says `ESCAPED` and what it did. A file counts as soon as it opens for writing; nothing is written.
const BEGIN: &str = "exec 2>/dev/null; cd /tmp; did() { if \"$@\" >/dev/null; then echo ESCAPED \"$@\"; fi; }
    writes() { if (: >> \"$1\"); then echo ESCAPED writes \"$1\"; fi; }\n";

/// Files of the kernel that are not this container's own.
const KERNEL: &str = "
    for f in $(find /proc/sys /proc/irq /proc/bus /proc/fs /proc/scsi /proc/acpi -type f | head -1500); do writes $f; \
        done
    for f in $(find /sys -type f | head -4000); do writes $f; done
    for f in /proc/sysrq-trigger /proc/kcore /proc/kmsg /proc/mtrr /proc/latency_stats /proc/sched_debug; do writes \
        $f; done
    for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /proc/kmsg; do
        [ \"$(timeout 1 head -c 1 $f | wc -c)\" = 0 ] || echo ESCAPED reads $f; done
    [ -z \"$(ls /sys/firmware /proc/acpi | grep -v :)\" ] || echo ESCAPED sees firmware
    [ $(ls /proc | grep -c '^[0-9]') -lt 40 ] || echo ESCAPED sees processes
    echo done";

/// Calls that change the host, and other namespaces.
const CALLS: &str = "
    mkdir m; touch f
    did mount -t tmpfs none m; did mount -t proc none m; did mount -t sysfs none m; did mount --bind / m
    did mount -o remount,rw /proc/sys; did mount -o remount,rw /sys; did mount -o remount,rw /sys/fs/cgroup
    did umount /proc/sys; did umount /proc/keys; did umount -l /sys
    for n in -m -u -i -n -p -U -C; do did unshare $n true; done
    for n in -m -u -i -n -p; do did nsenter -t 1 $n true; done
    did pivot_root . m; did losetup -f f; did swapon f; did insmod f; did rmmod x; did modprobe x
    did hostname other; did hwclock -w; did dmesg; did renice -n -20 1; did ionice -c 1 -p 1
    did ip link add a type dummy; did ip addr add 10.9.9.9/32 dev eth0; did ip link set eth0 down
    did ip route add 10.9.9.9/32 dev eth0; did ip neigh add 10.9.9.9 lladdr 0:0:0:0:0:1 dev eth0; did brctl addbr b
    did ip link set eth0 address 0a:58:00:00:00:01; did tunctl -t a
    did sh -c 'ulimit -n 100000000'; did sh -c 'echo -1000 > /proc/self/oom_score_adj'
    did sh -c 'echo 0 > /proc/1/oom_score_adj; [ $(cat /proc/1/oom_score_adj) -lt -1 ]'
    for g in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do did mkdir ${g}own; writes ${g}cgroup.procs; writes ${g}release_agent
        writes ${g}notify_on_release; writes ${g}devices.allow; writes ${g}memory.limit_in_bytes; writes \
            ${g}pids.max; done
    most=$(cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max | head -1)
    [ \"$most\" != max ] || echo ESCAPED may have every process number
    opens() { mknod $1 $2 $3 $4 && (: < $1) && echo ESCAPED opens $1; }
    opens mem c 1 1; opens port c 1 4; opens kmsg c 1 11; opens fuse c 10 229; opens tun c 10 200; opens loop c 10 237
    opens console c 5 1; opens tty0 c 4 0; opens cpu c 10 184; opens vfio c 10 196; opens rtc c 10 135; opens nvram c \
        10 144
    while read -r major minor rest; do case $major in [0-9]*) opens disk$minor b $major $minor;; esac; done < \
        /proc/partitions
    ls /dev | while read -r d; do case $d in \
        fd|full|mqueue|null|ptmx|pts|random|shm|std*|termination-log|tty|urandom|zero|core|console) ;;
        *) echo ESCAPED has /dev/$d;; esac; done
    echo done";

/// Files of others: of the host, of the pod's neighbour, of other service accounts.
const FILES: &str = "
    for p in /proc/[0-9]*; do for w in root cwd; do [ -e $p/$w/HOST/secret ] && echo ESCAPED sees HOST by $p/$w; done
        for fd in $p/fd/*; do [ -e $fd/../../../../../../../../HOST/secret ] && echo ESCAPED sees HOST by $fd; done; \
            done
    find / -xdev -name secret -type f | grep -q . && echo ESCAPED finds a secret
    grep -q SECRET -r /e /etc /run /var /tmp /dev/shm && echo ESCAPED reads a secret
    [ $(find / -name token -type l | grep -v /proc/ | wc -l) -le 2 ] || echo ESCAPED has several tokens
    did rm -rf /etc/hosts; did rm -rf /dev/termination-log; did mv /etc/resolv.conf /tmp/; did ln -sf /HOST/secret \
        /etc/hosts
    writes /run/secrets/kubernetes.io/serviceaccount/token; did touch /run/secrets/kubernetes.io/serviceaccount/x
    yes '0123456789' | head -c 3000000 > /dev/termination-log; yes 'a line of the log' | head -c 3000000
    echo done";

/// Ports of the node, as a pod reaches them, without any credentials.
const PORTS: &str = "
    gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')
    for p in 22 111 2049 2379 2380 6443 8080 9090 10248 10255 10256 10257 10259 17443; do
        did nc -w 1 $gateway $p; did nc -w 1 127.0.0.1 $p; done
    for path in pods stats/summary metrics run/default/a/b exec/default/a/b containerLogs/default/a/b logs/ configz; do
        wget -q -T 3 -O- --no-check-certificate https://$gateway:10250/$path | grep -q . && echo ESCAPED reads \
            :10250/$path; done
    for path in api/v1/secrets api/v1/namespaces/default/pods apis/rbac.authorization.k8s.io/v1/clusterroles; do
        wget -q -T 3 -O- --no-check-certificate https://10.96.0.1/$path | grep -q items && echo ESCAPED lists $path; \
            done
    echo done";

fn pod(script: &str, host: &Path) -> Value {
    let script = script.replace("/HOST", &host.display().to_string()).replace("SECRET", SECRET);
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "volumes": [{ "name": "e", "emptyDir": {} }],
        "containers": [{ "name": "c", "image": IMAGE, "command": ["sh", "-c", format!("{BEGIN}{script}")],
            "volumeMounts": [{ "name": "e", "mountPath": "/e" }] }] })
}

/// Links of a volume that lead out, where a volume, a file or a message of the pod is to be put.
fn led_astray(host: &Path) -> Vec<(&'static str, Value)> {
    let host = host.display();
    let prepare = format!(
        "cd /e; ln -s {host} out; ln -s ../../../../../../../../../../..{host} up; ln -s {host}/secret file; ln -s / \
            root; \
         mkfifo pipe; ln -s /proc/self/fd/0 fd; ln -s loop loop"
    );
    let base = |mounts: Value, more: Value| {
        let mut container = json!({ "name": "c", "image": IMAGE, "volumeMounts": mounts,
            "command": ["sh", "-c", "timeout 2 cat /s /s/* /e/out/* 2>/dev/null; touch /s/made /e/out/made \
                /e/up/made; echo done"] });
        for (field, value) in more.as_object().into_iter().flatten() {
            container[field] = value.clone();
        }
        json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "e", "emptyDir": {} }, { "name": "other", "emptyDir": {} },
                { "name": "map", "downwardAPI": { "items": [{ "path": "a", "fieldRef": {
                    "fieldPath": "metadata.name" } }] } }],
            "initContainers": [{ "name": "i", "image": IMAGE, "command": ["sh", "-c", prepare],
                "volumeMounts": [{ "name": "e", "mountPath": "/e" }] }],
            "containers": [container] })
    };
    let sub = |path: &str| base(json!([{ "name": "e", "mountPath": "/s", "subPath": path }]), json!({}));
    let below = |name: &str, path: &str| {
        base(json!([{ "name": "e", "mountPath": "/e" }, { "name": name, "mountPath": path }]), json!({}))
    };
    let message =
        |path: &str| base(json!([{ "name": "e", "mountPath": "/e" }]), json!({ "terminationMessagePath": path }));
    vec![
        ("subPath out", sub("out")),
        ("subPath up", sub("up")),
        ("subPath of a file's link", sub("file")),
        ("subPath through a link", sub("root/etc")),
        ("subPath to be made behind a link", sub("out/new")),
        ("subPath of a fifo", sub("pipe")),
        ("subPath of a loop", sub("loop")),
        ("a volume on a link", below("other", "/e/out")),
        ("a volume behind a link", below("other", "/e/up/new")),
        ("files behind a link", below("map", "/e/out/map")),
        ("a message on a link", message("/e/file")),
        ("a message behind a link", message("/e/out/message")),
        ("a message by way of a descriptor", message("/e/fd")),
        ("a message on a fifo", message("/e/pipe")),
        ("a message in proc", message("/proc/self/fd/0")),
    ]
}

/// A folder that is exchanged for a link to the host's again and again while a container is given it as its subPath.
fn race(host: &Path) -> Value {
    let host = host.display();
    let flip = format!("cd /e; mkdir d; ln -s {host} l; while :; do mv -T d x; mv -T l d; mv -T d l; mv -T x d; done");
    let command = ["sh", "-c", "cat /s/secret 2>/dev/null; touch /s/made; echo done"];
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "volumes": [{ "name": "e", "emptyDir": {} }],
        "initContainers": [
            { "name": "i", "image": IMAGE, "restartPolicy": "Always", "command": ["sh", "-c", flip],
                "volumeMounts": [{ "name": "e", "mountPath": "/e" }] }],
        "containers": [{ "name": "c", "image": IMAGE, "command": command,
            "volumeMounts": [{ "name": "e", "mountPath": "/s", "subPath": "d" }] }] })
}

/// All of it, beside a neighbour with a secret of its own.
pub async fn pods(cluster: &Cluster) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("mainstay-attack-").tempdir()?;
    let host = folder.path().join("kept");
    fs::create_dir(&host)?;
    fs::write(host.join("secret"), SECRET)?;
    let untouched = |what: &str| -> Result<()> {
        ensure!(fs::read_to_string(host.join("secret"))? == SECRET, "{what}: the host's file was changed");
        ensure!(fs::read_dir(&host)?.count() == 1, "{what}: something was made on the host");
        Ok(())
    };
    let neighbour = pod(&format!("echo {SECRET} > /e/secret; echo {SECRET} > /dev/shm/secret; sleep 1000"), &host);
    let kind = &mainstay_api::kinds::POD;
    let body = json!({ "metadata": { "name": "neighbour" }, "spec": neighbour });
    cluster.client.create(kind, crate::bench::cluster::NAMESPACE, &body).await?;
    let mut held = 0;
    for (name, script) in [("kernel", KERNEL), ("calls", CALLS), ("files", FILES), ("ports", PORTS)] {
        let ended = pods::run(cluster, &format!("escape-{name}"), &pod(script, &host)).await?;
        let escaped: Vec<&str> = ended.said.lines().filter(|line| line.contains("ESCAPED")).collect();
        ensure!(escaped.is_empty(), "{name}: {}", escaped.join("; "));
        ensure!(ended.ran && ended.said.trim_end().ends_with("done"), "{name}: it did not come to its end");
        untouched(name)?;
        held += 1;
    }
    for (index, (name, spec)) in led_astray(&host).into_iter().enumerate() {
        let ended = pods::run(cluster, &format!("astray-{index}"), &spec).await.context(name)?;
        ensure!(!ended.said.contains(SECRET), "{name}: {}", ended.said);
        untouched(name)?;
        held += 1;
    }
    for index in 0..RACES {
        let ended = pods::run(cluster, &format!("race-{index}"), &race(&host)).await?;
        ensure!(!ended.said.contains(SECRET), "a subPath was exchanged for a link: {}", ended.said);
        untouched("a race")?;
    }
    let now = json!({ "gracePeriodSeconds": 0 });
    cluster.client.delete(kind, crate::bench::cluster::NAMESPACE, "neighbour", &now).await?;
    Ok(format!("{held} pods that try everything, {RACES} races of a subPath"))
}
