//! Nodes fall silent, and nobody comes: their pods run elsewhere, and never twice (S13, S1, S2).
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
fn s13_silent_nodes_pods_run_elsewhere_and_never_twice() {
    let from = number("MAINSTAY_SIM_FROM", 0);
    let (mut failed, mut released) = (Vec::new(), 0);
    for seed in from..from + number("MAINSTAY_SIM_SEEDS", SEEDS) {
        let options = Options::silent(seed, None);
        let script = Script::of_movers(start(), options.storm);
        let report = World::with_script(seed, options, script).run();
        released += report.released;
        if let Some(broken) = report.violation {
            eprintln!("{}\nseed {seed}: {broken:?}\n", report.trace.tail(number("MAINSTAY_SIM_TRACE", LINES) as usize));
            failed.push((seed, broken));
        }
    }
    println!("{released} names were given free");
    assert!(failed.is_empty(), "MAINSTAY_SIM_FROM=<seed> MAINSTAY_SIM_SEEDS=1 shows one of: {failed:#?}");
    assert!(released > 0, "no world had a name given free: it shows nothing");
}
