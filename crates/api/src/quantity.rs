//! Amounts of resources: `100m`, `1Gi`, `1e3`. Parsing, upstream's canonical form, arithmetic.
//!
//! A quantity is a whole number of nano-units, so `1Gi` is 1024³ × 10⁹ of them; upstream rounds up to the same
//! step. What is more than 2⁶³ − 1 units is that many, hence 128 bits always suffice.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// Nano-units per unit.
const NANO: i128 = 1_000_000_000;
/// Upstream's largest quantity with a binary suffix, in nano-units. Differs: here of every suffix.
const MAX: i128 = (i64::MAX as i128) * NANO;
/// Longest text that is read as a quantity, in bytes.
const MAX_TEXT: usize = 256;
/// Digits that are kept, from the first that is not zero; later ones only round up. [`MAX`] has fewer.
const MAX_DIGITS: usize = 30;

/// The family of suffixes that a quantity is printed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `Ki`, `Mi`, …
    BinarySi,
    /// `m`, none, `k`, `M`, …
    DecimalSi,
    /// `e3`, `e6`, …
    DecimalExponent,
}

/// An amount of a resource. Ordered and compared by amount: `1Gi == 1024Mi`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is not a quantity, in upstream's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Not even the shape of one.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// An unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Whole units (bytes, cores, pods), capped as upstream caps.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    /// Thousandths of a unit.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A JSON string, or a plain number as YAML manifests often have it.
    pub fn of(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseError::Format),
        }
    }

    /// Whole units (bytes), rounded up.
    pub fn units(self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// Thousandths (of a core), rounded up.
    pub fn milli(self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The amount in units, about.
    pub fn approximate(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    fn with(self, nanos: i128, other: Self) -> Self {
        Self { nanos: nanos.clamp(-MAX, MAX), format: if self.nanos == 0 { other.format } else { self.format } }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    /// The sum, capped; printed like the left side unless that is nothing.
    fn add(self, other: Self) -> Self {
        self.with(self.nanos + other.nanos, other)
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    /// The difference, capped; may be negative.
    fn sub(self, other: Self) -> Self {
        self.with(self.nanos - other.nanos, other)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    /// `[+-]digits[.digits][suffix]`; what is finer than a nano-unit is rounded away from zero.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_TEXT {
            return Err(ParseError::Format);
        }
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or("")),
            Some(b'+') => (false, text.get(1..).unwrap_or("")),
            _ => (false, text),
        };
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, suffix) = rest.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Format);
        }
        if !is_suffix(suffix) {
            return Err(ParseError::Format);
        }
        let (scale, format) = suffix_scale(suffix)?;
        let nanos = scaled(whole.trim_start_matches('0'), fraction, scale).min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Whether a text has the shape of a suffix or an exponent, if only of one that there is not.
fn is_suffix(text: &str) -> bool {
    let exponent = text.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    exponent.strip_prefix(['-', '+']).unwrap_or(exponent).bytes().all(|byte| byte.is_ascii_digit())
}

/// What a suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix_scale(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let binary = |power| Ok((Scale::Two(power), Format::BinarySi));
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    match suffix {
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        other => {
            let power = other.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let power: i32 = power.parse().map_err(|_| ParseError::Suffix)?;
            // Beyond this range every number is already nothing or the largest.
            Ok((Scale::Ten(power.clamp(-400, 400)), Format::DecimalExponent))
        }
    }
}

/// `whole.fraction` times the scale, in nano-units, rounded up; `i128::MAX` when it does not fit.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let (factor, power) = match scale {
        Scale::Ten(power) => (1, power),
        Scale::Two(power) => (1_u64 << power, 0),
    };
    // All digits of the product, the last one first: which of them count is not known before the exponent is applied.
    let mut digits = Vec::with_capacity(whole.len() + fraction.len());
    let mut carry = 0_u64;
    for digit in whole.bytes().chain(fraction.bytes()).rev() {
        carry += u64::from(digit - b'0') * factor;
        digits.push(carry % 10);
        carry /= 10;
    }
    while carry > 0 {
        digits.push(carry % 10);
        carry /= 10;
    }
    digits.truncate(digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1));
    let (later, kept) = digits.split_at(digits.len().saturating_sub(MAX_DIGITS));
    let mantissa = kept.iter().rev().fold(0, |sum: i128, digit| sum * 10 + i128::from(*digit));
    let sticky = i128::from(later.iter().any(|digit| *digit != 0));
    // Both are of a text that is not long. Ten to this power is what one of the mantissa stands for.
    let place = i32::try_from(later.len()).unwrap_or(0) - i32::try_from(fraction.len()).unwrap_or(0);
    times_ten_to(mantissa + sticky, power + 9 + place)
}

