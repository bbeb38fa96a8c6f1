//! How a registry asks who wants its images: challenges, and the tokens that they lead to.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use crate::images::RegistryAuth;

/// What an answer with status 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
    Basic,
}

#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The challenge to take up: tokens before passwords.
pub fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut best = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        for (scheme, parameters) in value.to_str().map(challenges).unwrap_or_default() {
            let parameter = |name: &str| {
                let mut all = parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                all.next().map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                best = Some(Challenge::Basic);
            }
        }
    }
    best
}

type Parameters = Vec<(String, String)>;

/// The challenges of one header (RFC 9110, 11.6.1): a word that no `=` follows is a scheme, any other its parameter.
fn challenges(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        if word.is_empty() && after.is_empty() {
            return found;
        }
        let Some(value) = after.strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// A parameter's value, with or without quotes, and what stands behind it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The query that asks a token server for a token for pulling from a repository.
pub fn token_query(service: Option<&str>, repository: &str) -> String {
    let scope = encoded(&format!("repository:{repository}:pull"));
    let service = service.map(|service| format!("service={}&", encoded(service))).unwrap_or_default();
    format!("{service}scope={scope}")
}

/// Percent-encoded for a query.
fn encoded(text: &str) -> String {
    let mut query = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                query.push(char::from(byte));
            }
            other => query.push_str(&format!("%{other:02X}")),
        }
    }
    query
}

/// `Authorization` with what a token server answered.
pub fn bearer(answer: &[u8]) -> Result<HeaderValue, String> {
    let granted: Granted =
        serde_json::from_slice(answer).map_err(|error| format!("the token is not readable: {error}"))?;
    let token = if granted.token.is_empty() { granted.access_token } else { granted.token };
    if token.is_empty() {
        return Err("the authorization server did not include a token in the response".to_owned());
    }
    secret(format!("Bearer {token}"))
}

/// `Authorization` with a user's name and password.
pub fn basic(auth: &RegistryAuth) -> Result<HeaderValue, String> {
    secret(format!("Basic {}", STANDARD.encode(format!("{}:{}", auth.username, auth.password))))
}

fn secret(text: String) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(text).map_err(|_| "the token cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        });
        challenge(&headers)
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let both = bearer("https://a.b/token", Some("reg, \"x\""));
        let table = [
            (vec!["Bearer realm=\"https://a.b/token\",service=\"reg, \\\"x\\\"\",scope=\"y\""], both.clone()),
            (vec!["bearer  REALM = \"https://a.b/token\" , service = \"reg, \\\"x\\\"\""], both.clone()),
            (vec!["Basic realm=\"r\", Bearer realm=\"https://a.b/token\",service=\"reg, \\\"x\\\"\""], both),
            (vec!["Basic realm=\"r\"", "Bearer realm=t"], bearer("t", None)),
            (vec!["Basic realm=\"Bearer realm=x\""], Some(Challenge::Basic)),
            (vec!["Basic"], Some(Challenge::Basic)),
            (vec!["Negotiate", "Bearer scope=\"x\""], None),
            (vec!["", ",,,", "=", "=x,y=\"", "Bearer =\"\\"], None),
            (vec![], None),
        ];
        for (values, expected) in table {
            assert_eq!(of(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn tokens_are_asked_for_and_read() {
        let query = "service=a%20b%26c&scope=repository:team/app:pull";
        assert_eq!(token_query(Some("a b&c"), "team/app"), query);
        assert_eq!(token_query(None, "x"), "scope=repository:x:pull");
        let text = |answer: &str| bearer(answer.as_bytes()).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(text("{\"token\":\"a\",\"access_token\":\"b\"}").unwrap(), "Bearer a");
        assert_eq!(text("{\"access_token\":\"b\"}").unwrap(), "Bearer b");
        for bad in ["", "{}", "[]", "{\"token\":\"a\\nb\"}", "{\"token\":7}"] {
            text(bad).unwrap_err();
        }
        let auth = RegistryAuth { username: "Aladdin".to_owned(), password: "open sesame".to_owned() };
        assert_eq!(basic(&auth).unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(basic(&auth).unwrap().is_sensitive());
    }
}
