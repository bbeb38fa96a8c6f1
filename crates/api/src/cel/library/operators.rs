//! Operators: arithmetic, comparison, membership, indices.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use super::{Answer, Context};
use crate::cel::types::ListKind;
use crate::cel::value::{List, Map, Value};
use crate::cel::{Budget, Error};

/// Evaluates an operator.
pub fn call<'a>(function: &str, args: &[Value<'a>], context: &mut Context<'_>) -> Answer<'a> {
    Some(match (function, args) {
        ("_==_", [a, b]) => equals(a, b, context.budget).map(Value::Bool),
        ("_!=_", [a, b]) => equals(a, b, context.budget).map(|equal| Value::Bool(!equal)),
        ("_<_", [a, b]) => compared(a, b, context.budget, Ordering::is_lt),
        ("_<=_", [a, b]) => compared(a, b, context.budget, Ordering::is_le),
        ("_>_", [a, b]) => compared(a, b, context.budget, Ordering::is_gt),
        ("_>=_", [a, b]) => compared(a, b, context.budget, Ordering::is_ge),
        ("!_", [Value::Bool(flag)]) => Ok(Value::Bool(!flag)),
        ("-_", [Value::Int(number)]) => number.checked_neg().map(Value::Int).ok_or_else(overflow),
        ("-_", [Value::Double(number)]) => Ok(Value::Double(-number)),
        ("@in", [item, of]) => contains(item, of, context.budget).map(Value::Bool),
        ("_[_]", [of, index]) => at(of, index, false),
        ("_[?_]", [of, index]) => at(of, index, true),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(function, a, b, context.budget),
        _ => return None,
    })
}

fn overflow() -> Error {
    Error::failed("integer overflow")
}

fn arithmetic<'a>(function: &str, a: &Value<'a>, b: &Value<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let result = match function {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" if *b == 0 => return Err(Error::failed("division by zero")),
                "_/_" => a.checked_div(*b),
                _ if *b == 0 => return Err(Error::failed("modulus by zero")),
                _ => a.checked_rem(*b),
            };
            result.map(Value::Int).ok_or_else(overflow)
        }
        (Value::Uint(a), Value::Uint(b)) => {
            let result = match function {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" if *b == 0 => return Err(Error::failed("division by zero")),
                "_/_" => a.checked_div(*b),
                _ if *b == 0 => return Err(Error::failed("modulus by zero")),
                _ => a.checked_rem(*b),
            };
            result.map(Value::Uint).ok_or_else(|| Error::failed("unsigned integer overflow"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match function {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return Err(Error::Overload),
        })),
        _ if function == "_+_" => sum(a, b, budget),
        _ if function == "_-_" => difference(a, b),
        _ => Err(Error::Overload),
    }
}

/// The sum of what are no numbers.
pub fn sum<'a>(a: &Value<'a>, b: &Value<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            budget.traverse((a.len() + b.len()) as u64)?;
            Ok(Value::text(format!("{}{}", &**a, &**b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.traverse((a.len() + b.len()) as u64)?;
            Ok(Value::Bytes(a.iter().chain(&**b).copied().collect()))
        }
        (Value::List(a), Value::List(b)) => joined(a, b, budget),
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            at.checked_add(*by).map(Value::Timestamp).map_err(|_| Error::failed("timestamp overflow"))
        }
        (Value::Duration(a), Value::Duration(b)) => within(a.checked_add(*b)),
        _ => Err(Error::Overload),
    }
}

fn difference<'a>(a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>, Error> {
    match (a, b) {
        (Value::Timestamp(at), Value::Duration(by)) => {
            at.checked_sub(*by).map(Value::Timestamp).map_err(|_| Error::failed("timestamp overflow"))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => within(Some(a.duration_since(*b))),
        (Value::Duration(a), Value::Duration(b)) => within(a.checked_sub(*b)),
        _ => Err(Error::Overload),
    }
}

/// A duration of at most as many nanoseconds as fit into 64 bits.
fn within<'a>(duration: Option<SignedDuration>) -> Result<Value<'a>, Error> {
    let fits = duration.filter(|duration| i64::try_from(duration.as_nanos()).is_ok());
    fits.map(Value::Duration).ok_or_else(|| Error::failed("duration overflow"))
}

/// Two lists as one: those of kind set are united, keyed ones overwritten by key.
fn joined<'a>(a: &List<'a>, b: &List<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    budget.traverse((a.count() + b.count()) as u64)?;
    let mut all: Vec<Value<'a>> = a.iter().collect();
    let kind = a.kind().clone();
    match (&kind, b.kind()) {
        (ListKind::Atomic, _) => all.extend(b.iter()),
        (ListKind::Set, _) => {
            for item in b.iter() {
                if !has(&all, &item, budget)? {
                    all.push(item);
                }
            }
        }
        (ListKind::Map(keys), _) => {
            let mut known: BTreeMap<String, usize> =
                all.iter().enumerate().map(|(index, item)| (key_of(item, keys), index)).collect();
            for item in b.iter() {
                budget.spend(1)?;
                let key = key_of(&item, keys);
                match known.get(&key).and_then(|index| all.get_mut(*index)) {
                    Some(slot) => *slot = item,
                    None => {
                        known.insert(key, all.len());
                        all.push(item);
                    }
                }
            }
        }
    }
    Ok(Value::List(List::Made(Arc::new(all), kind)))
}

