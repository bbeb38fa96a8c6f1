//! What names, label keys and the like may look like, and upstream's words where they do not.
//!
//! Each check returns the messages of what is wrong; none means valid. Lengths are in bytes.

use std::fmt::Write as _;

use crate::kinds::NameRule;

/// Longest RFC 1123 subdomain.
pub const SUBDOMAIN_LENGTH: usize = 253;
/// Longest RFC 1123 or 1035 label.
pub const LABEL_LENGTH: usize = 63;
/// All annotations of an object, keys and values together.
pub const ANNOTATIONS_SIZE: usize = 256 * 1024;
/// Longest `generateName` that is kept; what is beyond is cut off before the suffix is added.
pub const GENERATE_NAME_LENGTH: usize = LABEL_LENGTH - SUFFIX_LENGTH;
/// Characters that `generateName` adds.
pub const SUFFIX_LENGTH: usize = 5;
/// No vowels and nothing that reads like one, so that no words come out.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

const SUBDOMAIN: &str = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = r"a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
    regex used for validation is '[-A-Za-z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(text: &str, limit: usize) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} bytes"))
}

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `inner` characters throughout, `edge` characters first and last; not empty.
fn framed(text: &str, inner: fn(u8) -> bool, edge: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().copied().is_some_and(edge)
        && bytes.last().copied().is_some_and(edge)
        && bytes.iter().copied().all(inner)
}

fn is_label(text: &str) -> bool {
    framed(text, |b| lower_or_digit(b) || b == b'-', lower_or_digit)
}

fn is_qualified_part(text: &str) -> bool {
    framed(text, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'), |b| b.is_ascii_alphanumeric())
}

fn checked(text: &str, limit: usize, ok: bool, words: &str) -> Vec<String> {
    too_long(text, limit).into_iter().chain((!ok).then(|| words.to_owned())).collect()
}

/// RFC 1123 subdomain: most names.
pub fn subdomain(text: &str) -> Vec<String> {
    checked(text, SUBDOMAIN_LENGTH, text.split('.').all(is_label), SUBDOMAIN)
}

/// `*.` and a subdomain: hosts of an Ingress.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let ok = text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label));
    checked(text, SUBDOMAIN_LENGTH, ok, WILDCARD)
}

/// RFC 1123 label: namespaces, containers, volumes, hostnames.
pub fn label(text: &str) -> Vec<String> {
    checked(text, LABEL_LENGTH, is_label(text), LABEL)
}

/// RFC 1035 label: Services.
pub fn label_1035(text: &str) -> Vec<String> {
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    checked(text, LABEL_LENGTH, starts && is_label(text), LABEL_1035)
}

/// A path segment: RBAC kinds.
pub fn path_segment(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text == "." || text == ".." {
        wrong.push(format!("may not be '{text}'"));
    }
    wrong.extend(['/', '%'].into_iter().filter(|c| text.contains(*c)).map(|c| format!("may not contain '{c}'")));
    wrong
}

/// A name under a kind's rule. With `prefix` it is a `generateName`, whose last dash will be followed by a suffix.
pub fn name(rule: NameRule, text: &str, prefix: bool) -> Vec<String> {
    let masked;
    let text = if prefix && text.len() > 1 && text.ends_with('-') {
        masked = format!("{}a", text.trim_end_matches('-'));
        &masked
    } else {
        text
    };
    match rule {
        NameRule::Subdomain => subdomain(text),
        NameRule::Label => label(text),
        NameRule::Label1035 => label_1035(text),
        NameRule::PathSegment => path_segment(text),
    }
}

/// A label or annotation key, a taint key, a resource name: `[prefix/]name`.
pub fn qualified(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut parts = text.split('/');
    let (first, second, more) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    let name = match (second, more) {
        (_, Some(_)) => {
            wrong.push(format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return wrong;
        }
        (Some(name), None) => {
            if first.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(subdomain(first).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        (None, None) => first,
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if let Some(long) = too_long(name, LABEL_LENGTH) {
        wrong.push(format!("name part {long}"));
    }
    if !is_qualified_part(name) {
        wrong.push(format!("name part {QUALIFIED}"));
    }
    wrong
}

/// A label's value; may be empty.
pub fn label_value(text: &str) -> Vec<String> {
    checked(text, LABEL_LENGTH, text.is_empty() || is_qualified_part(text), LABEL_VALUE)
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_key(text: &str) -> Vec<String> {
    let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let mut wrong = checked(text, SUBDOMAIN_LENGTH, ok, CONFIG_KEY);
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        text if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// An environment variable's name.
pub fn env_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    let ok = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    if ok { Vec::new() } else { vec![ENV_NAME.to_owned()] }
}

/// A container port's name, to which Services may point.
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| lower_or_digit(b) || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// The name of a header of HTTP.
pub fn http_header(text: &str) -> Vec<String> {
    let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if ok { Vec::new() } else { vec![HTTP_HEADER.to_owned()] }
}

/// A port number.
pub fn port(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".to_owned()] }
}

/// The name that `generateName` gives with these random bytes.
pub fn generated(prefix: &str, random: [u8; SUFFIX_LENGTH]) -> String {
    let end = (0..=GENERATE_NAME_LENGTH.min(prefix.len())).rev().find(|i| prefix.is_char_boundary(*i)).unwrap_or(0);
    let mut name = prefix.get(..end).unwrap_or("").to_owned();
    for byte in random {
        let letter = SUFFIX_ALPHABET.get(usize::from(byte) % SUFFIX_ALPHABET.len()).copied().unwrap_or(b'x');
        let _ = name.write_char(char::from(letter));
    }
    name
}

/// A number in the alphabet of generated names, as upstream's `SafeEncodeString` writes hashes.
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(SUFFIX_ALPHABET.get(usize::from(b) % SUFFIX_ALPHABET.len()).copied().unwrap_or(b'x')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_accept_and_refuse() {
        type Row<'a> = (fn(&str) -> Vec<String>, &'a [&'a str], &'a [&'a str]);
        let table: [Row; 7] = [
            (subdomain, &["a", "a.b-c.d1", "0"], &["", "A", "a..b", "-a", "a-", "a_b", "a.", "é"]),
            (label, &["a", "0-1"], &["a.b", "", "-"]),
            (label_1035, &["a", "a-1"], &["1a", "", "a."]),
            (qualified, &["a", "A_b.c-1", "example.com/x"], &["", "/x", "x/", "a/b/c", "-x", "Ex.com/x"]),
            (label_value, &["", "a", "A_b"], &["-a", "a b", "a/b"]),
            (config_key, &["a", ".a", "A_b"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a-1"], &["", "HTTP", "1", "a--b", "-a", "abcdefghijklmnop"]),
        ];
        for (check, good, bad) in table {
            for text in good {
                assert!(check(text).is_empty(), "{text:?} {:?}", check(text));
            }
            for text in bad {
                assert!(!check(text).is_empty(), "{text:?}");
            }
        }
        assert_eq!(label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert!(
            name(NameRule::Subdomain, "web-", true).is_empty() && !name(NameRule::Subdomain, "web-", false).is_empty()
        );
    }

    #[test]
    fn generated_names_stay_within_a_label() {
        let name = generated(&format!("{}é", "a".repeat(57)), [0, 26, 27, 53, 255]);
        assert_eq!(name, format!("{}b9b9q", "a".repeat(57)));
        assert!(label(&name).is_empty());
    }
}
