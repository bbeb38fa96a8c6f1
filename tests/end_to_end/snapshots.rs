//! Snapshots, restores and clones with the real kubectl, while pods write.

use crate::harness::Cluster;

/// Writes numbered lines for ever, each on the disk before the next.
const WRITER: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, labels: {app: writer}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: test.local/busybox:1
      command: [sh, -c, 'n=0; while true; do n=$((n+1)); echo line-$n >> /data/rows; echo $n > /data/last; sync; done']
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
";

const SNAPSHOT: &str = "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: NAME}
spec: {source: {persistentVolumeClaimName: data}}
";

/// A claim that starts as something else, and a pod that has it.
const READER: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: SIZE}}
  dataSource: {SOURCE}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: test.local/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: NAME}}]
";

fn reader(name: &str, size: &str, source: &str) -> String {
    READER.replace("NAME", name).replace("SIZE", size).replace("SOURCE", source)
}

fn of_snapshot(name: &str) -> String {
    format!("apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {name}")
}

fn ready(cluster: &Cluster, pod: &str) {
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=120s"]);
}

fn is_ready_to_use(cluster: &Cluster, name: &str) {
    cluster.eventually(&format!("snapshot {name} is ready"), || {
        cluster.field(&format!("vs/{name}"), "{.status.readyToUse}") == "true"
    });
}

/// How many lines a pod has: all of them whole, from the first one on without a gap.
fn lines(cluster: &Cluster, pod: &str) -> u64 {
    // In this order: the writer goes on.
    let last: u64 = cluster.exec(pod, &["cat", "/data/last"]).trim().parse().unwrap_or(0);
    let rows = cluster.exec(pod, &["cat", "/data/rows"]);
    let whole = rows.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for (index, line) in whole.lines().enumerate() {
        assert_eq!(line, format!("line-{}", index + 1), "a consistent beginning of what was written");
    }
    let count = whole.lines().count() as u64;
    assert!(count >= last, "what was on the disk before is there: {count} lines, {last} acknowledged");
    count
}

fn written(cluster: &Cluster, at_least: u64) {
    cluster.eventually("lines are written", || {
        let last = cluster.try_kubectl(&["exec", "writer", "--", "cat", "/data/last"]);
        String::from_utf8_lossy(&last.stdout).trim().parse::<u64>().is_ok_and(|last| last >= at_least)
    });
}

fn folders(cluster: &Cluster) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.data_dir().join("volumes")).expect("the volume root").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("snapshot-"))
        .collect()
}

#[test]
fn snapshots_restores_and_clones_of_a_volume_that_is_written_to() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    // As soon as its pod may run: a snapshot that is asked for too early waits for the volume.
    cluster.apply(&SNAPSHOT.replace("NAME", "early"));
    cluster.eventually("the early snapshot is told why it waits", || {
        cluster.field("vs/early", "{.status.error.message}").contains("persistentvolumeclaim \"data\" not found")
    });
    cluster.apply(WRITER);
    ready(&cluster, "writer");
    is_ready_to_use(&cluster, "early");
    written(&cluster, 5);
    cluster.apply(&SNAPSHOT.replace("NAME", "first"));
    is_ready_to_use(&cluster, "first");
    let shown = cluster.kubectl(&["get", "vs", "first"]);
    let head =
        "NAME READYTOUSE SOURCEPVC SOURCESNAPSHOTCONTENT RESTORESIZE SNAPSHOTCLASS SNAPSHOTCONTENT CREATIONTIME AGE";
    assert_eq!(shown.lines().next().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" "), head);
    assert!(
        shown.contains(" true ")
            && shown.contains(" data ")
            && shown.contains(" 64Mi ")
            && shown.contains(" local-path "),
        "{shown}"
    );
    let told = cluster.kubectl(&["describe", "vs", "first"]);
    assert!(
        ["CreatingSnapshot", "SnapshotCreated", "SnapshotReady"].iter().all(|reason| told.contains(reason)),
        "{told}"
    );
    let explained = cluster.kubectl(&["explain", "volumesnapshot.spec.source"]);
    assert!(explained.contains("persistentVolumeClaimName"), "{explained}");
    let before = lines(&cluster, "writer");

    // The writer goes on, and neither a crash nor what was written since changes the snapshot.
    cluster.kill9();
    cluster.up();
    written(&cluster, before + 5);
    cluster.apply(&reader("restored", "128Mi", &of_snapshot("first")));
    cluster.apply(&reader("small", "32Mi", &of_snapshot("first")));
    cluster.apply(&reader("cloned", "64Mi", "kind: PersistentVolumeClaim, name: data"));
    cluster.apply(&reader("unknown", "64Mi", "apiGroup: example.com, kind: Book, name: data"));
    ready(&cluster, "restored");
    let restored = lines(&cluster, "restored");
    assert!((5..=before).contains(&restored), "{restored} of {before} lines");
    let size = cluster.exec("restored", &["df", "-k", "/data"]);
    assert!(size.contains(&format!(" {} ", 128 << 10)), "a larger claim has its size: {size}");
    ready(&cluster, "cloned");
    assert!(lines(&cluster, "cloned") > restored);
    for (claim, why) in
        [("small", "is less than the size 67108864 for the source snapshot first"), ("unknown", "is not supported")]
    {
        cluster.eventually("claims that cannot have their data are told", || {
            cluster.kubectl(&["describe", "pvc", claim]).contains(why)
        });
        assert_eq!(cluster.field(&format!("pvc/{claim}"), "{.status.phase}{.spec.volumeName}"), "Pending");
    }
    // A clone is its own.
    cluster.exec("cloned", &["sh", "-c", "echo other > /data/rows; sync"]);
    assert!(lines(&cluster, "writer") > restored);
    deletion(&cluster);
}

