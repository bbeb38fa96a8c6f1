//! Custom resources: the structural schema of a CustomResourceDefinition's version, and objects against it.
//!
//! Follows upstream's apiextensions server: unknown fields are pruned unless `x-kubernetes-preserve-unknown-fields`
//! keeps them, defaults are filled in afterwards, and faults are told in go-openapi's words.

pub mod defaults;
pub mod format;
pub mod jsonpath;
pub mod pattern;
pub mod patterns;
pub mod published;
pub mod rows;
pub mod rule_check;
mod rule_cost;
pub mod rules;
pub mod schema;
mod stored;
pub mod structural;
pub mod values;

#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod rule_cost_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod rule_words_tests;
#[cfg(test)]
mod structural_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod value_tests;
