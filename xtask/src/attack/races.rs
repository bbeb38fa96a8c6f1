//! Folders that a pod exchanges for links to the host's, again and again, while the node resolves a path through them:
//! for a mount, a subPath, a message, a working directory, or a hostPath that is to be made (X3, X6).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::pods;
use crate::bench::cluster::Cluster;

/// The image of all these pods.
const IMAGE: &str = "test.local/busybox:1";
/// What is on the host.
const SECRET: &str = "a-secret-of-the-host";
/// How often each of them is tried.
const ROUNDS: usize = 6;

/// `d` in the volume is a folder or a link to the host's; `x` and `l` are where the other one waits.
fn exchange(host: &Path) -> String {
    let host = host.display();
    format!("cd /e; mkdir -p d/k; ln -s {host} l; while :; do mv -T d x; mv -T l d; mv -T d l; mv -T x d; done")
}

/// A pod whose sidecar exchanges the folder while its container is made; `more` goes into the container.
fn pod(host: &Path, volume: &Value, more: &Value) -> Value {
    let script = "cat /s/secret /e/d/secret 2>/dev/null; touch /s/made 2>/dev/null; echo done";
    let mut container = json!({ "name": "c", "image": IMAGE, "command": ["sh", "-c", script] });
    for (field, value) in more.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "volumes": [volume, { "name": "other", "emptyDir": {} },
            { "name": "map", "downwardAPI": { "items": [{ "path": "a",
                "fieldRef": { "fieldPath": "metadata.name" } }] } }],
        "initContainers": [{ "name": "i", "image": IMAGE, "restartPolicy": "Always",
            "command": ["sh", "-c", exchange(host)], "volumeMounts": [{ "name": "e", "mountPath": "/e" }] }],
        "containers": [container] })
}

/// What each pod gives the node to resolve.
fn kinds() -> Vec<(&'static str, Value)> {
    let own = json!({ "name": "e", "mountPath": "/e" });
    let beside = |mount: Value| json!({ "volumeMounts": [own, mount] });
    let sub = |path: &str| json!({ "volumeMounts": [{ "name": "e", "mountPath": "/s", "subPath": path }] });
    let spelled = json!([{ "name": "WHERE", "value": "d/made" }]);
    vec![
        ("a mount", beside(json!({ "name": "other", "mountPath": "/e/d/made" }))),
        ("a deep mount", beside(json!({ "name": "other", "mountPath": "/e/d/made/a/b" }))),
        ("a file", beside(json!({ "name": "map", "mountPath": "/e/d/made", "subPath": "a" }))),
        ("a message", json!({ "volumeMounts": [own], "terminationMessagePath": "/e/d/made" })),
        ("a working directory", json!({ "volumeMounts": [own], "workingDir": "/e/d/made" })),
        ("a subPath", sub("d/k")),
        ("a subPath to be made", sub("d/made/a")),
        (
            "a subPathExpr",
            json!({ "env": spelled,
            "volumeMounts": [{ "name": "e", "mountPath": "/s", "subPathExpr": "$(WHERE)" }] }),
        ),
    ]
}

/// All of it.
pub async fn pods(cluster: &Cluster) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("mainstay-attack-").tempdir()?;
    let host = folder.path().join("kept");
    fs::create_dir(&host)?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o700))?;
    fs::write(host.join("secret"), SECRET)?;
    let untouched = |what: &str| -> Result<()> {
        ensure!(fs::read_dir(&host)?.count() == 1, "{what}: something was made on the host");
        ensure!(
            fs::metadata(&host)?.permissions().mode() & 0o777 == 0o700,
            "{what}: the host's folder has another mode"
        );
        Ok(())
    };
    let mut tried = 0;
    let empty = json!({ "name": "e", "emptyDir": {} });
    for (index, (name, more)) in kinds().into_iter().enumerate() {
        for round in 0..ROUNDS {
            let ended = pods::run(cluster, &format!("exchange-{index}-{round}"), &pod(&host, &empty, &more)).await?;
            ensure!(!ended.said.contains(SECRET), "{name}: {}", ended.said);
            untouched(name)?;
            tried += 1;
        }
    }
    // A folder of the host that a pod has, and in which another of its volumes is to be made.
    let shared = folder.path().join("shared");
    fs::create_dir(&shared)?;
    let volume = json!({ "name": "e", "hostPath": { "path": shared, "type": "Directory" } });
    for round in 0..ROUNDS {
        let mut made = pod(&host, &volume, &json!({ "volumeMounts": [{ "name": "new", "mountPath": "/n" }] }));
        let new = json!({ "name": "new", "hostPath": { "path": shared.join("d"), "type": "DirectoryOrCreate" } });
        made["volumes"].as_array_mut().into_iter().for_each(|volumes| volumes.push(new.clone()));
        pods::run(cluster, &format!("exchange-host-{round}"), &made).await?;
        untouched("a hostPath to be made")?;
        tried += 1;
    }
    Ok(format!("{tried} pods that exchange a folder for a link while the node goes through it"))
}
