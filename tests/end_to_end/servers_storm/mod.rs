//! Three members of etcd, three servers, each on a machine of its own, and clients on another one. Servers and members
//! are killed, paused and cut off while the clients write down what they did and saw; then all of that is judged: each
//! key's history is linearizable (A1, M2), no revision goes back (A3, A5), no watcher misses or repeats anything (A4,
//! M2), nothing happens twice (A9). `MAINSTAY_STORM_ROUNDS=200` for a long one.

mod clients;
mod judge;

use std::time::{Duration, Instant};

use mainstay_client::Config;

use crate::harness::Cluster;
use crate::harness::etcd::{Etcd, Member};
use crate::harness::machines::{Lan, address};
use crate::harness::random::{self, Random};
use clients::Clients;

/// Troubles of one run, unless told.
const ROUNDS: u64 = 8;
/// How long a trouble lasts.
const TROUBLE: Duration = Duration::from_millis(2500);
/// How long it is calm between two.
const CALM: Duration = Duration::from_millis(1200);
/// The troubles of a single server that is gone or silent: killed, standing still.
const ONE_SERVER: [u64; 2] = [0, 5];
/// A client that knows all servers has an answer within this while one of them is in trouble: it asks another after 250
/// ms; the rest is for a loaded machine.
const NO_ANSWER: Duration = Duration::from_millis(1500);
/// A controller's Lease stands still for 3 s before another server takes it.
const FAILOVER: Duration = Duration::from_secs(5);

/// The machines: members on 1 to 3, servers on 4 to 6, clients on 9.
struct World {
    lan: Lan,
    etcd: Etcd,
    members: Vec<Option<Member>>,
    member_machines: Vec<Cluster>,
    servers: Vec<Cluster>,
    home: Cluster,
}

fn number(of: usize) -> u8 {
    u8::try_from(of).expect("few")
}

impl World {
    fn new() -> Self {
        let lan = Lan::new();
        let machine = |number: u8| {
            let machine = Cluster::unstarted().open_to_pods();
            lan.plug(&machine, number);
            machine
        };
        let member_machines: Vec<Cluster> = (1..=3).map(machine).collect();
        let servers: Vec<Cluster> = (4..=6).map(machine).collect();
        let home = machine(9);
        let etcd = Etcd::on(&[1, 2, 3]);
        let members = (1..).zip(&member_machines).map(|(number, machine)| Some(etcd.start(machine, number))).collect();
        (1..).zip(&member_machines).for_each(|(number, machine)| etcd.answers(machine, number));
        let mut world = Self { lan, etcd, members, member_machines, servers, home };
        world.serve(0);
        let seal = std::fs::read(world.servers[0].data_dir().join("seal.key")).expect("the seal");
        for index in 1..3 {
            std::fs::create_dir_all(world.servers[index].data_dir()).expect("a folder");
            std::fs::write(world.servers[index].data_dir().join("seal.key"), &seal).expect("brought");
            world.serve(index);
        }
        world
    }

    fn server_number(index: usize) -> u8 {
        number(index) + 4
    }

    fn serve(&mut self, index: usize) {
        let (own, store) = (address(Self::server_number(index)), self.etcd.store());
        // Without waiting: etcd may not have a leader just now.
        let words = ["--advertise-address", &own, "--store", &store, "--pod-network", "routes"];
        self.servers[index].serve_unready(&words);
        let server = &self.servers[index];
        let ready =
            || server.inside("curl").args(["-skf", "--noproxy", "*", &format!("https://{own}:6443/readyz")]).output();
        server.eventually("it serves", || ready().expect("curl").status.success());
    }

    fn start_member(&mut self, index: usize) {
        self.members[index] = Some(self.etcd.start(&self.member_machines[index], number(index) + 1));
    }

    /// Cuts a server off from etcd; its clients still reach it.
    fn cut_from_etcd(&self, index: usize, is_cut: bool) {
        for member in 1..=3 {
            let to = format!("{}/32", address(member));
            let args = ["route", if is_cut { "add" } else { "del" }, "blackhole", &to];
            assert!(self.servers[index].inside("ip").args(args).status().expect("ip").success());
        }
    }

