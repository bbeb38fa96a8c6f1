//! What every driver promises about mounting.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use mainstay_runtime::safe_path::mounts;
use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::testbed::{Testbed, contents, mount};
use crate::{Data, Group, Kind, Source};

pub fn all(name: &str, kind: Kind) {
    let testbed = Testbed::new(name);
    testbed.block_on(async {
        mounts_once_and_unmounts_twice(&testbed, kind).await;
        data_lives_as_long_as_it_should(&testbed, kind).await;
        read_only_refuses_writes(&testbed, kind).await;
        a_sub_path_stays_inside(&testbed, kind).await;
        belongs_to_the_group(&testbed, kind).await;
        never_descends_into_a_live_mount(&testbed, kind).await;
        no_empty_look_alike(&testbed, kind).await;
    });
}

/// Mounting is idempotent, also for an agent that was restarted (V7); unmounting leaves nothing, may come twice, and
/// may come for what was never mounted.
async fn mounts_once_and_unmounts_twice(testbed: &Testbed, kind: Kind) {
    let instance = testbed.fresh(&kind, "Retain").await;
    let pod = testbed.pod(&instance, json!({})).await;
    let kubelet = testbed.agent.start();
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    let points = || ["pods", "volumes"].map(|dir| mounts::below(&testbed.agent.dir.join(dir)).unwrap());
    let first = mount(&kubelet, &pod).await.unwrap();
    let mounted = points();
    if kind.data != Data::Given {
        fs::write(first.path.join("row"), "ada").unwrap();
    }
    assert_eq!(mount(&kubelet, &pod).await.unwrap(), first);
    let restarted = testbed.agent.start();
    restarted.volumes.release_unused().await.unwrap();
    assert_eq!((mount(&restarted, &pod).await.unwrap(), points()), (first.clone(), mounted), "V7");
    if kind.data != Data::Given {
        assert_eq!(fs::read_to_string(first.path.join("row")).unwrap(), "ada", "V7");
    }
    for _ in 0..2 {
        restarted.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    }
    assert!(restarted.volumes.mounted(&pod.uid, "v").is_err());
    // What another pod never mounted.
    let other = testbed.pod(&instance, json!({})).await;
    restarted.volumes.unmount_pod(&other.uid).await.unwrap();
    testbed.forget(&other).await;
    testbed.forget(&pod).await;
}

async fn data_lives_as_long_as_it_should(testbed: &Testbed, kind: Kind) {
    let instance = testbed.fresh(&kind, "Retain").await;
    let kubelet = testbed.agent.start();
    let pod = testbed.pod(&instance, json!({})).await;
    mount(&kubelet, &pod).await.unwrap();
    if kind.data == Data::Given {
        assert_eq!(testbed.container(&kubelet, &pod, "cat /v/key").await.unwrap(), (0, "stdout P given".to_owned()));
        let (code, said) = testbed.container(&kubelet, &pod, "echo x > /v/new").await.unwrap();
        assert!(code != 0 && said.contains("Read-only file system"), "{said}");
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        return testbed.forget(&pod).await;
    }
    // A new volume is empty: initdb wants that.
    let (code, said) = testbed.container(&kubelet, &pod, "ls -A /v; echo ada > /v/row").await.unwrap();
    assert_eq!((code, said.as_str()), (0, ""));
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    testbed.forget(&pod).await;
    let next = testbed.pod(&instance, json!({})).await;
    mount(&kubelet, &next).await.unwrap();
    let seen = testbed.container(&kubelet, &next, "ls -A /v; cat /v/* || true").await.unwrap().1;
    match kind.data {
        Data::Kept => assert_eq!(seen, "stdout F row\nstdout F ada", "V4"),
        _ => assert!(!seen.contains("row") && !seen.contains("ada"), "it is another pod's: {seen}"),
    }
    kubelet.volumes.unmount_pod(&next.uid).await.unwrap();
    testbed.forget(&next).await;
}

/// Asked for by the container, or by the pod's volume.
async fn read_only_refuses_writes(testbed: &Testbed, kind: Kind) {
    let kubelet = testbed.agent.start();
    let by_mount = json!({ "spec": { "containers": [{ "volumeMounts": [{ "readOnly": true }] }] } });
    let by_volume = match (
        kind.source,
        testbed.fresh(&kind, "Retain").await.volume.as_object().and_then(|volume| volume.keys().next()),
    ) {
        (Source::Volume(_) | Source::Class(_), Some(key)) => {
            Some(json!({ "spec": { "volumes": [{ (key.as_str()): { "readOnly": true } }] } }))
        }
        (Source::Pod(_), Some(key)) if key == "nfs" => {
            Some(json!({ "spec": { "volumes": [{ "nfs": { "readOnly": true } }] } }))
        }
        _ => None,
    };
    for change in [Some(by_mount), by_volume].into_iter().flatten() {
        let instance = testbed.fresh(&kind, "Retain").await;
        let pod = testbed.pod(&instance, change.clone()).await;
        let record = mount(&kubelet, &pod).await.unwrap();
        let before = contents(&record.path);
        let (code, said) = testbed.container(&kubelet, &pod, "echo x > /v/new").await.unwrap();
        assert!(code != 0 && said.contains("Read-only file system"), "{change}: {said}");
        assert_eq!(contents(&record.path), before);
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        testbed.forget(&pod).await;
    }
}

