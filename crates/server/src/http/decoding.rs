//! Bodies of requests, by their content type.

use mainstay_api::patch::PatchType;
use mainstay_api::schema::{self, FieldValidation};
use mainstay_api::table::{Media, YAML};
use mainstay_api::{Kind, Status, protobuf};
use serde_json::Value;

use crate::api::Query;

fn media(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// 415 for anything but JSON (and what the caller has looked at).
fn json_only(content_type: &str) -> Result<(), Status> {
    match media(content_type) {
        // client-go sends DeleteOptions and reviews without a type now and then.
        "" | "application/json" => Ok(()),
        _ => Err(Status::unsupported_media_type(Media::TYPES)),
    }
}

/// What kind of patch a body is.
///
/// # Errors
/// 415.
pub fn patch_type(content_type: &str) -> Result<PatchType, Status> {
    PatchType::from_content_type(content_type).ok_or_else(|| Status::unsupported_media_type(PatchType::CONTENT_TYPES))
}

/// Reads any object, by its content type.
///
/// # Errors
/// 400 for what is no object, 415 for another type.
pub fn parse(content_type: &str, body: &[u8]) -> Result<Value, Status> {
    let value = match media(content_type) {
        protobuf::CONTENT_TYPE => return protobuf::read_any(body),
        YAML => schema::parse_yaml(body)?.0,
        _ => {
            json_only(content_type)?;
            let parsed = schema::parse::parse(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type Object): couldn't get version/kind; json \
                        parse error: {error}"
                ))
            })?;
            parsed.value
        }
    };
    if value.is_object() { Ok(value) } else { Err(Status::bad_request("the body of the request is not an object")) }
}

/// What is to be done about fields that are not known; `options` is what the verb's parameters are called.
///
/// # Errors
/// 422 for another word.
pub fn validation(query: &Query, options: &str) -> Result<FieldValidation, Status> {
    let text = query.get("fieldValidation").map_or("", String::as_str);
    FieldValidation::from_parameter(text).ok_or_else(|| {
        Status::new(
            422,
            "Invalid",
            format!(
                "{options}.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: {text:?}: supported \
                values: \"\", \"Ignore\", \"Strict\", \"Warn\""
            ),
        )
    })
}

/// Reads an object of a kind, by its content type, with warnings.
///
/// # Errors
/// 400 for what is no such object, 415 for another type.
pub fn decode(
    kind: &Kind,
    content_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    if media(content_type) == protobuf::CONTENT_TYPE {
        let mut object = protobuf::read(kind, body)?;
        let warnings = schema::decode(kind, &mut object, validation)?;
        return Ok((object, warnings));
    }
    if media(content_type) == YAML {
        return schema::decode_yaml(kind, body, validation);
    }
    json_only(content_type)?;
    schema::decode_bytes(kind, body, validation)
}
