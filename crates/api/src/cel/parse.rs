//! CEL's grammar: a text as [`Node`]s, macros expanded.

use super::CompileError;
use super::ast::{Expr, Fold, FoldKind, Node};
use super::lex::{Token, tokens};
use super::value::Value;

/// Parts that may stand within each other.
pub const MAX_DEPTH: usize = 100;
/// Characters of an expression.
pub const MAX_LENGTH: usize = 100_000;

/// Words that mean something else than a value of that name, or are kept for it.
const RESERVED: [&str; 18] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether a name is a word of the language, and so no identifier.
pub fn is_keyword(name: &str) -> bool {
    matches!(name, "true" | "false" | "null") || RESERVED.contains(&name)
}

/// Reads an expression.
///
/// # Errors
/// What is wrong with its syntax, and where.
pub fn parse(text: &str) -> Result<Node, CompileError> {
    if text.len() > MAX_LENGTH && text.chars().count() > MAX_LENGTH {
        let size = text.chars().count();
        let why = format!("expression code point size exceeds limit: size: {size}, limit {MAX_LENGTH}");
        return Err(CompileError::new(0, why));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

type Parsed = Result<Node, CompileError>;

fn too_deep(at: usize) -> CompileError {
    CompileError::new(at, format!("expression recursion limit exceeded: {MAX_DEPTH}"))
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    fn position(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(_, at)| *at)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.peek(), Token::Mark(found) if *found == mark)
    }

    fn accept(&mut self, mark: &str) -> bool {
        let is = self.is(mark);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, mark: &'static str) -> Result<(), CompileError> {
        if self.accept(mark) { Ok(()) } else { Err(self.unexpected(&format!("'{mark}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> CompileError {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Name(name) | Token::Quoted(name) => name.clone(),
            Token::Int(number) => number.to_string(),
            Token::Uint(number) => format!("{number}u"),
            Token::Double(number) => number.to_string(),
            Token::String(text) => format!("{text:?}"),
            Token::Bytes(_) => "bytes".to_owned(),
            Token::Mark(mark) => (*mark).to_owned(),
        };
        CompileError::new(self.position(), format!("Syntax error: mismatched input '{found}' expecting {wanted}"))
    }

    /// Goes one level down, and back up when `read` is done.
    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Parsed) -> Parsed {
        if self.depth >= MAX_DEPTH {
            return Err(too_deep(self.position()));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read.and_then(|node| if node.height > MAX_DEPTH { Err(too_deep(node.at)) } else { Ok(node) })
    }

    fn expression(&mut self) -> Parsed {
        self.nested(|parser| {
            let condition = parser.binary(0)?;
            let at = parser.position();
            if !parser.accept("?") {
                return Ok(condition);
            }
            let yes = parser.binary(0)?;
            parser.expect(":")?;
            let no = parser.expression()?;
            Ok(Node::new(at, Expr::If(Box::new([condition, yes, no]))))
        })
    }

    /// The operator that comes next: how strongly it binds, and its function.
    fn operator(&self) -> Option<(usize, &'static str)> {
        let mark = match self.peek() {
            Token::Mark(mark) => mark,
            Token::Name(name) if name == "in" => return Some((2, "@in")),
            _ => return None,
        };
        Some(match *mark {
            "||" => (0, "_||_"),
            "&&" => (1, "_&&_"),
            "==" => (2, "_==_"),
            "!=" => (2, "_!=_"),
            "<=" => (2, "_<=_"),
            ">=" => (2, "_>=_"),
            "<" => (2, "_<_"),
            ">" => (2, "_>_"),
            "+" => (3, "_+_"),
            "-" => (3, "_-_"),
            "*" => (4, "_*_"),
            "/" => (4, "_/_"),
            "%" => (4, "_%_"),
            _ => return None,
        })
    }

    /// Operators between two sides, of those that bind at least so strongly.
    fn binary(&mut self, least: usize) -> Parsed {
        let mut left = self.unary()?;
        while let Some((level, function)) = self.operator().filter(|(level, _)| *level >= least) {
            let at = self.position();
            if left.height > MAX_DEPTH {
                return Err(too_deep(at));
            }
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = joined(at, function, left, right);
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let at = self.position();
        for (mark, function) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0_usize;
            while self.accept(mark) {
                count += 1;
            }
            if count == 0 {
                continue;
            }
            // An even number of them is none; a number's own sign belongs to it.
            if mark == "-" && count % 2 == 1 && matches!(self.peek(), Token::Int(_) | Token::Double(_)) {
                return self.member(true);
            }
            let inner = self.nested(|parser| parser.member(false))?;
            return Ok(if count % 2 == 1 { Node::call(at, function, vec![inner]) } else { inner });
        }
        self.member(false)
    }

    fn member(&mut self, negative: bool) -> Parsed {
        let mut node = self.primary(negative)?;
        loop {
            let at = self.position();
            if node.height > MAX_DEPTH {
                return Err(too_deep(at));
            }
            if self.accept(".") {
                let optional = self.accept("?");
                let field = match self.next() {
                    Token::Name(name) => name,
                    Token::Quoted(name) => format!("`{name}"),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected("IDENTIFIER"));
                    }
                };
                if !optional && !field.starts_with('`') && self.is("(") {
                    let at = self.position();
                    self.at += 1;
                    let args = self.arguments(")")?;
                    node = member_call(at, node, &field, args)?;
                } else {
                    node = Node::new(at, Expr::Select { of: Box::new(node), field: field.into(), optional });
                }
            } else if self.accept("[") {
                let function = if self.accept("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                node = Node::call(at, function, vec![node, index]);
            } else if is_message(&node) && self.accept("{") {
                node = self.message(at)?;
            } else {
                return Ok(node);
            }
        }
    }

    fn arguments(&mut self, close: &'static str) -> Result<Vec<Node>, CompileError> {
        let mut all = Vec::new();
        while !self.accept(close) {
            if !all.is_empty() {
                self.expect(",")?;
            }
            all.push(self.expression()?);
        }
        Ok(all)
    }

    fn primary(&mut self, negative: bool) -> Parsed {
        let at = self.position();
        let literal = |value| Ok(Node::new(at, Expr::Literal(value)));
        match self.next() {
            Token::Int(number) => {
                let number = if negative { -i128::from(number) } else { i128::from(number) };
                let number = i64::try_from(number);
                literal(Value::Int(number.map_err(|_| CompileError::new(at, "invalid int literal".to_owned()))?))
            }
            Token::Double(number) => literal(Value::Double(if negative { -number } else { number })),
            Token::Uint(number) => literal(Value::Uint(number)),
            Token::String(text) => literal(Value::text(text)),
            Token::Bytes(bytes) => literal(Value::Bytes(bytes.into())),
            Token::Mark("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Mark("[") => self.list(at),
            Token::Mark("{") => self.map(at),
            Token::Mark(".") if matches!(self.peek(), Token::Name(_)) => self.primary(false),
            Token::Name(name) => match name.as_str() {
                "true" => literal(Value::Bool(true)),
                "false" => literal(Value::Bool(false)),
                "null" => literal(Value::Null),
                reserved if RESERVED.contains(&reserved) => {
                    Err(CompileError::new(at, format!("reserved identifier: {reserved}")))
                }
                _ if self.accept("(") => {
                    let args = self.arguments(")")?;
                    global_call(at, &name, args)
                }
                _ => Ok(Node::new(at, Expr::Name(name.into()))),
            },
            _ => {
                self.at -= 1;
                let wanted = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                    STRING, BYTES, IDENTIFIER}";
                Err(self.unexpected(wanted))
            }
        }
    }

    /// Items up to the closing bracket, with commas between them; one may follow the last.
    fn items<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, CompileError>,
    ) -> Result<Vec<T>, CompileError> {
        let mut all = Vec::new();
        while !self.accept(close) {
            if !all.is_empty() {
                self.expect(",")?;
                if self.accept(close) {
                    break;
                }
            }
            all.push(item(self)?);
        }
        Ok(all)
    }

    fn list(&mut self, at: usize) -> Parsed {
        let all = self.items("]", |parser| {
            let optional = parser.accept("?");
            Ok((parser.expression()?, optional))
        })?;
        Ok(Node::new(at, Expr::List(all)))
    }

    fn map(&mut self, at: usize) -> Parsed {
        self.entries(at, Self::expression)
    }

    /// The fields of a message, whose type a mutating policy names: it is the map of them.
    fn message(&mut self, at: usize) -> Parsed {
        self.entries(at, |parser| {
            let at = parser.position();
            let (Token::Name(field) | Token::Quoted(field)) = parser.next() else {
                parser.at -= 1;
                return Err(parser.unexpected("IDENTIFIER"));
            };
            Ok(Node::new(at, Expr::Literal(Value::text(unescaped(&field)))))
        })
    }

    fn entries(&mut self, at: usize, key: fn(&mut Self) -> Parsed) -> Parsed {
        let all = self.items("}", |parser| {
            let optional = parser.accept("?");
            let key = key(parser)?;
            parser.expect(":")?;
            Ok((key, parser.expression()?, optional))
        })?;
        Ok(Node::new(at, Expr::Map(all)))
    }
}

/// Whether a name is that of a message that mutating policies make: `Object`, `Object.spec.template`, `JSONPatch`.
fn is_message(node: &Node) -> bool {
    match &node.expr {
        Expr::Name(name) => matches!(&**name, "Object" | "JSONPatch"),
        Expr::Select { of, optional: false, .. } => {
            let mut of = of;
            while let Expr::Select { of: inner, optional: false, .. } = &of.expr {
                of = inner;
            }
            matches!(&of.expr, Expr::Name(name) if &**name == "Object")
        }
        _ => false,
    }
}

/// A field's name in JSON, of the name that an expression gives it.
fn unescaped(name: &str) -> String {
    let word = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
    if let Some(word) = word.filter(|word| RESERVED.contains(word)) {
        return word.to_owned();
    }
    let plain = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    plain.replace("__underscores__", "__")
}

/// An operator and its sides. Sides of `&&` and `||` are parts of one, however many they are.
fn joined(at: usize, function: &str, left: Node, right: Node) -> Node {
    let height = left.height.max(right.height + 1);
    let expr = match (function, left.expr) {
        ("_&&_", Expr::And(mut parts)) => {
            parts.push(right);
            Expr::And(parts)
        }
        ("_||_", Expr::Or(mut parts)) => {
            parts.push(right);
            Expr::Or(parts)
        }
        (_, expr) => {
            let left = Node { expr, ..left };
            return match function {
                "_&&_" => Node::new(at, Expr::And(vec![left, right])),
                "_||_" => Node::new(at, Expr::Or(vec![left, right])),
                _ => Node::call(at, function, vec![left, right]),
            };
        }
    };
    Node { expr, height, ..left }
}

fn global_call(at: usize, name: &str, mut args: Vec<Node>) -> Parsed {
    if name == "has" && args.len() == 1 {
        return match args.pop().map(|node| node.expr) {
            Some(Expr::Select { of, field, optional: false }) => Ok(Node::new(at, Expr::Has { of, field })),
            _ => Err(CompileError::new(at, "invalid argument to has() macro".to_owned())),
        };
    }
    Ok(Node::call(at, name, args))
}

/// A member call, or the macro of this name and number of arguments.
fn member_call(at: usize, of: Node, name: &str, args: Vec<Node>) -> Parsed {
    let is_cel = matches!(&of.expr, Expr::Name(name) if &**name == "cel");
    let kind = match (name, args.len()) {
        ("bind", 3) if is_cel => return bind(at, args),
        ("all", 2 | 3) => FoldKind::All,
        ("exists", 2 | 3) => FoldKind::Exists,
        ("exists_one" | "existsOne", 2 | 3) => FoldKind::ExistsOne,
        ("map", 2 | 3) => FoldKind::Map,
        ("filter", 2) => FoldKind::Filter,
        ("sortBy", 2) => FoldKind::SortBy,
        ("optMap", 2) => FoldKind::OptMap,
        ("optFlatMap", 2) => FoldKind::OptFlatMap,
        ("transformList", 3 | 4) => FoldKind::TransformList,
        ("transformMap", 3 | 4) => FoldKind::TransformMap,
        ("transformMapEntry", 3 | 4) => FoldKind::TransformMapEntry,
        _ => {
            let args = std::iter::once(of).chain(args).collect();
            return Ok(Node::new(at, Expr::Call { function: name.into(), member: true, args }));
        }
    };
    let has_two = match kind {
        FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => args.len() == 3,
        FoldKind::TransformList | FoldKind::TransformMap | FoldKind::TransformMapEntry => true,
        _ => false,
    };
    let mut args = args.into_iter();
    let first = variable(args.next(), at)?;
    let second = if has_two { Some(variable(args.next(), at)?) } else { None };
    let (one, two) = (args.next(), args.next());
    let (filter, body) = match (one, two) {
        (Some(filter), Some(body)) => (Some(filter), body),
        (Some(body), None) => (None, body),
        _ => return Err(CompileError::new(at, "argument must be a simple name".to_owned())),
    };
    Ok(Node::new(at, Expr::Fold(Box::new(Fold { kind, over: of, first, second, filter, body }))))
}

fn bind(at: usize, args: Vec<Node>) -> Parsed {
    let mut args = args.into_iter();
    let first = variable(args.next(), at)?;
    let (Some(over), Some(body)) = (args.next(), args.next()) else {
        return Err(CompileError::new(at, "argument must be a simple name".to_owned()));
    };
    let fold = Fold { kind: FoldKind::Bind, over, first, second: None, filter: None, body };
    Ok(Node::new(at, Expr::Fold(Box::new(fold))))
}

fn variable(node: Option<Node>, at: usize) -> Result<Box<str>, CompileError> {
    match node {
        Some(Node { expr: Expr::Name(name), .. }) => Ok(name),
        node => {
            let at = node.map_or(at, |node| node.at);
            Err(CompileError::new(at, "argument must be a simple name".to_owned()))
        }
    }
}
