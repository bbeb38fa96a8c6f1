//! The order of a merged list.

use std::collections::HashMap;

use serde_json::Value;

/// Where each item stands, by what identifies it: the first of each.
pub(super) fn positions(items: &[Value], identity: impl Fn(&Value) -> Option<String>) -> HashMap<String, usize> {
    let mut index = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Some(identity) = identity(item) {
            index.entry(identity).or_insert(at);
        }
    }
    index
}

/// Orders a merged list: the items that `ordered` names in that order; the others keep their place among
/// the `stored` ones as far as both can be had, and come after where there is no relation.
pub(super) fn arrange(
    merged: Vec<Value>,
    ordered: &HashMap<String, usize>,
    stored: &HashMap<String, usize>,
    identity: impl Fn(&Value) -> Option<String>,
) -> Vec<Value> {
    let position = |item: &Value, positions: &HashMap<String, usize>| {
        identity(item).and_then(|identity| positions.get(&identity).copied())
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(item, ordered).is_some());
    named.sort_by_cached_key(|item| position(item, ordered));
    others.sort_by_cached_key(|item| position(item, stored));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(left), Some(right)) = (others.peek(), named.peek()) {
        let before = match (position(left, stored), position(right, stored)) {
            (Some(left), Some(right)) => left < right,
            _ => false,
        };
        result.extend(if before { others.next() } else { named.next() });
    }
    result.extend(others);
    result.extend(named);
    result
}
