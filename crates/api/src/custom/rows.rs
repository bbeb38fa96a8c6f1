//! A CustomResourceDefinition's versions as rows of the registry.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::Path;
use super::schema::Schema;
use super::{rules, stored, values};
use crate::kinds::{Column, Kind, Row, Subresource, cells, workload};
use crate::object::{at, ensure, name, text};
use crate::registry::{Registry, preference};
use crate::status::Cause;
use crate::time;

/// What a row has that was made from a CustomResourceDefinition.
pub struct Custom {
    /// The definition as it is stored: the store's own bytes, which cost nothing more.
    definition: Bytes,
    /// Which of its versions this is.
    index: usize,
    /// Compiled when an object is first looked at.
    schema: OnceLock<Schema>,
    /// One path per column after the name.
    columns: Vec<Path>,
    /// Selectable fields as they are written without the first dot, and their paths.
    selectable: Vec<(String, Path)>,
    /// `subresources.scale`: the paths of spec.replicas, status.replicas and the label selector.
    pub scale: Option<Scale>,
    /// The version that objects are stored in.
    pub stored_version: Box<str>,
    /// Who converts objects between versions, where a webhook does.
    pub webhook: Option<Webhook>,
    /// The definition is on its way out: nothing new is made.
    pub is_terminating: bool,
    /// The definition's own `resourceVersion`, where its schema has defaults at all: what was written before it may
    /// lack some of them. 0 where nothing can.
    defaults_since: u64,
    /// What whoever uses this version is told; `None` where it is not deprecated.
    deprecation: Option<Box<str>>,
}

/// `spec.conversion.webhook`.
pub struct Webhook {
    /// `clientConfig`: how it is reached.
    pub client_config: Value,
    /// `conversionReviewVersions`, in the order of preference.
    pub versions: Vec<String>,
}

/// The webhook of a definition that has more versions than one.
fn webhook(definition: &Value) -> Option<Webhook> {
    let conversion = at(definition, &["spec", "conversion"])?;
    let versions = at(definition, &["spec", "versions"]).and_then(Value::as_array).map_or(0, Vec::len);
    if text(conversion, &["strategy"]) != "Webhook" || versions < 2 {
        return None;
    }
    let reviews = at(conversion, &["webhook", "conversionReviewVersions"]).and_then(Value::as_array);
    let reviews = reviews.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let client_config = at(conversion, &["webhook", "clientConfig"]).cloned().unwrap_or(Value::Null);
    Some(Webhook { client_config, versions: reviews.collect() })
}

/// Where a custom resource has what `/scale` shows.
pub struct Scale {
    /// Below `.spec`.
    pub spec_replicas: Path,
    /// Below `.status`.
    pub status_replicas: Path,
    /// Below `.status` or `.spec`, where there is one: a selector as text.
    pub selector: Option<Path>,
}

impl Custom {
    /// The schema, compiled on first use.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| Schema::compile(&self.source()))
    }

    /// Without a conversion of their own the versions of a kind differ in `apiVersion` alone.
    pub fn set_version(&self, group: &str, version: &str, object: &mut Value) {
        ensure(object, &[]).insert("apiVersion".to_owned(), format!("{group}/{version}").into());
    }

    /// Fills in what a stored object lacks since the schema got defaults after it was written, as upstream does for
    /// everything that it reads.
    pub fn complete(&self, object: &mut Value) {
        if self.may_lack_defaults(crate::object::resource_version(object)) {
            values::fill_in(self.schema(), object);
        }
    }

    /// Whether an object with this `metadata.resourceVersion` may have been written before the schema was as it is.
    pub fn may_lack_defaults(&self, version: &str) -> bool {
        self.defaults_since > 0 && version.parse().is_ok_and(|version: u64| version < self.defaults_since)
    }

    /// What whoever uses a deprecated version is told.
    pub fn deprecation(&self) -> Option<&str> {
        self.deprecation.as_deref()
    }

    /// The schema as it was written, read anew each time; empty where the version has none.
    pub fn source(&self) -> Value {
        stored::schema(&self.definition, self.index).unwrap_or_else(|| json!({}))
    }
}

