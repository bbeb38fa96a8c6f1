//! `AdmissionReview`: what a webhook is told, and what its answer means. Without IO; answers are any bytes (X4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::{Kind, Status, object, schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::matching::{Attributes, TypeName, converted};

/// How many audit annotations of one answer are noted.
const MAX_ANNOTATIONS: usize = 64;
/// How many warnings of one answer are passed on, and how long each may be (characters; upstream's limits).
const MAX_WARNINGS: usize = 64;
const MAX_WARNING: usize = 4096;

/// The version of AdmissionReview that a webhook takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V1,
    V1Beta1,
}

impl Version {
    /// Of those that a webhook names the first that is known.
    pub fn of(named: &[String]) -> Option<Self> {
        named.iter().find_map(|name| match name.as_str() {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// What a webhook is asked.
pub struct Question<'a> {
    pub attributes: &'a Attributes,
    /// As which kind the webhook knows the object.
    pub resource: &'a Kind,
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
    /// `authentication.k8s.io/v1` UserInfo.
    pub user: &'a Value,
    pub dry_run: bool,
    /// `CreateOptions` and so on.
    pub options: &'a Value,
}

impl Question<'_> {
    /// The review that is posted.
    pub fn review(&self, version: Version, uid: &str) -> Value {
        let asked = self.attributes;
        let (own, shown) = (&asked.kind, self.resource);
        let type_name = |kind: &Kind| {
            let name = asked.object_type.clone().unwrap_or_else(|| TypeName::of(kind));
            json!({ "group": name.group, "version": name.version, "kind": name.kind })
        };
        let resource = |kind: &Kind| json!({ "group": kind.group, "version": kind.version, "resource": kind.plural });
        let as_shown = |value: Option<&Value>| match (value, &asked.object_type) {
            (Some(value), None) => converted(value, own, shown),
            (Some(value), Some(_)) => value.clone(),
            (None, _) => Value::Null,
        };
        let mut request = json!({
            "uid": uid, "kind": type_name(shown), "resource": resource(shown),
            "requestKind": type_name(own), "requestResource": resource(own),
            "operation": asked.operation.word(), "userInfo": self.user,
            "object": as_shown(self.object), "oldObject": as_shown(self.old),
            "dryRun": self.dry_run, "options": self.options,
        });
        let texts = [
            ("subResource", &asked.subresource),
            ("requestSubResource", &asked.subresource),
            ("name", &asked.name),
            ("namespace", &asked.namespace),
        ];
        for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            request[field] = text.as_str().into();
        }
        json!({ "kind": "AdmissionReview", "apiVersion": version.api_version(), "request": request })
    }
}

/// What a webhook said.
#[derive(Debug, Default, PartialEq)]
pub struct Response {
    pub allowed: bool,
    /// The `status` of a refusal.
    pub status: Value,
    /// A JSON patch, not yet parsed.
    pub patch: Option<Vec<u8>>,
    pub annotations: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Review {
    kind: String,
    api_version: String,
    response: Option<Written>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    uid: Option<String>,
    allowed: Option<bool>,
    status: Option<Value>,
    patch: Option<String>,
    patch_type: Option<String>,
    audit_annotations: Option<Map<String, Value>>,
    warnings: Option<Vec<String>>,
}

impl Response {
    /// Reads an answer to the question `uid`; an error says what is wrong with it.
    pub fn read(body: &[u8], version: Version, uid: &str, mutates: bool) -> Result<Self, String> {
        // What it comes to in memory is bounded, and not only its length (X4).
        let review = schema::parse::parse(body).and_then(|parsed| serde_json::from_value::<Review>(parsed.value));
        let review = review.map_err(|error| format!("the answer is no review: {error}"))?;
        let Some(written) = review.response else { return Err("webhook response was absent".to_owned()) };
        let wanted = version.api_version();
        let is_unnamed = review.kind.is_empty() && review.api_version.is_empty() && version == Version::V1Beta1;
        if !is_unnamed && (review.kind != "AdmissionReview" || review.api_version != wanted) {
            let (got_version, got) = (&review.api_version, &review.kind);
            return Err(format!(
                "expected webhook response of {wanted}, Kind=AdmissionReview, got {got_version}, Kind={got}"
            ));
        }
        let own = written.uid.unwrap_or_default();
        if version == Version::V1 && own != uid {
            return Err(format!("expected response.uid={uid:?}, got {own:?}"));
        }
        let patch = patch(written.patch, written.patch_type, version, mutates)?;
        let shorten = |text: String| text.chars().take(MAX_WARNING).collect::<String>();
        let annotations = written.audit_annotations.unwrap_or_default().into_iter();
        Ok(Self {
            allowed: written.allowed.unwrap_or(false),
            status: written.status.unwrap_or(Value::Null),
            patch,
            annotations: annotations
                .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
                .take(MAX_ANNOTATIONS)
                .collect(),
            warnings: written.warnings.unwrap_or_default().into_iter().take(MAX_WARNINGS).map(shorten).collect(),
        })
    }

