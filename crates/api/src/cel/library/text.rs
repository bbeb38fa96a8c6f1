//! Texts and patterns. Positions count characters.

use std::fmt::Write as _;

use super::{Answer, Context};
use crate::cel::Error;
use crate::cel::value::{List, Value};

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>], context: &mut Context<'_>) -> Answer<'a> {
    if let ("join", [Value::List(list), rest @ ..]) = (function, args) {
        let separator = match rest {
            [] => "",
            [Value::String(separator)] => separator,
            _ => return None,
        };
        return Some(join(list, separator, context));
    }
    let [Value::String(text), rest @ ..] = args else { return None };
    if let Err(error) = context.budget.traverse(text.len() as u64) {
        return Some(Err(error));
    }
    let text: &str = text;
    Some(match (function, rest) {
        ("contains", [Value::String(part)]) => {
            let cost = (part.len() as u64).div_ceil(10).saturating_mul((text.len() as u64).div_ceil(10));
            context.budget.spend(cost).map(|()| Value::Bool(text.contains(&**part)))
        }
        ("startsWith", [Value::String(part)]) => Ok(Value::Bool(text.starts_with(&**part))),
        ("endsWith", [Value::String(part)]) => Ok(Value::Bool(text.ends_with(&**part))),
        ("matches", [Value::String(pattern)]) => {
            context.pattern(pattern, text.len()).map(|pattern| Value::Bool(pattern.is_match(text)))
        }
        ("find", [Value::String(pattern)]) => context
            .pattern(pattern, text.len())
            .map(|pattern| Value::text(pattern.find(text).map_or("", |found| found.as_str()))),
        ("findAll", [Value::String(pattern)]) => find_all(text, pattern, -1, context),
        ("findAll", [Value::String(pattern), Value::Int(most)]) => find_all(text, pattern, *most, context),
        ("charAt", [Value::Int(at)]) => char_at(text, *at),
        ("indexOf", [Value::String(part)]) => Ok(index_of(text, part, 0)),
        ("indexOf", [Value::String(part), Value::Int(from)]) => match bounded(text, *from) {
            Ok(from) => Ok(index_of(text, part, from)),
            Err(error) => Err(error),
        },
        ("lastIndexOf", [Value::String(part)]) => Ok(last_index_of(text, part, usize::MAX)),
        ("lastIndexOf", [Value::String(part), Value::Int(to)]) => match bounded(text, *to) {
            Ok(to) => Ok(last_index_of(text, part, to)),
            Err(error) => Err(error),
        },
        ("lowerAscii", []) => Ok(Value::text(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::text(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Value::text(text.trim())),
        ("reverse", []) => Ok(Value::text(text.chars().rev().collect::<String>())),
        ("replace", [Value::String(from), Value::String(to)]) => replace(text, from, to, -1, context),
        ("replace", [Value::String(from), Value::String(to), Value::Int(most)]) => {
            replace(text, from, to, *most, context)
        }
        ("split", [Value::String(by)]) => split(text, by, -1, context),
        ("split", [Value::String(by), Value::Int(most)]) => split(text, by, *most, context),
        ("substring", [Value::Int(from)]) => substring(text, *from, None),
        ("substring", [Value::Int(from), Value::Int(to)]) => substring(text, *from, Some(*to)),
        ("strings.quote", []) => Ok(Value::text(format!("{text:?}"))),
        ("jsonpatch.escapeKey", []) => Ok(Value::text(text.replace('~', "~0").replace('/', "~1"))),
        ("format", [Value::List(args)]) => format(text, args, context),
        _ => return None,
    })
}

fn join<'a>(list: &List<'a>, separator: &str, context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    let mut text = String::new();
    for (index, item) in list.iter().enumerate() {
        let item = item.as_str().ok_or(Error::Overload)?.to_owned();
        context.budget.traverse((item.len() + separator.len()) as u64 + 1)?;
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(&item);
    }
    Ok(Value::text(text))
}

fn find_all<'a>(text: &str, pattern: &str, most: i64, context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    context.budget.spend(text.len() as u64)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let pattern = context.pattern(pattern, text.len())?;
    Ok(Value::list(pattern.find_iter(text).take(most).map(|found| Value::text(found.as_str())).collect()))
}

fn out_of_range(at: i64) -> Error {
    Error::failed(format!("index out of range: {at}"))
}

/// A position within a text, its end among them.
fn bounded(text: &str, at: i64) -> Result<usize, Error> {
    let found = usize::try_from(at).ok().filter(|at| *at <= text.chars().count());
    found.ok_or_else(|| out_of_range(at))
}

/// Where a character begins, in bytes.
fn offset(text: &str, at: usize) -> usize {
    text.char_indices().nth(at).map_or(text.len(), |(offset, _)| offset)
}

fn char_at<'a>(text: &str, at: i64) -> Result<Value<'a>, Error> {
    let at = bounded(text, at)?;
    Ok(Value::text(text.chars().nth(at).map(String::from).unwrap_or_default()))
}

fn position<'a>(text: &str, bytes: Option<usize>) -> Value<'a> {
    let chars = bytes.and_then(|bytes| text.get(..bytes)).map(|before| before.chars().count());
    Value::Int(chars.and_then(|chars| i64::try_from(chars).ok()).unwrap_or(-1))
}

