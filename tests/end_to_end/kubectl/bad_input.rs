//! Bad input gets Kubernetes' own answer, and leaves nothing behind (A9, X4).

use super::{User, deployment, piped, with_both};
use crate::harness::{Cluster, text};

/// A pod; `spec` and `container` go in as they are.
fn pod(name: &str, spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 0, containers: \
            [{{name: main, image: 'test.local/busybox:1', command: [sleep, '100000']{container}}}]{spec}}}"
    )
}

#[test]
fn a4_x4_bad_manifests_are_refused_in_upstreams_words() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        shapes(user);
        values(user);
        sizes(user);
        changes(user);
        assert_eq!(
            user.says("kubectl get pods,svc,sts,secret -o jsonpath='{.items[*].metadata.name}'", &[]),
            "ok st",
            "A9: nothing else came to be"
        );
    });
}

fn create(user: &User<'_>, manifest: &str, fragments: &[&str]) {
    user.is_refused(&piped(manifest, "kubectl create -f -"), fragments);
}

fn shapes(user: &User<'_>) {
    let unknown = pod("unknown", ", bogus: 1", "");
    if user.is_new {
        create(user, &unknown, &["(BadRequest)", "strict decoding error: unknown field \"spec.bogus\""]);
        user.says(
            &piped(&unknown, "kubectl create --validate=warn --dry-run=server -f -"),
            &["Warning: unknown field \"spec.bogus\""],
        );
    } else {
        create(user, &unknown, &["unknown field \"bogus\" in io.k8s.api.core.v1.PodSpec"]);
    }
    user.says(&piped(&unknown, "kubectl create --validate=false --dry-run=server -f -"), &["pod/unknown created"]);
    create(user, "this is: [not yaml", &["error converting YAML to JSON"]);
    create(user, "just text", &["error validating"]);
    create(user, "{\"a\":", &["unexpected EOF"]);
    create(
        user,
        "kind: Nope\napiVersion: v1\nmetadata: {name: x}",
        &["no matches for kind \"Nope\" in version \"v1\""],
    );
    create(user, "kind: Pod\napiVersion: v7\nmetadata: {name: x}", &["no matches for kind \"Pod\" in version \"v7\""]);
    create(user, "metadata: {name: x}", &["apiVersion not set"]);
    create(
        user,
        "kind: ConfigMap\napiVersion: v1",
        &["metadata.name: Required value: name or generateName is required"],
    );
    let wrong = piped(&pod("typed", ", priority: high", ""), "kubectl create --validate=false -f -");
    user.is_refused(
        &wrong,
        &["(BadRequest)", "cannot unmarshal string into Go struct field PodSpec.spec.priority of type int32"],
    );
    user.is_refused(&piped(&deployment("x"), "kubectl create -n nowhere -f -"), &["namespace"]);
    user.is_refused(
        &piped(&deployment("x"), "\"$K\" -n nowhere create -f -"),
        &["(NotFound)", "namespaces \"nowhere\" not found"],
    );
}

fn values(user: &User<'_>) {
    for (manifest, fragment) in [
        (
            pod("Bad_Name", "", ""),
            "metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            pod("bad", ", restartPolicy: Sometimes", ""),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \
                \"Never\"",
        ),
        (
            pod("bad", "", ", ports: [{containerPort: 99999}]"),
            "containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
        ),
        (pod("bad", "", ", resources: {requests: {memory: lots}}"), "quantities must match the regular expression"),
        (
            pod("bad", "", ", resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}"),
            "must be less than or equal to memory limit of 1Gi",
        ),
        (
            pod("bad", "", ", volumeMounts: [{name: x, mountPath: /x}]"),
            "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
        ),
        (
            pod("bad", "", ", livenessProbe: {periodSeconds: 1}"),
            "livenessProbe: Required value: must specify a handler type",
        ),
        (pod("bad", "", ", imagePullPolicy: Often"), "imagePullPolicy: Unsupported value: \"Often\""),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: []}".to_owned(),
            "spec.containers: Required value",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: '***'}".to_owned(),
            "illegal base64 data at input byte 0",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: []}".to_owned(),
            "spec.ports: Required value",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}"
                .to_owned(),
            "the provided network does not match the current range",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: 1s}\nspec: {ports: [{port: 80}]}".to_owned(),
            "a DNS-1035 label must consist of",
        ),
        (
            deployment("d").replace("matchLabels: {app: d}", "matchLabels: {app: e}"),
            "`selector` does not match template `labels`",
        ),
        (
            deployment("d").replace("replicas: 1", "replicas: -1"),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
    ] {
        create(user, &manifest, &[fragment]);
    }
}

