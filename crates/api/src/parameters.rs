//! Values of query parameters and of annotations, as Kubernetes reads them.

/// A boolean parameter: anything is true but `false` (in whatever letters) and `0`. A parameter without a value is
/// true, too; one that is not there is the caller's to tell. Python's clients send `True`.
pub fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// What Go reads as a boolean (`strconv.ParseBool`): a flag that is written as a text.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a parameter is a duration as Go writes it: `1m30s`, `0`.
pub fn is_duration(value: &str) -> bool {
    crate::cel::duration(value).is_some()
}

#[cfg(test)]
mod tests {
    use super::{boolean, is_duration, is_true};

    #[test]
    fn a_boolean_is_one_of_go_s_words() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Some(true), "{text:?}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Some(false), "{text:?}");
        }
        for text in ["", "tRUE", "yes", " true", "2"] {
            assert_eq!(boolean(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_duration_has_units() {
        assert!(["0", "0s", "1m30s", "-1s", "1.5h", "+2ms"].into_iter().all(is_duration));
        assert!(!["", "1", "1x", "s", "invalid", "1s "].into_iter().any(is_duration));
    }

    #[test]
    fn only_false_and_zero_are_false() {
        for (value, expected) in
            [("true", true), ("True", true), ("1", true), ("t", true), ("", true), ("0", false), ("False", false)]
        {
            assert_eq!(is_true(value), expected, "{value:?}");
        }
    }
}
