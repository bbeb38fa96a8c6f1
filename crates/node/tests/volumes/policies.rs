//! What becomes of the data when its claim goes: Delete, Retain and Recycle (V2, V3, V6).

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::{kinds, object};
use mainstay_client::PatchType;
use mainstay_node::kubelet::{Kubelet, PodContext};
use mainstay_node::volumes::{reclaim, reconciler};
use serde_json::{Value, json};

use crate::kill::{moments, reclaiming};
use crate::steps::End;
use crate::testbed::{Instance, Testbed, contents, mount};
use crate::{Kind, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Delete,
    Retain,
    Recycle,
}

/// A volume with data, released by its claim; its pod may still have it.
pub struct Released {
    instance: Instance,
    pub volume: String,
    pub pod: PodContext,
    outside: std::path::PathBuf,
}

pub fn all(name: &str, kind: Kind, policy: Policy) {
    let testbed = Testbed::new(name);
    let neighbour = testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let neighbour = filled(&testbed, kind, policy, &kubelet).await;
        kubelet.volumes.unmount_pod(&neighbour.pod.uid).await.unwrap();
        neighbour
    });
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let reconciler = tokio::spawn(reconciler::run(kubelet.clone()));
        let released = release(&testbed, kind, policy, &kubelet).await;
        // V3: not before the last unmount.
        let path = kubelet.volumes.mounted(&released.pod.uid, "v").unwrap().path;
        assert_eq!(fs::read_to_string(path.join("row")).unwrap(), "ada", "V3");
        kubelet.volumes.unmount_pod(&released.pod.uid).await.unwrap();
        settled(&testbed, kind, policy, &kubelet, &released).await;
        reconciler.abort();
    });
    if policy != Policy::Retain {
        let End::Finished(steps) = reclaim_and_die(&testbed, kind, policy, u64::MAX) else {
            unreachable!("it was not killed")
        };
        assert!(steps > 3, "it did something: {steps}");
        for moment in moments(steps) {
            reclaim_and_die(&testbed, kind, policy, moment);
        }
    }
    // Whatever happened to the others, this one was not meant.
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let pod = testbed.pod(&neighbour.instance, json!({})).await;
        let path = mount(&kubelet, &pod).await.unwrap().path;
        assert_eq!(fs::read_to_string(path.join("row")).unwrap(), "ada", "V3: a neighbour's data");
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    });
}

/// An object that was deleted, as the agent saw it last, while its name is another's by now, or nobody's: the data
/// stays.
#[test]
fn a10_data_goes_only_when_the_api_says_that_this_very_volume_is_being_deleted() {
    let testbed = Testbed::new("reclaim_by_uid");
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let released = release(&testbed, crate::LOCAL_PATH_IMAGE, Policy::Delete, &kubelet).await;
        kubelet.volumes.unmount_pod(&released.pod.uid).await.unwrap();
        let (kind, name) = (&kinds::PERSISTENT_VOLUME, released.volume.as_str());
        let image = kubelet.volumes.root().join(name).join("image");
        let seen = testbed.admin.get(kind, "", name).await.unwrap();
        let stale: PersistentVolume = serde_json::from_value(seen.clone()).unwrap();
        // Somebody takes the finalizers off: the object goes, and nobody has said that its data may.
        let free = json!({ "metadata": { "finalizers": null } });
        testbed.admin.patch(kind, "", name, "", PatchType::Merge, &free).await.unwrap();
        testbed.until(kind, "", name, |volume| volume.is_none()).await;
        reclaim::reclaim(&kubelet, &stale).await.unwrap();
        assert!(image.exists(), "the object is missing");
        // And declares the volume again, to have the data back (V6).
        let mut again = json!({ "metadata": { "name": name, "annotations": seen["metadata"]["annotations"] },
            "spec": seen["spec"] });
        again["spec"].as_object_mut().unwrap().remove("claimRef");
        testbed.admin.create(kind, "", &again).await.unwrap();
        reclaim::reclaim(&kubelet, &stale).await.unwrap();
        assert!(image.exists(), "the object is another one");
    });
}

/// The agent that reclaims is killed after so many steps; the next one brings it to its end.
fn reclaim_and_die(testbed: &Testbed, kind: Kind, policy: Policy, moment: u64) -> End {
    let released = testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let released = release(testbed, kind, policy, &kubelet).await;
        kubelet.volumes.unmount_pod(&released.pod.uid).await.unwrap();
        released
    });
    let end = reclaiming(testbed, &released.volume, moment);
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let reconciler = tokio::spawn(reconciler::run(kubelet.clone()));
        settled(testbed, kind, policy, &kubelet, &released).await;
        reconciler.abort();
    });
    end
}

/// A volume with rows, folders, and a way out.
async fn filled(testbed: &Testbed, kind: Kind, policy: Policy, kubelet: &Arc<Kubelet>) -> Released {
    let instance = testbed.fresh(&kind, &format!("{policy:?}")).await;
    let pod = testbed.pod(&instance, json!({})).await;
    let record = mount(kubelet, &pod).await.unwrap();
    let outside = testbed.outside.join(format!("precious-{}", instance.number));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("keep"), "precious").unwrap();
    fs::write(record.path.join("row"), "ada").unwrap();
    fs::create_dir_all(record.path.join("deep/er")).unwrap();
    fs::write(record.path.join("deep/er/row"), "grace").unwrap();
    symlink(&outside, record.path.join("deep/link")).unwrap();
    symlink(&outside, record.path.join("link")).unwrap();
    Released { volume: record.volume.unwrap(), instance, pod, outside }
}

