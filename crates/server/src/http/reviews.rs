//! `authentication.k8s.io` and `authorization.k8s.io`: questions that are posted and answered at once.

use std::sync::Arc;

use http::{Request, Response, header};
use mainstay_api::table::{Media, Offer, Representation, negotiate};
use mainstay_api::{Status, object};
use serde_json::{Value, json};

use super::received::Received;
use super::respond::{self, Body};
use super::{Server, decoding};
use crate::auth::User;
use crate::authorize::Attributes;
use crate::authorize::rule::Rule;

/// The kind of each resource that is only ever posted.
const KINDS: [(&str, &str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
    ("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
];

/// Whether there is such a review.
pub fn is_one(group: &str, resource: &str) -> bool {
    KINDS.iter().any(|(of, plural, _)| (*of, *plural) == (group, resource))
}

/// Answers a review.
pub async fn create(
    server: &Arc<Server>,
    user: &User,
    (group, resource, namespace): (&str, &str, &str),
    request: Request<Received>,
) -> Result<Response<Body>, Status> {
    let known = KINDS.iter().find(|(of, plural, _)| (*of, *plural) == (group, resource));
    let (_, _, kind) = known.ok_or_else(Status::no_such_resource)?;
    if (*kind == "LocalSubjectAccessReview") == namespace.is_empty() {
        return Err(Status::no_such_resource());
    }
    // What is never stored has no rows and no metadata to show.
    let (form, _) = negotiate(super::serve::accept(&request), Offer::ALL)?;
    if form != Representation::Object {
        return Err(Status::not_acceptable(Media::TYPES));
    }
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let body = request.into_body().whole().await?;
    let mut review = if body.is_empty() { json!({}) } else { decoding::parse(&content_type, &body)? };
    let status = match *kind {
        "SelfSubjectReview" => json!({ "userInfo": user.info() }),
        "TokenReview" if object::text(&review, &["spec", "token"]).is_empty() => {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        "TokenReview" => token_status(server, &review),
        "SelfSubjectAccessReview" => access(server, kind, user, &review)?,
        "SubjectAccessReview" => access(server, kind, &subject(kind, &review)?, &review)?,
        "LocalSubjectAccessReview" => {
            if object::text(&review, &["spec", "resourceAttributes", "namespace"]) != namespace {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {namespace}"
                )));
            }
            access(server, kind, &subject(kind, &review)?, &review)?
        }
        _ => {
            let (of, user) = (server.clone(), user.clone());
            let namespace = object::text(&review, &["spec", "namespace"]).to_owned();
            let name = user.name.clone();
            super::bounded(server, &name, move || rules(&of, &user, &namespace)).await??
        }
    };
    let fields = object::ensure(&mut review, &[]);
    fields.insert("kind".to_owned(), (*kind).into());
    fields.insert("apiVersion".to_owned(), format!("{group}/v1").into());
    fields.insert("status".to_owned(), status);
    fields.entry("metadata").or_insert_with(|| json!({}));
    Ok(respond::json(201, object::print(&review)))
}

/// A token is reviewed for the audiences that are asked for, or else for the API server; the answer names those of
/// them that it is for.
fn token_status(server: &Server, review: &Value) -> Value {
    let asked = object::at(review, &["spec", "audiences"]).and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<&str> = asked.filter_map(Value::as_str).collect();
    if audiences.is_empty() {
        audiences.push(crate::api::ISSUER);
    }
    match User::of_token(&server.api, &server.tokens, object::text(review, &["spec", "token"]), &audiences) {
        Ok((user, audiences)) => json!({ "authenticated": true, "user": user.info(), "audiences": audiences }),
        Err(error) => json!({ "user": {}, "error": format!("[invalid bearer token, {error}]") }),
    }
}

/// 422 as upstream words it for a kind that is never stored.
fn invalid(kind: &str, field: &str, why: &str) -> Status {
    let message = format!("{kind}.authorization.k8s.io \"\" is invalid: {field}: Invalid value: \"null\": {why}");
    Status::new(422, "Invalid", message)
}

