//! Says in a ValidatingAdmissionPolicy's status what of its expressions does not fit the types that it is about. Key:
//! the policy.
//!
//! Differs: as `api::kinds::policy_types` says; kinds that come later are looked at when the policy changes again, as
//! upstream.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use mainstay_api::kinds::{VALIDATING_ADMISSION_POLICY, policy_types};
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Write};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "validatingadmissionpolicy-status-controller",
    permits: &[(Verb::PatchStatus, "validatingadmissionpolicies")],
    reads: &["validatingadmissionpolicies"],
    keys,
    reconcile: |snapshot, key, _| observe(snapshot, key).map(decide).unwrap_or_default(),
    many: None,
};

fn keys(_before: &Snapshot, _after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == kinds::VALIDATING_ADMISSION_POLICY {
        wake(change.key.clone());
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a ValidatingAdmissionPolicy> {
    let policy = snapshot.validating_admission_policies.get(key)?;
    let seen = policy.status.as_ref().and_then(|status| status.observed_generation);
    (seen != policy.metadata.generation).then_some(&**policy)
}

fn decide(policy: &ValidatingAdmissionPolicy) -> Decision {
    let warnings = policy_types::expression_warnings(&json!(policy));
    let found = if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
    let old = json!(policy.status.clone().unwrap_or_default());
    let mut new = old.clone();
    new["observedGeneration"] = json!(policy.metadata.generation);
    new["typeChecking"] = found;
    let write = Write::change_status(&VALIDATING_ADMISSION_POLICY, &policy.metadata, &old, &new);
    Decision { writes: write.into_iter().collect(), ..Decision::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_is_checked_once() {
        let mut policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
            "metadata": { "name": "p", "uid": "u", "generation": 2, "resourceVersion": "7" },
            "spec": { "matchConstraints": { "resourceRules": [{ "apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["*"], "resources": ["deployments"] }] },
                "validations": [{ "expression": "object.spec.replicas > '1'" }] }
        }))
        .expect("a policy");
        let patch = |policy: &ValidatingAdmissionPolicy| match decide(policy).writes.first() {
            Some(Write::Patch { patch, status: true, .. }) => patch["status"].clone(),
            other => panic!("{other:?}"),
        };
        let status = patch(&policy);
        assert_eq!(status["observedGeneration"], 2);
        let warnings = &status["typeChecking"]["expressionWarnings"];
        assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
        policy.status = serde_json::from_value(status).expect("a status");
        let key = ObjectKey::new("", "p");
        let mut snapshot = Snapshot::default();
        snapshot.validating_admission_policies.insert_mut(key.clone(), std::sync::Arc::new(policy.clone()));
        assert!(observe(&snapshot, &key).is_none(), "it is seen");
        // Mended: the warning goes.
        policy.metadata.generation = Some(3);
        policy.spec.as_mut().expect("a spec").validations.as_mut().expect("rules")[0].expression = "true".to_owned();
        assert_eq!(patch(&policy), json!({ "observedGeneration": 3, "typeChecking": { "expressionWarnings": null } }));
    }
}
