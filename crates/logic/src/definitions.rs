//! CustomResourceDefinitions as decisions see them: names and conditions, without the schemas, which may be large.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinitionCondition as Condition, CustomResourceDefinitionNames as Names,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// A definition.
#[derive(Clone, Debug, Deserialize)]
pub struct Definition {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it defines.
    pub spec: Spec,
    /// What became of it.
    #[serde(default)]
    pub status: Status,
}

/// Of `spec`, what decisions look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Spec {
    /// The API group.
    pub group: String,
    /// What it wants to be called.
    pub names: Names,
}

/// Of `status`, what decisions look at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What it is called.
    pub accepted_names: Option<Names>,
    /// Established, NamesAccepted, Terminating.
    pub conditions: Option<Vec<Condition>>,
}
