//! The supervisors: this binary re-executed, single-threaded, before any async runtime starts.

use std::path::Path;

/// If the process was started as a supervisor (`__shim DIR`, `__exec`, `__pause`), is one and never returns.
/// `main` calls this first, before it makes threads or reads its command line.
pub fn run_if_supervisor() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|name| name.to_str()) {
        Some("__shim") => shim_main(Path::new(&args.next().unwrap_or_default())),
        Some("__exec") => exec_main(),
        Some("__pause") => pause_main(),
        _ => (),
    }
}

/// Supervises the container whose folder is `dir`.
pub fn shim_main(_dir: &Path) -> ! {
    std::process::exit(1)
}

/// Runs one command in a running container, for the process that holds the other end of stdin.
pub fn exec_main() -> ! {
    std::process::exit(1)
}

/// The first process of a PID namespace that containers share: reaps, and waits.
pub fn pause_main() -> ! {
    std::process::exit(1)
}
