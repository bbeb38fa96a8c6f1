//! The supervisors: this binary re-executed, single-threaded, before any async runtime starts.
//!
//! - `__shim DIR` makes the container in DIR, owns its stdio, log and exit code ([`container`]);
//! - `__exec` runs one command in a running container ([`exec`]);
//! - `__pause DIR CGROUPS CGROUP` is the first process of the PID namespace that the containers of the pod whose
//!   sandbox is DIR share ([`pause`]);
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

/// If the process was started as a supervisor (`__shim DIR`, `__exec`, `__pause`, `__namespaces`), is one and never
/// returns. Called first of all, before there are threads and before the command line is read.
pub fn run_if_supervisor() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|name| name.to_str()) {
        Some("__shim") => shim_main(Path::new(&args.next().unwrap_or_default())),
        Some("__exec") => exec_main(),
        Some("__pause") => {
            let [dir, cgroup_root, cgroup] = [args.next(), args.next(), args.next()].map(Option::unwrap_or_default);
            pause_main(Path::new(&dir), &cgroup_root.to_string_lossy(), &cgroup.to_string_lossy())
        }
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
pub fn pause_main(dir: &Path, cgroup_root: &str, cgroup: &str) -> ! {
    process::close_strangers();
    crate::kernel::leave_no_core_files();
    std::process::exit(pause::hold(dir, cgroup_root, cgroup))
}
