//! Objects as rows (`metav1.Table`, what `kubectl get` prints) and as their metadata alone.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::{Status, protobuf};

/// What each row carries besides its cells (`includeObject`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`. Upstream's default.
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// The value of the `includeObject` parameter; anything unknown is none.
    pub fn from_parameter(value: &str) -> Option<Self> {
        match value {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The versions of `meta.k8s.io` in which upstream serves tables and metadata. They differ in their name, and in the
/// numbers of the list's fields in protobuf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetaVersion {
    /// `v1`.
    V1,
    /// `v1beta1`, which older clients name.
    V1beta1,
}

impl MetaVersion {
    /// The `apiVersion` of what is answered.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1beta1 => META_V1BETA1,
        }
    }
}

/// The `apiVersion` whose lists have their fields' numbers the other way round.
pub(crate) const META_V1BETA1: &str = "meta.k8s.io/v1beta1";

/// The form in which a client wants objects, by its `Accept` header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Representation {
    /// As they are.
    Object,
    /// `metav1.Table`.
    Table(MetaVersion),
    /// `PartialObjectMetadata`, which is no list.
    Partial(MetaVersion),
    /// `PartialObjectMetadataList`.
    PartialList(MetaVersion),
}

impl Representation {
    /// That it can be made of one object, or of a list.
    ///
    /// # Errors
    /// 406 for the metadata of a list as an object's, and the other way round, as upstream.
    pub fn of(self, kind: &str, is_list: bool) -> Result<(), Status> {
        let (wanted, other) = match (self, is_list) {
            (Self::Partial(_), true) => ("PartialObjectMetadata", format!("a list ({kind}List)")),
            (Self::PartialList(_), false) => ("PartialObjectMetadataList", format!("not a list ({kind})")),
            _ => return Ok(()),
        };
        let why = format!("you requested {wanted}, but the requested object is {other}");
        Err(Status::new(406, "NotAcceptable", why))
    }
}

/// How what is answered is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Media {
    /// JSON.
    Json,
    /// YAML, of which no watch is made.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

impl Media {
    /// The media types in which bodies are understood and answered.
    pub const TYPES: &[&str] = &["application/json", YAML, protobuf::CONTENT_TYPE];
    /// Those of watches.
    pub const OF_WATCHES: &[&str] = &["application/json;stream=watch", protobuf::WATCH_CONTENT_TYPE];
}

/// The media type of YAML.
pub const YAML: &str = "application/yaml";

/// What a request may be answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Whether whole objects are written as messages, too: not those of custom resources.
    pub has_message: bool,
    /// Whether events are answered, one after the other: not in YAML.
    pub is_watch: bool,
}

impl Offer {
    /// What the cluster's own kinds are answered with.
    pub const ALL: Self = Self { has_message: true, is_watch: false };

    fn has(self, form: Representation, media: Media) -> bool {
        match (media, form) {
            (Media::Json, _) => true,
            (Media::Yaml, _) => !self.is_watch,
            (Media::Protobuf, Representation::Table(_)) => false,
            (Media::Protobuf, Representation::Partial(_) | Representation::PartialList(_)) => true,
            (Media::Protobuf, Representation::Object) => self.has_message,
        }
    }

    /// 406, naming what is served.
    fn refusal(self) -> Status {
        Status::not_acceptable(if self.is_watch { Media::OF_WATCHES } else { Media::TYPES })
    }
}

