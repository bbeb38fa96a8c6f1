//! ClusterRoleBinding: who has a role in the whole cluster.

use super::cells::{AGE, NAME, text_column, wide};
use super::{BASE, Kind, NameRule, rolebinding};

/// The row of ClusterRoleBinding.
pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    type_name: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    name_rule: NameRule::PathSegment,
    columns: &[
        NAME,
        text_column("Role", "The role that is given."),
        AGE,
        wide("Users", "Users who have it."),
        wide("Groups", "Groups that have it."),
        wide("ServiceAccounts", "Service accounts that have it."),
    ],
    row: rolebinding::row,
    defaults: rolebinding::defaults,
    validate: rolebinding::validate,
    validate_update: rolebinding::validate_update,
    ..BASE
};
