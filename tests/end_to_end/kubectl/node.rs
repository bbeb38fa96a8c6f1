//! The node and its pods: cordon, drain, taints; run, logs, exec, attach, port-forward.

use super::{User, deployment, piped, with_both};
use crate::harness::Cluster;

#[test]
fn nodes_are_cordoned_drained_and_tainted() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        user.says(&piped(&deployment("d"), "kubectl create -f -"), &["created"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["successfully rolled out"]);
        user.says("kubectl cordon node-1", &["node/node-1 cordoned"]);
        user.says("kubectl get nodes", &["Ready,SchedulingDisabled"]);
        // In 1.20's word the node is "evicted", since then "drained".
        user.says("kubectl drain node-1 --ignore-daemonsets --timeout=60s", &["evicted", "\nnode/node-1 "]);
        user.says("kubectl get pods", &["Pending"]);
        user.says("kubectl describe pods", &["0/1 nodes are available: 1 node(s) were unschedulable"]);
        user.says("kubectl taint node node-1 k=v:NoExecute", &["node/node-1 tainted"]);
        user.is_refused("kubectl taint node node-1 k=v:NoExecute", &["already has k taint(s) with same effect(s)"]);
        user.says("kubectl uncordon node-1", &["node/node-1 uncordoned"]);
        user.says("kubectl taint node node-1 k-", &["node/node-1 untainted"]);
        user.says("kubectl rollout status deployment/d --timeout=60s", &["successfully rolled out"]);
        user.says("kubectl delete deployment d", &["deleted"]);
    });
}

#[test]
fn pods_are_run_read_entered_and_reached() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        runs(user);
        logs(user);
        exec(user);
    });
}

fn runs(user: &User<'_>) {
    let quick = "--overrides='{\"spec\":{\"terminationGracePeriodSeconds\":0}}'";
    user.says(
        "echo hello | kubectl run once --rm -i --image=test.local/busybox:1 --restart=Never -- head -n1",
        &["hello", "pod \"once\" deleted"],
    );
    user.says(
        &format!("kubectl run box --image=test.local/busybox:1 {quick} -- httpd -f -p 8080"),
        &["pod/box created"],
    );
    user.says("kubectl wait --for=condition=Ready pod/box --timeout=60s", &["condition met"]);
    user.says("kubectl run fails --image=test.local/busybox:1 --restart=Never -- sh -c 'exit 3'", &["created"]);
    user.cluster.eventually("the pod has failed", || {
        user.says(
            "kubectl get pod fails -o \
            jsonpath='{.status.phase}:{.status.containerStatuses[0].state.terminated.exitCode}'",
            &[],
        ) == "Failed:3"
    });
    user.says("kubectl get pod fails", &["Error"]);
    user.says("kubectl delete pod fails", &["deleted"]);
}

fn logs(user: &User<'_>) {
    let line = "kubectl run talker --image=test.local/busybox:1 --restart=Never -- sh -c 'for i in 1 2 3; do echo \
        line $i; done; echo end >&2'";
    user.says(line, &["created"]);
    user.cluster.eventually("it has spoken", || user.types("kubectl logs talker").stdout.ends_with(b"line 3\nend\n"));
    assert_eq!(user.says("kubectl logs -f talker", &[]), "line 1\nline 2\nline 3\nend\n");
    assert_eq!(user.says("kubectl logs talker --tail=1", &[]), "end\n");
    assert_eq!(user.says("kubectl logs talker --limit-bytes=6", &[]), "line 1");
    user.says("kubectl logs talker --timestamps --since=1h", &["Z line 1\n"]);
    user.says("kubectl logs -l run=talker --prefix", &["[pod/talker/talker] line 1\n"]);
    user.is_refused(
        "kubectl logs talker --previous",
        &["previous terminated container \"talker\" in pod \"talker\" not found"],
    );
    user.is_refused("kubectl logs talker -c nope", &["container nope is not valid for pod talker"]);
    user.is_refused("kubectl logs nothere", &["pods \"nothere\" not found"]);
    user.says("kubectl delete pod talker", &["deleted"]);
}

fn exec(user: &User<'_>) {
    assert_eq!(user.says("kubectl exec box -- hostname", &[]), "box\n");
    assert_eq!(user.says("echo through | kubectl exec -i box -- cat", &[]), "through\n");
    assert_eq!(user.types("kubectl exec box -- sh -c 'exit 7'").status.code(), Some(7));
    user.is_refused("kubectl exec nothere -- true", &["pods \"nothere\" not found"]);
    user.is_refused("kubectl exec box -c nope -- true", &["container nope is not valid for pod box"]);
    user.says("kubectl exec box -- sh -c 'echo page > /index.html'", &[]);
    // A file of this user's own: in one that another left, the old port would be read before the new kubectl empties
    // it.
    let fetch = "said=$HOME/forward-$N; \"$K\" --namespace $N port-forward pod/box :8080 > $said & child=$!
        until port=$(sed -n 's/^Forwarding from 127.0.0.1:\\([0-9]*\\).*/\\1/p' $said) && [ -n \"$port\" ]; do sleep \
            0.05; done
        curl -sS --noproxy '*' --max-time 20 http://127.0.0.1:$port/index.html &&
            curl -sS --noproxy '*' --max-time 20 http://127.0.0.1:$port/nothere; fetched=$?; kill $child; exit \
                $fetched";
    // The second answer has no length: it ends with the pod's end of the connection.
    user.says(fetch, &["page\n", "404 Not Found"]);
    user.says("kubectl delete pod box", &["deleted"]);
}
