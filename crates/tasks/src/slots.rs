//! Who has a connection, and who gives way when there are too many (X5, X7).
//!
//! A connection begins as a stranger's. Strangers have slots of their own, few in all and fewer per address; a newcomer
//! always gets one, and the stranger that has been there longest, of the address that has most, gives way. So whoever
//! proves quickly who they are gets in, however many others sit and wait. Who has proved it moves to the slots of the
//! known, of which no user gets all; the system's own parts have slots that nobody else can take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::lock;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of those who have not yet proved who they are, in all.
    pub strangers: usize,
    /// And from one address (of IPv6: one /64).
    pub strangers_per_address: usize,
    /// Of those who have, in all.
    pub known: usize,
    /// And of one user.
    pub known_per_user: usize,
    /// Of the system's own parts, in all.
    pub system: usize,
    /// And of one of them.
    pub system_per_user: usize,
}

/// Whose a connection is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// Has not proved anything.
    Stranger,
    /// A user.
    Known,
    /// A part of the system: a node, a controller, an administrator.
    System,
}

/// All connections of one listener.
#[derive(Debug)]
pub struct Slots {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: BTreeMap<u64, Entry>,
    /// The connections of each class's owner: of strangers the address, of others the user's name. Older ones have
    /// smaller numbers.
    owners: BTreeMap<(Class, String), BTreeSet<u64>>,
    counts: BTreeMap<Class, usize>,
}

#[derive(Debug)]
struct Entry {
    owner: (Class, String),
    gives_way: Arc<Notify>,
}

/// One connection's slot; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    gives_way: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.table).remove(self.id);
    }
}

impl Table {
    fn insert(&mut self, id: u64, entry: Entry) {
        *self.counts.entry(entry.owner.0).or_default() += 1;
        self.owners.entry(entry.owner.clone()).or_default().insert(id);
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Some(count) = self.counts.get_mut(&entry.owner.0) {
            *count -= 1;
        }
        if let Some(same) = self.owners.get_mut(&entry.owner) {
            same.remove(&id);
            if same.is_empty() {
                self.owners.remove(&entry.owner);
            }
        }
        Some(entry)
    }

    fn count(&self, class: Class) -> usize {
        self.counts.get(&class).copied().unwrap_or(0)
    }

    fn count_of(&self, owner: &(Class, String)) -> usize {
        self.owners.get(owner).map_or(0, BTreeSet::len)
    }

    /// The owner of a class who has most (of several the one with the oldest), and how many that is.
    fn busiest(&self, class: Class) -> Option<(&(Class, String), usize)> {
        let of_class = self.owners.range((class, String::new())..).take_while(|((other, _), _)| *other == class);
        let busiest = of_class.max_by_key(|(_, ids)| (ids.len(), std::cmp::Reverse(ids.first())));
        busiest.map(|(owner, ids)| (owner, ids.len()))
    }

    /// Has the oldest connection of an owner give way.
    fn evict(&mut self, owner: &(Class, String)) {
        let oldest = self.owners.get(owner).and_then(BTreeSet::first).copied();
        if let Some(entry) = oldest.and_then(|oldest| self.remove(oldest)) {
            entry.gives_way.notify_one();
        }
    }
}

/// Addresses that one party may have all of count as one.
fn network_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

impl Slots {
    /// No connections yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default() })
    }

    /// A slot for a new connection. There always is one: another stranger gives way where there is none.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Slot {
        let owner = (Class::Stranger, network_of(address));
        let gives_way = Arc::new(Notify::new());
        let mut table = lock(&self.table);
        if table.count_of(&owner) >= self.limits.strangers_per_address {
            table.evict(&owner);
        } else if table.count(Class::Stranger) >= self.limits.strangers
            && let Some(busiest) = table.busiest(Class::Stranger).map(|(owner, _)| owner.clone())
        {
            table.evict(&busiest);
        }
        let id = table.next;
        table.next += 1;
        table.insert(id, Entry { owner, gives_way: gives_way.clone() });
        drop(table);
        Slot { slots: self.clone(), id, gives_way }
    }

    /// Has a stranger give way, where there is one: descriptors or memory are short.
    pub fn relieve(&self) {
        let mut table = lock(&self.table);
        if let Some(busiest) = table.busiest(Class::Stranger).map(|(owner, _)| owner.clone()) {
            table.evict(&busiest);
        }
    }

    /// How many connections of a class there are.
    pub fn count(&self, class: Class) -> usize {
        lock(&self.table).count(class)
    }
}

