//! What ServiceCIDRs and IPAddresses say, by themselves.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::addresses::Range;
use mainstay_api::kinds::ipaddress::{ALLOCATOR, MANAGED_BY};

/// The ranges of a ServiceCIDR.
pub fn ranges(cidr: &ServiceCIDR) -> impl Iterator<Item = Range> {
    let texts = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| Range::parse(text))
}

/// The Service that an IPAddress of the allocator's names.
pub fn service_of(address: &IPAddress) -> Option<ObjectKey> {
    let labels = address.metadata.labels.as_ref()?;
    let parent = &address.spec.parent_ref;
    let is_service = parent.group.as_deref().unwrap_or("").is_empty() && parent.resource == "services";
    let is_own = labels.get(MANAGED_BY).is_some_and(|manager| manager == ALLOCATOR);
    (is_own && is_service).then(|| ObjectKey::new(parent.namespace.as_deref().unwrap_or(""), parent.name.as_str()))
}

/// An address as text whose order is that of the addresses of its family.
pub fn sorted(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("4{:08x}", u32::from(address)),
        IpAddr::V6(address) => format!("6{:032x}", u128::from(address)),
    }
}
