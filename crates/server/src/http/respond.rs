//! Responses: bodies, media types, and what a client accepts.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use mainstay_api::parameters::is_true;
use mainstay_api::schema::yaml;
use mainstay_api::table::{Media, YAML};
use mainstay_api::{Status, object, protobuf};

use super::indent::Indented;
use super::listing::Listing;
use super::watching::WatchBody;
use crate::api::Reply;

/// What carries a failure of a body that is being sent: the connection is cut.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A response's body.
pub enum Body {
    /// Bytes that are there.
    Full(Option<Bytes>),
    /// An object that is indented as it is read.
    Indented(Indented),
    /// A list, made as it is read.
    List(Box<Listing>),
    /// Events as they happen.
    Watch(Box<WatchBody>),
    /// A kubelet's answer, passed on.
    Incoming(Incoming),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Indented(object) => Poll::Ready(object.next().map(|bytes| Ok(Frame::data(bytes)))),
            Self::List(list) => Poll::Ready(list.next().map(|bytes| bytes.map(Frame::data))),
            Self::Watch(watch) => watch.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Indented(_) | Self::List(_) | Self::Watch(_) => false,
            Self::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::List(list) => list.length().map_or_else(Default::default, http_body::SizeHint::with_exact),
            Self::Indented(_) | Self::Watch(_) => http_body::SizeHint::default(),
            Self::Incoming(incoming) => incoming.size_hint(),
        }
    }
}

impl Body {
    /// About how many bytes it keeps in memory until it is sent.
    pub fn weight(&self) -> u64 {
        match self {
            Self::Full(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Indented(object) => object.weight(),
            Self::List(list) => list.weight(),
            Self::Watch(_) | Self::Incoming(_) => 0,
        }
    }

    /// Whether it may be compressed: not what has to go out as it happens.
    pub fn is_compressible(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Indented(_) | Self::List(_))
    }
}

fn code_of(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A JSON response.
pub fn json(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(body.into())));
    *response.status_mut() = code_of(code);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An object, as upstream prints it.
pub fn printed(code: u16, object: &serde_json::Value) -> Response<Body> {
    json(code, object::print(object))
}

/// A list.
pub fn list(list: Listing) -> Response<Body> {
    let media = list.media();
    let mut response = json(200, Bytes::new());
    *response.body_mut() = Body::List(Box::new(list));
    match media {
        Media::Json => response,
        Media::Yaml => of_type(response, YAML),
        Media::Protobuf => of_type(response, protobuf::CONTENT_TYPE),
    }
}

/// A watch.
pub fn watch(watch: WatchBody) -> Response<Body> {
    let media = watch.media();
    let mut response = json(200, Bytes::new());
    *response.body_mut() = Body::Watch(Box::new(watch));
    if media == Media::Protobuf { of_type(response, protobuf::WATCH_CONTENT_TYPE) } else { response }
}

/// An object that is there in JSON as protobuf, in its envelope; `None` for one that has no message.
pub fn message(json: &[u8]) -> Option<Vec<u8>> {
    protobuf::write_any(&serde_json::from_slice(json).ok()?).ok()
}

/// Notes the media type that was agreed on for an answer.
pub fn agreed(mut response: Response<Body>, media: Media) -> Response<Body> {
    response.extensions_mut().insert(media);
    response
}

/// An answer in the media type that was agreed on, or else in this one. What is no object, or has no message, stays
/// JSON, which is indented where a person reads it ([`is_read_by_a_person`]). Documents, which may be of many
/// megabytes, are no objects: they are not even looked into (X4).
pub fn in_media(mut response: Response<Body>, otherwise: Media, by_a_person: bool) -> Response<Body> {
    let agreed: Option<Media> = response.extensions_mut().remove();
    if response.headers().get(header::CONTENT_TYPE).is_none_or(|value| value != "application/json") {
        return response;
    }
    let (head, body) = response.into_parts();
    let (body, type_) = match (body, agreed.unwrap_or(otherwise)) {
        (Body::Full(Some(bytes)), Media::Json) if by_a_person && (agreed.is_some() || is_object(&bytes)) => {
            (Indented::new(bytes).map_or_else(Body::Indented, |whole| Body::Full(Some(whole))), None)
        }
        (Body::Full(Some(bytes)), media) if agreed.is_some() || is_object(&bytes) => {
            let (written, type_) = match media {
                Media::Protobuf => (message(&bytes).map(Bytes::from), Some(protobuf::CONTENT_TYPE)),
                Media::Yaml => (in_yaml(&bytes).map(Bytes::from), Some(YAML)),
                Media::Json => (None, None),
            };
            let type_ = type_.filter(|_| written.is_some());
            (Body::Full(Some(written.unwrap_or(bytes))), type_)
        }
        (Body::List(list), Media::Json) if by_a_person => (Body::List(Box::new(list.indented())), None),
        (body, _) => (body, None),
    };
    let response = Response::from_parts(head, body);
    match type_ {
        Some(type_) => of_type(response, type_),
        None => response,
    }
}

