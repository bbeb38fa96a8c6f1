//! Machines whose name another machine has by now (a Node that was deleted and joined again, a data folder that was
//! copied), while volumes are deleted: they run nothing (S1, S13) and take nothing away (V3, V4).
//!
//! `MAINSTAY_SIM_SEEDS`, `MAINSTAY_SIM_FROM` and `MAINSTAY_SIM_TRACE` as in `seeds`.

use mainstay_sim::monkeys::Script;
use mainstay_sim::world::{Options, World, start};

/// Worlds that every run takes.
const SEEDS: u64 = 10;
/// Lines of a failed world's trace.
const LINES: u64 = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn s1_v3_a_machine_whose_name_another_has_runs_nothing_and_takes_nothing_away() {
    let from = number("MAINSTAY_SIM_FROM", 0);
    let (mut failed, mut replaced) = (Vec::new(), [0, 0]);
    for seed in from..from + number("MAINSTAY_SIM_SEEDS", SEEDS) {
        let options = Options::twins(seed, None);
        let script = Script::of_twins(seed, start(), options.storm);
        let report = World::with_script(seed, options, script).run();
        replaced[usize::from(seed % 2 == 1)] += report.replaced;
        if let Some(broken) = report.violation {
            eprintln!("{}\nseed {seed}: {broken:?}\n", report.trace.tail(number("MAINSTAY_SIM_TRACE", LINES) as usize));
            failed.push((seed, broken));
        }
    }
    println!("{replaced:?} machines found another one, joined and copied");
    assert!(failed.is_empty(), "MAINSTAY_SIM_FROM=<seed> MAINSTAY_SIM_SEEDS=1 shows one of: {failed:#?}");
    assert!(replaced.iter().all(|count| *count > 0), "no machine found another one of its name: it shows nothing");
}
