//! Claims of `volumeMode: Block`, from the claim to what a container does with the device.

use std::path::PathBuf;
use std::process::Command;

use mainstay_api::{kinds, object};
use mainstay_node::kubelet::{Kubelet, PodContext};
use serde_json::{Value, json};

use crate::testbed::{Instance, NODE, Testbed, mount};

/// What a pod's container says of the device: number, mode, owner, size, first bytes.
const LOOK: &str = "stat -c '%t:%T %a %u:%g' /dev/xvda; blockdev --getsize64 /dev/xvda; head -c 3 /dev/xvda; echo";
const WRITE: &str = "printf ada | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null && echo written";

async fn claim(testbed: &Testbed, name: &str, class: &str) -> Instance {
    let claim = json!({ "metadata": { "name": name }, "spec": { "storageClassName": class, "volumeMode": "Block",
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "16Mi" } } } });
    testbed.admin.create(&kinds::PERSISTENT_VOLUME_CLAIM, "default", &claim).await.unwrap();
    testbed.bound(name).await;
    let volume = json!({ "persistentVolumeClaim": { "claimName": name } });
    Instance { number: 0, volume, dir: PathBuf::new(), claim: Some(name.to_owned()) }
}

async fn pod(testbed: &Testbed, of: &Instance, security: Value) -> PodContext {
    let devices = json!([{ "name": "v", "devicePath": "/dev/xvda" }]);
    let container = json!({ "volumeMounts": null, "volumeDevices": devices, "securityContext": security });
    testbed.pod(of, json!({ "spec": { "containers": [container] } })).await
}

/// As [`Testbed::container`]; what it said is without the log's marks.
async fn run(
    testbed: &Testbed,
    kubelet: &Kubelet,
    context: &PodContext,
    script: &str,
) -> Result<(i32, String), String> {
    let (code, said) = testbed.container(kubelet, context, script).await?;
    let lines: Vec<&str> = said.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap_or_default()).collect();
    Ok((code, lines.join("\n")))
}

#[test]
fn v4_v7_x6_a_claims_device_is_its_pods_and_no_other() {
    let testbed = Testbed::new("block");
    testbed.block_on(async {
        testbed.class("fast", "{}", "Delete").await;
        let instance = claim(&testbed, "disk", "fast").await;
        let other = claim(&testbed, "neighbour", "fast").await;
        let kubelet = testbed.agent.start();
        let (first, beside) = (pod(&testbed, &instance, json!({})).await, pod(&testbed, &other, json!({})).await);
        mount(&kubelet, &first).await.unwrap();
        mount(&kubelet, &beside).await.unwrap();
        let (code, said) = run(&testbed, &kubelet, &first, &format!("{WRITE}; {LOOK}")).await.unwrap();
        assert_eq!(code, 0, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[2], lines[3]), ("written", "16777216", "ada"), "{said}");
        let number = lines[1].split_once(' ').unwrap();
        assert_eq!(number.1, "660 0:0");
        // The neighbour's number is nobody else's, whatever node of it a container makes (X6).
        let (_, theirs) = run(&testbed, &kubelet, &beside, LOOK).await.unwrap();
        let minor = i64::from_str_radix(theirs.split_once(' ').unwrap().0.split_once(':').unwrap().1, 16).unwrap();
        let try_it = format!("mknod /other b 7 {minor} && (head -c 3 /other >/dev/null && echo read; true)");
        let (_, said) = run(&testbed, &kubelet, &first, &try_it).await.unwrap();
        assert!(!said.contains("\nread") && !said.starts_with("read"), "{said}");

        // An agent that comes after a crash finds it as it was, and lets nothing of it go (V7).
        let restarted = testbed.agent.start();
        restarted.volumes.release_unused().await.unwrap();
        mount(&restarted, &first).await.unwrap();
        let (_, said) = run(&testbed, &restarted, &first, LOOK).await.unwrap();
        assert_eq!(said.lines().next().unwrap().split_once(' ').unwrap().0, number.0, "V7");
        assert_eq!(said.lines().last(), Some("ada"), "V4");
        for of in [&first, &beside] {
            restarted.volumes.unmount_pod(&of.uid).await.unwrap();
        }
        assert_eq!(testbed.left(&first.uid), Vec::<String>::new());

        // Its user's node; and what may only be read is not written.
        let user = pod(&testbed, &instance, json!({ "runAsUser": 1000, "runAsGroup": 2000 })).await;
        mount(&restarted, &user).await.unwrap();
        let (_, said) = run(&testbed, &restarted, &user, &format!("{LOOK}; {WRITE}")).await.unwrap();
        assert!(said.contains("660 1000:2000") && said.ends_with("written"), "{said}");
        restarted.volumes.unmount_pod(&user.uid).await.unwrap();
        let mut read_only = claim_of(&instance);
        read_only.volume["persistentVolumeClaim"]["readOnly"] = json!(true);
        let reader = pod(&testbed, &read_only, json!({})).await;
        mount(&restarted, &reader).await.unwrap();
        let (_, said) = run(&testbed, &restarted, &reader, &format!("{LOOK}; {WRITE} || echo refused")).await.unwrap();
        assert!(said.contains("\nada\n") && said.ends_with("refused"), "{said}");
        restarted.volumes.unmount_pod(&reader.uid).await.unwrap();

        // What a crash has left between the pod's end and its own is let go by who comes next.
        let last = pod(&testbed, &instance, json!({})).await;
        mount(&restarted, &last).await.unwrap();
        let dir = mainstay_node::kubelet::disk::Disk::new(&testbed.agent.dir).pod_dir(&last.uid).unwrap();
        mainstay_runtime::safe_path::mounts::unmount_below(&dir).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(testbed.left(&last.uid).len(), 1);
        testbed.agent.start().volumes.release_unused().await.unwrap();
        assert_eq!(testbed.left(&last.uid), Vec::<String>::new());
    });
}

