//! Claims that start as a copy of another one's data.

use std::fs;

use mainstay_api::{kinds, object};
use mainstay_node::volumes::reconciler;
use serde_json::json;

use crate::testbed::{Instance, Testbed, mount};

/// Whoever sees the claim bound may write to the source, or remove it.
#[test]
fn v4_a_clone_is_copied_before_its_claim_is_bound() {
    let testbed = Testbed::new("clones");
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let source = testbed.fresh(&crate::LOCAL_PATH_IMAGE, "Delete").await;
        let writer = testbed.pod(&source, json!({})).await;
        let row = mount(&kubelet, &writer).await.unwrap().path.join("row");
        fs::write(&row, "before").unwrap();
        let from = source.claim.as_deref().unwrap();
        let claim = json!({ "metadata": { "name": "clone" }, "spec": { "storageClassName": from,
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "32Mi" } },
            "dataSource": { "kind": "PersistentVolumeClaim", "name": from } } });
        let claim = testbed.admin.create(&kinds::PERSISTENT_VOLUME_CLAIM, "default", &claim).await.unwrap();
        let volume = format!("pvc-{}", object::uid(&claim));
        testbed.until(&kinds::PERSISTENT_VOLUME, "", &volume, |volume| volume.is_some()).await;
        let seen = testbed.admin.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "clone").await.unwrap();
        assert_eq!(seen["status"]["phase"], "Pending", "nobody has copied anything");
        assert!(!kubelet.volumes.root().join(&volume).exists());

        let reconciler = tokio::spawn(reconciler::run(kubelet.clone()));
        testbed.bound("clone").await;
        fs::write(&row, "after").unwrap();
        let volume = json!({ "persistentVolumeClaim": { "claimName": "clone" } });
        let clone = Instance { number: 99, volume, dir: source.dir.clone(), claim: Some("clone".to_owned()) };
        let reader = testbed.pod(&clone, json!({})).await;
        let path = mount(&kubelet, &reader).await.unwrap().path;
        assert_eq!(fs::read_to_string(path.join("row")).unwrap(), "before", "of the moment before it was bound");
        let df = nix::sys::statvfs::statvfs(&path).unwrap();
        assert_eq!(df.blocks() * df.fragment_size(), 32 << 20, "as large as was asked for");
        assert_eq!(fs::read_to_string(&row).unwrap(), "after");
        reconciler.abort();
        kubelet.volumes.unmount_pod(&reader.uid).await.unwrap();
        kubelet.volumes.unmount_pod(&writer.uid).await.unwrap();
    });
}
