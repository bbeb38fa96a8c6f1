//! The Common Expression Language with Kubernetes' libraries: rules of CustomResourceDefinitions, admission policies
//! and match conditions.
//!
//! An [`Environment`] declares variables with their types, [`Environment::compile`] makes a [`Program`] or says in
//! upstream's words what is wrong, and [`Program::evaluate`] evaluates it for one set of values:
//!
//! ```
//! use mainstay_api::cel::{Budget, Environment, Type, Value};
//! use serde_json::json;
//!
//! let environment = Environment::new([("object", Type::Dyn), ("limit", Type::Int)]);
//! let program = environment.compile("object.spec.replicas <= limit").expect("it is sound");
//! let object = json!({ "spec": { "replicas": 3 } });
//! let values = [("object", Value::json(&object)), ("limit", Value::Int(5))];
//! let value = program.evaluate(&values, &mut Budget::of(mainstay_api::cel::PER_CALL_LIMIT)).expect("it evaluates");
//! assert_eq!(value.as_bool(), Some(true));
//! ```
//!
//! A variable's name may have dots (`variables.replicas`). Who computes values only when they are asked for implements
//! [`Bindings`]; who has functions of its own (an authorizer) implements [`Opaque`] and declares the variable as `Dyn`.
//!
//! Nothing here panics or takes time without end: texts have [a length](parse::MAX_LENGTH), parts of an expression
//! stand [only so deep](parse::MAX_DEPTH) within each other, and an evaluation ends when its [`Budget`] is spent. Costs
//! are counted about as cel-go does: one for each variable, field and call, a tenth for each character or item looked
//! at.
//!
//! Beyond upstream: types are compared loosely where one side is nullable. Not here: protobuf messages, `cel.block`.

pub(crate) mod ast;
mod check;
pub mod declared;
mod eval;
mod lex;
mod library;
pub mod parse;
pub mod types;
pub mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use types::Type;
pub use value::{Opaque, Value};

pub(crate) use library::time::duration;

use ast::Node;

/// What one evaluation may cost: upstream's limit for each rule and each expression of a policy.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all evaluations for one object, or of one policy, may cost together: upstream's runtime budget.
pub const RUNTIME_BUDGET: u64 = 10_000_000;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// In characters from the start.
    pub at: usize,
    /// In cel-go's words.
    pub message: String,
}

impl CompileError {
    fn new(at: usize, message: String) -> Self {
        Self { at, message }
    }

    /// As cel-go shows a fault of `text`: the message with line and column, the line, and a mark below the column.
    pub fn shown(&self, text: &str) -> String {
        let before: String = text.chars().take(self.at).collect();
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count());
        let shown = text.split('\n').nth(line).unwrap_or("");
        let dots = ".".repeat(column);
        format!("ERROR: <input>:{}:{}: {}\n | {shown}\n | {dots}^", line + 1, column + 1, self.message)
    }
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The budget is spent.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
    /// A function or operator does not take these values.
    #[error("no such overload")]
    Overload,
    /// In cel-go's words: `no such key: a`, `division by zero`.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// A fault in words.
    pub fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }
}

/// What may yet be spent on evaluations.
#[derive(Debug)]
pub struct Budget {
    left: u64,
    spent: u64,
}

impl Budget {
    /// This much.
    pub fn of(cost: u64) -> Self {
        Self { left: cost, spent: 0 }
    }

    /// Takes away what something costs.
    ///
    /// # Errors
    /// [`Error::Budget`] where there is not so much left.
    pub fn spend(&mut self, cost: u64) -> Result<(), Error> {
        self.spent = self.spent.saturating_add(cost);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Error::Budget)
            }
        }
    }

    /// What looking at so many characters or items costs.
    pub(crate) fn traverse(&mut self, size: u64) -> Result<(), Error> {
        self.spend(size.div_ceil(10))
    }

    /// What has been spent.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// Where the values of variables come from.
pub trait Bindings<'a> {
    /// A declared variable's value. None is an error of the evaluation, as is one that could not be computed.
    fn look_up(&self, name: &str) -> Option<Result<Value<'a>, Error>>;
}

