//! What is noted by a clock that is set: a pod's times move along with it.

use jiff::{SignedDuration, Timestamp};

use super::backoff::Backoff;
use super::view::{ContainerFact, ImageFact, ImageState, Life, PodView, Sandbox, VolumeFact};

/// A time by a clock that was set by so much.
pub(super) fn moved(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(at)
}

impl PodView {
    /// When something happened to a container (its start or, of one that has ended, its end) by the clock of now, which
    /// may have been set since. What the API is told stays as it was noted.
    pub(super) fn by_this_clock(&self, fact: &ContainerFact, at: Timestamp) -> Timestamp {
        let key = (fact.name.clone(), fact.attempt, fact.exit().is_some());
        self.stepped.get(&key).map_or(at, |by| moved(at, *by))
    }

    /// The clock was set, forward by so much (or back): whatever is measured from a moment before goes on as if it had
    /// not been, so that nothing waits for the hours to come back, and nothing comes all at once. What the API says of
    /// times (`activeDeadlineSeconds`, the end of a token) goes by the clock.
    pub fn clock_stepped(&mut self, by: SignedDuration) {
        let shift = |at: &mut Timestamp| *at = moved(*at, by);
        let shift_backoff = |backoff: &mut Backoff| backoff.updated = moved(backoff.updated, by);
        [&mut self.crowded_until, &mut self.tombstoned_since, &mut self.finished_since]
            .into_iter()
            .flatten()
            .for_each(shift);
        self.evicted.iter_mut().for_each(|(_, since)| shift(since));
        if let Sandbox::Dead { since } = &mut self.sandbox {
            shift(since);
        }
        self.sandbox_error.iter_mut().for_each(shift_backoff);
        for volume in self.volumes.values_mut() {
            if let VolumeFact::Failed { backoff, .. } = volume {
                shift_backoff(backoff);
            }
        }
        for memory in self.memory.values_mut() {
            [&mut memory.crash, &mut memory.pull, &mut memory.start_retry]
                .into_iter()
                .flatten()
                .for_each(shift_backoff);
            if let Some(ImageFact { state: ImageState::Failed { at, .. }, .. }) = &mut memory.image {
                shift(at);
            }
            memory.probes.values_mut().filter_map(|probe| probe.last_run.as_mut()).for_each(shift);
            memory.condemned.iter_mut().for_each(|condemned| shift(&mut condemned.since));
        }
        for fact in &self.containers {
            let stepped = self.stepped.entry((fact.name.clone(), fact.attempt, fact.exit().is_some())).or_default();
            *stepped = stepped.saturating_add(by);
        }
    }

