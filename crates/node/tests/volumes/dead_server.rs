//! V11: an NFS server that does not answer slows nobody else, and its own pods can still go. S13: what a pod with a
//! deadline has on its way to one does not arrive after it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mainstay_api::kinds;
use mainstay_nfs::client::{self, GuardRequest};
use mainstay_node::kubelet::environment::Dependencies;
use mainstay_node::kubelet::{Kubelet, PodContext};
use mainstay_node::volumes::reconciler;
use mainstay_runtime::{Deadline, fence};
use serde_json::{Value, json};

use crate::policies::{Policy, release};
use crate::testbed::{Testbed, mount};
use crate::{Data, EMPTY_DIR, Group, Kind, LOCAL_PATH_IMAGE, NFS, Source};

/// A volume behind the wire below, with a client that waits for ever, as far as this test is concerned.
const PATIENT: Kind = behind(
    r#"{"nfs": {"server": "127.0.0.1", "path": "DIR"}, "mountOptions": ["port=3050", "mountport=3050", "softerr", "timeo=6000", "retrans=1"]}"#,
);
/// The same with one that gives up after a second.
const IMPATIENT: Kind = behind(
    r#"{"nfs": {"server": "127.0.0.1", "path": "DIR"}, "mountOptions": ["port=3050", "mountport=3050", "softerr", "timeo=5", "retrans=1"]}"#,
);

const fn behind(source: &'static str) -> Kind {
    Kind { source: Source::Volume(source), data: Data::Kept, group: Group::Ignored }
}

/// A wire to the server that can be cut so that nobody notices: what is sent arrives when it is mended, if whoever sent
/// it still keeps the connection to send it again.
#[derive(Clone, Default)]
struct Wire(Arc<(Mutex<bool>, Condvar)>);

impl Wire {
    fn new() -> Self {
        let wire = Self::default();
        let (listener, of) = (TcpListener::bind("127.0.0.1:3050").unwrap(), wire.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect("127.0.0.1:2049").unwrap();
                of.carry(client.try_clone().unwrap(), server.try_clone().unwrap());
                of.carry(server, client);
            }
        });
        wire
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let wire = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let (cut, mended) = &*wire.0;
                drop(mended.wait_while(cut.lock().unwrap(), |cut| *cut).unwrap());
                if from.take_error().is_ok_and(|error| error.is_some()) {
                    break;
                }
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }

    fn set_cut(&self, cut: bool) {
        *self.0.0.lock().unwrap() = cut;
        self.0.1.notify_all();
    }
}

/// Others mount, write, unmount and are reclaimed; the API answers.
async fn others_go_on(testbed: &Testbed) {
    let kubelet = testbed.agent.start();
    for kind in [EMPTY_DIR, LOCAL_PATH_IMAGE, NFS] {
        let instance = testbed.fresh(&kind, "Delete").await;
        let pod = testbed.pod(&instance, json!({})).await;
        mount(&kubelet, &pod).await.unwrap();
        assert_eq!(testbed.container(&kubelet, &pod, "echo ada > /v/row && cat /v/row").await.unwrap().0, 0);
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        testbed.forget(&pod).await;
    }
}

#[test]
fn v11_a_server_that_does_not_answer_slows_nobody_else() {
    let testbed = Testbed::new("dead-server");
    let wire = Wire::new();
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let reconciler = tokio::spawn(reconciler::run(kubelet.clone()));
        let reader = testbed.pod(&testbed.fresh(&PATIENT, "Retain").await, json!({})).await;
        let late = testbed.pod(&testbed.fresh(&PATIENT, "Retain").await, json!({})).await;
        let path = mount(&kubelet, &reader).await.unwrap().path;
        fs::write(path.join("row"), "ada").unwrap();
        let recycled = release(&testbed, PATIENT, Policy::Recycle, &kubelet).await;

        wire.set_cut(true);
        let reading = tokio::task::spawn_blocking(move || fs::read_to_string(path.join("row")));
        let (node, pod) = (kubelet.clone(), late.clone());
        let mounting = tokio::spawn(async move { mount(&node, &pod).await });
        kubelet.volumes.unmount_pod(&recycled.pod.uid).await.unwrap();
        others_go_on(&testbed).await;
        let deleted = release(&testbed, LOCAL_PATH_IMAGE, Policy::Delete, &kubelet).await;
        kubelet.volumes.unmount_pod(&deleted.pod.uid).await.unwrap();
        testbed.until(&kinds::PERSISTENT_VOLUME, "", &deleted.volume, |volume| volume.is_none()).await;
        let recycling = testbed.admin.get(&kinds::PERSISTENT_VOLUME, "", &recycled.volume).await.unwrap();
        assert_eq!(recycling["status"]["phase"], "Released");
        assert!(!reading.is_finished() && !mounting.is_finished(), "the server did not answer all the while");

        // It comes back: everything goes on where it was.
        wire.set_cut(false);
        assert_eq!(reading.await.unwrap().unwrap(), "ada");
        mounting.await.unwrap().unwrap();
        let is_free = |volume: Option<&Value>| volume.is_some_and(|volume| volume["status"]["phase"] == "Available");
        testbed.until(&kinds::PERSISTENT_VOLUME, "", &recycled.volume, is_free).await;
        for pod in [&reader, &late] {
            kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        }
        reconciler.abort();

        // It does not come back: who waits gets an error, and the pod can go.
        let pod = testbed.pod(&testbed.fresh(&IMPATIENT, "Retain").await, json!({})).await;
        let path = mount(&kubelet, &pod).await.unwrap().path;
        fs::write(path.join("row"), "ada").unwrap();
        wire.set_cut(true);
        tokio::task::spawn_blocking(move || fs::read_to_string(path.join("row"))).await.unwrap().unwrap_err();
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
        wire.set_cut(false);
    });
}

