//! `format` of texts, as far as upstream checks it.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;

/// Units of durations beside Go's, each with what else begins like a longer word for it: `1d`, `2 weeks`.
const UNITS: [(&[&str], &str); 8] = [
    (&["ns"], "nano"),
    (&["us", "µs"], "micro"),
    (&["ms"], "milli"),
    (&["s"], "sec"),
    (&["m"], "min"),
    (&["h", "hr"], "hour"),
    (&["d"], "day"),
    (&["w", "wk"], "week"),
];

/// Whether a text is of a format, whose name may have dashes or not. Everything fits a format that is not known, nor
/// are numbers of books, cards and people looked at.
pub fn fits(format: &str, text: &str) -> bool {
    match &*format.replace('-', "") {
        "datetime" => is_datetime(text),
        "date" => is_date(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            let most = if address.parse::<Ipv4Addr>().is_ok() { 32 } else { 128 };
            (most == 32 || address.parse::<Ipv6Addr>().is_ok()) && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        }),
        format @ ("uuid" | "uuid3" | "uuid4" | "uuid5") => is_uuid(format, text),
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "hexcolor" => {
            matches!(text.strip_prefix('#').unwrap_or(text), hex if matches!(hex.len(), 3 | 6) && is_hex(hex))
        }
        "duration" => is_duration(text) || is_spelled_duration(text),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "uri" => is_uri(text),
        "mac" => is_mac(text),
        "hostname" => !text.is_empty() && text.len() <= 255 && crate::names::subdomain(&text.to_lowercase()).is_empty(),
        _ => true,
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `2006-01-02`.
fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

/// RFC 3339: date and time with seconds, and `Z` or an offset.
fn is_datetime(text: &str) -> bool {
    let Some((date, time)) = text.split_once(['T', 't']) else { return false };
    let Some((clock, rest)) = time.split_at_checked(8) else { return false };
    let below = |part: &str, limit: u8| {
        part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()) && part.parse::<u8>().is_ok_and(|n| n < limit)
    };
    let is_clock = match clock.split(':').collect::<Vec<_>>()[..] {
        [hour, minute, second] => below(hour, 24) && below(minute, 60) && below(second, 60),
        _ => false,
    };
    let fraction = rest.strip_prefix('.').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = match fraction {
        Some(zone) if zone.len() + 1 == rest.len() => return false,
        Some(zone) => zone,
        None => rest,
    };
    let is_zone = matches!(zone, "Z" | "z")
        || zone
            .strip_prefix(['+', '-'])
            .and_then(|offset| offset.split_once(':'))
            .is_some_and(|(hours, minutes)| below(hours, 24) && below(minutes, 60));
    is_date(date) && is_clock && is_zone
}

/// With its dashes or without some; a version says what stands where.
fn is_uuid(format: &str, text: &str) -> bool {
    let mut rest = text;
    for (index, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some((part, after)) = rest.split_at_checked(length) else { return false };
        if !is_hex(part) {
            return false;
        }
        rest = after;
    }
    let digit = |at: usize| text.bytes().filter(|byte| *byte != b'-').nth(at);
    let version = format.as_bytes().get(4).copied();
    let is_variant = || matches!(digit(16), Some(b'8' | b'9' | b'a' | b'b' | b'A' | b'B'));
    rest.is_empty() && version.is_none_or(|version| digit(12) == Some(version) && (version == b'3' || is_variant()))
}

/// 6, 8 or 20 bytes: `00:00:5e:00:53:01`, with `-`, or by pairs with dots.
fn is_mac(text: &str) -> bool {
    let is_of = |separator: char, digits: usize, counts: [usize; 3]| {
        let mut parts = text.split(separator);
        counts.contains(&parts.clone().count()) && parts.all(|part| part.len() == digits && is_hex(part))
    };
    is_of(':', 2, [6, 8, 20]) || is_of('-', 2, [6, 8, 20]) || is_of('.', 4, [3, 4, 10])
}

/// What a request may be for: a path, or whatever has a scheme.
fn is_uri(text: &str) -> bool {
    let mut escapes = text.split('%').skip(1);
    if text.chars().any(char::is_control)
        || !escapes.all(|after| after.get(..2).is_some_and(is_hex))
        || text.starts_with(':')
    {
        return false;
    }
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    let Some((scheme, rest)) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return text == "*" || text.starts_with('/');
    };
    let host = rest.strip_prefix("//").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or(""));
    !scheme.is_empty() && host.is_none_or(|host| !host.contains([' ', '"', '<', '>']))
}

/// Go's durations: `1h30m`, `-1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
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

