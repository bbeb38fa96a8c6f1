//! The clock is set while a pod runs: an hour back or on, as by a wrong hardware clock and a server's first answer.

use jiff::SignedDuration;
use serde_json::json;

use super::*;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// The clock is set, and everything that was noted moves along.
fn set(bench: &mut Bench, by: SignedDuration) {
    bench.now = bench.now.checked_add(by).unwrap();
    bench.view.clock_stepped(by);
}

fn probed() -> serde_json::Value {
    let mut spec = one_container();
    let probe =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 5, "failureThreshold": 3, "initialDelaySeconds": 2 });
    spec["containers"][0]["livenessProbe"] = probe;
    spec
}

#[test]
fn s12_probes_keep_their_beat_whatever_the_clock_does() {
    for by in [-HOUR, HOUR] {
        let mut bench = Bench::new(probed());
        bench.network().image("c").started("c", 0).step();
        set(&mut bench, by);
        assert!(!bench.step().contains("Liveness"), "{by:?}: its initial delay is not over");
        assert!(bench.pass(2).step().starts_with("Liveness c/0"), "{by:?}");
        bench.probe("c", 0, ProbeKind::Liveness, true).step();
        set(&mut bench, by);
        assert!(!bench.pass(4).step().contains("Liveness"), "{by:?}");
        assert!(bench.pass(1).step().starts_with("Liveness c/0"), "{by:?}");
    }
}

#[test]
fn s12_back_offs_and_stops_take_as_long_as_they_take_whatever_the_clock_does() {
    for by in [-HOUR, HOUR] {
        let mut bench = Bench::new(one_container());
        bench.network().image("c").started("c", 0).step();
        bench.exited("c", 0, 1).image("c").step();
        bench.started("c", 1).exited("c", 1, 1).image("c").step();
        set(&mut bench, by);
        assert!(!bench.pass(9).step().contains("Start"), "{by:?}");
        assert!(bench.pass(1).step().starts_with("Start c/2"), "{by:?}");
        bench.started("c", 2).step();
        bench.deleted(30).fact(Fact::Remembered(true)).pass(10).step();
        set(&mut bench, by);
        let left = decide(&bench.view, bench.now).actions.into_iter().find_map(|action| match action {
            Action::StopContainer { deadline, .. } => Some(deadline.duration_since(bench.now)),
            _ => None,
        });
        assert_eq!(left, Some(SignedDuration::from_secs(20)), "{by:?}");
    }
}

#[test]
fn s12_a_container_belongs_to_the_sandbox_it_was_started_in_whatever_the_clock_says() {
    let mut spec = one_container();
    spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    bench.network().image("i");
    let made_at = Some(bench.now);
    set(&mut bench, -HOUR);
    bench.started("i", 0);
    bench.exited("i", 0, 0);
    let mut facts = bench.view.containers.clone();
    facts.iter_mut().for_each(|fact| fact.sandbox_made_at = made_at);
    bench.fact(Fact::Containers(facts));
    bench.image("c");
    assert!(bench.step().starts_with("Start c/0"), "it has ended once and for all");
    // Another sandbox: it is done again.
    bench.fact(Fact::Sandbox(Sandbox::Ready { ip: None, made_at: Some(bench.now) })).image("i");
    assert!(bench.step().contains("Start i/1"));
}

#[test]
fn s12_an_agent_that_begins_after_the_clock_was_set_back_probes_what_runs() {
    let mut bench = Bench::new(probed());
    bench.network().image("c");
    let since = bench.now.checked_add(HOUR).unwrap();
    bench.life("c", 0, Life::Running { since });
    assert!(bench.pass(2).step().contains("Liveness c/0"));
    assert!(bench.view.latest("c").is_some_and(|fact| fact.life == Life::Running { since }), "what is told stays");
}

#[test]
fn x6_s12_an_eviction_that_an_agent_from_before_has_told_of_goes_on() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0).step();
    bench.fact(Fact::Evicted { message: "too much".to_owned() }).step();
    // The next agent has the API's word.
    let recorded = PodView::new(bench.view.pod.clone(), Vec::new()).recorded_eviction();
    assert_eq!(recorded.as_deref(), Some("too much"));
    bench.exited("c", 0, 137).step();
    assert_eq!(PodView::new(bench.view.pod.clone(), Vec::new()).recorded_eviction(), None, "it has ended");
}