/// Seconds.
const DEADLINE: u32 = 3;
/// What a server adds before it gives a name free.
const MARGIN: Duration = Duration::from_secs(5);

/// What the agent does after a renewal; the deadline that counts from it.
fn renew(kubelet: &Kubelet) -> Deadline {
    let now = fence::boottime();
    kubelet.runtime.renewed(now, now, Duration::from_secs(DEADLINE.into())).unwrap();
    Deadline { seconds: DEADLINE, since: kubelet.runtime.renewals().since }
}

/// A pod with a deadline, not mounted.
async fn with_deadline(testbed: &Testbed, kubelet: &Kubelet, source: &Kind) -> PodContext {
    let pod = testbed.pod(&testbed.fresh(source, "Retain").await, json!({})).await;
    assert_eq!(kubelet.disk.note_deadline(&pod.uid, Some(DEADLINE)).unwrap(), Some(DEADLINE));
    pod
}

/// Writes while the wire is cut, and mends it when the name would be free; whether the write has succeeded.
async fn written_too_late(kubelet: &Kubelet, wire: &Wire, file: fs::File) -> bool {
    wire.set_cut(true);
    let free = kubelet.runtime.renewals().deadline(DEADLINE) + MARGIN;
    let writing = tokio::task::spawn_blocking(move || (&file).write_all(b"lovelace"));
    while !writing.is_finished() && fence::boottime() < free {
        tokio::task::yield_now().await;
    }
    wire.set_cut(false);
    writing.await.unwrap().is_ok()
}

/// Nobody of the pod is left, neither container nor supervisor, when its deadline comes.
#[test]
fn s13_what_a_pod_has_on_its_way_does_not_arrive_after_its_deadline() {
    let testbed = Testbed::new("late-write");
    let wire = Wire::new();
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        renew(&kubelet);
        let pod = with_deadline(&testbed, &kubelet, &PATIENT).await;
        let path = mount(&kubelet, &pod).await.unwrap().path;
        fs::write(path.join("row"), "ada ").unwrap();
        let file = fs::File::options().append(true).open(path.join("row")).unwrap();
        assert!(!written_too_late(&kubelet, &wire, file).await, "S13: it arrives when another may write");
        let lost = fs::metadata(&path).unwrap_err().raw_os_error();
        assert_eq!(lost, Some(libc::ENOTCONN), "its client is gone");

        // The node is heard again: what starts now is on the volume, and nothing of before is there.
        let recover =
            async |deadline| kubelet.volumes.recover(&kubelet, &pod, Some(deadline), &mut Dependencies::new()).await;
        let deadline = renew(&kubelet);
        recover(deadline).await.unwrap();
        assert_eq!(fs::read_to_string(path.join("row")).unwrap(), "ada ");

        // After another gap, whose end its client may not know yet, it is mounted anew: it would end under what starts.
        let passed = kubelet.runtime.renewals().deadline(DEADLINE);
        let later = passed + MARGIN;
        kubelet.runtime.renewed(later, later, Duration::from_secs(DEADLINE.into())).unwrap();
        recover(Deadline { since: later, ..deadline }).await.unwrap();
        while fence::boottime() < passed + Duration::from_secs(1) {
            assert_eq!(fs::read_to_string(path.join("row")).unwrap(), "ada ");
            tokio::task::yield_now().await;
        }
        kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
        assert_eq!(testbed.left(&pod.uid), Vec::<String>::new());
    });
}

/// The same where the client has no deadline, as the kernel's, but a guard beside it, which goes with the mount.
#[test]
fn s13_a_mounts_guard_cuts_it_off_at_its_deadline() {
    let testbed = Testbed::new("guard");
    let wire = Wire::new();
    testbed.block_on(async {
        let kubelet = testbed.agent.start();
        let alive = testbed.outside.join("alive");
        let guard = |target: &std::path::Path, deadline| {
            let file = fs::File::options().create(true).append(true).open(&alive).unwrap();
            file.lock().unwrap();
            let (target, cgroup_root) = (target.to_owned(), testbed.agent.cgroup_root.clone());
            let request = GuardRequest { target, cgroup_root, fence: kubelet.runtime.fence(deadline) };
            client::guard(&kubelet.config.shim_exe, &request, file)
        };
        let is_alive = || fs::File::open(&alive).unwrap().try_lock().is_err();
        let deadline = renew(&kubelet);
        for is_unmounted in [true, false] {
            let pod = testbed.pod(&testbed.fresh(&PATIENT, "Retain").await, json!({})).await;
            let path = mount(&kubelet, &pod).await.unwrap().path;
            assert!(guard(&path.join("none"), deadline).unwrap_err().contains("nothing is mounted"));
            let deadline = renew(&kubelet);
            guard(&path, deadline).unwrap();
            assert!(is_alive());
            if is_unmounted {
                kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
            } else {
                let file = fs::File::create(path.join("row")).unwrap();
                assert!(!written_too_late(&kubelet, &wire, file).await, "S13: it arrives when another may write");
                kubelet.volumes.unmount_pod(&pod.uid).await.unwrap();
            }
            while is_alive() {
                tokio::task::yield_now().await;
            }
        }
        assert!(guard(&testbed.outside, deadline).unwrap_err().contains("has not renewed its lease"));
    });
}
