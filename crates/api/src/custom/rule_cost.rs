//! What a rule may cost at most, estimated when its definition is written: as cel-go and upstream's libraries estimate
//! it, from the limits that the schema sets (`maxItems`, `maxProperties`, `maxLength`) and the largest request.
//!
//! Where a size is not known, it is taken to be that of what it was made from: this estimate refuses less than
//! upstream's.

use serde_json::Value as Json;

use crate::cel::ast::{Expr, Fold, FoldKind, Node};

/// The largest request, in bytes.
const MAX_REQUEST: u64 = 3 << 20;
/// The longest text in it, and the most items.
const LONGEST: u64 = MAX_REQUEST - 2;
/// Makes a list, or a map.
const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
/// A schema nested deeper than this is taken for a small value.
const MAX_DEPTH: usize = 100;

/// How large a value may be, and what it is made of.
#[derive(Clone, Copy)]
pub enum Extent<'a> {
    /// Of a schema.
    Schema(&'a Json),
    /// So many characters or items, of the same schema as far as that is known.
    Size(u64, Option<&'a Json>),
}

impl<'a> Extent<'a> {
    fn size(self) -> u64 {
        match self {
            Self::Size(size, _) => size,
            Self::Schema(schema) if schema.get("x-kubernetes-int-or-string") == Some(&Json::Bool(true)) => LONGEST,
            Self::Schema(schema) => match schema.get("type").and_then(Json::as_str).unwrap_or("") {
                "string" | "array" => max_size(schema),
                "object" if schema.get("additionalProperties").is_some() => max_size(schema),
                // Comparing such costs nothing.
                _ => 0,
            },
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Self::Schema(schema) if schema.get("type").is_some_and(|kind| kind == "string"))
    }

    fn unknown() -> Self {
        Self::Size(1, None)
    }

    /// An item of a list, or a value of a map.
    fn item(self) -> Self {
        let schema = match self {
            Self::Schema(schema) => schema.get("items").or_else(|| schema.get("additionalProperties")),
            Self::Size(_, item) => item,
        };
        schema.map_or(Self::unknown(), Self::Schema)
    }

    /// A key of a map, whose length upstream takes to be nothing.
    fn key() -> Self {
        Self::Size(0, None)
    }

    fn field(self, name: &str) -> Self {
        let Self::Schema(schema) = self else { return Self::unknown() };
        let name = name.trim_start_matches('`');
        let unescaped = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
        let unescaped = unescaped.replace("__underscores__", "__");
        let keyword = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
        let properties = schema.get("properties");
        let mut found = [Some(name), Some(unescaped.as_str()), keyword].into_iter().flatten();
        let found = found.find_map(|name| properties?.get(name));
        // Of a map's values by name upstream knows nothing.
        found.map_or(Self::unknown(), Self::Schema)
    }
}

/// How many characters or items a value of a schema has at most.
pub fn max_size(schema: &Json) -> u64 {
    let limit = |name: &str| schema.get(name).and_then(Json::as_u64);
    match schema.get("type").and_then(Json::as_str).unwrap_or("") {
        "string" => {
            let format = schema.get("format").and_then(Json::as_str).unwrap_or("");
            let longest = || {
                let values = schema.get("enum").and_then(Json::as_array)?;
                values.iter().filter_map(Json::as_str).map(|value| value.len() as u64).max()
            };
            match (format, limit("maxLength")) {
                ("byte", Some(length)) => length,
                (_, Some(length)) => length.saturating_mul(4),
                ("date", None) => 12,
                ("duration", None) => 32,
                ("date-time", None) => 35,
                _ => longest().unwrap_or(LONGEST),
            }
        }
        "array" => limit("maxItems")
            .unwrap_or_else(|| LONGEST / (schema.get("items").map_or(1, |items| min_bytes(items, 0)) + 1)),
        "object" => match schema.get("additionalProperties").filter(|values| values.is_object()) {
            Some(values) => limit("maxProperties").unwrap_or_else(|| LONGEST / (min_bytes(values, 0) + 6)),
            None => 1,
        },
        _ => 1,
    }
}

/// How many bytes a value of a schema has at least.
fn min_bytes(schema: &Json, depth: usize) -> u64 {
    match schema.get("type").and_then(Json::as_str).unwrap_or("") {
        // With their quotes.
        "string" => match schema.get("format").and_then(Json::as_str).unwrap_or("") {
            "date" => 12,
            "duration" => 3,
            "date-time" => 21,
            _ => 2,
        },
        "array" => 2,
        "boolean" => 4,
        "object" if depth < MAX_DEPTH => {
            let required =
                schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
            let sizes = required.filter_map(|name| {
                // A default is filled in by the server.
                let below = schema.get("properties")?.get(name).filter(|below| below.get("default").is_none())?;
                Some(name.len() as u64 + 4 + min_bytes(below, depth + 1))
            });
            sizes.fold(2, u64::saturating_add)
        }
        _ => 1,
    }
}

/// How often a value of this schema may be in one request.
pub fn max_count(schema: &Json) -> u64 {
    MAX_REQUEST / (min_bytes(schema, 0) + 1)
}

/// What evaluating an expression costs at most, where `self` and `oldSelf` are of a schema.
pub fn estimate(node: &Node, schema: &Json) -> u64 {
    Estimator { schema, locals: Vec::new() }.visit(node).0
}

struct Estimator<'a, 'n> {
    schema: &'a Json,
    locals: Vec<(&'n str, Extent<'a>)>,
}

/// A tenth of so many characters or items.
fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl<'a, 'n> Estimator<'a, 'n> {
    fn visit(&mut self, node: &'n Node) -> (u64, Extent<'a>) {
        match &node.expr {
            Expr::Literal(value) => (0, Extent::Size(value.size(), None)),
            Expr::Name(name) => (1, self.variable(name)),
            Expr::Select { of, field, .. } => {
                let (cost, of) = self.visit(of);
                (cost.saturating_add(1), of.field(field))
            }
            Expr::Has { of, .. } => (self.visit(of).0, Extent::unknown()),
            Expr::Call { function, member, args } => self.call(function, *member, args),
            Expr::And(parts) | Expr::Or(parts) => {
                let costs = parts.iter().map(|part| self.visit(part).0).fold(0, u64::saturating_add);
                (costs, Extent::unknown())
            }
            Expr::If(parts) => {
                let [condition, (yes, one), (no, other)] = parts.each_ref().map(|part| self.visit(part));
                let larger = if one.size() >= other.size() { one } else { other };
                (condition.0.saturating_add(yes.max(no)), larger)
            }
            Expr::List(items) => {
                let costs = items.iter().map(|(item, _)| self.visit(item).0).fold(LIST_COST, u64::saturating_add);
                (costs, Extent::Size(items.len() as u64, None))
            }
            Expr::Map(entries) => {
                let mut costs = MAP_COST;
                for (key, value, _) in entries {
                    costs = costs.saturating_add(self.visit(key).0).saturating_add(self.visit(value).0);
                }
                (costs, Extent::Size(entries.len() as u64, None))
            }
            Expr::Fold(fold) => self.fold(fold),
        }
    }

    fn variable(&self, name: &str) -> Extent<'a> {
        match self.locals.iter().rev().find(|(known, _)| *known == name) {
            Some((_, extent)) => *extent,
            None => Extent::Schema(self.schema),
        }
    }

    fn call(&mut self, function: &str, member: bool, args: &'n [Node]) -> (u64, Extent<'a>) {
        let given: Vec<(u64, Extent<'a>)> = args.iter().map(|arg| self.visit(arg)).collect();
        let paid = given.iter().map(|(cost, _)| *cost).fold(0, u64::saturating_add);
        let extent = |index: usize| given.get(index).map_or(Extent::unknown(), |(_, extent)| *extent);
        let size = |index: usize| extent(index).size();
        let (cost, result) = match function {
            "contains" => (tenth(size(0)).saturating_mul(tenth(size(1))), Extent::unknown()),
            "startsWith" | "endsWith" => (tenth(size(1)), Extent::unknown()),
            // As a function `matches` costs what any other does: that is how cel-go estimates it.
            "matches" if !member => (1, Extent::unknown()),
            "matches" | "find" | "findAll" => {
                (tenth(size(0) + 1).saturating_mul(size(1).div_ceil(4)), Extent::Size(size(0), None))
            }
            "@in" => (size(1), Extent::unknown()),
            "_==_" | "_!=_" => (tenth(size(0).min(size(1))), Extent::unknown()),
            "_<_" | "_<=_" | "_>_" | "_>=_" => (tenth(size(0).min(size(1))).max(1), Extent::unknown()),
            "_+_" => {
                let sum = size(0).saturating_add(size(1));
                let item = match extent(0).item() {
                    Extent::Schema(item) => Some(item),
                    Extent::Size(..) => None,
                };
                (tenth(sum).max(1), Extent::Size(sum, item))
            }
            "_[_]" | "_[?_]" => (1, extent(0).item()),
            "hasValue" | "value" | "or" | "optional.of" | "dyn" => (1, extent(0)),
            "orValue" => (1, if size(0) >= size(1) { extent(0) } else { extent(1) }),
            "indexOf" | "lastIndexOf" if extent(0).is_text() => (tenth(size(0)), Extent::unknown()),
            "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => {
                let item = extent(0).item();
                (size(0).saturating_mul(1 + if item.is_text() { tenth(item.size()) } else { 0 }), item)
            }
            "replace" => (tenth(size(0)).saturating_mul(2), Extent::Size(size(0), None)),
            "join" => {
                let items = size(0).saturating_mul(extent(0).item().size());
                let between = if args.len() > 1 { size(0).saturating_sub(1).saturating_mul(size(1)) } else { 0 };
                let all = items.saturating_add(between);
                (tenth(all), Extent::Size(all, None))
            }
            "sets.contains" | "sets.intersects" => (size(0).saturating_mul(size(1)), Extent::unknown()),
            "sets.equivalent" => (size(0).saturating_mul(size(1)).saturating_mul(2), Extent::unknown()),
            "split" | "substring" | "trim" | "lowerAscii" | "upperAscii" | "format" | "url" | "quantity"
            | "isQuantity" | "ip" | "isIP" | "cidr" | "isCIDR" | "containsIP" | "containsCIDR" | "validate"
            | "semver" | "isSemver" | "reverse" | "sort" | "distinct" | "string" | "bytes" => {
                let largest = given.iter().map(|(_, extent)| extent.size()).max().unwrap_or(1);
                (tenth(largest).max(1), Extent::Size(size(0).max(1), None))
            }
            _ => (1, Extent::unknown()),
        };
        (paid.saturating_add(cost), result)
    }

    fn fold(&mut self, fold: &'n Fold) -> (u64, Extent<'a>) {
        let (over_cost, over) = self.visit(&fold.over);
        let before = self.locals.len();
        let is_once = matches!(fold.kind, FoldKind::Bind | FoldKind::OptMap | FoldKind::OptFlatMap);
        let is_map = matches!(over, Extent::Schema(schema) if schema.get("additionalProperties").is_some());
        match &fold.second {
            Some(second) => self.locals.extend([(&*fold.first, Extent::key()), (&**second, over.item())]),
            None if is_once => self.locals.push((&fold.first, over)),
            None if is_map => self.locals.push((&fold.first, Extent::key())),
            None => self.locals.push((&fold.first, over.item())),
        }
        let filter = fold.filter.as_ref().map_or(0, |filter| self.visit(filter).0);
        let (body, inner) = self.visit(&fold.body);
        self.locals.truncate(before);
        if is_once {
            return (over_cost.saturating_add(body), inner);
        }
        let step = match fold.kind {
            FoldKind::All | FoldKind::Exists => 3,
            FoldKind::ExistsOne => 2,
            _ => LIST_COST + 2,
        };
        let each = filter.saturating_add(body).saturating_add(step);
        let cost = over_cost.saturating_add(over.size().saturating_mul(each)).saturating_add(1);
        let result = match fold.kind {
            FoldKind::Filter | FoldKind::SortBy => over,
            FoldKind::Map | FoldKind::TransformList => Extent::Size(
                over.size(),
                match inner {
                    Extent::Schema(schema) => Some(schema),
                    Extent::Size(..) => None,
                },
            ),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => Extent::Size(over.size(), None),
            _ => Extent::unknown(),
        };
        (cost, result)
    }
}
