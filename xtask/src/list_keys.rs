//! `cargo xtask list-keys`: writes the two generated files of `crates/api/src/schema`.
//!
//! - `list_keys.txt`: which lists are sets or maps and by which keys, and how strategic merge patch
//!   treats them. List types come from k8s-openapi's sources for the newest version, whose merge code
//!   states them; patch strategies come from `list-keys-1.20.json`, extended to newer fields by the
//!   rule that upstream has followed since (a list map with one key is merged by that key).
//! - `roots.rs`: one schema function for every GA top-level type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The newest version that k8s-openapi is built with.
const VERSION_DIR: &str = "v1_37";

/// Structs that are replaced as a whole by server-side apply (`x-kubernetes-map-type: atomic`).
/// k8s-openapi does not keep this fact, so it is stated here.
const ATOMIC_STRUCTS: &[&str] = &[
    "io.k8s.api.autoscaling.v1.CrossVersionObjectReference",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.networking.v1.IngressClassParametersReference",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Fields that server-side apply merges although their struct is atomic elsewhere (`x-kubernetes-map-type: granular`).
const GRANULAR: &[(&str, &str)] = &[("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef")];

/// Newer list maps that strategic merge patch replaces as a whole.
const NOT_PATCHED: &[(&str, &str)] = &[
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyStatus", "conditions"),
    ("io.k8s.api.core.v1.ResourceRequirements", "claims"),
    ("io.k8s.api.core.v1.ResourceStatus", "resources"),
    ("io.k8s.api.resource.v1.AllocatedDeviceStatus", "conditions"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "conditions"),
];

/// Newer fields that, unlike a plain list map, also retain keys when they are patched.
const RETAIN_KEYS: &[(&str, &str)] = &[("io.k8s.api.core.v1.PodSpec", "resourceClaims")];

/// What is known of one field.
#[derive(Default)]
struct Field {
    /// `set`, `map(a,b)`, `atomicmap`, `granular`, or empty.
    list_type: String,
    /// `merge`, `merge=key`, `retainKeys`, `merge=key,retainKeys`, or empty.
    patch: String,
}

type Table = BTreeMap<String, BTreeMap<String, Field>>;

/// Reads k8s-openapi's sources and writes both files.
pub fn run() -> Result<()> {
    let sources = k8s_openapi_sources()?;
    let mut files = Vec::new();
    rust_files(&sources, &mut files)?;
    files.sort();
    let texts =
        files.iter().map(|file| Ok((file.clone(), std::fs::read_to_string(file)?))).collect::<Result<Vec<_>>>()?;
    let names = json_names(&texts);
    let mut table = Table::new();
    let mut roots = BTreeMap::new();
    for (file, text) in &texts {
        let Some(type_name) =
            text.strip_prefix("// Generated from definition ").and_then(|rest| rest.split_whitespace().next())
        else {
            continue;
        };
        let fields = list_types(text, &names).with_context(|| file.display().to_string())?;
        if !fields.is_empty() {
            table.insert(type_name.to_owned(), fields);
        }
        if let Some(path) = root_path(&sources, file, text, type_name) {
            roots.insert(type_name.to_owned(), path);
        }
    }
    add_patch_strategies(&mut table, &texts)?;
    let schema = Path::new("crates/api/src/schema");
    std::fs::write(schema.join("list_keys.txt"), render(&table))?;
    std::fs::write(schema.join("roots.rs"), render_roots(&roots))?;
    Ok(())
}

fn k8s_openapi_sources() -> Result<PathBuf> {
    let output =
        std::process::Command::new("cargo").args(["metadata", "--format-version", "1", "--offline"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "k8s-openapi")
        .and_then(|package| package["manifest_path"].as_str())
        .context("k8s-openapi is not a dependency")?;
    Ok(Path::new(manifest).parent().context("manifest has no folder")?.join("src").join(VERSION_DIR))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Rust field name to JSON field name, per type file: `host_ip` is `hostIP`.
fn json_names(texts: &[(PathBuf, String)]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for line in texts.iter().flat_map(|(_, text)| text.lines()) {
        let Some((json, rust)) = line.trim().split_once(" => Field::Key_") else { continue };
        names.entry(rust.trim_end_matches(',').to_owned()).or_insert_with(|| json.trim_matches('"').to_owned());
    }
    names
}

/// The fields of one type whose lists or maps are not merged in the default way.
fn list_types(text: &str, all_names: &BTreeMap<String, String>) -> Result<BTreeMap<String, Field>> {
    let own = json_names(&[(PathBuf::new(), text.to_owned())]);
    let json = |rust: &str| {
        own.get(rust).or_else(|| all_names.get(rust)).cloned().with_context(|| format!("no JSON name for {rust}"))
    };
    let mut fields = BTreeMap::new();
    let body = text.split("impl crate::DeepMerge for ").nth(1).unwrap_or("");
    let body = body.split("\nimpl").next().unwrap_or("");
    for call in body.split("crate::merge_strategies::").skip(1) {
        let (strategy, arguments) = call.split_once('(').context("a call without arguments")?;
        let name = arguments.split("self.").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("");
        let list_type = match strategy {
            "list::set" => "set".to_owned(),
            "map::atomic" => "atomicmap".to_owned(),
            // A key inside an item's metadata is k8s-openapi's own idea; upstream's list is atomic.
            "list::map" if arguments.split("lhs.").skip(1).any(|key| key.starts_with("metadata")) => continue,
            "list::map" => {
                let keys = arguments.split("lhs.").skip(1).map(|key| json(key.split(' ').next().unwrap_or("")));
                format!("map({})", keys.collect::<Result<Vec<_>>>()?.join(","))
            }
            _ => continue,
        };
        if name.is_empty() {
            bail!("a merge of something that is not a field");
        }
        fields.insert(json(name)?, Field { list_type, patch: String::new() });
    }
    Ok(fields)
}

/// The Rust path of a GA top-level type, if this file holds one.
fn root_path(sources: &Path, file: &Path, text: &str, type_name: &str) -> Option<String> {
    let kind = type_name.rsplit('.').next()?;
    let version = type_name.rsplit('.').nth(1)?;
    let has_object_meta = text.contains("type Ty = crate::apimachinery::pkg::apis::meta::v1::ObjectMeta");
    if version.contains("alpha")
        || version.contains("beta")
        || !text.contains(&format!("impl crate::Resource for {kind} "))
        || !has_object_meta
    {
        return None;
    }
    let folder = file.parent()?.strip_prefix(sources).ok()?;
    let modules: Vec<_> = folder.iter().filter_map(|part| part.to_str()).collect();
    Some(format!("{}::{kind}", modules.join("::")))
}

/// Adds what strategic merge patch does, which k8s-openapi's sources do not say.
fn add_patch_strategies(table: &mut Table, texts: &[(PathBuf, String)]) -> Result<()> {
    let old: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(include_str!("list-keys-1.20.json"))?;
    let types: BTreeSet<&str> = texts
        .iter()
        .filter_map(|(_, text)| text.strip_prefix("// Generated from definition ")?.split_whitespace().next())
        .collect();
    for (type_name, fields) in &old {
        if !types.contains(type_name.as_str()) {
            continue;
        }
        for (field, facts) in fields {
            if field == "key" {
                continue; // LabelSelectorRequirement states a strategy for a string, where none applies.
            }
            let entry = table.entry(type_name.clone()).or_default().entry(field.clone()).or_default();
            entry.patch = patch_of(facts);
            // k8s-openapi shortens a map's keys to the one that patches use; upstream's list type has them all.
            if let Some(keys) = facts["list-map-keys"].as_array() {
                entry.list_type =
                    format!("map({})", keys.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
            }
        }
    }
    for (type_name, fields) in table.iter_mut() {
        for (name, field) in fields.iter_mut() {
            let known = old.get(type_name).is_some_and(|fields| fields.contains_key(name));
            let one_key = field
                .list_type
                .strip_prefix("map(")
                .and_then(|keys| keys.strip_suffix(')'))
                .filter(|keys| !keys.contains(','));
            if let (false, Some(key)) = (known || NOT_PATCHED.contains(&(type_name, name)), one_key) {
                field.patch = format!("merge={key}");
            }
            if (type_name.as_str(), name.as_str()) == ("io.k8s.api.core.v1.EphemeralContainer", "ports") {
                field.list_type = "map(containerPort,protocol)".to_owned();
            }
            if RETAIN_KEYS.contains(&(type_name.as_str(), name.as_str())) {
                field.patch.push_str(",retainKeys");
            }
        }
        fields.retain(|_, field| !(field.list_type.is_empty() && field.patch.is_empty()));
    }
    table.retain(|_, fields| !fields.is_empty());
    for (name, field) in GRANULAR {
        let fields = table.entry((*name).to_owned()).or_default();
        fields.entry((*field).to_owned()).or_default().list_type = "granular".to_owned();
    }
    for name in ATOMIC_STRUCTS {
        table.entry((*name).to_owned()).or_default();
    }
    Ok(())
}

fn patch_of(facts: &Value) -> String {
    let strategy = facts["patch-strategy"].as_str().unwrap_or("");
    match facts["patch-merge-key"].as_str() {
        Some(key) => strategy.replacen("merge", &format!("merge={key}"), 1),
        None => strategy.to_owned(),
    }
}

fn render(table: &Table) -> String {
    let mut text = String::from(
        "# Generated by `cargo xtask list-keys`. A line that begins with a space is a field of the type above it:\n\
         # name, list type (set, map(keys), atomicmap, granular), patch strategy. A type followed by `atomic` is \
             replaced\n# as a whole, but for a field that is `granular`.\n\
         # What is not here is merged in the default way: structs and maps by field, lists as a whole.\n",
    );
    for (type_name, fields) in table {
        let atomic = if ATOMIC_STRUCTS.contains(&type_name.as_str()) { " atomic" } else { "" };
        let _ = writeln!(text, "{type_name}{atomic}");
        for (name, field) in fields {
            let line =
                format!(" {name} {} {}", if field.list_type.is_empty() { "-" } else { &field.list_type }, field.patch);
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

fn render_roots(roots: &BTreeMap<String, String>) -> String {
    let mut text = String::from(
        "//! Generated by `cargo xtask list-keys`: the schema function of every GA top-level type, by definition \
            name.\n\n\
         use k8s_openapi::*;\nuse schemars::{JsonSchema, Schema, SchemaGenerator};\n\n\
         /// Builds the schema of one type; types that it mentions are added to the generator.\n\
         pub(super) type Root = fn(&mut SchemaGenerator) -> Schema;\n\n\
         /// Sorted by definition name.\n#[rustfmt::skip]\n\
         pub(super) static ROOTS: &[(&str, Root)] = &[\n",
    );
    for (type_name, path) in roots {
        let _ = writeln!(text, "    (\"{type_name}\", <{path} as JsonSchema>::json_schema),");
    }
    text.push_str("];\n");
    text
}