impl Slot {
    /// Moves to the slots of the known (or of the system); from then on only others of that class can make it give way.
    /// Where the user has all that it may have, its oldest connection gives way. False where everybody has as many: the
    /// connection stays a stranger's then.
    pub fn authenticate(&self, user: &str, is_system: bool) -> bool {
        let class = if is_system { Class::System } else { Class::Known };
        let limits = &self.slots.limits;
        let owner = (class, user.to_owned());
        let mut table = lock(&self.slots.table);
        match table.entries.get(&self.id) {
            Some(entry) if entry.owner.0 != Class::Stranger => return true,
            Some(_) => {}
            // It is giving way already.
            None => return false,
        }
        let (all, each) =
            if is_system { (limits.system, limits.system_per_user) } else { (limits.known, limits.known_per_user) };
        let own = table.count_of(&owner);
        if own >= each {
            // Whoever has all that it may have keeps nobody out, itself neither: its oldest goes.
            table.evict(&owner);
        } else if table.count(class) >= all {
            match table.busiest(class).map(|(owner, count)| (owner.clone(), count)) {
                Some((busiest, count)) if count > own => table.evict(&busiest),
                _ => return false,
            }
        }
        if let Some(entry) = table.remove(self.id) {
            table.insert(self.id, Entry { owner, ..entry });
        }
        true
    }

    /// Has the connection give way, whoever it belongs to.
    pub fn cut(&self) {
        self.gives_way.notify_one();
    }

    /// Resolves when the connection has to give way.
    pub async fn gives_way(&self) {
        self.gives_way.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { strangers: 8, strangers_per_address: 4, known: 4, known_per_user: 2, system: 1, system_per_user: 1 };

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    async fn has_to_go(slot: &Slot) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, slot.gives_way()).await.is_ok()
    }

    #[tokio::test]
    async fn x5_strangers_give_way_to_strangers_and_never_keep_anybody_out() {
        let slots = Slots::new(LIMITS);
        let known = slots.admit(address(9));
        assert!(known.authenticate("u", false));
        let flood: Vec<Slot> = (0..100).map(|_| slots.admit(address(1))).collect();
        assert_eq!(slots.count(Class::Stranger), 4);
        assert!(has_to_go(&flood[95]).await && !has_to_go(&flood[96]).await, "the oldest go");
        assert!(!has_to_go(&known).await);
        let other = slots.admit(address(2));
        let more: Vec<Slot> = (3..40).map(|last| slots.admit(address(last))).collect();
        assert_eq!(slots.count(Class::Stranger), 8);
        assert!(has_to_go(&flood[99]).await, "whoever has most gives way first");
        assert!(!flood[99].authenticate("u", false), "it is too late");
        drop((flood, other, more));
        assert_eq!(slots.count(Class::Stranger), 0);
        assert_eq!(slots.count(Class::Known), 1);
    }

    #[tokio::test]
    async fn x7_no_user_keeps_another_out_and_nobody_the_system() {
        let slots = Slots::new(LIMITS);
        let open = |user: &str, is_system: bool| {
            let slot = slots.admit(address(1));
            slot.authenticate(user, is_system).then_some(slot)
        };
        let busy: Vec<Slot> = (0..3).filter_map(|_| open("busy", false)).collect();
        assert_eq!((busy.len(), slots.count(Class::Known)), (3, 2), "its own oldest gives way");
        assert!(has_to_go(&busy[0]).await);
        let (b, c) = (open("b", false).expect("room"), open("c", false).expect("room"));
        let d = open("d", false).expect("the busiest gives way");
        assert!(has_to_go(&busy[1]).await);
        assert!(open("b", false).is_none(), "everybody has as many");
        let node = open("node", true).expect("slots of its own");
        assert!(!has_to_go(&node).await);
        drop((b, c, d));
    }

    #[test]
    fn addresses_of_one_party_count_as_one() {
        let same = ["2001:db8::1", "2001:db8::ffff"].map(|text| network_of(text.parse().expect("an address")));
        assert_eq!(same[0], same[1]);
        assert_eq!(network_of("::ffff:192.0.2.1".parse().expect("an address")), "192.0.2.1");
    }
}
