//! The claims for devices that a pod names, and those that its containers use of them.

use std::collections::BTreeSet;

use super::field::Field;
use crate::names;
use crate::status::Cause;

/// `spec.resourceClaims`, and `resources.claims` of each container.
pub(super) fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let mut known = BTreeSet::new();
    for claim in spec.get("resourceClaims").items() {
        let name = claim.get("name");
        if name.need_text(causes) {
            name.check(causes, names::label);
            if !known.insert(name.text()) {
                causes.push(Cause::duplicate(&name.path, name.text()));
            }
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"].map(|source| claim.get(source));
        match sources.iter().filter(|source| source.is_set()).count() {
            0 => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                causes.push(claim.invalid(why));
            }
            1 => {}
            _ => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                causes.push(claim.invalid(why));
            }
        }
        for source in sources.iter().filter(|source| source.is_set()) {
            causes.extend(names::subdomain(source.text()).iter().map(|wrong| source.invalid(wrong)));
        }
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"].map(|list| spec.get(list));
    for container in containers.iter().flat_map(Field::items) {
        of_container(&container.dig(&["resources", "claims"]), &known, causes);
    }
}

fn of_container(claims: &Field, known: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for claim in claims.items() {
        let (name, request) = (claim.get("name").text(), claim.get("request").text());
        if name.is_empty() {
            causes.push(Cause::required(claim.get("name").path, ""));
        } else if !known.contains(name) {
            causes.push(Cause::not_found(claim.get("name").path, name));
        } else if !seen.insert((name, request)) {
            causes.push(Cause::duplicate(&claim.path, if request.is_empty() { name } else { request }));
        }
    }
}
