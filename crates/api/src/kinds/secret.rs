//! Secret: configuration that nobody else should read.

use std::borrow::Cow::Borrowed;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, number, text_column};
use super::configmap::{MAX_SIZE, held, validate_key};
use super::field::{Field, default, remove};
use super::{BASE, Kind, Row};
use crate::object::{ensure, name, text};
use crate::status::Cause;

/// The row of Secret.
pub static SECRET: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Secret"),
    plural: Borrowed("secrets"),
    singular: Borrowed("secret"),
    type_name: Borrowed("io.k8s.api.core.v1.Secret"),
    fields: |_, secret| vec![("type", text(secret, &["type"]).to_owned())],
    columns: Borrowed(&[NAME, text_column("Type", "What it is for."), number("Data", "How many entries it has."), AGE]),
    row: |_, secret, now| {
        let entries = Field::root(secret).get("data").len();
        vec![json!(name(secret)), json!(text(secret, &["type"])), json!(entries), age(secret, now)]
    },
    defaults: |_, secret| {
        default(secret, "type", "Opaque");
        // `stringData` is for writing only; it leads over `data`.
        if let Some(Value::Object(plain)) = secret.get("stringData").cloned() {
            let data = ensure(secret, &["data"]);
            for (key, value) in plain {
                data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
            }
        }
        remove(secret, "stringData");
    },
    validate: |_, object, causes| validate(object, causes),
    validate_update: |_, new, old, causes| {
        Field::root(new).get("type").immutable(&Field::root(old).get("type"), causes);
        held(new, old, &["data"], causes);
    },
    ..BASE
});

fn validate(secret: &Value, causes: &mut Vec<Cause>) {
    let secret = Field::root(secret);
    let data = secret.get("data");
    let mut size = 0usize;
    for (key, value) in data.entries() {
        validate_key(key, &value, causes);
        match STANDARD.decode(value.text()) {
            Ok(bytes) => size = size.saturating_add(bytes.len()),
            // The value itself stays out of the message (X2).
            Err(_) => causes.push(Cause::invalid(&value.path, "<secret contents redacted>", "illegal base64 data")),
        }
    }
    if size > MAX_SIZE {
        causes.push(Cause::too_long("data", MAX_SIZE));
    }
    let needed: &[&str] = match secret.get("type").text() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| !data.get(key).is_set()) {
        causes.push(Cause::required(format!("data[{key}]"), ""));
    }
    for key in needed.iter().filter(|key| key.starts_with(".docker")) {
        let Ok(text) = STANDARD.decode(data.get(key).text()) else { continue };
        let why = match serde_json::from_slice::<Value>(&text) {
            _ if !data.get(key).is_set() => continue,
            Ok(Value::Object(_)) => continue,
            Ok(_) => "json: cannot unmarshal into Go value of type map[string]interface {}",
            Err(error) if error.is_eof() => "unexpected end of JSON input",
            Err(_) => "invalid character",
        };
        causes.push(Cause::invalid(format!("data[{key}]"), "<secret contents redacted>", why));
    }
    if secret.get("type").text() == "kubernetes.io/basic-auth"
        && !data.get("username").is_set()
        && !data.get("password").is_set()
    {
        causes.push(Cause::required("data[username]", ""));
        causes.push(Cause::required("data[password]", ""));
    }
    let account = "kubernetes.io/service-account.name";
    if secret.get("type").text() == "kubernetes.io/service-account-token"
        && secret.dig(&["metadata", "annotations", account]).text().is_empty()
    {
        causes.push(Cause::required(format!("metadata.annotations[{account}]"), ""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conformance_the_login_of_a_registry_is_json() {
        let faults = |content: &str| {
            let data = json!({ ".dockerconfigjson": STANDARD.encode(content) });
            let mut causes = Vec::new();
            validate(&json!({ "type": "kubernetes.io/dockerconfigjson", "data": data }), &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
        };
        assert!(faults("{\"auths\":{}}").is_empty());
        for bad in ["", "x", "[]", "{"] {
            let found = faults(bad);
            let hidden = "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": ";
            assert!(matches!(found.as_slice(), [one] if one.starts_with(hidden)), "{bad}: {found:?}");
        }
    }
}
