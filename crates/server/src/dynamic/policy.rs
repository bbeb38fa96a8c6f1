//! ValidatingAdmissionPolicies and MutatingAdmissionPolicies with their bindings: compiled when they change.

use std::sync::Arc;

use mainstay_api::cel::{Budget, Value};
use mainstay_api::patch::{PatchType, apply_patch};
use mainstay_api::selector::Labels;
use mainstay_api::{Kind, Status, apply, cel, object};
use serde_json::{Value as Json, json};

use super::expression::{Authority, Conditions, Expression, Inputs, Variable, environment, variables};
use super::matching::{Attributes, Constraints, converted, namespace_of};
use super::review::Question;
use super::session::{Session, checked, options};
use crate::api::Batch;

/// A message longer than this is not used (bytes; upstream's limit).
const MAX_MESSAGE: usize = 5 << 10;

/// What a policy does to an object.
enum Work {
    Validate { rules: Vec<Rule>, annotations: Vec<(String, Expression)> },
    Mutate(Vec<(PatchForm, Expression)>),
}

/// What an expression's value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PatchForm {
    Apply,
    Json,
}

struct Rule {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

/// A policy.
pub struct Policy {
    pub name: String,
    constraints: Constraints,
    fails_open: bool,
    is_reinvoked: bool,
    /// `apiVersion` and `kind` of its parameters.
    param_kind: Option<(String, String)>,
    conditions: Conditions,
    variables: Vec<Variable>,
    work: Work,
}

/// Where a policy holds.
pub struct Binding {
    pub name: String,
    pub policy: String,
    constraints: Option<Constraints>,
    param_ref: Json,
    actions: Vec<String>,
}

fn text(value: &Json, path: &[&str]) -> String {
    object::text(value, path).to_owned()
}

impl Policy {
    /// Of either kind.
    ///
    /// # Errors
    /// What does not fit, in words. An expression that does not compile fails when it is evaluated.
    pub fn read(policy: &Json) -> Result<Self, String> {
        let spec = policy.get("spec").unwrap_or(&Json::Null);
        let (variables, environment) = variables(spec.get("variables").unwrap_or(&Json::Null), environment(true));
        let items = |field: &str| spec.get(field).and_then(Json::as_array).into_iter().flatten();
        let expression = |item: &Json, path: &[&str]| Expression::new(&environment, object::text(item, path));
        let work = if object::text(policy, &["kind"]) == "MutatingAdmissionPolicy" {
            let mutations = items("mutations").map(|item| match object::text(item, &["patchType"]) {
                "JSONPatch" => (PatchForm::Json, expression(item, &["jsonPatch", "expression"])),
                _ => (PatchForm::Apply, expression(item, &["applyConfiguration", "expression"])),
            });
            Work::Mutate(mutations.collect())
        } else {
            let rules = items("validations").map(|item| Rule {
                expression: expression(item, &["expression"]),
                message: text(item, &["message"]).trim().to_owned(),
                message_expression: (!object::text(item, &["messageExpression"]).trim().is_empty())
                    .then(|| expression(item, &["messageExpression"])),
                reason: text(item, &["reason"]),
            });
            let annotations =
                items("auditAnnotations").map(|item| (text(item, &["key"]), expression(item, &["valueExpression"])));
            Work::Validate { rules: rules.collect(), annotations: annotations.collect() }
        };
        let param_kind = spec.get("paramKind").filter(|kind| kind.is_object());
        Ok(Self {
            name: object::name(policy).to_owned(),
            constraints: Constraints::read(spec.get("matchConstraints").unwrap_or(&json!({})))?,
            fails_open: object::text(spec, &["failurePolicy"]) == "Ignore",
            is_reinvoked: object::text(spec, &["reinvocationPolicy"]) == "IfNeeded",
            param_kind: param_kind.map(|kind| (text(kind, &["apiVersion"]), text(kind, &["kind"]))),
            conditions: Conditions::read(spec.get("matchConditions"), &environment)?,
            variables,
            work,
        })
    }
}

impl Binding {
    /// Of either kind.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn read(binding: &Json) -> Result<Self, String> {
        let spec = binding.get("spec").unwrap_or(&Json::Null);
        let actions = spec.get("validationActions").and_then(Json::as_array).into_iter().flatten();
        Ok(Self {
            name: object::name(binding).to_owned(),
            policy: text(spec, &["policyName"]),
            constraints: spec
                .get("matchResources")
                .filter(|resources| resources.is_object())
                .map(Constraints::read)
                .transpose()?,
            param_ref: spec.get("paramRef").cloned().unwrap_or(Json::Null),
            actions: actions.filter_map(Json::as_str).map(str::to_owned).collect(),
        })
    }

