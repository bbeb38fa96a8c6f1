//! What a definition makes of a kind: its versions, what they serve, and what is done to their objects.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::rows::{is_true, names, rows, serve};
use crate::kinds::{Kind, Subresource};
use crate::registry::Registry;

/// Writes values over those of an object.
fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (path, value) in changes {
        *object.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value.clone();
    }
    object
}

/// `books` in three versions: v1 is stored, v1beta1 is deprecated, v1alpha1 is not served.
fn definition() -> Value {
    let schema = |spec: Value| {
        json!({ "openAPIV3Schema": { "type": "object", "properties": {
        "spec": spec, "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } } })
    };
    let spec = json!({ "type": "object", "required": ["pages"], "properties": {
        "pages": { "type": "integer", "minimum": 1 }, "title": { "type": "string", "default": "none" },
        "old": { "type": "integer", "maximum": 5 } },
        "x-kubernetes-validations": [
            { "rule": "!has(self.old) || self.pages > self.old", "message": "more pages than before" },
            { "rule": "self.pages >= oldSelf.pages", "message": "no page is torn out" }] });
    json!({
        "metadata": { "name": "books.example.com", "resourceVersion": "50" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "books", "singular": "book", "kind": "Book", "shortNames": ["bk"],
                "categories": ["all"] },
            "conversion": { "strategy": "Webhook", "webhook": { "clientConfig": { "url": "https://x.io" },
                "conversionReviewVersions": ["v2", "v1"] } },
            "versions": [
                { "name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                    "schema": schema(json!({ "type": "object" })) },
                { "name": "v1", "served": true, "storage": true, "schema": schema(spec),
                    "selectableFields": [{ "jsonPath": ".spec.title" }, { "jsonPath": ".spec.pages" }],
                    "subresources": { "status": {}, "scale": { "specReplicasPath": ".spec.pages",
                        "statusReplicasPath": ".status.pages", "labelSelectorPath": ".status.selector" } },
                    "additionalPrinterColumns": [
                        { "name": "Pages", "type": "integer", "format": "int64", "jsonPath": ".spec.pages",
                            "description": "How many." },
                        { "name": "Odd", "type": "integer", "jsonPath": ".a[" },
                        { "name": "Printed", "type": "date", "jsonPath": ".status.printed", "priority": 1 },
                        { "name": "Other", "type": "unheard", "format": "of", "jsonPath": ".spec.title" }] },
                { "name": "v1alpha1", "served": false, "storage": false,
                    "schema": schema(json!({ "type": "object" })) }],
        },
        "status": { "conditions": [{ "type": "NamesAccepted", "status": "True" },
            { "type": "Established", "status": "True" }] },
    })
}

fn bytes(definition: &Value) -> Bytes {
    definition.to_string().into()
}

fn kinds(definition: &Value) -> Vec<Kind> {
    rows(&bytes(definition)).unwrap()
}

/// The stored version.
fn book(definition: &Value) -> Kind {
    kinds(definition).into_iter().find(|kind| kind.version == "v1").unwrap()
}

fn object(pages: i64) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Book",
        "metadata": { "name": "a", "generation": 4, "resourceVersion": "60" },
        "spec": { "pages": pages }, "status": { "printed": "2026-01-01T00:00:00Z" } })
}

#[test]
fn a_definition_is_served_once_it_is_established_and_no_other_kind_gives_way() {
    let known = Registry::built_in();
    let definition = definition();
    let versions = |registry: &Registry, group: &str, plural: &str| -> Vec<String> {
        registry.versions(group, plural).iter().map(|kind| kind.version.to_string()).collect()
    };
    let serving = serve(&known, &bytes(&definition), false).unwrap();
    let mut served = versions(&serving, "example.com", "books");
    served.sort();
    assert_eq!(served, ["v1", "v1beta1"]);
    assert!(versions(&serve(&serving, &bytes(&definition), true).unwrap(), "example.com", "books").is_empty());
    // One that has lost its names is not served any more; nor is one that says so of another condition.
    for (path, value) in [
        ("/status/conditions/1/status", json!("False")),
        ("/status/conditions/1/type", json!("Other")),
        ("/status", json!({})),
    ] {
        let not = with(definition.clone(), &[(path, value)]);
        assert!(versions(&serve(&serving, &bytes(&not), false).unwrap(), "example.com", "books").is_empty(), "{path}");
        assert!(!is_true(&not, "Established") && names(&bytes(&not)[..]).unwrap().is_empty());
        assert!(versions(&serve(&known, &bytes(&not), false).unwrap(), "example.com", "books").is_empty());
    }
    let built_in =
        with(definition.clone(), &[("/spec/group", json!("apps")), ("/spec/names/plural", json!("statefulsets"))]);
    for deleted in [false, true] {
        let kept = serve(&serving, &bytes(&built_in), deleted).unwrap();
        assert!(kept.versions("apps", "statefulsets").iter().all(|kind| matches!(kind, Kind::BuiltIn(_))));
        assert_eq!(versions(&kept, "apps", "statefulsets"), ["v1"]);
    }
    assert!(serve(&known, &Bytes::from("{"), false).is_err());
}

#[test]
fn a_version_has_the_names_of_its_definition_and_what_it_says_itself() {
    let definition = definition();
    let [beta, v1] = &kinds(&definition)[..] else { panic!() };
    assert_eq!([&beta.version, &v1.version], ["v1beta1", "v1"]);
    assert_eq!((&*v1.group, &*v1.kind, &*v1.plural, &*v1.singular), ("example.com", "Book", "books", "book"));
    assert_eq!(
        (&v1.short_names[..], &v1.categories[..], v1.namespaced),
        (&["bk".into()][..], &["all".into()][..], true)
    );
    assert_eq!(&*v1.type_name, "com.example.v1.Book");
    assert!(v1.has(Subresource::Status) && v1.has(Subresource::Scale));
    assert!(!beta.has(Subresource::Status) && !beta.has(Subresource::Scale));
    let cluster = with(definition.clone(), &[("/spec/scope", json!("Cluster"))]);
    assert!(!book(&cluster).namespaced);
    // What decisions see: the stored version's names, without a schema.
    let [stored] = &names(&bytes(&definition)[..]).unwrap()[..] else { panic!() };
    assert_eq!((&*stored.version, stored.custom.is_none(), &*stored.plural), ("v1", true, "books"));
    let hidden = with(definition.clone(), &[("/spec/versions/1/served", json!(false))]);
    assert_eq!(&*names(&bytes(&hidden)[..]).unwrap()[0].version, "v1");
    assert_eq!(kinds(&hidden).len(), 1);

    let custom = |kind: &Kind| kind.custom.as_ref().map(|custom| custom.stored_version.to_string());
    assert_eq!([custom(beta), custom(v1)], [Some("v1".to_owned()), Some("v1".to_owned())]);
    let v1 = v1.custom.as_ref().unwrap();
    let webhook = v1.webhook.as_ref().unwrap();
    assert_eq!(
        (&webhook.client_config, &webhook.versions[..]),
        (&json!({ "url": "https://x.io" }), &["v2".to_owned(), "v1".to_owned()][..])
    );
    assert!(!v1.is_terminating && v1.deprecation().is_none());
    let words = "example.com/v1beta1 Book is deprecated; use example.com/v1 Book";
    assert_eq!(beta.custom.as_ref().unwrap().deprecation(), Some(words));
    // A version that is not served is nothing to go to, and without another there is nothing to convert.
    let alone = with(definition.clone(), &[("/spec/versions/1/served", json!(false))]);
    assert_eq!(kinds(&alone)[0].custom.as_ref().unwrap().deprecation(), Some("example.com/v1beta1 Book is deprecated"));
    let mut one = definition.clone();
    one["spec"]["versions"].as_array_mut().unwrap().retain(|version| version["name"] == "v1");
    assert!(book(&one).custom.as_ref().unwrap().webhook.is_none());
    let none = with(definition, &[("/spec/conversion/strategy", json!("None"))]);
    assert!(book(&none).custom.as_ref().unwrap().webhook.is_none());
}

#[test]
fn scale_is_where_the_definition_says() {
    let definition = definition();
    let scale = "/spec/versions/1/subresources/scale";
    let at = |changes: &[(&str, Value)]| book(&with(definition.clone(), changes));
    let object = json!({ "spec": { "pages": 3 }, "status": { "pages": 2, "selector": "a=b" } });
    let kind = at(&[]);
    let found = kind.custom.as_ref().unwrap().scale.as_ref().unwrap();
    assert_eq!(found.spec_replicas.first(&object), Some(&json!(3)));
    assert_eq!(found.status_replicas.first(&object), Some(&json!(2)));
    assert_eq!(found.selector.as_ref().unwrap().first(&object), Some(&json!("a=b")));
    let kind = at(&[(&format!("{scale}/labelSelectorPath"), json!(""))]);
    assert!(kind.custom.as_ref().unwrap().scale.as_ref().unwrap().selector.is_none());
    for broken in [json!(true), json!({ "specReplicasPath": ".spec.pages", "statusReplicasPath": ".a[" })] {
        let kind = at(&[(scale, broken)]);
        assert!(kind.custom.as_ref().unwrap().scale.is_none() && !kind.has(Subresource::Scale));
    }
}

#[test]
fn columns_and_fields_are_what_the_definition_names() {
    let kind = book(&definition());
    let columns: Vec<_> =
        kind.columns.iter().map(|column| (&*column.name, column.type_, column.format, column.priority)).collect();
    let expected = [
        ("Name", "string", "name", 0),
        ("Pages", "integer", "int64", 0),
        ("Printed", "date", "", 1),
        ("Other", "string", "", 0),
    ];
    assert_eq!(columns, expected);
    assert_eq!(&*kind.columns[1].description, "How many.");
    let now: Timestamp = "2026-01-01T00:02:05Z".parse().unwrap();
    assert_eq!((kind.row)(&kind, &object(7), now), [json!("a"), json!(7), json!("2m5s"), Value::Null]);
    let odd =
        json!({ "metadata": { "name": "b" }, "spec": { "pages": 1.5, "title": ["x"] }, "status": { "printed": 3 } });
    assert_eq!((kind.row)(&kind, &odd, now), [json!("b"), json!(1), json!("<invalid>"), json!("[\"x\"]")]);
    let fields = |object: &Value| {
        (kind.fields)(&kind, object).into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(fields(&object(7)), ["spec.title=", "spec.pages=7"]);
    assert_eq!(fields(&json!({ "spec": { "title": "t", "pages": null } })), ["spec.title=t", "spec.pages="]);
    // Without columns of its own a kind shows its age.
    for none in [json!([]), json!(null)] {
        let kind = book(&with(definition(), &[("/spec/versions/1/additionalPrinterColumns", none)]));
        let columns: Vec<_> = kind.columns.iter().map(|column| (&*column.name, column.type_)).collect();
        assert_eq!(columns, [("Name", "string"), ("Age", "date")]);
    }
}

#[test]
fn objects_are_filled_in_counted_and_keep_their_status() {
    let definition = definition();
    let kind = book(&definition);
    let custom = kind.custom.as_ref().unwrap();
    let mut new = object(7);
    (kind.defaults)(&kind, &mut new);
    assert_eq!(new["spec"], json!({ "pages": 7, "title": "none" }));
    (kind.prepare_create)(&kind, &mut new);
    assert_eq!((new.get("status"), &new["metadata"]["generation"]), (None, &json!(1)));
    // An update of the object leaves the status alone; a new generation is one of what was asked for.
    let old = object(7);
    for (path, value, generation) in
        [("/status", json!({ "printed": "never" }), 4), ("/metadata/name", json!("b"), 4), ("/spec/pages", json!(8), 5)]
    {
        let mut new = with(old.clone(), &[(path, value)]);
        (kind.prepare_update)(&kind, &mut new, &old);
        assert_eq!((&new["status"], &new["metadata"]["generation"]), (&old["status"], &json!(generation)), "{path}");
    }
    // Where there is no such subresource it is written with the rest, and counts.
    let plain = book(&with(definition.clone(), &[("/spec/versions/1/subresources", json!({}))]));
    let mut new = with(old.clone(), &[("/status", json!({}))]);
    (plain.prepare_update)(&plain, &mut new, &old);
    assert_eq!((&new["status"], &new["metadata"]["generation"]), (&json!({}), &json!(5)));
    (plain.prepare_create)(&plain, &mut new);
    assert_eq!(new["status"], json!({}));

    // What was stored before the definition had its defaults gets them when it is read.
    let stored = |version: &str| {
        let mut object = with(object(7), &[("/metadata/resourceVersion", json!(version))]);
        custom.complete(&mut object);
        object["spec"].get("title").is_some()
    };
    assert_eq!(["49", "50", "51", "x"].map(stored), [true, false, false, false]);
    assert_eq!(["49", "50", "51", "x"].map(|version| custom.may_lack_defaults(version)), [true, false, false, false]);
    let without = with(
        definition,
        &[("/spec/versions/1/schema/openAPIV3Schema/properties/spec/properties/title", json!({ "type": "string" }))],
    );
    assert!(!book(&without).custom.as_ref().unwrap().may_lack_defaults("49"));
    let mut object = object(7);
    custom.set_version("example.com", "v1beta1", &mut object);
    assert_eq!(object["apiVersion"], "example.com/v1beta1");
}

/// What is wrong is refused; on an update, what was wrong before and has not been touched is not.
#[test]
fn objects_are_judged_by_schema_and_rules_with_ratcheting() {
    let kind = book(&definition());
    let created = |object: &Value| {
        let mut causes = Vec::new();
        (kind.validate)(&kind, object, &mut causes);
        (kind.validate_create)(&kind, object, &mut causes);
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
    };
    let updated = |new: &Value, old: &Value, is_status: bool| {
        let mut causes = Vec::new();
        if is_status {
            (kind.validate_status)(&kind, new, old, &mut causes);
        } else {
            (kind.validate)(&kind, new, &mut causes);
            (kind.validate_update)(&kind, new, old, &mut causes);
        }
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
    };
    let of = |spec: Value| with(object(1), &[("/spec", spec)]);
    assert!(created(&of(json!({ "pages": 7, "old": 3 }))).is_empty());
    let small = "spec.pages: Invalid value: 0: spec.pages in body should be greater than or equal to 1";
    assert_eq!(created(&of(json!({ "pages": 0 }))), [small]);
    let before = "spec: Invalid value: more pages than before";
    assert_eq!(created(&of(json!({ "pages": 2, "old": 3 }))), [before]);

    let old = of(json!({ "pages": 7, "old": 9 }));
    let wrong = "spec.old: Invalid value: 9: spec.old in body should be less than or equal to 5";
    for is_status in [false, true] {
        assert!(updated(&old, &old, is_status).is_empty(), "it was wrong before");
        let torn = updated(&of(json!({ "pages": 3, "old": 9 })), &old, is_status);
        assert!(torn.iter().any(|cause| cause.contains("no page is torn out")), "{torn:?}");
        assert!(!torn.iter().any(|cause| cause == wrong), "{torn:?}");
        let more = updated(&of(json!({ "pages": 8, "old": 10 })), &old, is_status);
        assert!(more.iter().any(|cause| cause.starts_with("spec.old: Invalid value: 10")), "{more:?}");
    }
}
