//! Who is a node (S1, S13): one agent of one machine, which holds the node's Lease as a lock is held.
//!
//! Relies on: each renewal is guarded by the version that this agent saw or wrote last, so that of two agents one
//! learns of the other; the API lets nobody change which machine a Node is ([`crate::nodes::MACHINE`]).
//!
//! Guarantees S1 over machines of one name: an agent that finds another machine's name on the Node, or a Lease that
//! moves and not by its hand, renews nothing, starts nothing and lets its pods end. A Lease that stands still is taken
//! only by whoever knows that what its holder ran has ended: by the agent of the same folder, and by that of the same
//! machine when it was started anew. Another one, whose folder was copied or moved, waits for a person's word.
//! Differs: upstream's kubelets of one name write over each other's Node and Lease, and both run its pods.

use core::fmt;
use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// On a node's Lease: who renews it, as [`Holder`] is written.
pub const HELD_BY: &str = "mainstay.io/held-by";

/// An agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Which machine's folder it works on.
    pub machine: String,
    /// Drawn at its start.
    pub run: String,
    /// Where the folder is: the kernel's boot and the folder's inode. A copy of the folder is elsewhere, and so is the
    /// folder itself after the machine was started anew.
    pub place: String,
    /// Which machine the folder is on, by what stands outside of the folder; empty where nothing says so.
    pub hardware: String,
}

impl Holder {
    /// As it is written: three words, and the hardware's where it is known.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ').map(str::to_owned);
        let (machine, run, place) = (words.next()?, words.next()?, words.next()?);
        let hardware = words.next().unwrap_or_default();
        words.next().is_none().then_some(Self { machine, run, place, hardware })
    }

    /// The kernel's boot, which a place begins with.
    fn boot(&self) -> &str {
        self.place.split('.').next().unwrap_or_default()
    }

    /// Whether `other` is of this folder elsewhere, and this agent cannot know whether what that one ran still runs. It
    /// does know that of an agent in its own place, since the folder's lock leaves room for one; and of its machine
    /// before that was started anew.
    pub fn is_elsewhere(&self, other: &Self) -> bool {
        let is_restarted = !self.hardware.is_empty() && self.hardware == other.hardware && self.boot() != other.boot();
        self.machine == other.machine && self.run != other.run && self.place != other.place && !is_restarted
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.machine, self.run, self.place)?;
        if self.hardware.is_empty() { Ok(()) } else { write!(f, " {}", self.hardware) }
    }
}

/// A Lease as it was found by an agent that does not hold it as it last wrote it.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// What it says under [`HELD_BY`].
    pub held_by: &'a str,
    /// Its resourceVersion.
    pub version: &'a str,
    /// When it was renewed, by its holder's clock.
    pub renewed: Option<Timestamp>,
    /// How long it is.
    pub lease: Duration,
}

/// Whether another agent of this machine's name lives, as one that watches the Lease sees it.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The version in which the Lease was first seen, and when.
    seen: Option<(String, Duration)>,
    /// The run of an agent elsewhere of which a person says that it is over, and all that it ran; empty for none.
    pub is_over: String,
}

/// What is to be done about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this agent's, or nobody's who lives.
    Take,
    /// It is this agent's now, but whoever had it before may have been cut off, and its pods run until their deadline.
    TakeOver,
    /// It is to be seen whether it stands still.
    Watch,
    /// Its holder is elsewhere, and what that one ran may run for ever: only a person knows.
    Elsewhere,
    /// Another machine is this node.
    Replaced,
}

impl Watched {
    /// Of an agent that was told that the run `is_over`, elsewhere; empty for none.
    pub fn told(is_over: &str) -> Self {
        Self { is_over: is_over.to_owned(), ..Self::default() }
    }

