//! `format` of texts, as far as upstream checks it.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;

/// Whether a text is of a format. Everything fits a format that is not known.
pub fn fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            let most = if address.parse::<Ipv4Addr>().is_ok() { 32 } else { 128 };
            (most == 32 || address.parse::<Ipv6Addr>().is_ok()) && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        }),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(format, text),
        "duration" => is_duration(text),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "mac" => {
            let mut parts = text.split([':', '-']);
            parts.clone().count() == 6 && parts.all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
        }
        "hostname" => !text.is_empty() && text.len() <= 255 && crate::names::subdomain(&text.to_lowercase()).is_empty(),
        _ => true,
    }
}

fn is_uuid(format: &str, text: &str) -> bool {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.len() == 32 || [8, 13, 18, 23].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
    let version = hex.as_bytes().get(12).copied();
    let wanted = format.strip_prefix("uuid").and_then(|version| version.bytes().next());
    hex.len() == 32
        && matches!(text.len(), 32 | 36)
        && dashes
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (wanted.is_none() || wanted == version)
}

/// Go's durations: `1h30m`, `-1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].into_iter().find(|unit| rest.starts_with(unit))
        else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    true
}
