//! LimitRange: what containers, pods and claims of a namespace are given, and between which bounds they must stay.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::Value;

use super::cells::{CREATED_AT, NAME, name_and_time};
use super::field::{Field, default, each, inner, made};
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::text;
use crate::quantity::Quantity;
use crate::status::Cause;

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// The row of LimitRange.
pub static LIMIT_RANGE: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("LimitRange"),
    plural: Borrowed("limitranges"),
    singular: Borrowed("limitrange"),
    short_names: Borrowed(&[Borrowed("limits")]),
    type_name: Borrowed("io.k8s.api.core.v1.LimitRange"),
    columns: Borrowed(&[NAME, CREATED_AT]),
    row: |_, range, _| name_and_time(range),
    defaults: |_, range| {
        let Some(spec) = made(range, "spec") else { return };
        default(spec, "limits", Vec::<Value>::new());
        for item in each(spec, "limits").filter(|item| text(item, &["type"]) == "Container") {
            // A limit without a default is the most, a request the limit or else the least.
            for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
                copy_missing(item, from, to);
            }
        }
    },
    validate: |_, range, causes| {
        let mut kinds = BTreeSet::new();
        for item in Field::root(range).dig(&["spec", "limits"]).items() {
            let kind = item.get("type");
            causes.extend(names::qualified(kind.text()).iter().map(|wrong| kind.invalid(wrong)));
            if !kind.text().contains('/') && !matches!(kind.text(), "Pod" | "Container" | "PersistentVolumeClaim") {
                causes.push(kind.invalid("must be a standard limit type or fully qualified"));
            }
            if !kinds.insert(kind.text()) {
                causes.push(Cause::duplicate(&kind.path, kind.text()));
            }
            validate_item(&item, causes);
        }
    },
    ..BASE
});

fn copy_missing(item: &mut Value, from: &str, to: &str) {
    let Some(source) = inner(item, from).map(|map| map.clone()) else { return };
    let Some(target) = made(item, to) else { return };
    for (resource, amount) in Field::root(&source).entries() {
        default(target, resource, amount.value.clone());
    }
}

/// Whether a resource's name may stand in a limit of this type.
fn name_of(kind: &str, resource: &str) -> Vec<String> {
    let mut wrong = names::qualified(resource);
    let of_containers =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if resource.contains('/') {
        return wrong;
    }
    if matches!(kind, "Pod" | "Container") {
        if !of_containers {
            wrong.push("must be a standard resource for containers".to_owned());
        }
    } else if !of_containers && !matches!(resource, "storage" | "requests.storage") {
        wrong.push("must be a standard resource type or fully qualified".to_owned());
    }
    wrong
}

fn validate_item(item: &Field, causes: &mut Vec<Cause>) {
    let kind = item.get("type").text();
    let mut resources = BTreeSet::new();
    for list in LISTS.iter().map(|list| item.get(list)) {
        let is_default = list.path.ends_with("default") || list.path.ends_with("defaultRequest");
        if kind == "Pod" && is_default {
            if list.len() > 0 {
                causes.push(Cause::forbidden(&list.path, "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (resource, amount) in list.entries() {
            resources.insert(resource);
            causes.extend(name_of(kind, resource).iter().map(|why| Cause::invalid(&amount.path, resource, why)));
            if let Err(error) = Quantity::of(amount.value) {
                causes.push(amount.invalid(&error.to_string()));
            }
        }
    }
    let storage = |list: &str| item.get(list).get("storage").is_set();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        causes.push(Cause::required(item.get("limits").path, why));
    }
    resources.into_iter().for_each(|resource| validate_bounds(item, resource, causes));
}

/// How the amounts of one resource stand to each other.
fn validate_bounds(item: &Field, resource: &str, causes: &mut Vec<Cause>) {
    let amount = |list: &str| Quantity::of(item.get(list).get(resource).value).ok();
    let (min, max, ratio) = (amount("min"), amount("max"), amount("maxLimitRequestRatio"));
    let (limit, request) = (amount("default"), amount("defaultRequest"));
    let mut above = |more: Option<Quantity>, less: Option<Quantity>, list: &str, words: (&str, &str)| {
        if let (Some(more), Some(less)) = (more, less)
            && more > less
        {
            let why = format!("{} value {more} is greater than {} value {less}", words.0, words.1);
            causes.push(Cause::invalid(format!("{}.{list}[{resource}]", item.path), more.to_string(), &why));
        }
    };
    above(min, max, "min", ("min", "max"));
    above(min, request, "defaultRequest", ("min", "default request"));
    above(request, max, "defaultRequest", ("default request", "max"));
    above(request, limit, "defaultRequest", ("default request", "default limit"));
    above(min, limit, "default", ("min", "default"));
    above(limit, max, "default", ("default", "max"));
    if let Some(ratio) = ratio {
        let wrong = |why: &str| {
            Cause::invalid(format!("{}.maxLimitRequestRatio[{resource}]", item.path), ratio.to_string(), why)
        };
        if ratio.milli() < 1000 {
            causes.push(wrong(&format!("ratio {ratio} is less than 1")));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let most = max.milli() as f64 / min.milli() as f64;
            if ratio.milli() as f64 / 1000.0 > most {
                causes.push(wrong(&format!("ratio {ratio} is greater than max/min = {most:.6}")));
            }
        }
    }
    let overcommits = matches!(resource, "cpu" | "memory" | "ephemeral-storage" | "storage");
    if let (Some(limit), Some(request)) = (limit, request)
        && limit != request
        && !overcommits
    {
        let why = format!("default value {limit} must equal to defaultRequest value {request} in {resource}");
        let path = format!("{}.defaultRequest[{resource}]", item.path);
        causes.push(Cause::invalid(path, request.to_string(), &why));
    }
}
