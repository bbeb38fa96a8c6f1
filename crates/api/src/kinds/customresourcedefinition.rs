//! CustomResourceDefinition: kinds that are defined while the server runs.
//!
//! What is made of one is in [`crate::custom`]; whether its names are accepted is the controller's to say.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::admission_rules::{validate_service, validate_url};
use super::cells::{NAME, column};
use super::field::{Field, IMMUTABLE, default, each, inner, keep, made};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::custom::jsonpath::Path;
use crate::custom::patterns::Patterns;
use crate::custom::rows::{FORMATS, TYPES, is_true};
use crate::custom::{defaults, rule_check, structural};
use crate::names;
use crate::object::{at, ensure, name, text};
use crate::status::{Cause, MAX_CAUSES};

/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Upstream's limit on `selectableFields` of a version.
const MAX_SELECTABLE: usize = 8;

/// The row of CustomResourceDefinition.
pub static CUSTOM_RESOURCE_DEFINITION: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apiextensions.k8s.io"),
    kind: Borrowed("CustomResourceDefinition"),
    plural: Borrowed("customresourcedefinitions"),
    singular: Borrowed("customresourcedefinition"),
    short_names: Borrowed(&[Borrowed("crd"), Borrowed("crds")]),
    categories: Borrowed(&[Borrowed("api-extensions")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"),
    columns: Borrowed(&[NAME, column("Created At", "date", "", 0, "When it was created.")]),
    row: |_, definition, _| vec![json!(name(definition)), json!(text(definition, &["metadata", "creationTimestamp"]))],
    defaults: |_, definition| defaults(definition),
    prepare_create: |_, definition| {
        let status = json!({ "conditions": null, "acceptedNames": { "plural": "", "kind": "" }, "storedVersions": [] });
        workload::prepare_create(definition, status);
        note_stored_version(definition);
    },
    prepare_update: |_, new, old| {
        keep(new, old, "status");
        workload::count_generation(new, old, new.get("spec") != old.get("spec"));
        note_stored_version(new);
    },
    validate: |_, definition, causes| validate(definition, causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    validate_status: |_, new, old, causes| validate_status(new, old, causes),
    ..BASE
});

fn defaults(definition: &mut Value) {
    let Some(spec) = made(definition, "spec") else { return };
    let kind = text(spec, &["names", "kind"]).to_owned();
    if let Some(names) = made(spec, "names")
        && !kind.is_empty()
    {
        default(names, "singular", kind.to_lowercase());
        default(names, "listKind", format!("{kind}List"));
    }
    if let Some(conversion) = made(spec, "conversion") {
        default(conversion, "strategy", "None");
        let service = inner(conversion, "webhook").and_then(|webhook| inner(webhook, "clientConfig"));
        if let Some(service) = service.and_then(|config| inner(config, "service")) {
            default(service, "port", 443);
        }
    }
    for version in each(spec, "versions") {
        for column in each(version, "additionalPrinterColumns") {
            if text(column, &["type"]).is_empty() {
                default(column, "type", "string");
            }
        }
    }
}

/// The version that is stored is one that objects may be stored in from now on.
fn note_stored_version(definition: &mut Value) {
    let stored = Field::root(definition).dig(&["spec", "versions"]).items().find(|v| v.get("storage").is_true());
    let Some(stored) = stored.map(|version| version.get("name").text().to_owned()) else { return };
    let status = ensure(definition, &["status"]);
    let versions = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let Value::Array(versions) = versions
        && !versions.iter().any(|version| *version == stored)
    {
        versions.push(stored.into());
    }
}

fn validate(definition: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(definition).get("spec");
    let wanted = format!("{}.{}", spec.dig(&["names", "plural"]).text(), spec.get("group").text());
    if name(definition) != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", name(definition), why));
    }
    let group = spec.get("group");
    group.need(causes, names::subdomain);
    if !group.text().is_empty() && !group.text().contains('.') {
        causes.push(group.invalid("should be a domain with at least one dot"));
    }
    spec.get("scope").need_one_of(causes, &["Cluster", "Namespaced"]);
    if spec.get("preserveUnknownFields").is_true() {
        causes.push(spec.get("preserveUnknownFields").invalid("must be false in order to use defaults in the schema"));
    }
    validate_approval(definition, group.text(), causes);
    validate_names(&spec.get("names"), causes);
    validate_versions(&spec, causes);
    validate_conversion(&spec.get("conversion"), causes);
    validate_stored_versions(definition, causes);
}

