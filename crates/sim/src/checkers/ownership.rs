//! S10: ownership is by uid.

use mainstay_logic::ownership::controller_of;

use super::{Seen, Violation, set_of};

/// S10: a set adopts only pods without a controller, and tells only its own pods to go.
pub fn s10_only_its_own(seen: &Seen<'_>) -> Result<(), Violation> {
    if !seen.is_by_set_controller() {
        return Ok(());
    }
    let key = &seen.change.key;
    let Some(old) = &seen.change.old else { return Ok(()) };
    let owner = controller_of(&old.metadata).map(|owner| &owner.uid);
    let new_owner = seen.change.new.as_ref().and_then(|new| controller_of(&new.metadata)).map(|owner| &owner.uid);
    if owner.is_some() && new_owner.is_some() && owner != new_owner {
        return Err(Violation::new("S10", format!("{key} is taken from {owner:?} by {new_owner:?}")));
    }
    let Some(view) = seen.decided_on.filter(|_| seen.is_condemned()) else { return Ok(()) };
    let own = view.pods.get(key).is_some_and(|pod| set_of(view, key, pod).is_some());
    if own { Ok(()) } else { Err(Violation::new("S10", format!("{key} is no pod of a set and is deleted by one"))) }
}
