//! VolumeAttachment: a volume that is, or shall be, attached to a node. Kept for drivers and tools; the volumes of this
//! program need no attaching.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::csidriver::validate_name;
use super::field::{Field, keep, remove};
use super::{BASE, Kind, Row, Subresource};
use crate::object::{name, text};
use crate::status::Cause;

/// The row of VolumeAttachment.
pub static VOLUME_ATTACHMENT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("VolumeAttachment"),
    plural: Borrowed("volumeattachments"),
    singular: Borrowed("volumeattachment"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.storage.v1.VolumeAttachment"),
    columns: Borrowed(&[
        NAME,
        text_column("Attacher", "Who attaches it."),
        text_column("PV", "The volume."),
        text_column("Node", "The node."),
        text_column("Attached", "Whether it is attached."),
        AGE,
    ]),
    row: |_, attachment, now| {
        let spec = |path: &[&str]| json!(text(attachment, &[&["spec"], path].concat()));
        let attached = Field::root(attachment).dig(&["status", "attached"]).is_true();
        let volume = spec(&["source", "persistentVolumeName"]);
        vec![
            json!(name(attachment)),
            spec(&["attacher"]),
            volume,
            spec(&["nodeName"]),
            json!(attached),
            cells::age(attachment, now),
        ]
    },
    prepare_create: |_, attachment| remove(attachment, "status"),
    prepare_update: |_, new, old| keep(new, old, "status"),
    validate: |_, attachment, causes| {
        let spec = Field::root(attachment).get("spec");
        validate_name(&spec.get("attacher"), causes);
        spec.get("nodeName").need(causes, crate::names::subdomain);
        let source = spec.get("source");
        let (inline, volume) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
        match (inline.is_set(), volume.text().is_empty()) {
            (false, true) => causes.push(Cause::required(
                &source.path,
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            )),
            (true, false) => {
                causes.push(Cause::forbidden(
                    &source.path,
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ));
            }
            _ => {}
        }
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("spec").immutable(&Field::root(old).get("spec"), causes);
    },
    ..BASE
});
