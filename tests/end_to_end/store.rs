//! A store that is damaged, gone, empty or another's under a cluster with data: the start is refused in a sentence, no
//! container is stopped, no volume is touched, and there is a way back (A3, A10, A11).

use std::fs;
use std::path::PathBuf;

use crate::harness::{Cluster, text};

const SET: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, selector: { app: db }, ports: [{ port: 80 }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: c
          image: test.local/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "sleep 1000000"]
          volumeMounts: [{ name: data, mountPath: /data }]
  volumeClaimTemplates:
    - metadata: { name: data }
      spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 16Mi } } }
"#;

/// `mainstay up` that does not start; what it says.
fn refused(cluster: &Cluster) -> String {
    let mut command = cluster.inside("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_mainstay"), "up", "--listen", "127.0.0.1:6443", "--node-name", "node-1"]);
    let output = command.arg("--data-dir").arg(cluster.data_dir()).output().expect("mainstay up");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    said
}

/// `mainstay store …`: whether it went well, and what it printed.
fn offline(cluster: &Cluster, args: &[&str]) -> (bool, String) {
    let mut command = cluster.mainstay(&[&["store"], args].concat());
    let output = command.arg("--data-dir").arg(cluster.data_dir()).output().expect("mainstay store");
    (output.status.success(), text(&output))
}

/// The folders of provisioned volumes.
fn volumes(cluster: &Cluster) -> Vec<PathBuf> {
    let folders = fs::read_dir(cluster.data_dir().join("volumes")).expect("volumes").flatten();
    let mut found: Vec<PathBuf> = folders.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

#[test]
fn a10_a11_a_store_that_is_not_right_deletes_nothing_and_comes_back() {
    let mut cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(SET);
    cluster.eventually("the pod runs", || cluster.field("pod/db-0", "{.status.containerStatuses[0].ready}") == "true");
    cluster.exec("db-0", &["sh", "-c", "echo ada > /data/row && sync"]);
    let (claim, pod, process) = (cluster.uid("pvc/data-db-0"), cluster.uid("pod/db-0"), cluster.process_of("db-0"));
    let container = cluster.field("pod/db-0", "{.status.containerStatuses[0].containerID}");
    let before = volumes(&cluster);
    assert_eq!(before.len(), 1);
    cluster.kill9();
    let folder = cluster.data_dir().join("store");
    let file = folder.join("store.redb");
    let whole = fs::read(&file).expect("the store");

    // The issue's first point: one digit of a claim's uid, wherever it is.
    let mut damaged = whole.clone();
    let needle = format!("\"uid\":\"{claim}\"");
    let at: Vec<usize> =
        (0..whole.len() - needle.len()).filter(|at| whole[*at..].starts_with(needle.as_bytes())).collect();
    assert!(!at.is_empty(), "the claim's uid is in the store");
    for at in at {
        damaged[at + 7] = if damaged[at + 7] == b'0' { b'1' } else { b'0' };
    }
    fs::write(&file, &damaged).expect("damaged");
    let said = refused(&cluster);
    assert!(said.contains(file.to_str().expect("UTF-8")) && said.contains("mainstay store check"), "{said}");
    let (well, found) = offline(&cluster, &["check"]);
    assert!(!well && found.contains("damaged: /core/persistentvolumeclaims/default/data-db-0"), "{found}");
    assert_eq!(fs::read(&file).expect("the store"), damaged, "it stays as it was found");

    for (what, words) in [(Vec::new(), "is empty"), (vec![0; whole.len()], "is empty")] {
        fs::write(&file, what).expect("emptied");
        let said = refused(&cluster);
        assert!(said.contains(words) && said.contains("--new-cluster"), "{said}");
    }
    fs::rename(&folder, cluster.folder().join("elsewhere")).expect("moved away");
    let said = refused(&cluster);
    assert!(said.contains("is missing") && !folder.exists(), "{said}");
    fs::rename(cluster.folder().join("elsewhere"), &folder).expect("moved back");
    assert_eq!(cluster.process_of_uid(&pod), Some(process), "the container ran through all of it");
    assert_eq!(volumes(&cluster), before);

    // Saved, and brought back: nothing restarts (S11), revisions go forward (A3).
    fs::write(&file, &whole).expect("as it was");
    let export = cluster.folder().join("export");
    let export = export.to_str().expect("UTF-8");
    let (well, said) = offline(&cluster, &["export", export]);
    assert!(well, "{said}");
    fs::write(&file, &damaged).expect("damaged");
    let (well, said) = offline(&cluster, &["restore", export]);
    assert!(!well && said.contains("--replace"), "{said}");
    let (well, said) = offline(&cluster, &["restore", export, "--replace"]);
    assert!(well, "{said}");
    cluster.up();
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after}\n");
    let revision: u64 = cluster.field("configmap/after", "{.metadata.resourceVersion}").parse().expect("a revision");
    assert!(revision > 1_000_000_000, "{revision}");
    assert_eq!(cluster.exec("db-0", &["cat", "/data/row"]), "ada\n");
    assert_eq!(cluster.field("pod/db-0", "{.status.containerStatuses[0].containerID}"), container);
    assert_eq!(cluster.uid("pvc/data-db-0"), claim);

    without_its_tables(&mut cluster);
    assert_eq!(cluster.exec("db-0", &["cat", "/data/row"]), "ada\n");
    assert_eq!(cluster.field("pod/db-0", "{.status.containerStatuses[0].containerID}"), container);
    assert_eq!(cluster.uid("pvc/data-db-0"), claim);

    // A person who means it: the pods go, the volumes stay.
    cluster.stop();
    cluster.up_with(&["--new-cluster"]);
    cluster.eventually("the old pod is stopped", || cluster.process_of_uid(&pod).is_none());
    assert_eq!(cluster.kubectl(&["get", "pv,pvc,pods", "-A", "-o", "name"]), "");
    assert_eq!(volumes(&cluster), before);
    assert!(before[0].join("image").exists(), "the old volume's bytes are there");
    cluster.stop();
    cluster.up();
}

/// The one page that leads to all others is gone: what is in the others is found, and nothing restarts.
fn without_its_tables(cluster: &mut Cluster) {
    let file = cluster.data_dir().join("store/store.redb");
    cluster.kill9();
    let mut damaged = fs::read(&file).expect("the store");
    for page in damaged.chunks_mut(4096).skip(1).filter(|page| page[0] == 1) {
        if page.windows(8).any(|names| names == b"metarows") {
            page.fill(0);
        }
    }
    fs::write(&file, &damaged).expect("damaged");
    let said = refused(cluster);
    assert!(said.contains("mainstay store check"), "{said}");
    let found = cluster.folder().join("found");
    let found = found.to_str().expect("UTF-8");
    let (well, said) = offline(cluster, &["export", found]);
    assert!(!well && said.contains("rows are in pages that nothing leads to"), "{said}");
    assert!(said.contains("what is sound is saved; what is said above is missing or in doubt"), "{said}");
    let (well, said) = offline(cluster, &["restore", found, "--replace"]);
    assert!(well, "{said}");
    cluster.up();
    assert_eq!(cluster.kubectl(&["get", "configmap/after", "-o", "name"]), "configmap/after\n");
}