/// The form and the media type that an `Accept` header wants most of those that are served.
///
/// As upstream: what has the highest weight, of that what names most, then what comes first. Tables are no messages,
/// nor are custom resources, so whoever wants those in protobuf alone gets none.
///
/// # Errors
/// 406 where nothing of what is wanted is served.
pub fn negotiate(accept: &str, offer: Offer) -> Result<(Representation, Media), Status> {
    if accept.trim().is_empty() {
        return Ok((Representation::Object, Media::Json));
    }
    let mut ranges: Vec<Range<'_>> = accept.split(',').map(Range::of).collect();
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.wildcards.cmp(&b.wildcards)));
    let mut wanted = ranges.iter().filter(|range| range.weight > 0.0).filter_map(|range| {
        let media = match range.media {
            "application/json" | "application/*" | "*/*" => Media::Json,
            YAML => Media::Yaml,
            protobuf::CONTENT_TYPE => Media::Protobuf,
            _ => return None,
        };
        Some((range.form()?, media))
    });
    wanted.find(|(form, media)| offer.has(*form, *media)).ok_or_else(|| offer.refusal())
}

/// One part of an `Accept` header.
struct Range<'a> {
    media: &'a str,
    wildcards: usize,
    weight: f32,
    /// What objects are converted into: `as`, `g` and `v`.
    form: Option<&'a str>,
    group: Option<&'a str>,
    version: Option<&'a str>,
}

impl<'a> Range<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let wildcards = media.matches('*').count();
        let mut range = Self { media, wildcards, weight: 1.0, form: None, group: None, version: None };
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("as", form)) => range.form = Some(form),
                Some(("g", group)) => range.group = Some(group),
                Some(("v", version)) => range.version = Some(version),
                Some(("q", weight)) => range.weight = weight.parse().unwrap_or(1.0),
                _ => {}
            }
        }
        range
    }

    /// `None` for what is not served.
    fn form(&self) -> Option<Representation> {
        let (form, group, version) = match (self.form, self.group, self.version) {
            (None, None, None) => return Some(Representation::Object),
            (form, group, version) => (form?, group?, version?),
        };
        let version = match (group, version) {
            ("meta.k8s.io", "v1") => MetaVersion::V1,
            ("meta.k8s.io", "v1beta1") => MetaVersion::V1beta1,
            _ => return None,
        };
        match form {
            "Table" => Some(Representation::Table(version)),
            "PartialObjectMetadata" => Some(Representation::Partial(version)),
            "PartialObjectMetadataList" => Some(Representation::PartialList(version)),
            _ => None,
        }
    }
}

