//! A parsed expression.

use super::types::Type;
use super::value::Value;

/// A part of an expression.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub expr: Expr,
    /// Where it stands in the text, in characters.
    pub at: usize,
    /// What it evaluates to, as far as that is known; the checker sets it.
    pub type_: Type,
    /// How many parts stand within each other here.
    pub height: usize,
}

/// What a part of an expression is.
#[derive(Debug)]
pub enum Expr {
    /// A constant.
    Literal(Value<'static>),
    /// A variable; dotted names are variables of their own.
    Name(Box<str>),
    /// `of.field`, or `of.?field`.
    Select { of: Box<Node>, field: Box<str>, optional: bool },
    /// `has(of.field)`.
    Has { of: Box<Node>, field: Box<str> },
    /// A function or operator under cel-go's name (`_+_`, `@in`). The receiver of a member function is the first
    /// argument.
    Call { function: Box<str>, member: bool, args: Vec<Node> },
    /// `a && b && …`
    And(Vec<Node>),
    /// `a || b || …`
    Or(Vec<Node>),
    /// `a ? b : c`
    If(Box<[Node; 3]>),
    /// `[a, ?b]`: what is marked is left out where it is an empty optional.
    List(Vec<(Node, bool)>),
    /// `{a: b, ?c: d}`
    Map(Vec<(Node, Node, bool)>),
    /// A macro with variables of its own.
    Fold(Box<Fold>),
}

/// A macro that evaluates its body with variables of its own.
#[derive(Debug)]
pub struct Fold {
    /// Which one.
    pub kind: FoldKind,
    /// What it goes over; the value of `cel.bind` and of the optional's macros.
    pub over: Node,
    /// The variable: the item or key; with a second one the index or key.
    pub first: Box<str>,
    /// The item's or value's variable in macros with two.
    pub second: Option<Box<str>>,
    /// A condition on what is taken: of `map` and `transform…` with three arguments.
    pub filter: Option<Node>,
    /// What is evaluated for each.
    pub body: Node,
}

/// The macros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FoldKind {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
    SortBy,
    OptMap,
    OptFlatMap,
    Bind,
}

impl Node {
    /// A part whose type is not known yet.
    pub fn new(at: usize, expr: Expr) -> Self {
        let height = 1 + expr.parts().into_iter().map(|part| part.height).max().unwrap_or(0);
        Self { expr, at, type_: Type::Dyn, height }
    }

    /// A call of a function or operator.
    pub fn call(at: usize, function: &str, args: Vec<Self>) -> Self {
        Self::new(at, Expr::Call { function: function.into(), member: false, args })
    }

    /// The text, where it is a constant one.
    pub fn literal_text(&self) -> Option<&str> {
        match &self.expr {
            Expr::Literal(value) => value.as_str(),
            _ => None,
        }
    }
}

impl Expr {
    /// The parts right below.
    pub fn parts(&self) -> Vec<&Node> {
        match self {
            Self::Literal(_) | Self::Name(_) => Vec::new(),
            Self::Select { of, .. } | Self::Has { of, .. } => vec![of],
            Self::Call { args, .. } | Self::And(args) | Self::Or(args) => args.iter().collect(),
            Self::If(parts) => parts.iter().collect(),
            Self::List(items) => items.iter().map(|(item, _)| item).collect(),
            Self::Map(entries) => entries.iter().flat_map(|(key, value, _)| [key, value]).collect(),
            Self::Fold(fold) => std::iter::once(&fold.over).chain(&fold.filter).chain([&fold.body]).collect(),
        }
    }
}
