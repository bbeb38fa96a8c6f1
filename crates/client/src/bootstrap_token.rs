//! Bootstrap tokens as the Secrets that they are, in the format of Kubernetes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::object;
use serde_json::Value;

/// The namespace of these Secrets.
pub const NAMESPACE: &str = "kube-system";
/// What their names begin with; the token's id follows.
pub const PREFIX: &str = "bootstrap-token-";
/// Their type.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";

/// One of a Secret's data as text, `""` where it has none. What is no UTF-8 has replacement characters there, so that
/// what cannot be read is not taken for absent.
pub fn field(secret: &Value, name: &str) -> String {
    let decoded = STANDARD.decode(object::text(secret, &["data", name])).unwrap_or_default();
    String::from_utf8_lossy(&decoded).into_owned()
}
