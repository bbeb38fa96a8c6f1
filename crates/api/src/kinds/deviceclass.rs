//! DeviceClass: a sort of devices. Stored for charts and tools.

use std::borrow::Cow::Borrowed;

use super::field::Field;
use super::{BASE, Kind, Row, device_rules, lifecycle};
use crate::names;
use crate::status::Cause;

/// Most configurations of a class.
const MAX_CONFIG: usize = 32;

/// The row of DeviceClass.
pub static DEVICE_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("resource.k8s.io"),
    kind: Borrowed("DeviceClass"),
    plural: Borrowed("deviceclasses"),
    singular: Borrowed("deviceclass"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.resource.v1.DeviceClass"),
    prepare_create: |_, class| lifecycle::begin_generation(class),
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["spec"]),
    validate: |_, class, causes| {
        let spec = Field::root(class).get("spec");
        device_rules::validate_selectors(&spec.get("selectors"), causes);
        let config = spec.get("config");
        if config.len() > MAX_CONFIG {
            causes.push(Cause::too_many(&config.path, config.len(), MAX_CONFIG));
        }
        config.items().for_each(|item| device_rules::validate_config(&item, causes));
        spec.get("extendedResourceName").check(causes, names::qualified);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
