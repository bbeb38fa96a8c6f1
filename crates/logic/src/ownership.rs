//! Whose is it? Controllers own objects by uid (S10): an object whose labels match is adopted only when it has no
//! controller, one that no longer matches is released, and a stranger's is left alone.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use mainstay_api::Kind;
use serde_json::json;

use crate::decision::Write;
use crate::pods::{is_terminating, selects};
use crate::snapshot::Snapshot;

/// An owner that looks for what is its own.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    /// Its kind.
    pub kind: &'a Kind,
    /// Its metadata.
    pub meta: &'a ObjectMeta,
    /// What it selects.
    pub selector: &'a LabelSelector,
}

/// What an object is to an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// Its own.
    Own,
    /// Nobody's, and it matches: to be adopted.
    Orphan,
    /// Its own, but no longer matching: to be released.
    Released,
    /// Somebody else's, or nobody's and not matching.
    Foreign,
}

/// The owner reference that controls an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The pods that may be an owner's: those that name it, by uid, and those of its namespace that it selects.
pub fn candidates<'s>(snapshot: &'s Snapshot, owner: &ObjectMeta, selector: &LabelSelector) -> Vec<&'s Pod> {
    snapshot.related::<Pod>(owner, selector)
}

impl<'a> Owner<'a> {
    /// The controlling owner reference that this owner puts on what it makes.
    pub fn reference(&self) -> OwnerReference {
        controller_reference(self.kind, self.meta)
    }

    /// What an object is to this owner. `belongs` is asked besides the selector (a StatefulSet's pods by name).
    /// An owner on its way out neither adopts nor releases; nothing on its way out is adopted.
    pub fn relation(&self, object: &ObjectMeta, belongs: bool) -> Relation {
        let matches = belongs && selects(self.selector, object.labels.as_ref());
        match controller_of(object) {
            Some(owner) if Some(&owner.uid) != self.meta.uid.as_ref() => Relation::Foreign,
            Some(_) if matches || is_terminating(self.meta) => Relation::Own,
            Some(_) => Relation::Released,
            None if matches && !is_terminating(self.meta) && !is_terminating(object) => Relation::Orphan,
            None => Relation::Foreign,
        }
    }

    /// Sorts objects of `kind` into this owner's own and the writes that adopt or release the others.
    pub fn sort<'o, T>(
        &self,
        kind: &Kind,
        objects: impl Iterator<Item = &'o T>,
        meta_of: fn(&T) -> &ObjectMeta,
        belongs: impl Fn(&T) -> bool,
        writes: &mut Vec<Write>,
    ) -> Vec<&'o T> {
        let mut own = Vec::new();
        for object in objects {
            let meta = meta_of(object);
            match self.relation(meta, belongs(object)) {
                Relation::Own => own.push(object),
                Relation::Foreign => {}
                Relation::Orphan => {
                    let mut owners = meta.owner_references.clone().unwrap_or_default();
                    owners.push(self.reference());
                    writes.push(set_owners(kind, meta, &owners));
                }
                Relation::Released => writes.push(without_owner(kind, meta, self.meta.uid.as_deref().unwrap_or(""))),
            }
        }
        own
    }
}

/// A controlling owner reference to the object of `kind` with this metadata.
pub fn controller_reference(kind: &Kind, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_string(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The patch that replaces an object's owners. A merge patch replaces the whole list, hence the resourceVersion.
pub fn set_owners(kind: &Kind, meta: &ObjectMeta, owners: &[OwnerReference]) -> Write {
    let owners = if owners.is_empty() { json!(null) } else { json!(owners) };
    Write::patch(kind, meta, json!({ "metadata": { "ownerReferences": owners } }))
}

/// The patch that takes the owner with this uid off an object.
pub fn without_owner(kind: &Kind, meta: &ObjectMeta, uid: &str) -> Write {
    let rest: Vec<_> = meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect();
    set_owners(kind, meta, &rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_api::kinds::STATEFUL_SET;

    /// S10: whose an object is, by uid, selector and who is on the way out.
    #[test]
    fn s10_what_an_object_is_to_an_owner() {
        let meta = |value: serde_json::Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let selector = serde_json::from_value(json!({ "matchLabels": { "app": "web" } })).unwrap();
        let leaving = "2026-01-01T00:00:00Z";
        let by = |uid: &str| {
            let version = "apps/v1";
            json!([{ "apiVersion": version, "kind": "StatefulSet", "name": "web", "uid": uid, "controller": true }])
        };
        let (web, other) = (json!({ "app": "web" }), json!({ "app": "other" }));
        for (owner_goes, object, belongs, expected) in [
            (false, json!({ "labels": web, "ownerReferences": by("u") }), true, Relation::Own),
            (false, json!({ "labels": other, "ownerReferences": by("u") }), true, Relation::Released),
            (true, json!({ "labels": other, "ownerReferences": by("u") }), true, Relation::Own),
            (false, json!({ "labels": web, "ownerReferences": by("u") }), false, Relation::Released),
            (false, json!({ "labels": web, "ownerReferences": by("x") }), true, Relation::Foreign),
            (false, json!({ "labels": web }), true, Relation::Orphan),
            (true, json!({ "labels": web }), true, Relation::Foreign),
            (false, json!({ "labels": web, "deletionTimestamp": leaving }), true, Relation::Foreign),
            (false, json!({ "labels": other }), true, Relation::Foreign),
            (false, json!({ "labels": web }), false, Relation::Foreign),
        ] {
            let own = meta(json!({ "name": "web", "uid": "u", "deletionTimestamp": owner_goes.then_some(leaving) }));
            let owner = Owner { kind: &STATEFUL_SET, meta: &own, selector: &selector };
            assert_eq!(owner.relation(&meta(object.clone()), belongs), expected, "{owner_goes} {object} {belongs}");
            let reference = owner.reference();
            assert_eq!((reference.controller, reference.block_owner_deletion), (Some(true), Some(true)));
        }
        // Others' references stay, whoever is taken off.
        let object = meta(json!({ "name": "o", "uid": "o", "ownerReferences": [
            { "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a" },
            { "apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "b" }] }));
        let Write::Patch { patch, .. } = without_owner(&STATEFUL_SET, &object, "a") else { panic!("a patch") };
        let left: Vec<&str> = patch["metadata"]["ownerReferences"]
            .as_array()
            .unwrap()
            .iter()
            .map(|owner| owner["uid"].as_str().unwrap())
            .collect();
        assert_eq!(left, ["b"]);
    }
}