fn sizes(user: &User<'_>) {
    let file = |bytes: usize| format!("head -c {bytes} /dev/zero | tr '\\0' a > $HOME/big; ");
    let create = "kubectl create configmap big --from-file=$HOME/big";
    user.is_refused(
        &(file(2_000_000) + create),
        &["\"big\" is invalid: []: Too long: may not be more than 1048576 bytes"],
    );
    user.is_refused(&(file(4_000_000) + create), &["Request entity too large: limit is 3145728"]);
    let deep = "printf '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"deep\"},\"data\":' > \
        $HOME/deep;
        head -c 100000 /dev/zero | tr '\\0' '[' >> $HOME/deep; kubectl create --raw /api/v1/namespaces/$N/configmaps \
            -f $HOME/deep";
    user.is_refused(deep, &["(BadRequest)", "exceeded max depth"]);
    user.is_refused("kubectl get --raw '/api/v1/pods?limit=x'", &["(BadRequest)"]);
    user.is_refused("kubectl get --raw '/api/v1/pods?resourceVersion=x'", &["(BadRequest)", "Invalid value: \"x\""]);
    user.is_refused("kubectl get --raw '/api/v1/pods?continue=xyz'", &["(BadRequest)", "continue key is not valid"]);
    user.is_refused(
        "kubectl get --raw '/api/v1/pods?resourceVersion=999999999'",
        &["(Timeout)", "Too large resource version"],
    );
}

fn changes(user: &User<'_>) {
    let ok = pod("ok", "", "");
    user.says(&piped(&ok, "kubectl apply -f -"), &["pod/ok created"]);
    user.is_refused(
        &piped(&ok.replace("100000", "5"), "kubectl apply -f -"),
        &["spec: Forbidden: pod updates may not change fields other than"],
    );
    user.says("kubectl get pod ok -o yaml > $HOME/stale.yaml && kubectl label pod ok v=1", &["labeled"]);
    user.is_refused("sed 's/^  name: ok/  name: ok\\n  labels: {v: \"2\"}/' $HOME/stale.yaml | kubectl replace -f -", &[
        "(Conflict)",
        "Operation cannot be fulfilled on pods \"ok\": the object has been modified; please apply your changes to the \
            latest version and try again",
    ]);
    user.is_refused(
        "kubectl patch pod ok -p '{\"metadata\":{\"uid\":\"x\"}}'",
        &["(Conflict)", "Precondition failed: UID in precondition: x"],
    );
    user.is_refused(
        "kubectl patch pod ok -p '{\"metadata\":{\"name\":\"x\"}}'",
        &["the name of the object (x) does not match the name on the URL (ok)"],
    );
    user.is_refused(
        "kubectl patch pod ok --type=json -p '[{\"op\":\"remove\",\"path\":\"/spec/nothing\"}]'",
        &["invalid"],
    );
    let set = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: st}\nspec:\n  serviceName: st\n  replicas: \
        0\n  selector: {matchLabels: {app: st}}\n  template:\n    metadata: {labels: {app: st}}\n    spec: \
        {containers: [{name: main, image: 'test.local/busybox:1'}]}";
    user.says(&piped(set, "kubectl apply -f -"), &["statefulset.apps/st created"]);
    let renamed = set.replace("serviceName: st", "serviceName: other");
    user.is_refused(
        &piped(&renamed, "kubectl apply -f -"),
        &["spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"],
    );
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {accessModes: \
        [ReadWriteOnce], resources: {requests: {storage: 5Mi}}}";
    user.says(&piped(claim, "kubectl apply -f -"), &["persistentvolumeclaim/c created"]);
    user.is_refused(
        &piped(&claim.replace("ReadWriteOnce", "ReadWriteMany"), "kubectl apply -f -"),
        &["spec is immutable after creation"],
    );
}

