//! VolumeAttributesClass: what may be changed about volumes while they live.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, Row, storageclass};
use crate::object::{name, text};
use crate::status::Cause;

/// The row of VolumeAttributesClass.
pub static VOLUME_ATTRIBUTES_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("VolumeAttributesClass"),
    plural: Borrowed("volumeattributesclasses"),
    singular: Borrowed("volumeattributesclass"),
    short_names: Borrowed(&[Borrowed("vac")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.storage.v1.VolumeAttributesClass"),
    columns: Borrowed(&[NAME, text_column("DriverName", "Who carries it out."), AGE]),
    row: |_, class, now| vec![json!(name(class)), json!(text(class, &["driverName"])), cells::age(class, now)],
    validate: |_, class, causes| {
        let class = Field::root(class);
        storageclass::validate_provisioner(&class.get("driverName"), causes);
        let parameters = class.get("parameters");
        if parameters.len() == 0 {
            causes.push(Cause::required(&parameters.path, "must contain at least one key/value pair"));
        }
        storageclass::validate_parameters(&parameters, causes);
    },
    validate_update: |_, new, old, causes| {
        for (field, detail) in [
            ("driverName", "updates to driverName are forbidden."),
            ("parameters", "updates to parameters are forbidden."),
        ] {
            if new.get(field) != old.get(field) {
                causes.push(Cause::forbidden(field, detail));
            }
        }
    },
    ..BASE
});