fn times_ten_to(mantissa: i128, power: i32) -> i128 {
    if mantissa == 0 {
        return 0;
    }
    match 10i128.checked_pow(power.unsigned_abs()) {
        Some(factor) if power >= 0 => mantissa.saturating_mul(factor),
        Some(factor) => div_up(mantissa, factor),
        None if power >= 0 => i128::MAX,
        None => 1,
    }
}

/// Division rounded away from zero for positive numbers, towards zero for negative ones: upwards.
fn div_up(value: i128, by: i128) -> i128 {
    value / by + i128::from(value % by > 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// Upstream's canonical form: the largest suffix that leaves a whole number. `1.5Gi` is `1536Mi`, `0.5` is `500m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = self.nanos / NANO;
        let binary = self.format == Format::BinarySi && self.nanos % NANO == 0 && units.abs() >= 1024;
        if binary {
            let (mut value, mut step) = (units, 0);
            while value % 1024 == 0 && step < 6 {
                value /= 1024;
                step += 1;
            }
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(step).unwrap_or(&"");
            return write!(f, "{value}{suffix}");
        }
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let (mut value, mut step) = (self.nanos, 0);
        while value % 1000 == 0 && step < 9 {
            value /= 1000;
            step += 1;
        }
        if self.format == Format::DecimalExponent {
            return match step as i32 * 3 - 9 {
                0 => write!(f, "{value}"),
                power => write!(f, "{value}e{power}"),
            };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].get(step).unwrap_or(&"");
        write!(f, "{value}{suffix}")
    }
}

/// Rewrites a quantity in place in its canonical form, as upstream stores it; anything else is left for validation.
pub fn canonicalize(value: &mut Value) {
    if let Ok(quantity) = Quantity::of(value) {
        *value = Value::String(quantity.to_string());
    }
}

