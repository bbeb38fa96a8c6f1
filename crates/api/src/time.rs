//! Times as Kubernetes writes them, and ages as kubectl shows them.

use jiff::Timestamp;

use crate::jiff;

/// `metav1.Time`: whole seconds, `2026-11-21T04:25:00Z`.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: `2026-11-21T04:25:00.000000Z`.
pub fn micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A `Time` or `MicroTime` field; `None` for anything that is neither.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// How a field has its times: `metav1.Time` or `metav1.MicroTime`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Whole seconds; a fraction is read and dropped.
    Seconds,
    /// Six digits of a second, no fewer and no more.
    Micro,
}

impl Layout {
    /// As Go names it.
    const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "2006-01-02T15:04:05Z07:00",
            Self::Micro => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// A field's text as Go's decoder reads it, in the form in which it is written back; a time further off than
/// [`Timestamp`] goes stays as it is.
///
/// # Errors
/// Go's words for a text that is no RFC 3339 time of this layout.
pub fn decode(text: &str, layout: Layout) -> Result<String, String> {
    let time = Reader { all: text, rest: text, layout }.time()?;
    Ok(match (time, layout) {
        (None, _) => text.to_owned(),
        (Some(time), Layout::Seconds) => rfc3339(time),
        (Some(time), Layout::Micro) => micro(time),
    })
}

/// What is left of a text while it is read as Go's `time.Parse` reads it.
struct Reader<'a> {
    all: &'a str,
    rest: &'a str,
    layout: Layout,
}

impl Reader<'_> {
    /// The whole time, or none where it is right and too far off.
    fn time(&mut self) -> Result<Option<Timestamp>, String> {
        let year = self.year()?;
        self.literal("-")?;
        let month = self.two("01", true)?;
        if !(1..=12).contains(&month) {
            return Err(self.beyond("month out of range"));
        }
        self.literal("-")?;
        let day = self.two("02", true)?;
        self.literal("T")?;
        let hour = self.below(24, "15", "hour")?;
        self.literal(":")?;
        let minute = self.below(60, "04", "minute")?;
        self.literal(":")?;
        let second = self.below(60, "05", "second")?;
        let nanosecond = self.fraction()?;
        let offset = self.zone()?;
        if !self.rest.is_empty() {
            return Err(self.beyond(&format!("extra text: {}", quoted(self.rest))));
        }
        let date = jiff::civil::Date::new(year, month, day).map_err(|_| self.beyond("day out of range"))?;
        let civil = date.at(hour, minute, second, nanosecond);
        Ok(jiff::tz::Offset::from_seconds(offset).and_then(|offset| offset.to_timestamp(civil)).ok())
    }

    fn year(&mut self) -> Result<i16, String> {
        let year = self.rest.get(..4).filter(|year| year.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(year) = year.and_then(|year| year.parse().ok()) else { return Err(self.unlike(self.rest, "2006")) };
        self.rest = self.rest.get(4..).unwrap_or("");
        Ok(year)
    }

    fn literal(&mut self, wanted: &str) -> Result<(), String> {
        self.rest = self.rest.strip_prefix(wanted).ok_or_else(|| self.unlike(self.rest, wanted))?;
        Ok(())
    }

    /// Two digits; where they need not be two, one will do.
    fn two(&mut self, element: &str, exactly: bool) -> Result<i8, String> {
        let digits = self.rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
        if digits == 0 || (exactly && digits == 1) {
            return Err(self.unlike(self.rest, element));
        }
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        Ok(number.parse().unwrap_or(0))
    }

    /// A part of the day. Of an hour one digit will do.
    fn below(&mut self, limit: i8, element: &str, name: &str) -> Result<i8, String> {
        let number = self.two(element, name != "hour")?;
        if number < limit { Ok(number) } else { Err(self.beyond(&format!("{name} out of range"))) }
    }

    /// The fraction of a second, in nanoseconds.
    fn fraction(&mut self) -> Result<i32, String> {
        let after = self.rest.strip_prefix(['.', ',']);
        let digits = after.map_or(0, |after| after.bytes().take_while(u8::is_ascii_digit).count());
        let digits = match self.layout {
            Layout::Seconds if digits == 0 => return Ok(0),
            Layout::Seconds => digits,
            Layout::Micro if digits < 6 => return Err(self.unlike(self.rest, ".000000")),
            Layout::Micro => 6,
        };
        let (fraction, rest) = after.unwrap_or("").split_at(digits);
        self.rest = rest;
        let nine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        Ok(nine.parse().unwrap_or(0))
    }

    /// Seconds east of UTC.
    fn zone(&mut self) -> Result<i32, String> {
        let at = self.rest;
        if let Some(rest) = at.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let &[sign, ref numbers @ .., minute, last] = at.as_bytes().get(..6).unwrap_or_default() else {
            return Err(self.unlike(at, "Z07:00"));
        };
        let number = |bytes: &[u8]| {
            let digits = std::str::from_utf8(bytes).ok()?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i32>().ok())?
        };
        let [first, second, b':'] = numbers else { return Err(self.unlike(at, "Z07:00")) };
        let (Some(hours), Some(minutes)) = (number(&[*first, *second]), number(&[minute, last])) else {
            return Err(self.unlike(at, "Z07:00"));
        };
        self.rest = at.get(6..).unwrap_or("");
        match () {
            () if hours > 24 => return Err(self.beyond("time zone offset hour out of range")),
            () if minutes > 60 => return Err(self.beyond("time zone offset minute out of range")),
            () => {}
        }
        match sign {
            b'+' => Ok((hours * 60 + minutes) * 60),
            b'-' => Ok(-(hours * 60 + minutes) * 60),
            _ => Err(self.unlike(at, "Z07:00")),
        }
    }

    fn unlike(&self, at: &str, element: &str) -> String {
        let (all, at) = (quoted(self.all), quoted(at));
        format!("parsing time {all} as {:?}: cannot parse {at} as {element:?}", self.layout.name())
    }

    fn beyond(&self, why: &str) -> String {
        format!("parsing time {}: {why}", quoted(self.all))
    }
}

