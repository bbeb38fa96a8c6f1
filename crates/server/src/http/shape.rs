//! Objects as a client wants them: as they are, as rows of a table, or their metadata alone.

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::table::{IncludeObject, Representation, partial, table};
use mainstay_api::{Kind, Status, object};
use serde_json::{Value, json};

use super::listing::Listing;
use crate::api::{List, codec};

/// How the objects of one response are shown.
pub struct Shape {
    kind: Kind,
    form: Representation,
    include: IncludeObject,
    now: Timestamp,
    /// A watch's first table carries the columns, later ones need not.
    columns_sent: bool,
}

impl Shape {
    /// For objects of a kind; `now` gives ages.
    pub fn new(kind: &Kind, form: Representation, include: IncludeObject, now: Timestamp) -> Self {
        Self { kind: kind.clone(), form, include, now, columns_sent: false }
    }

    fn is_converted(&self) -> bool {
        self.kind.stored_as.is_some() || self.kind.custom.is_some()
    }

    /// Whether objects go as they are stored.
    pub fn is_plain(&self) -> bool {
        self.form == Representation::Object && !self.is_converted()
    }

    /// An object of the stored version as one of this version; `None` where there is nothing to convert.
    pub fn converted(&self, bytes: &Bytes) -> Option<Bytes> {
        if self.kind.custom.is_some() {
            return codec::in_version(&self.kind, bytes);
        }
        self.kind.stored_as?;
        let mut object = codec::decode(bytes).ok()?;
        // A deletion may be answered by a Status.
        if object::text(&object, &["kind"]) != self.kind.kind {
            return None;
        }
        self.kind.from_stored(&mut object);
        Some(Bytes::from(object.to_string()))
    }

    /// One object.
    pub fn one(&self, bytes: &Bytes) -> Bytes {
        self.shaped(bytes, true)
    }

    /// The object of a watch event, whose age counts from `now`.
    pub fn event(&mut self, bytes: &Bytes, now: Timestamp) -> Bytes {
        self.now = now;
        let shaped = self.shaped(bytes, !self.columns_sent);
        self.columns_sent = true;
        shaped
    }

    fn shaped(&self, bytes: &Bytes, columns: bool) -> Bytes {
        let converted = self.converted(bytes);
        let bytes = converted.as_ref().unwrap_or(bytes);
        match self.form {
            Representation::Object => bytes.clone(),
            Representation::Partial => metadata_only(bytes).unwrap_or_else(|| bytes.clone()),
            Representation::Table => {
                let Ok(object) = codec::decode(bytes) else { return bytes.clone() };
                let metadata = json!({ "resourceVersion": object::resource_version(&object) });
                Bytes::from(table(&self.kind, [&object], metadata, self.include, columns, self.now).to_string())
            }
        }
    }

    /// An item of a list.
    pub fn item(&self, bytes: &Bytes) -> Result<Bytes, Status> {
        let converted = self.converted(bytes);
        let bytes = converted.as_ref().unwrap_or(bytes);
        match self.form {
            Representation::Object => Ok(bytes.clone()),
            Representation::Partial => Ok(Bytes::from(partial(&codec::decode_metadata(bytes)?).to_string())),
            Representation::Table => {
                let object = codec::decode(bytes)?;
                let mut table = table(&self.kind, [&object], Value::Null, self.include, false, self.now);
                Ok(Bytes::from(table["rows"][0].take().to_string()))
            }
        }
    }

    /// A list, whose items are made when they are sent.
    pub fn list(self, list: List) -> Listing {
        let mut metadata = json!({ "resourceVersion": list.revision.to_string() });
        if !list.next.is_empty() {
            metadata["continue"] = list.next.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let head = match self.form {
            Representation::Table => {
                let none: [&Value; 0] = [];
                let columns =
                    table(&self.kind, none, Value::Null, self.include, true, self.now)["columnDefinitions"].take();
                format!(
                    "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":["
                )
            }
            form => {
                let (kind, api_version) = match form {
                    Representation::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
                    _ => (format!("{}List", self.kind.kind), self.kind.api_version()),
                };
                format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
            }
        };
        Listing::new(Bytes::from(head), list.items, b"]}", self)
    }
}

fn metadata_only(bytes: &[u8]) -> Option<Bytes> {
    let object = codec::decode_metadata(bytes).ok()?;
    Some(Bytes::from(partial(&object).to_string()))
}
