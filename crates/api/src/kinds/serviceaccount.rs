//! ServiceAccount: who a pod is to the API.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{AGE, NAME, age, text_column};
use super::field::Field;
use super::{BASE, Kind, Row, Subresource};
use crate::object::name;

/// The row of ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ServiceAccount"),
    plural: Borrowed("serviceaccounts"),
    singular: Borrowed("serviceaccount"),
    short_names: Borrowed(&[Borrowed("sa")]),
    subresources: Borrowed(&[Subresource::Token]),
    type_name: Borrowed("io.k8s.api.core.v1.ServiceAccount"),
    columns: Borrowed(&[NAME, text_column("Secrets", "How many secrets it names."), AGE]),
    row: |_, account, now| {
        vec![json!(name(account)), json!(Field::root(account).get("secrets").len()), age(account, now)]
    },
    ..BASE
});
