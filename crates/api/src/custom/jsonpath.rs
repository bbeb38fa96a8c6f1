//! JSONPath in kubectl's dialect, as far as printer columns use it: `.spec.replicas`, `.items[0]`, `.list[*].name`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels['app\.kubernetes\.io/name']`.

use serde_json::Value;

/// A path into an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// Counted from the end where it is negative.
    Index(i64),
    Every,
    /// From, to (the end, where it is not said), and every how manieth; the first two counted as in an index.
    Slice(i64, Option<i64>, usize),
    /// What of the items is compared, how (empty: it must be there), and with what.
    Filter(Path, String, Value),
}

/// Steps beyond this many are refused.
const MAX_STEPS: usize = 64;

impl Path {
    /// Reads a path; the outer braces of kubectl's templates may be there.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() >= MAX_STEPS {
                return Err(format!("more than {MAX_STEPS} steps"));
            }
            let (step, after) = if let Some(inside) = rest.strip_prefix('[') {
                bracket(inside)?
            } else if let Some(after) = rest.strip_prefix(".[") {
                bracket(after)?
            } else if let Some(after) = rest.strip_prefix('.') {
                field(after)?
            } else if steps.is_empty() {
                field(rest)?
            } else {
                return Err(format!("unexpected {rest:?}"));
            };
            steps.push(step);
            rest = after;
        }
        Ok(Self(steps))
    }

    /// The path as fields alone, where it is nothing else: `.spec.a` is `[spec, a]`.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let field = |step: &'_ Step| matches!(step, Step::Field(_));
        if self.0.is_empty() || !self.0.iter().all(field) {
            return None;
        }
        let names = self.0.iter().filter_map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        Some(names.collect())
    }

    /// The first value that the path leads to.
    pub fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        first(&self.0, object)
    }
}

fn first<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => first(rest, value.get(name)?),
        Step::Index(index) => {
            let items = value.as_array()?;
            let back = usize::try_from(index.unsigned_abs()).ok()?;
            let at = if *index < 0 { items.len().checked_sub(back)? } else { back };
            first(rest, items.get(at)?)
        }
        Step::Every => match value {
            Value::Array(items) => items.iter().find_map(|item| first(rest, item)),
            Value::Object(fields) => fields.values().find_map(|item| first(rest, item)),
            _ => None,
        },
        Step::Filter(path, operator, wanted) => {
            let mut items = value.as_array()?.iter().filter(|item| holds(path.first(item), operator, wanted));
            items.find_map(|item| first(rest, item))
        }
        Step::Slice(from, to, step) => {
            let items = value.as_array()?;
            let length = i64::try_from(items.len()).ok()?;
            let index = |at: i64| usize::try_from(if at < 0 { at.saturating_add(length) } else { at }).ok();
            let to = index(to.unwrap_or(length))?.min(items.len());
            items.get(index(*from)?..to)?.iter().step_by(*step).find_map(|item| first(rest, item))
        }
    }
}

fn holds(found: Option<&Value>, operator: &str, wanted: &Value) -> bool {
    let Some(found) = found else { return false };
    let order = match (found, wanted) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match operator {
        "" => true,
        "==" => order.is_some_and(|order| order.is_eq()),
        "!=" => order.is_none_or(|order| order.is_ne()),
        "<" => order.is_some_and(|order| order.is_lt()),
        "<=" => order.is_some_and(|order| order.is_le()),
        ">" => order.is_some_and(|order| order.is_gt()),
        _ => order.is_some_and(|order| order.is_ge()),
    }
}

/// A field's name up to the next `.` or `[`; `\` escapes.
fn field(text: &str) -> Result<(Step, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return named(name, text.get(at..).unwrap_or("")),
            c => name.push(c),
        }
    }
    named(name, "")
}

fn named(name: String, rest: &str) -> Result<(Step, &str), String> {
    match name.as_str() {
        "" => Err("a field without a name".to_owned()),
        "*" => Ok((Step::Every, rest)),
        _ => Ok((Step::Field(name), rest)),
    }
}

