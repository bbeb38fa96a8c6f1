//! PriorityLevelConfiguration: how many requests of a level are served at once, and what becomes of the others.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, inner};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::flows;
use crate::jiff::Timestamp;
use crate::object::{name, text};
use crate::status::Cause;

/// Most queues of a level.
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals a flow its hand of queues.
const HASH_BITS: f64 = 60.0;

/// The row of PriorityLevelConfiguration.
pub static PRIORITY_LEVEL_CONFIGURATION: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("flowcontrol.apiserver.k8s.io"),
    kind: Borrowed("PriorityLevelConfiguration"),
    plural: Borrowed("prioritylevelconfigurations"),
    singular: Borrowed("prioritylevelconfiguration"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration"),
    columns: Borrowed(&[
        NAME,
        text_column("Type", "Whether it is limited."),
        text_column("NominalConcurrencyShares", "Its share of what is served at once."),
        text_column("Queues", "How many queues it has."),
        text_column("HandSize", "How many queues a flow may use."),
        text_column("QueueLengthLimit", "How long a queue may be."),
        AGE,
    ]),
    row: |_, level, now| row(level, now),
    defaults: |_, level| {
        let Some(spec) = inner(level, "spec") else { return };
        if let Some(exempt) = inner(spec, "exempt") {
            default(exempt, "nominalConcurrencyShares", 0);
            default(exempt, "lendablePercent", 0);
        }
        let Some(limited) = inner(spec, "limited") else { return };
        default(limited, "nominalConcurrencyShares", 30);
        default(limited, "lendablePercent", 0);
        if let Some(queuing) = inner(limited, "limitResponse").and_then(|response| inner(response, "queuing")) {
            for (field, number) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                default(queuing, field, number);
            }
        }
    },
    prepare_create: |_, level| {
        lifecycle::begin_status(level, json!({}));
        lifecycle::begin_generation(level);
    },
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, level, causes| {
        let spec = Field::root(level).get("spec");
        validate(&spec, name(level), causes);
        if flows::fixed_spec(&PRIORITY_LEVEL_CONFIGURATION, name(level)).is_some_and(|fixed| fixed != spec.value) {
            causes.push(spec.invalid(&format!("spec of '{}' must equal the fixed value", name(level))));
        }
    },
    ..BASE
});

fn row(level: &Value, now: Timestamp) -> Vec<Value> {
    let limited = Field::root(level).dig(&["spec", "limited"]);
    let number = |field: Field| field.int().map_or(json!("<none>"), |n| json!(n));
    let queuing = |field| number(limited.dig(&["limitResponse", "queuing", field]));
    vec![
        json!(name(level)),
        json!(text(level, &["spec", "type"])),
        number(limited.get("nominalConcurrencyShares")),
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        cells::age(level, now),
    ]
}

fn validate(spec: &Field, level: &str, causes: &mut Vec<Cause>) {
    let (kind, limited, exempt) = (spec.get("type"), spec.get("limited"), spec.get("exempt"));
    if (level == "exempt") != (kind.text() == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        causes.push(Cause::invalid(&kind.path, kind.text(), why));
    }
    match kind.text() {
        "Exempt" => {
            if limited.is_set() {
                causes.push(Cause::forbidden(&limited.path, "must be nil if the type is not Limited"));
            }
            validate_shares(&exempt, causes);
        }
        "Limited" => {
            if exempt.is_set() {
                causes.push(Cause::forbidden(&exempt.path, "must be nil if the type is Limited"));
            }
            if limited.is_set() {
                validate_limited(&limited, causes);
            } else {
                causes.push(Cause::required(&limited.path, "must not be empty when type is Limited"));
            }
        }
        other => causes.push(Cause::not_supported(&kind.path, other, &["Exempt", "Limited"])),
    }
}

fn validate_shares(part: &Field, causes: &mut Vec<Cause>) {
    let (shares, lendable) = (part.get("nominalConcurrencyShares"), part.get("lendablePercent"));
    if shares.int().is_some_and(|n| n < 0) {
        causes.push(shares.invalid("must be a non-negative integer"));
    }
    if lendable.int().is_some_and(|n| !(0..=100).contains(&n)) {
        causes.push(lendable.invalid("must be between 0 and 100, inclusive"));
    }
}

fn validate_limited(limited: &Field, causes: &mut Vec<Cause>) {
    validate_shares(limited, causes);
    let (response, borrowing) = (limited.get("limitResponse"), limited.get("borrowingLimitPercent"));
    let (kind, queuing) = (response.get("type"), response.get("queuing"));
    match (kind.text(), queuing.is_set()) {
        ("Reject", true) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            causes.push(Cause::forbidden(&queuing.path, why));
        }
        ("Reject", false) => {}
        ("Queue", true) => validate_queuing(&queuing, causes),
        ("Queue", false) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            causes.push(Cause::required(&queuing.path, why));
        }
        (other, _) => causes.push(Cause::not_supported(&kind.path, other, &["Queue", "Reject"])),
    }
    if borrowing.int().is_some_and(|n| n < 0) {
        causes.push(borrowing.invalid("if specified, must be a non-negative integer"));
    }
}

fn validate_queuing(queuing: &Field, causes: &mut Vec<Cause>) {
    let number = |field: &str| (queuing.get(field), queuing.get(field).int().unwrap_or(0));
    let ((length, most), (queues, count), (hand, size)) =
        (number("queueLengthLimit"), number("queues"), number("handSize"));
    let mut wrong = |field: &Field, why: &str| causes.push(field.invalid(why));
    if most <= 0 {
        wrong(&length, "must be positive");
    }
    if count <= 0 {
        wrong(&queues, "must be positive");
    } else if count > MAX_QUEUES {
        wrong(&queues, &format!("must not be greater than {MAX_QUEUES}"));
    }
    if size <= 0 {
        wrong(&hand, "must be positive");
    } else if size > count {
        wrong(&hand, &format!("should not be greater than queues ({count})"));
    } else if ((count as f64).log2() * size as f64).ceil() > HASH_BITS {
        let why =
            format!("required entropy bits of deckSize {count} and handSize {size} should not be greater than 60");
        wrong(&hand, &why);
    }
}