/// Whole numbers, each with a word, at least one of which is a unit: `1d`, `2 weeks 3 days`.
fn is_spelled_duration(text: &str) -> bool {
    let mut rest = text.trim_start();
    let mut is_known = false;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let after = after.trim_start();
        let (word, next) =
            after.split_at(after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len()));
        if number.parse::<i64>().is_err() || word.is_empty() {
            return false;
        }
        let word = word.to_lowercase();
        is_known |= UNITS.iter().any(|(short, long)| short.contains(&&*word) || word.starts_with(long));
        rest = next.trim_start();
    }
    is_known
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    #[expect(clippy::too_many_lines, reason = "a list of cases")]
    fn texts_fit_their_formats_as_upstream_checks_them() {
        for (format, good, bad) in [
            (
                "date-time",
                &[
                    "2026-11-22T15:04:05Z",
                    "2026-11-22t15:04:05z",
                    "2026-11-22T15:04:05.123+01:00",
                    "2026-02-28T00:00:00-00:30",
                ][..],
                &[
                    "",
                    "2026-11-22",
                    "2026-11-22T15:04Z",
                    "2026-11-22 15:04:05Z",
                    "2026-11-22T15:04:05",
                    "2026-02-30T15:04:05Z",
                    "2026-11-22T24:04:05Z",
                    "2026-11-22T15:60:05Z",
                    "2026-11-22T15:04:60Z",
                    "2026-11-22T15:04:05.Z",
                    "2026-11-22T15:04:05+0100",
                    "2026-11-22T15:04:05+24:00",
                    "2026-11-22T15-04-05Z",
                    "2026-11-22T15:04:05+01:60",
                    "2026-11-22T+1:04:05Z",
                    "2026-11-22T1:04:005Z",
                    "2026-11-22T15:04:05Z[UTC]",
                ][..],
            ),
            ("datetime", &["2026-11-22T15:04:05Z"], &["now"]),
            ("date", &["2026-11-22"], &["", "2026-11-31", "20261122", "2026-1-2"]),
            ("byte", &["aGVsbG8="], &["aGVsbG8", "a?=="]),
            ("ipv4", &["10.0.0.1"], &["", "10.0.0", "::1", "10.0.0.256"]),
            ("ipv6", &["::1", "fe80::1"], &["", "10.0.0.1", "::g"]),
            (
                "cidr",
                &["10.0.0.0/8", "10.0.0.1/32", "::/0", "fe80::/128"],
                &["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/x"],
            ),
            (
                "uuid",
                &[
                    "123e4567-e89b-12d3-a456-426614174000",
                    "123E4567E89B12D3A456426614174000",
                    "123e4567e89b-12d3-a456-426614174000",
                ],
                &[
                    "",
                    "123e4567-e89b-12d3-a456-42661417400",
                    "123e4567-e89b-12d3-a456-4266141740000",
                    "123e4567-e89b-12d3-a456-42661417400g",
                    "1-23e4567e89b-12d3-a456-426614174000",
                    "-123e4567-e89b-12d3-a456-426614174000",
                ],
            ),
            ("uuid3", &["123e4567-e89b-32d3-0456-426614174000"], &["123e4567-e89b-12d3-a456-426614174000"]),
            (
                "uuid4",
                &["123e4567-e89b-42d3-a456-426614174000", "123e4567e89b42d3B456426614174000"],
                &["123e4567-e89b-42d3-c456-426614174000", "123e4567-e89b-52d3-a456-426614174000"],
            ),
            ("uuid5", &["123e4567-e89b-52d3-8456-426614174000"], &["123e4567-e89b-42d3-8456-426614174000"]),
            (
                "bsonobjectid",
                &["507f1f77bcf86cd799439011"],
                &["", "507f1f77bcf86cd79943901", "507f1f77bcf86cd79943901g"],
            ),
            ("hexcolor", &["#fff", "fff", "#A0b1C2"], &["", "#ffff", "#ggg", "##fff"]),
            (
                "duration",
                &[
                    "0",
                    "-0",
                    "1h30m",
                    "-1.5s",
                    "+.5s",
                    "300ms",
                    "5us",
                    "5µs",
                    "7d",
                    "2 weeks",
                    "1 day 2 hrs",
                    "3WK",
                    "1minutes",
                    " 4 sec ",
                ],
                &[
                    "",
                    "-",
                    "1",
                    "--1s",
                    "1.2.3s",
                    "s",
                    ".s",
                    "-7d",
                    "1.5d",
                    "2 moons",
                    "weeks",
                    "1 µd",
                    "1d 2",
                    "99999999999999999999d",
                ],
            ),
            ("email", &["a@b.io"], &["", "a", "@b.io", "a@"]),
            (
                "uri",
                &["/a/b?c=d", "https://x.io/a%20b", "mailto:a@b.io", "*", "urn:x:y", "http://[::1]:80/", "a+b-c.d:x"],
                &["", "a/b", "h_t:x", ":/x", "://x", ":x", "/a%2", "/a%zz", "http://x y/", "1http://x", "/a\u{7}"],
            ),
            (
                "mac",
                &["00:00:5e:00:53:01", "00-00-5E-00-53-01", "02:00:5e:10:00:00:00:01", "0000.5e00.5301"],
                &["", "00:00:5e:00:53", "00:00:5e:00:53:0g", "0:00:5e:00:53:01", "00:00-5e:00:53:01", "0000.5e00"],
            ),
            ("hostname", &["a.b-c.io", "A", "1.io"], &["", "-a", "a..b", "a_b"]),
            ("unknown", &["", "whatever"], &[]),
        ] {
            good.iter().for_each(|text| assert!(fits(format, text), "{format}: {text:?} fits"));
            bad.iter().for_each(|text| assert!(!fits(format, text), "{format}: {text:?} does not"));
        }
    }
}
