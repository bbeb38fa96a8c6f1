//! PodDisruptionBudget: how many of some pods may be away because somebody wants them to.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, count, number, text_column};
use super::field::Field;
use super::{BASE, Kind, Row, Subresource, workload};
use crate::int_or_string;
use crate::object::{at, name};
use crate::status::Cause;

/// The row of PodDisruptionBudget.
pub static POD_DISRUPTION_BUDGET: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("policy"),
    kind: Borrowed("PodDisruptionBudget"),
    plural: Borrowed("poddisruptionbudgets"),
    singular: Borrowed("poddisruptionbudget"),
    short_names: Borrowed(&[Borrowed("pdb")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.policy.v1.PodDisruptionBudget"),
    columns: Borrowed(&[
        NAME,
        text_column("Min Available", "Pods that must stay."),
        text_column("Max Unavailable", "Pods that may be away."),
        number("Allowed Disruptions", "Pods that may be evicted now."),
        AGE,
    ]),
    row: |_, budget, now| {
        let share = |field| match at(budget, &["spec", field]) {
            Some(Value::String(text)) => json!(text),
            Some(Value::Number(number)) => json!(number.to_string()),
            _ => json!("N/A"),
        };
        vec![
            json!(name(budget)),
            share("minAvailable"),
            share("maxUnavailable"),
            json!(count(budget, &["status", "disruptionsAllowed"])),
            cells::age(budget, now),
        ]
    },
    prepare_create: |_, budget| {
        let fields = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        let zeros: serde_json::Map<_, _> = fields.iter().map(|field| ((*field).to_owned(), json!(0))).collect();
        workload::prepare_create(budget, zeros.into());
    },
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, budget, causes| validate(budget, causes),
    ..BASE
});

fn validate(budget: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(budget).get("spec");
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if least.is_set() && most.is_set() {
        causes.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    for share in [&least, &most] {
        workload::validate_share(share, causes);
        if int_or_string::percent(share.text()).is_some_and(|percent| percent > 100) {
            causes.push(share.invalid("must not be greater than 100%"));
        }
    }
    spec.get("unhealthyPodEvictionPolicy").one_of(causes, &["AlwaysAllow", "IfHealthyBudget"]);
    if spec.get("selector").is_set() {
        crate::metadata::validate_label_selector(&spec.get("selector"), causes);
    }
}
