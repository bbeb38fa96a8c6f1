//! How much a node may promise to volumes.
//!
//! An image volume is sparse: it takes room only as it is written. A node says how many bytes its images may have all
//! together ([`VOLUME_CAPACITY`]: what its file system has free, and what they have taken already); what was promised
//! before, whoever promised it, is taken off here, so that no view of a node is too old for the claims that it was
//! given a moment ago.
//!
//! Differs: upstream compares each claim with the free room alone, so that thin volumes are promised more than there
//! is; one that is then full of holes without bytes behind them fails its writes, which databases take badly. Here the
//! sum of the promises stays within what is there, for new volumes and for growth; a class can say otherwise
//! ([`OVERCOMMIT`]), and its volumes still count against those of others. A node that does not say takes anything, and
//! so do plain directories, which promise nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;

use super::{HOSTNAME, SIZE_IMAGE, annotation, capacity, is_image, made_size, reaches, size_of};
use crate::snapshot::{Index, Snapshot};

/// On a Node: bytes that its image volumes may have, all together.
pub const VOLUME_CAPACITY: &str = "mainstay.io/volume-capacity";
/// A parameter of built-in classes, and an annotation of their volumes: `"true"` promises without looking at the room.
pub const OVERCOMMIT: &str = "mainstay.io/overcommit";
/// Why a node cannot have a volume; upstream's words.
pub const NO_ROOM: &str = "node(s) did not have enough free storage";

/// Bytes that a node may still promise: below 0 where more was promised already, `None` where it does not say.
pub fn of(snapshot: &Snapshot, node: &Node) -> Option<i64> {
    let all: i64 = annotation(&node.metadata, VOLUME_CAPACITY).parse().ok()?;
    let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    let tied = hostname.map_or(0, |hostname| snapshot.promised_on(hostname));
    let loose = snapshot.found::<PersistentVolume>(Index::VolumesLoose, "", "").map(|(_, volume)| volume);
    let loose = loose.filter(|volume| reaches(node, volume)).map(|volume| promised(volume));
    Some(loose.fold(all.saturating_sub(tied), i64::saturating_sub))
}

/// Bytes that an image volume was promised.
pub fn promised(volume: &PersistentVolume) -> i64 {
    capacity(volume).max(made_size(volume).unwrap_or(0))
}

/// The hostname that a volume is tied to, where its node affinity is nothing but that.
pub fn home(volume: &PersistentVolume) -> Option<&str> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let ([expression], []) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default())
    else {
        return None;
    };
    let [value] = expression.values.as_deref().unwrap_or_default() else { return None };
    (expression.key == HOSTNAME && expression.operator == "In" && !value.is_empty()).then_some(value)
}

/// The nodes that reach a volume, in order of name.
pub fn homes<'a>(snapshot: &'a Snapshot, volume: &PersistentVolume) -> Vec<&'a Node> {
    let all: Vec<&Node> = match home(volume) {
        Some(hostname) => {
            let label = BTreeMap::from([(HOSTNAME.to_owned(), hostname.to_owned())]);
            snapshot.labelled::<Node>("", &label).into_iter().map(|(_, node)| &**node).collect()
        }
        None => snapshot.nodes.iter().map(|(_, node)| &**node).collect(),
    };
    all.into_iter().filter(|node| reaches(node, volume)).collect()
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
    homes(snapshot, volume).into_iter().all(|node| of(snapshot, node).is_none_or(|room| bytes <= room))
}

/// How much of a node's room would be left after `bytes` more, in hundredths; 0 where it does not say.
pub fn left_after(snapshot: &Snapshot, node: &Node, bytes: i64) -> i64 {
    let all: i64 = annotation(&node.metadata, VOLUME_CAPACITY).parse().unwrap_or(0);
    let left = of(snapshot, node).unwrap_or(0).saturating_sub(bytes).clamp(0, all.max(0));
    i64::try_from(i128::from(left) * 100 / i128::from(all.max(1))).unwrap_or(0)
}
