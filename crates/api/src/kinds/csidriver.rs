//! CSIDriver: what a storage driver can do. Kept for charts and tools; this program runs no such drivers.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, made};
use super::{BASE, Kind, Row};
use crate::object::name;
use crate::status::Cause;

/// The row of CSIDriver.
pub static CSI_DRIVER: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("CSIDriver"),
    plural: Borrowed("csidrivers"),
    singular: Borrowed("csidriver"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.storage.v1.CSIDriver"),
    columns: Borrowed(&[
        NAME,
        text_column("AttachRequired", "Whether volumes are attached before they are mounted."),
        text_column("PodInfoOnMount", "Whether it is told about the pod."),
        text_column("StorageCapacity", "Whether it reports its capacity."),
        text_column("TokenRequests", "Audiences of the tokens that it gets."),
        text_column("RequiresRepublish", "Whether mounts are asked for again and again."),
        text_column("Modes", "Lifecycles that its volumes may have."),
        AGE,
    ]),
    row: |_, driver, now| {
        let spec = Field::root(driver).get("spec");
        let flag = |name: &str, otherwise: bool| json!(spec.get(name).value.as_bool().unwrap_or(otherwise));
        let modes: Vec<&str> = spec.get("volumeLifecycleModes").items().map(|mode| mode.text()).collect();
        let tokens: Vec<&str> = spec.get("tokenRequests").items().map(|token| token.get("audience").text()).collect();
        vec![
            json!(name(driver)),
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            json!(if spec.get("tokenRequests").is_set() { tokens.join(",") } else { "<unset>".to_owned() }),
            flag("requiresRepublish", false),
            cells::or_none(&modes.join(",")),
            cells::age(driver, now),
        ]
    },
    defaults: |_, driver| {
        let Some(spec) = made(driver, "spec") else { return };
        default(spec, "attachRequired", true);
        for flag in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
            default(spec, flag, false);
        }
        default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        default(spec, "volumeLifecycleModes", json!(["Persistent"]));
    },
    validate: |_, driver, causes| {
        validate_name(&Field::root(driver).dig(&["metadata", "name"]), causes);
        let spec = Field::root(driver).get("spec");
        spec.get("fsGroupPolicy").one_of(causes, &["File", "None", "ReadWriteOnceWithFSType"]);
        spec.get("volumeLifecycleModes").items().for_each(|mode| mode.one_of(causes, &["Ephemeral", "Persistent"]));
        let mut audiences = BTreeSet::new();
        for token in spec.get("tokenRequests").items() {
            let audience = token.get("audience");
            if !audiences.insert(audience.text()) {
                causes.push(Cause::duplicate(&audience.path, audience.text()));
            }
            let seconds = token.get("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                causes.push(seconds.invalid("may not specify a duration less than 10 minutes"));
            }
        }
    },
    validate_update: |_, new, old, causes| {
        for field in ["attachRequired", "volumeLifecycleModes"] {
            Field::root(new).dig(&["spec", field]).immutable(&Field::root(old).dig(&["spec", field]), causes);
        }
    },
    ..BASE
});

/// The name of a driver: at most 63 characters, of a subdomain's in either case.
pub(super) fn validate_name(driver: &Field, causes: &mut Vec<Cause>) {
    if driver.need_text(causes) {
        if driver.text().len() > 63 {
            causes.push(Cause::too_long(&driver.path, 63));
        }
        let lower = driver.text().to_lowercase();
        causes.extend(crate::names::subdomain(&lower).iter().map(|wrong| driver.invalid(wrong)));
    }
}
