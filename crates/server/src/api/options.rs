//! What a list or watch asks for, out of its query parameters.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::parameters::is_true;
use mainstay_api::selector::{Fields, Labels};
use mainstay_api::{Kind, Status};
use mainstay_store::Revision;
use serde_json::Value;

use super::{codec, key};
use crate::convert;

/// Query parameters, decoded; of a repeated one the first.
pub type Query = BTreeMap<String, String>;

/// Whether a boolean parameter is given and true.
pub fn flag(query: &Query, name: &str) -> bool {
    query.get(name).is_some_and(|value| is_true(value))
}

/// Which objects of a kind are meant.
#[derive(Debug)]
pub struct Selection {
    /// The kind.
    pub kind: Kind,
    /// Empty for all namespaces, and for cluster-scoped kinds.
    pub namespace: String,
    labels: Labels,
    fields: Fields,
    /// What is said of fields that an object has only once a webhook has converted it to the kind's version.
    converted: Option<Fields>,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    pub fn new(kind: &Kind, namespace: &str, query: &Query) -> Result<Self, Status> {
        let text = |name: &str| query.get(name).map_or("", String::as_str);
        let mut fields = Fields::parse(kind, text("fieldSelector")).map_err(Status::bad_request)?;
        let mut converted = None;
        if convert::webhook(kind).is_some() {
            let (metadata, others) = fields.split();
            fields = metadata;
            converted = Some(others).filter(|others| !others.is_everything());
        }
        Ok(Self {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            labels: Labels::parse(text("labelSelector")).map_err(Status::bad_request)?,
            fields,
            converted,
        })
    }

    /// One object, while the query's selectors select it.
    pub fn one(kind: &Kind, namespace: &str, name: &str, query: &Query) -> Result<Self, Status> {
        let name = name.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let fields = query.get("fieldSelector").map_or("", String::as_str);
        let labels = query.get("labelSelector").cloned().unwrap_or_default();
        let query = Query::from([
            ("fieldSelector".to_owned(), format!("metadata.name={name},{fields}")),
            ("labelSelector".to_owned(), labels),
        ]);
        Self::new(kind, namespace, &query)
    }

    /// Of which kind they are.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What the store's index finds these objects by, where they are all found by one text.
    pub fn index_text(&self) -> Option<Bytes> {
        let node = (self.kind.stored() == &mainstay_api::kinds::POD).then(|| self.fields.required(key::NODE_OF_POD));
        node.flatten().map(|node| Bytes::copy_from_slice(node.as_bytes()))
    }

    /// Whether every object of the kind (in the namespace) is meant, so that nothing needs to be looked into.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.converted.is_none()
    }

    /// Whether [`Selection::matches_converted`] has a say.
    pub fn needs_conversion(&self) -> bool {
        self.converted.is_some()
    }

    /// Whether an object in the kind's version is meant, of those that [`Selection::matches`].
    pub fn matches_converted(&self, bytes: &[u8]) -> Result<bool, Status> {
        let Some(fields) = &self.converted else { return Ok(true) };
        Ok(fields.matches(&self.kind, &codec::decode(bytes)?))
    }

    /// Whether an object, as stored, is meant, as far as that can be seen.
    pub fn matches(&self, bytes: &[u8]) -> Result<bool, Status> {
        if self.labels.is_everything() && self.fields.is_everything() {
            return codec::is_open(bytes).map(|()| true);
        }
        let object: Value = match self.fields.is_everything() {
            true => codec::decode_metadata(bytes)?,
            false => codec::decode(bytes)?,
        };
        Ok(self.labels.matches_object(&object) && self.fields.matches(&self.kind, &object))
    }

    /// What the keys of these objects start with: one name where the field selector asks for it.
    ///
    /// A name is a whole key, so another object whose name only begins with it is sorted out by [`Self::matches`].
    pub fn prefix(&self) -> Bytes {
        match self.fields.name() {
            Some(name) if !self.kind.namespaced || !self.namespace.is_empty() => {
                key::object(&self.kind, &self.namespace, name)
            }
            _ => key::prefix(
                &self.kind,
                (!self.namespace.is_empty() || !self.kind.namespaced).then_some(self.namespace.as_str()),
            ),
        }
    }
}

