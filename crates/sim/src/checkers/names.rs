//! N1, N2, N3: what DNS says of the pods of sets, from tables that are kept change by change as a node keeps them.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::dns::{Answer, Data, Type, Zones};
use mainstay_logic::{Snapshot, backend, pods};

use super::{Seen, Violation, set_of};
use crate::bugs::Bug;

/// The cluster's domain.
const DOMAIN: &str = "cluster.local";

/// The tables of a DNS server that has seen every change in order.
pub struct Names {
    zones: Zones,
    /// What it does not look at: a deliberate bug.
    ignores: Option<Bug>,
}

/// The stable name of a pod of a set that has a Service.
fn name_of(key: &ObjectKey, set: &StatefulSet) -> Option<String> {
    let service = set.spec.service_name.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{}.{service}.{}.svc.{DOMAIN}", key.name, key.namespace))
}

impl Names {
    /// A server that knows nothing yet.
    pub fn new(bug: Option<Bug>) -> Self {
        let zones = Zones::new(&Snapshot::default(), DOMAIN);
        Self { zones, ignores: bug }
    }

    fn addresses(&self, snapshot: &Snapshot, name: &str) -> Vec<String> {
        let Answer::Records { answers, .. } = self.zones.answer(snapshot, name, Type::A) else { return Vec::new() };
        let address = |data: &Data| if let Data::A(ip) = data { Some(ip.to_string()) } else { None };
        answers.iter().filter_map(|record| address(&record.data)).collect()
    }

    /// N2: a pod that is on its way out has no name. N3: no name leads to an address that its pod does not have.
    pub fn n2_n3_no_name_of_what_is_gone(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        let kinds = [&kinds::POD, &kinds::SERVICE, &kinds::ENDPOINT_SLICE, &kinds::NAMESPACE];
        if !kinds.into_iter().any(|kind| seen.is(kind)) {
            return Ok(());
        }
        let is_ignored = match self.ignores {
            Some(Bug::DnsIgnoresPods) => seen.is(&kinds::POD),
            Some(Bug::DnsIgnoresSlices) => seen.is(&kinds::ENDPOINT_SLICE),
            _ => false,
        };
        if !is_ignored {
            self.zones.apply(seen.before, seen.after, seen.change);
        }
        for (key, set) in seen.after.stateful_sets.iter() {
            for ordinal in 0..super::MAX_ORDINAL {
                let key = ObjectKey::new(key.namespace.clone(), format!("{}-{ordinal}", key.name));
                let Some(name) = name_of(&key, set) else { continue };
                let answered = self.addresses(seen.after, &name);
                let pod = seen.after.pods.get(&key);
                let has = |address: &String| pod.is_some_and(|pod| backend::addresses(pod).any(|own| own == address));
                if let Some(wrong) = answered.iter().find(|address| !has(address)) {
                    return Err(Violation::new("N3", format!("{name} is {wrong}, which {key} does not have")));
                }
                let is_leaving = |pod: &Pod| pods::is_terminating(&pod.metadata) || pods::is_finished(pod);
                if !answered.is_empty() && pod.is_some_and(|pod| is_leaving(pod)) {
                    return Err(Violation::new("N2", format!("{name} resolves, and {key} is on its way out")));
                }
            }
        }
        Ok(())
    }

    /// N1: at rest every ready pod of a set has its name.
    pub fn n1_ready_pods_resolve(&self, snapshot: &Snapshot) -> Result<(), Violation> {
        for (key, pod) in snapshot.pods.iter().filter(|(_, pod)| pods::is_ready(pod)) {
            let set = set_of(snapshot, key, pod).map(|(set, _)| set);
            let name = set.and_then(|set| name_of(key, set));
            let service = set.and_then(|set| set.spec.service_name.as_deref()).unwrap_or("");
            let is_served = snapshot.services.contains_key(&ObjectKey::new(key.namespace.clone(), service));
            let Some(name) = name.filter(|_| is_served) else { continue };
            let own: Vec<String> = backend::addresses(pod).map(str::to_owned).collect();
            let answered = self.addresses(snapshot, &name);
            if answered != own {
                return Err(Violation::new("N1", format!("{name} is {answered:?}, and {key} has {own:?}")));
            }
        }
        Ok(())
    }
}
