//! Lists and sets.

use std::cmp::Ordering;

use super::operators::{equals, order, sum};
use super::{Answer, Context};
use crate::cel::value::{List, Value};
use crate::cel::{Budget, Error};

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>], context: &mut Context<'_>) -> Answer<'a> {
    if let ("lists.range", [Value::Int(count)]) = (function, args) {
        return Some(range(*count, context.budget));
    }
    let [Value::List(list), rest @ ..] = args else { return None };
    if let Err(error) = context.budget.traverse(list.count() as u64) {
        return Some(Err(error));
    }
    Some(match (function, rest) {
        ("isSorted", []) => is_sorted(list),
        ("sum", []) => total(list, context.budget),
        ("min", []) => extreme(list.iter(), false, "min"),
        ("max", []) => extreme(list.iter(), true, "max"),
        ("indexOf", [item]) => index_of(list.iter().enumerate(), item, context.budget),
        ("lastIndexOf", [item]) => {
            let all: Vec<_> = list.iter().enumerate().collect();
            index_of(all.into_iter().rev(), item, context.budget)
        }
        ("reverse", []) => {
            let mut all: Vec<_> = list.iter().collect();
            all.reverse();
            Ok(Value::list(all))
        }
        ("sort", []) => sort_by_key(list.iter().map(|item| (item.clone(), item)).collect(), context.budget),
        ("distinct", []) => distinct(list, context.budget),
        ("slice", [Value::Int(start), Value::Int(end)]) => slice(list, *start, *end),
        ("flatten", []) => flatten(list, 1, context.budget),
        ("flatten", [Value::Int(depth)]) => flatten(list, *depth, context.budget),
        ("first", []) => Ok(Value::optional(list.get(0))),
        ("last", []) => Ok(Value::optional(list.count().checked_sub(1).and_then(|last| list.get(last)))),
        ("sets.contains", [Value::List(other)]) => contains_all(list, other, context.budget).map(Value::Bool),
        ("sets.equivalent", [Value::List(other)]) => contains_all(list, other, context.budget)
            .and_then(|all| Ok(Value::Bool(all && contains_all(other, list, context.budget)?))),
        ("sets.intersects", [Value::List(other)]) => intersects(list, other, context.budget),
        _ => return None,
    })
}

fn range<'a>(count: i64, budget: &mut Budget) -> Result<Value<'a>, Error> {
    budget.spend(count.unsigned_abs())?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn is_sorted<'a>(list: &List<'_>) -> Result<Value<'a>, Error> {
    let mut before: Option<Value<'_>> = None;
    for item in list.iter() {
        if let Some(before) = &before
            && order(before, &item).ok_or(Error::Overload)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn total<'a>(list: &List<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    let mut total: Option<Value<'a>> = None;
    for item in list.iter() {
        total = Some(match (total, item) {
            (None, item) => item,
            (Some(Value::Int(a)), Value::Int(b)) => {
                Value::Int(a.checked_add(b).ok_or_else(|| Error::failed("integer overflow"))?)
            }
            (Some(Value::Uint(a)), Value::Uint(b)) => {
                Value::Uint(a.checked_add(b).ok_or_else(|| Error::failed("unsigned integer overflow"))?)
            }
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(a @ Value::Duration(_)), b @ Value::Duration(_)) => sum(&a, &b, budget)?,
            _ => return Err(Error::Overload),
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

/// The greatest or the least.
pub fn extreme<'a>(items: impl Iterator<Item = Value<'a>>, greatest: bool, function: &str) -> Result<Value<'a>, Error> {
    let wanted = if greatest { Ordering::Greater } else { Ordering::Less };
    let mut best: Option<Value<'a>> = None;
    for item in items {
        let is_better = match &best {
            None => true,
            Some(best) => order(&item, best).ok_or(Error::Overload)? == wanted,
        };
        if is_better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Error::failed(format!("{function} called on empty list")))
}

fn index_of<'a>(
    items: impl Iterator<Item = (usize, Value<'a>)>,
    wanted: &Value<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>, Error> {
    for (index, item) in items {
        if equals(&item, wanted, budget)? {
            return Ok(Value::Int(i64::try_from(index).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

/// Values in the order of their keys, equal ones as they were.
pub fn sort_by_key<'a>(mut keyed: Vec<(Value<'a>, Value<'a>)>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    let count = keyed.len() as u64;
    budget.spend(count.saturating_mul(u64::from(count.max(2).ilog2())).div_ceil(10))?;
    if let Some((first, _)) = keyed.first()
        && let first = first.clone()
        && keyed.iter().any(|(key, _)| order(&first, key).is_none())
    {
        return Err(Error::failed("list elements must have the same, comparable type"));
    }
    keyed.sort_by(|(a, _), (b, _)| order(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(keyed.into_iter().map(|(_, item)| item).collect()))
}

fn distinct<'a>(list: &List<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    let mut all: Vec<Value<'a>> = Vec::new();
    for item in list.iter() {
        if !super::operators::has(&all, &item, budget)? {
            all.push(item);
        }
    }
    Ok(Value::list(all))
}

fn slice<'a>(list: &List<'a>, start: i64, end: i64) -> Result<Value<'a>, Error> {
    let count = list.count();
    let (from, to) = (usize::try_from(start), usize::try_from(end));
    match (from, to) {
        (Ok(from), Ok(to)) if from <= to && to <= count => {
            Ok(Value::list((from..to).filter_map(|index| list.get(index)).collect()))
        }
        (Ok(from), Ok(to)) if from > to => Err(Error::failed(format!(
            "cannot slice({start}, {end}), start index must be less than or equal to end index"
        ))),
        (Ok(_), Ok(_)) => Err(Error::failed(format!("cannot slice({start}, {end}), list is length {count}"))),
        _ => Err(Error::failed(format!("cannot slice({start}, {end}), negative indexes not supported"))),
    }
}

fn flatten<'a>(list: &List<'a>, depth: i64, budget: &mut Budget) -> Result<Value<'a>, Error> {
    if depth < 0 {
        return Err(Error::failed("level must be non-negative"));
    }
    let mut all: Vec<Value<'a>> = list.iter().collect();
    for _ in 0..depth {
        let mut next = Vec::with_capacity(all.len());
        let mut changed = false;
        for item in all {
            match item {
                Value::List(inner) => {
                    budget.traverse(inner.count() as u64 + 1)?;
                    next.extend(inner.iter());
                    changed = true;
                }
                item => next.push(item),
            }
        }
        all = next;
        if !changed {
            break;
        }
    }
    Ok(Value::list(all))
}

fn contains_all(list: &List<'_>, wanted: &List<'_>, budget: &mut Budget) -> Result<bool, Error> {
    let all: Vec<Value<'_>> = list.iter().collect();
    for item in wanted.iter() {
        budget.traverse(all.len() as u64)?;
        if !super::operators::has(&all, &item, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn intersects<'a>(list: &List<'_>, other: &List<'_>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    let all: Vec<Value<'_>> = list.iter().collect();
    for item in other.iter() {
        budget.traverse(all.len() as u64)?;
        if super::operators::has(&all, &item, budget)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
