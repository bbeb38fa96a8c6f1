//! VolumeAttachment: a volume that is, or shall be, attached to a node. Kept for drivers and tools; the volumes of this
//! program need no attaching.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::csidriver::validate_name;
use super::field::{Field, default, inner, keep};
use super::{BASE, Kind, Row, Subresource, lifecycle};
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
    defaults: |_, attachment| {
        // Go's JSON always has it.
        if let Some(status) = inner(attachment, "status") {
            default(status, "attached", false);
        }
    },
    prepare_create: |_, attachment| lifecycle::begin_status(attachment, json!({ "attached": false })),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Conformance, VolumeAttachment: its status says from the first on that it is not attached.
    #[test]
    fn conformance_a_new_attachment_is_not_attached() {
        let mut attachment = json!({ "status": { "attached": true }, "spec": {} });
        (VOLUME_ATTACHMENT.prepare_create)(&VOLUME_ATTACHMENT, &mut attachment);
        assert_eq!(attachment["status"], json!({ "attached": false }));
        let mut patched = json!({ "status": { "attachmentMetadata": { "a": "b" } } });
        (VOLUME_ATTACHMENT.defaults)(&VOLUME_ATTACHMENT, &mut patched);
        assert_eq!(patched["status"]["attached"], false);
    }
}
