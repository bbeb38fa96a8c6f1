//! What somebody took away of the pod network is made again: NetworkManager, systemd-networkd and people remove links,
//! addresses and routes that they did not make.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::link::Link;
use super::{Network, NetworkError, POD_BRIDGE, SERVICE_LINK, State, base, pair_name, step, sysctls};

/// What was not as it should be.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was made again: links by their names, pods by their uids.
    pub made: Vec<String>,
    /// Pods by their uids that are not connected, and why not.
    pub lost: Vec<(String, String)>,
}

impl Network {
    /// Looks whether all is there that [`Network::open`], [`Network::route_services`] and [`Network::attach`] made for
    /// these pods (uid and network namespace), and makes again what is not. A pod that holds no address is none of
    /// them. Blocks for milliseconds.
    ///
    /// # Errors
    /// The kernel's reason why what all pods need cannot be made again.
    pub fn look(&self, pods: &[(String, PathBuf)]) -> Result<Looked, NetworkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut looked = Looked::default();
        let all = step("listing interfaces", state.links.all())?;
        if !self.is_whole(&mut state, &all)? {
            (state.bridge, state.services) = base(&mut state.links, &self.config)?;
            let ranges = state.ranges.clone();
            self.lead(&mut state, &ranges)?;
            looked.made.extend([POD_BRIDGE.to_owned(), SERVICE_LINK.to_owned()]);
        }
        for (uid, netns) in pods {
            let name = pair_name(uid);
            let is_connected = |link: &Link| link.name == name && link.master == Some(state.bridge) && link.is_up;
            if all.iter().any(is_connected) && looked.made.is_empty() {
                continue;
            }
            match self.connect_again(&mut state, uid, netns) {
                Ok(true) => looked.made.push(uid.clone()),
                Ok(false) => {}
                Err(error) => looked.lost.push((uid.clone(), error.to_string())),
            }
        }
        Ok(looked)
    }

    /// Whether a pod that holds an address was connected with it.
    fn connect_again(&self, state: &mut State, uid: &str, netns: &Path) -> Result<bool, NetworkError> {
        let Some(address) = step("reading the address leases", state.leases.held_by(uid))? else { return Ok(false) };
        self.connect(state, uid, netns, address)?;
        Ok(true)
    }

    /// Whether what all pods need is there: both links, up, with their addresses, the routes to Services, and the
    /// kernel's forwarding (`sysctl --system` puts back what a distribution wants).
    fn is_whole(&self, state: &mut State, all: &[Link]) -> Result<bool, NetworkError> {
        let is_up =
            |name: &str, index: u32| all.iter().any(|link| link.name == name && link.index == index && link.is_up);
        if !is_up(POD_BRIDGE, state.bridge) || !is_up(SERVICE_LINK, state.services) {
            return Ok(false);
        }
        let addresses = step("listing addresses", state.links.addresses())?;
        let wanted = [(state.bridge, self.config.gateway()), (state.services, self.config.dns_address)];
        let routes = step("listing routes", state.links.routes_by(state.services))?;
        let range = self.config.service_cidr;
        let own = (range.first, range.prefix);
        let mut led = state.led.iter().chain([&own]);
        let is_set =
            |(key, value): &(PathBuf, &str)| std::fs::read_to_string(key).is_ok_and(|now| now.trim() == *value);
        Ok(wanted.iter().all(|wanted| addresses.contains(wanted))
            && led.all(|range| routes.contains(range))
            && sysctls().iter().all(is_set))
    }
}