/// What is between brackets.
fn bracket(text: &str) -> Result<(Step, &str), String> {
    if let Some(filter) = text.strip_prefix("?(") {
        let (inside, rest) = filter.split_once(")]").ok_or("a filter is not closed")?;
        return Ok((comparison(inside)?, rest));
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = text.strip_prefix(quote) {
            let (name, rest) = quoted.split_once(&format!("{quote}]")).ok_or("a quoted name is not closed")?;
            return Ok((Step::Field(name.replace('\\', "")), rest));
        }
    }
    let (inside, rest) = text.split_once(']').ok_or("a bracket is not closed")?;
    // Of several, the first has what is shown.
    let mut steps = inside.split(',').map(|part| index(part.trim())).collect::<Result<Vec<_>, _>>()?;
    Ok((steps.swap_remove(0), rest))
}

/// `*`, an index, or a slice `from:to:step` of which any part may be left out. Upstream takes an empty one for `0:1`.
fn index(text: &str) -> Result<Step, String> {
    let wrong = || format!("invalid array index {text}");
    let number = |part: &str| if part.is_empty() { Ok(None) } else { part.parse().map(Some).map_err(|_| wrong()) };
    if text == "*" {
        return Ok(Step::Every);
    }
    let parts = text.split(':').map(number).collect::<Result<Vec<Option<i64>>, _>>()?;
    match (text, &parts[..]) {
        ("", _) => Ok(Step::Index(0)),
        (_, [Some(index)]) => Ok(Step::Index(*index)),
        (_, [from, to]) => Ok(Step::Slice(from.unwrap_or(0), *to, 1)),
        (_, [from, to, step]) => {
            let step = usize::try_from(step.unwrap_or(1)).ok().filter(|step| *step > 0).ok_or_else(wrong)?;
            Ok(Step::Slice(from.unwrap_or(0), *to, step))
        }
        _ => Err(wrong()),
    }
}

