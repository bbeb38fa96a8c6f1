//! What rules are estimated to cost: upstream's own figures, of values without limits and with.

use serde_json::{Value, json};

use super::rule_cost::estimate;
use super::rules::{environment, type_of};
use super::schema::Schema;

fn cost(schema: &Value, rule: &str) -> u64 {
    let compiled = Schema::compile(schema);
    let type_ = type_of(&compiled, compiled.format(), false, "object").expect("a type");
    let program = environment(&type_, false).compile(rule).unwrap_or_else(|_| panic!("{rule}"));
    estimate(program.node(), schema)
}

fn plain(kind: &str) -> Value {
    match kind {
        "int-or-string" => json!({ "x-kubernetes-int-or-string": true }),
        "date" | "date-time" | "duration" | "byte" => json!({ "type": "string", "format": kind }),
        "list" => list(plain("number")),
        "map" => map(plain("number")),
        // `{"required":""}` at least.
        "object" => json!({ "type": "object", "required": ["required"], "properties": {
            "required": { "type": "string" }, "other": { "type": "string" } } }),
        kind => json!({ "type": kind }),
    }
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn map(values: Value) -> Value {
    json!({ "type": "object", "additionalProperties": values })
}

/// A list, a map or a string with a limit.
fn limited(mut schema: Value, limit: u64) -> Value {
    let name = match schema["type"].as_str() {
        Some("array") => "maxItems",
        Some("object") => "maxProperties",
        _ => "maxLength",
    };
    schema[name] = limit.into();
    schema
}

/// What differs from upstream's figures: a schema without limits, a limit, and what a rule costs without it and with.
fn differing(table: impl IntoIterator<Item = (Value, u64, &'static str, u64, u64)>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (schema, limit, rule, without, with) in table {
        for (schema, expected) in [(schema.clone(), without), (limited(schema, limit), with)] {
            let found = cost(&schema, rule);
            // More than any rule may cost.
            let is_too_much = expected == u64::MAX && found > super::rule_check::STATIC_LIMIT;
            if found != expected && !is_too_much {
                wrong.push(format!("{rule} {schema}: {found} for {expected}"));
            }
        }
    }
    wrong
}

#[test]
fn lists_and_maps_cost_what_as_many_items_do_as_fit_into_a_request() {
    let table = [
        (list(plain("number")), 4_718_591),
        (list(plain("string")), 3_145_727),
        (list(plain("boolean")), 1_887_437),
        (list(plain("list")), 3_145_727),
        (list(plain("object")), 555_128),
        (list(plain("int-or-string")), 4_718_591),
        (list(plain("duration")), 2_359_295),
        (list(plain("date")), 725_936),
        (list(plain("date-time")), 428_963),
        (map(plain("number")), 1_348_169),
        (map(plain("string")), 1_179_647),
        (map(plain("boolean")), 943_718),
        (map(plain("int-or-string")), 1_348_169),
        (map(plain("object")), 428_963),
        (map(plain("map")), 1_179_647),
        (map(plain("list")), 1_179_647),
        (map(plain("duration")), 1_048_577),
        (map(plain("date")), 524_288),
        (map(plain("date-time")), 349_526),
    ];
    assert_eq!(differing(table.map(|(schema, without)| (schema, 10, "self.all(x, true)", without, 32))), [""; 0]);
    // What the server fills in need not be in a request.
    let mut filled_in = plain("object");
    filled_in["properties"]["required"]["default"] = "".into();
    assert_eq!(cost(&list(filled_in), "self.all(x, true)"), cost(&list(plain("string")), "self.all(x, true)"));
}

#[test]
fn operators_and_functions_cost_what_they_look_at() {
    let table = [
        (plain("string"), 10, "self.contains('test')", 314_574, 5),
        (plain("string"), 15, "self.startsWith('test')", 2, 2),
        (plain("string"), 30, "self.endsWith('test')", 2, 2),
        (plain("string"), 4, "size(self + \"hello\") > size(\"hello\")", 314_578, 7),
        (list(plain("number")), 5000, "self[1] == 0.0", 2, 2),
        (list(plain("string")), 8, "self[1] == self[1]", 314_577, 314_577),
        (list(plain("number")), 10, "self.all(x, self.all(y, true))", u64::MAX, 352),
        (list(plain("number")), 10, "self.all(x, self.all(y, self.all(z, true)))", u64::MAX, 3552),
        (plain("string"), 50, "self.matches(\"x\")", 314_574, 22),
        (plain("string"), 10, "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 7),
        (plain("string"), 100, "self.matches(\"\")", 1, 1),
        (list(plain("number")), 0, "self[3] == 0.0", 2, 2),
        (map(plain("number")), 0, "self[\"x\"] == 0.0", 2, 2),
        (plain("string"), 0, "self == \"x\"", 2, 1),
        (plain("byte"), 0, "self == b\"x\"", 2, 1),
        (list(plain("number")), 3 * 1024 * 2048, "self.all(x, x == 0.0)", 6_291_454, 25_165_826),
        (list(plain("int-or-string")), 10, "self[0] == 5", 3, 3),
        (list(plain("boolean")), 25, "self[0] == false", 2, 2),
        (list(plain("object")), 422, "self[0] == null", 2, 2),
        (list(plain("list")), 51, "self[0][0] == -1.0", 3, 3),
        (list(map(plain("number"))), 12, "self.all(x, x.y == 25.2)", 6_291_452, 74),
        (list(map(plain("number"))), 3000, "self[0].x > 2.0", 4, 4),
        (list(plain("duration")), 525, "self[0].getHours() == 2", 4, 4),
        (list(plain("date")), 42, "self[2].getDayOfMonth() == 13", 4, 4),
        (list(plain("date-time")), 99, "self[2].getMinutes() == 45", 4, 4),
        (plain("string"), 10, "self.find('[0-9]+') == ''", 629_147, 11),
        (plain("string"), 10, "self.lowerAscii() == 'lower!'", 314_575, 6),
        (map(plain("duration")), 42, "self[\"c\"] == self[\"d\"]", 8, 8),
        (map(plain("integer")), 10, "oldSelf.size() == self.size()", 5, 5),
        (map(plain("date-time")), 7, "self[\"a\"] == self[\"b\"]", 8, 8),
        // What looks at a number alone costs one.
        (list(plain("integer")), 10, "self[0] + self[1] > 2", 6, 6),
        (list(plain("integer")), 10, "string(self[0]).startsWith('1')", 4, 4),
        (json!({ "type": "string", "enum": ["A", "LongValue", "B"] }), 1000, "self.contains('A')", 2, 401),
    ];
    assert_eq!(differing(table), [""; 0]);
}

#[test]
fn texts_in_lists_and_objects_cost_their_length() {
    let text = |limit: Option<u64>| limit.map_or(plain("string"), |limit| limited(plain("string"), limit));
    let texts = |limit: Option<u64>| limit.map_or(list(text(limit)), |some| limited(list(text(limit)), some));
    let replaced = |limit: Option<u64>| {
        json!({ "type": "object", "properties": {
            "str": text(limit), "before": text(Some(2)), "after": text(Some(4)) } })
    };
    let replace = "self.str.replace(self.before, self.after) == 'does not matter'";
    let table = [
        (texts(None), "self.isSorted() == true", 329_854_432_052),
        (texts(Some(10)), "self.isSorted() == true", 52),
        (texts(None), "self.join(' ') == 'aa bb'", 329_853_068_905),
        (texts(Some(10)), "self.join(' ') == 'aa bb'", 43),
        (replaced(None), replace, 629_154),
        (replaced(Some(4)), replace, 12),
    ];
    for (schema, rule, expected) in table {
        assert_eq!(cost(&schema, rule), expected, "{rule} {schema}");
    }
}
