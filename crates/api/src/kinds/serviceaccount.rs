//! ServiceAccount: who a pod is to the API.

use serde_json::json;

use super::cells::{AGE, NAME, age, text_column};
use super::field::Field;
use super::{BASE, Kind, Subresource};
use crate::object::name;

/// The row of ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    type_name: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[NAME, text_column("Secrets", "How many secrets it names."), AGE],
    row: |account, now| vec![json!(name(account)), json!(Field::root(account).get("secrets").len()), age(account, now)],
    ..BASE
};