    fn does(&self, action: &str) -> bool {
        self.actions.iter().any(|own| own == action)
    }
}

/// A policy with its bindings.
pub type Bound = (Arc<Policy>, Vec<Arc<Binding>>);

/// What a policy is evaluated on.
pub struct Case<'a> {
    pub session: &'a Session,
    pub attributes: &'a Attributes,
    pub object: Option<&'a Json>,
    pub old: Option<&'a Json>,
}

/// One thing that a policy says against a request.
struct Against {
    policy: String,
    binding: String,
    message: String,
    reason: String,
}

impl Against {
    /// The refusal, in upstream's words.
    fn status(&self, what: &str, attributes: &Attributes, name: &str) -> Status {
        let message =
            format!("{what} '{}' with binding '{}' denied request: {}", self.policy, self.binding, self.message);
        let mut status = Status::forbidden(&attributes.kind, name, &message);
        let (code, reason) = match self.reason.as_str() {
            "Forbidden" => (403, "Forbidden"),
            "Unauthorized" => (401, "Unauthorized"),
            "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
            _ => (422, "Invalid"),
        };
        status.code = code;
        status.reason = reason.into();
        object::ensure(&mut status.details, &[]).insert("causes".to_owned(), json!([{ "message": message }]));
        status
    }
}

/// Where a policy and one of its bindings are about a request: as which kind, and with which parameters.
fn applies(batch: &mut Batch<'_>, policy: &Policy, binding: &Binding, case: &Case<'_>) -> Result<Option<Kind>, Status> {
    let registry = batch.registry.clone();
    if policy.constraints.rules.is_empty() {
        return Ok(None);
    }
    let Some(resource) = policy.constraints.resource(&registry, case.attributes) else { return Ok(None) };
    if !policy.constraints.selects(batch, case.attributes, case.object, case.old)? {
        return Ok(None);
    }
    let Some(own) = &binding.constraints else { return Ok(Some(resource)) };
    let is_meant = own.resource(&registry, case.attributes).is_some()
        && own.selects(batch, case.attributes, case.object, case.old)?;
    Ok(is_meant.then_some(resource))
}

