//! `kubectl --as`: the user that a request's `Impersonate-` headers name, and what its sender must be allowed for it.

use std::collections::BTreeMap;

use http::HeaderMap;
use mainstay_api::Status;

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User};
use crate::authorize::Attributes;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// More values than this in one request are refused; each is a question to the authorizer.
const MAX_VALUES: usize = 256;

/// A service account in a user's name: `system:serviceaccount:<namespace>:<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceAccountName<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl<'a> ServiceAccountName<'a> {
    /// Takes a user's name apart, where it is a service account's.
    pub fn of(user: &'a str) -> Option<Self> {
        let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some(Self { namespace, name })
    }

    /// The groups that every service account of the namespace is in.
    pub fn groups(&self) -> Vec<String> {
        vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", self.namespace)]
    }
}

/// Who is to be impersonated, as the headers say.
#[derive(Debug, PartialEq, Eq)]
pub struct Impersonation {
    name: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// Reads the headers; `None` where there are none. 400 for groups, a uid or extra fields without a user, for more
    /// than one user or uid, and for what is not text: a request that names somebody is never its sender's own.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let (mut names, mut groups, mut uids) = (Vec::new(), Vec::new(), Vec::new());
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (header, value) in headers {
            let header = header.as_str();
            if !header.starts_with("impersonate-") {
                continue;
            }
            let unreadable = |_| Status::bad_request(format!("the header {header} is not UTF-8 text"));
            let value = std::str::from_utf8(value.as_bytes()).map_err(unreadable)?.to_owned();
            match header {
                USER => names.push(value),
                GROUP => groups.push(value),
                UID => uids.push(value),
                _ => {
                    if let Some(key) = header.strip_prefix(EXTRA) {
                        extra.entry(unescape(key)).or_default().push(value);
                    }
                }
            }
        }
        if names.len() > 1 || uids.len() > 1 {
            return Err(Status::bad_request("requested to impersonate more than one user"));
        }
        let (name, uid) = (names.pop().unwrap_or_default(), uids.pop().unwrap_or_default());
        if groups.len() + extra.values().map(Vec::len).sum::<usize>() > MAX_VALUES {
            return Err(Status::bad_request(format!("more than {MAX_VALUES} values to impersonate")));
        }
        if !name.is_empty() {
            return Ok(Some(Self { name, groups, uid, extra }));
        }
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        Err(Status::bad_request("requested to impersonate groups, a uid or extra fields without impersonating a user"))
    }

    /// What the sender must be allowed, each with the verb `impersonate`.
    pub fn asks(&self) -> Vec<Attributes> {
        let ask = |group: &str, resource: &str, name: &str| Attributes {
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        let authentication = "authentication.k8s.io";
        let mut asks = vec![match ServiceAccountName::of(&self.name) {
            Some(account) => {
                Attributes { namespace: account.namespace.to_owned(), ..ask("", "serviceaccounts", account.name) }
            }
            None => ask("", "users", &self.name),
        }];
        asks.extend(self.groups.iter().map(|group| ask("", "groups", group)));
        for (key, values) in &self.extra {
            asks.extend(
                values
                    .iter()
                    .map(|value| Attributes { subresource: key.clone(), ..ask(authentication, "userextras", value) }),
            );
        }
        if !self.uid.is_empty() {
            asks.push(ask(authentication, "uids", &self.uid));
        }
        asks
    }

    /// The user that is meant. Without groups a service account has its own; everybody who is somebody is
    /// authenticated.
    pub fn user(self) -> User {
        let Self { name, mut groups, uid, extra } = self;
        if groups.is_empty()
            && let Some(account) = ServiceAccountName::of(&name)
        {
            groups = account.groups();
        }
        if !groups.iter().any(|group| matches!(group.as_str(), AUTHENTICATED | UNAUTHENTICATED)) {
            groups.push(if name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED }.to_owned());
        }
        User { name, groups, uid, extra }
    }
}

/// Takes percent encoding away; what is no encoding stays.
fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn x1_every_attribute_of_an_impersonation_is_asked_for() {
        let of = |list: &[(&'static str, &'static str)]| Impersonation::of(&headers(list));
        assert_eq!(of(&[]), Ok(None));
        for alone in [("impersonate-group", "g"), ("impersonate-uid", "u"), ("impersonate-extra-scopes", "s")] {
            assert_eq!(of(&[alone]).map_err(|status| status.code), Err(400), "{alone:?}");
        }
        let all = of(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "dev"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-example.org%2fscopes", "view"),
        ]);
        let all = all.expect("read").expect("there");
        let asks: Vec<[String; 4]> =
            all.asks().into_iter().map(|ask| [ask.group, ask.resource, ask.subresource, ask.name]).collect();
        let wanted = [
            ["", "users", "", "jane"],
            ["", "groups", "", "dev"],
            ["authentication.k8s.io", "userextras", "example.org/scopes", "view"],
            ["authentication.k8s.io", "uids", "", "7"],
        ];
        assert_eq!(asks, wanted.map(|ask| ask.map(str::to_owned)));
        let user = all.user();
        assert_eq!(user.groups, ["dev", AUTHENTICATED]);
        assert_eq!(user.extra["example.org/scopes"], ["view"]);
    }

    #[test]
    fn x1_a_name_that_is_not_ascii_is_somebodys_and_one_that_is_no_text_is_refused() {
        let of = |name: &'static str, value: &[u8]| {
            let value = http::HeaderValue::from_bytes(value).expect("a value");
            let mut headers = headers(&[]);
            headers.insert(http::HeaderName::from_static(name), value);
            Impersonation::of(&headers)
        };
        let user = of("impersonate-user", "jürgen".as_bytes()).expect("read").expect("there").user();
        assert_eq!(user.name, "jürgen");
        for header in ["impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-a"] {
            assert_eq!(of(header, b"j\xfcrgen").map_err(|status| status.code), Err(400), "{header}");
        }
        let mut twice = headers(&[("impersonate-user", "")]);
        twice.append("impersonate-user", http::HeaderValue::from_static("jane"));
        assert_eq!(Impersonation::of(&twice).map_err(|status| status.code), Err(400));
    }

    #[test]
    fn an_impersonated_service_account_is_in_its_groups_and_nobody_stays_nobody() {
        let user = |name: &'static str| {
            Impersonation::of(&headers(&[("impersonate-user", name)])).expect("read").expect("there").user()
        };
        let account = user("system:serviceaccount:a:b");
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:a", AUTHENTICATED]);
        assert_eq!(user(ANONYMOUS), User::anonymous());
    }
}