async fn a_sub_path_stays_inside(testbed: &Testbed, kind: Kind) {
    let instance = testbed.fresh(&kind, "Retain").await;
    let kubelet = testbed.agent.start();
    let part = |path: &str| json!({ "spec": { "containers": [{ "volumeMounts": [{ "subPath": path }] }] } });
    if kind.data == Data::Given {
        let pod = testbed.pod(&instance, part("key")).await;
        mount(&kubelet, &pod).await.unwrap();
        assert_eq!(testbed.container(&kubelet, &pod, "cat /v").await.unwrap(), (0, "stdout P given".to_owned()));
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
        return testbed.forget(&pod).await;
    }
    let pod = testbed.pod(&instance, part("a/b")).await;
    let record = mount(&kubelet, &pod).await.unwrap();
    assert_eq!(testbed.container(&kubelet, &pod, "echo ada > /v/row").await.unwrap().0, 0);
    assert_eq!(fs::read_to_string(record.path.join("a/b/row")).unwrap(), "ada\n");
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    testbed.forget(&pod).await;

    // A way out that a container has left in the volume (X3).
    let secret = testbed.outside.join(format!("secret-{}", instance.number));
    fs::create_dir(&secret).unwrap();
    for (link, target) in [("up", secret.clone()), ("root", PathBuf::from("/"))] {
        let pod = testbed.pod(&instance, part(&format!("{link}/made"))).await;
        let record = mount(&kubelet, &pod).await.unwrap();
        symlink(&target, record.path.join(link)).unwrap();
        let refused = testbed.container(&kubelet, &pod, "true").await.unwrap_err();
        assert!(refused.contains("failed to prepare subPath"), "{refused}");
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
        testbed.forget(&pod).await;
    }
    assert!(contents(&secret).is_empty() && !PathBuf::from("/made").exists());
}

async fn belongs_to_the_group(testbed: &Testbed, kind: Kind) {
    let instance = testbed.fresh(&kind, "Retain").await;
    let kubelet = testbed.agent.start();
    let change = json!({ "spec": { "securityContext": { "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000 } } });
    let pod = testbed.pod(&instance, change).await;
    let record = mount(&kubelet, &pod).await.unwrap();
    if kind.data == Data::Given {
        assert_eq!(testbed.container(&kubelet, &pod, "cat /v/*").await.unwrap().0, 0);
    } else if kind.group == Group::Applied {
        assert_eq!(testbed.container(&kubelet, &pod, "echo ada > /v/mine").await.unwrap(), (0, String::new()));
        let found = ["mine", ""].map(|name| fs::metadata(record.path.join(name)).unwrap().gid());
        assert_eq!(found, [2000, 2000]);
    } else {
        assert_ne!(fs::metadata(&record.path).unwrap().gid(), 2000, "it is not the pod's to give away");
    }
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    testbed.forget(&pod).await;
}

/// V8: what somebody mounted inside stays whole; what is held open is not torn away.
async fn never_descends_into_a_live_mount(testbed: &Testbed, kind: Kind) {
    if kind.data == Data::Given {
        return;
    }
    let instance = testbed.fresh(&kind, "Retain").await;
    let kubelet = testbed.agent.start();
    let precious = testbed.outside.join(format!("precious-{}", instance.number));
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("keep"), "precious").unwrap();
    let pod = testbed.pod(&instance, json!({})).await;
    let record = mount(&kubelet, &pod).await.unwrap();
    let inside = record.path.join("sub");
    fs::create_dir(&inside).unwrap();
    mounts::bind(precious.to_str().unwrap(), &inside).unwrap();
    // It may be refused or be done around it; the next attempt is then the one that counts.
    let _ = kubelet.volumes.unmount_pod(&pod.uid).await;
    assert_eq!(fs::read_to_string(precious.join("keep")).unwrap(), "precious", "V8");
    let _ = umount2(&inside, MntFlags::UMOUNT_NOFOLLOW);
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    kubelet.volumes.release_unused().await.unwrap();
    assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    assert_eq!(fs::read_to_string(precious.join("keep")).unwrap(), "precious", "V8");

    let record = mount(&kubelet, &pod).await.unwrap();
    fs::write(record.path.join("held"), "ada").unwrap();
    let held = File::open(record.path.join("held")).unwrap();
    if kubelet.volumes.unmount_pod(&pod.uid).await.is_err() {
        assert_eq!(fs::read_to_string(record.path.join("held")).unwrap(), "ada", "what is refused is not begun");
    }
    drop(held);
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    kubelet.volumes.release_unused().await.unwrap();
    assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    testbed.forget(&pod).await;
}

/// V5: data that is gone is not replaced by an empty folder.
async fn no_empty_look_alike(testbed: &Testbed, kind: Kind) {
    let is_local = matches!(kind.source, Source::Class(_))
        || matches!(kind.source, Source::Volume(text) if text.contains("local"));
    if !is_local {
        return;
    }
    let instance = testbed.fresh(&kind, "Retain").await;
    let kubelet = testbed.agent.start();
    let pod = testbed.pod(&instance, json!({})).await;
    let record = mount(&kubelet, &pod).await.unwrap();
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    let volume = record.volume.unwrap();
    let data = if matches!(kind.source, Source::Class(_)) {
        kubelet.volumes.root().join(&volume)
    } else {
        instance.dir.clone()
    };
    let aside = testbed.outside.join(format!("aside-{}", instance.number));
    fs::rename(&data, &aside).unwrap();
    assert!(mount(&kubelet, &pod).await.is_err(), "V5");
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    assert!(!data.exists(), "V5: nothing was made in its testbed");
    fs::rename(&aside, &data).unwrap();
    mount(&kubelet, &pod).await.unwrap();
    kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    testbed.forget(&pod).await;
}
