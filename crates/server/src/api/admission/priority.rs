//! Priority: what a pod's class makes of its importance, and that there is one default class.

use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::api::Batch;

/// Gives a new pod its priority: that of the class it names, else of the default class, else none. A client does not
/// choose the number.
pub(super) fn complete(batch: &mut Batch<'_>, pod: &mut Value) -> Result<(), Status> {
    let refuse = |pod: &Value, why: &str| Err(Status::forbidden(&kinds::POD, object::name(pod), why));
    let named = object::text(pod, &["spec", "priorityClassName"]).to_owned();
    let class = if named.is_empty() {
        default_class(batch)?
    } else {
        match batch.get(&kinds::PRIORITY_CLASS, "", &named)? {
            Some(class) => Some(class),
            None => return refuse(pod, &format!("no PriorityClass with name {named} was found")),
        }
    };
    let value = class.as_ref().and_then(|class| class.get("value")).and_then(Value::as_i64).unwrap_or(0);
    let policy = class.as_ref().map_or("", |class| object::text(class, &["preemptionPolicy"]));
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy }.to_owned();
    let given = object::at(pod, &["spec", "priority"]).and_then(Value::as_i64);
    if let Some(given) = given.filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                computed {value} from the given PriorityClass name"
        );
        return refuse(pod, &why);
    }
    let chosen = object::text(pod, &["spec", "preemptionPolicy"]);
    if !chosen.is_empty() && chosen != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({chosen}) must not be provided in pod spec; priority admission \
                controller computed {policy} from the given PriorityClass name"
        );
        return refuse(pod, &why);
    }
    let spec = object::ensure(pod, &["spec"]);
    if let Some(class) = class.as_ref().filter(|_| named.is_empty()) {
        spec.insert("priorityClassName".to_owned(), object::name(class).into());
    }
    spec.insert("priority".to_owned(), json!(value));
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}

fn is_default(class: &Value) -> bool {
    class.get("globalDefault").and_then(Value::as_bool) == Some(true)
}

/// Of several defaults the one with the lowest value, as upstream.
fn default_class(batch: &Batch<'_>) -> Result<Option<Value>, Status> {
    let classes = batch.all(&kinds::PRIORITY_CLASS)?;
    let value = |class: &Value| class.get("value").and_then(Value::as_i64).unwrap_or(0);
    Ok(classes.into_iter().filter(is_default).min_by_key(value))
}

/// There is one default class at most.
pub(super) fn check_class(batch: &Batch<'_>, class: &Value) -> Result<(), Status> {
    if !is_default(class) {
        return Ok(());
    }
    match default_class(batch)?.filter(|other| object::name(other) != object::name(class)) {
        None => Ok(()),
        Some(other) => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                object::name(&other)
            );
            Err(Status::forbidden(&kinds::PRIORITY_CLASS, object::name(class), &why))
        }
    }
}