fn key_of(item: &Value<'_>, keys: &[Box<str>]) -> String {
    let Value::Map(map) = item else { return item.shown() };
    let parts = keys.iter().map(|key| map.select(key).map_or(Json::Null, |value| value.to_json()));
    Json::Array(parts.collect()).to_string()
}

/// Whether one of the items is this one.
pub fn has(all: &[Value<'_>], item: &Value<'_>, budget: &mut Budget) -> Result<bool, Error> {
    for known in all {
        if equals(known, item, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains(item: &Value<'_>, of: &Value<'_>, budget: &mut Budget) -> Result<bool, Error> {
    match of {
        Value::List(list) => {
            for known in list.iter() {
                if equals(&known, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(map) => Ok(item.key().is_some_and(|key| map.get(&key).is_some())),
        _ => Err(Error::Overload),
    }
}

fn at<'a>(of: &Value<'a>, index: &Value<'a>, optional: bool) -> Result<Value<'a>, Error> {
    let (found, why) = match of {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => return at(inner, index, true),
        Value::List(list) => {
            let Some(crate::cel::value::Key::Int(number)) = index.key() else { return Err(Error::Overload) };
            let found = usize::try_from(number).ok().and_then(|at| list.get(at));
            (found, format!("index out of bounds: {number}"))
        }
        Value::Map(map) => {
            let Some(key) = index.key() else { return Err(Error::Overload) };
            (map.get(&key), format!("no such key: {}", index.shown()))
        }
        _ => return Err(Error::Overload),
    };
    match found {
        found if optional => Ok(Value::optional(found)),
        Some(found) => Ok(found),
        None => Err(Error::Failed(why)),
    }
}

fn compared<'a>(
    a: &Value<'a>,
    b: &Value<'a>,
    budget: &mut Budget,
    holds: fn(Ordering) -> bool,
) -> Result<Value<'a>, Error> {
    budget.traverse(a.size().min(b.size()))?;
    // What is no number is in no order.
    let is_nan = |value: &Value<'_>| matches!(value, Value::Double(number) if number.is_nan());
    if is_nan(a) || is_nan(b) {
        return Ok(Value::Bool(false));
    }
    order(a, b).map(|order| Value::Bool(holds(order))).ok_or(Error::Overload)
}

/// The order of two values; none where they have none.
pub fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(Timestamp::cmp(a, b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Whether two values are equal. Values of different types are not, numbers are by what they amount to.
pub fn equals(a: &Value<'_>, b: &Value<'_>, budget: &mut Budget) -> Result<bool, Error> {
    match (a, b) {
        (Value::List(a), Value::List(b)) => lists_equal(a, b, budget),
        (Value::Map(a), Value::Map(b)) => maps_equal(a, b, budget),
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => equals(a, b, budget),
        (Value::Optional(a), Value::Optional(b)) => Ok(a.is_none() && b.is_none()),
        (Value::Null, Value::Null) => Ok(true),
        (Value::Type(a), Value::Type(b)) => Ok(a == b),
        (Value::Quantity(a), Value::Quantity(b)) => Ok(a == b),
        (Value::Semver(a), Value::Semver(b)) => Ok(a.order(b).is_eq()),
        (Value::Url(a), Value::Url(b)) => Ok(a.text == b.text),
        (Value::Ip(a), Value::Ip(b)) => Ok(a == b),
        (Value::Cidr(a), Value::Cidr(b)) => Ok(a == b),
        (Value::Format(a), Value::Format(b)) => Ok(a == b),
        _ => {
            budget.traverse(a.size().min(b.size()))?;
            Ok(order(a, b).is_some_and(Ordering::is_eq))
        }
    }
}

fn lists_equal(a: &List<'_>, b: &List<'_>, budget: &mut Budget) -> Result<bool, Error> {
    if a.count() != b.count() {
        return Ok(false);
    }
    let kind = if *a.kind() == ListKind::Atomic { b.kind() } else { a.kind() };
    match kind {
        ListKind::Atomic => {
            for (a, b) in a.iter().zip(b.iter()) {
                budget.traverse(1)?;
                if !equals(&a, &b, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Set => {
            budget.spend(a.count() as u64)?;
            let texts = |list: &List<'_>| list.iter().map(|item| item.to_json().to_string()).collect::<BTreeSet<_>>();
            Ok(texts(a) == texts(b))
        }
        ListKind::Map(keys) => {
            budget.spend(a.count() as u64)?;
            let other: BTreeMap<String, Value<'_>> = b.iter().map(|item| (key_of(&item, keys), item)).collect();
            for item in a.iter() {
                let Some(found) = other.get(&key_of(&item, keys)) else { return Ok(false) };
                if !equals(&item, found, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

fn maps_equal(a: &Map<'_>, b: &Map<'_>, budget: &mut Budget) -> Result<bool, Error> {
    if a.count() != b.count() {
        return Ok(false);
    }
    for (key, value) in a.entries() {
        budget.spend(1)?;
        let Some(other) = b.get(&key) else { return Ok(false) };
        if !equals(&value, &other, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}
