//! RabbitMQ forms its cluster by Kubernetes peer discovery: its members find each other by the API, with their pods'
//! account and certificates, and go by their pods' names, which stay theirs when a member is killed (S1, V4).

use crate::harness::Cluster;

const MEMBERS: [&str; 3] = ["rabbit-0", "rabbit-1", "rabbit-2"];

fn rabbitmqctl(cluster: &Cluster, member: &str, words: &[&str]) -> String {
    cluster.exec(member, &[&["rabbitmqctl", "--silent"], words].concat())
}

/// All members are ready, and each one has all three, and these virtual hosts.
fn is_whole(cluster: &Cluster, hosts: &[&str]) {
    cluster.kubectl(&["rollout", "status", "statefulset/rabbit", "--timeout=120s"]);
    for member in MEMBERS {
        let status = rabbitmqctl(cluster, member, &["eval", "lists:sort(rabbit_nodes:all_running())."]);
        let names = MEMBERS.map(|name| format!("'rabbit@{name}.rabbit.default.svc.cluster.local'"));
        let seen: String = status.split_whitespace().collect();
        assert_eq!(seen, format!("[{}]", names.join(",")), "as {member} sees it");
        let listed = rabbitmqctl(cluster, member, &["list_vhosts"]);
        let missing: Vec<_> = hosts.iter().filter(|host| !listed.lines().any(|line| line == **host)).collect();
        assert!(missing.is_empty(), "{member} lacks {missing:?}");
    }
}

#[test]
fn s1_v4_rabbitmq_finds_its_members_by_the_api_and_again_after_a_kill() {
    let mut cluster = Cluster::unstarted().open_to_pods();
    cluster.up();
    cluster.load(&["rabbitmq"]);
    cluster.apply(&cluster.manifest("rabbitmq.yaml"));
    is_whole(&cluster, &[]);
    rabbitmqctl(&cluster, "rabbit-0", &["add_vhost", "before"]);

    let uid = cluster.uid("pod/rabbit-2");
    cluster.kubectl(&["delete", "pod", "rabbit-2", "--force", "--grace-period=0"]);
    rabbitmqctl(&cluster, "rabbit-0", &["add_vhost", "meanwhile"]);
    cluster
        .eventually("another pod has its name", || !["", uid.as_str()].contains(&cluster.uid("pod/rabbit-2").as_str()));
    is_whole(&cluster, &["before", "meanwhile"]);
    cluster.no_promise_is_broken();
}