fn claim_of(instance: &Instance) -> Instance {
    Instance { volume: instance.volume.clone(), claim: instance.claim.clone(), dir: instance.dir.clone(), ..*instance }
}

/// Local PersistentVolumes that are devices: given as they are, or mounted.
#[test]
fn v5_a_local_volume_may_be_a_device() {
    let testbed = Testbed::new("local-devices");
    let file = testbed.outside.join("disk");
    std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let device = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    let _detach = Detach(device.clone());
    testbed.block_on(async {
        let affinity = json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] }] }] } });
        for (name, mode) in [("raw", "Block"), ("files", "Filesystem")] {
            let volume = json!({ "metadata": { "name": name }, "spec": { "storageClassName": name, "volumeMode": mode,
                "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "16Mi" }, "nodeAffinity": affinity,
                "local": { "path": device } } });
            testbed.admin.create(&kinds::PERSISTENT_VOLUME, "", &volume).await.unwrap();
        }
        let kubelet = testbed.agent.start();
        let instance = claim(&testbed, "raw", "raw").await;
        let raw = pod(&testbed, &instance, json!({})).await;
        mount(&kubelet, &raw).await.unwrap();
        let (_, said) = run(&testbed, &kubelet, &raw, &format!("{WRITE}; {LOOK}")).await.unwrap();
        assert!(said.ends_with("67108864\nada"), "{said}");
        kubelet.volumes.unmount_pod(&raw.uid).await.unwrap();

        // It holds something by now.
        testbed.claim("files", "files").await;
        let volume = json!({ "persistentVolumeClaim": { "claimName": "files" } });
        let files = Instance { number: 0, volume, dir: PathBuf::new(), claim: Some("files".to_owned()) };
        let writer = testbed.pod(&files, json!({})).await;
        let error = mount(&kubelet, &writer).await.unwrap_err().to_string();
        assert!(error.contains("it was not formatted"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap()[..3], *b"ada");
        let zeros = ["if=/dev/zero", "bs=512", "count=1", "conv=fsync", "status=none"];
        assert!(Command::new("dd").args(zeros).arg(format!("of={device}")).status().unwrap().success());
        let record = mount(&kubelet, &writer).await.unwrap();
        std::fs::write(record.path.join("row"), "ada").unwrap();
        let noted = testbed.admin.get(&kinds::PERSISTENT_VOLUME, "", "files").await.unwrap();
        assert_eq!(object::text(&noted, &["metadata", "annotations", "mainstay.io/made-on"]), NODE);
        kubelet.volumes.unmount_pod(&writer.uid).await.unwrap();
        let (_, said) = {
            let reader = testbed.pod(&files, json!({})).await;
            mount(&kubelet, &reader).await.unwrap();
            let said = run(&testbed, &kubelet, &reader, "cat /v/row").await.unwrap();
            kubelet.volumes.unmount_pod(&reader.uid).await.unwrap();
            said
        };
        assert_eq!(said, "ada");
        // A claim of files is none of devices.
        let wrong = pod(&testbed, &files, json!({})).await;
        let error = mount(&kubelet, &wrong).await.unwrap_err().to_string();
        assert_eq!(error, "volume v has volumeMode Filesystem, but is specified in volumeDevices");
        kubelet.volumes.unmount_pod(&wrong.uid).await.unwrap();
    });
}

/// Lets a device of the test's go.
struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
