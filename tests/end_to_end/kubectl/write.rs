//! What changes things: create, apply on both sides, patches, rollouts, deletion.

use super::{User, deployment, piped, with_both};
use crate::harness::Cluster;

#[test]
fn create_apply_patch_and_delete() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        create(user);
        apply(user);
        apply_on_the_server(user);
        patch(user);
        delete(user);
    });
}

fn create(user: &User<'_>) {
    user.is_refused("kubectl create namespace $N", &["(AlreadyExists): namespaces", "already exists"]);
    user.says("kubectl create configmap c --from-literal=a=1", &["configmap/c created"]);
    user.is_refused("kubectl create configmap c --from-literal=a=1", &["configmaps \"c\" already exists"]);
    user.says("kubectl create secret generic s --from-literal=pw=x", &["secret/s created"]);
    user.says("kubectl describe secret s", &["Opaque", "pw:  1 bytes"]);
    user.says("kubectl create sa builder", &["serviceaccount/builder created"]);
    user.says(
        "kubectl create deployment d --image=test.local/busybox:1 --replicas=0 -- sleep 1000",
        &["deployment.apps/d created"],
    );
    user.says("kubectl expose deployment d --port=80 --target-port=8080", &["service/d exposed"]);
    user.says("kubectl create service clusterip ci --tcp=80:8080", &["service/ci created"]);
    user.says("kubectl create service nodeport np --tcp=80", &["service/np created"]);
    user.says("kubectl create service externalname en --external-name=example.org", &["service/en created"]);
    user.says("kubectl get services", &["ExternalName", "example.org", "80:3"]);
    let dry = user.says("kubectl create configmap dry --from-literal=a=1 --dry-run=server -o yaml", &["uid:"]);
    assert!(!dry.contains("resourceVersion"), "it has no version: {dry}");
    user.is_refused("kubectl get configmap dry", &["configmaps \"dry\" not found"]);
    user.says(
        "kubectl delete deployment,service,secret,sa --all",
        &["deployment.apps \"d\" deleted", "service \"np\" deleted"],
    );
}

fn apply(user: &User<'_>) {
    let manifest = deployment("ap");
    let changed = manifest.replace("x: \"1\"", "z: \"2\"");
    user.says(&piped(&manifest, "kubectl apply -f -"), &["deployment.apps/ap created"]);
    user.says(&piped(&manifest, "kubectl apply -f -"), &["deployment.apps/ap unchanged"]);
    user.says(&piped(&manifest, "kubectl diff -f -"), &[]);
    let differences = piped(&changed, "kubectl diff -f -");
    user.is_refused(&differences, &["-    x: \"1\"", "+    z: \"2\""]);
    let output = user.types(&differences);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("resourceVersion: \"\""), "a dry run keeps the version");
    user.says(
        &piped(&changed, "kubectl apply --dry-run=server -f -"),
        &["deployment.apps/ap configured (server dry run)"],
    );
    user.says(&piped(&changed, "kubectl apply -f -"), &["deployment.apps/ap configured"]);
    let labels = user.says("kubectl get deployment ap -o jsonpath='{.metadata.labels}'", &[]);
    assert_eq!(labels, "{\"z\":\"2\"}", "what the manifest no longer names goes");
    user.says("kubectl apply view-last-applied deployment/ap", &["z: \"2\""]);
    user.says(&piped(&manifest, "kubectl replace -f -"), &["deployment.apps/ap replaced"]);
    user.is_refused(&piped(&deployment("none"), "kubectl replace -f -"), &["deployments.apps \"none\" not found"]);
    user.says(&piped(&manifest, "kubectl replace --force -f -"), &["deleted", "replaced"]);
    user.says("kubectl wait --for=condition=Available deployment/ap --timeout=60s", &["condition met"]);
    user.says(
        "EDITOR='sed -i s/replicas:\\ 1/replicas:\\ 2/' kubectl edit deployment ap",
        &["deployment.apps/ap edited"],
    );
    user.says("EDITOR=true kubectl edit deployment ap", &["Edit cancelled, no changes made."]);
    assert_eq!(user.says("kubectl get deployment ap -o jsonpath='{.spec.replicas}'", &[]), "2");
}

