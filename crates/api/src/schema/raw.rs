//! k8s-openapi's JSON schemas as they are, with their descriptions, and those of our own types. Made on demand, never
//! kept.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value};

use crate::{metrics, snapshots};

/// The definition name of a quantity.
pub const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// The definition name of a time with microseconds, whose schema is that of every time.
pub const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

/// What stands before the name of a definition in the texts.
const REFERENCE: &str = "\"$ref\":\"#/$defs/";

/// The schema of one of k8s-openapi's types.
struct Definition {
    name: &'static str,
    /// Whether it is a top-level type.
    is_root: bool,
    /// In JSON, on one line.
    text: &'static str,
}

/// All of them, by their names; the build script writes them down.
static DEFINITIONS: &[Definition] = include!(concat!(env!("OUT_DIR"), "/definitions.rs"));

impl Definition {
    fn of(name: &str) -> Option<&'static Self> {
        let index = DEFINITIONS.binary_search_by(|definition| definition.name.cmp(name)).ok()?;
        DEFINITIONS.get(index)
    }

    /// The definitions that it refers to.
    fn references(&self) -> impl Iterator<Item = &'static str> {
        self.text.split(REFERENCE).skip(1).filter_map(|rest| rest.split('"').next())
    }

    fn schema(&self, definitions_path: &str) -> Value {
        let text = self.text.replace(REFERENCE, &format!("\"$ref\":\"#{definitions_path}/"));
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// The JSON schemas of a top-level type and of everything that it refers to, by definition name;
/// references point below `definitions_path` (`/definitions`, `/components/schemas`).
pub fn definitions(type_name: &str, definitions_path: &'static str) -> Option<Map<String, Value>> {
    let is_known = own(type_name).is_some() || Definition::of(type_name).is_some_and(|definition| definition.is_root);
    is_known.then(|| definitions_of(&[type_name], definitions_path))
}

/// The same of several types at once; names without a schema are passed over.
pub fn definitions_of(type_names: &[&str], definitions_path: &'static str) -> Map<String, Value> {
    let mut definitions = own_definitions(type_names, definitions_path);
    let roots = type_names.iter().filter_map(|name| Definition::of(name));
    let mut open: Vec<&Definition> = roots.filter(|definition| definition.is_root).collect();
    while let Some(definition) = open.pop() {
        if !definitions.contains_key(definition.name) {
            definitions.insert(definition.name.to_owned(), definition.schema(definitions_path));
            open.extend(definition.references().filter_map(Definition::of));
        }
    }
    definitions
}

/// Those of our own types.
fn own_definitions(type_names: &[&str], definitions_path: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = definitions_path.into();
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut generator = settings.into_generator();
    let schema = |name: &&str| own(name).map(|root| ((*name).to_owned(), root(&mut generator).to_value()));
    let roots: Vec<(String, Value)> = type_names.iter().filter_map(schema).collect();
    let mut definitions = generator.take_definitions(false);
    definitions.extend(roots);
    definitions
        .iter_mut()
        .filter(|(name, _)| name.starts_with(snapshots::PREFIX) || name.starts_with(metrics::PREFIX))
        .for_each(|(_, own)| snapshots::in_upstreams_form(own));
    definitions
}

/// What makes the schema of a top-level type of our own.
fn own(type_name: &str) -> Option<fn(&mut SchemaGenerator) -> Schema> {
    let table = match type_name {
        name if name.starts_with(snapshots::PREFIX) => snapshots::ROOTS,
        name if name.starts_with(metrics::PREFIX) => metrics::ROOTS,
        _ => return None,
    };
    let index = table.binary_search_by(|(name, _)| (*name).cmp(type_name)).ok()?;
    table.get(index).map(|(_, root)| *root)
}

#[cfg(test)]
mod tests {
    use super::super::roots::ROOTS;
    use super::*;

    #[test]
    fn what_was_written_down_are_the_schemas_of_the_types() {
        for path in ["/$defs", "/components/schemas"] {
            for (name, root) in ROOTS {
                let settings = SchemaSettings::draft2020_12().with(|settings| {
                    settings.definitions_path = path.into();
                    settings.meta_schema = None;
                    settings.transforms.clear();
                });
                let mut generator = settings.into_generator();
                let schema = root(&mut generator).to_value();
                let mut all = generator.take_definitions(false);
                all.insert((*name).to_owned(), schema);
                assert_eq!(definitions(name, path), Some(all), "{name}");
            }
        }
        let inner = "io.k8s.api.core.v1.PodSpec";
        assert!(Definition::of(inner).is_some() && definitions(inner, "/$defs").is_none(), "no top-level type");
    }
}
