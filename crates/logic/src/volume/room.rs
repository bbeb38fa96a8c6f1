//! How much a node may promise to volumes.
//!
//! An image volume is sparse: it takes room only as it is written. A node says how many bytes its images may have all
//! together ([`VOLUME_CAPACITY`]: what its file system has free, and what they have taken already); what was promised
//! before, whoever promised it, is taken off here, so that no view of a node is too old for the claims that it was
//! given a moment ago.
//!
//! Differs: upstream compares each claim with the free room alone, so that thin volumes are promised more than there
//! is;
//! one that is then full of holes without bytes behind them fails its writes, which databases take badly. Here the sum
//! of the promises stays within what is there, for new volumes and for growth; a class can say otherwise
//! ([`OVERCOMMIT`]), and its volumes still count against those of others. A node that does not say takes anything,
//! and so
//! do plain directories, which promise nothing.

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;

use super::{SIZE_IMAGE, annotation, capacity, is_image, made_size, reaches, size_of};
use crate::snapshot::Snapshot;

/// On a Node: bytes that its image volumes may have, all together.
pub const VOLUME_CAPACITY: &str = "mainstay.io/volume-capacity";
/// A parameter of built-in classes, and an annotation of their volumes: `"true"` promises without looking at the room.
pub const OVERCOMMIT: &str = "mainstay.io/overcommit";
/// Why a node cannot have a volume; upstream's words.
pub const NO_ROOM: &str = "node(s) did not have enough free storage";

/// Bytes that a node may still promise: below 0 where more was promised already, `None` where it does not say.
pub fn of(snapshot: &Snapshot, node: &Node) -> Option<i64> {
    let all: i64 = annotation(&node.metadata, VOLUME_CAPACITY).parse().ok()?;
    let here = snapshot.persistent_volumes.iter().filter(|(_, volume)| is_image(volume) && reaches(node, volume));
    let promised = |volume: &PersistentVolume| capacity(volume).max(made_size(volume).unwrap_or(0));
    Some(here.fold(all, |rest, (_, volume)| rest.saturating_sub(promised(volume))))
}

/// Whether volumes of a class may be promised only where there is room.
pub fn is_counted(class: &StorageClass) -> bool {
    let parameter =
        |name: &str| class.parameters.as_ref().and_then(|parameters| parameters.get(name)).map(String::as_str);
    size_of(class) == Ok(SIZE_IMAGE) && parameter(OVERCOMMIT) != Some("true")
}

/// Whether a node has `bytes` more for volumes of a class.
pub fn has(snapshot: &Snapshot, node: &Node, class: &StorageClass, bytes: i64) -> bool {
    !is_counted(class) || of(snapshot, node).is_none_or(|room| bytes <= room)
}

/// Whether the node of a volume has `bytes` more for it. A node that is gone does not say.
pub fn can_grow(snapshot: &Snapshot, volume: &PersistentVolume, bytes: i64) -> bool {
    if !is_image(volume) || annotation(&volume.metadata, OVERCOMMIT) == "true" {
        return true;
    }
    let mut homes = snapshot.nodes.iter().map(|(_, node)| node).filter(|node| reaches(node, volume));
    homes.all(|node| of(snapshot, node).is_none_or(|room| bytes <= room))
}

/// How much of a node's room would be left after `bytes` more, in hundredths; 0 where it does not say.
pub fn left_after(snapshot: &Snapshot, node: &Node, bytes: i64) -> i64 {
    let all: i64 = annotation(&node.metadata, VOLUME_CAPACITY).parse().unwrap_or(0);
    let left = of(snapshot, node).unwrap_or(0).saturating_sub(bytes).clamp(0, all.max(0));
    i64::try_from(i128::from(left) * 100 / i128::from(all.max(1))).unwrap_or(0)
}