/// The parameters of a binding: null where there are none to have.
fn params(batch: &mut Batch<'_>, policy: &Policy, binding: &Binding, namespace: &str) -> Result<Vec<Json>, String> {
    let (Some((api_version, kind)), Json::Object(_)) = (&policy.param_kind, &binding.param_ref) else {
        return Ok(vec![Json::Null]);
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let Some(kind) = batch.registry.find_kind(group, version, kind).cloned() else {
        return Err(format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"));
    };
    let reference = |path: &[&str]| object::text(&binding.param_ref, path);
    let own = reference(&["namespace"]);
    let namespace = match (kind.namespaced, own) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if namespace.is_empty() => {
            let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "") => namespace,
        (true, own) => own,
    };
    let failed = |status: Status| status.message;
    let found = match reference(&["name"]) {
        "" => {
            let selector = Labels::from_json(binding.param_ref.get("selector"))?;
            let mut all = batch.every(&kind, namespace).map_err(failed)?;
            all.retain(|param| selector.matches_object(param));
            all
        }
        name => batch.get(&kind, namespace, name).map_err(failed)?.into_iter().collect(),
    };
    if found.is_empty() && reference(&["parameterNotFoundAction"]) == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

/// The request as expressions see it.
pub(super) fn request_of(case: &Case<'_>, resource: &Kind) -> Json {
    let terms = case.session.terms.get();
    let question = Question {
        attributes: case.attributes,
        resource,
        object: None,
        old: None,
        user: &case.session.user,
        dry_run: terms.is_some_and(|terms| terms.dry_run),
        options: &options(terms, case.attributes),
    };
    let mut request = question.review(super::review::Version::V1, "")["request"].take();
    let fields = object::ensure(&mut request, &[]);
    for field in ["uid", "object", "oldObject"] {
        fields.remove(field);
    }
    request
}

/// The objects in the form of the kind that a policy is about.
pub(super) fn shown(case: &Case<'_>, value: Option<&Json>, resource: &Kind) -> Json {
    match (value, &case.attributes.object_type) {
        (Some(value), None) => converted(value, &case.attributes.kind, resource),
        (Some(value), Some(_)) => value.clone(),
        (None, _) => Json::Null,
    }
}

/// Asks every policy whether a request may go on; what is only to be told becomes a warning or an audit annotation.
///
/// # Errors
/// The first refusal.
pub fn validate(batch: &mut Batch<'_>, policies: &[Bound], case: &Case<'_>) -> Result<(), Status> {
    let mut against = Vec::new();
    let name = super::matching::name_of(case.attributes, case.object.or(case.old));
    for (policy, bindings) in policies {
        for binding in bindings {
            let Some(resource) = applies(batch, policy, binding, case)? else { continue };
            match params(batch, policy, binding, &case.attributes.namespace) {
                Ok(all) => {
                    for param in all {
                        validate_one(batch, (policy, binding), case, &resource, &param, &mut against)?;
                    }
                }
                Err(why) if !policy.fails_open => against.push(Against {
                    policy: policy.name.clone(),
                    binding: binding.name.clone(),
                    message: format!("failed to configure binding: {why}"),
                    reason: String::new(),
                }),
                Err(_) => {}
            }
        }
    }
    match against.first() {
        Some(first) => Err(first.status("ValidatingAdmissionPolicy", case.attributes, &name)),
        None => Ok(()),
    }
}

fn validate_one(
    batch: &mut Batch<'_>,
    (policy, binding): (&Policy, &Binding),
    case: &Case<'_>,
    resource: &Kind,
    params: &Json,
    against: &mut Vec<Against>,
) -> Result<(), Status> {
    let Work::Validate { rules, annotations } = &policy.work else { return Ok(()) };
    let (object, old) = (shown(case, case.object, resource), shown(case, case.old, resource));
    let (request, namespace) = (request_of(case, resource), namespace_of(batch, case.attributes)?);
    let authority = Arc::new(Authority::new(case.session.requester.clone(), case.attributes));
    let mut inputs = Inputs::new(&object, &old, &request, authority);
    (inputs.params, inputs.namespace, inputs.variables) = (params, &namespace, &policy.variables);
    let mut budget = Budget::of(cel::RUNTIME_BUDGET);
    let mut found: Vec<(usize, String, String)> = Vec::new();
    let mut failures: Vec<String> = Vec::new();
    match policy.conditions.hold(&inputs, &mut budget, policy.fails_open) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(why) => {
            found.push((0, why, String::new()));
            tell(batch, (policy, binding), case, &found, against);
            return Ok(());
        }
    }
    for (index, rule) in rules.iter().enumerate() {
        match rule.expression.evaluate(&inputs, &mut budget) {
            Ok(value) if value.as_bool() == Some(true) => {}
            Ok(_) => found.push((index, rule.message(&inputs, &mut budget), rule.reason.clone())),
            Err(_) if policy.fails_open => {}
            Err(why) => found.push((index, why, String::new())),
        }
    }
    tell(batch, (policy, binding), case, &found, against);
    for (key, expression) in annotations {
        match expression.evaluate(&inputs, &mut budget) {
            Ok(value) => {
                let note = value.as_str().map(str::trim).filter(|note| !note.is_empty());
                if let (Some(note), Some(record)) = (note, case.session.record.as_ref()) {
                    record.annotate(format!("{}/{key}", policy.name), note.to_owned());
                }
            }
            Err(why) if !policy.fails_open => failures.push(why),
            Err(_) => {}
        }
    }
    against.extend(failures.into_iter().map(|message| Against {
        policy: policy.name.clone(),
        binding: binding.name.clone(),
        message,
        reason: String::new(),
    }));
    Ok(())
}

impl Rule {
    /// What is told of what breaks it.
    fn message(&self, inputs: &Inputs<'_>, budget: &mut Budget) -> String {
        let made = self.message_expression.as_ref().and_then(|expression| expression.evaluate(inputs, budget).ok());
        let made = made.as_ref().and_then(Value::as_str).map(str::trim);
        match made.filter(|made| !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n')) {
            Some(made) => made.to_owned(),
            None if !self.message.is_empty() => self.message.clone(),
            None => format!("failed expression: {}", self.expression.text.trim()),
        }
    }
}

/// Does with what a policy has found as its binding says.
fn tell(
    batch: &mut Batch<'_>,
    (policy, binding): (&Policy, &Binding),
    case: &Case<'_>,
    found: &[(usize, String, String)],
    against: &mut Vec<Against>,
) {
    for (_, message, reason) in found {
        if binding.does("Warn") {
            batch.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                policy.name, binding.name
            ));
        }
        if binding.does("Deny") {
            against.push(Against {
                policy: policy.name.clone(),
                binding: binding.name.clone(),
                message: message.clone(),
                reason: reason.clone(),
            });
        }
    }
    if let Some(record) = case.session.record.as_ref().filter(|_| binding.does("Audit") && !found.is_empty()) {
        let failures: Json = found
            .iter()
            .map(|(index, message, _)| {
                json!({ "message": message, "policy": policy.name, "binding": binding.name,
                    "expressionIndex": index, "validationActions": binding.actions })
            })
            .collect();
        record.annotate("validation.policy.admission.k8s.io/validation_failure".to_owned(), failures.to_string());
    }
}