/// Whom a review is about.
fn subject(kind: &str, review: &Value) -> Result<User, Status> {
    let texts = |value: Option<&Value>| -> Vec<String> {
        let list = value.and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = object::at(review, &["spec", "extra"]).and_then(Value::as_object).into_iter().flatten();
    let user = User {
        name: object::text(review, &["spec", "user"]).to_owned(),
        groups: texts(object::at(review, &["spec", "groups"])),
        uid: object::text(review, &["spec", "uid"]).to_owned(),
        extra: extra.map(|(key, values)| (key.clone(), texts(Some(values)))).collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(invalid(kind, "spec.user", "at least one of user or group must be specified"));
    }
    Ok(user)
}

/// The field selector that a review names, as a request has it.
fn requirements(resource: &Value) -> String {
    let raw = object::text(resource, &["fieldSelector", "rawSelector"]);
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let all = object::at(resource, &["fieldSelector", "requirements"]).and_then(Value::as_array).into_iter().flatten();
    let one = |requirement: &Value| {
        let values = requirement.get("values").and_then(Value::as_array)?;
        let [Value::String(value)] = values.as_slice() else { return None };
        let is_in = object::text(requirement, &["operator"]) == "In";
        is_in.then(|| format!("{}={value}", object::text(requirement, &["key"])))
    };
    all.filter_map(one).collect::<Vec<_>>().join(",")
}

fn access(server: &Server, kind: &str, user: &User, review: &Value) -> Result<Value, Status> {
    let part = |field: &str| object::at(review, &["spec", field]).filter(|value| !value.is_null());
    let what = match (part("resourceAttributes"), part("nonResourceAttributes")) {
        (Some(_), Some(_)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            return Err(invalid(kind, "spec.nonResourceAttributes", why));
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(invalid(kind, "spec.resourceAttributes", why));
        }
        (None, Some(path)) => Attributes {
            verb: object::text(path, &["verb"]).to_owned(),
            path: object::text(path, &["path"]).to_owned(),
            ..Attributes::default()
        },
        (Some(resource), None) => {
            let text = |field: &str| object::text(resource, &[field]).to_owned();
            Attributes {
                verb: text("verb"),
                group: text("group"),
                resource: text("resource"),
                subresource: text("subresource"),
                namespace: text("namespace"),
                name: text("name"),
                fields: requirements(resource),
                path: String::new(),
            }
        }
    };
    let (allowed, reason) = match server.authorizer.explain(user, &what) {
        Ok(reason) => (true, reason),
        Err(reason) => (false, reason),
    };
    let mut status = json!({ "allowed": allowed });
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

/// How much of a user's rules is told, in bytes; of more the review says that it is incomplete.
const MAX_RULES: usize = 1 << 20;

/// `kubectl auth can-i --list`: every rule of the user's in a namespace. What only a node's kubelet may is no rule.
fn rules(server: &Server, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (found, mut errors) = server.authorizer.rules(user, namespace);
    let (mut length, mut rules): (usize, Vec<&Rule>) = (0, Vec::new());
    for rule in found.iter().flat_map(|rules| rules.iter()) {
        length = length.saturating_add(rule.length());
        if length > MAX_RULES {
            errors.push(format!("there are more rules than the {MAX_RULES} bytes that are told"));
            break;
        }
        rules.push(rule);
    }
    let is_node = user.node().is_some();
    if is_node {
        errors.push("node authorizer does not support user rule resolution".to_owned());
    }
    let is_path = |rule: &&&Rule| !rule.urls.is_empty();
    let mut status = json!({
        "resourceRules": rules.iter().filter(|rule| !is_path(rule)).map(|rule| json!(rule)).collect::<Vec<_>>(),
        "nonResourceRules": rules.iter().filter(is_path).map(|rule| json!(rule)).collect::<Vec<_>>(),
        "incomplete": is_node || !errors.is_empty(),
    });
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
    }
    Ok(status)
}
