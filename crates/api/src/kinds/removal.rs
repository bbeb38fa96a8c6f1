//! Data that a node has begun to remove: from then on nobody can ask for it to be kept (A10). A policy that was changed
//! before is seen by the node; one that is changed later is refused, rather than accepted and ignored.

use serde_json::Value;

use super::field::Field;
use crate::object::{is_terminating, text};
use crate::status::Cause;

/// On a PersistentVolume, or the content of a snapshot, that is being deleted: the node that has begun to remove what
/// is behind it.
pub const REMOVING: &str = "mainstay.io/removing";

/// Checks an update of such an object, whose field `policy` in the spec says what becomes of the data.
pub fn validate_update(new: &Value, old: &Value, policy: &str, causes: &mut Vec<Cause>) {
    let mark = |object| text(object, &["metadata", "annotations", REMOVING]);
    if mark(old).is_empty() || !is_terminating(old) {
        return;
    }
    let because = "the data is being removed";
    if mark(new) != mark(old) {
        causes.push(Cause::forbidden(format!("metadata.annotations[{REMOVING}]"), because));
    }
    let of = |object| text(object, &["spec", policy]);
    if of(new) != of(old) {
        causes.push(Cause::forbidden(Field::root(new).get("spec").get(policy).path, because));
    }
}
