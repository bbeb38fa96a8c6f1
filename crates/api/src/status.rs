//! Errors as Kubernetes answers them: `metav1.Status`. The only place where an error becomes one.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::paths;

/// How many wrong fields an answer lists. Whoever validates may stop when it has found more.
pub const MAX_CAUSES: usize = 256;

/// How much is shown of a bad value, and of what is said about it (bytes, each).
const MAX_SHOWN: usize = 4 << 10;

/// One field that is wrong, in upstream's words (`Required value`, `Invalid value: …`).
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, …
    pub reason: &'static str,
    /// What kubectl prints after the field.
    pub message: String,
    /// The field's path, as `spec.template.spec.containers[0].name`.
    pub field: String,
}

/// A failed request: the HTTP code, upstream's reason and message, and what it is about.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`, …; a webhook's refusal has its own.
    pub reason: Cow<'static, str>,
    /// What kubectl shows.
    pub message: String,
    /// `details` of the Status object (`name`, `group`, `kind`, `uid`, `causes`, `retryAfterSeconds`), or null.
    pub details: Value,
    /// `metadata.continue`: where a list goes on all the same; empty where it does not.
    pub next: String,
}

/// The words by which clients know that etcd does not answer in time.
pub const STORE_IS_SILENT: &str = "etcdserver: request timed out";

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: Value::Null, next: String::new() }
    }

    /// The `metav1.Status` object that is sent.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        if !self.next.is_empty() {
            status["metadata"]["continue"] = json!(self.next);
        }
        status
    }

    /// The same with these details.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    fn about(self, kind: &Kind, name: &str) -> Self {
        self.with_details(details(name, &kind.group, &kind.plural))
    }

    /// 404 for an object that does not exist.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", kind.resource())).about(kind, name)
    }

    /// 404 for a path or a resource type that is not served.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(json!({}))
    }

    /// 409 for a create whose name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", kind.resource())).about(kind, name)
    }

    /// 409 for a create with `generateName` whose every suggestion was taken; the client may try again.
    pub fn generate_name_conflict(kind: &Kind, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            kind.resource()
        );
        Self::new(409, "AlreadyExists", message).about(kind, name)
    }

    /// 409 for a write whose resourceVersion is no longer the stored one (A8).
    pub fn conflict(kind: &Kind, name: &str) -> Self {
        Self::conflict_because(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 for a write that the stored object does not allow, with the reason in words.
    pub fn conflict_because(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 409 for a `preconditions.uid` (or a `metadata.uid`) that is not the stored object's (A8).
    pub fn precondition_uid(kind: &Kind, name: &str, wanted: &str, stored: &str) -> Self {
        Self::conflict_because(
            kind,
            name,
            &format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {stored}"),
        )
    }

    /// 409 for a `preconditions.resourceVersion` that is not the stored object's (A8).
    pub fn precondition_resource_version(kind: &Kind, name: &str, wanted: &str, stored: &str) -> Self {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {stored}"
        );
        Self::conflict_because(kind, name, &why)
    }

    /// 422 with every field that is wrong, up to [`MAX_CAUSES`] of them (X4). One cause stands alone in the message,
    /// several are `[a, b]`; a message that repeats is told once.
    pub fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let listed = &causes[..causes.len().min(MAX_CAUSES)];
        for text in listed.iter().map(|cause| format!("{}: {}", cause.field, cause.message)) {
            if seen.insert(text.clone()) {
                texts.push(text);
            }
        }
        if causes.len() > MAX_CAUSES {
            texts.push("too many errors, the rest is not listed".to_owned());
        }
        let what = match texts.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let qualified =
            if kind.group.is_empty() { kind.kind.to_string() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut about = details(name, &kind.group, &kind.kind);
        about["causes"] = listed
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }))
            .collect::<Vec<_>>()
            .into();
        Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {what}")).with_details(about)
    }

    /// 422 for a patch that makes an object that is none of its kind; `shown` is quoted.
    pub fn invalid_patch(shown: &str, why: &str) -> Self {
        let cause = Cause::invalid("patch", shown, why);
        let mut about = details("", "", "");
        about["causes"] = json!([{ "reason": cause.reason, "message": cause.message, "field": cause.field }]);
        Self::new(422, "Invalid", format!(" \"\" is invalid: patch: {}", cause.message)).with_details(about)
    }

    /// 400 for a request that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403 on a named object or, with an empty name, on a collection.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let about = if name.is_empty() { kind.resource() } else { format!("{} {name:?}", kind.resource()) };
        Self::new(403, "Forbidden", format!("{about} is forbidden: {why}")).about(kind, name)
    }

    /// 401; anonymous requests get nothing else.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 for a verb that the resource does not know.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(json!({}))
    }

    /// 406; `accepted` are the media types that would do.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// 415; `accepted` are the media types that would do.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 413 for a body above the limit (bytes).
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 410 for a resourceVersion or continue token that was compacted (A7).
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for a continue token that is too old (A7), with one by which the rest of the list can be had as it is now.
    pub fn expired_continue(next: String) -> Self {
        let why = "The provided continue parameter is too old to display a consistent list result. You can start a new \
            list without the continue parameter, or use the continue token in this response to retrieve the remainder \
            of the results. Continuing with the provided token results in an inconsistent list - objects that were \
            created, modified, or deleted between the time the first chunk was returned and now may show up in the \
            list.";
        Self { next, ..Self::expired(why) }
    }

    /// 410 with the words of a watch that starts too far back (A7): `too old resource version: 5 (100)`.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 410 for something that is gone for good.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// 504 for a request that ran out of time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into()))
    }

    /// 504 for a read of a revision that is not there yet; the client tries again after a second.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let mut status = Self::timeout(format!("Too large resource version: {requested}, current: {current}"));
        status.details = json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        });
        status
    }

    /// 500.
    pub fn internal(why: impl Into<String>) -> Self {
        let why = why.into();
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
            .with_details(json!({ "causes": [{ "message": why }] }))
    }

    /// 429; the client waits `retry_after` seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_details(json!({ "retryAfterSeconds": retry_after }))
    }

    /// 503 while the cluster that holds the store does not answer: nothing was done, and another server may. Differs:
    /// upstream answers 500 in the same words.
    pub fn store_is_silent(why: &str) -> Self {
        Self::unavailable(format!("{STORE_IS_SILENT}: {why}"))
    }

    /// 503; the client may try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }
}

