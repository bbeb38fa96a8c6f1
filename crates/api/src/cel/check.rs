//! Names and types: what can be known to be wrong before an expression is evaluated.
//!
//! Types are followed as far as they are declared; what is `dyn` is left to the evaluation. Dotted names of variables
//! and functions become one name here.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::CompileError;
use super::ast::{Expr, Fold, FoldKind, Node};
use super::types::{Bound, ListKind, Type, accepts, resolved};
use super::value::Value;

/// Faults beyond this many are not listed.
const MAX_FAULTS: usize = 20;

/// One way to call a function.
struct Signature {
    member: bool,
    args: Vec<Type>,
    result: Type,
}

static SIGNATURES: LazyLock<HashMap<String, Vec<Signature>>> = LazyLock::new(|| {
    let mut all: HashMap<String, Vec<Signature>> = HashMap::new();
    let lines = include_str!("functions.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let Some((name, signature)) = signature(line) else {
            debug_assert!(false, "{line}");
            continue;
        };
        all.entry(name).or_default().push(signature);
    }
    all
});

/// A line of the table.
fn signature(line: &str) -> Option<(String, Signature)> {
    // The argument list's bracket is the first one after the name.
    let open = line.find('(')?;
    let (head, rest) = (line.get(..open)?, line.get(open + 1..)?);
    let (args, result) = rest.rsplit_once(')')?;
    let mut all = Vec::new();
    let (name, member) = match (head.split_once("::"), head.rsplit_once('.')) {
        (Some((space, name)), _) => (format!("{space}.{name}"), false),
        (None, Some((receiver, name))) => {
            all.push(named_type(receiver)?);
            (name.to_owned(), true)
        }
        (None, None) => (head.to_owned(), false),
    };
    for arg in split_types(args) {
        all.push(named_type(arg)?);
    }
    Some((name, Signature { member, args: all, result: named_type(result.trim())? }))
}

/// Commas outside of angle brackets separate types.
fn split_types(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    parts.extend(Some(last).filter(|last| !last.is_empty()));
    parts
}

fn named_type(text: &str) -> Option<Type> {
    if let Some((outer, inner)) = text.strip_suffix('>').and_then(|text| text.split_once('<')) {
        let inner: Vec<Type> = split_types(inner).into_iter().filter_map(named_type).collect();
        return match (outer, inner.as_slice()) {
            ("list", [item]) => Some(Type::list(item.clone())),
            ("optional", [item]) => Some(Type::optional(item.clone())),
            ("map", [key, value]) => Some(Type::Map(Arc::new(key.clone()), Arc::new(value.clone()))),
            _ => None,
        };
    }
    Some(match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "quantity" => Type::Named("kubernetes.Quantity"),
        "semver" => Type::Named("kubernetes.Semver"),
        "url" => Type::Named("kubernetes.URL"),
        "ip" => Type::Named("net.IP"),
        "cidr" => Type::Named("net.CIDR"),
        "format" => Type::Named("kubernetes.NamedFormat"),
        param => Type::Param(param.chars().next().filter(|c| c.is_ascii_uppercase() && param.len() == 1)?),
    })
}

/// What an expression may name: variables, some with dots in their names.
pub struct Scope<'a> {
    /// The declared variables.
    pub variables: &'a [(String, Type)],
    locals: Vec<(Box<str>, Type)>,
    faults: Vec<CompileError>,
}

impl<'a> Scope<'a> {
    /// A scope of these variables.
    pub fn new(variables: &'a [(String, Type)]) -> Self {
        Self { variables, locals: Vec::new(), faults: Vec::new() }
    }

    /// Checks an expression and settles its names and types.
    ///
    /// # Errors
    /// Every fault, in the order in which they were found.
    pub fn check(mut self, node: &mut Node) -> Result<Type, Vec<CompileError>> {
        let type_ = self.visit(node);
        if self.faults.is_empty() { Ok(type_) } else { Err(self.faults) }
    }

