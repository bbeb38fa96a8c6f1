//! What expressions may call. Each room takes a function's name and its arguments, the receiver first, and answers none
//! where it has no such function for such values.

pub mod convert;
pub mod formats;
pub mod lists;
pub mod net;
pub mod operators;
pub mod quantities;
pub mod semver;
pub mod text;
pub mod time;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::value::Value;
use super::{Budget, Error};
use crate::custom::pattern;

/// What functions need beside their arguments.
pub struct Context<'p> {
    /// Constant patterns of the program.
    pub patterns: &'p BTreeMap<Box<str>, regex::Regex>,
    /// Patterns that the evaluation made.
    pub made: BTreeMap<Arc<str>, regex::Regex>,
    /// What may yet be spent.
    pub budget: &'p mut Budget,
}

/// What a room answers.
pub type Answer<'a> = Option<Result<Value<'a>, Error>>;

/// What compiling a small pattern costs that is no constant; one that takes more costs as many times that.
const PATTERN_COST: u64 = 1_000;

impl Context<'_> {
    /// A pattern, ready to be used on a text of this length.
    pub fn pattern(&mut self, text: &str, length: usize) -> Result<&regex::Regex, Error> {
        let cost = (length as u64 + 1).div_ceil(10).saturating_mul((text.len() as u64).div_ceil(4).max(1));
        self.budget.spend(cost)?;
        if let Some(known) = self.patterns.get(text) {
            return Ok(known);
        }
        if !self.made.contains_key(text) {
            self.budget.spend(PATTERN_COST)?;
            let made = pattern::measured(text, pattern::MAX_MADE);
            // All are kept until the evaluation ends, and to see that one is too large has cost as much.
            let size = match &made {
                Ok((_, size)) => *size,
                Err(regex::Error::CompiledTooBig(_)) => pattern::MAX_MADE,
                Err(_) => pattern::LEAST_PATTERN,
            };
            self.budget.spend(PATTERN_COST * (size / pattern::LEAST_PATTERN - 1) as u64)?;
            self.made.insert(text.into(), made.map_err(invalid)?.0);
        }
        self.made.get(text).ok_or(Error::Overload)
    }
}

/// Compiles a constant pattern.
pub fn regex_of(text: &str) -> Result<regex::Regex, Error> {
    pattern::compile(text).map_err(invalid)
}

fn invalid(error: regex::Error) -> Error {
    Error::failed(format!("error parsing regexp: {error}"))
}

/// Calls a function.
pub fn call<'a>(function: &str, args: &[Value<'a>], context: &mut Context<'_>) -> Result<Value<'a>, Error> {
    if let [Value::Opaque(opaque), rest @ ..] = args
        && let Some(answer) = opaque.call(function, rest)
    {
        return answer;
    }
    operators::call(function, args, context)
        .or_else(|| convert::call(function, args, context))
        .or_else(|| text::call(function, args, context))
        .or_else(|| lists::call(function, args, context))
        .or_else(|| quantities::call(function, args))
        .or_else(|| time::call(function, args))
        .or_else(|| net::call(function, args))
        .or_else(|| semver::call(function, args))
        .or_else(|| formats::call(function, args))
        .unwrap_or(Err(Error::Overload))
}
