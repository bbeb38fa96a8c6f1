//! The supervisors: this binary re-executed, single-threaded, before any async runtime starts.
//!
//! - `__shim DIR` makes the container in DIR, owns its stdio, log and exit code ([`container`]);
//! - `__exec` runs one command in a running container ([`exec`]);
//! - `__pause [NAMESPACE]` is the first process of a PID namespace that a pod's containers share, in the pod's user
//!   namespace where it has one;
//! - `__namespaces` makes the namespaces of a pod with a user namespace ([`crate::user_namespace`]).

mod confinement;
mod container;
mod exec;
mod executor;
mod log;
mod log_lines;
mod mapped;
pub mod process;
pub mod relay;
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
        Some("__pause") => pause_main(args.next().as_deref().map(Path::new)),
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

/// The first process of a PID namespace that containers share: reaps, and waits until it is killed. It is nobody in
/// particular: root of the pod's user namespace, where it has one.
pub fn pause_main(user_namespace: Option<&Path>) -> ! {
    process::close_strangers();
    if let Some(path) = user_namespace
        && mapped::enter_as_root(path).is_err()
    {
        std::process::exit(1);
    }
    let _ = process::detach_stdio();
    let _ = nix::unistd::setsid();
    process::set_name(c"mainstay-pause");
    // Without a handler the kernel keeps every signal but SIGKILL from a namespace's first process, and reaps its
    // children by itself where SIGCHLD is ignored.
    // SAFETY: setting a disposition to SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    crate::kernel::release_start();
    loop {
        nix::unistd::pause();
    }
}