/// A table of objects. `metadata` is the list's (or, for one object, its `resourceVersion` alone);
/// `headers` is false for all events of a watch but the first, as upstream saves them.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    (include, version): (IncludeObject, MetaVersion),
    headers: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array((kind.row)(kind, object, now)));
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => drop(row.insert("object".to_owned(), partial(object, version))),
                IncludeObject::Object => drop(row.insert("object".to_owned(), object.clone())),
            }
            Value::Object(row)
        })
        .collect();
    let columns: Value = if headers { kind.columns.iter().map(column).collect() } else { Value::Null };
    json!({ "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows })
}

fn column(column: &crate::kinds::Column) -> Value {
    json!({
        "name": column.name, "type": column.type_, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value, version: MetaVersion) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    json!({ "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata })
}

/// `PartialObjectMetadataList` of objects; `metadata` is the list's.
pub fn partial_list<'a>(objects: impl IntoIterator<Item = &'a Value>, metadata: Value, version: MetaVersion) -> Value {
    let items: Vec<Value> = objects.into_iter().map(|object| partial(object, version)).collect();
    json!({ "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": metadata,
        "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn conformance_a_scale_has_columns_of_its_own() {
        let scale = json!({ "metadata": { "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "replicas": 3 }, "status": { "replicas": 2 } });
        let now = "2026-01-01T00:05:00Z".parse().expect("a time");
        let table = table(&kinds::SCALE, [&scale], json!({}), (IncludeObject::None, MetaVersion::V1), true, now);
        let names: Vec<&str> = table["columnDefinitions"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|column| column["name"].as_str())
            .collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["web", 3, 2, "5m"]));
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let now = Timestamp::UNIX_EPOCH;
        for kind in kinds::ALL {
            for object in [json!({ "metadata": { "name": "a" } }), json!({}), json!([1])] {
                let table = table(kind, [&object], json!({}), (IncludeObject::None, MetaVersion::V1), true, now);
                let (columns, cells) = (table["columnDefinitions"].as_array(), table["rows"][0]["cells"].as_array());
                assert_eq!(columns.map(Vec::len), cells.map(Vec::len), "{}", kind.kind);
            }
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let object = json!({ "kind": "Pod", "metadata": { "name": "a" }, "spec": {} });
        let rows = |include, headers| {
            let include = (include, MetaVersion::V1);
            table(&kinds::POD, [&object], json!({ "resourceVersion": "7" }), include, headers, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(rows(IncludeObject::None, true)["rows"][0].get("object"), None);
        assert_eq!(rows(IncludeObject::Metadata, true)["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(rows(IncludeObject::Object, false)["rows"][0]["object"], object);
        assert_eq!(rows(IncludeObject::Object, false)["columnDefinitions"], Value::Null);
        let version = MetaVersion::V1beta1;
        assert_eq!(partial_list([&object], json!({}), version)["items"][0], partial(&object, version));
    }

    #[test]
    fn accept_headers() {
        use Media::{Json, Protobuf, Yaml};
        use MetaVersion::{V1, V1beta1};
        use Representation::{Object, Partial, PartialList, Table};
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json");
        let table = format!("{PROTOBUF};as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io");
        // Of what has a message, and of what has none.
        let cases = [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some((Table(V1), Json)),
                Some((Table(V1), Json)),
            ),
            (&*partial, Some((PartialList(V1), Protobuf)), Some((PartialList(V1), Protobuf))),
            (&*table, Some((Table(V1), Json)), Some((Table(V1), Json))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Object, Protobuf)), Some((Object, Json))),
            ("application/json,application/vnd.kubernetes.protobuf", Some((Object, Json)), Some((Object, Json))),
            (
                "application/json;q=0.5,application/vnd.kubernetes.protobuf;q=0.7",
                Some((Object, Protobuf)),
                Some((Object, Json)),
            ),
            ("*/*,application/vnd.kubernetes.protobuf", Some((Object, Protobuf)), Some((Object, Json))),
            ("*/*", Some((Object, Json)), Some((Object, Json))),
            ("", Some((Object, Json)), Some((Object, Json))),
            (PROTOBUF, Some((Object, Protobuf)), None),
            ("application/yaml", Some((Object, Yaml)), Some((Object, Yaml))),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some((Table(V1), Yaml)), Some((Table(V1), Yaml))),
            (
                "application/json;as=Table;g=meta.k8s.io;v=v1beta1",
                Some((Table(V1beta1), Json)),
                Some((Table(V1beta1), Json)),
            ),
            (
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1beta1",
                Some((Partial(V1beta1), Json)),
                Some((Partial(V1beta1), Json)),
            ),
            ("application/json;as=Table;g=meta.k8s.io;v=v1alpha1", None, None),
            ("application/json;as=Table;g=example.com;v=v1", None, None),
            ("application/json;as=Table;v=v1", None, None),
            ("application/json;g=meta.k8s.io;v=v1", None, None),
            ("application/json;q=0", None, None),
            ("text/html", None, None),
        ];
        for (accept, with, without) in cases {
            let found = (
                negotiate(accept, Offer::ALL).ok(),
                negotiate(accept, Offer { has_message: false, ..Offer::ALL }).ok(),
            );
            assert_eq!(found, (with, without), "{accept}");
        }
        let refused = |offer| negotiate("application/yaml", offer).expect_err("not a watch").message;
        assert_eq!(
            refused(Offer { is_watch: true, ..Offer::ALL }),
            "only the following media types are accepted: application/json;stream=watch, \
                application/vnd.kubernetes.protobuf;stream=watch"
        );
        let none = negotiate("text/html", Offer::ALL).expect_err("nothing").message;
        assert_eq!(
            none,
            "only the following media types are accepted: application/json, application/yaml, \
                application/vnd.kubernetes.protobuf"
        );
    }
}
