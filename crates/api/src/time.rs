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
    fn times_are_upstreams() {
        let time = parse("2026-11-21T04:25:07.123456789Z").unwrap_or(Timestamp::UNIX_EPOCH);
        assert_eq!(
            (rfc3339(time).as_str(), micro(time).as_str()),
            ("2026-11-21T04:25:07Z", "2026-11-21T04:25:07.123456Z")
        );
        assert_eq!(age_of("", time), "<unknown>");
    }
}
