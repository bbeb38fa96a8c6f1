//! Sets of completion indexes, as a Job's status writes them: `0,2-5,7`.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

/// The annotation and label of a pod of an Indexed Job with its index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Indexes as closed intervals, ascending and never touching.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a status' or a policy's text; indexes from `limit` on are dropped, and what does not parse ends it.
    pub fn parse(text: &str, limit: i32) -> Self {
        let mut set = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { break };
            if first < 0 || last < first || first >= limit {
                break;
            }
            set.insert_interval(first, last.min(limit.saturating_sub(1)));
        }
        set
    }

    /// These and those.
    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        let mut all = self.clone();
        more.into_iter().for_each(|index| all.insert_interval(index, index));
        all
    }

    /// The indexes of both sets.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        other.0.iter().for_each(|&(first, last)| all.insert_interval(first, last));
        all
    }

    fn insert_interval(&mut self, mut first: i32, mut last: i32) {
        let start = self.0.partition_point(|&(_, end)| end.saturating_add(1) < first);
        let end = self.0.partition_point(|&(begin, _)| begin <= last.saturating_add(1));
        if let Some(met) = self.0.get(start..end).filter(|met| !met.is_empty()) {
            first = met.iter().map(|interval| interval.0).min().unwrap_or(first).min(first);
            last = met.iter().map(|interval| interval.1).max().unwrap_or(last).max(last);
        }
        self.0.splice(start..end.max(start), [(first, last)]);
    }

    /// Whether an index is among them.
    pub fn has(&self, index: i32) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= index);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|&(_, last)| index <= last)
    }

    /// How many there are.
    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many are in both sets.
    pub fn common(&self, other: &Self) -> i32 {
        let mut total = 0;
        for (first, last) in &self.0 {
            for (begin, end) in &other.0 {
                total += (last.min(end) - first.max(begin) + 1).max(0);
            }
        }
        total
    }

    /// The first `count` indexes below `limit` that are not among them.
    pub fn missing(&self, count: usize, limit: i32) -> Vec<i32> {
        let mut found = Vec::new();
        let mut next = 0;
        for &(first, last) in self.0.iter().chain([&(limit, limit)]) {
            while next < first.min(limit) && found.len() < count {
                found.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        found
    }
}

/// As upstream writes it: two neighbours with a comma, more with a dash.
impl std::fmt::Display for Indexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (first, last)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Whether the Job's pods have indexes.
pub fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) == Some("Indexed")
}

/// A pod's index, where it has one.
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_upstream_does() {
        for (text, limit, written, total) in [
            ("", 10, "", 0),
            ("0", 10, "0", 1),
            ("1,2", 10, "1,2", 2),
            ("1-3,5", 10, "1-3,5", 4),
            ("0,1,2,3", 10, "0-3", 4),
            ("3-8", 5, "3,4", 2),
            ("1,x,4", 10, "1", 1),
            ("7", 5, "", 0),
        ] {
            let set = Indexes::parse(text, limit);
            assert_eq!((set.to_string(), set.total()), (written.to_owned(), total), "{text}");
        }
        let set = Indexes::parse("1,3-5", 10);
        assert_eq!(set.with([2, 9, 0]).to_string(), "0-5,9");
        assert_eq!(set.union(&Indexes::parse("2,6,8-9", 10)).to_string(), "1-6,8,9");
        assert_eq!((set.has(0), set.has(1), set.has(4), set.has(6)), (false, true, true, false));
        assert_eq!(set.missing(3, 10), [0, 2, 6]);
        assert_eq!(set.missing(9, 7), [0, 2, 6]);
        assert_eq!(Indexes::default().missing(2, 5), [0, 1]);
        assert_eq!(set.common(&Indexes::parse("0-3", 10)), 2);
    }
}
