//! `IntOrString` where it means a count or a share of a total: `maxUnavailable: 25%`.

use serde_json::Value;

/// The count that `value` (a number, or a text like `25%`) means of `total`; `None` for anything else.
///
/// Shares are rounded up or down as upstream does for the field in question (surge up, unavailable down).
pub fn scaled(value: &Value, total: i64, round_up: bool) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => {
            let percent = i128::from(percent(text)?) * i128::from(total);
            let up = i128::from(round_up && percent % 100 > 0);
            i64::try_from(percent.div_euclid(100) + up).ok()
        }
        _ => None,
    }
}

/// The number of a percentage as upstream accepts it in validation: `0%`, `25%`, `150%`.
pub fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_round_as_asked() {
        let table = [
            (json!("25%"), 3, true, Some(1)),
            (json!("25%"), 3, false, Some(0)),
            (json!("100%"), 7, false, Some(7)),
            (json!(2), 10, true, Some(2)),
            (json!("x"), 3, true, None),
            (json!("%"), 3, true, None),
            (json!("5"), 3, true, None),
            (json!("-5%"), 3, true, None),
            (json!(null), 1, true, None),
        ];
        for (value, total, up, count) in table {
            assert_eq!(scaled(&value, total, up), count, "{value}");
        }
    }
}
