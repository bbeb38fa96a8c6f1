//! The mistakes that a source file could have. What is a constant, a pattern, a type, a macro's body or a test is left
//! alone; what would not compile is found out by compiling.

use std::path::Path;

use anyhow::Result;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ReturnType, Stmt, Type};

use super::Mutant;
use super::edit::{Edit, Piece};

/// Methods whose answer is yes or no.
const ASKING: &[&str] = &[
    "all",
    "any",
    "contains",
    "contains_key",
    "ends_with",
    "is_empty",
    "is_none",
    "is_none_or",
    "is_some",
    "is_some_and",
    "starts_with",
];

/// Methods that ask a closure.
const WITH_PREDICATE: &[&str] = &[
    "all",
    "any",
    "filter",
    "find",
    "is_none_or",
    "is_some_and",
    "partition",
    "position",
    "retain",
    "skip_while",
    "take_while",
];

/// Methods that are mistaken for each other.
const SWAPPED: &[(&str, &str)] = &[
    ("all", "any"),
    ("first", "last"),
    ("max", "min"),
    ("max_by_key", "min_by_key"),
    ("saturating_add", "saturating_sub"),
    ("checked_add", "checked_sub"),
];

/// What functions could give instead, by the name of their type.
const DEFAULTS: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("Option", &["None"]),
    ("Vec", &["Vec::new()"]),
    ("String", &["String::new()"]),
    ("BTreeMap", &["BTreeMap::new()"]),
    ("BTreeSet", &["BTreeSet::new()"]),
    ("Decision", &["Decision::default()"]),
    ("i32", &["0", "1"]),
    ("i64", &["0", "1"]),
    ("u32", &["0", "1"]),
    ("u64", &["0", "1"]),
    ("usize", &["0", "1"]),
    ("Duration", &["Duration::ZERO"]),
    ("SignedDuration", &["SignedDuration::ZERO"]),
];

/// How a condition is looked at: whether it is worth trying that it always or never holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    always: bool,
    never: bool,
}

struct Finder<'a> {
    file: &'a Path,
    text: &'a str,
    /// Types and functions around.
    around: Vec<String>,
    /// For the expression that is looked at next: that it is a condition.
    condition: Option<Condition>,
    edits: Vec<Edit>,
}

/// All edits of a file.
///
/// # Errors
/// The file is not Rust.
pub fn edits(file: &Path, text: &str) -> Result<Vec<Edit>> {
    let parsed = syn::parse_file(text)?;
    let mut finder = Finder { file, text, around: Vec::new(), condition: None, edits: Vec::new() };
    finder.visit_file(&parsed);
    Ok(finder.edits)
}

/// Whether something is only there in tests.
pub fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// A chain of `&&` with a `let` in it is no expression by itself.
fn has_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => matches!(binary.op, BinOp::And(_)) && (has_let(&binary.left) || has_let(&binary.right)),
        _ => false,
    }
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

fn source(node: &impl Spanned) -> Piece {
    Piece::Source(node.span().byte_range())
}

/// What a function of this type could give instead.
fn defaults(ty: &Type) -> Vec<String> {
    let Type::Path(path) = ty else {
        let is_str =
            matches!(ty, Type::Reference(to) if matches!(&*to.elem, Type::Path(path) if path.path.is_ident("str")));
        return if is_str { vec!["\"\"".to_owned()] } else { Vec::new() };
    };
    let Some(last) = path.path.segments.last() else { return Vec::new() };
    if last.ident == "Result"
        && let syn::PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(syn::GenericArgument::Type(inner)) = arguments.args.first()
    {
        let values = match inner {
            Type::Tuple(tuple) if tuple.elems.is_empty() => vec!["()".to_owned()],
            inner => defaults(inner),
        };
        return values.into_iter().map(|value| format!("Ok({value})")).collect();
    }
    let values = DEFAULTS.iter().find(|(ty, _)| last.ident == ty).map_or(&[][..], |(_, values)| values);
    values.iter().map(|value| (*value).to_owned()).collect()
}