    /// What an agent does about a Lease that is not as it wrote it. `machine_of_node` is which machine the Node says
    /// that it is, if it says so; `now` is the time since the machine was started, `clock` the time of day.
    pub fn judge(
        &mut self,
        own: &Holder,
        machine_of_node: &str,
        found: Option<&Found<'_>>,
        now: Duration,
        clock: Timestamp,
    ) -> Verdict {
        if !machine_of_node.is_empty() && machine_of_node != own.machine {
            return Verdict::Replaced;
        }
        let Some(found) = found else { return Verdict::Take };
        let Some(holder) = Holder::parse(found.held_by) else { return Verdict::Take };
        let age = found.renewed.map(|renewed| clock.duration_since(renewed));
        let quiet = quiet(found.lease);
        let is_old = age.is_some_and(|age| age > SignedDuration::try_from(quiet).unwrap_or(SignedDuration::MAX));
        // It outlived its Node; but whoever renewed it a moment ago has not learned of that yet.
        if holder.machine != own.machine {
            return if is_old { Verdict::Take } else { Verdict::TakeOver };
        }
        // The folder's lock leaves room for one agent in a place.
        if holder.run == own.run || holder.place == own.place {
            return Verdict::Take;
        }
        let (version, since) = self.seen.get_or_insert_with(|| (found.version.to_owned(), now));
        if version != found.version {
            return Verdict::Replaced;
        }
        if own.is_elsewhere(&holder) && self.is_over != holder.run {
            return Verdict::Elsewhere;
        }
        if now.saturating_sub(*since) >= quiet {
            return Verdict::TakeOver;
        }
        // A machine that was started anew finds its own word from before, and that is old by its own clock.
        if is_old { Verdict::TakeOver } else { Verdict::Watch }
    }

    /// The Lease is held.
    pub fn settle(&mut self) {
        self.seen = None;
    }
}

/// What an agent knows of its node's Lease. Its times are since the machine was started.
#[derive(Clone, Debug, Default)]
pub struct Lock {
    /// The Lease as this agent wrote it last.
    pub version: Option<String>,
    /// Since when this agent has had it without a break.
    pub taken: Option<Duration>,
    /// Until when nobody else can have taken it.
    pub sure_until: Duration,
    /// It was taken from one that may have been cut off.
    pub is_taken_over: bool,
    /// It is held by another one of this folder, elsewhere, which may be cut off and run what it ran.
    pub is_elsewhere: bool,
    /// When the Node was made, as the server says.
    pub node_made: Option<Timestamp>,
    /// What is being seen of another agent's.
    pub watched: Watched,
}

impl Lock {
    /// Whether this agent is the node for certain at `now`: it has the Lease, and renewed it so short a time ago that
    /// nobody else can have taken it.
    pub fn is_held(&self, now: Duration) -> bool {
        self.taken.is_some() && now < self.sure_until
    }

    /// Whether something of a pod may begin: this agent has the Lease, and what a former machine of the name ran of the
    /// pod has ended. `seconds` is the pod's deadline, where it has one.
    pub fn may_begin(&self, pod: &Pod, seconds: Option<u32>, now: Duration) -> bool {
        let Some(taken) = self.taken else { return false };
        let Some(seconds) = seconds else { return true };
        let bound = pods::condition(pod, "PodScheduled").and_then(|at| at.last_transition_time.as_ref());
        let is_older = self.node_made.zip(bound).is_some_and(|(made, bound)| bound.0 < made);
        !(is_older || self.is_taken_over) || has_former_ended(seconds, taken, now)
    }

    /// The Lease, which is so long, was written by this agent, by what was `sent` then: it holds it from `now` on.
    pub fn written(&mut self, version: &str, lease: Duration, sent: Duration, now: Duration) {
        self.version = Some(version.to_owned());
        self.is_elsewhere = false;
        self.taken.get_or_insert(now);
        self.sure_until = sent.saturating_add(quiet(lease));
        self.watched.settle();
    }

    /// As [`Watched::judge`], remembering what it comes to. `node_made` is when the Node was made.
    pub fn judge(
        &mut self,
        own: &Holder,
        (machine_of_node, node_made): (&str, Option<Timestamp>),
        found: Option<&Found<'_>>,
        now: Duration,
        clock: Timestamp,
    ) -> Verdict {
        self.node_made = node_made;
        let verdict = self.watched.judge(own, machine_of_node, found, now, clock);
        self.is_elsewhere = verdict == Verdict::Elsewhere;
        if matches!(verdict, Verdict::Watch | Verdict::TakeOver | Verdict::Elsewhere) {
            // Another had it meanwhile: what that one runs ends so long after it is taken from it, however long this
            // agent had it before.
            self.taken = None;
            self.is_taken_over = true;
        }
        verdict
    }
}