/// Whether a condition of a definition is true.
pub fn is_true(definition: &Value, condition: &str) -> bool {
    let conditions = at(definition, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    conditions.filter(|one| text(one, &["type"]) == condition).any(|one| text(one, &["status"]) == "True")
}

/// A registry with what this definition defines, where it is Established; without it where it is gone (`deleted`).
/// What is built in is not replaced.
///
/// # Errors
/// For a definition that is no JSON.
pub fn serve(registry: &Registry, definition: &Bytes, deleted: bool) -> serde_json::Result<Registry> {
    let outline = stored::outline(definition)?;
    let group = text(&outline, &["spec", "group"]);
    let plural = text(&outline, &["spec", "names", "plural"]);
    let rows = if deleted { Vec::new() } else { served(&outline, definition) };
    let known = registry.versions(group, plural);
    if (rows.is_empty() && known.is_empty()) || known.iter().any(|kind| matches!(kind, Kind::BuiltIn(_))) {
        return Ok(registry.clone());
    }
    Ok(registry.with(group, plural, rows))
}

/// The rows of the versions that a stored definition serves; none before it is Established. A version that is stored
/// and not served has no row of its own.
///
/// # Errors
/// For a definition that is no JSON.
pub fn rows(definition: &Bytes) -> serde_json::Result<Vec<Kind>> {
    Ok(served(&stored::outline(definition)?, definition))
}

/// The row of the version that is stored, with names alone: what decisions need, which see custom objects by their
/// metadata. None before the definition is Established.
///
/// # Errors
/// For a definition that is no JSON.
pub fn names(definition: &[u8]) -> serde_json::Result<Vec<Kind>> {
    let outline = stored::outline(definition)?;
    let wanted = established(&outline).find(|(_, version)| flag(version, "storage"));
    let row = wanted.map(|(index, version)| Row { custom: None, ..row(&outline, (index, version), &Bytes::new()) });
    Ok(row.map(|row| Kind::Custom(Arc::new(row))).into_iter().collect())
}

fn served(outline: &Value, definition: &Bytes) -> Vec<Kind> {
    let versions = established(outline).filter(|(_, version)| flag(version, "served"));
    versions.map(|version| Kind::Custom(Arc::new(row(outline, version, definition)))).collect()
}

/// The versions of a definition that is Established, with their indices.
fn established(outline: &Value) -> impl Iterator<Item = (usize, &Value)> {
    let versions = at(outline, &["spec", "versions"]).and_then(Value::as_array);
    versions.filter(|_| is_true(outline, "Established")).into_iter().flatten().enumerate()
}

fn flag(version: &Value, name: &str) -> bool {
    version.get(name).and_then(Value::as_bool) == Some(true)
}

fn stored_version(definition: &Value) -> &str {
    let versions = at(definition, &["spec", "versions"]).and_then(Value::as_array).into_iter().flatten();
    versions.filter(|v| v.get("storage") == Some(&Value::Bool(true))).map(|v| text(v, &["name"])).next().unwrap_or("")
}

/// The warning of a deprecated version: the definition's own words, or which newer version to use instead.
fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    fn is_deprecated(version: &Value) -> bool {
        version.get("deprecated") == Some(&Value::Bool(true))
    }
    if !is_deprecated(version) {
        return None;
    }
    if let Some(own) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(own.to_owned());
    }
    let (group, kind) = (text(definition, &["spec", "group"]), text(definition, &["spec", "names", "kind"]));
    let this = text(version, &["name"]);
    let versions = at(definition, &["spec", "versions"]).and_then(Value::as_array).into_iter().flatten();
    let sound = versions.filter(|version| version["served"] == true && !is_deprecated(version));
    let newer = sound.map(|version| text(version, &["name"])).filter(|name| preference(name, this).is_lt());
    let instead = newer.min_by(|a, b| preference(a, b)).map(|newer| format!("; use {group}/{newer} {kind}"));
    Some(format!("{group}/{this} {kind} is deprecated{}", instead.unwrap_or_default()))
}