    fn fault(&mut self, at: usize, why: String) -> Type {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(CompileError::new(at, why));
        }
        Type::Dyn
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let locals = self.locals.iter().rev().map(|(known, type_)| (&**known, type_));
        let mut all = locals.chain(self.variables.iter().map(|(known, type_)| (known.as_str(), type_)));
        all.find(|(known, _)| *known == name).map(|(_, type_)| type_.clone())
    }

    /// `a.b.c` as one name.
    fn dotted(node: &Node) -> Option<String> {
        match &node.expr {
            Expr::Name(name) => Some(name.to_string()),
            Expr::Select { of, field, optional: false } => Some(format!("{}.{field}", Self::dotted(of)?)),
            _ => None,
        }
    }

    fn visit(&mut self, node: &mut Node) -> Type {
        let type_ = self.infer(node);
        node.type_ = type_.clone();
        type_
    }

    fn infer(&mut self, node: &mut Node) -> Type {
        let at = node.at;
        match &mut node.expr {
            Expr::Literal(value) => value.type_(),
            Expr::Name(_) | Expr::Select { .. } => self.infer_name(node),
            Expr::Has { of, field } => {
                let of = self.visit(of);
                self.field(at, &of, field);
                Type::Bool
            }
            Expr::Call { .. } => self.infer_call(node),
            Expr::And(parts) | Expr::Or(parts) => {
                let given: Vec<Type> = parts.iter_mut().map(|part| self.visit(part)).collect();
                if !given.iter().all(|type_| matches!(type_, Type::Bool | Type::Dyn)) {
                    let operator = if matches!(node.expr, Expr::And(_)) { "_&&_" } else { "_||_" };
                    self.no_overload(at, operator, false, &given);
                }
                Type::Bool
            }
            Expr::If(parts) => {
                let [condition, yes, no] = parts.each_mut().map(|part| self.visit(part));
                let mut bound = Bound::new();
                let fits = accepts(&Type::Bool, &condition, &mut bound) && accepts(&yes, &no, &mut bound);
                if !fits {
                    return self.no_overload(at, "_?_:_", false, &[condition, yes, no]);
                }
                yes.joined(no)
            }
            Expr::List(items) => {
                let item = |scope: &mut Self, (item, optional): &mut (Node, bool)| {
                    let type_ = scope.visit(item);
                    if *optional { Self::inside(&type_) } else { type_ }
                };
                let joined = items.iter_mut().map(|one| item(self, one)).reduce(Type::joined);
                Type::list(joined.unwrap_or(Type::Dyn))
            }
            Expr::Map(entries) => {
                let mut joined: Option<(Type, Type)> = None;
                for (key, value, optional) in entries {
                    let (key, value) = (self.visit(key), self.visit(value));
                    let value = if *optional { Self::inside(&value) } else { value };
                    joined = Some(match joined {
                        None => (key, value),
                        Some((k, v)) => (k.joined(key), v.joined(value)),
                    });
                }
                let (key, value) = joined.unwrap_or((Type::Dyn, Type::Dyn));
                Type::Map(Arc::new(key), Arc::new(value))
            }
            Expr::Fold(fold) => self.infer_fold(at, fold),
        }
    }

    fn inside(type_: &Type) -> Type {
        match type_ {
            Type::Optional(inner) => (**inner).clone(),
            _ => Type::Dyn,
        }
    }

    fn infer_name(&mut self, node: &mut Node) -> Type {
        if let Some(name) = Self::dotted(node) {
            if let Some(type_) = self.variable(&name) {
                node.expr = Expr::Name(name.into());
                return type_;
            }
            if let Some(type_name) = type_named(&name) {
                node.expr = Expr::Literal(Value::Type(type_name.into()));
                return Type::Type;
            }
        }
        let at = node.at;
        match &mut node.expr {
            Expr::Select { of, field, optional } => {
                let type_ = self.visit(of);
                let (inner, was_optional) = match &type_ {
                    Type::Optional(inner) => ((**inner).clone(), true),
                    other => (other.clone(), false),
                };
                let found = self.field(at, &inner, field);
                if *optional || was_optional { Type::optional(found) } else { found }
            }
            Expr::Name(name) => {
                let why = format!("undeclared reference to '{name}' (in container '')");
                self.fault(at, why)
            }
            _ => Type::Dyn,
        }
    }

    fn field(&mut self, at: usize, of: &Type, field: &str) -> Type {
        let plain = field.trim_start_matches('`');
        match of {
            Type::Dyn | Type::Param(_) | Type::Null => Type::Dyn,
            Type::Optional(inner) => {
                let inner = (**inner).clone();
                self.field(at, &inner, field)
            }
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.field(field) {
                Some((_, type_)) => type_.clone(),
                None => self.fault(at, format!("undefined field '{plain}'")),
            },
            other => self.fault(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn infer_call(&mut self, node: &mut Node) -> Type {
        let at = node.at;
        let Expr::Call { function, member, args } = &mut node.expr else { return Type::Dyn };
        // `sets.contains(a, b)` is a function of a namespace unless there is such a variable.
        if *member && let Some(space) = args.first().and_then(Self::dotted) {
            let name = format!("{space}.{function}");
            if SIGNATURES.contains_key(&name) && self.variable(&space).is_none() {
                args.remove(0);
                *function = name.into();
                *member = false;
            }
        }
        let (function, member) = (function.clone(), *member);
        let given: Vec<Type> = args.iter_mut().map(|arg| self.visit(arg)).collect();
        let Some(known) = SIGNATURES.get(signature_name(&function)) else {
            // What the caller's own objects can do is theirs to say.
            if member && matches!(given.first(), Some(Type::Dyn | Type::Named(_))) {
                return Type::Dyn;
            }
            return self.fault(at, format!("undeclared reference to '{function}' (in container '')"));
        };
        let mut results: Vec<Type> = Vec::new();
        for signature in known.iter().filter(|s| s.member == member && s.args.len() == given.len()) {
            let mut bound = Bound::new();
            let mut pairs = signature.args.iter().zip(&given);
            if pairs.all(|(wanted, given)| accepts(wanted, given, &mut bound)) {
                results.push(resolved(&signature.result, &bound));
            }
        }
        // Sets and keyed lists stay so when they are joined.
        if &*function == "_+_"
            && let Some(left @ Type::List(_, kind)) = given.first()
            && *kind != ListKind::Atomic
            && !results.is_empty()
        {
            return left.clone();
        }
        match results.into_iter().reduce(Type::joined) {
            Some(result) => result,
            None => self.no_overload(at, &function, member, &given),
        }
    }

    fn no_overload(&mut self, at: usize, function: &str, member: bool, given: &[Type]) -> Type {
        let mut shown: Vec<String> = given.iter().map(ToString::to_string).collect();
        let applied = match member {
            true if !shown.is_empty() => format!("{}.({})", shown.remove(0), shown.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        self.fault(at, format!("found no matching overload for '{function}' applied to '{applied}'"))
    }

    fn infer_fold(&mut self, at: usize, fold: &mut Fold) -> Type {
        let over = self.visit(&mut fold.over);
        let dynamic = (Type::Dyn, Type::Dyn);
        let (key, item) = match (&over, fold.kind) {
            (_, FoldKind::Bind) => (Type::Dyn, over.clone()),
            (Type::Optional(inner), FoldKind::OptMap | FoldKind::OptFlatMap) => (Type::Dyn, (**inner).clone()),
            (Type::Dyn, _) => dynamic,
            (_, FoldKind::OptMap | FoldKind::OptFlatMap) => {
                self.no_overload(at, "optMap", true, std::slice::from_ref(&over));
                dynamic
            }
            (Type::List(item, _), _) => (Type::Int, (**item).clone()),
            (Type::Map(key, value), _) => ((**key).clone(), (**value).clone()),
            (other, _) => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(at, why);
                dynamic
            }
        };
        // One variable goes over a map's keys.
        let is_map = matches!(over, Type::Map(..));
        let before = self.locals.len();
        match &fold.second {
            Some(second) => {
                self.locals.push((fold.first.clone(), key));
                self.locals.push((second.clone(), item.clone()));
            }
            None => {
                let one = if is_map && fold.kind != FoldKind::Bind { key } else { item.clone() };
                self.locals.push((fold.first.clone(), one));
            }
        }
        if let Some(filter) = &mut fold.filter {
            let (at, found) = (filter.at, self.visit(filter));
            self.need_bool(at, &found);
        }
        let (body_at, body) = (fold.body.at, self.visit(&mut fold.body));
        self.locals.truncate(before);
        match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => {
                self.need_bool(body_at, &body);
                Type::Bool
            }
            FoldKind::Filter => {
                self.need_bool(body_at, &body);
                if is_map { Type::list(self.key_of(&over)) } else { Type::list(item) }
            }
            FoldKind::Map | FoldKind::TransformList => Type::list(body),
            FoldKind::TransformMap => Type::Map(Arc::new(self.key_of(&over)), Arc::new(body)),
            FoldKind::TransformMapEntry => body,
            FoldKind::SortBy => over,
            FoldKind::OptMap => Type::optional(body),
            FoldKind::OptFlatMap | FoldKind::Bind => body,
        }
    }

    fn key_of(&self, over: &Type) -> Type {
        match over {
            Type::Map(key, _) => (**key).clone(),
            Type::List(..) => Type::Int,
            _ => Type::Dyn,
        }
    }

    fn need_bool(&mut self, at: usize, found: &Type) {
        if !matches!(found, Type::Bool | Type::Dyn) {
            self.fault(at, format!("expected type 'bool' but found '{found}'"));
        }
    }
}

/// All comparisons have the same signatures.
fn signature_name(function: &str) -> &str {
    match function {
        "_<=_" | "_>_" | "_>=_" => "_<_",
        other => other,
    }
}

/// The type that an expression calls so.
fn type_named(name: &str) -> Option<&'static str> {
    const NAMES: [&str; 17] = [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "type",
        "null_type",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "kubernetes.URL",
        "net.IP",
        "net.CIDR",
    ];
    NAMES.into_iter().find(|known| *known == name)
}
