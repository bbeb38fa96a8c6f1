//! Says in words, as events, which fronts of a Service or of a pod are not carried out here (X8): what the guard keeps
//! for the cluster itself, and what another one had first.
//!
//! A Service hears of it from the nodes with an endpoint of it, each once as long as it is so.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::proxy::{self, Frontend, Rule};
use mainstay_logic::{Snapshot, backend};

use super::filter::{Filter, Front, Limit};
use super::guard::Guard;
use super::service_rules::host_ports_name;
use super::view::View;
use crate::kubelet::events::{Events, Regarding};

/// As upstream's API server calls it when two Services have one port.
const TAKEN: &str = "PortAlreadyAllocated";
const TOO_MANY: &str = "ServiceTooLarge";
const LOST: &str = "PacketFilterLost";

/// A reason and what is said.
type Complaint = (&'static str, String);

/// Whose fronts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    Service(ObjectKey),
    /// A pod of this node, with its host ports.
    Pod(ObjectKey),
}

/// What was said.
pub(super) struct Complaints {
    events: Events,
    said: BTreeMap<Subject, BTreeSet<Complaint>>,
    due: BTreeSet<Subject>,
}

impl Complaints {
    pub(super) fn new(events: Events) -> Self {
        Self { events, said: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// It may be otherwise with this one now, of which `is_cut` says whether some of its fronts are not carried out.
    /// What is well, and was, is not looked at any further.
    pub(super) fn look_at(&mut self, subject: Subject, is_cut: bool) {
        if is_cut || self.said.contains_key(&subject) {
            self.due.insert(subject);
        }
    }

    /// Says all there is to say.
    pub(super) fn record_all(&mut self, view: &View, filter: &Filter, guard: &Guard) {
        view.read(|snapshot, _| {
            self.due.extend(snapshot.services.iter().map(|(key, _)| Subject::Service(key.clone())));
            self.due.extend(snapshot.pods.iter().map(|(key, _)| Subject::Pod(key.clone())));
        });
        self.record(view, filter, guard);
    }

    /// Says, of the Node, that its packet filter was taken away by somebody.
    pub(super) fn record_loss(&self, node: &str) {
        let message = "Somebody took the packet filter's table away; it is made again".to_owned();
        let event = PodEvent { warning: true, reason: LOST, message, container: None };
        let (name, uid) = (node.to_owned(), node.to_owned());
        self.events.record(Regarding { kind: "Node".into(), namespace: String::new(), name, uid }, event);
    }

    /// Says what is new of those that were to be looked at.
    pub(super) fn record(&mut self, view: &View, filter: &Filter, guard: &Guard) {
        for subject in std::mem::take(&mut self.due) {
            let found = view.read(|snapshot, _| complaints(snapshot, filter, guard, &subject));
            let Some((regarding, messages)) = found.filter(|(_, messages)| !messages.is_empty()) else {
                self.said.remove(&subject);
                continue;
            };
            let before = self.said.insert(subject, messages.clone()).unwrap_or_default();
            for (reason, message) in messages.difference(&before) {
                let event = PodEvent { warning: true, reason, message: message.clone(), container: None };
                self.events.record(regarding.clone(), event);
            }
        }
    }
}

fn complaints(
    snapshot: &Snapshot,
    filter: &Filter,
    guard: &Guard,
    subject: &Subject,
) -> Option<(Regarding, BTreeSet<Complaint>)> {
    let (kind, key, metadata, name, rules) = match subject {
        Subject::Service(key) => {
            let service = snapshot.services.get(key)?;
            (&kinds::SERVICE, key, &service.metadata, key.to_string(), proxy::rules(snapshot, key, &guard.node))
        }
        Subject::Pod(key) => {
            let pod = snapshot.pods.get(key)?;
            let rules = proxy::host_ports::rules(pod, &guard.node);
            (&kinds::POD, key, &pod.metadata, host_ports_name(key), rules)
        }
    };
    let kept = rules.iter().filter(|rule| !guard.admits(rule)).map(kept_back);
    let lost = filter.lost(&name).map(|(front, owner)| format!("{} is not served: {owner} has it", shown(front)));
    let limit = filter.limit(&name).map(|limit| match limit {
        Limit::Endpoints(most) => (TOO_MANY, format!("no more than {most} endpoints of each of its ports are used")),
        Limit::Sources(most) => (TOO_MANY, format!("no more than {most} of its source ranges are let in")),
    });
    let taken = kept.chain(lost).map(|text| (TAKEN, text));
    let messages: BTreeSet<Complaint> =
        taken.chain(limit).map(|(reason, text)| (reason, format!("On node {}, {text}", guard.node))).collect();
    let is_here = |key| backend::backends(snapshot, key).iter().any(|backend| backend.node == guard.node);
    if messages.is_empty() || (matches!(subject, Subject::Service(_)) && !is_here(key)) {
        return None;
    }
    let regarding = Regarding {
        kind: kind.kind.clone(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    Some((regarding, messages))
}

fn kept_back(rule: &Rule) -> String {
    let front = match &rule.frontend {
        Frontend::ClusterIp(at) | Frontend::ExternalIp(at) | Frontend::LoadBalancer(at) => at.to_string(),
        Frontend::NodePort(port) => format!("port {port} of the node"),
    };
    format!("{front}/{} is not served: it is the cluster's own", rule.protocol)
}

fn shown(front: Front) -> String {
    let protocol = format!("{:?}", front.protocol).to_uppercase();
    match front.address {
        Some(address) => format!("{address}:{}/{protocol}", front.port),
        None => format!("port {} of the node/{protocol}", front.port),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::filter::Protocol;
    use super::*;
    use mainstay_logic::proxy::Masquerade;

    #[test]
    fn x8_what_is_not_served_is_named_as_people_write_it() {
        let rule = |frontend| Rule {
            frontend,
            protocol: "TCP".to_owned(),
            backends: Vec::new(),
            inside_backends: None,
            affinity_seconds: None,
            masquerade: Masquerade::Always,
            source_ranges: Vec::new(),
        };
        let front = |address, port| shown(Front { address, protocol: Protocol::Udp, port });
        let all: BTreeMap<&str, String> = [
            ("external", kept_back(&rule(Frontend::ExternalIp("192.0.2.1:6443".parse().unwrap())))),
            ("node port", kept_back(&rule(Frontend::NodePort(10250)))),
            ("lost", front(Some([192, 0, 2, 1].into()), 53)),
            ("lost node port", front(None, 30053)),
        ]
        .into();
        assert_eq!(all["external"], "192.0.2.1:6443/TCP is not served: it is the cluster's own");
        assert_eq!(all["node port"], "port 10250 of the node/TCP is not served: it is the cluster's own");
        assert_eq!(all["lost"], "192.0.2.1:53/UDP");
        assert_eq!(all["lost node port"], "port 30053 of the node/UDP");
    }
}
