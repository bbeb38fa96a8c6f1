//! Objects as stored bytes and back.

use std::ops::Range;

use bytes::Bytes;
use mainstay_api::{Kind, Status, kinds, object};
use mainstay_store::{Encoded, SEALED_PREFIX};
use serde_json::Value;

/// An object larger than this is not stored (bytes; upstream's etcd limit).
pub const MAX_OBJECT: usize = 1_572_864;

/// A placeholder that cannot occur in JSON text that serde writes: the quotes are not escaped inside it.
const EMPTY_VERSION: &str = "\"resourceVersion\":\"\"";

/// Refuses an object that is too large to be stored, before anything is made of it (X4). Of a kind with a limit of its
/// own for what it holds, that limit is named, as upstream does.
pub fn fits(kind: &Kind, object: &Value) -> Result<(), Status> {
    /// Counts, and stops when it is too much.
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::FileTooLarge)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    if serde_json::to_writer(Counter(MAX_OBJECT), object).is_ok() {
        return Ok(());
    }
    let mut causes = Vec::new();
    if [&kinds::CONFIG_MAP, &kinds::SECRET].contains(&kind) {
        (kind.validate)(kind, object, &mut causes);
    }
    Err(match causes.is_empty() {
        true => Status::too_large(MAX_OBJECT),
        false => Status::invalid(kind, object::name(object), &causes),
    })
}

/// Encodes an object with a hole where the store writes its revision. The object is the same afterwards.
pub fn encode(object: &mut Value) -> Result<Encoded, Status> {
    let had = object::ensure(object, &["metadata"]).insert("resourceVersion".to_owned(), Value::String(String::new()));
    let text = object::print(object);
    let metadata = object::ensure(object, &["metadata"]);
    match had {
        Some(version) => metadata.insert("resourceVersion".to_owned(), version),
        None => metadata.remove("resourceVersion"),
    };
    if text.len() > MAX_OBJECT {
        return Err(Status::too_large(MAX_OBJECT));
    }
    // Another empty `resourceVersion` may stand before metadata's (in an annotation's text its quotes are escaped,
    // but in a ConfigMap's data or an object reference it is a field of its own), so the place is found by walking.
    let revision_at = revision_offset(&text);
    Ok(Encoded { bytes: Bytes::from(text), revision_at })
}

/// A custom resource as a version of its kind has it, where it is stored in another: without a conversion of their own
/// they differ in `apiVersion` alone.
pub fn in_version(kind: &Kind, bytes: &Bytes) -> Option<Bytes> {
    let wanted = format!("\"{}\"", kind.api_version());
    let text = std::str::from_utf8(bytes).ok()?;
    let start = top_level_field(text, "apiVersion")?;
    let end = end_of_string(bytes, start)?;
    // A deletion may be answered by a Status.
    if text.get(start..end)? == wanted || text.get(start..end)? == "\"v1\"" {
        return None;
    }
    Some(Bytes::from([text.get(..start)?, &wanted, text.get(end..)?].concat()))
}

/// The byte offset between the quotes of `metadata.resourceVersion`.
///
/// `{"metadata":{"name":"a","resourceVersion":""}}` → the offset of the second quote of `""`.
fn revision_offset(text: &str) -> Option<usize> {
    let metadata = top_level_field(text, "metadata")?;
    let inside = text.get(metadata..)?;
    let version = top_level_field(inside, "resourceVersion")?;
    debug_assert!(text[..metadata + version].ends_with(&EMPTY_VERSION[..EMPTY_VERSION.len() - 2]));
    Some(metadata + version + 1)
}

/// The `metadata.resourceVersion` of an object as it is stored.
pub fn version(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()?.get(version_range(bytes)?)
}

/// An object, as it is stored, with another `metadata.resourceVersion`.
pub fn at_version(bytes: &Bytes, version: &str) -> Option<Bytes> {
    let range = version_range(bytes)?;
    let parts = [bytes.get(..range.start)?, version.as_bytes(), bytes.get(range.end..)?];
    Some(Bytes::from(parts.concat()))
}

/// An object, as it is stored, with a hole where its revision was; and whether any finalizer holds it. Without making
/// anything of the rest of it.
pub fn with_hole(bytes: &Bytes) -> Option<(Encoded, bool)> {
    let range = version_range(bytes)?;
    let text = std::str::from_utf8(bytes).ok()?;
    let metadata = text.get(top_level_field(text, "metadata")?..)?;
    let is_held = top_level_field(metadata, "finalizers").is_some();
    let whole = [bytes.get(..range.start)?, bytes.get(range.end..)?].concat();
    Some((Encoded { bytes: Bytes::from(whole), revision_at: Some(range.start) }, is_held))
}

