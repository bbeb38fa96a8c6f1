//! Expressions: what they come to, what they cost, and what does not compile.

use std::sync::Arc;

use serde_json::json;

use super::types::Object;
use super::*;

fn evaluated(text: &str) -> Result<serde_json::Value, String> {
    let self_ = json!({
        "replicas": 3, "name": "web", "ports": [80, 443], "labels": { "a.b/c": "x", "tier": "db" },
        "items": [{ "name": "a", "n": 1 }, { "name": "b", "n": 2 }], "none": null, "ratio": 1.5, "namespace": "ns",
    });
    let environment = Environment::new([("self", Type::Dyn), ("variables.limit", Type::Int)]);
    let values = [("self", Value::json(&self_)), ("variables.limit", Value::Int(5))];
    let program = environment.compile(text).map_err(|faults| faults[0].message.clone())?;
    let value = program.evaluate(&values, &mut Budget::of(PER_CALL_LIMIT)).map_err(|error| error.to_string())?;
    Ok(value.to_json())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn expressions_have_cel_gos_values() {
    let table = [
        ("1 + 2 * 3", json!(7)),
        ("-(2 + 3) % 3", json!(-2)),
        ("0x1F + 1", json!(32)),
        ("7u / 2u", json!(3)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("1.5e3 > 1", json!(true)),
        ("'a' + \"b\" + r'\\n' + '\\x41\\u00e9\\101'", json!("ab\\nAéA")),
        ("'''it's'''", json!("it's")),
        ("b'abc' == bytes('abc')", json!(true)),
        ("true ? 'y' : 'n'", json!("y")),
        ("!true || 1 < 2 && 2 <= 2", json!(true)),
        ("1 / 0 == 1 || true", json!(true)),
        ("false && 1 / 0 == 1", json!(false)),
        ("1 == dyn(1.0) && 1u == dyn(1)", json!(true)),
        ("dyn(1) == dyn('1')", json!(false)),
        ("[1, 2] == [1, 2] && {'a': 1} == {'a': 1}", json!(true)),
        ("2 in [1, 2] && 'a' in {'a': 1} && !(3 in [1])", json!(true)),
        ("[1, 2][1] + {'a': 5}['a']", json!(7)),
        ("{'a': 1, 2: 'b'}", json!({ "a": 1, "2": "b" })),
        ("size('äö') + [1].size() + size({'a': 1})", json!(4)),
        ("self.replicas <= variables.limit", json!(true)),
        ("has(self.name) && !has(self.nope)", json!(true)),
        ("self.none == null", json!(true)),
        (
            "self.ports.all(p, p > 0) && self.ports.exists(p, p == 443) && self.ports.exists_one(p, p < 100)",
            json!(true),
        ),
        ("self.items.map(i, i.name)", json!(["a", "b"])),
        ("self.items.map(i, i.n > 1, i.name)", json!(["b"])),
        ("self.items.filter(i, i.n > 1)[0].name", json!("b")),
        ("self.labels.all(k, k.size() > 2)", json!(true)),
        ("self.labels.exists(k, v, v == 'db')", json!(true)),
        ("self.ports.transformList(i, v, i + v)", json!([80, 444])),
        ("self.labels.transformMap(k, v, v + '!')", json!({ "a.b/c": "x!", "tier": "db!" })),
        ("self.labels.transformMapEntry(k, v, {v: k})", json!({ "x": "a.b/c", "db": "tier" })),
        ("self.items.sortBy(i, -i.n).map(i, i.n)", json!([2, 1])),
        ("cel.bind(x, self.replicas, x * x)", json!(9)),
        ("self.?name.orValue('none') + self.?nope.?deeper.orValue('none')", json!("webnone")),
        ("self.?nope.hasValue() || optional.of(1).hasValue()", json!(true)),
        ("self.?replicas.optMap(r, r + 1).value()", json!(4)),
        ("[1, ?self.?nope, ?self.?replicas]", json!([1, 3])),
        ("{?'a': self.?nope, ?'b': self.?name}", json!({ "b": "web" })),
        ("self.ports[?5].orValue(1) + self.labels[?'tier'].orValue('')  .size()", json!(3)),
        ("optional.none().or(optional.of(2)).value()", json!(2)),
        ("type(1) == int && type('a') == string && type(self) == map", json!(true)),
        ("type(timestamp('2024-01-02T03:04:05Z')) == google.protobuf.Timestamp", json!(true)),
        ("int('42') + int(3.9) + int(true ? 1u : 2u)", json!(46)),
        ("string(1.0) + string(1.5) + string(true)", json!("11.5true")),
        ("'hello'.substring(1, 3) + 'hello'.charAt(4) + 'HELLO'.lowerAscii()", json!("elohello")),
        ("'a,b,c'.split(',').join('-') + 'aXbX'.replace('X', '', 1)", json!("a-b-cabX")),
        ("'hello hello'.indexOf('ell', 3) + 'hello hello'.lastIndexOf('hello')", json!(13)),
        ("' a '.trim().startsWith('a') && 'abc'.endsWith('bc') && 'abc'.contains('b')", json!(true)),
        ("'abc'.matches('^[a-c]+$') && matches('x', 'x|y')", json!(true)),
        ("'abc 123'.find('[0-9]+') + 'a1b2'.findAll('[0-9]').join()", json!("12312")),
        ("'%s has %d (%.2f, %x)'.format(['a', 3, 1.005, 255])", json!("a has 3 (1.00, ff)")),
        ("[1, 2, 3].sum() + [3, 1].min() + [3, 1].max() + [5, 6].indexOf(6)", json!(11)),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", json!(true)),
        ("sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])", json!(true)),
        ("[3, 1, 3].distinct().sort()", json!([1, 3])),
        ("duration('1h30m') > duration('60m') && duration('90s').getMinutes() == 1", json!(true)),
        ("timestamp('2024-02-29T12:30:00Z').getDayOfYear('Europe/Berlin')", json!(59)),
        ("string(timestamp('2024-01-01T00:00:00Z') + duration('24h'))", json!("2024-01-02T00:00:00Z")),
        (
            "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(20).compareTo(quantity('50020')) == \
                0",
            json!(true),
        ),
        ("isQuantity('20Mi') && !isQuantity('x') && quantity('1.5').asApproximateFloat() == 1.5", json!(true)),
        ("url('https://a.b:8080/p%20q?x=1&x=2').getQuery()", json!({ "x": ["1", "2"] })),
        ("url('https://[::1]:80/a').getHostname() + url('https://u@h:1/').getPort()", json!("::11")),
        ("isURL('/a/b') && !isURL('a b') && !isURL('../a')", json!(true)),
        ("ip('192.168.0.1').family() == 4 && ip('::1').isLoopback() && !isIP('::ffff:1.2.3.4')", json!(true)),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsCIDR('0.0.0.0/0')", json!(true)),
        ("string(cidr('10.1.2.3/8').masked()) + string(cidr('fd00::1/64').ip())", json!("10.0.0.0/8fd00::1")),
        ("semver('1.2.3-rc.1').isLessThan(semver('1.2.3')) && isSemver('v1', true) && !isSemver('v1')", json!(true)),
        (
            "format.dns1123Label().validate('Bad').hasValue() && \
                !format.named('uuid').value().validate('x').value().isSorted()",
            json!(false),
        ),
        ("!format.dns1123Label().validate('good').hasValue()", json!(true)),
        ("self.`namespace` + self.labels['a.b/c']", json!("nsx")),
        ("{'a': [1, {'b': 2}]}.a[1].b", json!(2)),
        ("[[1], [2, [3]]].flatten()", json!([1, 2, [3]])),
        ("math.greatest(1, 3, 2) + math.least([4, 2])", json!(5)),
        ("base64.encode(b'hi') + string(base64.decode('aGk='))", json!("aGk=hi")),
        ("1 < 2 // a comment", json!(true)),
    ];
    for (text, wanted) in table {
        assert_eq!(evaluated(text), Ok(wanted), "{text}");
    }
}

#[test]
fn faults_are_told_in_cel_gos_words() {
    let table = [
        ("self.nope", "no such key: nope"),
        ("self.ports[2]", "index out of bounds: 2"),
        ("self.labels['x']", "no such key: x"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("self.name + self.replicas", "no such overload"),
        ("self.name.nope", "no such overload"),
        ("int('x')", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("optional.none().value()", "optional.none() dereference"),
        ("foo", "undeclared reference to 'foo' (in container '')"),
        ("foo(1)", "undeclared reference to 'foo' (in container '')"),
        ("1 + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("1 == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("'a'.size(1)", "found no matching overload for 'size' applied to 'string.(int)'"),
        ("1 && true", "found no matching overload for '_&&_' applied to '(int, bool)'"),
        ("variables.limit.x", "type 'int' does not support field selection"),
        (
            "1.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("self.ports.all(p, 1)", "expected type 'bool' but found 'int'"),
        ("(1", "Syntax error: mismatched input '<EOF>' expecting ')'"),
        ("'a' 'b'", "Syntax error: mismatched input '\"b\"' expecting <EOF>"),
        ("a $ b", "Syntax error: token recognition error at: '$'"),
        ("'abc", "Syntax error: token recognition error at: '''"),
        ("has(self)", "invalid argument to has() macro"),
        ("self.ports.all(p.q, true)", "argument must be a simple name"),
        ("for", "reserved identifier: for"),
        ("{'a': 1, 'a': 2}", "insert failed: key a already exists"),
    ];
    for (text, wanted) in table {
        let found = evaluated(text).expect_err(text);
        assert!(found == wanted, "{text}: {found}");
    }
    assert!(evaluated("'a'.matches('[')").expect_err("no pattern").starts_with("error parsing regexp"));
    let faults = Environment::new([("self", Type::Int)]).compile("self ==\n  self.x").expect_err("a fault");
    assert_eq!(
        faults_shown(&faults, "self ==\n  self.x"),
        "ERROR: <input>:2:7: type 'int' does not support field selection\n |   self.x\n | ......^"
    );
}

#[test]
fn declared_types_give_values_their_meaning_and_fields_their_names() {
    let keys: Arc<[Box<str>]> = Arc::from([Box::from("k")]);
    let item = Object::new("item", [("k".into(), Type::String), ("v".into(), Type::Int)]);
    let fields: [(Box<str>, Type); 7] = [
        ("at".into(), Type::Timestamp),
        ("ratio".into(), Type::Double),
        ("my-field".into(), Type::String),
        ("namespace".into(), Type::String),
        ("set".into(), Type::List(Arc::new(Type::Int), types::ListKind::Set)),
        ("keyed".into(), Type::List(Arc::new(Type::Object(Arc::new(item))), types::ListKind::Map(keys))),
        ("bytes".into(), Type::Bytes),
    ];
    let type_ = Type::Object(Arc::new(Object::new("object", fields)));
    let environment = Environment::new([("self", type_.clone())]);
    let object = json!({ "at": "2024-01-01T00:00:00Z", "ratio": 2, "my-field": "m", "namespace": "n", "set": [1, 2],
        "keyed": [{ "k": "a", "v": 1 }, { "k": "b", "v": 2 }], "bytes": "aGk=" });
    let table = [
        "self.at.getFullYear() == 2024",
        "self.ratio / 4.0 == 0.5",
        "self.my__dash__field + self.__namespace__ == 'mn'",
        "self.`my-field` == 'm'",
        "self.set == [2, 1]",
        "self.set + [2, 3] == [3, 2, 1]",
        "self.keyed.exists(e, e.k == 'a' && e.v == 1)",
        "string(self.bytes) == 'hi'",
        "!has(self.keyed[0].k) || self.keyed[1].v == 2",
    ];
    for text in table {
        let program = environment.compile(text).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
        let values = [("self", Value::of(&object, &type_))];
        let value = program.evaluate(&values, &mut Budget::of(PER_CALL_LIMIT)).map(|value| value.as_bool());
        assert_eq!(value, Ok(Some(true)), "{text}");
    }
    let fault = environment.compile("self.nope == 1").expect_err("no such field");
    assert_eq!(fault[0].message, "undefined field 'nope'");
    let fault = environment.compile("self.ratio == 1").expect_err("another type");
    assert_eq!(fault[0].message, "found no matching overload for '_==_' applied to '(double, int)'");
}

#[test]
fn x4_an_evaluation_ends_when_its_budget_is_spent() {
    let hostile = [
        "lists.range(1000).all(a, lists.range(1000).all(b, lists.range(1000).all(c, true)))",
        "lists.range(9223372036854775807).size() > 0",
        "lists.range(200000).map(x, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace('', \
            'bbbbbbbbbbbbbbbbbbbb')).size() > 0",
        "cel.bind(a, 'aaaaaaaaaaaaaaaa', cel.bind(b, a.replace('a', a), cel.bind(c, b.replace('a', b), c.replace('a', \
            c)))) == ''",
        "lists.range(100000).distinct().size() == 1",
        "lists.range(3000).exists(x, '%d'.format([x]).matches('^' + string(x) + '(a{1,200}){1,100}$') && false)",
    ];
    for text in hostile {
        let start = std::time::Instant::now();
        let found = evaluated(text).expect_err(text);
        let is_bounded = found == Error::Budget.to_string() || found.starts_with("error parsing regexp");
        assert!(is_bounded, "{text}: {found}");
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{text}: {:?}", start.elapsed());
    }
}

#[test]
fn x4_texts_that_are_nested_without_end_take_no_more_stack() {
    let deep = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(20_000 / open.len()), close.repeat(20_000 / open.len()))
    };
    let mut chain = "self".to_owned();
    for _ in 0..60 {
        chain = format!("({chain}{})", ".a".repeat(60));
    }
    let texts = [
        deep("(", "1", ")"),
        deep("[", "1", "]"),
        deep("{1:", "1", "}"),
        deep("!", "true", ""),
        deep("-", "1u", ""),
        deep("- -", "(1u)", ""),
        deep("f(", "1", ")"),
        deep("true?", "1", ":2"),
        deep("true?1:", "1", ""),
        format!("self{}", ".a".repeat(10_000)),
        format!("self{}", "[0]".repeat(10_000)),
        format!("1{}", "+1".repeat(10_000)),
        chain,
        "(".repeat(200_000),
    ];
    for text in texts {
        let head: String = text.chars().take(20).collect();
        match Environment::new([("self", Type::Dyn)]).compile(&text) {
            Err(faults) => assert!(!faults.is_empty(), "{head}"),
            Ok(program) => assert!(program.evaluate(&[("self", Value::Null)], &mut Budget::of(10)).is_ok(), "{head}"),
        }
    }
    // Many parts side by side are no depth.
    let wide = vec!["true"; 10_000].join("&&");
    assert_eq!(evaluated(&wide), Ok(json!(true)));
}

#[test]
fn variables_are_asked_for_only_when_they_are_used() {
    struct Lazy(std::cell::Cell<u32>);
    impl Bindings<'static> for Lazy {
        fn look_up(&self, name: &str) -> Option<Result<Value<'static>, Error>> {
            self.0.set(self.0.get() + 1);
            (name == "variables.a").then(|| Ok(Value::Int(1)))
        }
    }
    let environment = Environment::new([("variables.a", Type::Int), ("variables.b", Type::Int)]);
    let program = environment.compile("variables.a == 1 || variables.b == 1").expect("sound");
    let lazy = Lazy(std::cell::Cell::new(0));
    let value = program.evaluate(&lazy, &mut Budget::of(100)).map(|value| value.as_bool());
    assert_eq!((value, lazy.0.get()), (Ok(Some(true)), 1));
    assert!(program.uses("variables.b") && !program.uses("variables.c"));
}
