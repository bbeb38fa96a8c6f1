//! The supervisors: this binary re-executed, single-threaded, before any async runtime starts.
//!
//! - `__shim DIR` makes the container in DIR, owns its stdio, log and exit code ([`container`]);
//! - `__exec` runs one command in a running container ([`exec`]);
//! - `/pause` is the first process of the PID namespace that a pod's containers share, by the name that it has with
//!   upstream's runtimes and without arguments, since they see it ([`pause`]);
//! - `__namespaces` makes the namespaces of a pod with a user namespace ([`crate::user_namespace`]).

pub mod answers;
mod confinement;
mod container;
mod exec;
mod executor;
mod late_mounts;
mod log;
mod log_lines;
mod mapped;
pub mod pause;
pub mod process;
pub mod relay;
mod sentinel;
pub mod wire;

use std::path::Path;

pub use executor::DEFAULT_PATH;

/// If the process was started as a supervisor (`__shim DIR`, `__exec`, `__namespaces`, or under the name `/pause`), is
/// one and never returns. Called first of all, before there are threads and before the command line is read.
pub fn run_if_supervisor() {
    let mut args = std::env::args_os();
    if args.next().is_some_and(|name| name == pause::PROGRAM) {
        pause_main();
    }
    match args.next().as_deref().and_then(|name| name.to_str()) {
        Some("__shim") => shim_main(Path::new(&args.next().unwrap_or_default())),
        Some("__exec") => exec_main(),
        Some("__namespaces") => {
            process::close_strangers();
            std::process::exit(crate::user_namespace::hold())
        }
        _ => (),
    }
}

/// Supervises the container whose folder is `dir`.
pub fn shim_main(dir: &Path) -> ! {
    process::close_strangers();
    crate::kernel::leave_no_core_files();
    std::process::exit(container::supervise(dir))
}

/// Runs one command in a running container, for the process that holds the other end of stdin.
pub fn exec_main() -> ! {
    process::close_strangers();
    crate::kernel::leave_no_core_files();
    std::process::exit(exec::execute())
}

/// The first process of a PID namespace that containers share.
pub fn pause_main() -> ! {
    process::close_strangers();
    crate::kernel::leave_no_core_files();
    std::process::exit(pause::hold())
}