/// A text as Go's `time` package quotes it, cut where it is longer than any time.
fn quoted(text: &str) -> String {
    const MOST: usize = 256;
    let mut out = String::from("\"");
    for byte in text.bytes().take(MOST) {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' | 0x7f => out.push(char::from(byte)),
            other => out.push_str(&format!("\\x{other:02x}")),
        }
    }
    out.push_str(if text.len() > MOST { "...\"" } else { "\"" });
    out
}

/// The age in kubectl's words: `5m32s`, `3d4h`; up to one second ahead of the clock is `0s`, more is `<invalid>`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    human((now.as_millisecond() - since.as_millisecond()).div_euclid(1000))
}

/// The age of a `Time` field, or `<unknown>` where there is none.
pub fn age_of(text: &str, now: Timestamp) -> String {
    parse(text).map_or_else(|| "<unknown>".to_owned(), |since| age(since, now))
}

/// Seconds as upstream's `HumanDuration`: two units at most, fewer the longer it is.
pub fn human(seconds: i64) -> String {
    let two = |big: i64, big_unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        let (m, h, d) = (60, 3600, 86400);
        let table = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (5 * m + 32, "5m32s"),
            (10 * m + 5, "10m"),
            (179 * m, "179m"),
            (3 * h, "3h"),
            (7 * h + 59 * m, "7h59m"),
            (8 * h + 10 * m, "8h"),
            (47 * h, "47h"),
            (3 * d + 4 * h, "3d4h"),
            (8 * d + h, "8d"),
            (729 * d, "729d"),
            (731 * d, "2y1d"),
            (2920 * d, "8y"),
        ];
        for (seconds, text) in table {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn conformance_times_are_read_as_go_reads_them() {
        for (text, seconds, micros) in [
            ("2026-11-21T04:25:07Z", Some("2026-11-21T04:25:07Z"), None),
            ("2026-11-21T04:25:07.123456789Z", Some("2026-11-21T04:25:07Z"), None),
            ("2026-11-21T04:25:07.123456Z", Some("2026-11-21T04:25:07Z"), Some("2026-11-21T04:25:07.123456Z")),
            ("2026-11-21T04:25:07,5+02:30", Some("2026-11-21T01:55:07Z"), None),
            ("2026-11-21T23:25:07.000001-01:00", Some("2026-11-22T00:25:07Z"), Some("2026-11-22T00:25:07.000001Z")),
            ("2026-11-21T4:25:07Z", Some("2026-11-21T04:25:07Z"), None),
            ("9999-12-31T23:59:59Z", Some("9999-12-31T23:59:59Z"), None),
        ] {
            assert_eq!(decode(text, Layout::Seconds).ok().as_deref(), seconds, "{text}");
            assert_eq!(decode(text, Layout::Micro).ok().as_deref(), micros, "{text}");
        }
        let layout = r#"as "2006-01-02T15:04:05Z07:00": cannot parse"#;
        let told = |text: &str| decode(text, Layout::Seconds).expect_err(text);
        for (text, at, element) in [
            ("yesterday", "yesterday", "2006"),
            ("", "", "2006"),
            ("2026", "", "-"),
            ("20261121T042507Z", "1121T042507Z", "-"),
            ("2026-11-21", "", "T"),
            ("2026-11-21 04:25:07Z", " 04:25:07Z", "T"),
            ("2026-11-21t04:25:07Z", "t04:25:07Z", "T"),
            ("2026-1-21T04:25:07Z", "1-21T04:25:07Z", "01"),
            ("2026-11-21T04:25Z", "Z", ":"),
            ("2026-11-21T04:25:07", "", "Z07:00"),
            ("2026-11-21T04:25:07z", "z", "Z07:00"),
            ("2026-11-21T04:25:07+0200", "+0200", "Z07:00"),
            ("2026-11-21T04:25:07\u{fc}02:00", "\\xc3\\xbc02:00", "Z07:00"),
        ] {
            let wanted = format!("parsing time {} {layout} \"{at}\" as {element:?}", quoted(text));
            assert_eq!(told(text), wanted, "{text}");
        }
        for (text, why) in [
            ("2026-13-21T04:25:07Z", "month out of range"),
            ("2026-02-30T04:25:07Z", "day out of range"),
            ("2026-11-21T24:25:07Z", "hour out of range"),
            ("2026-11-21T04:60:07Z", "minute out of range"),
            ("2026-11-21T04:25:60Z", "second out of range"),
            ("2026-11-21T04:25:07+25:00", "time zone offset hour out of range"),
            ("2026-11-21T04:25:07Z[UTC]", r#"extra text: "[UTC]""#),
        ] {
            assert_eq!(told(text), format!("parsing time {text:?}: {why}"));
        }
        let micro = decode("2026-11-21T04:25:07Z", Layout::Micro).expect_err("no fraction");
        assert!(micro.ends_with(r#"as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#), "{micro}");
        assert!(told(&"\u{fc}".repeat(1 << 20)).len() < 3_000, "X4");
    }

    #[test]
    fn times_are_upstreams() {
        let time = parse("2026-11-21T04:25:07.123456789Z").unwrap_or(Timestamp::UNIX_EPOCH);
        assert_eq!(
            (rfc3339(time).as_str(), micro(time).as_str()),
            ("2026-11-21T04:25:07Z", "2026-11-21T04:25:07.123456Z")
        );
        assert_eq!(age_of("", time), "<unknown>");
    }
}