/// Retain keeps the copy, Delete removes it; a claim made again under the old name is empty.
fn deletion(cluster: &Cluster) {
    // Claims that wait for it would hold it.
    cluster.kubectl(&["delete", "pod/small", "pod/unknown", "pvc/small", "pvc/unknown"]);
    let content = cluster.field("vs/first", "{.status.boundVolumeSnapshotContentName}");
    let handle = cluster.field(&format!("vsc/{content}"), "{.status.snapshotHandle}");
    cluster.kubectl(&["patch", "vsc", &content, "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Retain"}}"#]);
    assert_eq!(folders(cluster).len(), 2);
    cluster.kubectl(&["delete", "vs", "first", "early"]);
    cluster.eventually("only the retained copy is left", || folders(cluster).len() == 1);
    cluster.kubectl(&["delete", "vsc", &content]);
    assert_eq!(folders(cluster).len(), 1, "V3: Retain keeps every byte");
    cluster.kubectl(&["delete", "pod", "writer", "restored", "cloned"]);
    cluster.kubectl(&["delete", "pvc", "data", "restored"]);
    // Its copy is found again by its handle.
    let again = format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: kept}}\nspec:\n  \
            deletionPolicy: Delete\n  \
         driver: mainstay.io/local-path\n  source: {{snapshotHandle: {handle}}}\n  volumeSnapshotRef: {{name: again, \
             namespace: default}}\n---\n\
         apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: again}}\nspec: {{source: \
             {{volumeSnapshotContentName: kept}}}}\n"
    );
    cluster.apply(&again);
    is_ready_to_use(cluster, "again");
    cluster.apply(&reader("restored", "64Mi", &of_snapshot("again")));
    cluster.apply(&WRITER.replace("n=0; while", "ls /data; n=0; false; while"));
    ready(cluster, "restored");
    assert!(lines(cluster, "restored") >= 5, "the claim of the old name has what it asked for");
    ready(cluster, "writer");
    assert!(cluster.exec("writer", &["head", "-n", "1", "/data/rows"]).starts_with("line-1\n"));
    assert!(!cluster.kubectl(&["logs", "writer"]).contains("rows"), "V6: a claim that asked for nothing starts empty");
    cluster.kubectl(&["delete", "vs", "again"]);
    cluster.eventually("the copy is removed", || {
        folders(cluster).is_empty() && cluster.kubectl(&["get", "vsc", "-o", "name"]).is_empty()
    });
}

const GROUP: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: one, labels: {group: pair}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: two, labels: {group: pair}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: test.local/busybox:1
      # The second never gets ahead of the first.
      command: [sh, -c, 'n=0; while true; do n=$((n+1)); echo $n > /one/n.new; sync; mv /one/n.new /one/n; sync; echo \
          $n > /two/n.new; sync; mv /two/n.new /two/n; sync; done']
      volumeMounts: [{name: one, mountPath: /one}, {name: two, mountPath: /two}]
  volumes:
    - {name: one, persistentVolumeClaim: {claimName: one}}
    - {name: two, persistentVolumeClaim: {claimName: two}}
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: both}
spec: {source: {selector: {matchLabels: {group: pair}}}}
";

#[test]
fn a_group_snapshot_is_of_one_moment() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(GROUP);
    ready(&cluster, "pair");
    cluster.eventually("the group is ready", || cluster.field("vgs/both", "{.status.readyToUse}") == "true");
    assert_eq!(folders(&cluster).len(), 2);
    let mut seen = Vec::new();
    for claim in ["one", "two"] {
        let path =
            format!("{{.items[?(@.metadata.annotations.mainstay\\.io/source-claim==\"{claim}\")].metadata.name}}");
        let member = cluster.kubectl(&["get", "vs", "-o", &format!("jsonpath={path}")]);
        let name = format!("{claim}-restored");
        cluster.apply(&reader(&name, "32Mi", &of_snapshot(&member)));
        ready(&cluster, &name);
        seen.push(
            cluster
                .exec(&name, &["sh", "-c", "cat /data/n 2>/dev/null || echo 0"])
                .trim()
                .parse::<u64>()
                .expect("a number"),
        );
    }
    assert!(seen[0] == seen[1] || seen[0] == seen[1] + 1, "both of one moment: {seen:?}");
    cluster.kubectl(&["delete", "vgs", "both"]);
    cluster.eventually("all copies are removed", || {
        folders(&cluster).is_empty() && cluster.kubectl(&["get", "vs", "-o", "name"]).is_empty()
    });
}
