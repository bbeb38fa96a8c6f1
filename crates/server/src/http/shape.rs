//! Objects as a client wants them: as they are, as rows of a table, or their metadata alone.

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::schema::yaml;
use mainstay_api::table::{IncludeObject, Media, MetaVersion, Representation, partial, table};
use mainstay_api::{Kind, Status, object, protobuf};
use mainstay_store::Entry;
use serde_json::{Value, json};

use super::listing::Listing;
use crate::api::{List, codec};

/// How the objects of one response are shown.
pub struct Shape {
    kind: Kind,
    form: Representation,
    /// What lists and watches are written as. Single objects are JSON here.
    pub media: Media,
    include: IncludeObject,
    now: Timestamp,
    /// A watch's first table carries the columns, later ones need not.
    columns_sent: bool,
}

/// The type of an object's metadata alone.
const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";

impl Shape {
    /// For objects of a kind; `now` gives ages.
    pub fn new(kind: &Kind, (form, media): (Representation, Media), include: IncludeObject, now: Timestamp) -> Self {
        Self { kind: kind.clone(), form, media, include, now, columns_sent: false }
    }

    fn is_converted(&self) -> bool {
        self.kind.stored_as.is_some() || self.kind.custom.is_some()
    }

    /// Whether objects go as they are stored.
    pub fn is_plain(&self) -> bool {
        self.form == Representation::Object && self.media == Media::Json && !self.is_converted()
    }

    /// An object of the stored version as one of this version; `None` where there is nothing to convert.
    pub fn converted(&self, bytes: &Bytes) -> Option<Bytes> {
        match &self.kind.custom {
            Some(custom) if codec::version(bytes).is_some_and(|version| custom.may_lack_defaults(version)) => {}
            Some(_) => return codec::in_version(&self.kind, bytes),
            None => drop(self.kind.stored_as?),
        }
        let mut object = codec::decode(bytes).ok()?;
        // A deletion may be answered by a Status.
        if object::text(&object, &["kind"]) != self.kind.kind {
            return None;
        }
        self.kind.from_stored(&mut object);
        Some(Bytes::from(object::print(&object)))
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
            Representation::Partial(version) | Representation::PartialList(version) => {
                metadata_only(bytes, version).unwrap_or_else(|| bytes.clone())
            }
            Representation::Table(version) => {
                let Ok(object) = codec::decode(bytes) else { return bytes.clone() };
                let metadata = json!({ "resourceVersion": object::resource_version(&object) });
                let table = table(&self.kind, [&object], metadata, (self.include, version), columns, self.now);
                Bytes::from(object::print(&table))
            }
        }
    }

    /// An item of a list as a message.
    pub fn message(&self, bytes: &Bytes) -> Result<Vec<u8>, Status> {
        let converted = self.converted(bytes);
        let bytes = converted.as_ref().unwrap_or(bytes);
        match self.form {
            Representation::Partial(_) | Representation::PartialList(_) => {
                protobuf::message(PARTIAL, &codec::decode_metadata(bytes)?)
            }
            _ => protobuf::message(&self.kind.type_name, &codec::decode(bytes)?),
        }
    }

    /// An item of a list.
    pub fn item(&self, bytes: &Bytes) -> Result<Bytes, Status> {
        let converted = self.converted(bytes);
        let bytes = converted.as_ref().unwrap_or(bytes);
        match self.form {
            Representation::Object => Ok(bytes.clone()),
            Representation::Partial(version) | Representation::PartialList(version) => {
                Ok(Bytes::from(object::print(&partial(&codec::decode_metadata(bytes)?, version))))
            }
            Representation::Table(version) => {
                let object = codec::decode(bytes)?;
                let include = (self.include, version);
                let mut table = table(&self.kind, [&object], Value::Null, include, false, self.now);
                Ok(Bytes::from(table["rows"][0].take().to_string()))
            }
        }
    }

    /// The number that an item has in a list's message.
    pub fn item_field(&self) -> u64 {
        match self.form {
            Representation::Partial(version) | Representation::PartialList(version) => {
                protobuf::item_field(version.api_version())
            }
            _ => protobuf::item_field(""),
        }
    }

    /// A list, whose items are made when they are sent.
    ///
    /// # Errors
    /// 500 for an item that has no message.
    pub fn list(self, list: List) -> Result<Listing, Status> {
        let mut metadata = json!({ "resourceVersion": list.revision.to_string() });
        if !list.next.is_empty() {
            metadata["continue"] = list.next.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let (kind, api_version) = match self.form {
            Representation::Partial(version) | Representation::PartialList(version) => {
                ("PartialObjectMetadataList".to_owned(), version.api_version().to_owned())
            }
            Representation::Table(version) => ("Table".to_owned(), version.api_version().to_owned()),
            Representation::Object => (format!("{}List", self.kind.kind), self.kind.api_version()),
        };
        let columns = matches!(self.form, Representation::Table(_)).then(|| {
            let (none, include): ([&Value; 0], _) = ([], (self.include, MetaVersion::V1));
            table(&self.kind, none, Value::Null, include, true, self.now)["columnDefinitions"].take()
        });
        match self.media {
            Media::Json => {}
            Media::Yaml => return Ok(self.yaml_list(&api_version, &kind, metadata, columns, list.items)),
            Media::Protobuf => {
                let head = |length| protobuf::list_head(&api_version, &kind, &metadata, length);
                return Listing::of_messages(head, list.items, self);
            }
        }
        let items = match columns {
            Some(columns) => format!("\"columnDefinitions\":{columns},\"rows\""),
            None => "\"items\"".to_owned(),
        };
        let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},{items}:[");
        Ok(Listing::new(Bytes::from(head), list.items, Bytes::from_static(b"]}"), self))
    }

    /// Its keys are in order, so that what follows the items is their tail.
    fn yaml_list(
        self,
        api_version: &str,
        kind: &str,
        metadata: Value,
        columns: Option<Value>,
        items: Vec<Entry>,
    ) -> Listing {
        let name = if columns.is_some() { "rows" } else { "items" };
        let mut fields = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
        if let Some(columns) = columns {
            fields["columnDefinitions"] = columns;
        }
        let of = |wanted: &dyn Fn(&str) -> bool| -> String {
            let fields = fields.as_object().into_iter().flatten().filter(|(field, _)| wanted(field));
            let part: Value = fields.map(|(field, value)| (field.clone(), value.clone())).collect();
            if part.as_object().is_some_and(serde_json::Map::is_empty) { String::new() } else { yaml::write(&part) }
        };
        let empty = if items.is_empty() { " []" } else { "" };
        let head = format!("{}{name}:{empty}\n", of(&|field| field < name));
        let tail = of(&|field| field > name);
        Listing::new(Bytes::from(head), items, Bytes::from(tail), self)
    }

    /// An item of a list in YAML.
    pub fn yaml_item(&self, bytes: &Bytes) -> Result<Bytes, Status> {
        let item = codec::decode(&self.item(bytes)?)?;
        let mut text = String::new();
        yaml::write_item(&mut text, &item);
        Ok(Bytes::from(text))
    }
}

fn metadata_only(bytes: &[u8], version: MetaVersion) -> Option<Bytes> {
    let object = codec::decode_metadata(bytes).ok()?;
    Some(Bytes::from(object::print(&partial(&object, version))))
}
