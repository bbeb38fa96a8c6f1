//! Evaluation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Fold, FoldKind, Node};
use super::library::{self, Context};
use super::value::{Key, Map, Value};
use super::{Budget, Error};

/// Makes a list, as cel-go counts it.
const LIST_COST: u64 = 10;
/// Makes a map.
const MAP_COST: u64 = 30;

type Evaluated<'a> = Result<Value<'a>, Error>;
type Lookup<'p, 'a> = &'p dyn Fn(&str) -> Option<Evaluated<'a>>;

/// One evaluation.
pub struct Run<'p, 'a> {
    lookup: Lookup<'p, 'a>,
    locals: Vec<(&'p str, Value<'a>)>,
    context: Context<'p>,
}

impl<'p, 'a> Run<'p, 'a> {
    /// An evaluation with these constant patterns and variables.
    pub fn new(patterns: &'p BTreeMap<Box<str>, regex::Regex>, lookup: Lookup<'p, 'a>, budget: &'p mut Budget) -> Self {
        Self { lookup, locals: Vec::new(), context: Context { patterns, made: BTreeMap::new(), budget } }
    }

    /// The value of a part.
    pub fn eval(&mut self, node: &'p Node) -> Evaluated<'a> {
        match &node.expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Name(name) => self.name(name),
            Expr::Select { of, field, optional } => self.select(of, field, *optional),
            Expr::Has { of, field } => self.has(of, field),
            Expr::Call { function, args, .. } => self.call(function, args),
            Expr::And(parts) => self.logic(parts, false),
            Expr::Or(parts) => self.logic(parts, true),
            Expr::If(parts) => {
                self.context.budget.spend(1)?;
                match self.eval(&parts[0])? {
                    Value::Bool(true) => self.eval(&parts[1]),
                    Value::Bool(false) => self.eval(&parts[2]),
                    _ => Err(Error::Overload),
                }
            }
            Expr::List(items) => self.list(items),
            Expr::Map(entries) => self.map(entries),
            Expr::Fold(fold) => self.fold(fold),
        }
    }

