//! Errors as Kubernetes answers them: `metav1.Status`. The only place where an error becomes one.

use serde_json::{Value, json};

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
    /// `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`, …
    pub reason: &'static str,
    /// What kubectl shows.
    pub message: String,
    /// `details` of the Status object (`name`, `group`, `kind`, `uid`, `causes`, `retryAfterSeconds`), or null.
    pub details: Value,
}

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
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
        status
    }
}