fn index_of<'a>(text: &str, part: &str, from: usize) -> Value<'a> {
    let start = offset(text, from);
    let found = text.get(start..).and_then(|rest| rest.find(part));
    position(text, found.map(|found| start + found))
}

fn last_index_of<'a>(text: &str, part: &str, to: usize) -> Value<'a> {
    let end = offset(text, to).saturating_add(part.len()).min(text.len());
    let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
    position(text, text.get(..end).and_then(|head| head.rfind(part)))
}

fn replace<'a>(text: &str, from: &str, to: &str, most: i64, context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    // How long it becomes is known before it is made.
    let count = text.matches(from).take(most).count() as u64;
    context.budget.traverse(count.saturating_mul(to.len() as u64))?;
    Ok(Value::text(text.replacen(from, to, most)))
}

fn split<'a>(text: &str, by: &str, most: i64, context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    context.budget.spend(text.len() as u64)?;
    let chars = || text.chars().map(|c| Value::text(c.to_string()));
    let parts: Vec<Value<'a>> = match usize::try_from(most) {
        Ok(0) => Vec::new(),
        Ok(most) if by.is_empty() => {
            let head = offset(text, most - 1);
            let rest = text.get(head..).filter(|rest| !rest.is_empty());
            chars().take(most - 1).chain(rest.map(Value::text)).collect()
        }
        Ok(most) => text.splitn(most, by).map(Value::text).collect(),
        Err(_) if by.is_empty() => chars().collect(),
        Err(_) => text.split(by).map(Value::text).collect(),
    };
    Ok(Value::list(parts))
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Result<Value<'a>, Error> {
    let start = bounded(text, from)?;
    let end = to.map_or(Ok(usize::MAX), |to| bounded(text, to))?;
    if end < start {
        return Err(Error::failed(format!("invalid substring range. start: {from}, end: {}", to.unwrap_or(-1))));
    }
    let part = text.get(offset(text, start)..offset(text, end)).unwrap_or("");
    Ok(Value::text(part))
}

/// `%s`, `%d`, `%f`, `%e`, `%b`, `%x`, `%X`, `%o`, `%%`.
fn format<'a>(text: &str, args: &List<'a>, context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    let (mut out, mut next) = (String::new(), 0);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().filter(|precision| *precision <= 1000);
        }
        let Some(verb) = chars.next() else { return Err(Error::failed("unexpected end of string")) };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let arg = args.get(next).ok_or_else(|| Error::failed(format!("index {next} out of range")))?;
        next += 1;
        let shown = clause(verb, precision, &arg)?;
        context.budget.traverse(shown.len() as u64 + 1)?;
        out.push_str(&shown);
    }
    Ok(Value::text(out))
}

fn clause(verb: char, precision: Option<usize>, arg: &Value<'_>) -> Result<String, Error> {
    let mut out = String::new();
    let whole = match arg {
        Value::Int(number) => Some(i128::from(*number)),
        Value::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    let sign = if whole.is_some_and(|number| number < 0) { "-" } else { "" };
    let plain = whole.map(i128::unsigned_abs);
    let wrote = match (verb, plain, arg) {
        ('s', _, Value::List(list)) => {
            let items: Vec<String> = list.iter().map(|item| item.shown()).collect();
            write!(out, "[{}]", items.join(", "))
        }
        ('s', _, arg) => write!(out, "{}", arg.shown()),
        ('d', Some(number), _) => write!(out, "{sign}{number}"),
        ('b', Some(number), _) => write!(out, "{sign}{number:b}"),
        ('b', _, Value::Bool(flag)) => write!(out, "{}", u8::from(*flag)),
        ('o', Some(number), _) => write!(out, "{sign}{number:o}"),
        ('x', Some(number), _) => write!(out, "{sign}{number:x}"),
        ('X', Some(number), _) => write!(out, "{sign}{number:X}"),
        ('x', _, Value::String(text)) => text.bytes().try_for_each(|byte| write!(out, "{byte:02x}")),
        ('X', _, Value::String(text)) => text.bytes().try_for_each(|byte| write!(out, "{byte:02X}")),
        ('x', _, Value::Bytes(bytes)) => bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")),
        ('X', _, Value::Bytes(bytes)) => bytes.iter().try_for_each(|byte| write!(out, "{byte:02X}")),
        ('f', Some(number), _) => write!(out, "{sign}{number}.{}", "0".repeat(precision.unwrap_or(6))),
        ('f', _, Value::Double(number)) => write!(out, "{number:.*}", precision.unwrap_or(6)),
        ('e', _, Value::Double(number)) => write!(out, "{}", scientific(*number, precision.unwrap_or(6))),
        ('d' | 'b' | 'o' | 'x' | 'X' | 'f' | 'e', ..) => {
            return Err(Error::failed(format!(
                "error during formatting: {verb} clause cannot take a {}",
                arg.type_name()
            )));
        }
        _ => {
            return Err(Error::failed(format!(
                "could not parse formatting clause: unrecognized formatting clause {:?}",
                verb.to_string()
            )));
        }
    };
    wrote.map(|()| out).map_err(|_| Error::Overload)
}

/// `1.500000e+03`, as C has it.
fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}