    fn name(&mut self, name: &str) -> Evaluated<'a> {
        self.context.budget.spend(1)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        (self.lookup)(name).unwrap_or_else(|| Err(Error::failed(format!("no such attribute(s): {name}"))))
    }

    #[inline(never)]
    fn select(&mut self, of: &'p Node, field: &str, optional: bool) -> Evaluated<'a> {
        let of = self.eval(of)?;
        self.context.budget.spend(1)?;
        match of {
            Value::Map(map) => match map.select(field) {
                found if optional => Ok(Value::optional(found)),
                Some(found) => Ok(found),
                None => Err(Error::failed(format!("no such key: {}", field.trim_start_matches('`')))),
            },
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => match &*inner {
                Value::Map(map) => Ok(Value::optional(map.select(field))),
                _ => Err(Error::Overload),
            },
            _ => Err(Error::Overload),
        }
    }

    #[inline(never)]
    fn has(&mut self, of: &'p Node, field: &str) -> Evaluated<'a> {
        let of = self.eval(of)?;
        self.context.budget.spend(1)?;
        let has = |map: &Map<'a>| Ok(Value::Bool(map.select(field).is_some()));
        match &of {
            Value::Map(map) => has(map),
            Value::Optional(None) => Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => match &**inner {
                Value::Map(map) => has(map),
                _ => Err(Error::Overload),
            },
            _ => Err(Error::Overload),
        }
    }

    #[inline(never)]
    fn call(&mut self, function: &str, args: &'p [Node]) -> Evaluated<'a> {
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            values.push(self.eval(arg)?);
        }
        self.context.budget.spend(1)?;
        library::call(function, &values, &mut self.context)
    }

    /// `&&` and `||`: a part that decides does so whatever the others are; else the first fault is the result.
    #[inline(never)]
    fn logic(&mut self, parts: &'p [Node], decides: bool) -> Evaluated<'a> {
        let mut fault = None;
        for part in parts {
            match self.eval(part) {
                Ok(Value::Bool(flag)) if flag == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => fault = fault.or(Some(Error::Overload)),
                Err(Error::Budget) => return Err(Error::Budget),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decides)), Err)
    }

    #[inline(never)]
    fn list(&mut self, items: &'p [(Node, bool)]) -> Evaluated<'a> {
        self.context.budget.spend(LIST_COST)?;
        let mut all = Vec::with_capacity(items.len());
        for (item, optional) in items {
            let value = self.eval(item)?;
            match value {
                Value::Optional(inner) if *optional => all.extend(inner.map(|inner| (*inner).clone())),
                _ if *optional => return Err(Error::Overload),
                value => all.push(value),
            }
        }
        Ok(Value::list(all))
    }

    #[inline(never)]
    fn map(&mut self, entries: &'p [(Node, Node, bool)]) -> Evaluated<'a> {
        self.context.budget.spend(MAP_COST)?;
        let mut all = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?.key().ok_or_else(|| Error::failed("unsupported key type"))?;
            let value = match self.eval(value)? {
                Value::Optional(inner) if *optional => match inner {
                    Some(inner) => (*inner).clone(),
                    None => continue,
                },
                _ if *optional => return Err(Error::Overload),
                value => value,
            };
            insert_once(&mut all, key, value)?;
        }
        Ok(Value::Map(Map::Made(Arc::new(all))))
    }

    /// A part with a variable of its own.
    fn with(&mut self, fold: &'p Fold, key: Value<'a>, item: Value<'a>, part: &'p Node) -> Evaluated<'a> {
        self.context.budget.spend(1)?;
        let before = self.locals.len();
        match &fold.second {
            Some(second) => self.locals.extend([(&*fold.first, key), (&**second, item)]),
            None => self.locals.push((&fold.first, item)),
        }
        let value = self.eval(part);
        self.locals.truncate(before);
        value
    }

    #[inline(never)]
    fn fold(&mut self, fold: &'p Fold) -> Evaluated<'a> {
        let over = self.eval(&fold.over)?;
        match (fold.kind, over) {
            (FoldKind::Bind, over) => self.with(fold, Value::Null, over, &fold.body),
            (FoldKind::OptMap | FoldKind::OptFlatMap, Value::Optional(None)) => Ok(Value::Optional(None)),
            (kind @ (FoldKind::OptMap | FoldKind::OptFlatMap), Value::Optional(Some(inner))) => {
                let value = self.with(fold, Value::Null, (*inner).clone(), &fold.body)?;
                if kind == FoldKind::OptFlatMap { Ok(value) } else { Ok(Value::optional(Some(value))) }
            }
            (_, Value::List(list)) => {
                let pairs = list.iter().enumerate().map(|(index, item)| (Value::Int(index as i64), item)).collect();
                self.over(fold, pairs, false)
            }
            (_, Value::Map(map)) => {
                let has_two = fold.second.is_some();
                let pair = |(key, value): (Key, Value<'a>)| {
                    let key: Value<'a> = key.value();
                    if has_two { (key, value) } else { (key.clone(), key) }
                };
                self.context.budget.traverse(map.count() as u64)?;
                self.over(fold, map.entries().into_iter().map(pair).collect(), true)
            }
            _ => Err(Error::Overload),
        }
    }

    #[inline(never)]
    fn over(&mut self, fold: &'p Fold, pairs: Vec<(Value<'a>, Value<'a>)>, is_map: bool) -> Evaluated<'a> {
        self.context.budget.traverse(pairs.len() as u64)?;
        match fold.kind {
            FoldKind::All => self.quantified(fold, pairs, false),
            FoldKind::Exists => self.quantified(fold, pairs, true),
            FoldKind::ExistsOne => {
                let mut count = 0_usize;
                for (key, item) in pairs {
                    count += usize::from(is_true(self.with(fold, key, item, &fold.body)?)?);
                }
                Ok(Value::Bool(count == 1))
            }
            FoldKind::SortBy => self.sorted(fold, pairs),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => self.transformed(fold, pairs),
            _ => {
                let mut all = Vec::new();
                for (key, item) in pairs {
                    if fold.kind == FoldKind::Filter {
                        let kept = if is_map { key.clone() } else { item.clone() };
                        if is_true(self.with(fold, key, item, &fold.body)?)? {
                            all.push(kept);
                        }
                    } else if self.passes(fold, &key, &item)? {
                        all.push(self.with(fold, key, item, &fold.body)?);
                    }
                }
                Ok(Value::list(all))
            }
        }
    }

    fn passes(&mut self, fold: &'p Fold, key: &Value<'a>, item: &Value<'a>) -> Result<bool, Error> {
        match &fold.filter {
            Some(filter) => is_true(self.with(fold, key.clone(), item.clone(), filter)?),
            None => Ok(true),
        }
    }

    /// `all` and `exists`: one item that decides does so whatever the others are.
    fn quantified(&mut self, fold: &'p Fold, pairs: Vec<(Value<'a>, Value<'a>)>, decides: bool) -> Evaluated<'a> {
        let mut fault = None;
        for (key, item) in pairs {
            match self.with(fold, key, item, &fold.body) {
                Ok(Value::Bool(flag)) if flag == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => fault = fault.or(Some(Error::Overload)),
                Err(Error::Budget) => return Err(Error::Budget),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn sorted(&mut self, fold: &'p Fold, pairs: Vec<(Value<'a>, Value<'a>)>) -> Evaluated<'a> {
        let mut keyed = Vec::with_capacity(pairs.len());
        for (key, item) in pairs {
            keyed.push((self.with(fold, key, item.clone(), &fold.body)?, item));
        }
        library::lists::sort_by_key(keyed, self.context.budget)
    }

    fn transformed(&mut self, fold: &'p Fold, pairs: Vec<(Value<'a>, Value<'a>)>) -> Evaluated<'a> {
        let mut all = BTreeMap::new();
        for (key, item) in pairs {
            if !self.passes(fold, &key, &item)? {
                continue;
            }
            let own = key.key().ok_or(Error::Overload)?;
            match (fold.kind, self.with(fold, key, item, &fold.body)?) {
                (FoldKind::TransformMap, value) => insert_once(&mut all, own, value)?,
                (_, Value::Map(entries)) => {
                    for (key, value) in entries.entries() {
                        self.context.budget.spend(1)?;
                        insert_once(&mut all, key, value)?;
                    }
                }
                _ => return Err(Error::Overload),
            }
        }
        Ok(Value::Map(Map::Made(Arc::new(all))))
    }
}

fn insert_once<'a>(all: &mut BTreeMap<Key, Value<'a>>, key: Key, value: Value<'a>) -> Result<(), Error> {
    if all.contains_key(&key) {
        return Err(Error::failed(format!("insert failed: key {} already exists", key.value().shown())));
    }
    all.insert(key, value);
    Ok(())
}

fn is_true(value: Value<'_>) -> Result<bool, Error> {
    value.as_bool().ok_or(Error::Overload)
}
