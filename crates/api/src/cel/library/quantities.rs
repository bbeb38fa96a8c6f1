//! Quantities.

use std::cmp::Ordering;

use super::Answer;
use crate::cel::Error;
use crate::cel::value::Value;
use crate::quantity::{Format, Quantity};

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    Some(Ok(match (function, args) {
        ("quantity", [Value::String(text)]) => {
            return Some(text.parse().map(Value::Quantity).map_err(|error| Error::failed(format!("{error}"))));
        }
        ("isQuantity", [Value::String(text)]) => Value::Bool(text.parse::<Quantity>().is_ok()),
        ("sign", [Value::Quantity(of)]) => Value::Int(sign(of.cmp(&Quantity::ZERO))),
        ("isInteger", [Value::Quantity(of)]) => Value::Bool(of.is_whole()),
        ("asInteger", [Value::Quantity(of)]) => {
            if !of.is_whole() {
                return Some(Err(Error::failed("cannot convert value to integer")));
            }
            Value::Int(of.units())
        }
        ("asApproximateFloat", [Value::Quantity(of)]) => Value::Double(of.approximate()),
        ("add", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(*a + *b),
        ("add", [Value::Quantity(a), Value::Int(b)]) => {
            Value::Quantity(*a + Quantity::from_units(*b, Format::DecimalSi))
        }
        ("sub", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(*a - *b),
        ("sub", [Value::Quantity(a), Value::Int(b)]) => {
            Value::Quantity(*a - Quantity::from_units(*b, Format::DecimalSi))
        }
        ("isLessThan", [Value::Quantity(a), Value::Quantity(b)]) => Value::Bool(a < b),
        ("isGreaterThan", [Value::Quantity(a), Value::Quantity(b)]) => Value::Bool(a > b),
        ("compareTo", [Value::Quantity(a), Value::Quantity(b)]) => Value::Int(sign(a.cmp(b))),
        _ => return None,
    }))
}

/// An order as -1, 0 or 1.
pub fn sign(order: Ordering) -> i64 {
    order as i64
}
