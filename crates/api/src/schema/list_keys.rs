//! The table of list types and patch strategies: the loader of the generated `list_keys.txt`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// How server-side apply sees a list or a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListType {
    /// Lists are owned and replaced as a whole; maps and structs field by field. The default.
    Default,
    /// A list of scalars without order or duplicates.
    Set,
    /// A list of objects that these fields identify, in upstream's order.
    Map(Box<[&'static str]>),
    /// A map that is owned and replaced as a whole.
    AtomicMap,
    /// A struct that is merged by field here, although elsewhere it is owned as a whole.
    Granular,
}

/// How one field is merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldKeys {
    /// For server-side apply.
    pub list_type: ListType,
    /// `patchStrategy: merge` of strategic merge patch.
    pub patch_merge: bool,
    /// `patchMergeKey`; a merged list without one is a list of scalars.
    pub patch_key: Option<&'static str>,
    /// `patchStrategy: retainKeys`.
    pub retain_keys: bool,
}

/// What holds for a field that the table does not name.
pub static DEFAULT: FieldKeys =
    FieldKeys { list_type: ListType::Default, patch_merge: false, patch_key: None, retain_keys: false };

/// What the table says of one type.
#[derive(Default)]
pub(super) struct TypeKeys {
    /// The whole struct has one owner.
    pub atomic: bool,
    /// By JSON field name.
    pub fields: BTreeMap<&'static str, FieldKeys>,
}

static TABLE: LazyLock<BTreeMap<&'static str, TypeKeys>> = LazyLock::new(|| parse(include_str!("list_keys.txt")));

/// What the table says of the type with this definition name.
pub(super) fn of_type(type_name: &str) -> Option<&'static TypeKeys> {
    TABLE.get(type_name)
}

/// Whether apply owns and replaces this struct as a whole (`x-kubernetes-map-type: atomic`).
pub fn is_atomic(type_name: &str) -> bool {
    of_type(type_name).is_some_and(|keys| keys.atomic)
}

/// How the field of this type is merged.
pub fn of_field(type_name: &str, field: &str) -> &'static FieldKeys {
    of_type(type_name).and_then(|keys| keys.fields.get(field)).unwrap_or(&DEFAULT)
}

fn parse(text: &'static str) -> BTreeMap<&'static str, TypeKeys> {
    let mut table: BTreeMap<&'static str, TypeKeys> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        if line.starts_with(' ') {
            let keys = parse_field(words.next().unwrap_or("-"), words.next().unwrap_or(""));
            table.entry(current).or_default().fields.insert(name, keys);
        } else {
            current = name;
            table.entry(name).or_default().atomic = words.next() == Some("atomic");
        }
    }
    table
}

fn parse_field(list: &'static str, patch: &'static str) -> FieldKeys {
    let list_type = match list {
        "set" => ListType::Set,
        "atomicmap" => ListType::AtomicMap,
        "granular" => ListType::Granular,
        _ => match list.strip_prefix("map(").and_then(|keys| keys.strip_suffix(')')) {
            Some(keys) => ListType::Map(keys.split(',').collect()),
            None => ListType::Default,
        },
    };
    let mut keys = FieldKeys { list_type, ..DEFAULT.clone() };
    for strategy in patch.split(',') {
        match strategy.split_once('=') {
            Some(("merge", key)) => (keys.patch_merge, keys.patch_key) = (true, Some(key)),
            None if strategy == "merge" => keys.patch_merge = true,
            None if strategy == "retainKeys" => keys.retain_keys = true,
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_upstreams_keys() {
        let ports = of_field("io.k8s.api.core.v1.Container", "ports");
        assert_eq!(ports.list_type, ListType::Map(["containerPort", "protocol"].into()));
        assert_eq!((ports.patch_merge, ports.patch_key), (true, Some("containerPort")));
        let volumes = of_field("io.k8s.api.core.v1.PodSpec", "volumes");
        assert!(volumes.patch_merge && volumes.retain_keys && volumes.patch_key == Some("name"));
        let strategy = of_field("io.k8s.api.apps.v1.DeploymentSpec", "strategy");
        assert!(strategy.retain_keys && !strategy.patch_merge);
        let finalizers = of_field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers");
        assert!(finalizers.patch_merge && finalizers.patch_key.is_none() && finalizers.list_type == ListType::Set);
        assert_eq!(of_field("io.k8s.api.core.v1.PodSpec", "nodeSelector").list_type, ListType::AtomicMap);
        assert_eq!(of_field("io.k8s.api.core.v1.PodSpec", "tolerations"), &DEFAULT);
        assert!(is_atomic("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"));
        assert_eq!(of_field("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef").list_type, ListType::Granular);
    }
}
