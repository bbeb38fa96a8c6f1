//! N4: where the packet filter sends connections to Services, from tables that are kept change by change as a node
//! keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service};
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::proxy::{Frontend, Rule, cluster_ips, rules};
use mainstay_logic::{Snapshot, backend, pods};

use super::{Seen, Violation};
use crate::bugs::Bug;

/// The node whose filter it is.
const NODE: &str = "n0";

/// The rules of a node that has seen every change in order.
#[derive(Default)]
pub struct Services {
    tables: BTreeMap<ObjectKey, Vec<Rule>>,
    bug: Option<Bug>,
}

impl Services {
    /// A filter without a rule.
    pub fn new(bug: Option<Bug>) -> Self {
        Self { tables: BTreeMap::new(), bug }
    }

    /// N4: every cluster address and port has a rule, and none leads to what is no pod of the Service's, has ended, or
    /// is on its way out while another one is ready.
    pub fn n4_an_endpoint_or_a_refusal(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        let is_ignored = match self.bug {
            Some(Bug::ProxyIgnoresPods) => seen.is(&kinds::POD),
            Some(Bug::ProxyIgnoresSlices) => seen.is(&kinds::ENDPOINT_SLICE),
            _ => false,
        };
        if ![&kinds::POD, &kinds::SERVICE, &kinds::ENDPOINT_SLICE].into_iter().any(|kind| seen.is(kind)) {
            return Ok(());
        }
        if !is_ignored {
            let mut woken = BTreeSet::new();
            backend::concerned(seen.before, seen.after, seen.change, &mut |service| {
                woken.insert(service);
            });
            woken.into_iter().for_each(|service| self.write(seen.after, service));
        }
        for (key, service) in seen.after.services.iter() {
            self.has_all_rules(key, service)?;
        }
        let by_address = by_address(seen.after);
        self.tables.iter().try_for_each(|(key, table)| match seen.after.services.get(key) {
            Some(service) => table.iter().try_for_each(|rule| leads_to_pods(key, service, rule, &by_address)),
            None => Err(Violation::new("N4", format!("rules of {key} are left, and it is gone"))),
        })
    }

    fn write(&mut self, snapshot: &Snapshot, service: ObjectKey) {
        let mut table = rules(snapshot, &service, NODE);
        if self.bug == Some(Bug::ProxyForgetsRefusals) {
            table.retain(|rule| !rule.backends.is_empty());
        }
        match snapshot.services.contains_key(&service) {
            true => drop(self.tables.insert(service, table)),
            false => drop(self.tables.remove(&service)),
        }
    }

    fn has_all_rules(&self, key: &ObjectKey, service: &Service) -> Result<(), Violation> {
        let Some(spec) = &service.spec else { return Ok(()) };
        let table = self.tables.get(key).map(Vec::as_slice).unwrap_or_default();
        for (ip, port) in
            cluster_ips(spec).iter().flat_map(|ip| spec.ports.iter().flatten().map(move |port| (ip, port)))
        {
            let wanted = Frontend::ClusterIp(SocketAddr::new(*ip, u16::try_from(port.port).unwrap_or(0)));
            if !table.iter().any(|rule| rule.frontend == wanted) {
                let message = format!("{wanted:?} of {key} has no rule: connections leave by the default route");
                return Err(Violation::new("N4", message));
            }
        }
        Ok(())
    }

    /// N4 at rest: a Service leads to all ready pods that it selects, and to no others.
    pub fn n4_ready_pods_are_reached(&self, snapshot: &Snapshot) -> Result<(), Violation> {
        for (key, service) in snapshot.services.iter().filter(|(_, service)| selector(service).is_some()) {
            let chosen =
                snapshot.pods.iter().filter(|(at, pod)| at.namespace == key.namespace && selects(service, pod));
            let ready = chosen.filter(|(_, pod)| pods::is_ready(pod) && !pods::is_terminating(&pod.metadata));
            let ready: BTreeSet<IpAddr> =
                ready.flat_map(|(_, pod)| backend::addresses(pod)).filter_map(|ip| ip.parse().ok()).collect();
            for rule in self.tables.get(key).into_iter().flatten() {
                let reached: BTreeSet<IpAddr> = rule.backends.iter().map(SocketAddr::ip).collect();
                if reached != ready {
                    return Err(Violation::new("N4", format!("{key} leads to {reached:?}, and ready are {ready:?}")));
                }
            }
        }
        Ok(())
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let has = |(name, value): (&String, &String)| labels.and_then(|labels| labels.get(name)) == Some(value);
    selector(service).is_some_and(|selector| selector.iter().all(has))
}

/// The pods that are there and have not ended, by their addresses.
fn by_address(snapshot: &Snapshot) -> BTreeMap<IpAddr, &Pod> {
    let living = snapshot.pods.iter().filter(|(_, pod)| !pods::is_finished(pod));
    living
        .flat_map(|(_, pod)| backend::addresses(pod).filter_map(|ip| ip.parse().ok()).map(move |ip| (ip, &**pod)))
        .collect()
}

fn leads_to_pods(
    key: &ObjectKey,
    service: &Service,
    rule: &Rule,
    by_address: &BTreeMap<IpAddr, &Pod>,
) -> Result<(), Violation> {
    if selector(service).is_none() {
        return Ok(());
    }
    let mut leaving = 0;
    for at in &rule.backends {
        let Some(pod) = by_address.get(&at.ip()).filter(|pod| selects(service, pod)) else {
            return Err(Violation::new("N4", format!("{key} leads to {at}, which is none of its pods")));
        };
        leaving += usize::from(pods::is_terminating(&pod.metadata));
    }
    match leaving == 0 || leaving == rule.backends.len() {
        true => Ok(()),
        false => Err(Violation::new("N4", format!("{key} leads to a pod on its way out beside ready ones"))),
    }
}
