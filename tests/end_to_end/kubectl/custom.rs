//! Kinds of a user's own: defined, used with every verb, and gone with their definition.

use super::{User, piped, with_both};
use crate::harness::Cluster;

/// A definition in the user's own group, so that both users can have theirs.
fn definition(group: &str) -> String {
    format!(
        r#"apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: foos.{group}}}
spec: {{group: {group}, scope: Namespaced, names: {{plural: foos, kind: Foo, shortNames: [fo], categories: [all]}},
versions: [{{name: v1, served: true, storage: true, subresources: {{status: {{}},
scale: {{specReplicasPath: .spec.size, statusReplicasPath: .status.size}}}},
additionalPrinterColumns: [{{name: Size, type: integer, jsonPath: .spec.size}}],
schema: {{openAPIV3Schema: {{type: object, properties: {{
spec: {{type: object, description: What is wanted., required: [size], properties: {{
size: {{type: integer, minimum: 1, description: How large it is.}}, mode: {{type: string, default: fast}}}}}},
status: {{type: object, properties: {{size: {{type: integer}}}}}}}}}}}}}}]}}"#
    )
}

#[test]
fn a_defined_kind_is_used_as_any_other() {
    let cluster = Cluster::new();
    with_both(&cluster, |user| {
        let group = format!("{}.example.com", user.namespace);
        let define = definition(&group);
        user.says(&piped(&define, "kubectl create -f -"), &["created"]);
        let established = format!("kubectl wait --for=condition=established --timeout=30s crd/foos.{group}");
        user.says(&established, &["condition met"]);
        uses(user, &group);
        user.says(&format!("kubectl delete crd foos.{group}"), &["deleted"]);
        user.is_refused(&format!("kubectl get foos.{group}"), &["the server doesn't have a resource type"]);
    });
}

fn uses(user: &User<'_>, group: &str) {
    let manifest = |spec: &str| format!("apiVersion: {group}/v1\nkind: Foo\nmetadata: {{name: a}}\nspec: {spec}");
    user.says(&piped(&manifest("{size: 2}"), "kubectl create -f -"), &["created"]);
    user.says(&format!("kubectl get foos.{group}"), &["NAME", "SIZE", "a", "2"]);
    user.says(
        &format!("kubectl get foos.{group} a -o jsonpath='{{.spec.mode}} {{.metadata.generation}}'"),
        &["fast 1"],
    );
    user.says(&format!("kubectl explain foos.spec.size --api-version={group}/v1"), &["How large it is."]);
    user.says(&format!("kubectl patch foos.{group} a --type=merge -p '{{\"spec\":{{\"size\":3}}}}'"), &["patched"]);
    user.is_refused(
        &format!("kubectl patch foos.{group} a --type=strategic -p '{{\"spec\":{{\"size\":3}}}}'"),
        &["application/merge-patch+json"],
    );
    user.is_refused(
        &piped(&manifest("{size: 0}"), "kubectl apply --validate=false -f -"),
        &["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
    );
    user.says(
        &piped(&manifest("{size: 4}"), "kubectl apply --server-side --force-conflicts -f -"),
        &["serverside-applied"],
    );
    user.says(&format!("kubectl get foos.{group} a -o jsonpath='{{.spec.size}}'"), &["4"]);
    user.says(&format!("kubectl scale foos.{group} a --replicas=5"), &["scaled"]);
    user.says(&format!("kubectl get foos.{group} a -o jsonpath='{{.spec.size}}'"), &["5"]);
}