/// The versions in which objects may be stored: the one that is stored now, and no unknown one, since objects of a
/// version that no schema is known of could not be read (S11, A10).
fn validate_stored_versions(definition: &Value, causes: &mut Vec<Cause>) {
    let stored = Field::root(definition).dig(&["status", "storedVersions"]);
    if stored.len() == 0 {
        causes.push(stored.invalid("must have at least one stored version"));
        return;
    }
    let versions = Field::root(definition).dig(&["spec", "versions"]);
    let names: BTreeSet<&str> = stored.items().map(|name| name.text()).collect();
    for version in versions.items().filter(|version| version.get("storage").is_true()) {
        let name = version.get("name").text();
        if !names.contains(name) {
            causes.push(Cause::invalid(&stored.path, name, &format!("must have the storage version {name}")));
        }
    }
    let known: BTreeSet<&str> = versions.items().map(|version| version.get("name").text()).collect();
    for stored in stored.items().filter(|stored| !known.contains(stored.text())).take(MAX_CAUSES) {
        let name = stored.text();
        causes.push(stored.invalid(&format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                status.storedVersions"
        )));
    }
}

/// Differs: upstream takes any `storedVersions`, so that a version in which objects are still stored can be taken out
/// of the definition, and nothing can read them any more.
fn validate_status(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let stored = |definition| at(definition, &["status", "storedVersions"]).cloned();
    if stored(new) != stored(old) {
        validate_stored_versions(new, causes);
    }
}

/// Who may define kinds in Kubernetes' own groups says where that was approved.
fn validate_approval(definition: &Value, group: &str, causes: &mut Vec<Cause>) {
    const APPROVAL: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let is_protected = |suffix: &str| group == suffix || group.strip_suffix(suffix).is_some_and(|g| g.ends_with('.'));
    if !["k8s.io", "kubernetes.io"].into_iter().any(is_protected) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVAL}]");
    let said = text(definition, &["metadata", "annotations", APPROVAL]);
    let is_url = said.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    let must = format!("protected groups must have approval annotation {APPROVAL:?}");
    if said.is_empty() {
        causes.push(Cause::required(path, &format!("{must}, {SEE}")));
    } else if !is_url && !said.starts_with("unapproved") {
        let why = format!("{must} with either a URL or a reason starting with \"unapproved\", {SEE}");
        causes.push(Cause::invalid(path, said, &why));
    }
}

/// Upstream keeps a webhook in other fields inside, and names those.
fn validate_conversion(conversion: &Field, causes: &mut Vec<Cause>) {
    conversion.get("strategy").need_one_of(causes, &["None", "Webhook"]);
    let (config_at, reviews_at) = ("spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions");
    let config = conversion.dig(&["webhook", "clientConfig"]);
    let reviews = conversion.dig(&["webhook", "conversionReviewVersions"]);
    if conversion.get("strategy").text() != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        causes.extend(config.is_set().then(|| Cause::forbidden(config_at, why)));
        causes.extend((reviews.len() > 0).then(|| Cause::forbidden(reviews_at, why)));
        return;
    }
    if !config.is_set() {
        causes.push(Cause::required(config_at, "required when strategy is set to Webhook"));
    } else if config.get("url").is_set() == config.get("service").is_set() {
        causes.push(Cause::required(config_at, "exactly one of url or service is required"));
    } else if config.get("url").is_set() {
        validate_url(&config.get("url"), causes);
    } else {
        validate_service(&config.get("service"), causes);
    }
    if reviews.len() == 0 {
        causes.push(Cause::required(reviews_at, ""));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, version) in reviews.items().enumerate() {
        let path = format!("{reviews_at}[{index}]");
        if !seen.insert(version.text()) {
            causes.push(Cause::invalid(path, version.text(), "duplicate version"));
            continue;
        }
        for why in names::label_1035(version.text()) {
            causes.push(Cause::invalid(&path, version.text(), &why));
        }
    }
    if !["v1", "v1beta1"].iter().any(|known| seen.contains(known)) {
        causes.push(Cause::invalid(reviews_at, reviews.value.clone(), "must include at least one of v1, v1beta1"));
    }
}

fn validate_names(accepted: &Field, causes: &mut Vec<Cause>) {
    accepted.get("plural").need(causes, names::label_1035);
    accepted.get("singular").check(causes, names::label_1035);
    for field in ["kind", "listKind"] {
        let field = accepted.get(field);
        if field.need_text(causes) {
            for why in names::label_1035(&field.text().to_lowercase()) {
                causes.push(field.invalid(&format!("may have mixed case, but should otherwise match: {why}")));
            }
        }
    }
    let kinds = [accepted.get("kind"), accepted.get("listKind")];
    if !kinds[0].text().is_empty() && kinds[0].text() == kinds[1].text() {
        causes.push(kinds[1].invalid("kind and listKind may not be the same"));
    }
    for list in ["shortNames", "categories"] {
        accepted.get(list).items().for_each(|item| item.need(causes, names::label_1035));
    }
}