/// The claim goes while the pod has it.
pub async fn release(testbed: &Testbed, kind: Kind, policy: Policy, kubelet: &Arc<Kubelet>) -> Released {
    let released = filled(testbed, kind, policy, kubelet).await;
    let claim = released.instance.claim.as_deref().unwrap();
    testbed.admin.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim, &json!({})).await.unwrap();
    let kept = testbed.admin.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim).await.unwrap();
    assert!(object::is_terminating(&kept), "V2: its pod still has it");
    testbed.forget(&released.pod).await;
    testbed.until(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim, |claim| claim.is_none()).await;
    let is_released = |volume: Option<&Value>| {
        volume.is_some_and(|volume| match policy {
            Policy::Delete => object::is_terminating(volume),
            Policy::Recycle => !object::text(volume, &["metadata", "annotations", "mainstay.io/recycle"]).is_empty(),
            Policy::Retain => volume["status"]["phase"] == "Released",
        })
    };
    testbed.until(&kinds::PERSISTENT_VOLUME, "", &released.volume, is_released).await;
    released
}

/// What the policy says has come about, and nothing else.
async fn settled(testbed: &Testbed, kind: Kind, policy: Policy, kubelet: &Arc<Kubelet>, released: &Released) {
    let (name, instance) = (released.volume.as_str(), &released.instance);
    let claim = instance.claim.as_deref().unwrap();
    let folder = kubelet.volumes.root().join(name);
    match policy {
        Policy::Delete => {
            testbed.until(&kinds::PERSISTENT_VOLUME, "", name, |volume| volume.is_none()).await;
            assert!(!folder.exists(), "V3: {} is still there", folder.display());
        }
        Policy::Recycle => {
            let is_free =
                |volume: Option<&Value>| volume.is_some_and(|volume| volume["status"]["phase"] == "Available");
            testbed.until(&kinds::PERSISTENT_VOLUME, "", name, is_free).await;
            assert!(contents(&instance.dir).is_empty(), "V3: {:?}", contents(&instance.dir));
        }
        Policy::Retain => {
            let volume = testbed.admin.get(&kinds::PERSISTENT_VOLUME, "", name).await.unwrap();
            assert_eq!(
                object::text(&volume, &["spec", "claimRef", "name"]),
                claim,
                "V6: it is still known whose it was"
            );
            let data = if matches!(kind.source, Source::Class(_)) { folder } else { instance.dir.clone() };
            assert!(!contents(&data).is_empty(), "V3: Retain keeps every byte");
        }
    }
    assert_eq!(fs::read_to_string(released.outside.join("keep")).unwrap(), "precious", "V3: outside the volume");
    assert_eq!(testbed.left(&released.pod.uid), Vec::<String>::new());
    // V6: the same name again, where there is a volume for it.
    if matches!(kind.source, Source::Volume(_)) && policy == Policy::Retain {
        return;
    }
    let bound = testbed.claim(claim, claim).await;
    assert_eq!(object::text(&bound, &["spec", "volumeName"]) == name, policy == Policy::Recycle, "V6");
    let pod = testbed.pod(instance, json!({})).await;
    let path = mount(kubelet, &pod).await.unwrap().path;
    assert!(contents(&path).is_empty(), "V6: {:?}", contents(&path));
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    testbed.forget(&pod).await;
}

/// V3, A10: somebody wants the data after all. What the agent saw last is older than that; and once it has begun to
/// remove, whoever is too late is told so.
#[test]
fn v3_a10_who_asks_for_retain_in_time_keeps_the_data_and_who_is_late_is_refused() {
    let testbed = Testbed::new("reclaim_in_time");
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let kind = &kinds::PERSISTENT_VOLUME;
        let retain = json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } });
        let patch =
            async |name: &str, patch: &Value| testbed.admin.patch(kind, "", name, "", PatchType::Merge, patch).await;
        let released = async || {
            let released = release(&testbed, crate::LOCAL_PATH_IMAGE, Policy::Delete, &kubelet).await;
            kubelet.volumes.unmount_pod(&released.pod.uid).await.unwrap();
            let seen = testbed.admin.get(kind, "", &released.volume).await.unwrap();
            (released.volume, serde_json::from_value::<PersistentVolume>(seen).unwrap())
        };
        let (name, seen) = released().await;
        let folder = kubelet.volumes.root().join(&name);
        patch(&name, &retain).await.unwrap();
        reclaim::reclaim(&kubelet, &seen).await.unwrap();
        assert!(folder.join("image").exists(), "it was set to Retain");

        let (name, seen) = released().await;
        let folder = kubelet.volumes.root().join(&name);
        // Something in the way: the removal begins and does not end.
        let way = folder.join("way");
        fs::create_dir(&way).unwrap();
        mainstay_runtime::safe_path::mounts::tmpfs(&way, 0o700, None).unwrap();
        reclaim::reclaim(&kubelet, &seen).await.unwrap_err();
        let late = patch(&name, &retain).await.unwrap_err().to_string();
        assert!(late.contains("the data is being removed"), "{late}");
        let unsaid = json!({ "metadata": { "annotations": { "mainstay.io/removing": null } } });
        patch(&name, &unsaid).await.unwrap_err();
        mainstay_runtime::safe_path::mounts::unmount_below(&way).unwrap();
        reclaim::reclaim(&kubelet, &seen).await.unwrap();
        testbed.until(kind, "", &name, |volume| volume.is_none()).await;
        assert!(!folder.exists());
    });
}
