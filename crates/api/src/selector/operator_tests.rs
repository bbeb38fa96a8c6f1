//! Each operator of selectors, and what is none.

use serde_json::json;

use super::*;
use crate::kinds;

fn labels(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Upstream's documentation of each operator: what is absent differs from every value.
#[test]
fn conformance_each_operator_of_a_label_selector() {
    let (five, word, empty, none) =
        (labels(&[("n", "5")]), labels(&[("n", "web")]), labels(&[("n", "")]), labels(&[("m", "5")]));
    // Selects `five`, `word`, `empty`, `none`.
    for (text, expected) in [
        ("n=5", [true, false, false, false]),
        ("n==5", [true, false, false, false]),
        ("n=", [false, false, true, false]),
        ("n!=5", [false, true, true, true]),
        ("n!=", [true, true, false, true]),
        ("n in (5)", [true, false, false, false]),
        ("n in (web, 5)", [true, true, false, false]),
        ("n in ()", [false, false, true, false]),
        ("n in (,5)", [true, false, true, false]),
        ("n notin (web,5)", [false, false, true, true]),
        ("n notin (5)", [false, true, true, true]),
        ("n", [true, true, true, false]),
        ("!n", [false, false, false, true]),
        ("n>4", [true, false, false, false]),
        ("n>5", [false, false, false, false]),
        ("n<6", [true, false, false, false]),
        ("n<5", [false, false, false, false]),
        ("n>4,n<6", [true, false, false, false]),
        ("n,n!=5", [false, true, true, false]),
        ("", [true, true, true, true]),
        (" \t\r\n", [true, true, true, true]),
    ] {
        let selector = Labels::parse(text).expect("a selector");
        let selected = [&five, &word, &empty, &none].map(|labels| selector.matches(labels));
        assert_eq!(selected, expected, "{text}");
        let optional = [&five, &word, &empty, &none].map(|labels| selector.matches_option(Some(labels)));
        assert_eq!(optional, expected, "{text}");
        let json = [&five, &word, &empty, &none].map(|labels| selector.matches_json(Some(&json!(labels))));
        assert_eq!(json, expected, "{text}");
        assert_eq!(selector.matches_option(None), selector.matches(&BTreeMap::new()), "{text}");
        assert_eq!(selector.is_everything(), text.trim().is_empty(), "{text}");
    }
    let nothing = Labels::nothing();
    assert!(!nothing.is_everything() && !nothing.matches(&five) && !nothing.matches_option(None));
    assert!(Labels::everything().is_everything());
}

#[test]
fn conformance_label_selectors_are_read_and_written_as_upstream() {
    for (text, written) in [
        ("b = 1 , a", "a,b=1"),
        ("\ta!=x\n", "a!=x"),
        ("a==x", "a=x"),
        ("a in(z,y,y)", "a in (y,z)"),
        ("a notin(y)", "a notin (y)"),
        ("! a,b", "!a,b"),
        ("in in (in),notin=in", "in in (in),notin=in"),
        ("x.io/a>3,x.io/b<4", "x.io/a>3,x.io/b<4"),
        ("a in ( )", "a in ()"),
    ] {
        assert_eq!(Labels::parse(text).map(|all| all.to_string()).as_deref(), Ok(written), "{text}");
    }
    let of = |selector: Value| Labels::from_json(Some(&selector)).map(|all| all.to_string());
    let expression = |operator: &str, values: &[&str]| json!({ "key": "e", "operator": operator, "values": values });
    for (operator, values, written) in [
        ("In", &["b", "a"][..], "e in (a,b),l=1"),
        ("In", &["a"], "e in (a),l=1"),
        ("NotIn", &["a"], "e notin (a),l=1"),
        ("Exists", &[], "e,l=1"),
        ("DoesNotExist", &[], "!e,l=1"),
    ] {
        let selector = json!({ "matchLabels": { "l": "1" }, "matchExpressions": [expression(operator, values)] });
        assert_eq!(of(selector).as_deref(), Ok(written));
    }
    for operator in ["Gt", "Lt", "in", "", "Equals"] {
        assert!(of(json!({ "matchExpressions": [expression(operator, &["1"])] })).is_err(), "{operator}");
    }
    let both = Labels::parse("a=1").expect("a selector").and(Requirement {
        key: "b".to_owned(),
        operator: Operator::Gt,
        values: vec!["1".to_owned(), "9".to_owned()],
    });
    assert_eq!((both.to_string().as_str(), both.requirements().len()), ("a=1,b>1,9", 2));
    // The first value is the bound.
    assert!(both.matches(&labels(&[("a", "1"), ("b", "5")])) && !both.matches(&labels(&[("a", "1"), ("b", "1")])));
}

#[test]
fn conformance_what_is_no_label_selector_is_refused_in_upstreams_words() {
    let begins = "unable to parse requirement: ";
    for (text, word) in [
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        (",", "found ',', expected: !, identifier, or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        ("a,,b", "found ',', expected: identifier after ','"),
        ("a b", "found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a b c", "found 'b', expected: in,"),
        ("a in b", "found 'b' expected: '('"),
        ("a in", "found '' expected: '('"),
        ("a in (", "found '', expected: ',', ')' or identifier"),
        ("a in (b", "found '', expected: ',' or ')'"),
        ("a in (b,", "found '', expected: ',', or identifier"),
        ("a in (b) c", "found"),
        ("a>b", "values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer"),
        ("a<1.5", "the value must be an integer"),
        ("a>", "values[0]: Invalid value: \"\": for 'Gt', 'Lt' operators"),
        // What no label can be is no bound either.
        ("a>-5", "values[0][a]: Invalid value: \"-5\": a valid label must be an empty string or consist of"),
        ("a<+5", "values[0][a]: Invalid value: \"+5\""),
        ("a=b c", "values[0][a]: Invalid value: \"b c\""),
        ("a in (b,_)", "values[0][a]: Invalid value: \"_\""),
        ("a===b", "values[0][a]: Invalid value: \"=b\""),
        ("a=b=c", "values[0][a]: Invalid value"),
        ("-a", "<nil>: Invalid value: \"-a\""),
        ("!a=b", "<nil>: Invalid value"),
        ("!", "<nil>: Invalid value: \"\""),
        ("=b", "<nil>: Invalid value: \"\""),
        ("a/b/c", "<nil>: Invalid value: \"a/b/c\""),
        ("a\u{a0}=b", "Invalid value"),
        ("a=\u{2003}b", "Invalid value"),
    ] {
        let refused = Labels::parse(text).expect_err(text);
        assert!(refused.contains(word), "{text}: {refused}");
        assert_eq!(
            refused.starts_with(begins),
            !word.contains("identifier after") && !word.contains("end of"),
            "{text}"
        );
    }
}

#[test]
fn x4_selectors_have_a_length() {
    let of = |length: usize| {
        let longest = format!("a in ({})", "b,".repeat(MAX_SELECTOR / 2));
        format!("{}b)", &longest[..length - 2])
    };
    assert_eq!(of(MAX_SELECTOR).len(), MAX_SELECTOR);
    assert!(Labels::parse(&of(MAX_SELECTOR)).is_ok());
    assert!(Labels::parse(&of(MAX_SELECTOR + 1)).is_err_and(|refused| refused.contains("longer")));
    let field = |length: usize| format!("metadata.name={}", "b".repeat(length - "metadata.name=".len()));
    for (length, fits) in [(MAX_SELECTOR, true), (MAX_SELECTOR + 1, false)] {
        assert_eq!(Fields::parse(&kinds::POD, &field(length)).is_ok(), fits);
        assert_eq!(Fields::required_by(&field(length), "metadata.name").is_some(), fits);
    }
}

#[test]
fn conformance_each_operator_of_a_field_selector() {
    let pod = json!({ "metadata": { "name": "a", "namespace": "n" }, "spec": { "nodeName": "" },
        "status": { "phase": "Running" } });
    for (text, selected) in [
        ("", true),
        (",,", true),
        ("metadata.name=a", true),
        ("metadata.name==a", true),
        ("metadata.name!=a", false),
        ("metadata.name=b", false),
        ("metadata.namespace=n,status.phase=Running", true),
        ("metadata.namespace=n,status.phase=Failed", false),
        ("metadata.namespace=m,status.phase=Running", false),
        (",status.phase=Running,", true),
        ("spec.nodeName=", true),
        ("spec.nodeName!=", false),
        (r"metadata.name!=a\,b\=c\\", true),
        (r"metadata.name=a\\,status.phase=Running", false),
    ] {
        let fields = Fields::parse(&kinds::POD, text).expect("a selector");
        assert_eq!(fields.matches(&kinds::POD, &pod), selected, "{text}");
        assert_eq!(fields.is_everything(), text.replace(',', "").is_empty(), "{text}");
    }
    for (text, word) in [
        ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
        ("metadata.name!a", "can't understand 'metadata.name!a'"),
        ("metadata.name=a=b", "unescaped character: ="),
        (r"metadata.name=a\b", r"invalid escape sequence: \b"),
        (r"metadata.name=a\", r"invalid escape sequence: \"),
        ("spec.hostname=a", "field label not supported: spec.hostname"),
        ("=a", "field label not supported: "),
        ("metadata.name=a,spec.hostname!=b", "field label not supported: spec.hostname"),
    ] {
        let refused = Fields::parse(&kinds::POD, text).expect_err(text);
        assert!(refused.ends_with(word), "{text}: {refused}");
    }
    assert!(Fields::parse(&kinds::NODE, "metadata.namespace=a").is_err(), "a node has none");
    assert!(Fields::parse(&kinds::NODE, "metadata.name=a").is_ok());
}

/// What a list looks up by, instead of looking at everything.
#[test]
fn x1_what_a_field_selector_requires_is_told_apart_from_what_it_forbids() {
    let of = |text: &str| Fields::parse(&kinds::POD, text).expect("a selector");
    let all = of("status.phase!=Failed,spec.nodeName!=m,metadata.name!=b,metadata.name=a,spec.nodeName=n");
    assert_eq!((all.name(), all.required("spec.nodeName"), all.required("status.phase")), (Some("a"), Some("n"), None));
    let none = of("metadata.name!=b,spec.nodeName!=n,metadata.namespace=b");
    assert_eq!((none.name(), none.required("spec.nodeName")), (None, None));
    let (metadata, others) = all.split();
    assert_eq!(
        (metadata, others),
        (of("metadata.name!=b,metadata.name=a"), of("status.phase!=Failed,spec.nodeName!=m,spec.nodeName=n"))
    );
}