    /// Notes of what was noted by a clock that was set back since, before this agent began: nothing begins later than
    /// now. What is not known any more is forgotten.
    pub(super) fn note_steps(&mut self, now: Timestamp) {
        let Self { containers, stepped, .. } = self;
        let is_known = |(name, attempt, has_ended): &(String, u32, bool)| {
            containers
                .iter()
                .any(|fact| fact.name == *name && fact.attempt == *attempt && fact.exit().is_some() == *has_ended)
        };
        stepped.retain(|key, _| is_known(key));
        for fact in containers.iter() {
            let at = match &fact.life {
                Life::Running { since } => *since,
                Life::Exited { finished, .. } => *finished,
                Life::Created | Life::Lost => continue,
            };
            let key = (fact.name.clone(), fact.attempt, fact.exit().is_some());
            if at > now && !stepped.contains_key(&key) {
                stepped.insert(key, now.duration_since(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::view::{Condemned, Memory, ProbeFact, ProbeKind};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn backoff(second: i64) -> Backoff {
        Backoff { delay: SignedDuration::from_secs(10), updated: at(second) }
    }

    fn fact(name: &str, attempt: u32, life: Life) -> ContainerFact {
        let (image, image_id) = (String::new(), String::new());
        ContainerFact { name: name.to_owned(), attempt, image, image_id, sandbox_made_at: None, user: None, life }
    }

    fn ended(second: i64) -> Life {
        let (started, finished) = (at(0), at(second));
        Life::Exited { code: 0, signal: None, oom: false, fenced: false, started, finished, message: None }
    }

    /// A view in which everything that has a time has this one.
    fn view(second: i64) -> PodView {
        let memory = Memory {
            crash: Some(backoff(second)),
            pull: Some(backoff(second)),
            start_retry: Some(backoff(second)),
            image: Some(ImageFact {
                name: "i".to_owned(),
                state: ImageState::Failed { reason: "ErrImagePull", message: String::new(), at: at(second) },
            }),
            probes: [(ProbeKind::Liveness, ProbeFact { last_run: Some(at(second)), ..ProbeFact::default() })].into(),
            condemned: Some(Condemned { why: String::new(), since: at(second), grace_seconds: 0, replaced: false }),
            ..Memory::default()
        };
        PodView {
            crowded_until: Some(at(second)),
            tombstoned_since: Some(at(second)),
            finished_since: Some(at(second)),
            evicted: Some((String::new(), at(second))),
            sandbox: Sandbox::Dead { since: at(second) },
            sandbox_error: Some(backoff(second)),
            volumes: [("v".to_owned(), VolumeFact::Failed { message: String::new(), backoff: backoff(second) })].into(),
            memory: [("c".to_owned(), memory)].into(),
            ..PodView::default()
        }
    }

    /// S12: nothing waits for hours to come back, and nothing comes all at once: whatever is measured moves along.
    #[test]
    fn s12_all_that_is_measured_moves_with_the_clock() {
        for by in [7200, -7200] {
            let mut moved = view(0);
            moved.clock_stepped(SignedDuration::from_secs(by));
            assert_eq!(moved, view(by), "{by}");
        }
    }

    /// When a container began, or ended, is what was noted and what the clock was set by since, for that attempt alone.
    #[test]
    fn s12_when_something_happened_is_known_by_the_clock_of_now() {
        let step = SignedDuration::from_secs(100);
        let mut view = PodView {
            containers: vec![
                fact("a", 0, Life::Running { since: at(5) }),
                fact("b", 0, ended(6)),
                fact("b", 1, Life::Running { since: at(7) }),
            ],
            ..PodView::default()
        };
        view.clock_stepped(step);
        view.clock_stepped(step);
        let by_now = |view: &PodView, index: usize, second: i64| {
            view.by_this_clock(&view.containers[index], at(second)).duration_since(at(second)).as_secs()
        };
        assert_eq!([by_now(&view, 0, 5), by_now(&view, 1, 6), by_now(&view, 2, 7)], [200, 200, 200]);
        // What is not known any more is forgotten: the next of that name, and the end of one that ran, are of now.
        view.containers = vec![
            fact("a", 0, ended(300)),
            fact("b", 1, Life::Running { since: at(7) }),
            fact("b", 2, Life::Running { since: at(300) }),
        ];
        view.note_steps(at(300));
        assert_eq!([by_now(&view, 0, 300), by_now(&view, 1, 7), by_now(&view, 2, 300)], [0, 200, 0]);
        view.containers = vec![fact("b", 0, ended(6))];
        view.note_steps(at(300));
        assert_eq!(by_now(&view, 0, 6), 0);
        assert_eq!(view.stepped.len(), 0);
    }

    /// What an agent finds that was noted by a clock which was set back before it began: not later than now.
    #[test]
    fn s12_nothing_is_noted_for_the_future() {
        let mut view = PodView {
            containers: vec![
                fact("later", 0, Life::Running { since: at(90) }),
                fact("later", 1, ended(80)),
                fact("now", 0, Life::Running { since: at(50) }),
                fact("before", 0, ended(40)),
                fact("made", 0, Life::Created),
            ],
            ..PodView::default()
        };
        view.note_steps(at(50));
        let noted = [90, 80, 50, 40, 99];
        let by_now = |view: &PodView| -> Vec<Timestamp> {
            view.containers.iter().zip(noted).map(|(fact, second)| view.by_this_clock(fact, at(second))).collect()
        };
        assert_eq!(by_now(&view), [at(50), at(50), at(50), at(40), at(99)]);
        assert_eq!(view.stepped.len(), 2, "the others are as they were noted");
        // Once noted it stays: a second look, later, does not move it.
        view.note_steps(at(60));
        assert_eq!(by_now(&view)[0], at(50));
    }
}
