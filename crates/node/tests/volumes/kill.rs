//! kill -9 of the agent between any two steps: what it leaves is a state from which mounting, unmounting and reclaiming
//! work, and in which everything that was acknowledged is there (V3, V4, V7).

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mainstay_api::kinds;
use mainstay_client::{Informer, ListOptions, Notice};
use mainstay_node::kubelet::PodContext;
use mainstay_node::volumes::reconciler;
use mainstay_runtime::safe_path::mounts;
use serde_json::{Value, json};

use crate::steps::{self, End};
use crate::testbed::{Agent, Testbed, mount};
use crate::{Data, Kind};

/// What the victim is to do; without it, it does nothing.
const ORDERS: &str = "MAINSTAY_TEST_VICTIM";
/// As many moments are tried, where there are more.
const MOMENTS: u64 = 12;

/// The process that is killed. It mounts a pod's volume, writes into it and unmounts; or it waits on a volume that is
/// to be reclaimed.
#[test]
fn victim() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let orders: Value = serde_json::from_str(&orders).unwrap();
    let text = |name: &str| orders[name].as_str().unwrap().to_owned();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let agent = Agent { dir: text("dir").into(), kubeconfig: text("kubeconfig").into(), cgroup_root: text("cgroup") };
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    tokio.block_on(async {
        let kubelet = agent.start();
        if let Some(volume) = orders["volume"].as_str() {
            steps::begin();
            let work = tokio::spawn(reconciler::run(kubelet.clone()));
            let options = ListOptions { field_selector: format!("metadata.name={volume}"), ..ListOptions::default() };
            let mut informer = Informer::new(kubelet.config.client.clone(), &kinds::PERSISTENT_VOLUME, "", options);
            let mut there = None;
            loop {
                match informer.next().await {
                    Notice::Put(_, value) if value["status"]["phase"] == "Available" => break,
                    Notice::Put(..) => there = Some(()),
                    Notice::Gone(..) => break,
                    Notice::Synced if there.is_none() => break,
                    Notice::Synced => {}
                }
            }
            work.abort();
            return;
        }
        let pod = PodContext::new(&serde_json::from_value(orders["pod"].clone()).unwrap());
        let mut acknowledged = OpenOptions::new().append(true).create(true).open(text("acknowledged")).unwrap();
        steps::begin();
        let record = mount(&kubelet, &pod).await.unwrap();
        if orders["writes"] == true {
            let mut row = File::create(record.path.join("row")).unwrap();
            row.write_all(b"ada").and_then(|()| row.sync_all()).unwrap();
            acknowledged.write_all(b"row\n").unwrap();
        }
        acknowledged.write_all(b"unmounting\n").unwrap();
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
    });
}

fn command(testbed: &Testbed, mut orders: Value) -> Command {
    orders["dir"] = json!(testbed.agent.dir);
    orders["kubeconfig"] = json!(testbed.agent.kubeconfig);
    orders["cgroup"] = json!(testbed.agent.cgroup_root);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "kill::victim", "--test-threads", "1"])
        .env(ORDERS, orders.to_string())
        .stdout(Stdio::null());
    command
}

/// After which of so many steps the victim dies: after some of them that the seed says, one from each part, or after
/// all.
pub fn moments(steps: u64) -> Vec<u64> {
    let number = |name: &str, usual| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (wanted, seed) = (number("MAINSTAY_SUITE_MOMENTS", MOMENTS).min(steps), number("MAINSTAY_SUITE_SEED", 1));
    println!("MAINSTAY_SUITE_SEED={seed} MAINSTAY_SUITE_MOMENTS={wanted} of {steps} steps");
    let mut random = seed;
    let pick = |part: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (first, next) = (part * steps / wanted, (part + 1) * steps / wanted);
        1 + first + (random >> 33) % (next - first)
    };
    (0..wanted).map(pick).collect()
}

/// Mounting and unmounting.
pub fn mounting(name: &str, kind: Kind) {
    let testbed = Testbed::new(&format!("{name}-kill"));
    let End::Finished(steps) = mount_and_die(&testbed, kind, u64::MAX) else { unreachable!("it was not killed") };
    assert!(steps > 3, "it did something: {steps}");
    for moment in moments(steps) {
        mount_and_die(&testbed, kind, moment);
    }
}

fn mount_and_die(testbed: &Testbed, kind: Kind, moment: u64) -> End {
    let (instance, pod) = testbed.block_on(async {
        let instance = testbed.fresh(&kind, "Retain").await;
        let pod = testbed.pod(&instance, json!({})).await;
        (instance, pod)
    });
    let acknowledged: PathBuf = testbed.outside.join(format!("acknowledged-{}", instance.number));
    let writes = kind.data != Data::Given;
    let orders = json!({ "pod": *pod.pod, "acknowledged": acknowledged, "writes": writes });
    let end = steps::run(command(testbed, orders), moment);
    let said = fs::read_to_string(&acknowledged).unwrap_or_default();
    let has_row = || said.contains("row");
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        kubelet.volumes.release_unused().await.unwrap();
        let record = mount(&kubelet, &pod).await.unwrap_or_else(|error| panic!("after step {moment}: {error}"));
        let row = || fs::read_to_string(record.path.join("row")).ok();
        if has_row() && (kind.data == Data::Kept || !said.contains("unmounting")) {
            assert_eq!(row().as_deref(), Some("ada"), "V4: after step {moment}");
        }
        if kind.data == Data::Given {
            assert_eq!(fs::read_to_string(record.path.join("key")).unwrap(), "given", "after step {moment}");
        }
        let mut points = mounts::below(&testbed.agent.dir).unwrap();
        points.sort();
        assert!(
            points.windows(2).all(|pair| pair[0] != pair[1]),
            "after step {moment} something is mounted twice: {points:?}"
        );
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new(), "after step {moment}");
        testbed.forget(&pod).await;
        if has_row() && kind.data == Data::Kept {
            let next = testbed.pod(&instance, json!({})).await;
            let record = mount(&kubelet, &next).await.unwrap();
            assert_eq!(fs::read_to_string(record.path.join("row")).unwrap(), "ada", "V4: after step {moment}");
            kubelet.volumes.unmount_pod(&next.uid).await.unwrap();
            testbed.forget(&next).await;
        }
    });
    end
}

/// Reclaiming a volume, by an agent that dies of it.
pub fn reclaiming(testbed: &Testbed, volume: &str, moment: u64) -> End {
    steps::run(command(testbed, json!({ "volume": volume })), moment)
}
