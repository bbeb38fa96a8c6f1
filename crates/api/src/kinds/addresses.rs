//! IP addresses and ranges as fields hold them, and upstream's words where they do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The address as it was written, with bits beyond the prefix.
    pub address: IpAddr,
    /// Length of the prefix, in bits.
    pub bits: u32,
}

impl Range {
    /// Reads `a.b.c.d/n` and its like.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let plain =
            !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let bits = bits.parse().ok().filter(|bits| plain && *bits <= width(address))?;
        Some(Self { address, bits })
    }

    /// The first address of the range.
    pub fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32u32.saturating_sub(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128u32.saturating_sub(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
        }
    }

    /// The last address of the range.
    pub fn last(self) -> IpAddr {
        match self.network() {
            IpAddr::V4(first) => {
                let hosts = u32::MAX.checked_shr(self.bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(first) | hosts))
            }
            IpAddr::V6(first) => {
                let hosts = u128::MAX.checked_shr(self.bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(first) | hosts))
            }
        }
    }

    /// Whether the address is in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self { address, bits: self.bits }.network() == self.network()
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What is wrong with a range in a field that is as old as IPv4: only whether it is one.
pub fn legacy_range(text: &str) -> Vec<String> {
    if Range::parse(text).is_some() { Vec::new() } else { vec![NOT_A_CIDR.to_owned()] }
}

/// What is wrong with a range in a newer field, which must be written as it would be printed.
pub fn range(text: &str) -> Vec<String> {
    let Some(range) = Range::parse(text) else { return vec![NOT_A_CIDR.to_owned()] };
    if is_mapped(range.address) {
        return vec!["must not have an IPv4-mapped IPv6 address".to_owned()];
    }
    if range.network() != range.address {
        return vec!["must not have bits set beyond the prefix length".to_owned()];
    }
    canonical(text, format!("{}/{}", range.address, range.bits))
}

/// What is wrong with an address in a newer field.
pub fn address(text: &str) -> Vec<String> {
    let Ok(address) = text.parse::<IpAddr>() else { return vec![NOT_AN_IP.to_owned()] };
    if is_mapped(address) {
        return vec!["must not be an IPv4-mapped IPv6 address".to_owned()];
    }
    canonical(text, address.to_string())
}

/// What is wrong with an address in an older field.
pub fn legacy_address(text: &str) -> Vec<String> {
    if text.parse::<IpAddr>().is_ok() { Vec::new() } else { vec![NOT_AN_IP.to_owned()] }
}

/// What is wrong with an address to which somebody else's connections are to go: it may not be one that means the
/// machine itself, or whatever is on its link.
pub fn special(address: IpAddr) -> Vec<String> {
    let mut wrong = Vec::new();
    if address.is_unspecified() {
        wrong.push(format!("may not be unspecified ({address})"));
    }
    if address.is_loopback() {
        wrong.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    let (is_local, is_multicast) = match address {
        IpAddr::V4(address) => (address.is_link_local(), address.octets().starts_with(&[224, 0, 0])),
        IpAddr::V6(address) => (address.is_unicast_link_local(), address.segments()[0] & 0xff0f == 0xff02),
    };
    if is_local {
        wrong.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if is_multicast {
        wrong.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
    // However it is written: the kernel takes `::ffff:127.0.0.1` for `127.0.0.1`.
    match address {
        IpAddr::V6(mapped) => wrong.extend(mapped.to_ipv4_mapped().iter().flat_map(|v4| special(IpAddr::V4(*v4)))),
        IpAddr::V4(_) => {}
    }
    wrong
}

/// What is wrong with an address in an older field to which connections are to go.
pub fn legacy_target(text: &str) -> Vec<String> {
    match text.parse() {
        Ok(address) => special(address),
        Err(_) => vec![NOT_AN_IP.to_owned()],
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

fn canonical(text: &str, printed: String) -> Vec<String> {
    if text == printed { Vec::new() } else { vec![format!("must be in canonical form ({printed:?})")] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x6_addresses_of_the_machine_itself_are_no_targets() {
        for good in ["10.0.0.1", "192.168.0.1", "8.8.8.8", "225.0.0.1", "2001:db8::1"] {
            assert_eq!(legacy_target(good), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "",
            "x",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert_eq!(legacy_target(bad).len(), 1, "{bad}");
        }
        assert_eq!(legacy_target("127.0.0.1"), ["may not be in the loopback range (127.0.0.0/8, ::1/128)"]);
    }

    #[test]
    fn ranges_are_read_and_judged() {
        for good in ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/64", "192.168.1.1/32"] {
            assert_eq!((range(good), legacy_range(good)), (Vec::new(), Vec::new()), "{good}");
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/08", "10.0.0.0/+8", "x/8", "::/129"] {
            assert_eq!(legacy_range(bad), [NOT_A_CIDR], "{bad}");
        }
        assert_eq!(range("10.0.0.1/8"), ["must not have bits set beyond the prefix length"]);
        assert_eq!(range("2001:DB8::/64"), [r#"must be in canonical form ("2001:db8::/64")"#]);
        assert_eq!(address("::ffff:1.2.3.4"), ["must not be an IPv4-mapped IPv6 address"]);
        let contains =
            |range: &str, ip: &str| Range::parse(range).zip(ip.parse().ok()).is_some_and(|(r, ip)| r.contains(ip));
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        let last = |range: &str| Range::parse(range).expect("a range").last().to_string();
        assert_eq!((last("10.96.0.0/12"), last("0.0.0.0/0")), ("10.111.255.255".into(), "255.255.255.255".into()));
        assert_eq!((last("10.0.0.1/32"), last("2001:db8::/127")), ("10.0.0.1".into(), "2001:db8::1".into()));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1") && contains("::/0", "::1"));
    }
}
