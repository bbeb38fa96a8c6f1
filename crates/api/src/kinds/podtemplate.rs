//! PodTemplate: a template that somebody keeps; nothing makes pods of it by itself.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, NAME, text_column};
use super::field::{Field, made};
use super::{BASE, Column, Kind, Row, pod_spec, pod_spec_validation, pod_warnings, workload};
use crate::object::{ensure, name};

/// The row of PodTemplate.
pub static POD_TEMPLATE: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("PodTemplate"),
    plural: Borrowed("podtemplates"),
    singular: Borrowed("podtemplate"),
    type_name: Borrowed("io.k8s.api.core.v1.PodTemplate"),
    columns: Borrowed(&COLUMNS),
    row: |_, template, _| {
        let spec = json!({ "spec": { "template": template.get("template") } });
        let [containers, images] = cells::containers(&spec);
        vec![json!(name(template)), containers, images, cells::labels(template, &["template", "metadata", "labels"])]
    },
    defaults: |_, object| {
        if let Some(template) = made(object, "template") {
            pod_spec::template_defaults(template);
        }
    },
    prepare_create: |_, object| {
        ensure(object, &["metadata"]).insert("generation".to_owned(), json!(1));
    },
    prepare_update: |_, new, old| {
        let template = |object: &Value| object.get("template").cloned();
        workload::count_generation(new, old, template(new) != template(old));
    },
    validate: |_, object, causes| {
        pod_spec_validation::validate_pod_template(&Field::root(object).get("template"), &[], causes);
    },
    warnings: |_, object| pod_warnings::of_pods(&Field::root(object).get("template"), true),
    ..BASE
});

static COLUMNS: [Column; 4] = [
    NAME,
    text_column("Containers", "Names of the containers of the template."),
    text_column("Images", "Images of the containers of the template."),
    text_column("Pod Labels", "Labels of the pods made of it."),
];
