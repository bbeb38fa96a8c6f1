//! Who owns the number of replicas, as `…/scale` sees it.
//!
//! A Scale is not stored: the managers of its `spec.replicas` are those of the field of the object where that number
//! is, under the Scale's own version. Upstream's mapping.

use jiff::Timestamp;
use serde_json::Value;

use super::managers::{Manager, Managers, Owned};
use super::set::Set;
use super::{managed, take_managed};
use crate::kinds::{Kind, SCALE};

/// Where the objects of a version (`apps/v1`) have the number of replicas, as names of fields; `None` for a version
/// that has no Scale.
pub type ReplicasPath<'a> = &'a dyn Fn(&str) -> Option<Vec<String>>;

/// Gives a Scale the `managedFields` that its object has for the number of replicas.
pub fn show_managers(object: &Value, scale: &mut Value, path: ReplicasPath<'_>, now: Timestamp) {
    let mut shown = Managers::default();
    for (manager, owned) in Managers::of(managed(object)).unwrap_or_default().0 {
        let there = path(&manager.api_version).map(|path| Set::of_field(&path));
        if there.is_some_and(|there| owned.set.has_any_of(&there)) {
            let set = Set::of_field(&IN_SCALE);
            shown.0.insert(Manager { api_version: SCALE.api_version(), ..manager }, Owned { set, ..owned });
        }
    }
    shown.write(scale, now);
}

/// Takes a written Scale's `managedFields` over into its object, of this kind: who lost the number of replicas there
/// loses it here, too, and keeps all else.
pub fn keep_managers(kind: &Kind, object: &mut Value, scale: &mut Value, path: ReplicasPath<'_>, now: Timestamp) {
    let Some(own) = path(&kind.api_version()).map(|path| Set::of_field(&path)) else { return };
    let written = Managers::of(take_managed(scale).as_ref()).unwrap_or_default();
    let in_scale = Set::of_field(&IN_SCALE);
    let mut owners = written.0;
    owners.retain(|_, owned| owned.set.has_any_of(&in_scale));
    let mut kept = Managers::default();
    for (manager, mut owned) in Managers::of(managed(object)).unwrap_or_default().0 {
        let there = path(&manager.api_version).map(|path| Set::of_field(&path));
        if let Some(there) = there.filter(|there| owned.set.has_any_of(there)) {
            let shown = Manager { api_version: SCALE.api_version(), ..manager.clone() };
            match owners.remove(&shown) {
                Some(still) => owned.time = still.time,
                None => owned.set = owned.set.difference(&there),
            }
        }
        kept.0.insert(manager, owned);
    }
    for (manager, Owned { time, .. }) in owners {
        let manager = Manager { api_version: kind.api_version(), ..manager };
        let owned = kept.0.entry(manager).or_insert_with(|| Owned { set: Set::default(), time: String::new() });
        owned.set.extend(own.clone());
        owned.time = time;
    }
    kept.write(object, now);
}

/// The number of replicas in a Scale.
const IN_SCALE: [&str; 2] = ["spec", "replicas"];