/// Whether JSON begins as objects are printed ([`object::print`]).
fn is_object(json: &[u8]) -> bool {
    json.starts_with(b"{\"kind\":") || json.starts_with(b"{\"apiVersion\":")
}

/// An object that is there in JSON as YAML.
fn in_yaml(json: &[u8]) -> Option<String> {
    Some(yaml::write(&serde_json::from_slice(json).ok()?))
}

/// Whether JSON is wanted with lines and indents: the parameter `pretty` says so, or else the program that asks is one
/// that shows people what it gets (upstream's list).
pub fn is_read_by_a_person<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let pretty = query.split('&').find_map(|pair| pair.strip_prefix("pretty=")).filter(|value| !value.is_empty());
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    pretty.map_or_else(|| ["curl", "Wget", "Mozilla/5.0"].iter().any(|program| agent.starts_with(program)), is_true)
}

/// The same response with another content type.
pub fn of_type(mut response: Response<Body>, media: &str) -> Response<Body> {
    if let Ok(media) = HeaderValue::try_from(media) {
        response.headers_mut().insert(header::CONTENT_TYPE, media);
    }
    response
}

/// A plain text response.
pub fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = json(code, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A failure.
pub fn status(status: &Status) -> Response<Body> {
    let mut response = json(status.code, object::print(&status.to_json()));
    if let Some(seconds) = status.details.get("retryAfterSeconds").and_then(serde_json::Value::as_u64) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A pipeline's answer, with its warnings.
pub fn reply(reply: Reply) -> Response<Body> {
    let mut response = json(reply.code, reply.body);
    warnings(&mut response, &reply.warnings);
    response
}

/// How many warnings are told at most, and how long they may be altogether (bytes; upstream's limits).
const MAX_WARNINGS: usize = 64;
const MAX_WARNING_BYTES: usize = 4096;

/// Adds `Warning: 299` headers.
pub fn warnings(response: &mut Response<Body>, warnings: &[String]) {
    for value in warned(warnings).iter().filter_map(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().append(header::WARNING, value);
    }
}

/// The values of `Warning` headers for these warnings.
pub fn warned(warnings: &[String]) -> Vec<String> {
    let (mut size, mut all) = (0, Vec::new());
    for warning in warnings.iter().take(MAX_WARNINGS) {
        let mut quoted = String::with_capacity(warning.len() + 10);
        for c in warning.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        size += quoted.len();
        if size > MAX_WARNING_BYTES {
            break;
        }
        all.push(format!("299 - \"{quoted}\""));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_what_is_no_object_is_answered_as_it_is() {
        let told = |body: &'static str, media, by_a_person| {
            let response = in_media(json(200, body), media, by_a_person);
            let type_ = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
            let Body::Full(Some(bytes)) = response.into_body() else { panic!("{body}") };
            (type_, String::from_utf8(bytes.to_vec()).expect("text"))
        };
        let document = r#"{"swagger":"2.0","kind":"no"}"#;
        for (media, by_a_person) in [(Media::Yaml, false), (Media::Protobuf, false), (Media::Json, true)] {
            assert_eq!(told(document, media, by_a_person), ("application/json".to_owned(), document.to_owned()));
        }
        let status = r#"{"kind":"Status","apiVersion":"v1"}"#;
        assert_eq!(told(status, Media::Yaml, false), (YAML.to_owned(), "apiVersion: v1\nkind: Status\n".to_owned()));
        assert_eq!(told(status, Media::Protobuf, false).0, protobuf::CONTENT_TYPE);
        let lines = "{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\"\n}";
        assert_eq!(told(status, Media::Json, true), ("application/json".to_owned(), lines.to_owned()));
        assert_eq!(told(status, Media::Json, false), ("application/json".to_owned(), status.to_owned()));
    }
}
