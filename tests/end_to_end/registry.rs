//! Pulling from a registry over HTTP: a real one on the loopback of the cluster's namespace, with and without a
//! password. Needs Debian's docker-registry and skopeo.

use std::fs;
use std::process::{Child, Stdio};

use crate::harness::{Checks, Cluster, text};

/// `htpasswd -nbB user secret`: what the registry that asks for a password accepts.
const ACCOUNT: &str = "user:$2y$05$o0fEX6qgWZfEnGrBemyzpeQDMgBJLnuL9n5ZctmkwfzCx3AOdAk/O\n";

/// A registry that ends with the test.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a registry inside, filled with the busybox image as `tools:1`.
fn registry(cluster: &Cluster, port: u16, password: bool) -> Registry {
    let folder = cluster.folder().join(format!("registry-{port}"));
    fs::create_dir_all(&folder).expect("a folder");
    let mut config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\nlog: \
            {{level: error}}\n",
        folder = folder.display()
    );
    if password {
        let accounts = folder.join("accounts");
        fs::write(&accounts, ACCOUNT).expect("written");
        config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", accounts.display());
    }
    let file = folder.join("config.yml");
    fs::write(&file, config).expect("written");
    let mut serve = cluster.inside("docker-registry");
    serve.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let registry = Registry(serve.spawn().expect("docker-registry (Debian's package docker-registry)"));
    cluster.eventually("the registry answers", || {
        cluster
            .inside("curl")
            .args(["-s", "-o", "/dev/null", &format!("http://127.0.0.1:{port}/v2/")])
            .status()
            .expect("curl")
            .success()
    });
    let mut copy = cluster.inside("skopeo");
    copy.args(["copy", "--insecure-policy", "--dest-tls-verify=false"]);
    if password {
        copy.args(["--dest-creds", "user:secret"]);
    }
    let archive = concat!("docker-archive:", env!("CARGO_MANIFEST_DIR"), "/.cache/images/busybox.tar");
    let copied = copy
        .args([archive, &format!("docker://127.0.0.1:{port}/tools:1")])
        .output()
        .expect("skopeo (Debian's package skopeo)");
    assert!(copied.status.success(), "{}", text(&copied));
    registry
}

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
            containers:\n    \
         - {{name: main, image: '{image}', imagePullPolicy: Always, command: [sleep, '100000']}}\n"
    )
}

#[test]
fn images_come_from_a_registry() {
    let cluster = Cluster::new();
    let checks = Checks::default();
    let open = registry(&cluster, 5000, false);
    let _closed = registry(&cluster, 5001, true);
    let waiting = |name: &str| cluster.field(&format!("pod/{name}"), "{.status.containerStatuses[0].state.waiting}");

    cluster.apply(&pod("pulled", "127.0.0.1:5000/tools:1", ""));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/pulled", "--timeout=60s"]);
    checks.contains("it runs", &cluster.exec("pulled", &["echo", "hello"]), "hello");
    let id = cluster.field("pod/pulled", "{.status.containerStatuses[0].imageID}");
    checks.contains("the image's digest", &id, "sha256:");
    let said = cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=pulled"]);
    checks.contains("the pull is told", &said, "Successfully pulled image \"127.0.0.1:5000/tools:1\" in ");

    cluster.apply(&pod("absent", "127.0.0.1:5000/tools:2", ""));
    cluster.eventually("a missing tag is told", || waiting("absent").contains("ImagePullBackOff"));
    let said = cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=absent"]);
    checks.contains("why", &said, "manifest unknown");

    cluster.apply(&pod("stranger", "127.0.0.1:5001/tools:1", ""));
    cluster.eventually("a stranger pulls nothing", || {
        let state = waiting("stranger");
        state.contains("ErrImagePull") || state.contains("ImagePullBackOff")
    });
    cluster.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "account",
        "--docker-server=127.0.0.1:5001",
        "--docker-username=user",
        "--docker-password=secret",
    ]);
    cluster.apply(&pod("friend", "127.0.0.1:5001/tools:1", "  imagePullSecrets: [{name: account}]\n"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/friend", "--timeout=60s"]);

    drop(open);
    cluster.apply(&pod("offline", "127.0.0.1:5000/tools:1", ""));
    cluster.eventually("Always means the registry is asked each time", || waiting("offline").contains("Pull"));
}