/// Lets every policy change an object, one after the other; whether any did. In the second round (`again`) only those
/// that want to see later changes.
///
/// # Errors
/// A policy that fails, unless its failures are ignored.
pub fn mutate(
    batch: &mut Batch<'_>,
    policies: &[Bound],
    session: &Session,
    attributes: &Attributes,
    object: &mut Json,
    old: Option<&Json>,
    again: bool,
) -> Result<bool, Status> {
    let mut is_changed = false;
    for (policy, bindings) in policies.iter().filter(|(policy, _)| !again || policy.is_reinvoked) {
        for binding in bindings {
            let before = object.clone();
            let case = Case { session, attributes, object: Some(&before), old };
            let Some(resource) = applies(batch, policy, binding, &case)? else { continue };
            let made = match params(batch, policy, binding, &attributes.namespace) {
                Ok(all) => mutate_all(batch, policy, &case, &resource, &all),
                Err(why) => Err(format!("failed to configure binding: {why}")),
            };
            match made {
                Ok(Some(new)) => {
                    *object = new;
                    is_changed = true;
                }
                Ok(None) => {}
                Err(_) if policy.fails_open => {}
                Err(message) => {
                    let name = super::matching::name_of(attributes, Some(object));
                    let (policy, binding) = (policy.name.clone(), binding.name.clone());
                    let against = Against { policy, binding, message, reason: String::new() };
                    return Err(against.status("MutatingAdmissionPolicy", attributes, &name));
                }
            }
        }
    }
    Ok(is_changed)
}

/// What a policy makes of an object with each of its parameters; `None` where nothing.
fn mutate_all(
    batch: &mut Batch<'_>,
    policy: &Policy,
    case: &Case<'_>,
    resource: &Kind,
    params: &[Json],
) -> Result<Option<Json>, String> {
    let Work::Mutate(mutations) = &policy.work else { return Ok(None) };
    let (before, old) = (shown(case, case.object, resource), shown(case, case.old, resource));
    let request = request_of(case, resource);
    let namespace = namespace_of(batch, case.attributes).map_err(|status| status.message)?;
    let mut current = before.clone();
    for param in params {
        let mut budget = Budget::of(cel::RUNTIME_BUDGET);
        for (index, (form, expression)) in mutations.iter().enumerate() {
            let authority = Arc::new(Authority::new(case.session.requester.clone(), case.attributes));
            let seen = current.clone();
            let mut inputs = Inputs::new(&seen, &old, &request, authority);
            (inputs.params, inputs.namespace, inputs.variables) = (param, &namespace, &policy.variables);
            if index == 0 && !policy.conditions.hold(&inputs, &mut budget, policy.fails_open)? {
                break;
            }
            let value = expression.evaluate(&inputs, &mut budget)?.to_json();
            current = match form {
                PatchForm::Apply => applied(resource, &seen, &value)?,
                PatchForm::Json => apply_patch(resource, PatchType::Json, &seen, value.to_string().as_bytes())
                    .map_err(|status| format!("JSON Patch: {}", status.message))?,
            };
            if case.attributes.object_type.is_none() {
                checked(resource, &mut current).map_err(|status| status.message)?;
                (resource.defaults)(resource, &mut current);
            }
        }
    }
    if current == before {
        return Ok(None);
    }
    Ok(Some(match case.attributes.object_type {
        None => converted(&current, resource, &case.attributes.kind),
        Some(_) => current,
    }))
}

/// An object with an apply configuration merged into it.
fn applied(kind: &Kind, object: &Json, configuration: &Json) -> Result<Json, String> {
    if !configuration.is_object() {
        return Err("applyConfiguration must evaluate to an Object".to_owned());
    }
    for field in ["apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.uid", "metadata.generateName"]
    {
        let path: Vec<&str> = field.split('.').collect();
        if object::at(configuration, &path).is_some() {
            return Err(format!("invalid ApplyConfiguration: may not mutate {field}"));
        }
    }
    Ok(apply::overlay(kind, object, configuration))
}