/// Rewrites every entry of a resource list (`{"cpu": "0.5"}`) in its canonical form.
pub fn canonicalize_list(list: Option<&mut Value>) {
    for value in list.and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        canonicalize(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        let table = [
            ("0", "0"),
            ("1", "1"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1023Ki", "1023Ki"),
            ("1E", "1E"),
            ("1.0", "1"),
            (".5", "500m"),
            ("-1", "-1"),
            ("+3", "3"),
            ("0.0000000001", "1n"),
            ("1.1Mi", "1153433600m"),
            ("100000000000000000000", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("0001", "1"),
            ("5.", "5"),
            ("5n", "5n"),
            ("7u", "7u"),
            ("3M", "3M"),
            ("4G", "4G"),
            ("6T", "6T"),
            ("2P", "2P"),
            ("1Ti", "1Ti"),
            ("2Pi", "2Pi"),
            ("3Ei", "3Ei"),
            ("-2Gi", "-2Gi"),
            ("-1.5", "-1500m"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("1e-2000", "1e-9"),
            ("1e2000", "9223372036854775807"),
            ("1e+3", "1e3"),
            ("0e2000", "0"),
            ("0e-2000", "0"),
            ("0Ei", "0"),
            ("-0", "0"),
            ("0.9765625Ki", "1k"),
            ("-0.5Ki", "-512"),
            ("7Ei", "7Ei"),
            ("9E", "9E"),
            // Longer than what is kept of a number.
            ("1000000000000000000000000000000e-30", "1"),
            ("100000000000000000000000000001e-30", "100000001e-9"),
            ("100000000000000000000000000000.1e-30", "100000001e-9"),
            ("100000000000000000000000000000e-10", "9223372036854775807"),
            ("100000000000000000000000000000Ki", "9223372036854775807"),
            // Small before its exponent or suffix is applied.
            ("0.0000000000000000001e30", "100e9"),
            ("0.00000000000000000000000000000000000000001e50", "1e9"),
            ("-0.00000000000000000000123456789e21", "-1234567890e-9"),
            ("0.00000000000000000000123456789e12", "2e-9"),
            ("0.0000000000000000001E", "100m"),
            ("0.0000000000000000001Ei", "115292151n"),
            ("0.000000000000000000867361737988403547205962240695953369140625Ei", "1"),
            ("0.0000000000000000008673617379884035472059622406959533691406251Ei", "1000000001n"),
            ("7.9999999999999999999Ei", "9223372036854775807"),
        ];
        for (text, canonical) in table {
            assert_eq!(text.parse::<Quantity>().map(|q| q.to_string()), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in ["", "-", ".", "1..2", "abc", "--1", "1KiB", "1 Gi", "1x", "1é", "1e3x", "1e--3", "1.5.5", "1,5"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Format), "{text}");
        }
        for text in ["1e", "1K", "1ee3", "1mi", "1i", "1e-", "1+5", "1M5", "1Ki5", "1e99999999999"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Suffix), "{text}");
        }
    }

    /// What is added up and compared is the amount, however it was written; what is left is never more than there is.
    #[test]
    fn sums_are_of_amounts_and_printed_like_what_was_there() {
        let q = |text: &str| text.parse::<Quantity>().unwrap();
        let most = i64::MAX;
        for (sum, printed, units, milli) in [
            (Quantity::from_units(2048, Format::BinarySi), "2Ki", 2048, 2_048_000),
            (Quantity::from_milli(1500), "1500m", 2, 1500),
            (Quantity::ZERO + q("1Gi"), "1Gi", 1 << 30, 1000 << 30),
            (q("1Gi") - Quantity::ZERO, "1Gi", 1 << 30, 1000 << 30),
            (q("1k") + q("1Ki"), "2024", 2024, 2_024_000),
            (q("500m") - q("1"), "-500m", 0, -500),
            (q("1") - q("1"), "0", 0, 0),
            (q("-1500m") + Quantity::ZERO, "-1500m", -1, -1500),
            (q("9Ei") + q("9Ei"), "9223372036854775807", most, most),
            (q("-9Ei") - q("9Ei"), "-9223372036854775807", -most, i64::MIN),
        ] {
            assert_eq!((sum.to_string().as_str(), sum.units(), sum.milli()), (printed, units, milli));
        }
        let facts = |text| (q(text).is_zero(), q(text).is_negative(), q(text).is_whole());
        assert_eq!(
            ["0", "-1n", "2", "1500m"].map(facts),
            [(true, false, true), (false, true, false), (false, false, true), (false, false, false),]
        );
        assert!((q("1500m").approximate() - 1.5).abs() < 1e-9);
        assert_eq!(q("1G").max(q("1Mi")), q("1000M"));
    }

    #[test]
    fn numbers_are_read_and_stored_as_quantities_and_nothing_else_is() {
        let mut list = json!({"cpu": 0.5, "memory": "1024Mi", "pods": 3, "wrong": "x", "none": null});
        canonicalize_list(Some(&mut list));
        assert_eq!(list, json!({"cpu": "500m", "memory": "1Gi", "pods": "3", "wrong": "x", "none": null}));
        assert_eq!(Quantity::of(&json!(true)), Err(ParseError::Format));
        let long = |digits: usize| format!("{}1", "0".repeat(digits - 1)).parse::<Quantity>();
        assert_eq!((long(MAX_TEXT).map(Quantity::units), long(MAX_TEXT + 1)), (Ok(1), Err(ParseError::Format)));
    }

    #[test]
    fn amounts_round_up() {
        let q = |text: &str| text.parse::<Quantity>().unwrap_or(Quantity::ZERO);
        assert_eq!((q("1500m").units(), q("1.1m").milli(), q("1Gi").units(), q("250m").milli()), (2, 2, 1 << 30, 250));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert!(q("1Gi") == q("1024Mi") && q("1G") < q("1Gi"));
    }

    proptest! {
        #[test]
        fn any_text_is_total_and_canonical_form_is_stable(text in "[+-]?[0-9]{0,40}[.]?[0-9]{0,40}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]{1,4}|e-[0-9]{1,4}|)") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let canonical = quantity.to_string();
                let again: Quantity = canonical.parse().map_err(|_| TestCaseError::fail(canonical.clone()))?;
                prop_assert_eq!(again, quantity);
                prop_assert_eq!(again.to_string(), canonical);
            }
        }
    }
}