/// `com.example.v1.Foo`, as upstream names the schemas of custom resources.
fn type_name(definition: &Value, version: &Value) -> String {
    let mut parts: Vec<&str> = text(definition, &["spec", "group"]).split('.').collect();
    parts.reverse();
    parts.push(text(version, &["name"]));
    parts.push(text(definition, &["spec", "names", "kind"]));
    parts.join(".")
}

/// What a version says of a subresource.
fn subresource<'v>(version: &'v Value, name: &str) -> Option<&'v Value> {
    at(version, &["subresources", name]).filter(|value| value.is_object())
}

/// Where a version has its numbers of replicas; None where it has no `scale`, or one whose paths cannot be read.
fn scale(version: &Value) -> Option<Scale> {
    let scale = subresource(version, "scale")?;
    let path = |name: &str| Path::parse(text(scale, &[name])).ok();
    let (spec_replicas, status_replicas) = (path("specReplicasPath")?, path("statusReplicasPath")?);
    let selector = Some(text(scale, &["labelSelectorPath"])).filter(|path| !path.is_empty());
    Some(Scale { spec_replicas, status_replicas, selector: selector.and_then(|path| Path::parse(path).ok()) })
}

/// The fields that a version's objects are selected by: name and path.
fn selectable(version: &Value) -> Vec<(String, Path)> {
    let fields = at(version, &["selectableFields"]).and_then(Value::as_array).into_iter().flatten();
    let named = |field: &Value| {
        let path = text(field, &["jsonPath"]);
        Some((path.trim_start_matches('.').to_owned(), Path::parse(path).ok()?))
    };
    fields.filter_map(named).collect()
}

/// The revision from which on objects were stored with the definition's defaults; 0 where it has none.
fn defaults_since(definition: &Value, stored: &Bytes) -> u64 {
    // The word may also be a field's name or in another version, which costs no more than looking at old objects for
    // nothing.
    let has_defaults = std::str::from_utf8(stored).is_ok_and(|stored| stored.contains("\"default\":"));
    if has_defaults { text(definition, &["metadata", "resourceVersion"]).parse().unwrap_or(0) } else { 0 }
}

/// What only custom resources have. `columns` are the paths of the printed columns.
fn custom(
    definition: &Value,
    (index, version): (usize, &Value),
    stored: &Bytes,
    scale: Option<Scale>,
    columns: Vec<Path>,
) -> Custom {
    Custom {
        definition: stored.clone(),
        index,
        schema: OnceLock::new(),
        columns,
        selectable: selectable(version),
        scale,
        stored_version: stored_version(definition).into(),
        webhook: webhook(definition),
        is_terminating: crate::object::is_terminating(definition),
        defaults_since: defaults_since(definition, stored),
        deprecation: deprecation(definition, version).map(Into::into),
    }
}

