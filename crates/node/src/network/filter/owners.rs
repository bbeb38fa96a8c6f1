//! Which Service has which front, where several want the same one (two of them with one external IP, a Service and a
//! pod with a host port): one has it until it gives it up, and the others wait. So nobody takes away what another one
//! has, and no Service's rules fail for another's sake (N4, X7).

use std::collections::{BTreeMap, BTreeSet};

use super::{Front, Fronts};

/// Who has what, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Owners {
    owners: BTreeMap<Front, String>,
    waiting: BTreeMap<Front, BTreeSet<String>>,
    /// What each Service wants.
    wanted: BTreeMap<String, BTreeSet<Front>>,
    freed: BTreeSet<String>,
}

impl Owners {
    /// A Service wants these fronts and no others from now on: those that it has, also while nothing is behind them.
    pub(super) fn grant(&mut self, service: &str, fronts: &Fronts) -> Fronts {
        for front in self.wanted.remove(service).unwrap_or_default() {
            if !fronts.contains_key(&front) {
                self.give_up(service, front);
            }
        }
        let mut granted = Fronts::new();
        for (front, backends) in fronts {
            match self.owners.get(front) {
                Some(owner) if owner != service => {
                    self.waiting.entry(*front).or_default().insert(service.to_owned());
                }
                owner => {
                    if owner.is_none() {
                        self.owners.insert(*front, service.to_owned());
                        self.stop_waiting(service, *front);
                    }
                    granted.insert(*front, backends.clone());
                }
            }
        }
        if !fronts.is_empty() {
            self.wanted.insert(service.to_owned(), fronts.keys().copied().collect());
        }
        granted
    }

    /// Who has it.
    pub(super) fn owner(&self, front: &Front) -> Option<&str> {
        self.owners.get(front).map(String::as_str)
    }

    /// The fronts that a Service wants and another one has, with who that is.
    pub(super) fn lost(&self, service: &str) -> impl Iterator<Item = (Front, &str)> {
        let wanted = self.wanted.get(service).into_iter().flatten();
        wanted.filter_map(move |front| {
            let owner = self.owners.get(front).filter(|owner| *owner != service)?;
            Some((*front, owner.as_str()))
        })
    }

    fn give_up(&mut self, service: &str, front: Front) {
        if self.owners.get(&front).is_some_and(|owner| owner == service) {
            self.owners.remove(&front);
            self.freed.extend(self.waiting.remove(&front).unwrap_or_default());
        } else {
            self.stop_waiting(service, front);
        }
    }

    fn stop_waiting(&mut self, service: &str, front: Front) {
        if let Some(waiting) = self.waiting.get_mut(&front) {
            waiting.remove(service);
            if waiting.is_empty() {
                self.waiting.remove(&front);
            }
        }
    }

    /// Who may have what it waited for. Once.
    pub(super) fn freed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.freed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backends, Protocol};
    use super::*;

    fn fronts(ports: &[u16]) -> Fronts {
        let backends = Backends { endpoints: Vec::new(), inside: None, affinity: None, from: None, masquerade: false };
        let front = |port: &u16| Front { address: None, protocol: Protocol::Tcp, port: *port };
        ports.iter().map(|port| (front(port), backends.clone())).collect()
    }

    fn ports(fronts: &Fronts) -> Vec<u16> {
        fronts.keys().map(|front| front.port).collect()
    }

    #[test]
    fn n4_x7_nobody_takes_a_front_that_another_has() {
        let mut owners = Owners::default();
        let names = |owners: &mut Owners| owners.freed().into_iter().collect::<Vec<_>>();
        assert_eq!(ports(&owners.grant("shop/web", &fronts(&[80, 443]))), [80, 443]);
        assert_eq!(ports(&owners.grant("eve/web", &fronts(&[443, 9]))), [9]);
        assert_eq!(ports(&owners.grant("eve/too", &fronts(&[443]))), Vec::<u16>::new());
        let lost = |owners: &Owners, who: &str| {
            owners.lost(who).map(|(front, owner)| (front.port, owner.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(lost(&owners, "eve/web"), [(443, "shop/web".to_owned())]);
        assert_eq!(lost(&owners, "shop/web"), []);
        assert_eq!(ports(&owners.grant("shop/web", &fronts(&[443]))), [443], "it keeps it");
        assert_eq!(names(&mut owners), Vec::<String>::new());
        owners.grant("eve/too", &fronts(&[]));
        owners.grant("shop/web", &fronts(&[]));
        assert_eq!(names(&mut owners), ["eve/web"], "who went does not wait");
        assert_eq!(ports(&owners.grant("eve/web", &fronts(&[443, 9]))), [9, 443]);
        assert_eq!(ports(&owners.grant("shop/web", &fronts(&[443]))), Vec::<u16>::new(), "it came later");
        owners.grant("eve/web", &fronts(&[]));
        assert_eq!(names(&mut owners), ["shop/web"]);
        owners.grant("shop/web", &fronts(&[]));
        assert!(owners.owners.is_empty() && owners.waiting.is_empty() && owners.wanted.is_empty(), "nothing is kept");
    }
}
