//! CEL in admission: what expressions may name, and match conditions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mainstay_api::cel::{self, Bindings, Budget, Environment, Error, Opaque, Program, Type, Value};
use mainstay_api::kinds::admission_rules;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::auth::User;
use crate::authorize::Attributes as Asked;
use crate::authorize::escalation::Requester;

use super::matching::{Attributes, Operation};

/// What stands before the name of a policy's variable.
const VARIABLE: &str = "variables.";

/// What every expression of admission may name; policies have parameters and the namespace too.
pub fn environment(of_policy: bool) -> Environment {
    admission_rules::environment(if of_policy { admission_rules::POLICY_NAMES } else { admission_rules::WEBHOOK_NAMES })
}

/// An expression. One that does not compile fails whenever it is evaluated, as upstream.
#[derive(Debug)]
pub struct Expression {
    pub text: String,
    program: Result<Program, String>,
}

impl Expression {
    /// Compiles it.
    pub fn new(environment: &Environment, text: &str) -> Self {
        let program = environment.compile(text);
        let program = program.map_err(|faults| format!("compilation failed: {}", cel::faults_shown(&faults, text)));
        Self { text: text.to_owned(), program }
    }

    /// Its value; an error in upstream's words.
    pub fn evaluate<'a>(&self, inputs: &Inputs<'a>, budget: &mut Budget) -> Result<Value<'a>, String> {
        let program = self.program.as_ref().map_err(|why| format!("compilation error: {why}"))?;
        // One expression may cost so much, whatever is left for all.
        let mut own = Budget::of(budget.left().min(cel::PER_CALL_LIMIT));
        let value = program.evaluate(inputs, &mut own);
        let spent = own.spent().saturating_add(inputs.settle());
        if budget.spend(spent).is_err() || matches!(value, Err(Error::Budget)) {
            return Err("validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned());
        }
        value.map_err(|error| format!("expression '{}' resulted in error: {error}", self.text))
    }

    /// What evaluates lazily, as a variable.
    fn program(&self) -> Option<&Program> {
        self.program.as_ref().ok()
    }
}

/// A named expression that others may use.
#[derive(Debug)]
pub struct Variable {
    name: String,
    expression: Expression,
}

/// A policy's variables, each of which may use those before it; and the environment with all of them.
pub fn variables(written: &Json, mut environment: Environment) -> (Vec<Variable>, Environment) {
    let mut all = Vec::new();
    for item in written.as_array().into_iter().flatten() {
        let text = |field| mainstay_api::object::text(item, &[field]);
        let name = format!("{VARIABLE}{}", text("name"));
        let expression = Expression::new(&environment, text("expression"));
        let type_ = expression.program().map_or(Type::Dyn, |program| program.result().clone());
        environment = environment.with(&name, type_);
        all.push(Variable { name, expression });
    }
    (all, environment)
}

/// What one evaluation is about.
pub struct Inputs<'a> {
    pub object: &'a Json,
    pub old: &'a Json,
    pub request: &'a Json,
    pub params: &'a Json,
    pub namespace: &'a Json,
    pub authority: Arc<Authority>,
    pub variables: &'a [Variable],
    known: RefCell<BTreeMap<&'a str, Result<Value<'a>, Error>>>,
    /// What variables have cost since it was last asked.
    spent: RefCell<u64>,
}

impl<'a> Inputs<'a> {
    /// About these objects, without parameters, namespace and variables.
    pub fn new(object: &'a Json, old: &'a Json, request: &'a Json, authority: Arc<Authority>) -> Self {
        Self {
            object,
            old,
            request,
            params: &Json::Null,
            namespace: &Json::Null,
            authority,
            variables: &[],
            known: RefCell::default(),
            spent: RefCell::default(),
        }
    }

    fn settle(&self) -> u64 {
        self.spent.replace(0)
    }

    fn variable(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let variable = self.variables.iter().find(|variable| variable.name == name)?;
        let value = match variable.expression.program() {
            None => Err(Error::failed(format!("composited variable {name:?} fails to compile"))),
            Some(program) => {
                let mut budget = Budget::of(cel::PER_CALL_LIMIT);
                let value = program.evaluate(self, &mut budget);
                *self.spent.borrow_mut() += budget.spent();
                value.map_err(|error| {
                    let short = name.strip_prefix(VARIABLE).unwrap_or(name);
                    Error::failed(format!("composited variable {short:?} fails to evaluate: {error}"))
                })
            }
        };
        self.known.borrow_mut().insert(&variable.name, value.clone());
        Some(value)
    }
}

