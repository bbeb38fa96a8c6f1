//! The cluster as its users meet it: both versions of the real kubectl, one command line after the other, and what
//! each says. One cluster per test, one namespace per version.

mod bad_input;
mod custom;
mod node;
mod read;
mod write;

use std::process::Output;

use crate::harness::{Cluster, Kubectl, text};

/// Somebody at a terminal with one of the versions, in a namespace of their own.
struct User<'a> {
    cluster: &'a Cluster,
    kubectl: Kubectl,
    namespace: &'static str,
    /// Whether this kubectl is of this decade: flags and commands that 1.20 does not have.
    is_new: bool,
}

/// One user for each version, in turn.
fn with_both(cluster: &Cluster, what: impl Fn(&User<'_>)) {
    for (kubectl, namespace) in [(Kubectl::Newest, "newest"), (Kubectl::Old, "old")] {
        let version = cluster.inside(kubectl.path()).args(["version", "--client"]).output().expect("kubectl");
        let user = User { cluster, kubectl, namespace, is_new: !text(&version).contains("v1.20.") };
        user.says("kubectl create namespace $N", &["created"]);
        what(&user);
    }
}

impl User<'_> {
    /// A line for the shell, in which `kubectl` is this user's and `$N` their namespace.
    fn types(&self, line: &str) -> Output {
        let script = format!("kubectl() {{ timeout 60 \"$K\" --namespace \"$N\" \"$@\"; }}\n{line}");
        self.cluster
            .inside("sh")
            .args(["-c", &script])
            .env("K", self.kubectl.path())
            .env("N", self.namespace)
            .output()
            .expect("sh")
    }

    /// The line succeeds, and every fragment is in what it prints. Gives what it prints.
    fn says(&self, line: &str, fragments: &[&str]) -> String {
        let output = self.types(line);
        assert!(
            output.status.success(),
            "{:?} $ {line}\n{}\n--- log:\n{}",
            self.kubectl,
            text(&output),
            self.cluster.log()
        );
        self.check(line, fragments, &output)
    }

    /// The line fails, and every fragment is in what it prints.
    fn is_refused(&self, line: &str, fragments: &[&str]) {
        let output = self.types(line);
        assert!(!output.status.success(), "{:?} $ {line}\nshould fail\n{}", self.kubectl, text(&output));
        self.check(line, fragments, &output);
    }

    fn check(&self, line: &str, fragments: &[&str], output: &Output) -> String {
        let text = text(output);
        for fragment in fragments {
            assert!(text.contains(fragment), "{:?} $ {line}\nwants: {fragment}\nsays: {text}", self.kubectl);
        }
        text
    }

    /// The columns' names of a table.
    fn columns(&self, line: &str) -> String {
        let output = self.says(line, &[]);
        output
            .lines()
            .next()
            .unwrap_or_default()
            .split("  ")
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// A Deployment of one pod that ends at once when it is told to.
fn deployment(name: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{x: \"1\"}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - {{name: main, image: \"test.local/busybox:1\", command: [sleep, \"100000\"]}}
"
    )
}

/// A line that hands a manifest to a command on standard input.
fn piped(manifest: &str, command: &str) -> String {
    format!("{command} <<'MANIFEST'\n{manifest}\nMANIFEST")
}
