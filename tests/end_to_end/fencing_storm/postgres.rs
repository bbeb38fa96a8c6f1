//! PostgreSQL: rows that were acknowledged are there, whatever its machines meet.

use super::{FENCED, Layout, Workload, Writer, storm};
use crate::harness::Cluster;
use crate::harness::postgres::{Client, POD, TABLE};

/// Troubles of one run, unless told.
const ROUNDS: u64 = 3;
/// The beginning of the set's template, and how it goes on.
const TEMPLATE: (&str, &str) = ("    metadata:\n      labels:\n        app: pg\n", "    spec:\n");

const DATABASE: Workload = Workload {
    image: "postgres",
    set: "pg",
    names: &["pg-0"],
    manifest,
    program: "postgres",
    owner: |_| "pg-0".to_owned(),
    furnish: |asked| {
        POD.accepts(asked);
        POD.psql(asked, TABLE);
    },
    write: |groups| Box::new(Client::start(groups)),
};

fn manifest(cluster: &Cluster) -> String {
    let set = cluster.manifest("pg-statefulset.yaml");
    let (labels, rest) = TEMPLATE;
    let fenced = set.replace(&format!("{labels}{rest}"), &format!("{labels}{FENCED}"));
    assert_ne!(fenced, set, "the manifest is another one");
    fenced.replace("replicas: 3", "replicas: 1").replace("local-path", "nfs")
}

impl Writer for Client {
    fn goes_on(&self, asked: &Cluster, when: &str) {
        Client::goes_on(self, asked, when);
    }

    fn check(&self, asked: &Cluster, after: &str) {
        POD.check(asked, self, after);
    }

    fn count(&self) -> usize {
        self.noted().len()
    }
}

#[test]
fn s13_v4_postgres_is_written_by_one_and_loses_no_acknowledged_row_whatever_its_machines_meet() {
    storm(Layout::OneServer, &DATABASE, 3, ROUNDS);
}

#[test]
fn s13_v4_m1_postgres_moves_between_three_machines_that_are_all_there_is() {
    storm(Layout::ThreeServers, &DATABASE, 3, ROUNDS);
}