fn apply_on_the_server(user: &User<'_>) {
    let manifest = deployment("ss");
    let two = manifest.replace("replicas: 1", "replicas: 2");
    let as_other = "kubectl apply --server-side --field-manager=other -f -";
    user.says(&piped(&manifest, "kubectl apply --server-side -f -"), &["deployment.apps/ss serverside-applied"]);
    user.says(&piped(&manifest, "kubectl apply --server-side -f -"), &["serverside-applied"]);
    user.is_refused(
        &piped(&two, as_other),
        &["Apply failed with 1 conflict: conflict with \"kubectl\"", ".spec.replicas"],
    );
    user.says(&piped(&two, &format!("{as_other} --force-conflicts")), &["serverside-applied"]);
    assert_eq!(user.says("kubectl get deployment ss -o jsonpath='{.spec.replicas}'", &[]), "2");
    user.is_refused(
        &piped(&manifest, "kubectl apply --server-side -f -"),
        &["conflict with \"other\"", ".spec.replicas"],
    );
    user.says("kubectl scale deployment ss --replicas=3", &["scaled"]);
    user.is_refused(&piped(&two, as_other), &["conflict with \"kubectl\" with subresource \"scale\""]);
    let fields = user.says("kubectl get deployment ss -o jsonpath='{.metadata.managedFields}'", &["FieldsV1"]);
    assert!(fields.contains("k:{\\\"name\\\":\\\"main\\\"}"), "lists are kept by key: {fields}");
}

fn patch(user: &User<'_>) {
    let replicas = || user.says("kubectl get deployment ap -o jsonpath='{.spec.replicas}'", &[]);
    user.says("kubectl patch deployment ap -p '{\"spec\":{\"replicas\":3}}'", &["deployment.apps/ap patched"]);
    // kubectl compares the whole object, its status too: it must be at rest.
    user.says("kubectl rollout status deployment/ap --timeout=60s", &["successfully rolled out"]);
    let version = || user.says("kubectl get deployment ap -o jsonpath='{.metadata.resourceVersion}'", &[]);
    let before = version();
    user.says("kubectl patch deployment ap -p '{\"spec\":{\"replicas\":3}}'", &["patched (no change)"]);
    assert_eq!(version(), before, "what changes nothing writes nothing");
    user.says("kubectl patch deployment ap --type=merge -p '{\"spec\":{\"replicas\":2}}'", &["patched"]);
    user.says(
        "kubectl patch deployment ap --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":1}]'",
        &["patched"],
    );
    assert_eq!(replicas(), "1");
    user.is_refused(
        "kubectl patch deployment ap --type=json -p '[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":9}]'",
        &["invalid"],
    );
    user.says("kubectl set env deployment/ap A=B", &["deployment.apps/ap env updated"]);
    let by_key = "kubectl patch deployment ap -p \
        '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"main\",\"env\":[{\"name\":\"Z\",\"value\":\"9\"}]}]}}}}'";
    user.says(by_key, &["patched"]);
    user.says("kubectl set env deployment/ap --list", &["A=B", "Z=9"]);
    user.says("kubectl set resources deployment/ap --limits=memory=64Mi", &["resource requirements updated"]);
    user.says("kubectl label deployment ap team=a", &["labeled"]);
    user.is_refused("kubectl label deployment ap team=b", &["already has a value (a), and --overwrite is false"]);
    user.says("kubectl label deployment ap team=b --overwrite", &["labeled"]);
    user.says("kubectl label deployment ap team-", &["labeled"]);
    user.says("kubectl annotate deployment ap note=x && kubectl annotate deployment ap note-", &["annotated"]);
    user.says("kubectl scale deployment ap --replicas=2 --current-replicas=1", &["deployment.apps/ap scaled"]);
    user.is_refused("kubectl scale deployment ap --replicas=2 --current-replicas=1", &["to be 1, was 2"]);
}

