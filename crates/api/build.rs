//! Writes down the JSON schemas of k8s-openapi's types, with which `schema::raw` begins: as texts they take a fraction
//! of the room of the functions that make them (4 MB of the binary), and those that a kind needs are read as fast.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs, io};

use schemars::generate::SchemaSettings;

#[path = "src/schema/roots.rs"]
mod roots;

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/schema/roots.rs");
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/$defs".into();
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut generator = settings.into_generator();
    let roots: Vec<_> = roots::ROOTS.iter().map(|(name, root)| (*name, root(&mut generator).to_value())).collect();
    let mut definitions = generator.take_definitions(false);
    let names: BTreeSet<&str> = roots.iter().map(|(name, _)| *name).collect();
    definitions.extend(roots.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())));
    let lines = definitions.iter().map(|(name, schema)| {
        let is_root = names.contains(name.as_str());
        format!("    Definition {{ name: {name:?}, is_root: {is_root}, text: {:?} }},\n", schema.to_string())
    });
    let path = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("definitions.rs");
    fs::write(path, format!("&[\n{}]\n", lines.collect::<String>()))
}