    /// The server that runs the controllers, as the others say.
    fn leader(&self) -> Option<usize> {
        let path = "jsonpath={.spec.holderIdentity}";
        let asked = ["--request-timeout=2s", "-n", "kube-system", "get", "lease", "mainstay-controllers", "-o", path];
        (0..3).find_map(|asker| {
            let output = self.servers[asker].try_kubectl(&asked);
            let holder = String::from_utf8_lossy(&output.stdout).into_owned();
            (0..3).find(|index| holder.starts_with(&format!("{}-", address(Self::server_number(*index)))))
        })
    }

    /// One trouble, from beginning to end.
    fn trouble(&mut self, which: u64, random: &mut Random) {
        let index = usize::try_from(random.below(3)).expect("few");
        let named = match which {
            0 => {
                self.servers[index].kill9();
                std::thread::sleep(TROUBLE);
                self.serve(index);
                "a server is killed"
            }
            1 => {
                self.members[index] = None;
                std::thread::sleep(TROUBLE);
                self.start_member(index);
                "a member is killed"
            }
            2 => {
                self.lan.cut(number(index) + 1, true);
                std::thread::sleep(TROUBLE);
                self.lan.cut(number(index) + 1, false);
                "a member is cut off"
            }
            3 => {
                self.cut_from_etcd(index, true);
                std::thread::sleep(TROUBLE * 2);
                self.cut_from_etcd(index, false);
                "a server is cut off from etcd"
            }
            4 => {
                self.members[index].as_ref().expect("running").pause(true);
                std::thread::sleep(TROUBLE);
                self.members[index].as_ref().expect("running").pause(false);
                "a member stands still"
            }
            5 => {
                self.servers[index].pause(true);
                std::thread::sleep(TROUBLE * 2);
                self.servers[index].pause(false);
                "a server stands still, longer than its Lease"
            }
            6 => {
                let other = (index + 1) % 3;
                for member in [index, other] {
                    self.lan.cut(number(member) + 1, true);
                }
                std::thread::sleep(TROUBLE);
                for member in [index, other] {
                    self.lan.cut(number(member) + 1, false);
                }
                "two members are cut off: nobody has a majority"
            }
            _ => {
                let status =
                    self.etcd.etcdctl(&self.member_machines[index], number(index) + 1, &["get", "x", "-w", "json"]);
                let revision = status.split_once("\"revision\":").expect("a header").1;
                let revision = revision.split(|digit: char| !digit.is_ascii_digit()).next().expect("digits");
                self.etcd.etcdctl(&self.member_machines[index], number(index) + 1, &["compact", revision]);
                "the past is forgotten"
            }
        };
        eprintln!("{named} ({})", index + 1);
        std::thread::sleep(CALM);
    }
}

#[test]
fn servers_and_members_die_and_are_cut_off_and_nobody_sees_it_a1_a3_a4_a5_a9_m1_m2() {
    let mut world = World::new();
    let mut random = Random::new();
    let config = Config::read(&world.servers[0].data_dir().join("kubeconfig")).expect("a kubeconfig");
    let addresses: Vec<String> = (0..3).map(|index| format!("{}:6443", address(World::server_number(index)))).collect();
    let clients = Clients::start(world.home.holder_pid(), &config, &addresses);
    let rounds = random::rounds(ROUNDS);
    let mut of_one_server = Vec::new();
    for round in 0..rounds {
        let begun = Instant::now();
        world.trouble(round % 8, &mut random);
        if ONE_SERVER.contains(&(round % 8)) {
            of_one_server.push((round % 8, (begun, Instant::now())));
        }
    }

    // The leader's death, with a figure.
    let leader = world.leader().expect("one of them leads");
    let begun = Instant::now();
    world.servers[leader].kill9();
    let other = loop {
        match world.leader() {
            Some(other) if other != leader => break other,
            _ => assert!(begun.elapsed() < Duration::from_secs(30), "nobody leads"),
        }
    };
    let failover = begun.elapsed();
    world.serve(leader);
    let records = clients.finish();
    let seen = judge::judge(&records);
    for (which, time) in of_one_server {
        let silence = judge::silence(&records, time);
        eprintln!(
            "trouble {which} of one server: a client of all had no answer for at most {} ms",
            silence.as_millis()
        );
        assert!(silence < NO_ANSWER, "C10: trouble {which}: {silence:?}");
    }
    eprintln!(
        "controllers: server {} leads {} ms after the death of server {}; {seen}",
        other + 1,
        failover.as_millis(),
        leader + 1
    );
    assert!(failover < FAILOVER * 2, "{failover:?}");
}