fn delete(user: &User<'_>) {
    user.says("kubectl rollout status deployment/ap --timeout=60s", &["successfully rolled out"]);
    user.says("kubectl delete deployment ap --cascade=orphan", &["deployment.apps \"ap\" deleted"]);
    user.says("kubectl get rs -l app=ap -o name", &["replicaset.apps/ap-"]);
    user.says("kubectl delete rs -l app=ap --cascade=foreground --timeout=60s", &["deleted"]);
    assert_eq!(
        user.says("kubectl get pods -l app=ap -o jsonpath='{.items}'", &[]),
        "[]",
        "foreground: the pods go first"
    );
    let waiting = "(sleep 0.3; kubectl delete deployment ss --cascade=background >/dev/null) & kubectl wait \
        --for=delete deployment/ss --timeout=60s; wait";
    user.says(waiting, &[]);
    user.is_refused("kubectl get deployment ss", &["not found"]);
    user.says("kubectl run p --image=test.local/busybox:1 -- sleep 1000", &["pod/p created"]);
    user.says("kubectl wait --for=condition=Ready pod/p --timeout=60s", &["condition met"]);
    user.says("kubectl delete pod p --grace-period=0 --force", &["force deleted", "Immediate deletion does not wait"]);
    user.is_refused("kubectl delete pod p", &["Error from server (NotFound): pods \"p\" not found"]);
    user.says("kubectl delete pod p --ignore-not-found", &[]);
    user.is_refused("kubectl delete namespace default", &["Forbidden", "this namespace may not be deleted"]);
    user.says("kubectl delete namespace $N --timeout=60s", &["deleted"]);
    user.is_refused("kubectl get configmap c", &["namespaces", "not found"]);
}

#[test]
fn rollouts() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        user.says(&piped(&deployment("d"), "kubectl create -f -"), &["created"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["deployment \"d\" successfully rolled out"]);
        user.says("kubectl set image deployment/d main=test.local/busybox:2", &["deployment.apps/d image updated"]);
        user.is_refused("kubectl set image deployment/d other=x", &["unable to find container named \"other\""]);
        user.is_refused("kubectl rollout status deployment/d --timeout=2s", &["timed out waiting for the condition"]);
        user.says("kubectl get pods", &["ImagePull", "1/1     Running"]);
        user.says("kubectl rollout history deployment/d", &["REVISION  CHANGE-CAUSE", "\n1  ", "\n2  "]);
        user.says("kubectl rollout history deployment/d --revision=2", &["test.local/busybox:2", "pod-template-hash="]);
        user.says("kubectl rollout undo deployment/d", &["deployment.apps/d rolled back"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["successfully rolled out"]);
        user.is_refused(
            "kubectl rollout undo deployment/d --to-revision=77",
            &["unable to find specified revision 77 in history"],
        );
        user.says("kubectl rollout pause deployment/d", &["deployment.apps/d paused"]);
        user.is_refused("kubectl rollout pause deployment/d", &["is already paused"]);
        user.is_refused("kubectl rollout restart deployment/d", &["can't restart paused deployment"]);
        user.says("kubectl set env deployment/d A=B", &["env updated"]);
        let hash = |user: &User<'_>| {
            user.says("kubectl get pods -l app=d -o jsonpath='{.items[*].metadata.labels.pod-template-hash}'", &[])
        };
        let before = hash(user);
        user.says("kubectl rollout resume deployment/d", &["deployment.apps/d resumed"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["successfully rolled out"]);
        user.says("kubectl rollout restart deployment/d", &["deployment.apps/d restarted"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["successfully rolled out"]);
        assert!(!hash(user).contains(&before), "a restart makes new pods");
        user.says("kubectl delete deployment d --now", &["deleted"]);
    });
}
