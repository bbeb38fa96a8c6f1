//! One pod from its creation to Running, beside the same container started by runc alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::{kinds, object};
use mainstay_client::WatchEvent;
use serde_json::{Value, json};

use super::cluster::{Cluster, NAMESPACE, put, wait};
use super::table::{Table, Times, ms, times};

/// How many pods, one after the other.
const PODS: usize = 50;
/// Not counted: the first pod finds cold caches.
const WARM_UP: usize = 2;

/// What every container here runs: it waits, and ends at once when it is asked to.
const COMMAND: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"];

/// A container that waits.
pub fn container() -> Value {
    json!({ "name": "main", "image": format!("test.local/{}:1", super::IMAGE), "command": COMMAND })
}

/// Times of [`PODS`] pods and of as many containers of runc.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let mut pods = Vec::new();
    for number in 0..WARM_UP + PODS {
        pods.push(one(cluster, &format!("bench-{number}")).await?);
    }
    let pods = Times::new(pods.split_off(WARM_UP));
    let bare = match bare(cluster.folder.path()) {
        Ok(bare) => Some(bare),
        Err(error) => {
            eprintln!("bench: no runc to compare with: {error:#}");
            None
        }
    };
    for (name, share, target) in [("p50", 0.5, "<= 100 ms"), ("p99", 0.99, "<= 500 ms")] {
        let value = pods.quantile(share);
        let (beside, ratio) = match &bare {
            None => (String::new(), String::new()),
            Some(bare) => (format!("runc {}", ms(bare.quantile(share))), times(value, bare.quantile(share))),
        };
        table.row(&format!("pod, creation to Running, {name} of {PODS}"), ms(value), beside, ratio, target);
    }
    Ok(())
}

async fn one(cluster: &Cluster, name: &str) -> Result<Duration> {
    let pods = &kinds::POD;
    let mut watch = cluster.watch_from_now(pods).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [container()], "terminationGracePeriodSeconds": 5 },
    });
    let begun = Instant::now();
    cluster.client.create(pods, NAMESPACE, &pod).await?;
    wait(&mut watch, |event| {
        put(event).is_some_and(|pod| object::name(pod) == name && pod["status"]["phase"] == "Running")
    })
    .await
    .with_context(|| format!("{name} is Running"))?;
    let time = begun.elapsed();
    cluster.client.delete(pods, NAMESPACE, name, &json!({})).await?;
    wait(&mut watch, |event| matches!(event, WatchEvent::Gone(pod) if object::name(pod) == name))
        .await
        .with_context(|| format!("{name} is gone"))?;
    Ok(time)
}

/// The same image, command and kinds of namespaces; a network namespace without a network, and no volumes.
fn bare(folder: &Path) -> Result<Times> {
    let bundle = bundle(&folder.join("runc"))?;
    let state = folder.join("runc-state");
    let runc = |args: &[&str]| -> Result<()> {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // The container inherits the error stream: waiting for that stream's end would be waiting for the container.
        let errors = folder.join("runc-errors");
        let status = command.stderr(fs::File::create(&errors)?).status().context("runc")?;
        ensure!(status.success(), "runc {}: {}", args.join(" "), fs::read_to_string(errors).unwrap_or_default());
        Ok(())
    };
    let bundle = bundle.display().to_string();
    let mut bare = Vec::new();
    for number in 0..WARM_UP + PODS {
        let name = format!("mainstay-bench-{}-{number}", std::process::id());
        let begun = Instant::now();
        let ran = runc(&["run", "--detach", "--bundle", &bundle, &name]);
        bare.push(begun.elapsed());
        let removed = runc(&["delete", "--force", &name]);
        ran.and(removed)?;
    }
    Ok(Times::new(bare.split_off(WARM_UP)))
}

fn bundle(bundle: &Path) -> Result<PathBuf> {
    let (archive, root) = (bundle.join("archive"), bundle.join("rootfs"));
    fs::create_dir_all(&archive)?;
    fs::create_dir_all(&root)?;
    let untar = |file: &Path, to: &Path| -> Result<()> {
        ensure!(
            Command::new("tar").arg("-xf").arg(file).arg("-C").arg(to).status()?.success(),
            "tar -x {}",
            file.display()
        );
        Ok(())
    };
    untar(&Path::new(crate::images::FOLDER).join(format!("{}.tar", super::IMAGE)), &archive)?;
    let manifest: Value = serde_json::from_slice(&fs::read(archive.join("manifest.json"))?)?;
    for layer in manifest[0]["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        untar(&archive.join(layer), &root)?;
    }
    ensure!(
        Command::new("runc").args(["spec", "--bundle"]).arg(bundle).status().context("runc")?.success(),
        "runc spec"
    );
    let file = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    spec["process"]["args"] = json!(COMMAND);
    spec["process"]["terminal"] = json!(false);
    fs::write(file, serde_json::to_vec(&spec)?)?;
    Ok(bundle.to_owned())
}
