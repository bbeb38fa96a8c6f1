//! `--eviction-hard`, in upstream's syntax: `memory.available<100Mi,nodefs.available<10%`.

use mainstay_api::quantity::Quantity;
use mainstay_logic::kubelet::pressure::{Least, Signal, Thresholds};

/// Reads the flag's value. An empty one is no threshold at all; a percentage of 0 or 100 leaves its signal out.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub fn thresholds(text: &str) -> Result<Thresholds, String> {
    let mut thresholds = Thresholds::new();
    let mut seen = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = |why: &str| format!("{part:?} is no eviction threshold: {why}");
        let (name, value) = part.split_once('<').ok_or_else(|| wrong("it is not SIGNAL<VALUE"))?;
        let (name, value) = (name.trim(), value.trim());
        let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Signal::ALL.iter().map(|signal| signal.name()).collect();
            wrong(&format!("there are the signals {}", names.join(", ")))
        })?;
        if seen.contains(&signal) {
            return Err(wrong("its signal has one already"));
        }
        seen.push(signal);
        let least = match value.strip_suffix('%') {
            Some(percent) => part_of(percent).ok_or_else(|| wrong("a percentage is between 0% and 100%"))?,
            None => {
                let quantity: Option<Quantity> = value.parse().ok();
                let units = quantity.filter(|quantity| !quantity.is_zero()).map(Quantity::units);
                let units = units.and_then(|units| u64::try_from(units).ok());
                Least::Units(units.ok_or_else(|| wrong("its value is neither a percentage nor a positive quantity"))?)
            }
        };
        if !matches!(least, Least::Part(0 | WHOLE)) {
            thresholds.insert(signal, least);
        }
    }
    Ok(thresholds)
}

/// All there is, in thousandths of a percent.
const WHOLE: u32 = 100_000;

fn part_of(percent: &str) -> Option<Least> {
    let percent: f64 = percent.parse().ok()?;
    // In range, so nothing is cut off.
    (0.0..=100.0).contains(&percent).then_some(Least::Part((percent * 1000.0).round() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn thresholds_are_read_in_upstreams_syntax() {
        let upstreams = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,\
                       imagefs.inodesFree<5%";
        let parts = [
            (Signal::MemoryAvailable, Least::Units(100 << 20)),
            (Signal::NodefsAvailable, Least::Part(10_000)),
            (Signal::NodefsInodesFree, Least::Part(5_000)),
            (Signal::ImagefsAvailable, Least::Part(15_000)),
            (Signal::ImagefsInodesFree, Least::Part(5_000)),
        ];
        assert_eq!(thresholds(upstreams).unwrap(), parts.into());
        assert_eq!(thresholds("").unwrap(), Thresholds::new());
        let read = thresholds(" nodefs.available < 1.5% ,pid.available<100,memory.available<0%").unwrap();
        let expected = [(Signal::NodefsAvailable, Least::Part(1500)), (Signal::PidAvailable, Least::Units(100))].into();
        assert_eq!(read, expected);
        for wrong in [
            "nodefs.available",
            "nodefs.available>1%",
            "nodefs<1%",
            "nodefs.available<101%",
            "nodefs.available<NaN%",
            "nodefs.available<-1Gi",
            "nodefs.available<0",
            "nodefs.available<x",
            "nodefs.available<1%,nodefs.available<2%",
        ] {
            assert!(thresholds(wrong).is_err(), "{wrong}");
        }
    }
}
