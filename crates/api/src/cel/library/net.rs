//! Addresses, ranges of addresses, URLs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Answer;
use crate::cel::Error;
use crate::cel::value::{Key, Map, Value};

/// A range of addresses: one of them, and how many of its bits all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Cidr {
    /// Reads `address/bits`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address = address_of(address)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let is_plain =
            !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let bits = bits.parse().ok().filter(|bits| is_plain && *bits <= most)?;
        Some(Self { address, bits })
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Self { address, bits: self.bits }
    }

    fn contains(self, address: IpAddr) -> bool {
        let other = Self { address, bits: self.bits };
        self.address.is_ipv4() == address.is_ipv4() && self.masked().address == other.masked().address
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// An address as upstream's library takes it: no IPv4 within IPv6, no zone.
fn address_of(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

/// A URL with a scheme and a host, or a path from the root.
#[derive(Debug)]
pub struct Url {
    /// As it was written.
    pub text: Box<str>,
    scheme: Box<str>,
    host: Box<str>,
    path: Box<str>,
    query: Box<str>,
}

impl Url {
    /// Reads a URL.
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        let (rest, _) = text.split_once('#').unwrap_or((text, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            Some((head, _)) if !head.contains('/') => return None,
            _ => ("", rest),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash)),
            None => ("", rest),
        };
        // A request's URI: a scheme, or a path from the root.
        if scheme.is_empty() && !rest.starts_with('/') || !escapes_are_sound(path) {
            return None;
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let port = host_and_port(host)?.1;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        Some(Self {
            text: text.into(),
            scheme: scheme.into(),
            host: host.into(),
            path: path.into(),
            query: query.into(),
        })
    }

    fn queries<'a>(&self) -> Value<'a> {
        let mut all: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            all.entry(Key::String(unescaped(name).into())).or_default().push(Value::text(unescaped(value)));
        }
        Value::Map(Map::Made(Arc::new(all.into_iter().map(|(key, values)| (key, Value::list(values))).collect())))
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn escapes_are_sound(text: &str) -> bool {
    text.match_indices('%').all(|(at, _)| {
        text.as_bytes().get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// `host:port`, `[v6]:port`.
fn host_and_port(host: &str) -> Option<(&str, &str)> {
    if let Some(rest) = host.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        inside.parse::<Ipv6Addr>().ok()?;
        return match after.strip_prefix(':') {
            Some(port) => Some((inside, port)),
            None => Some((inside, "")).filter(|_| after.is_empty()),
        };
    }
    Some(host.split_once(':').unwrap_or((host, "")))
}

fn unescaped(text: &str) -> String {
    let text = text.replace('+', " ");
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                out.push(escaped);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    match args {
        [Value::String(text)] => of_text(function, text),
        [Value::Ip(address)] => of_address(function, *address).map(Ok),
        [Value::Url(url)] => of_url(function, url).map(Ok),
        [Value::Cidr(range)] => match function {
            "cidr" => Some(Ok(Value::Cidr(*range))),
            "ip" => Some(Ok(Value::Ip(range.address))),
            "masked" => Some(Ok(Value::Cidr(range.masked()))),
            "prefixLength" => Some(Ok(Value::Int(range.bits.into()))),
            _ => None,
        },
        [Value::Cidr(range), other] => in_range(function, *range, other),
        _ => None,
    }
}

fn of_text<'a>(function: &str, text: &str) -> Answer<'a> {
    let wrong = |what: &str| Error::failed(format!("{what} parse error during conversion from string: {text:?}"));
    Some(match function {
        "url" => Url::parse(text).map(|url| Value::Url(url.into())).ok_or_else(|| wrong("URL")),
        "isURL" => Ok(Value::Bool(Url::parse(text).is_some())),
        "ip" => address_of(text).map(Value::Ip).ok_or_else(|| wrong("IP Address")),
        "isIP" => Ok(Value::Bool(address_of(text).is_some())),
        "ip.isCanonical" => {
            address_of(text).map(|ip| Value::Bool(ip.to_string() == text)).ok_or_else(|| wrong("IP Address"))
        }
        "cidr" => Cidr::parse(text).map(Value::Cidr).ok_or_else(|| wrong("network address")),
        "isCIDR" => Ok(Value::Bool(Cidr::parse(text).is_some())),
        _ => return None,
    })
}

fn in_range<'a>(function: &str, range: Cidr, other: &Value<'a>) -> Answer<'a> {
    let wrong = || Error::failed("network address parse error during conversion from string");
    let contains = |other: Cidr| Value::Bool(range.bits <= other.bits && range.contains(other.address));
    Some(match (function, other) {
        ("containsIP", Value::Ip(address)) => Ok(Value::Bool(range.contains(*address))),
        ("containsIP", Value::String(text)) => {
            address_of(text).map(|address| Value::Bool(range.contains(address))).ok_or_else(wrong)
        }
        ("containsCIDR", Value::Cidr(other)) => Ok(contains(*other)),
        ("containsCIDR", Value::String(text)) => Cidr::parse(text).map(contains).ok_or_else(wrong),
        _ => return None,
    })
}

fn of_address<'a>(function: &str, address: IpAddr) -> Option<Value<'a>> {
    let link_local_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    Some(match function {
        "ip" => Value::Ip(address),
        "family" => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(address.is_unspecified()),
        "isLoopback" => Value::Bool(address.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => Value::Bool(
            !is_broadcast
                && !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && !link_local,
        ),
        _ => return None,
    })
}

fn of_url<'a>(function: &str, url: &Arc<Url>) -> Option<Value<'a>> {
    let (host, port) = host_and_port(&url.host).unwrap_or((&url.host, ""));
    Some(match function {
        "url" => Value::Url(url.clone()),
        "getScheme" => Value::text(&*url.scheme),
        "getHost" => Value::text(&*url.host),
        "getHostname" => Value::text(host),
        "getPort" => Value::text(port),
        "getEscapedPath" => Value::text(&*url.path),
        "getQuery" => url.queries(),
        _ => return None,
    })
}
