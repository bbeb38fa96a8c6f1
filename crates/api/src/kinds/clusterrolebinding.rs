//! ClusterRoleBinding: who has a role in the whole cluster.

use std::borrow::Cow::Borrowed;

use super::rolebinding::{BINDING, validate_binding};
use super::{Kind, Row};

/// The row of ClusterRoleBinding.
pub static CLUSTER_ROLE_BINDING: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ClusterRoleBinding"),
    plural: Borrowed("clusterrolebindings"),
    singular: Borrowed("clusterrolebinding"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.rbac.v1.ClusterRoleBinding"),
    validate: |_, binding, causes| validate_binding(binding, false, causes),
    ..BINDING
});
