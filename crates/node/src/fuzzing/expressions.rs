//! Rules and policies: expressions that anybody who may write a CustomResourceDefinition brings along, over objects
//! that anybody else writes. Parsed, checked and evaluated within a budget; their code is in `api`.

use mainstay_api::cel::{Budget, Environment, Type, Value};
use mainstay_runtime::fuzzing::{join, parts};
use serde_json::json;

/// What one evaluation may cost here: a tenth of what it may in earnest, so that thousands are tried.
const COST: u64 = 100_000;
/// How much more than its budget an evaluation may have spent when it stops: the last call is counted whole.
const LAST_CALL: u64 = 64 << 20;

const EXPRESSIONS: [&str; 14] = [
    "self.spec.replicas <= n && self.metadata.name.startsWith(text)",
    "list.all(x, x > 0) && list.exists_one(x, x == 2) && list.map(x, x * x).filter(x, x % 2 == 0).size() == n",
    "has(self.spec.a) ? self.spec.a : oldSelf.spec.?b.orValue([1, 2.5, 3u, b'x', null])",
    "text.matches('^[a-z]+$') || text.find('[0-9]*') == '' || text.split(',', 3).join('-').replace('a', 'bb') == text",
    "duration('1h30m') > duration('5s') && timestamp('2026-11-21T22:00:00Z').getHours('+01:00') < 24",
    "quantity('1.5Gi').isGreaterThan(quantity('500M')) && quantity('1k').add(2).asInteger() == 1002",
    "ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && url('https://a:1/b?c=d').getPort() \
        == '1'",
    "cel.bind(x, list + list, x.sum() + x.max() + x.indexOf(3)) == n",
    "{'a': 1, 'b': {'c': [1]}}['b'].c[0] == int('1') && string(n) + text == 'x' && double(n) / 0.0 > 1.0",
    "list.map(a, list.map(b, list.map(c, a + b + c))).size() > 0",
    "-9223372036854775808 + n * 9223372036854775807 == 0 || 18446744073709551615u % 2u == 1u",
    "text.format([1]) == '' || '%s %d %.2f %x %b'.format([text, n, 1.5, n, n]) != ''",
    "semver('1.2.3').isLessThan(semver('1.2.4')) && optional.of(1).hasValue() && type(n) == int && n in list",
    "text.charAt(0) + text.lowerAscii() + text.substring(1) + text.trim() + strings.quote(text) + r'\\' + '\\u00e9'",
];

const OBJECT: &str = r#"{"metadata":{"name":"abc"},"spec":{"replicas":3,"a":[1,2],"b":{"c":null,"d":1.5}},"text":"a,b,cc","n":2,"list":[1,2,3]}"#;

/// An expression and an object each.
pub fn seeds() -> Vec<Vec<u8>> {
    EXPRESSIONS.iter().map(|expression| join(&[expression.as_bytes(), OBJECT.as_bytes()])).collect()
}

/// One expression over one object.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(part(0)) else { return };
    let object = mainstay_api::schema::parse::parse(part(1)).map_or_else(|_| json!({}), |parsed| parsed.value);
    let environment = Environment::new([
        ("self", Type::Dyn),
        ("oldSelf", Type::Dyn),
        ("text", Type::String),
        ("n", Type::Int),
        ("list", Type::list(Type::Int)),
    ]);
    let program = match environment.compile(text) {
        Ok(program) => program,
        Err(faults) => {
            assert!(!faults.is_empty(), "a fault is named");
            mainstay_api::cel::faults_shown(&faults, text);
            return;
        }
    };
    let numbers = json!([1, 2, 3, 4]);
    let words = object.get("text").and_then(serde_json::Value::as_str).unwrap_or("x");
    let words = json!(words);
    let n = object.get("n").and_then(serde_json::Value::as_i64).unwrap_or(1);
    let values = [
        ("self", Value::json(&object)),
        ("oldSelf", Value::json(&object)),
        ("text", Value::json(&words)),
        ("n", Value::Int(n)),
        ("list", Value::json(&numbers)),
    ];
    let mut budget = Budget::of(COST);
    let _ = program.evaluate(&values, &mut budget);
    assert!(budget.spent() <= COST + LAST_CALL, "{} were spent", budget.spent());
}