/// How `resourceVersion` is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    /// The newest state (no resourceVersion).
    Newest,
    /// Any state that is not older; 0 for whatever is there.
    NotOlderThan(Revision),
    /// Exactly that state.
    Exact(Revision),
}

/// `limit`, `continue`, `resourceVersion` and `resourceVersionMatch` of a list.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// At most so many items; 0 for all.
    pub limit: usize,
    /// A token of an earlier part of the list.
    pub from: Option<Continue>,
    /// Which state.
    pub version: Match,
    /// When the list was begun, in seconds since 1970.
    pub since: i64,
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Continue {
    /// The list's revision; 0 for a list that goes on in whatever state there is, because its own is gone.
    pub revision: Revision,
    /// The last key that was sent.
    pub after: Bytes,
    /// How many come after it, where that is known.
    pub left: Option<usize>,
    /// When the list was begun, in seconds since 1970.
    pub since: i64,
}

/// A list may be read in parts for this long, in seconds: as long as etcd keeps a state for upstream's lists. What
/// changes little is kept for longer, but nobody's list is to depend on that.
const LIST_SECONDS: i64 = 300;

/// Reads a resourceVersion; anything but a decimal number is a client's mistake.
pub fn resource_version(text: &str) -> Result<Revision, Status> {
    text.parse().map(Revision).map_err(|_| {
        Status::bad_request(format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"))
    })
}

fn invalid(message: &str) -> Status {
    Status::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"))
}

impl ListOptions {
    /// Reads the parameters at a time, and refuses combinations that mean nothing, as upstream does.
    pub fn new(query: &Query, prefix: &[u8], now: Timestamp) -> Result<Self, Status> {
        let now = now.as_second();
        let text = |name: &str| query.get(name).map_or("", String::as_str);
        let limit = match text("limit") {
            "" => 0,
            limit => limit
                .parse::<i64>()
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {limit:?}: invalid syntax")))?,
        };
        let limit = usize::try_from(limit).unwrap_or(0);
        let (version, how, token) = (text("resourceVersion"), text("resourceVersionMatch"), text("continue"));
        if !how.is_empty() {
            if version.is_empty() {
                return Err(invalid(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is \
                        provided",
                ));
            }
            if !token.is_empty() {
                return Err(invalid(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if how != "Exact" && how != "NotOlderThan" {
                return Err(invalid(&format!(
                    "resourceVersionMatch: Unsupported value: {how:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
            if how == "Exact" && version == "0" {
                return Err(invalid(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \
                        \"0\"",
                ));
            }
        }
        if query.contains_key("sendInitialEvents") {
            return Err(invalid("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"));
        }
        if !token.is_empty() {
            if !version.is_empty() && version != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let mut from = Continue::parse(token, prefix)?;
            if from.revision.0 == 0 {
                from.since = now;
                return Ok(Self { limit, version: Match::Newest, since: now, from: Some(from) });
            }
            if now.saturating_sub(from.since) > LIST_SECONDS {
                return Err(Status::expired_continue(from.of_what_there_is(prefix)));
            }
            return Ok(Self { limit, version: Match::Exact(from.revision), since: from.since, from: Some(from) });
        }
        let version = match (version, how) {
            ("", _) => Match::Newest,
            (version, "Exact") => Match::Exact(resource_version(version)?),
            // A limit with a version and no word on how: the version is meant exactly, as it was before there was one.
            (version, "") if limit > 0 && version != "0" => Match::Exact(resource_version(version)?),
            (version, _) => Match::NotOlderThan(resource_version(version)?),
        };
        Ok(Self { limit, from: None, version, since: now })
    }
}

impl Continue {
    /// As clients see it: opaque.
    pub fn token(&self, prefix: &[u8]) -> String {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let after = String::from_utf8_lossy(self.after.strip_prefix(prefix).unwrap_or(&self.after)).into_owned();
        URL_SAFE_NO_PAD.encode(
            serde_json::json!({ "v": "meta.k8s.io/v1", "rv": self.revision.0, "start": after, "left": self.left,
                "since": self.since })
            .to_string(),
        )
    }

    /// A token of the rest of the list in whatever state there is when it comes back.
    pub fn of_what_there_is(&self, prefix: &[u8]) -> String {
        Self { revision: Revision(0), left: None, ..self.clone() }.token(prefix)
    }

    /// A token that came back. It only ever reaches below `prefix`, whatever it says.
    fn parse(token: &str, prefix: &[u8]) -> Result<Self, Status> {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let fails = || Status::bad_request("continue key is not valid: incorrect encoded continue token");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| fails())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| fails())?;
        let revision = token.get("rv").and_then(Value::as_u64).ok_or_else(fails)?;
        let start = token.get("start").and_then(Value::as_str).ok_or_else(fails)?;
        let left = token.get("left").and_then(Value::as_u64).and_then(|left| usize::try_from(left).ok());
        let since = token.get("since").and_then(Value::as_i64).unwrap_or(0);
        Ok(Self { revision: Revision(revision), after: [prefix, start.as_bytes()].concat().into(), left, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_version_is_meant_as_upstream_means_it() {
        let table: [(&[(&str, &str)], Result<Match, u16>); 12] = [
            (&[], Ok(Match::Newest)),
            (&[("resourceVersion", "0")], Ok(Match::NotOlderThan(Revision(0)))),
            (&[("resourceVersion", "5")], Ok(Match::NotOlderThan(Revision(5)))),
            (&[("resourceVersion", "5"), ("limit", "3")], Ok(Match::Exact(Revision(5)))),
            (&[("resourceVersion", "0"), ("limit", "3")], Ok(Match::NotOlderThan(Revision(0)))),
            (&[("resourceVersion", "5"), ("resourceVersionMatch", "Exact")], Ok(Match::Exact(Revision(5)))),
            (
                &[("resourceVersion", "5"), ("limit", "1"), ("resourceVersionMatch", "NotOlderThan")],
                Ok(Match::NotOlderThan(Revision(5))),
            ),
            (&[("resourceVersion", "0"), ("resourceVersionMatch", "Exact")], Err(422)),
            (&[("resourceVersionMatch", "Exact")], Err(422)),
            (&[("resourceVersion", "x")], Err(400)),
            (&[("continue", "!"), ("resourceVersion", "")], Err(400)),
            (&[("sendInitialEvents", "true"), ("resourceVersion", "0")], Err(422)),
        ];
        for (pairs, wanted) in table {
            let found = ListOptions::new(&query(pairs), b"/", Timestamp::UNIX_EPOCH)
                .map(|options| options.version)
                .map_err(|status| status.code);
            assert_eq!(found, wanted, "{pairs:?}");
        }
    }

    /// Conformance, API chunking: after five minutes a token is too old, and the answer has one that goes on.
    #[test]
    fn conformance_a_continue_token_comes_back_and_is_too_old_in_time() {
        let prefix = b"/core/pods/";
        let after = Bytes::from_static(b"/core/pods/a/b");
        let from = Continue { revision: Revision(7), after: after.clone(), left: Some(3), since: 1000 };
        let at = |token: &str, second: i64| {
            let now = Timestamp::from_second(second).expect("a time");
            ListOptions::new(&query(&[("continue", token), ("limit", "2")]), prefix, now)
        };
        let token = from.token(prefix);
        let options = at(&token, 1000 + LIST_SECONDS).expect("valid");
        assert_eq!((options.from, options.version, options.since), (Some(from), Match::Exact(Revision(7)), 1000));
        // Whatever a client makes of it.
        let forged = Continue { revision: Revision(7), after: after.clone(), left: None, since: i64::MIN };
        assert_eq!(at(&forged.token(prefix), i64::from(u32::MAX)).expect_err("too old").code, 410);
        let refused = at(&token, 1001 + LIST_SECONDS).expect_err("too old");
        assert_eq!((refused.code, &*refused.reason), (410, "Expired"));
        assert_eq!(refused.to_json()["metadata"]["continue"], refused.next);
        let options = at(&refused.next, 5000).expect("goes on");
        assert_eq!((options.version, options.since), (Match::Newest, 5000));
        assert_eq!(options.from.map(|from| (from.after, from.left)), Some((after, None)));
    }
}
