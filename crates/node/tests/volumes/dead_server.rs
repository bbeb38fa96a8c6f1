//! V11: an NFS server that does not answer slows nobody else, and its own pods can still go.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use mainstay_api::kinds;
use mainstay_node::volumes::reconciler;
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

/// A wire to the server that can be cut so that nobody notices: what is sent arrives when it is mended.
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
