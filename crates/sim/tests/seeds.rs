//! Worlds from many seeds: no promise is broken, and the end is where a world without faults ends.
//!
//! `MAINSTAY_SIM_SEEDS=1000 MAINSTAY_SIM_FROM=5000` runs more and others; a seed that fails prints itself, the promise
//! and the last lines of its trace (`MAINSTAY_SIM_TRACE=100000`: all of them).

use mainstay_sim::world::{Options, World};

/// Seeds that every run takes: what fits into a minute of a debug build on two cores.
const SEEDS: u64 = 24;
/// Lines of a failed world's trace.
const LINES: u64 = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs the seeds of one share, and tells all that fail.
fn storms(share: u64, shares: u64) {
    let from = number("MAINSTAY_SIM_FROM", 0);
    let mut failed = Vec::new();
    for seed in (from..from + number("MAINSTAY_SIM_SEEDS", SEEDS)).filter(|seed| seed % shares == share) {
        let report = World::new(seed, Options::stormy(seed, None)).run();
        let calm = World::new(seed, Options { one_fault_in: None, ..Options::stormy(seed, None) }).run();
        let mut broken: Vec<String> = [("storm", &report), ("calm", &calm)]
            .iter()
            .filter_map(|(which, report)| report.violation.as_ref().map(|broken| format!("{which}: {broken:?}")))
            .collect();
        if broken.is_empty() && report.end != calm.end {
            let only = |here: &[String], there: &[String]| {
                here.iter().filter(|line| !there.contains(line)).cloned().collect::<Vec<_>>()
            };
            broken.push(format!(
                "S12: with faults {:?}, without {:?}",
                only(&report.end, &calm.end),
                only(&calm.end, &report.end)
            ));
        }
        if !broken.is_empty() {
            eprintln!("{}\nseed {seed}: {broken:?}\n", report.trace.tail(number("MAINSTAY_SIM_TRACE", LINES) as usize));
            failed.push((seed, broken));
        }
    }
    assert!(failed.is_empty(), "MAINSTAY_SIM_FROM=<seed> MAINSTAY_SIM_SEEDS=1 shows one of: {failed:#?}");
}

// Two shares, so that two cores have work.
#[test]
fn storms_break_no_promise_and_lead_to_the_same_end_s12_even_seeds() {
    storms(0, 2);
}

#[test]
fn storms_break_no_promise_and_lead_to_the_same_end_s12_odd_seeds() {
    storms(1, 2);
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [3, 4, 1_000_007] {
        let runs = [(); 2].map(|()| World::new(seed, Options::stormy(seed, None)).run());
        assert_eq!(runs[0].trace.text(), runs[1].trace.text(), "seed {seed}");
        assert!(runs[0].trace.text().len() > 1000);
    }
}
