//! `authentication.k8s.io` and `authorization.k8s.io`: questions that are posted and answered at once.

use http::{Request, Response, header};
use hyper::body::Incoming;
use mainstay_api::{Status, object};
use serde_json::{Value, json};

use super::respond::{self, Body};
use super::{Server, objects};
use crate::auth::User;
use crate::authorize::{self, Attributes};

/// Answers a review.
pub async fn create(
    server: &Server,
    user: &User,
    resource: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let body = objects::read(request.into_body()).await?;
    let mut review = if body.is_empty() { json!({}) } else { objects::parse(&content_type, &body)? };
    let (group, kind, status) = match resource {
        "selfsubjectreviews" => ("authentication", "SelfSubjectReview", json!({ "userInfo": info(user) })),
        "tokenreviews" => ("authentication", "TokenReview", token_status(server, &review)),
        "selfsubjectaccessreviews" => ("authorization", "SelfSubjectAccessReview", access(server, user, &review)),
        "subjectaccessreviews" => ("authorization", "SubjectAccessReview", access(server, &subject(&review), &review)),
        "localsubjectaccessreviews" => {
            ("authorization", "LocalSubjectAccessReview", access(server, &subject(&review), &review))
        }
        "selfsubjectrulesreviews" => ("authorization", "SelfSubjectRulesReview", rules(user)),
        _ => return Err(Status::no_such_resource()),
    };
    let fields = object::ensure(&mut review, &[]);
    fields.insert("kind".to_owned(), kind.into());
    fields.insert("apiVersion".to_owned(), format!("{group}.k8s.io/v1").into());
    fields.insert("status".to_owned(), status);
    fields.entry("metadata").or_insert_with(|| json!({}));
    Ok(respond::json(201, review.to_string()))
}

fn info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    info
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
        Ok((user, audiences)) => json!({ "authenticated": true, "user": info(&user), "audiences": audiences }),
        Err(error) => json!({ "user": {}, "error": format!("[invalid bearer token, {error}]") }),
    }
}

fn subject(review: &Value) -> User {
    let groups = object::at(review, &["spec", "groups"]).and_then(Value::as_array).into_iter().flatten();
    User {
        name: object::text(review, &["spec", "user"]).to_owned(),
        groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
        uid: object::text(review, &["spec", "uid"]).to_owned(),
    }
}

fn access(server: &Server, user: &User, review: &Value) -> Value {
    let text = |field: &str| object::text(review, &["spec", "resourceAttributes", field]).to_owned();
    let what = match object::at(review, &["spec", "nonResourceAttributes"]) {
        Some(path) => Attributes {
            verb: object::text(path, &["verb"]).to_owned(),
            path: object::text(path, &["path"]).to_owned(),
            ..Attributes::default()
        },
        None => Attributes {
            verb: text("verb"),
            group: text("group"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            path: String::new(),
        },
    };
    json!({ "allowed": authorize::allows(&server.api, user, &what) })
}

fn rules(user: &User) -> Value {
    let all = user.is_in("system:masters");
    let resource_rules =
        if all { json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]) } else { json!([]) };
    let paths = if all {
        json!(["*"])
    } else {
        json!([
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version"
        ])
    };
    let verbs = if all { json!(["*"]) } else { json!(["get"]) };
    json!({ "resourceRules": resource_rules, "nonResourceRules": [{ "verbs": verbs, "nonResourceURLs": paths }], "incomplete": !all })
}
