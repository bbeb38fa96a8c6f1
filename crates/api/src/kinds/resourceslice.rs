//! ResourceSlice: devices that a driver has. Stored for charts and tools.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, each, made};
use super::{BASE, Kind, Row, device_rules, lifecycle};
use crate::names;
use crate::object::{ensure, name, text};
use crate::status::Cause;

/// Most devices of a slice.
const MAX_DEVICES: usize = 128;
/// Longest name of a pool, in bytes.
const MAX_POOL: usize = 253;
/// Most attributes and capacities of a device.
const MAX_ATTRIBUTES: usize = 32;

/// The row of ResourceSlice.
pub static RESOURCE_SLICE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("resource.k8s.io"),
    kind: Borrowed("ResourceSlice"),
    plural: Borrowed("resourceslices"),
    singular: Borrowed("resourceslice"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.resource.v1.ResourceSlice"),
    fields: |_, slice| {
        let of = |field| text(slice, &["spec", field]).to_owned();
        vec![("spec.nodeName", of("nodeName")), ("spec.driver", of("driver"))]
    },
    columns: Borrowed(&[
        NAME,
        text_column("Node", "The node that has the devices."),
        text_column("Driver", "The driver that has the devices."),
        text_column("Pool", "The pool that it is a part of."),
        AGE,
    ]),
    row: |_, slice, now| {
        let node = text(slice, &["spec", "nodeName"]);
        vec![
            json!(name(slice)),
            json!(if node.is_empty() { "<unset>" } else { node }),
            json!(text(slice, &["spec", "driver"])),
            json!(text(slice, &["spec", "pool", "name"])),
            cells::age(slice, now),
        ]
    },
    prepare_create: |_, slice| {
        let created = Field::root(slice).dig(&["metadata", "creationTimestamp"]).value.clone();
        let Some(spec) = made(slice, "spec") else { return };
        for taint in each(spec, "devices").flat_map(|device| each(device, "taints")) {
            if taint.get("timeAdded").is_none() {
                ensure(taint, &[]).insert("timeAdded".to_owned(), created.clone());
            }
        }
        lifecycle::begin_generation(slice);
    },
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["spec"]),
    validate: |_, slice, causes| validate(&Field::root(slice).get("spec"), causes),
    validate_update: |_, new, old, causes| {
        for path in [&["pool", "name"][..], &["driver"], &["nodeName"]] {
            let of = |slice| Field::root(slice).get("spec").dig(path);
            of(new).immutable(&of(old), causes);
        }
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});

fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    super::csidriver::validate_name(&spec.get("driver"), causes);
    let pool = spec.get("pool");
    let title = pool.get("name");
    if title.need_text(causes) {
        if title.text().len() > MAX_POOL {
            causes.push(Cause::too_long(&title.path, MAX_POOL));
        }
        for part in title.text().split('/') {
            causes.extend(names::subdomain(part).iter().map(|wrong| Cause::invalid(&title.path, part, wrong)));
        }
    }
    let (count, generation) = (pool.get("resourceSliceCount"), pool.get("generation"));
    if count.int().unwrap_or(0) <= 0 {
        causes.push(Cause::invalid(&count.path, count.int().unwrap_or(0), "must be greater than zero"));
    }
    if generation.int().is_some_and(|n| n < 0) {
        causes.push(generation.invalid("must be greater than or equal to zero"));
    }
    spec.get("nodeName").check(causes, names::subdomain);
    let set: Vec<&str> = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"]
        .into_iter()
        .filter(|field| match *field {
            "nodeName" => !spec.get(field).text().is_empty(),
            "nodeSelector" => spec.get(field).is_set(),
            _ => spec.get(field).is_true(),
        })
        .collect();
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.as_slice() {
        [] => causes.push(Cause::required(&spec.path, why)),
        [_] => {}
        several => {
            let quoted: Vec<String> = several.iter().map(|field| format!("`{field}`")).collect();
            let shown = format!("{{{}}}", quoted.join(", "));
            causes.push(Cause::invalid(&spec.path, shown, &format!("{why}, but multiple fields are set")));
        }
    }
    let devices = spec.get("devices");
    device_rules::validate_set(&devices, MAX_DEVICES, |device| device.get("name"), causes);
    devices.items().for_each(|device| validate_device(&device, causes));
}

fn validate_device(device: &Field, causes: &mut Vec<Cause>) {
    let title = device.get("name");
    causes.extend(names::label(title.text()).iter().map(|wrong| Cause::invalid(&title.path, title.text(), wrong)));
    let (attributes, capacity) = (device.get("attributes"), device.get("capacity"));
    if attributes.len() + capacity.len() > MAX_ATTRIBUTES {
        let count = attributes.len() + capacity.len();
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        causes.push(Cause::invalid(&device.path, count, &why));
    }
    for (key, value) in attributes.entries().chain(capacity.entries()) {
        let (domain, id) = key.split_once('/').map_or((None, key), |(domain, id)| (Some(domain), id));
        let wrong = domain.map(names::subdomain).unwrap_or_default();
        causes.extend(wrong.iter().map(|wrong| Cause::invalid(&value.path, domain.unwrap_or(""), wrong)));
        if !device_rules::is_identifier(id) {
            causes.push(Cause::invalid(
                &value.path,
                id,
                "a valid C identifier must start with alphabetic character or \
                '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or \
                'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')",
            ));
        }
    }
    for (_, attribute) in attributes.entries() {
        let set = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"]
            .iter()
            .filter(|form| attribute.get(form).is_set())
            .count();
        if set != 1 {
            causes.push(attribute.invalid("exactly one value must be specified"));
        }
    }
    device.get("taints").items().for_each(|taint| device_rules::validate_taint(&taint, causes));
}
