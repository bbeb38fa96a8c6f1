//! k8s-openapi's JSON schemas as they are, with their descriptions. Made on demand, never kept.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::roots::ROOTS;

/// The definition name of a quantity.
pub const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// The JSON schemas of a top-level type and of everything that it refers to, by definition name;
/// references point below `definitions_path` (`/definitions`, `/components/schemas`).
pub fn definitions(type_name: &str, definitions_path: &'static str) -> Option<Map<String, Value>> {
    let index = ROOTS.binary_search_by(|(name, _)| (*name).cmp(type_name)).ok()?;
    let (_, root) = ROOTS.get(index)?;
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = definitions_path.into();
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut generator = settings.into_generator();
    let schema = root(&mut generator).to_value();
    let mut definitions = generator.take_definitions(false);
    definitions.insert(type_name.to_owned(), schema);
    Some(definitions)
}
