//! Who has a network namespace, as a table of the packet filter: nobody without the right to change the network makes
//! it, nobody but its maker changes it or takes it away (`nft flush ruleset` neither), and it goes with its maker.

use std::io;

use nix::libc;

use super::table::{Sees, Table, transact};
use crate::network::netlink::{Family, Socket};

const TABLE: Table = Table("mainstay-node", Sees::Ipv4);

/// A network namespace that is its holder's until this is dropped, or its process ends.
#[derive(Debug)]
pub struct Mark(#[expect(dead_code, reason = "the table goes with the socket")] Socket);

impl Mark {
    /// Takes this thread's network namespace; `None` where the kernel has no such tables (before Linux 5.12).
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where another has it; the kernel's.
    pub fn take() -> io::Result<Option<Self>> {
        let mut socket = Socket::open(Family::Netfilter)?;
        let mut made = transact(&mut socket, vec![TABLE.held()]);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // One that nobody holds: of rules that were saved and loaded again.
            made = transact(&mut socket, vec![TABLE.gone(), TABLE.held()]);
        }
        match made {
            Ok(()) => Ok(Some(Self(socket))),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(None),
            // Another's table is what may not be changed.
            Err(error)
                if error.raw_os_error() == Some(libc::EPERM)
                    && TABLE.handle(&mut socket).is_ok_and(|handle| handle.is_some()) =>
            {
                Err(io::ErrorKind::AddrInUse.into())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::apart;
    use super::*;

    #[test]
    fn n4_a_network_has_one_holder_and_saved_rules_are_none() {
        apart(|| {
            let mark = Mark::take().expect("nobody else").expect("Linux 5.12");
            let is_taken = || Mark::take().expect_err("taken").kind() == io::ErrorKind::AddrInUse;
            assert!(is_taken());
            let mut socket = Socket::open(Family::Netfilter).expect("nftables");
            assert!(
                transact(&mut socket, vec![TABLE.gone()]).is_err() && is_taken(),
                "it is nobody else's to take away"
            );
            drop(mark);
            transact(&mut socket, vec![TABLE.made()]).expect("loaded again");
            assert!(Mark::take().expect("nobody's").is_some());
        });
    }
}