fn validate_versions(spec: &Field, causes: &mut Vec<Cause>) {
    let versions = spec.get("versions");
    let stored = versions.items().filter(|version| version.get("storage").is_true()).count();
    if stored != 1 {
        causes.push(versions.invalid("must have exactly one version marked as storage version"));
    }
    let mut seen = BTreeSet::new();
    if !versions.items().all(|version| seen.insert(version.get("name").text())) {
        causes.push(versions.invalid("must contain unique version names"));
    }
    let schema = |version: &Field<'_>| at(version.value, &["schema", "openAPIV3Schema"]).cloned();
    let first = versions.items().next().and_then(|version| schema(&version));
    let is_common = versions.items().all(|version| schema(&version) == first);
    let mut patterns = Patterns::default();
    for (index, version) in versions.items().enumerate() {
        version.get("name").need(causes, names::label_1035);
        let own = version.dig(&["schema", "openAPIV3Schema"]);
        if !own.is_set() {
            causes.push(Cause::required(&own.path, "schemas are required"));
        } else if !is_common || index == 0 {
            // A schema that all versions have is told as upstream does, which keeps it in one place inside.
            let path = if is_common { "spec.validation.openAPIV3Schema" } else { &own.path };
            let before = causes.len();
            structural::validate(own.value, path, &mut patterns, causes);
            if causes.len() == before {
                rule_check::validate(own.value, path, causes);
                defaults::validate(own.value, path, causes);
            }
        }
        validate_view(&version, causes);
    }
}

/// Subresources, columns and selectable fields of a version.
fn validate_view(version: &Field, causes: &mut Vec<Cause>) {
    let scale = version.dig(&["subresources", "scale"]);
    if scale.is_set() {
        let roots = [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")];
        for (field, root) in roots {
            let path = scale.get(field);
            if !path.need_text(causes) {
                continue;
            }
            if !path.text().starts_with(root) {
                causes.push(path.invalid(&format!("should be a json path under {}", root.trim_end_matches('.'))));
            }
        }
        let selector = scale.get("labelSelectorPath");
        if !selector.text().is_empty() && ![".spec.", ".status."].iter().any(|root| selector.text().starts_with(root)) {
            causes.push(selector.invalid("should be a json path under either .status or .spec"));
        }
    }
    for column in version.get("additionalPrinterColumns").items() {
        column.get("name").need_text(causes);
        column.get("type").need_one_of(causes, &TYPES);
        column.get("format").one_of(causes, &FORMATS);
        let path = column.get("jsonPath");
        if path.need_text(causes)
            && let Err(why) = Path::parse(path.text())
        {
            causes.push(path.invalid(&why));
        }
    }
    let selectable = version.get("selectableFields");
    if selectable.len() > MAX_SELECTABLE {
        causes.push(Cause::too_many(&selectable.path, selectable.len(), MAX_SELECTABLE));
    }
    for field in selectable.items() {
        let path = field.get("jsonPath");
        if path.need_text(causes) && Path::parse(path.text()).ok().is_none_or(|path| path.fields().is_none()) {
            causes.push(path.invalid("must be a simple path to a field"));
        }
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let fixed: &[&[&str]] = match is_true(old, "Established") {
        true => &[&["group"], &["names", "plural"], &["scope"], &["names", "kind"]],
        false => &[&["group"], &["names", "plural"]],
    };
    for path in fixed {
        let [new, old] = [new, old].map(|definition| Field::root(definition).get("spec"));
        let (new, old) = (new.dig(path), old.dig(path));
        if new.value != old.value {
            causes.push(new.invalid(IMMUTABLE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S11, A10: objects of a version that no schema is known of could not be read.
    #[test]
    fn a10_the_versions_in_which_objects_are_stored_are_not_made_up() {
        let version = |name: &str, storage: bool| json!({ "name": name, "served": true, "storage": storage });
        let definition = |stored: &[&str]| {
            let versions = [version("v1", false), version("v2", true)];
            let status = json!({ "storedVersions": stored });
            json!({ "metadata": { "name": "foos.x.io" }, "spec": { "versions": versions }, "status": status })
        };
        let refused = |old: &[&str], new: &[&str]| {
            let mut causes = Vec::new();
            let kind = &CUSTOM_RESOURCE_DEFINITION;
            (kind.validate_status)(kind, &definition(new), &definition(old), &mut causes);
            causes.into_iter().map(|cause| (cause.field, cause.message)).collect::<Vec<_>>()
        };
        let both = ["v1", "v2"];
        assert_eq!(refused(&both, &["v2"]), [], "after a migration");
        assert_eq!(refused(&[], &[]), [], "what an older server has let through does not hold up its status");
        let table: [(&[&str], &str, &str); 3] = [
            (&[], "status.storedVersions", "must have at least one stored version"),
            (&["v1"], "status.storedVersions", "must have the storage version v2"),
            (&["v2", "zz"], "status.storedVersions[1]", "missing from spec.versions; zz was previously"),
        ];
        for (stored, field, why) in table {
            let found = refused(&both, stored);
            assert!(found.len() == 1 && found[0].0 == field && found[0].1.contains(why), "{stored:?}: {found:?}");
        }
    }
}
