//! k8s-openapi's JSON schemas as they are, with their descriptions, and those of our own types. Made on demand, never
//! kept.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::roots::{ROOTS, Root};
use crate::{metrics, snapshots};

/// The definition name of a quantity.
pub const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// The definition name of a time with microseconds, whose schema is that of every time.
pub const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

/// The JSON schemas of a top-level type and of everything that it refers to, by definition name;
/// references point below `definitions_path` (`/definitions`, `/components/schemas`).
pub fn definitions(type_name: &str, definitions_path: &'static str) -> Option<Map<String, Value>> {
    root(type_name).map(|_| definitions_of(&[type_name], definitions_path))
}

/// The same of several types at once; names without a schema are passed over.
pub fn definitions_of(type_names: &[&str], definitions_path: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = definitions_path.into();
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut generator = settings.into_generator();
    let schema = |name: &&str| root(name).map(|root| ((*name).to_owned(), root(&mut generator).to_value()));
    let roots: Vec<(String, Value)> = type_names.iter().filter_map(schema).collect();
    let mut definitions = generator.take_definitions(false);
    definitions.extend(roots);
    definitions
        .iter_mut()
        .filter(|(name, _)| name.starts_with(snapshots::PREFIX) || name.starts_with(metrics::PREFIX))
        .for_each(|(_, own)| snapshots::in_upstreams_form(own));
    definitions
}

fn root(type_name: &str) -> Option<Root> {
    let table = match type_name {
        name if name.starts_with(snapshots::PREFIX) => snapshots::ROOTS,
        name if name.starts_with(metrics::PREFIX) => metrics::ROOTS,
        _ => ROOTS,
    };
    let index = table.binary_search_by(|(name, _)| (*name).cmp(type_name)).ok()?;
    table.get(index).map(|(_, root)| *root)
}
