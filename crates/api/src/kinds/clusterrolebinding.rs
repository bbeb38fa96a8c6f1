//! ClusterRoleBinding: who has a role in the whole cluster.

use super::Kind;
use super::rolebinding::{BINDING, validate_binding};

/// The row of ClusterRoleBinding.
pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    type_name: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    validate: |binding, causes| validate_binding(binding, false, causes),
    ..BINDING
};
