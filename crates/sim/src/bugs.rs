//! Deliberate bugs. Each must be caught by the checker that is named for it, or that checker proves nothing.

use mainstay_api::kinds;
use mainstay_logic::{Decision, Propagation, Snapshot, Write};
use serde_json::json;

/// One thing that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A restarted agent acts on its first list without asking, and forgets what it told to stop
    /// (kubernetes#59848): S1.
    TrustsStaleList,
    /// A node lets the API object go before the containers have stopped: S2.
    ConfirmsTooEarly,
    /// A set makes two pods at once: S4.
    SkipsOrder,
    /// A set is scaled in from the lowest ordinal: S5.
    ScalesInFromBelow,
    /// A controller deletes a claim together with its pod: S8.
    DeletesClaims,
    /// Volumes are folders named by their claim's name, and stay when the claim goes: V6.
    KeepsDirectories,
    /// A node empties a released volume that a pod still has: V3.
    RecyclesInUse,
    /// The server comes back with an old copy of its disk: A3.
    RestoresOldDisk,
}

impl Bug {
    /// All, with the invariant whose checker must catch it.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::TrustsStaleList, "S1"),
        (Self::ConfirmsTooEarly, "S2"),
        (Self::SkipsOrder, "S4"),
        (Self::ScalesInFromBelow, "S5"),
        (Self::DeletesClaims, "S8"),
        (Self::KeepsDirectories, "V6"),
        (Self::RestoresOldDisk, "A3"),
        (Self::RecyclesInUse, "V3"),
    ];

    /// Spoils a decision of the StatefulSet controller.
    pub fn spoil(self, snapshot: &Snapshot, decision: &mut Decision) {
        match self {
            Self::SkipsOrder => skip_order(decision),
            Self::ScalesInFromBelow => scale_in_from_below(snapshot, decision),
            Self::DeletesClaims => delete_claims(snapshot, decision),
            Self::TrustsStaleList
            | Self::ConfirmsTooEarly
            | Self::KeepsDirectories
            | Self::RestoresOldDisk
            | Self::RecyclesInUse => {}
        }
    }
}

fn skip_order(decision: &mut Decision) {
    let made = decision.writes.iter().find_map(|write| match write {
        Write::Create { kind, object } if *kind == kinds::POD => Some(object.clone()),
        _ => None,
    });
    let Some(mut next) = made else { return };
    let name = next["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let Some((set, ordinal)) = name.rsplit_once('-') else { return };
    let ordinal = ordinal.parse::<u32>().unwrap_or(0) + 1;
    next["metadata"]["name"] = json!(format!("{set}-{ordinal}"));
    decision.writes.push(Write::Create { kind: kinds::POD.clone(), object: next });
}

fn scale_in_from_below(snapshot: &Snapshot, decision: &mut Decision) {
    for write in &mut decision.writes {
        let Write::Delete { kind, key, uid, resource_version, .. } = write else { continue };
        let Some((set, _)) = key.name.rsplit_once('-').filter(|_| *kind == kinds::POD) else { continue };
        let set_key = mainstay_api::ObjectKey::new(key.namespace.clone(), set);
        let replicas = snapshot.stateful_sets.get(&set_key).and_then(|set| set.spec.replicas).unwrap_or(0);
        let lowest = mainstay_api::ObjectKey::new(key.namespace.clone(), format!("{set}-{replicas}"));
        if let Some(pod) = snapshot.pods.get(&lowest) {
            *uid = pod.metadata.uid.clone().unwrap_or_default();
            *resource_version = None;
            *key = lowest;
        }
    }
}

fn delete_claims(snapshot: &Snapshot, decision: &mut Decision) {
    let mut deletes = Vec::new();
    for write in &decision.writes {
        let Write::Delete { kind, key, .. } = write else { continue };
        if *kind != kinds::POD {
            continue;
        }
        let claim = mainstay_api::ObjectKey::new(key.namespace.clone(), format!("data-{}", key.name));
        if let Some(found) = snapshot.persistent_volume_claims.get(&claim) {
            deletes.push(Write::Delete {
                kind: kinds::PERSISTENT_VOLUME_CLAIM.clone(),
                key: claim,
                uid: found.metadata.uid.clone().unwrap_or_default(),
                resource_version: None,
                grace_period: None,
                propagation: Propagation::Background,
            });
        }
    }
    decision.writes.extend(deletes);
}
