//! Scale: how many replicas a workload is to have, as its subresource `scale` says it. It is no kind of its own.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, count, number};
use super::{BASE, Kind, Row};
use crate::object::name;

/// The row of what `…/scale` answers.
pub static SCALE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("autoscaling"),
    kind: Borrowed("Scale"),
    type_name: Borrowed("io.k8s.api.autoscaling.v1.Scale"),
    columns: Borrowed(&[
        NAME,
        number("Desired", "How many replicas are wanted."),
        number("Available", "How many replicas there are."),
        AGE,
    ]),
    row: |_, scale, now| {
        let replicas = |part| json!(count(scale, &[part, "replicas"]));
        vec![json!(name(scale)), replicas("spec"), replicas("status"), cells::age(scale, now)]
    },
    ..BASE
});
