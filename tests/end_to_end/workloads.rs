//! Jobs, CronJobs, DaemonSets, ReplicationControllers and disruption budgets as a user of kubectl meets them.

use crate::harness::{Checks, Cluster, text};

#[test]
fn jobs_daemons_and_budgets_with_kubectl() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(&cluster.manifest("workloads.yaml"));
    let checks = Checks::default();
    jobs(&cluster, &checks);
    daemons(&cluster, &checks);
    budgets(&cluster, &checks);
    crons(&cluster, &checks);
}

fn jobs(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&["wait", "--for=condition=complete", "job/sums", "--timeout=90s"]);
    checks.equal("every index once", &cluster.field("job/sums", "{.status.completedIndexes}"), "0-2");
    checks.equal("counted once", &cluster.field("job/sums", "{.status.succeeded}"), "3");
    let logs = cluster.kubectl(&["logs", "-l", "batch.kubernetes.io/job-completion-index=2"]);
    checks.equal("its index in variable and host name", logs.trim(), "index 2 on sums-2");
    checks.contains("get job", &cluster.kubectl(&["get", "job", "sums"]), "Complete");
    let held =
        cluster.kubectl(&["get", "pods", "-l", "job-name=sums", "-o", "jsonpath={.items[*].metadata.finalizers}"]);
    checks.equal("nothing is held when all is counted", held.trim(), "");
    cluster.eventually("a Job that failed goes with its pods after its time", || {
        let left = cluster.kubectl(&["get", "jobs,pods", "--ignore-not-found", "-l", "job-name=fails", "-o", "name"]);
        left.trim().is_empty() && !cluster.kubectl(&["get", "jobs", "-o", "name"]).contains("fails")
    });
    let events = cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=fails"]);
    checks.contains("why it failed", &events, "Job has reached the specified backoff limit");
    cluster.kubectl(&["delete", "job", "sums"]);
    cluster.eventually("a deleted Job's pods go", || {
        cluster.kubectl(&["get", "pods", "-l", "job-name=sums", "-o", "name"]).trim().is_empty()
    });
}

fn daemons(cluster: &Cluster, checks: &Checks) {
    let status = cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    checks.contains("rollout status", &status, "daemon set \"agent\" successfully rolled out");
    let image = "test.local/busybox:1";
    cluster.kubectl(&["set", "env", "ds/agent", "COLOUR=blue"]);
    cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[0].metadata.name}"]);
    checks.contains("the new template runs", &cluster.exec(&pod, &["env"]), "COLOUR=blue");
    let history = cluster.kubectl(&["rollout", "history", "ds/agent"]);
    checks.contains("two revisions", &history, "\n2 ");
    cluster.kubectl(&["rollout", "undo", "ds/agent"]);
    cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    checks.equal("undone", &cluster.field("ds/agent", "{.spec.template.spec.containers[0].env}"), "");
    checks.equal("and the rest stays", &cluster.field("ds/agent", "{.spec.template.spec.containers[0].image}"), image);
    checks.contains("get ds", &cluster.kubectl(&["get", "ds", "agent", "--no-headers"]), "1     1     1");
}

fn budgets(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&["wait", "--for=jsonpath={.status.readyReplicas}=2", "rc/old", "--timeout=60s"]);
    cluster.eventually("the budget knows its pods", || cluster.field("pdb/old", "{.status.currentHealthy}") == "2");
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let drain = ["drain", &node, "--ignore-daemonsets", "--force", "--pod-selector=app=old", "--timeout=8s"];
    let refused = text(&cluster.try_kubectl(&drain));
    checks.contains(
        "a budget that allows nothing",
        &refused,
        "Cannot evict pod as it would violate the pod's disruption budget",
    );
    let left = cluster.kubectl(&["get", "pods", "-l", "app=old", "--no-headers"]);
    checks.equal("both still run", &left.matches("Running").count().to_string(), "2");
    cluster.kubectl(&["scale", "rc/old", "--replicas=3"]);
    cluster.kubectl(&["uncordon", &node]);
    cluster.eventually("one may go now", || cluster.field("pdb/old", "{.status.disruptionsAllowed}") == "1");
    cluster.kubectl(&["delete", "pdb", "old"]);
    cluster.kubectl(&["drain", &node, "--ignore-daemonsets", "--force", "--pod-selector=app=old", "--timeout=60s"]);
    let agent = cluster.kubectl(&["get", "pods", "-l", "app=agent", "--no-headers"]);
    checks.contains("the daemon stays on a drained node", &agent, "Running");
    cluster.kubectl(&["uncordon", &node]);
}

fn crons(cluster: &Cluster, checks: &Checks) {
    cluster.kubectl(&["create", "job", "--from=cronjob/tick", "by-hand"]);
    cluster.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"]);
    // Named by its minute since the epoch.
    cluster.eventually("the clock makes a Job", || {
        cluster.kubectl(&["get", "jobs", "-o", "name"]).contains("job.batch/tick-2")
    });
    let shown = cluster.kubectl(&["get", "cj", "tick", "--no-headers"]);
    checks.contains("its time zone is shown", &shown, "Europe/Berlin");
}