/// `details` with upstream's omissions: no empty fields.
fn details(name: &str, group: &str, kind: &str) -> Value {
    let mut map = Map::new();
    for (field, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            map.insert(field.to_owned(), value.into());
        }
    }
    Value::Object(map)
}

/// The kinds of field errors, each with upstream's words. `value` is the bad value as it stands in the object.
impl Cause {
    /// However long a value, a key or a rule is, what is told of a few hundred of them is read by people (X4).
    fn new(reason: &'static str, field: impl Into<String>, head: String, detail: &str) -> Self {
        let (head, detail) = (paths::cut(&head, MAX_SHOWN), paths::cut(detail, MAX_SHOWN));
        let message = if detail.is_empty() { head.into_owned() } else { format!("{head}: {detail}") };
        let field: String = field.into();
        let field = match paths::cut(&field, paths::MAX_PATH) {
            Cow::Owned(cut) => cut,
            Cow::Borrowed(_) => field,
        };
        Self { reason, message, field }
    }

    /// `Required value`, with a detail where there is one.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, "Required value".to_owned(), detail)
    }

    /// `Invalid value: "x": why`.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {}", shown(&value.into())), detail)
    }

    /// `Unsupported value: "x": supported values: "A", "B"`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::new("FieldValueNotSupported", field, format!("Unsupported value: {}", shown(&value.into())), &detail)
    }

    /// `Duplicate value: "x"`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(&value.into())), "")
    }

    /// `Not found: "x"`.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", shown(&value.into())), "")
    }

    /// `Forbidden: why`.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, "Forbidden".to_owned(), detail)
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self::new("FieldValueTooLong", field, "Too long".to_owned(), &format!("may not be more than {limit} bytes"))
    }

    /// `Too many: 3: must have at most 2 items`.
    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        Self::new("FieldValueTooMany", field, format!("Too many: {count}"), &format!("must have at most {limit} items"))
    }
}

/// A bad value as upstream prints it: strings quoted, everything else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn x4_an_answer_lists_a_bounded_number_of_causes_each_once() {
        let causes: Vec<Cause> = (0..200_000).map(|index| Cause::required(format!("f[{}]", index / 2), "")).collect();
        let status = Status::invalid(&kinds::POD, "a", &causes);
        assert_eq!(status.details["causes"].as_array().map(Vec::len), Some(MAX_CAUSES));
        assert_eq!(status.message.matches("f[7]").count(), 1);
        assert!(status.message.ends_with("the rest is not listed]"));
    }

    #[test]
    fn x4_what_is_told_of_a_value_is_bounded() {
        let long = "\u{fc}".repeat(1 << 20);
        let causes = [
            Cause::invalid(format!("f.{long}"), long.as_str(), &long),
            Cause::not_supported("f", long.as_str(), &[&long]),
            Cause::duplicate("f", json!([long])),
        ];
        for cause in causes {
            assert!(cause.field.len() < 1_100 && cause.message.len() < 10_000, "{}", cause.message.len());
        }
    }

    #[test]
    fn messages_are_upstreams() {
        let sts = &kinds::STATEFUL_SET;
        let one = [Cause::invalid("spec.replicas", -1, "must be greater than or equal to 0")];
        let two = [one[0].clone(), Cause::required("spec.selector", ""), one[0].clone()];
        let table = [
            (Status::not_found(&kinds::POD, "a"), 404, r#"pods "a" not found"#),
            (Status::already_exists(sts, "web"), 409, r#"statefulsets.apps "web" already exists"#),
            (
                Status::conflict(sts, "web"),
                409,
                r#"Operation cannot be fulfilled on statefulsets.apps "web": the object has been modified; please apply your changes to the latest version and try again"#,
            ),
            (
                Status::invalid(sts, "web", &one),
                422,
                r#"StatefulSet.apps "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#,
            ),
            (
                Status::invalid(sts, "web", &two),
                422,
                r#"StatefulSet.apps "web" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.selector: Required value]"#,
            ),
            (Status::forbidden(&kinds::POD, "a", "no"), 403, r#"pods "a" is forbidden: no"#),
        ];
        for (status, code, message) in table {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
        let json = Status::not_found(sts, "web").to_json();
        assert_eq!(json["details"], json!({ "name": "web", "group": "apps", "kind": "statefulsets" }));
    }
}
