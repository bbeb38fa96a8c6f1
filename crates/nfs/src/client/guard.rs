//! The deadline of what the kernel's client has mounted (S13): a process beside the mount, since that client knows
//! nothing of deadlines, and the containers that had one may have ended by themselves.

use std::io::{self, Write as _};
use std::time::Duration;

use mainstay_runtime::cgroups::Cgroups;
use mainstay_runtime::fence::Watched;
use mainstay_runtime::kernel;
use mainstay_runtime::safe_path::mounts;
use mainstay_runtime::shim::process;

use super::GuardRequest;

/// How often a mount is cut off again while it is there, or looked for after it was unmounted.
const AGAIN: Duration = Duration::from_millis(100);
/// The stack of the thread that waits for the deadline (bytes).
const STACK: usize = 128 << 10;

/// The process `__nfs-guard WORDS`: says on standard output that it guards the mount, or why not. It ends when the
/// mount is gone.
pub fn guard_main(words: &str) -> ! {
    process::close_strangers();
    process::set_name(c"mainstay-guard");
    // What says that the guard is alive: a lock on this file.
    let _alive = process::take_inherited(0);
    std::process::exit(match begin(words) {
        Ok((request, device)) => {
            let _ = writeln!(io::stdout(), "guarded");
            let _ = process::detach_stdio();
            process::ignore_terminal_signals();
            let waited = mounts::wait_until_gone(&request.target, &device);
            // What was unmounted may still be sending what was written last.
            while mounts::is_known_to_nfs(&device) {
                std::thread::sleep(AGAIN);
            }
            i32::from(waited.is_err())
        }
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            1
        }
    })
}

/// The request, and the device that is mounted.
fn begin(words: &str) -> Result<(GuardRequest, String), String> {
    let request: GuardRequest = serde_json::from_str(words).map_err(|error| error.to_string())?;
    kernel::daemonize().map_err(|error| format!("starting the mount's guard: {error}"))?;
    if !request.cgroup_root.is_empty() {
        Cgroups::detect(&request.cgroup_root).adopt_supervisor(std::process::id());
    }
    let watched = request.fence.watch()?;
    let target = request.target.display();
    let device = mounts::device_at(&request.target).map_err(|error| format!("reading what is mounted: {error}"))?;
    let device = device.ok_or_else(|| format!("nothing is mounted on {target}"))?;
    let paths = vec![request.target.clone()];
    let waiting = std::thread::Builder::new().stack_size(STACK).spawn(move || cut_off(&watched, &paths));
    waiting.map(|_| (request, device)).map_err(|error| format!("cannot watch the deadline: {error}"))
}

fn cut_off(watched: &Watched, paths: &[std::path::PathBuf]) {
    watched.wait();
    loop {
        mounts::cut_off(paths);
        std::thread::sleep(AGAIN);
    }
}
