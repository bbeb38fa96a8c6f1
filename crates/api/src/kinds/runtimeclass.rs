//! RuntimeClass: how a node runs the containers of a pod. Admission reads overhead and scheduling of it.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, each, inner};
use super::{BASE, Kind, Row};
use crate::object::{name, text};
use crate::quantity::Quantity;
use crate::status::Cause;
use crate::{metadata, names};

/// The row of RuntimeClass.
pub static RUNTIME_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("node.k8s.io"),
    kind: Borrowed("RuntimeClass"),
    plural: Borrowed("runtimeclasses"),
    singular: Borrowed("runtimeclass"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.node.v1.RuntimeClass"),
    columns: Borrowed(&[NAME, text_column("Handler", "How nodes call it."), AGE]),
    row: |_, class, now| vec![json!(name(class)), json!(text(class, &["handler"])), cells::age(class, now)],
    defaults: |_, class| {
        if let Some(scheduling) = inner(class, "scheduling") {
            each(scheduling, "tolerations").for_each(|toleration| default(toleration, "operator", "Equal"));
        }
    },
    validate: |_, class, causes| {
        let class = Field::root(class);
        let handler = class.get("handler");
        causes.extend(
            names::label(handler.text()).iter().map(|wrong| Cause::invalid(&handler.path, handler.text(), wrong)),
        );
        for (resource, amount) in class.dig(&["overhead", "podFixed"]).entries() {
            causes.extend(names::qualified(resource).iter().map(|wrong| amount.invalid(wrong)));
            match Quantity::of(amount.value) {
                Ok(quantity) if quantity.is_negative() => {
                    causes.push(amount.invalid("must be greater than or equal to 0"));
                }
                Ok(_) => {}
                Err(error) => causes.push(amount.invalid(&error.to_string())),
            }
        }
        metadata::validate_labels(&class.dig(&["scheduling", "nodeSelector"]), causes);
        validate_tolerations(&class.dig(&["scheduling", "tolerations"]), causes);
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("handler").immutable(&Field::root(old).get("handler"), causes);
    },
    ..BASE
});

fn validate_tolerations(tolerations: &Field, causes: &mut Vec<Cause>) {
    let all: Vec<Field> = tolerations.items().collect();
    for (index, toleration) in all.iter().enumerate() {
        if all.iter().take(index).any(|other| other.value == toleration.value) {
            causes.push(Cause::duplicate(&toleration.path, toleration.value.clone()));
        }
        let (key, operator) = (toleration.get("key"), toleration.get("operator"));
        key.check(causes, names::qualified);
        if key.text().is_empty() && operator.text() != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.push(operator.invalid(why));
        }
        if operator.text() == "Exists" && !toleration.get("value").text().is_empty() {
            causes.push(operator.invalid("value must be empty when `operator` is 'Exists'"));
        }
        operator.one_of(causes, &["Equal", "Exists", "Gt", "Lt"]);
        toleration.get("effect").one_of(causes, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}