/// Where `metadata.resourceVersion` stands, without its quotes.
fn version_range(bytes: &Bytes) -> Option<Range<usize>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let at = top_level_field(text, "metadata")?;
    let inside = text.get(at..)?;
    let start = at + top_level_field(inside, "resourceVersion")?;
    let end = end_of_string(bytes, start)?;
    (bytes.get(start) == Some(&b'"')).then_some(start + 1..end - 1)
}

/// Where the value of a field of the object at the start of `text` begins. `text` is compact JSON.
fn top_level_field(text: &str, field: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut expects_key) = (0, 0_usize, false);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = end_of_string(bytes, at)?;
                if depth == 1 && expects_key {
                    expects_key = false;
                    if text.get(at + 1..end - 1) == Some(field) && bytes.get(end) == Some(&b':') {
                        return Some(end + 1);
                    }
                }
                at = end;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                expects_key = depth == 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return None;
                }
            }
            b',' if depth == 1 => expects_key = true,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The offset after the closing quote of the string that opens at `at`.
fn end_of_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// An encoded object that was never stored, without the field for its version.
pub fn without_version(bytes: &Bytes) -> Bytes {
    let Ok(mut object) = serde_json::from_slice::<Value>(bytes) else { return bytes.clone() };
    object::ensure(&mut object, &["metadata"]).remove("resourceVersion");
    Bytes::from(object::print(&object))
}

/// A stored object. What is stored was checked before, so a failure is the server's own.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    is_open(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| Status::internal(format!("a stored object cannot be read: {error}")))
}

/// Refuses a row that stayed sealed in memory: whoever has its key was away when the store was opened (A10).
///
/// # Errors
/// 500, in upstream's words.
pub fn is_open(bytes: &[u8]) -> Result<(), Status> {
    let Some(rest) = bytes.strip_prefix(SEALED_PREFIX) else { return Ok(()) };
    let head: Vec<&[u8]> = rest.split(|byte| *byte == b':').take(3).collect();
    let name = String::from_utf8_lossy(head.get(2).copied().unwrap_or_default()).into_owned();
    Err(Status::internal(format!(
        "unable to transform a stored object: failed to decrypt DEK, error: KMS provider {name:?} did not do it; \
            /readyz/kms-providers says why"
    )))
}

/// The metadata of a stored object without the rest of it.
pub fn decode_metadata(bytes: &[u8]) -> Result<Value, Status> {
    #[derive(serde::Deserialize)]
    struct OnlyMetadata {
        #[serde(default)]
        metadata: Value,
    }
    is_open(bytes)?;
    let only: OnlyMetadata = serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("a stored object cannot be read: {error}")))?;
    Ok(serde_json::json!({ "metadata": only.metadata }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_store::Revision;
    use serde_json::json;

    #[test]
    fn the_revision_goes_into_metadata_and_nowhere_else() {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Event",
            "aRef": { "resourceVersion": "" },
            "data": { "x": "{\"metadata\":{\"resourceVersion\":\"\"}}", "metadata": "\\\"" },
            "metadata": { "annotations": { "resourceVersion": "" }, "name": "a", "resourceVersion": "7" },
        });
        let before = object.clone();
        let encoded = encode(&mut object).expect("small");
        assert_eq!(object, before);
        let back = decode(&encoded.at(Revision(42))).expect("json");
        let mut wanted = object;
        wanted["metadata"]["resourceVersion"] = json!("42");
        assert_eq!(back, wanted);
    }

    #[test]
    fn an_object_above_the_limit_is_refused() {
        let mut object = json!({ "metadata": {}, "data": "x".repeat(MAX_OBJECT) });
        assert_eq!(encode(&mut object).expect_err("too large").code, 413);
        assert_eq!(fits(&kinds::POD, &object).expect_err("too large").code, 413);
        assert!(fits(&kinds::POD, &json!({ "data": "x".repeat(MAX_OBJECT / 2) })).is_ok());
        let map = json!({ "metadata": { "name": "big" }, "data": { "a": "x".repeat(MAX_OBJECT) } });
        let refused = fits(&kinds::CONFIG_MAP, &map).expect_err("too large");
        assert_eq!((refused.code, refused.message.contains("Too long")), (422, true), "{}", refused.message);
    }
}
