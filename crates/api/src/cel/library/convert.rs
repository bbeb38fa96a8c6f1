//! Conversions between types, sizes, optionals.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Answer, Context, time};
use crate::cel::Error;
use crate::cel::value::Value;
use crate::parameters::boolean;

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>], context: &mut Context<'_>) -> Answer<'a> {
    Some(match (function, args) {
        ("size", [value]) => match value {
            Value::String(text) => {
                if let Err(error) = context.budget.traverse(text.len() as u64) {
                    return Some(Err(error));
                }
                count(text.chars().count())
            }
            Value::Bytes(bytes) => count(bytes.len()),
            Value::List(list) => count(list.count()),
            Value::Map(map) => count(map.count()),
            _ => return None,
        },
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_name().into())),
        ("int", [value]) => int(value),
        ("uint", [value]) => uint(value),
        ("double", [value]) => double(value),
        ("bool", [Value::Bool(flag)]) => Ok(Value::Bool(*flag)),
        ("bool", [Value::String(text)]) => {
            boolean(text).map(Value::Bool).ok_or_else(|| Error::failed("type conversion error from 'string' to 'bool'"))
        }
        ("string", [Value::Bytes(bytes)]) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::text(text)),
            Err(_) => Err(Error::failed("invalid UTF-8 in bytes, cannot convert to string")),
        },
        ("string", [Value::String(text)]) => Ok(Value::String(text.clone())),
        ("string", [value]) => match value {
            Value::List(_) | Value::Map(_) | Value::Optional(_) | Value::Null | Value::Opaque(_) => return None,
            value => Ok(Value::text(value.shown())),
        },
        ("bytes", [Value::Bytes(bytes)]) => Ok(Value::Bytes(bytes.clone())),
        ("bytes", [Value::String(text)]) => Ok(Value::Bytes(text.as_bytes().into())),
        ("duration", [Value::Duration(duration)]) => Ok(Value::Duration(*duration)),
        ("duration", [Value::Int(nanos)]) => Ok(Value::Duration(jiff::SignedDuration::from_nanos(*nanos))),
        ("duration", [Value::String(text)]) => {
            let duration = time::duration(text).map(Value::Duration);
            duration.ok_or_else(|| Error::failed(format!("time: invalid duration {:?}", &**text)))
        }
        ("timestamp", [Value::Timestamp(at)]) => Ok(Value::Timestamp(*at)),
        ("timestamp", [Value::Int(seconds)]) => match jiff::Timestamp::from_second(*seconds) {
            Ok(at) => Ok(Value::Timestamp(at)),
            Err(_) => Err(Error::failed("timestamp overflow")),
        },
        ("timestamp", [Value::String(text)]) => {
            let at = time::timestamp(text).map(Value::Timestamp);
            at.ok_or_else(|| Error::failed(format!("parsing time {:?} failed", &**text)))
        }
        ("base64.encode", [Value::Bytes(bytes)]) => Ok(Value::text(STANDARD.encode(bytes))),
        ("base64.decode", [Value::String(text)]) => match STANDARD.decode(&**text) {
            Ok(bytes) => Ok(Value::Bytes(bytes.into())),
            Err(error) => Err(Error::failed(format!("illegal base64 data: {error}"))),
        },
        ("optional.of", [value]) => Ok(Value::optional(Some(value.clone()))),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(Value::optional(Some(value.clone()).filter(|value| !value.is_zero())))
        }
        ("hasValue", [Value::Optional(inner)]) => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(inner)]) => {
            inner.as_ref().map(|inner| (**inner).clone()).ok_or_else(|| Error::failed("optional.none() dereference"))
        }
        ("or", [Value::Optional(inner), other @ Value::Optional(_)]) => {
            Ok(if inner.is_some() { Value::Optional(inner.clone()) } else { other.clone() })
        }
        ("orValue", [Value::Optional(inner), other]) => {
            Ok(inner.as_ref().map_or_else(|| other.clone(), |inner| (**inner).clone()))
        }
        (name, args) if name.starts_with("math.") => return math(name, args),
        _ => return None,
    })
}

fn count<'a>(number: usize) -> Result<Value<'a>, Error> {
    i64::try_from(number).map(Value::Int).map_err(|_| Error::failed("integer overflow"))
}

/// Whole parts of this size and beyond do not fit into 64 bits.
const TOO_LARGE: f64 = 9_223_372_036_854_775_808.0;

fn int<'a>(value: &Value<'a>) -> Result<Value<'a>, Error> {
    let too_large = || Error::failed("integer overflow");
    match value {
        Value::Int(number) => Ok(Value::Int(*number)),
        Value::Uint(number) => i64::try_from(*number).map(Value::Int).map_err(|_| too_large()),
        Value::Double(number) if *number > -TOO_LARGE && *number < TOO_LARGE => Ok(Value::Int(*number as i64)),
        Value::Double(_) => Err(too_large()),
        Value::String(text) => {
            let number = text.parse().map(Value::Int);
            number.map_err(|_| Error::failed(format!("strconv.ParseInt: parsing {:?}: invalid syntax", &**text)))
        }
        Value::Timestamp(at) => Ok(Value::Int(at.as_second())),
        Value::Duration(duration) => i64::try_from(duration.as_nanos()).map(Value::Int).map_err(|_| too_large()),
        _ => Err(Error::Overload),
    }
}

fn uint<'a>(value: &Value<'a>) -> Result<Value<'a>, Error> {
    let too_large = || Error::failed("unsigned integer overflow");
    match value {
        Value::Uint(number) => Ok(Value::Uint(*number)),
        Value::Int(number) => u64::try_from(*number).map(Value::Uint).map_err(|_| too_large()),
        Value::Double(number) if *number >= 0.0 && *number < 2.0 * TOO_LARGE => Ok(Value::Uint(*number as u64)),
        Value::Double(_) => Err(too_large()),
        Value::String(text) => {
            let number = text.parse().map(Value::Uint);
            number.map_err(|_| Error::failed(format!("strconv.ParseUint: parsing {:?}: invalid syntax", &**text)))
        }
        _ => Err(Error::Overload),
    }
}

fn double<'a>(value: &Value<'a>) -> Result<Value<'a>, Error> {
    match value {
        Value::Double(number) => Ok(Value::Double(*number)),
        Value::Int(number) => Ok(Value::Double(*number as f64)),
        Value::Uint(number) => Ok(Value::Double(*number as f64)),
        Value::String(text) => {
            let number = text.parse().map(Value::Double);
            number.map_err(|_| Error::failed(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", &**text)))
        }
        _ => Err(Error::Overload),
    }
}

fn math<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    Some(match (function, args) {
        ("math.abs", [Value::Int(number)]) => {
            number.checked_abs().map(Value::Int).ok_or_else(|| Error::failed("integer overflow"))
        }
        ("math.abs", [Value::Double(number)]) => Ok(Value::Double(number.abs())),
        ("math.ceil", [Value::Double(number)]) => Ok(Value::Double(number.ceil())),
        ("math.floor", [Value::Double(number)]) => Ok(Value::Double(number.floor())),
        ("math.round", [Value::Double(number)]) => Ok(Value::Double(number.round())),
        ("math.trunc", [Value::Double(number)]) => Ok(Value::Double(number.trunc())),
        ("math.greatest" | "math.least", [Value::List(list)]) => {
            super::lists::extreme(list.iter(), function == "math.greatest", function)
        }
        ("math.greatest" | "math.least", args) => {
            super::lists::extreme(args.iter().cloned(), function == "math.greatest", function)
        }
        _ => return None,
    })
}