/// The row of a version. `definition` is an outline, `stored` all of it.
fn row(definition: &Value, (index, version): (usize, &Value), stored: &Bytes) -> Row {
    let owned = |path: &[&str]| Cow::Owned(text(definition, path).to_owned());
    let list = |path: &[&str]| -> Cow<'static, [Cow<'static, str>]> {
        let items = at(definition, path).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).map(|item| Cow::Owned(item.to_owned())).collect()
    };
    let scale = scale(version);
    let mut subresources = Vec::new();
    subresources.extend(subresource(version, "status").map(|_| Subresource::Status));
    subresources.extend(scale.as_ref().map(|_| Subresource::Scale));
    let (columns, paths) = columns(version);
    Row {
        group: owned(&["spec", "group"]),
        version: Cow::Owned(text(version, &["name"]).to_owned()),
        kind: owned(&["spec", "names", "kind"]),
        plural: owned(&["spec", "names", "plural"]),
        singular: owned(&["spec", "names", "singular"]),
        short_names: list(&["spec", "names", "shortNames"]),
        categories: list(&["spec", "names", "categories"]),
        namespaced: text(definition, &["spec", "scope"]) == "Namespaced",
        subresources: subresources.into(),
        type_name: type_name(definition, version).into(),
        columns: columns.into(),
        custom: Some(Box::new(custom(definition, (index, version), stored, scale, paths))),
        fields: |row, object| {
            let all = row.custom.iter().flat_map(|custom| &custom.selectable);
            all.map(|(name, path)| (name.as_str(), shown(path.first(object)))).collect()
        },
        row: |row, object, now| {
            let cells = row.columns.iter().skip(1).zip(row.custom.iter().flat_map(|custom| &custom.columns));
            let cells = cells.map(|(column, path)| cell(column.type_, path.first(object), now));
            std::iter::once(json!(name(object))).chain(cells).collect()
        },
        defaults: |row, object| {
            if let Some(custom) = &row.custom {
                values::fill_in(custom.schema(), object);
            }
        },
        prepare_create: |row, object| {
            if row.has(Subresource::Status)
                && let Value::Object(fields) = &mut *object
            {
                fields.remove("status");
            }
            ensure(object, &["metadata"]).insert("generation".to_owned(), json!(1));
        },
        prepare_update: |row, new, old| {
            let has_status = row.has(Subresource::Status);
            if has_status {
                crate::kinds::field::keep(new, old, "status");
            }
            let changed = content(new).ne(content(old));
            workload::count_generation(new, old, changed);
        },
        validate: |row, object, causes| {
            if let Some(custom) = &row.custom {
                values::validate(custom.schema(), object, "", causes);
            }
        },
        validate_create: |row, object, causes| {
            if let Some(custom) = &row.custom {
                rules::check(custom.schema(), object, None, causes);
            }
        },
        // Ratcheting: what was wrong before and has not been touched is not held against an update.
        validate_update: |row, new, old, causes| {
            if let Some(custom) = &row.custom {
                ratchet(custom.schema(), new, old, causes);
                rules::check(custom.schema(), new, Some(old), causes);
            }
        },
        validate_status: |row, new, old, causes| {
            (row.validate)(row, new, causes);
            (row.validate_update)(row, new, old, causes);
        },
        ..Row::base()
    }
}

/// The faults of an object, without those of what has not been touched.
fn ratchet(schema: &Schema, new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if causes.is_empty() {
        return;
    }
    let mut all = Vec::new();
    values::validate(schema, new, "", &mut all);
    causes.retain(|cause| !all.contains(cause));
    values::validate_changed(schema, new, old, causes);
}

/// The fields besides metadata.
fn content(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// `additionalPrinterColumns`, after the name; the age alone where there are none.
fn columns(version: &Value) -> (Vec<Column>, Vec<Path>) {
    let (mut columns, mut paths) = (vec![cells::NAME], Vec::new());
    let listed = at(version, &["additionalPrinterColumns"]).and_then(Value::as_array);
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "Time since the object was created." });
    let listed =
        listed.filter(|listed| !listed.is_empty()).map_or_else(|| vec![&age], |listed| listed.iter().collect());
    for column in listed {
        let Ok(path) = Path::parse(text(column, &["jsonPath"])) else { continue };
        let type_ = TYPES.into_iter().find(|known| *known == text(column, &["type"])).unwrap_or("string");
        let format = FORMATS.into_iter().find(|known| *known == text(column, &["format"])).unwrap_or("");
        let priority = column.get("priority").and_then(Value::as_i64).and_then(|p| i32::try_from(p).ok());
        columns.push(Column {
            name: Cow::Owned(text(column, &["name"]).to_owned()),
            type_,
            format,
            priority: priority.unwrap_or(0),
            description: Cow::Owned(text(column, &["description"]).to_owned()),
        });
        paths.push(path);
    }
    (columns, paths)
}

/// The types of columns.
pub const TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];
/// The formats of columns.
pub const FORMATS: [&str; 8] = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password"];

fn cell(type_: &str, value: Option<&Value>, now: Timestamp) -> Value {
    match (type_, value) {
        (_, None | Some(Value::Null)) => Value::Null,
        ("integer", Some(value)) => {
            value.as_i64().or_else(|| value.as_f64().map(|number| number as i64)).map_or(Value::Null, Into::into)
        }
        ("number" | "boolean", Some(value)) => value.clone(),
        ("date", Some(Value::String(text))) => {
            time::parse(text).map_or_else(|| json!("<invalid>"), |at| json!(time::age(at, now)))
        }
        ("date", _) => json!("<invalid>"),
        (_, value) => json!(shown(value)),
    }
}
