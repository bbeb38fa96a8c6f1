//! Not shipped: what tests re-execute in place of the real binary. As `__shim` and its like it is a container's
//! supervisor; as `start-for-ever DIR CGROUP IMAGE` it is a main process that starts containers until it is killed; as
//! `wait` and `keyring` it is a container's program: one waits, the other one writes the number of its session keyring.

use std::path::PathBuf;

use mainstay_runtime::images::ImageStore;
use mainstay_runtime::{ContainerSpec, Runtime, RuntimeConfig, SandboxSpec};

fn main() {
    mainstay_runtime::shim::run_if_supervisor();
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("wait") => loop {
            std::thread::park();
        },
        Some("keyring") => {
            let (ask, session) = (libc::KEYCTL_GET_KEYRING_ID, libc::KEY_SPEC_SESSION_KEYRING);
            // SAFETY: numbers only.
            return println!("{}", unsafe { libc::syscall(libc::SYS_keyctl, ask, session, 0) });
        }
        _ => {}
    }
    let [_, command, dir, cgroup_root, image] = args.as_slice() else { std::process::exit(2) };
    assert_eq!(command, "start-for-ever");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(start_for_ever(PathBuf::from(dir), cgroup_root, image));
}

async fn start_for_ever(dir: PathBuf, cgroup_root: &str, image: &str) {
    let images = ImageStore::open(&dir.join("images")).unwrap();
    let shim_exe = PathBuf::from("/proc/self/exe");
    let runtime = Runtime::open(RuntimeConfig {
        root: dir.join("containers"),
        cgroup_root: cgroup_root.to_owned(),
        shim_exe,
        images,
    })
    .unwrap();
    let sandbox = SandboxSpec {
        pod_uid: "p1".to_owned(),
        hostname: "p1".to_owned(),
        cgroup: "podp1".to_owned(),
        ..SandboxSpec::default()
    };
    runtime.ensure_sandbox(&sandbox).await.unwrap();
    for attempt in 0.. {
        let spec = ContainerSpec {
            pod_uid: "p1".to_owned(),
            name: format!("main-{}", std::process::id()),
            attempt,
            image_id: image.to_owned(),
            args: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
            log_path: dir.join("log"),
            ..ContainerSpec::default()
        };
        println!("starting");
        runtime.start_container(&spec).await.unwrap();
        println!("{}", spec.id());
    }
}