impl<'a> Bindings<'a> for Inputs<'a> {
    fn look_up(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        Some(Ok(match name {
            "object" => Value::json(self.object),
            "oldObject" => Value::json(self.old),
            "request" => Value::json(self.request),
            "params" => Value::json(self.params),
            "namespaceObject" => Value::json(self.namespace),
            "authorizer" => Value::Opaque(self.authority.clone()),
            "authorizer.requestResource" => Value::Opaque(Arc::new(self.authority.of_request())),
            name => return self.variable(name),
        }))
    }
}

/// Conditions under which anybody is asked at all.
#[derive(Debug)]
pub struct Conditions(Vec<(String, Expression)>);

#[derive(Deserialize)]
struct Written {
    name: String,
    expression: String,
}

impl Conditions {
    /// Of `matchConditions`.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn read(written: Option<&Json>, environment: &Environment) -> Result<Self, String> {
        let Some(written) = written.filter(|written| !written.is_null()) else { return Ok(Self(Vec::new())) };
        let written: Vec<Written> = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
        let compiled = written.into_iter().map(|item| (item.name, Expression::new(environment, &item.expression)));
        Ok(Self(compiled.collect()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that is false decides, whatever is wrong with others; what is wrong counts as a failure,
    /// unless failures are ignored: then they do not hold.
    pub fn hold(&self, inputs: &Inputs<'_>, budget: &mut Budget, ignores: bool) -> Result<bool, String> {
        let mut errors = Vec::new();
        for (_, condition) in &self.0 {
            match condition.evaluate(inputs, budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(value) => errors.push(format!("cel expression evaluates to {}, not bool", value.type_name())),
                Err(error) => errors.push(error),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            _ if ignores => Ok(false),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

/// What `authorizer` is in an expression: what the requester may do.
#[derive(Clone)]
pub struct Authority {
    /// `None` for our own controllers, who may do what they do.
    requester: Option<Requester>,
    /// Another user, who was asked for by `serviceAccount`.
    other: Option<User>,
    request: Asked,
    stage: Stage,
}

/// How far a check has been put together.
#[derive(Clone, Debug)]
enum Stage {
    Start,
    Path(String),
    Group(String),
    Resource(Asked),
    Decided(Result<String, String>),
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "authorizer {:?}", self.stage)
    }
}

impl Authority {
    /// The requester's, for a request.
    pub fn new(requester: Option<Requester>, attributes: &Attributes) -> Self {
        let verb = match attributes.operation {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Connect => "connect",
        };
        let request = Asked {
            verb: verb.to_owned(),
            group: attributes.kind.group.to_string(),
            resource: attributes.kind.plural.to_string(),
            subresource: attributes.subresource.clone(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            ..Asked::default()
        };
        Self { requester, other: None, request, stage: Stage::Start }
    }

    fn of_request(&self) -> Self {
        self.at(Stage::Resource(self.request.clone()))
    }

    fn at(&self, stage: Stage) -> Self {
        Self { stage, ..self.clone() }
    }

    fn decide(&self, what: &Asked) -> Stage {
        let Some(requester) = &self.requester else { return Stage::Decided(Ok(String::new())) };
        let user = self.other.as_ref().unwrap_or(&requester.user);
        Stage::Decided(requester.authorizer.explain(user, what))
    }

    fn step(&self, function: &str, args: &[&str]) -> Option<Self> {
        let next = match (&self.stage, function, args) {
            (Stage::Start, "path", [path]) => Stage::Path((*path).to_owned()),
            (Stage::Start, "group", [group]) => Stage::Group((*group).to_owned()),
            (Stage::Start, "serviceAccount", [namespace, name]) => {
                let other = Some(User::service_account(namespace, name));
                return Some(Self { other, ..self.clone() });
            }
            (Stage::Path(path), "check", [verb]) => {
                self.decide(&Asked { verb: (*verb).to_owned(), path: path.clone(), ..Asked::default() })
            }
            (Stage::Group(group), "resource", [resource]) => {
                Stage::Resource(Asked { group: group.clone(), resource: (*resource).to_owned(), ..Asked::default() })
            }
            (Stage::Resource(what), "check", [verb]) => {
                self.decide(&Asked { verb: (*verb).to_owned(), ..what.clone() })
            }
            (Stage::Resource(what), _, [text]) => {
                let (mut what, text) = (what.clone(), (*text).to_owned());
                match function {
                    "subresource" => what.subresource = text,
                    "namespace" => what.namespace = text,
                    "name" => what.name = text,
                    // Selectors only narrow what is asked; nobody here decides by them.
                    "fieldSelector" | "labelSelector" => {}
                    _ => return None,
                }
                Stage::Resource(what)
            }
            _ => return None,
        };
        Some(self.at(next))
    }
}

impl Opaque for Authority {
    fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Start => "kubernetes.authorization.Authorizer",
            Stage::Path(_) => "kubernetes.authorization.PathCheck",
            Stage::Group(_) => "kubernetes.authorization.GroupCheck",
            Stage::Resource(_) => "kubernetes.authorization.ResourceCheck",
            Stage::Decided(_) => "kubernetes.authorization.Decision",
        }
    }

    fn call(&self, function: &str, args: &[Value<'_>]) -> Option<Result<Value<'static>, Error>> {
        if let (Stage::Decided(decision), []) = (&self.stage, args) {
            let (Ok(reason) | Err(reason)) = decision;
            return match function {
                "allowed" => Some(Ok(Value::Bool(decision.is_ok()))),
                "reason" => Some(Ok(Value::text(reason.as_str()))),
                "errored" => Some(Ok(Value::Bool(false))),
                "error" => Some(Ok(Value::text(""))),
                _ => None,
            };
        }
        let texts: Option<Vec<&str>> = args.iter().map(Value::as_str).collect();
        self.step(function, &texts?).map(|next| Ok(Value::Opaque(Arc::new(next))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_api::kinds;
    use serde_json::json;

    fn authority() -> Arc<Authority> {
        Arc::new(Authority::new(None, &Attributes::new(&kinds::POD, "", Operation::Create, "ns", "a")))
    }

    #[test]
    fn conditions_hold_as_upstream() {
        let (object, null) = (json!({ "metadata": { "name": "a" }, "n": 3 }), Json::Null);
        let inputs = Inputs::new(&object, &null, &null, authority());
        let hold = |expressions: &[&str], ignores| {
            let written: Json = expressions.iter().map(|text| json!({ "name": "c", "expression": text })).collect();
            let conditions = Conditions::read(Some(&written), &environment(false)).expect("conditions");
            conditions.hold(&inputs, &mut Budget::of(cel::RUNTIME_BUDGET), ignores)
        };
        assert_eq!(hold(&[], false), Ok(true));
        assert_eq!(hold(&["object.n == 3", "object.metadata.name == 'a'"], false), Ok(true));
        assert_eq!(hold(&["object.missing == 3", "object.n == 4"], false), Ok(false), "false decides");
        assert_eq!(hold(&["object.missing == 3"], true), Ok(false));
        let error = hold(&["object.missing == 3"], false).expect_err("an error");
        assert_eq!(error, "expression 'object.missing == 3' resulted in error: no such key: missing");
        assert_eq!(
            hold(&["authorizer.group('').resource('pods').namespace('x').check('get').allowed()"], false),
            Ok(true)
        );
        assert!(hold(&["params == null"], false).is_err(), "webhooks have no parameters");
    }

    #[test]
    fn variables_are_evaluated_when_they_are_asked_for_and_use_those_before() {
        let (object, null) = (json!({ "n": 3 }), Json::Null);
        let written = json!([
            { "name": "n", "expression": "object.n" },
            { "name": "twice", "expression": "variables.n * 2" },
            { "name": "broken", "expression": "object.missing" },
        ]);
        let (variables, environment) = variables(&written, environment(true));
        let mut inputs = Inputs::new(&object, &null, &null, authority());
        inputs.variables = &variables;
        let mut budget = Budget::of(cel::RUNTIME_BUDGET);
        let mut evaluate = |text: &str| {
            Expression::new(&environment, text).evaluate(&inputs, &mut budget).map(|value| value.as_bool())
        };
        assert_eq!(evaluate("variables.twice == 6"), Ok(Some(true)));
        let error = evaluate("variables.broken == 1").expect_err("an error");
        assert!(error.contains("composited variable \"broken\" fails to evaluate: no such key: missing"), "{error}");
        assert!(evaluate("variables.later == 1").expect_err("unknown").contains("compilation"));
    }

    #[test]
    fn x4_an_expression_ends_when_its_budget_is_spent() {
        let items: Vec<u32> = (0..3000).collect();
        let (object, null) = (json!({ "items": items }), Json::Null);
        let inputs = Inputs::new(&object, &null, &null, authority());
        let text = "object.items.all(a, object.items.all(b, object.items.all(c, a + b + c >= 0)))";
        let mut budget = Budget::of(cel::RUNTIME_BUDGET);
        let error = Expression::new(&environment(false), text).evaluate(&inputs, &mut budget).expect_err("too much");
        assert!(error.contains("cost budget"), "{error}");
        assert!(budget.left() > 0, "others have their own");
    }
}