impl<'a, const N: usize> Bindings<'a> for [(&str, Value<'a>); N] {
    fn look_up(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        self.as_slice().look_up(name)
    }
}

impl<'a> Bindings<'a> for [(&str, Value<'a>)] {
    fn look_up(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| Ok(value.clone()))
    }
}

impl<'a> Bindings<'a> for Vec<(&str, Value<'a>)> {
    fn look_up(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        <[_]>::iter(self).find(|(known, _)| *known == name).map(|(_, value)| Ok(value.clone()))
    }
}

/// The variables that expressions may name.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
}

impl Environment {
    /// These variables; a later one hides an earlier one of its name.
    pub fn new<N: Into<String>>(variables: impl IntoIterator<Item = (N, Type)>) -> Self {
        let mut variables: Vec<_> = variables.into_iter().map(|(name, type_)| (name.into(), type_)).collect();
        variables.reverse();
        Self { variables }
    }

    /// One more variable.
    #[must_use]
    pub fn with(mut self, name: &str, type_: Type) -> Self {
        self.variables.insert(0, (name.to_owned(), type_));
        self
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// Every fault; never empty. [`faults_shown`] joins them as upstream does.
    pub fn compile(&self, text: &str) -> Result<Program, Vec<CompileError>> {
        let mut node = parse::parse(text).map_err(|error| vec![error])?;
        let result = check::Scope::new(&self.variables).check(&mut node)?;
        let mut patterns = BTreeMap::new();
        collect_patterns(&node, &mut patterns).map_err(|error| vec![error])?;
        Ok(Program { node, result, patterns })
    }
}

/// Several faults of one expression, as upstream shows them after `compilation failed: `.
pub fn faults_shown(faults: &[CompileError], text: &str) -> String {
    faults.iter().map(|fault| fault.shown(text)).collect::<Vec<_>>().join("\n")
}

/// An expression that can be evaluated, by any number of threads at once.
#[derive(Debug)]
pub struct Program {
    node: Node,
    result: Type,
    /// Constant patterns, compiled.
    patterns: BTreeMap<Box<str>, regex::Regex>,
}

impl Program {
    /// What it evaluates to, as far as that is known.
    pub fn result(&self) -> &Type {
        &self.result
    }

    /// The expression itself.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Whether it names this variable.
    pub fn uses(&self, variable: &str) -> bool {
        let mut open = vec![&self.node];
        while let Some(node) = open.pop() {
            if matches!(&node.expr, ast::Expr::Name(name) if &**name == variable) {
                return true;
            }
            open.extend(node.expr.parts());
        }
        false
    }

    /// Whether it takes this field of this variable, or asks whether that has it: `variable.field`, `variable.?field`.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        let mut open = vec![&self.node];
        while let Some(node) = open.pop() {
            if let ast::Expr::Select { of, field: taken, .. } | ast::Expr::Has { of, field: taken } = &node.expr
                && **taken == *field
                && matches!(&of.expr, ast::Expr::Name(name) if **name == *variable)
            {
                return true;
            }
            open.extend(node.expr.parts());
        }
        false
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// Why there is no value; what was spent until then is spent.
    pub fn evaluate<'a, B: Bindings<'a> + ?Sized>(&self, values: &B, budget: &mut Budget) -> Result<Value<'a>, Error> {
        eval::Run::new(&self.patterns, &|name: &str| values.look_up(name), budget).eval(&self.node)
    }
}

/// Compiles the constant patterns of an expression.
fn collect_patterns(node: &Node, patterns: &mut BTreeMap<Box<str>, regex::Regex>) -> Result<(), CompileError> {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        if let ast::Expr::Call { function, args, .. } = &node.expr
            && matches!(&**function, "matches" | "find" | "findAll")
            && let Some(text) = args.get(1).and_then(Node::literal_text)
            && !patterns.contains_key(text)
        {
            let pattern = library::regex_of(text).map_err(|error| CompileError::new(node.at, error.to_string()))?;
            patterns.insert(text.into(), pattern);
        }
        open.extend(node.expr.parts());
    }
    Ok(())
}
