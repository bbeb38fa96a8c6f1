//! Worlds from many seeds.

use std::time::Instant;

use mainstay_sim::world::{Options, World};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn storms_break_no_promise() {
    let from = number("MAINSTAY_SIM_FROM", 0);
    let mut failed = Vec::new();
    for seed in from..from + number("MAINSTAY_SIM_SEEDS", 20) {
        let begun = Instant::now();
        let report = World::new(seed, Options::default()).run();
        eprintln!("seed {seed}: {:?} {} commits {} starts {:?}", begun.elapsed(), report.commits, report.starts, report.violation);
        if let Some(violation) = report.violation {
            if std::env::var("MAINSTAY_SIM_TRACE").is_ok() { eprintln!("{}", report.trace.tail(number("MAINSTAY_SIM_TRACE", 60) as usize)); }
            failed.push((seed, violation));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
