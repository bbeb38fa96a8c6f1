//! A pod that is taken away because its node's Lease stands still (S13).

use mainstay_store::CommitError;

use super::*;
use crate::api::tests::pod;

/// Releases the pod of the config map's name, as long as it is there; the Lease is that of its snapshot.
fn release(snapshot: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
    let of = |kind: &Kind| snapshot.metas.get(&(kind.clone(), key.clone())).map(|meta| meta.metadata.clone());
    let (Some(pod), Some(lease)) = (of(&kinds::POD), of(&kinds::LEASE)) else { return Decision::default() };
    let write = Write::Release {
        key: key.clone(),
        uid: pod.uid.unwrap_or_default(),
        lease: key.clone(),
        lease_version: lease.resource_version.unwrap_or_default(),
    };
    Decision { writes: vec![write], ..Decision::default() }
}

static RELEASE: &[Controller] = &[Controller {
    name: "release",
    permits: &[(Verb::Delete, "pods")],
    reads: &["*"],
    keys: config_maps,
    reconcile: release,
    many: None,
}];

#[test]
fn s13_a_renewal_before_or_beside_the_commit_makes_a_release_fail() {
    for renewed in ["not", "before", "beside", "by another pod"] {
        let cluster = Cluster::new();
        let now = cluster.api.now();
        cluster.create(&kinds::POD, pod("a")).expect("created");
        cluster.create(&kinds::LEASE, json!({ "metadata": { "name": "a" } })).expect("created");
        cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
        let mut driver = Driver::new(RELEASE);
        driver.load(&cluster.api.store, now).expect("loaded");
        let work = driver.poll(now).expect("decided");
        let renew = || {
            let change = json!({ "spec": { "holderIdentity": "a" } });
            cluster.merge(&kinds::LEASE, "a", crate::api::Part::Main, change).expect("renewed");
        };
        match renewed {
            "before" => renew(),
            "by another pod" => {
                let options = crate::api::DeleteOptions { grace: Some(0), ..Default::default() };
                cluster.delete(&kinds::POD, "a", &options).expect("deleted");
                cluster.create(&kinds::POD, pod("a")).expect("made again");
            }
            _ => {}
        }
        let compiled = compile(&cluster.api, &work);
        if renewed == "beside" {
            renew();
        }
        let committed = cluster.api.store.commit_blocking(compiled.txn.clone());
        assert_eq!(cluster.get(&kinds::POD, "a").is_none(), renewed == "not", "{renewed}");
        assert_eq!(matches!(committed, Err(CommitError::Expectation { .. })), renewed == "beside", "{renewed}");
        assert_eq!(compiled.refused.is_some(), matches!(renewed, "before" | "by another pod"), "{renewed}");
    }
}
