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
