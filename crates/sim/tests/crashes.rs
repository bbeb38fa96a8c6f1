//! S12: the server dies after each single write of one scenario, and every object is made and taken away exactly as
//! often as without. With the decisions' writes as one transaction, and one by one.

use jiff::SignedDuration;
use mainstay_api::kinds;
use mainstay_sim::monkeys::{Deed, Script, Wanted};
use mainstay_sim::server::Mode;
use mainstay_sim::world::{Counts, Options, Report, World, start};

/// Worlds per mode; the writes between are left to other numbers (`MAINSTAY_SIM_CRASHES=1000`: every write).
const CRASHES: u64 = 8;

fn scenario() -> Script {
    let wanted = Wanted {
        name: "web".to_owned(),
        replicas: 2,
        image: "app:1".to_owned(),
        is_parallel: false,
        claims: Some("ReadWriteOnce"),
        is_static: false,
        deletes: (false, true),
        tolerates: None,
    };
    let at = |seconds| start().saturating_add(SignedDuration::from_secs(seconds)).unwrap();
    let deeds = vec![
        (at(1), Deed::Apply(wanted)),
        (at(40), Deed::Image("web".to_owned(), "app:2".to_owned())),
        (at(80), Deed::Delete(kinds::POD.clone(), "web-0".to_owned(), None)),
        (at(110), Deed::Scale("web".to_owned(), 1)),
    ];
    Script { deeds, last: Vec::new() }
}

fn run(mode: Mode, dies_after: Option<u64>) -> Report {
    let options = Options { nodes: 2, one_fault_in: None, storm: 140, mode, ..Options::default() };
    let mut world = World::with_script(1, options, scenario());
    world.server.dies_after = dies_after;
    world.run()
}

/// Without what is named after a uid.
fn lasting(counts: &Counts) -> Counts {
    let kinds = ["StatefulSet", "Pod", "PersistentVolumeClaim", "ControllerRevision", "Service", "Endpoints"];
    counts
        .iter()
        .filter(|((kind, _), _)| kinds.contains(&kind.as_str()))
        .map(|(at, count)| (at.clone(), *count))
        .collect()
}

fn crash_after_each(mode: Mode) {
    let calm = run(mode, None);
    assert_eq!(calm.violation, None);
    assert!(calm.commits > 50 && calm.end.iter().any(|line| line.contains("data-web-0")));
    let crashes = std::env::var("MAINSTAY_SIM_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(CRASHES);
    let stride = (calm.commits / crashes).max(1);
    for write in (0..calm.commits).step_by(usize::try_from(stride).unwrap()) {
        let crashed = run(mode, Some(write));
        let trace = || crashed.trace.tail(40);
        assert!(crashed.trace.text().matches("is down").count() > 0, "nothing died after write {write}");
        assert_eq!(crashed.violation, None, "after write {write} of {mode:?}\n{}", trace());
        assert_eq!(crashed.end, calm.end, "after write {write} of {mode:?}\n{}", trace());
        assert_eq!(
            lasting(&crashed.counts),
            lasting(&calm.counts),
            "after write {write} of {mode:?}\n{}",
            crashed.trace.text()
        );
        assert_eq!(crashed.starts, calm.starts, "S11 after write {write} of {mode:?}");
    }
}

#[test]
fn s12_a_crash_after_any_write_of_whole_decisions() {
    crash_after_each(Mode::Whole);
}

#[test]
fn s12_a_crash_after_any_write_of_decisions_write_by_write() {
    crash_after_each(Mode::OneByOne);
}
