//! LimitRanger: what containers of a namespace are given, and between which bounds containers, pods and claims stay.

use mainstay_api::kinds::field::Field;
use mainstay_api::pod_resources::{self, Amounts};
use mainstay_api::quantity::Quantity;
use mainstay_api::{Kind, Status, kinds, object};
use serde_json::Value;

use crate::api::Batch;

/// Where it is noted what a pod was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The items of all LimitRanges of a namespace that are about a type.
fn items(batch: &Batch<'_>, namespace: &str, kind: &str) -> Result<Vec<Value>, Status> {
    let ranges = batch.all_in(&kinds::LIMIT_RANGE, namespace)?;
    let all = ranges.iter().flat_map(|range| Field::root(range).dig(&["spec", "limits"]).items().collect::<Vec<_>>());
    Ok(all.filter(|item| item.get("type").text() == kind).map(|item| item.value.clone()).collect())
}

/// Gives a new pod's containers the requests and limits that they do not name.
pub(super) fn complete(batch: &Batch<'_>, pod: &mut Value) -> Result<(), Status> {
    let namespace = object::namespace(pod).to_owned();
    let mut notes = Vec::new();
    for item in items(batch, &namespace, "Container")? {
        for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
            let spec = object::ensure(pod, &["spec"]);
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let name = object::text(container, &["name"]).to_owned();
                for (from, to, what) in [("defaultRequest", "requests", "request"), ("default", "limits", "limit")] {
                    let given = fill(container, to, item.get(from));
                    if !given.is_empty() {
                        notes.push(format!("{} {what} for {word} {name}", given.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        object::ensure(pod, &["metadata", "annotations"]).insert(ANNOTATION.to_owned(), note.into());
    }
    Ok(())
}

/// Adds what is missing; gives the names of that, sorted.
fn fill(container: &mut Value, list: &str, defaults: Option<&Value>) -> Vec<String> {
    let Some(defaults) = defaults.and_then(Value::as_object).filter(|map| !map.is_empty()) else { return Vec::new() };
    let own = object::ensure(container, &["resources", list]);
    let mut given = Vec::new();
    for (resource, amount) in defaults {
        if !own.contains_key(resource) {
            own.insert(resource.clone(), amount.clone());
            given.push(resource.clone());
        }
    }
    given.sort();
    given
}

/// Refuses a pod or claim outside the bounds. A pod that is there is not looked at again.
pub(super) fn check(batch: &Batch<'_>, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let namespace = object::namespace(new);
    let mut wrong = Vec::new();
    match (&*kind.group, &*kind.plural, old) {
        ("", "pods", None) => {
            let containers = || ["containers", "initContainers"].map(|list| Field::root(new).dig(&["spec", list]));
            for item in items(batch, namespace, "Container")? {
                for container in containers().iter().flat_map(Field::items) {
                    let of = |list: &str| pod_resources::amounts(&container.dig(&["resources", list]));
                    bounds("Container", &Field::root(&item), &of("requests"), &of("limits"), &mut wrong);
                }
            }
            for item in items(batch, namespace, "Pod")? {
                let of = |list| pod_resources::of_pod(new, list);
                bounds("Pod", &Field::root(&item), &of("requests"), &of("limits"), &mut wrong);
            }
        }
        ("", "persistentvolumeclaims", _) => {
            let requests = pod_resources::amounts(&Field::root(new).dig(&["spec", "resources", "requests"]));
            for item in items(batch, namespace, "PersistentVolumeClaim")? {
                claim_bounds(&Field::root(&item), &requests, &mut wrong);
            }
        }
        _ => {}
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(Status::forbidden(kind, object::name(new), one)),
        several => Err(Status::forbidden(kind, object::name(new), &format!("[{}]", several.join(", ")))),
    }
}

fn bounds(kind: &str, item: &Field, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    let (request, limit) = (|name: &str| requests.get(name).copied(), |name: &str| limits.get(name).copied());
    for (name, least) in pod_resources::amounts(&item.get("min")) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match request(&name) {
            None => wrong.push(format!("{head}.  No request is specified")),
            Some(asked) if asked < least => wrong.push(format!("{head}, but request is {asked}")),
            Some(_) => {}
        }
        if let Some(limit) = limit(&name).filter(|limit| *limit < least) {
            wrong.push(format!("{head}, but limit is {limit}"));
        }
    }
    for (name, most) in pod_resources::amounts(&item.get("max")) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match limit(&name) {
            None => wrong.push(format!("{head}.  No limit is specified")),
            Some(limit) if limit > most => wrong.push(format!("{head}, but limit is {limit}")),
            Some(_) => {}
        }
        if let Some(asked) = request(&name).filter(|asked| *asked > most) {
            wrong.push(format!("{head}, but request is {asked}"));
        }
    }
    for (name, most) in pod_resources::amounts(&item.get("maxLimitRequestRatio")) {
        wrong.extend(ratio(kind, &name, most, request(&name), limit(&name)));
    }
}

fn ratio(kind: &str, name: &str, most: Quantity, request: Option<Quantity>, limit: Option<Quantity>) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {most}");
    let Some(request) = request.filter(|amount| !amount.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|amount| !amount.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    // Amounts of memory are too large for thousandths of them to be told apart, and need not be.
    let is = if name == "cpu" {
        limit.milli() as f64 / request.milli() as f64
    } else {
        limit.units() as f64 / request.units() as f64
    };
    (is > most.milli() as f64 / 1000.0).then(|| format!("{head}, but provided ratio is {is:.6}"))
}

fn claim_bounds(item: &Field, requests: &Amounts, wrong: &mut Vec<String>) {
    for (list, word) in [("min", "minimum"), ("max", "maximum")] {
        for (name, bound) in pod_resources::amounts(&item.get(list)) {
            let head = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
            match requests.get(&name) {
                None => wrong.push(format!("{head}.  No request is specified")),
                Some(asked) if (list == "min" && *asked < bound) || (list == "max" && *asked > bound) => {
                    wrong.push(format!("{head}, but request is {asked}"));
                }
                Some(_) => {}
            }
        }
    }
}
