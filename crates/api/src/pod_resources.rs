//! What a pod asks for altogether, out of plain JSON: for quotas and limit ranges.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::field::Field;
use crate::quantity::Quantity;

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a JSON map; what is no quantity is left out.
pub fn amounts(list: &Field) -> Amounts {
    list.entries().filter_map(|(name, amount)| Some((name.to_owned(), Quantity::of(amount.value).ok()?))).collect()
}

/// The amounts that a container or a pod has of `requests` or `limits`.
fn own(holder: &Field, list: &str) -> Amounts {
    amounts(&holder.dig(&["resources", list]))
}

/// Adds amounts to others.
pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.get(name).copied().unwrap_or(Quantity::ZERO) + *amount;
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = total.get(name).copied().unwrap_or(Quantity::ZERO).max(*amount);
        total.insert(name.clone(), most);
    }
}

/// `requests` or `limits` of a pod: of its containers and sidecars together, or of the hungriest init container beside
/// the sidecars before it, whichever is more; what the pod says of itself in place of either.
pub fn of_pod(pod: &Value, list: &str) -> Amounts {
    let spec = Field::root(pod).get("spec");
    let mut total = of_containers(&spec, list);
    total.extend(own(&spec, list));
    total
}

/// As [`of_pod`], of the containers of a PodSpec alone.
pub fn of_containers(spec: &Field, list: &str) -> Amounts {
    let mut total = Amounts::new();
    spec.get("containers").items().for_each(|container| add(&mut total, &own(&container, list)));
    let (mut sidecars, mut start) = (Amounts::new(), Amounts::new());
    for container in spec.get("initContainers").items() {
        let asked = own(&container, list);
        if container.get("restartPolicy").text() == "Always" {
            add(&mut total, &asked);
            add(&mut sidecars, &asked);
            raise(&mut start, &sidecars);
        } else {
            let mut beside = sidecars.clone();
            add(&mut beside, &asked);
            raise(&mut start, &beside);
        }
    }
    raise(&mut total, &start);
    total
}

/// As [`of_pod`], with what running it costs: to all requests, and to the limits that there are.
pub fn with_overhead(pod: &Value, list: &str) -> Amounts {
    let mut total = of_pod(pod, list);
    let overhead = amounts(&Field::root(pod).dig(&["spec", "overhead"]));
    let counted: Amounts =
        overhead.into_iter().filter(|(name, _)| list == "requests" || total.contains_key(name)).collect();
    add(&mut total, &counted);
    total
}