/// How long a Lease stands still that nobody renews four times in its duration. Before so long after a renewal was
/// sent, nobody else has taken it.
pub fn quiet(lease: Duration) -> Duration {
    lease / 8 * 3
}

/// Whether what a former machine of this name ran of a pod has ended: its containers have a deadline of so many
/// seconds, which it cannot have moved since this agent took the Lease. Times since the machine was started.
pub fn has_former_ended(seconds: u32, taken: Duration, now: Duration) -> bool {
    now >= taken.saturating_add(crate::fencing::free_after(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(40);

    fn holder(machine: &str, run: &str, place: &str) -> Holder {
        let (machine, run, place) = (machine.to_owned(), run.to_owned(), place.to_owned());
        Holder { machine, run, place, hardware: "box".to_owned() }
    }

    fn clock(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn found<'a>(held_by: &'a str, version: &'a str, renewed: i64) -> Found<'a> {
        Found { held_by, version, renewed: Some(clock(renewed)), lease: LEASE }
    }

    #[test]
    fn s1_a_lease_is_one_machines() {
        let own = holder("m1", "r1", "here");
        let judge = |node: &str, held_by: &str| {
            Watched::default().judge(&own, node, Some(&found(held_by, "7", 0)), seconds(5), clock(1))
        };
        assert_eq!(judge("m2", "m1 r1 here"), Verdict::Replaced, "the Node is another machine's by now");
        assert_eq!(judge("m1", "m1 r1 here"), Verdict::Take, "an answer was lost");
        assert_eq!(judge("", ""), Verdict::Take, "an older agent's");
        assert_eq!(judge("m1", "m1 r0 here"), Verdict::Take, "the agent was started anew");
        assert_eq!(judge("m1", "m1 r1 there"), Verdict::Take, "its own word, wherever the folder is by now");
        assert_eq!(judge("m1", "m1 r0 there box"), Verdict::Watch, "started anew");
        let own_word = Watched::default().judge(&own, "m1", None, seconds(5), clock(1));
        assert_eq!(own_word, Verdict::Take);
    }

    #[test]
    fn s13_a_lease_that_outlived_its_node_a_moment_ago_may_have_a_holder_that_does_not_know_yet() {
        let own = holder("m1", "r1", "here");
        let at = |now: i64, renewed: Option<Timestamp>| {
            let lease = Found { renewed, ..found("m2 r9 there", "7", 0) };
            Watched::default().judge(&own, "m1", Some(&lease), seconds(5), clock(now))
        };
        assert_eq!(at(1, Some(clock(0))), Verdict::TakeOver);
        assert_eq!(at(15, Some(clock(0))), Verdict::TakeOver);
        assert_eq!(at(16, Some(clock(0))), Verdict::Take, "whoever it was has seen by now that the Node is another's");
        assert_eq!(at(1, None), Verdict::TakeOver, "nothing says when");
    }

    #[test]
    fn s13_a_copy_of_a_machine_is_not_the_node_while_the_other_lives() {
        let own = holder("m1", "r1", "here");
        let mut watched = Watched::default();
        let mut at = |version: &str, renewed: i64, second: u64| {
            let text = "m1 r0 there box";
            watched.judge(&own, "m1", Some(&found(text, version, renewed)), seconds(second), clock(second as i64))
        };
        assert_eq!(at("7", 0, 1), Verdict::Watch);
        assert_eq!(at("7", 0, 9), Verdict::Watch);
        assert_eq!(at("8", 10, 11), Verdict::Replaced, "it moves");
        let mut watched = Watched::default();
        let mut at = |renewed: i64, second: u64| {
            let lease = found("m1 r0 there box", "7", renewed);
            watched.judge(&own, "m1", Some(&lease), seconds(second), clock(second as i64))
        };
        assert_eq!(at(3600, 1), Verdict::Watch, "whatever the other's clock says");
        assert_eq!(at(3600, 15), Verdict::Watch);
        assert_eq!(at(3600, 16), Verdict::TakeOver, "it stands still");
        let reboot = found("m1 r0 there box", "7", 0);
        assert_eq!(Watched::default().judge(&own, "m1", Some(&reboot), seconds(1), clock(16)), Verdict::TakeOver);
    }

    /// S1: a copy cannot know whether its original, cut off, runs what it ran; nor the original that of the copy. Only
    /// a machine that was started anew knows of itself.
    #[test]
    fn s1_who_cannot_know_whether_the_holder_is_over_waits_for_a_persons_word() {
        let own = holder("m1", "r1", "boot2.8.1");
        let at = |held_by: &str, is_over: &str, second: u64| {
            let mut watched = Watched::told(is_over);
            let lease = found(held_by, "7", 0);
            watched.judge(&own, "m1", Some(&lease), seconds(1), clock(1));
            watched.judge(&own, "m1", Some(&lease), seconds(second), clock(second as i64))
        };
        assert_eq!(at("m1 r0 boot1.8.1 box", "", 3600), Verdict::TakeOver, "this machine, before it was started anew");
        for elsewhere in ["m1 r0 boot1.8.1 other", "m1 r0 boot2.8.9 box", "m1 r0 boot1.8.1"] {
            assert_eq!(at(elsewhere, "", 3600), Verdict::Elsewhere, "{elsewhere}: another machine, or folder");
            assert_eq!(at(elsewhere, "r9", 3600), Verdict::Elsewhere, "{elsewhere}: what was said was of another run");
            assert_eq!(at(elsewhere, "r0", 3600), Verdict::TakeOver, "{elsewhere}: a person knows");
            assert_eq!(at(elsewhere, "r0", 9), Verdict::Watch, "{elsewhere}: it may live for all that");
        }
        let nameless = Holder { hardware: String::new(), ..own };
        let lease = found("m1 r0 boot1.8.1", "7", 0);
        let verdict = Watched::default().judge(&nameless, "m1", Some(&lease), seconds(1), clock(3600));
        assert_eq!(verdict, Verdict::Elsewhere, "nothing says which machine it is");
    }

    #[test]
    fn what_is_written_is_read() {
        let own = holder("m1", "r1", "boot.1.2");
        assert_eq!(Holder::parse(&own.to_string()), Some(own.clone()));
        let nameless = Holder { hardware: String::new(), ..own };
        assert_eq!(Holder::parse(&nameless.to_string()), Some(nameless.clone()));
        assert_eq!(nameless.to_string(), "m1 r1 boot.1.2");
        assert_eq!(Holder::parse("m1 r1"), None);
        assert_eq!(Holder::parse("m1 r1 p x y"), None);
    }

    #[test]
    fn s13_what_the_former_machine_ran_has_ended_when_its_deadline_has_passed_by_any_clock() {
        assert!(!has_former_ended(40, seconds(100), seconds(140)));
        assert!(!has_former_ended(40, seconds(100), seconds(145)));
        assert!(has_former_ended(40, seconds(100), seconds(146)));
        let free = crate::fencing::free_after(40);
        assert!(has_former_ended(40, seconds(100), seconds(100) + free));
        assert!(!has_former_ended(40, seconds(100), seconds(100) + free - Duration::from_millis(1)));
    }

    #[test]
    fn s1_another_folder_of_this_machines_name_is_elsewhere() {
        let own = holder("m1", "r1", "boot2.8.1");
        assert!(own.is_elsewhere(&holder("m1", "r0", "boot2.8.9")));
        assert!(!own.is_elsewhere(&holder("m2", "r0", "boot2.8.9")), "another machine is no copy");
        assert!(!own.is_elsewhere(&holder("m1", "r1", "boot2.8.9")), "it is itself");
        assert!(!own.is_elsewhere(&holder("m1", "r0", "boot2.8.1")), "it was started anew");
    }

    /// S1, S13: held is what was written and renewed so short a time ago that nobody else can have taken it; what was
    /// held before another had it counts for nothing.
    #[test]
    fn s1_s13_a_lock_is_held_as_long_as_nobody_else_can_have_it() {
        let own = holder("m1", "r1", "here");
        let mut lock = Lock::default();
        assert!(!lock.is_held(seconds(0)));
        lock.written("3", LEASE, seconds(10), seconds(12));
        assert_eq!((lock.version.as_deref(), lock.taken), (Some("3"), Some(seconds(12))));
        assert_eq!([12, 24, 25, 99].map(|now| lock.is_held(seconds(now))), [true, true, false, false], "15 s from 10");
        lock.written("4", LEASE, seconds(20), seconds(21));
        assert_eq!((lock.version.as_deref(), lock.taken), (Some("4"), Some(seconds(12))), "without a break");
        assert_eq!([34, 35].map(|now| lock.is_held(seconds(now))), [true, false]);
        // Its own word changes nothing.
        let made = Some(clock(-100));
        let judge = |lock: &mut Lock, held_by: &str, version: &str, now: u64| {
            let lease = found(held_by, version, 0);
            lock.judge(&own, ("m1", made), Some(&lease), seconds(now), clock(now as i64))
        };
        assert_eq!(judge(&mut lock, "m1 r1 here", "4", 30), Verdict::Take);
        assert_eq!((lock.taken, lock.is_taken_over, lock.node_made), (Some(seconds(12)), false, made));
        // Another's: it has it no longer, and what that one ran is not over.
        for (held_by, verdict, elsewhere) in
            [("m1 r0 there box", Verdict::Watch, false), ("m1 r0 there other", Verdict::Elsewhere, true)]
        {
            let mut lock = lock.clone();
            assert_eq!(judge(&mut lock, held_by, "7", 5), verdict);
            assert_eq!((lock.taken, lock.is_taken_over, lock.is_elsewhere), (None, true, elsewhere), "{held_by}");
            assert!(!lock.is_held(seconds(5)), "{held_by}");
            // Held again, it begins to count then, and to watch anew.
            lock.written("8", LEASE, seconds(40), seconds(41));
            assert_eq!((lock.taken, lock.is_taken_over, lock.is_elsewhere), (Some(seconds(41)), true, false));
            assert_eq!(judge(&mut lock, held_by, "9", 5), verdict, "{held_by}: nothing was seen of this one");
        }
        let mut taken = lock.clone();
        assert_eq!(judge(&mut taken, "m2 r9 there", "7", 5), Verdict::TakeOver);
        assert_eq!((taken.taken, taken.is_taken_over), (None, true));
        let verdict = lock.judge(&own, ("m2", made), None, seconds(30), clock(30));
        assert_eq!((verdict, lock.taken), (Verdict::Replaced, Some(seconds(12))), "that is for the agent to act on");
    }

    /// S13: a pod with a deadline may run elsewhere until that has passed: where the Node was made after the pod was
    /// placed, or the Lease was another's.
    #[test]
    fn s13_what_a_former_machine_may_run_does_not_begin() {
        let pod = |bound: Option<i64>| -> Pod {
            let at = bound.map(|second| clock(second).to_string());
            let condition = serde_json::json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": at });
            serde_json::from_value(serde_json::json!({ "metadata": {}, "status": { "conditions": [condition] } }))
                .unwrap()
        };
        let lock = |node_made: Option<i64>, is_taken_over: bool| Lock {
            taken: Some(seconds(100)),
            node_made: node_made.map(clock),
            is_taken_over,
            ..Lock::default()
        };
        let free = seconds(100) + crate::fencing::free_after(40);
        for (story, lock, bound, waits) in [
            ("its own node's", lock(Some(10), false), Some(20), false),
            ("placed with the Node's making", lock(Some(20), false), Some(20), false),
            ("placed before the Node was made", lock(Some(30), false), Some(20), true),
            ("taken over", lock(Some(10), true), Some(20), true),
            ("nothing says when the Node was made", lock(None, false), Some(20), false),
            ("nothing says when it was placed", lock(Some(30), false), None, false),
        ] {
            let pod = pod(bound);
            assert_eq!(lock.may_begin(&pod, Some(40), seconds(100)), !waits, "{story}");
            assert!(lock.may_begin(&pod, Some(40), free), "{story}: its deadline has passed");
            assert!(lock.may_begin(&pod, None, seconds(100)), "{story}: without a deadline a person has said so");
            let without = Lock { taken: None, ..lock };
            assert!(!without.may_begin(&pod, None, free) && !without.may_begin(&pod, Some(40), free), "{story}");
        }
    }
}
