//! RuntimeClass: what running a pod in its class costs, and on which nodes that can be done.

use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::api::Batch;

/// Gives a new pod the overhead, node selector and tolerations of its class, and refuses one that contradicts them.
pub(super) fn complete(batch: &mut Batch<'_>, pod: &mut Value) -> Result<(), Status> {
    let class_name = object::text(pod, &["spec", "runtimeClassName"]).to_owned();
    let refuse = |pod: &Value, why: &str| Err(Status::forbidden(&kinds::POD, object::name(pod), why));
    let given = object::at(pod, &["spec", "overhead"]).filter(|overhead| !overhead.is_null()).cloned();
    if class_name.is_empty() {
        return match given {
            Some(_) => {
                refuse(pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
            }
            None => Ok(()),
        };
    }
    let Some(class) = batch.get(&kinds::RUNTIME_CLASS, "", &class_name)? else {
        return refuse(pod, &format!("pod rejected: RuntimeClass {class_name:?} not found"));
    };
    let overhead = object::at(&class, &["overhead", "podFixed"]).cloned();
    match (&given, &overhead) {
        (Some(given), Some(overhead)) if given != overhead => {
            return refuse(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead");
        }
        (Some(_), None) => {
            return refuse(pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead");
        }
        _ => {}
    }
    if let Some(overhead) = overhead {
        object::ensure(pod, &["spec"]).insert("overhead".to_owned(), overhead);
    }
    for (label, value) in
        object::at(&class, &["scheduling", "nodeSelector"]).and_then(Value::as_object).into_iter().flatten()
    {
        let own = object::at(pod, &["spec", "nodeSelector", label]);
        if own.is_some_and(|own| own != value) {
            let selector = object::at(pod, &["spec", "nodeSelector"]).cloned().unwrap_or_default();
            let why = format!(
                "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{label}] = {value}; \
                    pod.spec.nodeSelector = {selector}"
            );
            return refuse(pod, &why);
        }
        object::ensure(pod, &["spec", "nodeSelector"]).insert(label.clone(), value.clone());
    }
    let tolerations =
        object::at(&class, &["scheduling", "tolerations"]).and_then(Value::as_array).into_iter().flatten();
    for toleration in tolerations {
        let all = object::ensure(pod, &["spec"]).entry("tolerations").or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut().filter(|all| !all.contains(toleration)) {
            all.push(toleration.clone());
        }
    }
    Ok(())
}
