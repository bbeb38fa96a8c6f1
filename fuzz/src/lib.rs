//! From a target of `mainstay_node::fuzzing`, or that of `mainstay_server::fuzzing`, to a program that libFuzzer
//! drives.

use std::path::Path;
use std::sync::OnceLock;

pub use libfuzzer_sys;
use mainstay_node::fuzzing;
use mainstay_runtime::fuzzing::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();
static ANSWERS: Target =
    Target { name: "answers", seeds: mainstay_server::fuzzing::seeds, run: mainstay_server::fuzzing::run, memory: 0 };

/// Chooses the target, and writes its seeds into its corpus, where the engine starts from.
pub fn begin(name: &str) {
    let target = TARGET.get_or_init(|| fuzzing::target(name).or((name == ANSWERS.name).then_some(&ANSWERS)).expect("a \
        target"));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    std::fs::create_dir_all(&corpus).expect("the corpus' folder");
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{number:02}")), seed).expect("a seed");
    }
}

/// One input.
pub fn run(input: &[u8]) {
    if let Some(target) = TARGET.get() {
        (target.run)(input);
    }
}

/// The program of a target.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::begin($name), |input: &[u8]| $crate::run(input));
    };
}
