//! Named formats of texts.

use super::Answer;
use crate::cel::Error;
use crate::cel::value::Value;
use crate::custom::format::fits;
use crate::kinds::NameRule;
use crate::names;

/// The formats, by the names that `format.named` knows.
const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "qualifiedName",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    let find = |name: &str| NAMES.into_iter().find(|known| *known == name).map(Value::Format);
    match (function, args) {
        ("format.named", [Value::String(name)]) => Some(Ok(Value::optional(find(name)))),
        ("validate", [Value::Format(name), Value::String(text)]) => {
            let faults = faults(name, text);
            let faults = (!faults.is_empty()).then(|| Value::list(faults.into_iter().map(Value::text).collect()));
            Some(Ok(Value::optional(faults)))
        }
        ("validate", [Value::Format(_), _]) => Some(Err(Error::Overload)),
        (name, []) => name.strip_prefix("format.").and_then(find).map(Ok),
        _ => None,
    }
}

fn faults(format: &str, text: &str) -> Vec<String> {
    let one = |ok: bool, why: &str| if ok { Vec::new() } else { vec![why.to_owned()] };
    match format {
        "dns1123Label" => names::label(text),
        "dns1123Subdomain" => names::subdomain(text),
        "dns1035Label" => names::label_1035(text),
        "dns1123LabelPrefix" => names::name(NameRule::Label, text, true),
        "dns1123SubdomainPrefix" => names::name(NameRule::Subdomain, text, true),
        "dns1035LabelPrefix" => names::name(NameRule::Label1035, text, true),
        "qualifiedName" => names::qualified(text),
        "labelValue" => names::label_value(text),
        "uri" => one(super::net::Url::parse(text).is_some(), "invalid URI"),
        "uuid" => one(fits("uuid", text), "does not match the UUID format"),
        "byte" => one(fits("byte", text), "invalid base64"),
        "date" => one(fits("date", text), "invalid date"),
        _ => one(fits("date-time", text), "invalid datetime"),
    }
}