    /// The refusal as its client gets it.
    pub fn refusal(&self, webhook: &str) -> Status {
        let by = format!("admission webhook {webhook:?} denied the request");
        let text = |field: &str| object::text(&self.status, &[field]);
        let message = match (text("message"), text("reason")) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = self.status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let mut status = Status::new(
            code.filter(|code| (400..600).contains(code)).unwrap_or(400),
            text("reason").to_owned(),
            message,
        );
        status.details = self.status.get("details").filter(|details| details.is_object()).cloned().unwrap_or_default();
        status
    }
}

/// The patch of an answer, decoded.
fn patch(
    patch: Option<String>,
    patch_type: Option<String>,
    version: Version,
    mutates: bool,
) -> Result<Option<Vec<u8>>, String> {
    let patch = patch.filter(|patch| !patch.is_empty());
    if !mutates {
        return match (version, patch, patch_type) {
            (Version::V1, Some(_), _) => Err("validating webhook may not return response.patch".to_owned()),
            (Version::V1, None, Some(_)) => Err("validating webhook may not return response.patchType".to_owned()),
            _ => Ok(None),
        };
    }
    let Some(patch) = patch else {
        return match (version, patch_type) {
            (Version::V1, Some(_)) => Err("webhook returned response.patchType but not response.patch".to_owned()),
            _ => Ok(None),
        };
    };
    match (version, patch_type.as_deref()) {
        (Version::V1, None) => return Err("webhook returned response.patch but not response.patchType".to_owned()),
        (_, None | Some("JSONPatch")) => {}
        (_, Some(other)) => return Err(format!("webhook returned invalid response.patchType of {other:?}")),
    }
    STANDARD.decode(patch).map(Some).map_err(|error| format!("response.patch is no base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamic::matching::Operation;
    use mainstay_api::kinds;

    #[test]
    fn a_review_names_both_what_was_asked_and_what_is_shown() {
        let attributes = Attributes::new(&kinds::HORIZONTAL_POD_AUTOSCALER_V1, "status", Operation::Update, "ns", "a");
        let object = json!({ "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": { "name": "a" },
            "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } });
        let question = Question {
            attributes: &attributes,
            resource: &kinds::HORIZONTAL_POD_AUTOSCALER,
            object: Some(&object),
            old: None,
            user: &json!({ "username": "jane" }),
            dry_run: true,
            options: &json!({ "kind": "UpdateOptions" }),
        };
        let review = question.review(Version::V1, "u");
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        let request = &review["request"];
        assert_eq!(
            request["kind"],
            json!({ "group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler" })
        );
        assert_eq!(request["requestKind"]["version"], "v1");
        assert_eq!(request["requestResource"]["resource"], "horizontalpodautoscalers");
        assert_eq!((&request["subResource"], &request["dryRun"]), (&json!("status"), &json!(true)));
        assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
        assert_eq!(request["object"]["spec"]["metrics"][0]["resource"]["name"], "cpu");
        assert!(request["oldObject"].is_null());
    }

    fn answer(response: Value) -> Vec<u8> {
        json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response })
            .to_string()
            .into()
    }

    #[test]
    fn wrong_answers_are_refused_in_upstreams_words() {
        let read = |body: &[u8], mutates| Response::read(body, Version::V1, "u", mutates).map(|_| ());
        let patch = STANDARD.encode("[]");
        let table: Vec<(Vec<u8>, bool, &str)> = vec![
            (answer(Value::Null), true, "webhook response was absent"),
            (answer(json!({ "uid": "v", "allowed": true })), true, "expected response.uid=\"u\", got \"v\""),
            (
                json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v2", "response": { "uid": "u" } })
                    .to_string()
                    .into(),
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v2, \
                    Kind=AdmissionReview",
            ),
            (
                answer(json!({ "uid": "u", "patch": patch })),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                answer(json!({ "uid": "u", "patchType": "JSONPatch" })),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                answer(json!({ "uid": "u", "patchType": "Merge", "patch": patch })),
                true,
                "webhook returned invalid response.patchType of \"Merge\"",
            ),
            (
                answer(json!({ "uid": "u", "patchType": "JSONPatch", "patch": patch })),
                false,
                "validating webhook may not return response.patch",
            ),
        ];
        for (body, mutates, wanted) in table {
            assert_eq!(read(&body, mutates), Err(wanted.to_owned()));
        }
        assert_eq!(read(&answer(json!({ "uid": "u", "patchType": "JSONPatch", "patch": patch })), true), Ok(()));
    }

    #[test]
    fn a_refusal_carries_the_webhooks_words_and_always_refuses() {
        let refusal = |status: Value| {
            let body = answer(json!({ "uid": "u", "allowed": false, "status": status }));
            let response = Response::read(&body, Version::V1, "u", true).expect("an answer");
            let status = response.refusal("a.b.c");
            (status.code, status.reason.to_string(), status.message)
        };
        let by = "admission webhook \"a.b.c\" denied the request";
        assert_eq!(refusal(Value::Null), (400, String::new(), format!("{by} without explanation")));
        assert_eq!(
            refusal(json!({ "code": 403, "reason": "Forbidden", "message": "no" })),
            (403, "Forbidden".into(), format!("{by}: no"))
        );
        assert_eq!(refusal(json!({ "code": 200, "reason": "x" })), (400, "x".into(), format!("{by}: x")));
        assert_eq!(refusal(json!({ "code": 99_999 })).0, 400);
    }

    #[test]
    fn x4_any_bytes_are_an_answer() {
        let seed =
            answer(json!({ "uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "W10=", "warnings": ["w"],
                "auditAnnotations": { "a": "b" } }));
        assert!(Response::read(&seed, Version::V1, "u", true).is_ok());
        let mut state = 7_u64;
        for _ in 0..5000 {
            let mut damaged = seed.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % damaged.len();
                damaged[at] = (state >> 24) as u8;
            }
            for version in [Version::V1, Version::V1Beta1] {
                if let Ok(response) = Response::read(&damaged, version, "u", true) {
                    let _ = response.refusal("x");
                }
            }
        }
    }
}