fn comparison(text: &str) -> Result<Step, String> {
    let path = |text: &str| Path::parse(text.trim().strip_prefix('@').ok_or("a filter is about @")?);
    // The first one that stands there: what it is compared with may have another.
    let found =
        ["==", "!=", "<=", ">=", "<", ">"].into_iter().filter_map(|operator| Some((text.find(operator)?, operator)));
    let Some((at, operator)) = found.min_by_key(|(at, _)| *at) else {
        return Ok(Step::Filter(path(text)?, String::new(), Value::Null));
    };
    let (left, right) = text.split_at(at);
    let right = right.strip_prefix(operator).unwrap_or(right);
    let right = right.trim();
    let quoted = ['\'', '"'].iter().find_map(|quote| right.strip_prefix(*quote)?.strip_suffix(*quote));
    let wanted = match quoted {
        Some(text) => text.into(),
        None => serde_json::from_str(right).map_err(|_| format!("{right:?} is no value"))?,
    };
    Ok(Step::Filter(path(left)?, operator.to_owned(), wanted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_compare_what_is_of_one_type() {
        let object = json!({ "items": [
            { "name": "none" }, { "name": "number", "v": 2 }, { "name": "text", "v": "m" },
            { "name": "no", "v": false },
            { "name": "yes", "v": true }, { "name": "odd", "v": "a==b<c" }] });
        let table = [
            ("@.v", "number"),
            ("@.v==2", "number"),
            ("@.v==2.0", "number"),
            ("@.v!=2", "text"),
            ("@.v<3", "number"),
            ("@.v<2", ""),
            ("@.v<=2", "number"),
            ("@.v<=1", ""),
            ("@.v>1", "number"),
            ("@.v>2", ""),
            ("@.v>=2", "number"),
            ("@.v>=3", ""),
            ("@.v == 'm'", "text"),
            ("@.v>'l'", "text"),
            ("@.v>'m'", ""),
            ("@.v<'m'", "odd"),
            ("@.v!='m'", "number"),
            ("@.v==true", "yes"),
            ("@.v==false", "no"),
            ("@.v>false", "yes"),
            ("@.v=='a==b<c'", "odd"),
            ("@.v!='a==b<c'", "number"),
            ("@.name<'no'", ""),
            ("@.w!=1", ""),
        ];
        for (filter, wanted) in table {
            let path = Path::parse(&format!(".items[?({filter})].name")).expect(filter);
            assert_eq!(path.first(&object).and_then(Value::as_str).unwrap_or(""), wanted, "{filter}");
        }
    }

    #[test]
    fn paths_lead_where_kubectls_do() {
        let object = json!({
            "metadata": { "labels": { "app.kubernetes.io/name": "web" } },
                "spec": { "n": 3, "list": [{ "a": 1 }, { "a": 2 }] },
            "status": { "conditions": [{ "type": "Synced", "status": "False" },
                { "type": "Ready", "status": "True" }] },
        });
        let table = [
            (".spec.n", Some(json!(3))),
            ("{.spec.n}", Some(json!(3))),
            (".spec.list[1].a", Some(json!(2))),
            (".spec.list[-1].a", Some(json!(2))),
            (".spec.list[*].a", Some(json!(1))),
            (".spec.list[?(@.a>1)].a", Some(json!(2))),
            (".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True"))),
            (".status.conditions[?(@.type=='Gone')].status", None),
            (".metadata.labels['app.kubernetes.io/name']", Some(json!("web"))),
            (".metadata.labels.app\\.kubernetes\\.io/name", Some(json!("web"))),
            (".spec.list[9]", None),
            (".spec.list[].a", Some(json!(1))),
            (".spec.list[1:].a", Some(json!(2))),
            (".spec.list[-1:].a", Some(json!(2))),
            (".spec.list[:1].a", Some(json!(1))),
            (".spec.list[0:9:2].a", Some(json!(1))),
            (".spec.list[1,0].a", Some(json!(2))),
            (".spec.list[2:1].a", None),
            (".spec.list[9:].a", None),
            (".spec.list[-2].a", Some(json!(1))),
            (".spec.list[-3].a", None),
            ("spec.n", Some(json!(3))),
            ("$.spec.n", Some(json!(3))),
            (".spec['list'].[1].a", Some(json!(2))),
            (".spec.*", Some(json!([{ "a": 1 }, { "a": 2 }]))),
            (".metadata.labels.*", Some(json!("web"))),
            (".metadata.labels[*]", Some(json!("web"))),
            (".spec.n.*", None),
        ];
        for (path, wanted) in table {
            assert_eq!(Path::parse(path).expect(path).first(&object).cloned(), wanted, "{path}");
        }
        for bad in [".a[", ".a[x]", ".a[0:1:0]", ".a[1:2:3:4]", ".a[0,x]", "..a", ".a[?(b)]", ".a[?(@.b==)]", ".a]["] {
            let parsed = Path::parse(bad);
            assert!(parsed.is_err() || bad == ".a][", "{bad}: {parsed:?}");
        }
        // Of steps there is a bound, and what follows one begins with a dot or a bracket.
        let deep = |steps: usize| Path::parse(&".a".repeat(steps)).map(|path| path.0.len());
        assert_eq!((deep(MAX_STEPS), deep(MAX_STEPS + 1).is_err()), (Ok(MAX_STEPS), true));
        assert_eq!(Path::parse(".a[0]b"), Err("unexpected \"b\"".to_owned()));
        for none in ["", ".a[0]", ".a[*].b", "[0].a"] {
            assert_eq!(Path::parse(none).unwrap().fields(), None, "{none}");
        }
        assert_eq!(Path::parse(".spec.n").map(|path| path.fields().map(|f| f.join("/"))), Ok(Some("spec/n".into())));
    }
}
