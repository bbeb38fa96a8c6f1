//! Helm 3 and 4 with a chart of stateful software: hooks that are Jobs, claims, a definition and an object of it.
//! Needs `cargo xtask helm`.

use std::process::Output;

use crate::harness::{Cluster, text};

/// A release of the test's chart, in a namespace of its own.
struct Release<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl Release<'_> {
    /// Helm, whatever comes of it. The release comes after the verb, the chart where it says `CHART`.
    fn attempt(&self, helm: &str, verb: &str, args: &[&str]) -> Output {
        let root = env!("CARGO_MANIFEST_DIR");
        let chart = format!("{root}/tests/end_to_end/chart");
        let mut command = self.cluster.inside(format!("{root}/.cache/helm/{helm}"));
        command.args([verb, self.name]);
        command.args(args.iter().map(|&arg| if arg == "CHART" { chart.as_str() } else { arg }));
        command.args(["--namespace", self.name]);
        command.output().expect("helm (cargo xtask helm)")
    }

    /// Helm that must succeed; what it printed.
    fn helm(&self, helm: &str, verb: &str, args: &[&str]) -> String {
        let output = self.attempt(helm, verb, args);
        assert!(output.status.success(), "{helm} {verb} {}\n{}{}", args.join(" "), text(&output), self.state());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn state(&self) -> String {
        text(&self.cluster.try_kubectl(&["get", "all,pvc,events", "-o", "wide", "-n", self.name]))
    }

    fn field(&self, object: &str, path: &str) -> String {
        self.cluster.kubectl(&["get", object, "-n", self.name, "-o", &format!("jsonpath={path}")])
    }

    /// What the pods wrote into a volume, one word for each start.
    fn editions(&self, pod: usize) -> String {
        let pod = format!("{}-{pod}", self.name);
        self.cluster.kubectl(&["exec", &pod, "-n", self.name, "--", "sh", "-c", "tr '\\n' ' ' < /data/editions"])
    }

    /// All pods of the set are ready and run this edition; nothing of what Helm waited for is left to wait for.
    fn holds(&self, replicas: &str, edition: &str) {
        let ready = self.field(&format!("statefulset/{}", self.name), "{.spec.replicas} {.status.readyReplicas}");
        assert_eq!(ready, format!("{replicas} {replicas}"), "--wait waits for the set{}", self.state());
        assert_eq!(self.field(&format!("configmap/{}", self.name), "{.data.EDITION}"), edition);
    }

    fn hook_logs(&self, hook: &str) -> String {
        let job = format!("job/{}-{hook}", self.name);
        assert_eq!(self.field(&job, "{.status.succeeded}"), "1", "Helm waits for its hooks{}", self.state());
        self.cluster.kubectl(&["logs", &job, "-n", self.name])
    }
}

const WAIT: &[&str] = &["--wait", "--timeout", "60s"];
const SECOND: &[&str] = &["CHART", "--set", "edition=second,replicas=3"];

fn installed<'a>(cluster: &'a Cluster, name: &'static str, helm: &str) -> Release<'a> {
    let release = Release { cluster, name };
    release.helm(helm, "install", &[&["CHART", "--create-namespace"], WAIT].concat());
    release.holds("2", "first");
    release
}

/// What an uninstalled release leaves: volumes outlive it, and nothing else.
fn uninstall(release: &Release<'_>, helm: &str) {
    release.helm(helm, "uninstall", WAIT);
    let objects = |kinds: &str| release.cluster.kubectl(&["get", kinds, "-n", release.name, "-o", "name"]);
    let left = objects("sts,svc,cm,sa,pdb,shelves");
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["configmap/kube-root-ca.crt", "serviceaccount/default"]);
    assert_eq!(objects("pvc").lines().count(), 3);
}

fn life_of_a_release(cluster: &Cluster, name: &'static str, helm: &str) {
    let release = installed(cluster, name, helm);
    assert_eq!(release.hook_logs("pre-install"), "pre-install of first\n");
    assert_eq!(release.editions(1), "first ");
    release.helm(helm, "test", &[]);

    release.helm(helm, "upgrade", &[SECOND, WAIT].concat());
    release.holds("3", "second");
    assert_eq!(release.hook_logs("post-upgrade"), "post-upgrade of second\n");
    assert_eq!((release.editions(0), release.editions(2)), ("first second ".to_owned(), "second ".to_owned()));

    let refused = release.attempt(helm, "upgrade", &["CHART", "--set", "shelf.books=10"]);
    assert!(!refused.status.success() && text(&refused).contains("the shelf is full"), "{}", text(&refused));

    release.helm(helm, "rollback", &[&["1"], WAIT].concat());
    release.holds("2", "first");
    assert_eq!(release.editions(0), "first second first ", "{}", release.state());
    let revisions = release.helm(helm, "history", &[]);
    let states = ["superseded", "failed", "deployed"].map(|word| revisions.contains(word));
    assert_eq!(states, [true; 3], "{revisions}");
    uninstall(&release, helm);
}

#[test]
fn helm_3_and_4_install_upgrade_roll_back_and_uninstall_stateful_software() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    life_of_a_release(&cluster, "by-three", "helm3");
    life_of_a_release(&cluster, "by-four", "helm4");
    // Helm 4 goes on with a release of Helm 3.
    let release = installed(&cluster, "taken-over", "helm3");
    release.helm("helm4", "upgrade", &[SECOND, WAIT].concat());
    release.holds("3", "second");
    uninstall(&release, "helm4");
}