impl Finder<'_> {
    fn shown(&self, node: &impl Spanned) -> String {
        let shown = self.text[node.span().byte_range()].split_whitespace().collect::<Vec<_>>().join(" ");
        if shown.chars().count() > 70 { format!("{}…", shown.chars().take(69).collect::<String>()) } else { shown }
    }

    fn push(&mut self, node: &impl Spanned, range: std::ops::Range<usize>, change: String, pieces: Vec<Piece>) {
        let mutant = Mutant {
            file: self.file.to_owned(),
            line: node.span().start().line,
            function: self.around.join("::"),
            change,
        };
        self.edits.push(Edit { mutant, range, pieces });
    }

    /// A pattern of text: `@` is whether the mutant is on, `$` the node as it is.
    fn wrap(&mut self, node: &impl Spanned, change: String, pattern: &str) {
        let range = node.span().byte_range();
        let mut pieces = Vec::new();
        for part in pattern.split_inclusive(['@', '$']) {
            pieces.push(text(part.trim_end_matches(['@', '$'])));
            match part.chars().last() {
                Some('@') => pieces.push(Piece::On),
                Some('$') => pieces.push(Piece::Source(range.clone())),
                _ => {}
            }
        }
        self.push(node, range, change, pieces);
    }

    /// The node, or something else that is made of its parts.
    fn either(&mut self, node: &impl Spanned, as_what: &str, other: Vec<Piece>) {
        let range = node.span().byte_range();
        let change = format!("{} → {as_what}", self.shown(node));
        let mut pieces = vec![text("(if "), Piece::On, text(" { ")];
        pieces.extend(other);
        pieces.extend([text(" } else { "), Piece::Source(range.clone()), text(" })")]);
        self.push(node, range, change, pieces);
    }

    /// What is true or false, in a condition or elsewhere.
    fn truth(&mut self, node: &impl Spanned, condition: Option<Condition>) {
        let Some(condition) = condition else {
            let change = format!("{} → not so", self.shown(node));
            return self.wrap(node, change, "(($) ^ @)");
        };
        if condition.always {
            let change = format!("{} → true", self.shown(node));
            self.wrap(node, change, "(@ || ($))");
        }
        if condition.never {
            let change = format!("{} → false", self.shown(node));
            self.wrap(node, change, "(!@ && ($))");
        }
    }

    fn as_condition(&mut self, expr: &Expr, always: bool, never: bool) {
        self.condition = Some(Condition { always, never });
        self.visit_expr(expr);
        self.condition = None;
    }

    fn binary(&mut self, binary: &syn::ExprBinary, condition: Option<Condition>) {
        let (left, right) = (&*binary.left, &*binary.right);
        let other = match binary.op {
            BinOp::And(_) => {
                let never = condition.is_some_and(|condition| condition.never);
                let chained = has_let(left) || has_let(right);
                if never && !chained {
                    let change = format!("{} → false", self.shown(binary));
                    self.wrap(binary, change, "(!@ && ($))");
                }
                self.as_condition(left, true, never && chained);
                return self.as_condition(right, true, never && chained && matches!(left, Expr::Let(_)));
            }
            BinOp::Or(_) => {
                if condition.is_some_and(|condition| condition.always) {
                    let change = format!("{} → true", self.shown(binary));
                    self.wrap(binary, change, "(@ || ($))");
                }
                self.as_condition(left, false, true);
                return self.as_condition(right, false, true);
            }
            BinOp::Eq(_) | BinOp::Ne(_) => None,
            BinOp::Lt(_) => Some(" <= "),
            BinOp::Le(_) => Some(" < "),
            BinOp::Gt(_) => Some(" >= "),
            BinOp::Ge(_) => Some(" > "),
            BinOp::Add(_) => Some(" - "),
            BinOp::Sub(_) => Some(" + "),
            BinOp::Mul(_) => Some(" + "),
            BinOp::Div(_) => Some(" * "),
            BinOp::Rem(_) => Some(" / "),
            BinOp::BitAnd(_) => Some(" | "),
            BinOp::BitOr(_) => Some(" & "),
            BinOp::AddAssign(_) => Some(" -= "),
            BinOp::SubAssign(_) => Some(" += "),
            _ => None,
        };
        let compares = |op: &BinOp| {
            use BinOp::{Eq, Ge, Gt, Le, Lt, Ne};
            matches!(op, Eq(_) | Ne(_) | Lt(_) | Le(_) | Gt(_) | Ge(_))
        };
        if compares(&binary.op) {
            self.truth(binary, condition);
        }
        if let Some(other) = other {
            let pieces = vec![source(left), text(other), source(right)];
            self.either(binary, other.trim(), pieces);
        }
        self.visit_expr(left);
        self.visit_expr(right);
    }

    fn method(&mut self, call: &syn::ExprMethodCall, condition: Option<Condition>) {
        let name = call.method.to_string();
        if condition.is_some() || ASKING.contains(&name.as_str()) {
            self.truth(call, condition);
        }
        for (one, other) in SWAPPED.iter().flat_map(|(one, other)| [(one, other), (other, one)]) {
            let takes = usize::from(!matches!(name.as_str(), "first" | "last"));
            if name == *one && call.args.len() == takes {
                let mut pieces = vec![source(&call.receiver), text(&format!(".{other}("))];
                pieces.extend(call.args.first().map(source));
                pieces.push(text(")"));
                self.either(call, other, pieces);
            }
        }
        self.visit_expr(&call.receiver);
        for argument in &call.args {
            match argument {
                Expr::Closure(closure) if WITH_PREDICATE.contains(&name.as_str()) => {
                    self.as_condition(&closure.body, true, true);
                }
                argument => self.visit_expr(argument),
            }
        }
    }

    /// Arms that could be missing, where another one catches everything.
    fn arms(&mut self, arms: &[syn::Arm]) {
        let catches_all = arms.last().is_some_and(|arm| arm.guard.is_none() && matches!(arm.pat, syn::Pat::Wild(_)));
        for (index, arm) in arms.iter().enumerate() {
            if let Some((_, guard)) = &arm.guard {
                self.as_condition(guard, true, true);
            } else if catches_all && index + 1 < arms.len() {
                let end = arm.pat.span().byte_range().end;
                let change = format!("without the arm {}", self.shown(&arm.pat));
                let pieces = vec![text(" if !"), Piece::On];
                self.push(&arm.pat, end..end, change, pieces);
            }
            self.visit_expr(&arm.body);
        }
    }

    /// What a function could give at once.
    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        if signature.constness.is_some() || block.stmts.is_empty() {
            return;
        }
        let at = block.brace_token.span.open().byte_range().end;
        let values = match &signature.output {
            ReturnType::Default => vec!["()".to_owned()],
            ReturnType::Type(_, ty) => defaults(ty),
        };
        for value in values {
            let pieces = vec![text(" if "), Piece::On, text(&format!(" {{ return {value}; }}"))];
            self.push(&signature.ident, at..at, format!("gives {value} at once"), pieces);
        }
    }

    fn function(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, block: &syn::Block) {
        if is_test(attributes) || signature.constness.is_some() {
            return;
        }
        self.around.push(signature.ident.to_string());
        self.body(signature, block);
        self.visit_block(block);
        self.around.pop();
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.around.push(name);
        visit(self);
        self.around.pop();
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_expr(&mut self, expr: &'ast Expr) {
        let condition = self.condition.take();
        match expr {
            Expr::Paren(paren) => {
                self.condition = condition;
                self.visit_expr(&paren.expr);
            }
            Expr::Block(block) if condition.is_some() => {
                let (last, others) = match block.block.stmts.split_last() {
                    Some((Stmt::Expr(last, None), others)) => (Some(last), others),
                    _ => (None, &*block.block.stmts),
                };
                others.iter().for_each(|stmt| self.visit_stmt(stmt));
                self.condition = condition;
                last.into_iter().for_each(|last| self.visit_expr(last));
                self.condition = None;
            }
            Expr::Binary(binary) => self.binary(binary, condition),
            Expr::Unary(unary) if matches!(unary.op, syn::UnOp::Not(_)) => {
                self.truth(unary, condition);
                self.as_condition(&unary.expr, false, false);
            }
            Expr::MethodCall(call) => self.method(call, condition),
            Expr::Macro(call) => {
                if condition.is_some() || call.mac.path.is_ident("matches") {
                    self.truth(call, condition);
                }
            }
            Expr::Lit(literal) if matches!(literal.lit, syn::Lit::Bool(_)) => self.truth(literal, condition),
            Expr::If(branch) => {
                self.as_condition(&branch.cond, true, true);
                self.visit_block(&branch.then_branch);
                if let Some((_, other)) = &branch.else_branch {
                    self.visit_expr(other);
                }
            }
            Expr::While(repeat) => {
                self.as_condition(&repeat.cond, false, true);
                self.visit_block(&repeat.body);
            }
            Expr::Match(choice) => {
                self.visit_expr(&choice.expr);
                self.arms(&choice.arms);
            }
            Expr::Const(_) | Expr::Repeat(_) | Expr::Let(_) => {
                if let Expr::Let(bound) = expr {
                    self.visit_expr(&bound.expr);
                }
            }
            Expr::Path(_) | Expr::Call(_) | Expr::Field(_) | Expr::Await(_) | Expr::Try(_) | Expr::Unary(_) => {
                if condition.is_some() {
                    self.truth(expr, condition);
                }
                visit::visit_expr(self, expr);
            }
            _ => visit::visit_expr(self, expr),
        }
    }

    fn visit_stmt(&mut self, stmt: &'ast Stmt) {
        if let Stmt::Expr(expr, Some(_)) = stmt {
            let called = match expr {
                Expr::Try(tried) => &*tried.expr,
                other => other,
            };
            if matches!(called, Expr::MethodCall(_) | Expr::Call(_) | Expr::Assign(_) | Expr::Await(_)) {
                let change = format!("without {}", self.shown(stmt));
                self.wrap(stmt, change, "if !@ { $ }");
            }
        }
        visit::visit_stmt(self, stmt);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let is_debug = item
            .trait_
            .as_ref()
            .is_some_and(|(_, path, _)| path.segments.last().is_some_and(|segment| segment.ident == "Debug"));
        if is_test(&item.attrs) || is_debug {
            return;
        }
        let name = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.within(name.unwrap_or_default(), |finder| visit::visit_item_impl(finder, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |finder| visit::visit_item_trait(finder, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            self.within(item.ident.to_string(), |finder| visit::visit_item_mod(finder, item));
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_item_macro(&mut self, _: &'ast syn::ItemMacro) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_type(&mut self, _: &'ast Type) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
}