#[test]
fn an_image_that_is_cut_or_missing_is_said_to_be() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    let whole = std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/images/busybox.tar"))
        .expect("the image");
    let cut = cluster.data_dir().with_file_name("cut.tar");
    let load = || {
        let output = cluster
            .mainstay(&["image", "load", "--data-dir"])
            .arg(cluster.data_dir())
            .arg(&cut)
            .output()
            .expect("mainstay");
        assert!(!output.status.success());
        text(&output)
    };
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("written");
    assert!(load().contains("is truncated"), "{}", load());
    std::fs::write(&cut, b"no archive").expect("written");
    assert!(load().contains("cut.tar is not usable"), "{}", load());
    let images = cluster.mainstay(&["image", "ls", "--data-dir"]).arg(cluster.data_dir()).output().expect("mainstay");
    assert_eq!(text(&images).matches("test.local/").count(), 1, "A9: {}", text(&images));

    let missing = pod("missing", "", "").replace("busybox:1", "nothere:1");
    cluster.apply(&missing);
    cluster.eventually("the pull is backed off", || {
        cluster.field("pod/missing", "{.status.containerStatuses[0].state.waiting.reason}") == "ImagePullBackOff"
    });
    let description = cluster.kubectl(&["describe", "pod", "missing"]);
    for said in ["Failed to pull image \"test.local/nothere:1\"", "Error: ErrImagePull", "Back-off pulling image"] {
        assert!(description.contains(said), "{said}:\n{description}");
    }
    cluster.kubectl(&["delete", "pod", "missing", "--timeout=60s"]);
}

#[test]
fn a1_a2_on_a_full_disk_writes_are_refused_reads_go_on_and_nothing_is_lost() {
    let mut cluster = Cluster::unstarted();
    let data = cluster.data_dir();
    std::fs::create_dir_all(&data).expect("a folder");
    let mounted = cluster
        .inside("mount")
        .args(["-t", "tmpfs", "-o", "size=24m,mode=0755", "none"])
        .arg(&data)
        .status()
        .expect("mount");
    assert!(mounted.success());
    cluster.up();
    cluster.kubectl(&["create", "configmap", "before", "--from-literal=a=1"]);
    let filler = data.join("filler");
    // Again and again: what the server was about to write when the disk was full gives its room back.
    let fill = || {
        let of = format!("of={}", filler.display());
        cluster.inside("dd").args(["if=/dev/zero", "bs=64k", "oflag=append", "conv=notrunc", &of]).output().expect("dd")
    };
    let big = data.with_file_name("big");
    std::fs::write(&big, "b".repeat(900_000)).expect("written");
    // The store's file may have room for a little more; not for this much.
    let refusals: Vec<String> = (0..8)
        .map(|n| {
            fill();
            cluster.try_kubectl(&[
                "create",
                "configmap",
                &format!("full-{n}"),
                &format!("--from-file={}", big.display()),
            ])
        })
        .filter(|output| !output.status.success())
        .map(|output| text(&output))
        .collect();
    assert!(!refusals.is_empty(), "nothing was refused");
    assert!(
        refusals
            .iter()
            .all(|said| said.contains("no room left (the server's disk, or etcd's quota); nothing was changed")),
        "{refusals:?}"
    );
    let made = cluster.kubectl(&["get", "configmaps", "-o", "name"]);
    assert!(made.contains("configmap/before"), "{made}");
    assert_eq!(made.matches("full-").count(), 8 - refusals.len(), "A9: {made}");
    assert!(cluster.inside("rm").arg(&filler).status().expect("rm").success());
    cluster.eventually("writes go on", || cluster.try_kubectl(&["create", "configmap", "after"]).status.success());
    cluster.kill9();
    cluster.up();
    let kept = cluster.kubectl(&["get", "configmaps", "-o", "name"]);
    assert!(kept.contains("configmap/before") && kept.contains("configmap/after"), "A2: {kept}");
    assert_eq!(kept.matches("full-").count(), 8 - refusals.len(), "A2: {kept}");
}
