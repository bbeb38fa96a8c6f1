//! Indexes of a snapshot: for each question that decisions ask, the objects that answer it, kept up to date by the
//! change that concerns them, so that no answer costs more because the cluster is larger.
//!
//! ```text
//! pod web-0 (labels app=web; bound to n1; uses claim data-web-0) is found under
//!   (Label("pods"), "default", "app\0web")   (PodsOn, "n1", "")   (PodsUsing, "default", "data-web-0")
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use mainstay_api::{ObjectKey, kinds};
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::{Objects, Snapshot, in_namespace};
use crate::pods::selects;

/// A question. The two texts of a [`Facet`] are said here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Index {
    /// Objects of a kind (its plural) with a label: namespace, `key\0value`.
    Label(&'static str),
    /// Objects of a kind (its plural) whose selector asks for a label: namespace, `key\0value`. Each is found under
    /// one of the labels that it asks for (see [`Indexes::set_selector`]).
    Selector(&'static str),
    /// The allocator's IPAddresses, in order of address: `""`, the address as [`crate::addresses::sorted`] writes it.
    Addresses,
    /// The allocator's IPAddresses by the Service that they name: its namespace, its name.
    AddressesOf,
    /// Pods with a required anti-affinity term: the term's namespace (`*` for any), `key\0value` as for selectors.
    AntiAffinity,
    /// Autoscalers by what they scale: their namespace, [`horizontalpodautoscaler::aim`].
    ///
    /// [`horizontalpodautoscaler::aim`]: crate::controllers::horizontalpodautoscaler::aim
    AutoscalersOf,
    /// Claims that name a volume: its name.
    ClaimsNaming,
    /// Unbound claims that are to be copies of something: its kind, its name.
    ClaimsWanting,
    /// Claims that are not settled with a volume.
    ClaimsUnsettled,
    /// Claims and volumes by the VolumeAttributesClass that they name: its name.
    AttributesClass,
    /// VolumeSnapshotContents by handle.
    ContentsOf,
    /// VolumeSnapshotContents on their way out.
    ContentsLeaving,
    /// VolumeGroupSnapshotContents that have no copies yet: the name of a volume.
    GroupContentsOf,
    /// VolumeGroupSnapshots that are not ready.
    GroupsUnsettled,
    /// Nodes that are ready.
    NodesReady,
    /// Pods by address: namespace, address.
    PodsAt,
    /// Active pods by the node that they are nominated to: its name.
    PodsNominated,
    /// Pods that have ended and are not on their way out.
    PodsEnded,
    /// Those of a ReplicaSet or ReplicationController: its uid.
    PodsEndedOf,
    /// The same in the order in which they go when they are too many: `""`, that order.
    PodsEndedSince,
    /// Pods by the node that they are bound to (`""`: none): its name.
    PodsOn,
    /// Pods on nodes and not finished by controller: its uid, the node.
    PodsOfOn,
    /// Pods without a node that care where others are.
    PodsLookingAtOthers,
    /// Pods without a node that have claims.
    PodsPendingClaims,
    /// Pods that use a claim: its namespace, its name.
    PodsUsing,
    /// ServiceCIDRs on their way out.
    RangesLeaving,
    /// Slices that name a pod as a target: its namespace, its name.
    SlicesNaming,
    /// VolumeSnapshots of a claim: its namespace, its name.
    SnapshotsOf,
    /// VolumeSnapshots that name a content: its name.
    SnapshotsNaming,
    /// VolumeSnapshots that are not ready, or on their way out.
    SnapshotsUnsettled,
    /// Volumes that are to become a copy of a folder: its name.
    VolumesCopying,
    /// Image volumes that more than one node may reach.
    VolumesLoose,
    /// Volumes by the claim that their claimRef names: its namespace, its name.
    VolumesOf,
    /// Volumes that wait for a node to do something.
    VolumesWaiting,
}

/// Where an object is found.
pub type Facet = (Index, Arc<str>, Arc<str>);

/// The facets of one object.
#[derive(Default, Debug)]
pub struct Facets(BTreeSet<Facet>);

impl Facets {
    /// Under two texts.
    pub fn add(&mut self, index: Index, first: &str, second: &str) {
        self.0.insert((index, first.into(), second.into()));
    }

    /// Under each of its labels.
    pub fn labels(&mut self, plural: &'static str, meta: &ObjectMeta) {
        let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or("").into();
        for (key, value) in meta.labels.iter().flatten() {
            self.0.insert((Index::Label(plural), namespace.clone(), pair(key, value)));
        }
    }
}

fn pair(key: &str, value: &str) -> Arc<str> {
    [key, "\0", value].concat().into()
}

/// What a kind that logic reads is found by.
pub trait Indexed {
    /// Where the object is found.
    fn facets(&self, _facets: &mut Facets) {}

    /// What it selects in its namespace, where it is to be found by what it selects.
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        None
    }

    /// Keeps the sums that objects of this kind are part of.
    fn account(_snapshot: &mut Snapshot, _key: &ObjectKey, _old: Option<&Self>, _new: Option<&Self>) {}
}

/// A kind that a snapshot has typed views of.
pub trait Typed: Indexed + Sized {
    /// Its plural.
    const PLURAL: &'static str;
    /// Its group.
    const GROUP: &'static str;
    /// All of them.
    fn of(snapshot: &Snapshot) -> &Objects<Self>;
    /// All of them.
    fn of_mut(snapshot: &mut Snapshot) -> &mut Objects<Self>;

    /// Its metadata.
    fn object_meta_mut(&mut self) -> &mut ObjectMeta;
}

/// All facets of all objects.
#[derive(Clone, Default, Debug)]
pub struct Indexes(RedBlackTreeMapSync<Facet, RedBlackTreeSetSync<ObjectKey>>);

impl Indexes {
    /// Brings an object's facets up to date.
    pub fn set(&mut self, key: &ObjectKey, old: &Facets, new: &Facets) {
        old.0.difference(&new.0).for_each(|facet| self.remove(facet, key));
        new.0.difference(&old.0).for_each(|facet| self.insert(facet.clone(), key.clone()));
    }

    fn insert(&mut self, facet: Facet, key: ObjectKey) {
        match self.0.get_mut(&facet) {
            Some(keys) => keys.insert_mut(key),
            None => {
                let mut keys = RedBlackTreeSetSync::new_sync();
                keys.insert_mut(key);
                self.0.insert_mut(facet, keys);
            }
        }
    }

    fn remove(&mut self, facet: &Facet, key: &ObjectKey) {
        let Some(keys) = self.0.get_mut(facet) else { return };
        keys.remove_mut(key);
        if keys.is_empty() {
            self.0.remove_mut(facet);
        }
    }

    /// Keeps an object findable by what it selects: under that one of the labels which it asks for that the fewest
    /// others of its kind are found under, so that a label which all have makes nobody slow. Without any, under `""`.
    pub fn set_selector(
        &mut self,
        index: Index,
        namespace: &str,
        key: &ObjectKey,
        old: Option<&[(&str, &str)]>,
        new: Option<&[(&str, &str)]>,
    ) {
        if old == new {
            return;
        }
        let namespace: Arc<str> = namespace.into();
        let facets = |pairs: &[(&str, &str)]| -> Vec<Facet> {
            let texts = pairs.iter().map(|(name, value)| pair(name, value));
            let none = pairs.is_empty().then(|| Arc::from(""));
            texts.chain(none).map(|text| (index, namespace.clone(), text)).collect()
        };
        for facet in old.map(facets).unwrap_or_default() {
            self.remove(&facet, key);
        }
        let rarest = new.map(facets).unwrap_or_default().into_iter().min_by_key(|facet| self.size(facet));
        if let Some(facet) = rarest {
            self.insert(facet, key.clone());
        }
    }

    fn size(&self, facet: &Facet) -> usize {
        self.0.get(facet).map_or(0, RedBlackTreeSetSync::size)
    }

    /// Whether any object is found by this.
    pub fn has_any(&self, index: Index) -> bool {
        let least: Facet = (index, Arc::from(""), Arc::from(""));
        self.0.range(least..).next().is_some_and(|((of, ..), _)| *of == index)
    }

    /// How many objects are found there.
    pub fn count(&self, index: Index, first: &str, second: &str) -> usize {
        self.size(&(index, first.into(), second.into()))
    }

    /// The objects that are found there, in order.
    pub fn get<'a>(&'a self, index: Index, first: &str, second: &str) -> impl Iterator<Item = &'a ObjectKey> + use<'a> {
        self.0.get(&(index, first.into(), second.into())).into_iter().flat_map(|keys| keys.iter())
    }

    /// The objects that are found under `""` and a second text between these two, themselves included, in its order.
    pub fn between<'a>(&'a self, index: Index, first: &str, last: &str) -> impl Iterator<Item = &'a ObjectKey> {
        let facet = |text: &str| (index, Arc::from(""), Arc::from(text));
        self.0.range(facet(first)..=facet(last)).flat_map(|(_, keys)| keys.iter())
    }

    /// The objects whose selectors may select these labels, in order; some do not.
    pub fn selecting<'a>(
        &'a self,
        index: Index,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> BTreeSet<&'a ObjectKey> {
        let namespace: Arc<str> = namespace.into();
        let texts = labels.into_iter().flatten().map(|(name, value)| pair(name, value)).chain([Arc::from("")]);
        texts.filter_map(|text| self.0.get(&(index, namespace.clone(), text))).flat_map(|keys| keys.iter()).collect()
    }

    /// The objects of a kind in a namespace that a selector may select, in order; some are not selected. `None`: any.
    fn selected(&self, plural: &'static str, namespace: &str, selector: &LabelSelector) -> Option<Vec<&ObjectKey>> {
        let namespace: Arc<str> = namespace.into();
        let facet = |name: &str, value: &str| (Index::Label(plural), namespace.clone(), pair(name, value));
        let pairs = selector.match_labels.iter().flatten().map(|(name, value)| vec![facet(name, value)]);
        let one_of = selector.match_expressions.iter().flatten().filter(|expression| expression.operator == "In");
        let one_of = one_of.map(|expression| {
            expression.values.iter().flatten().map(|value| facet(&expression.key, value)).collect::<Vec<_>>()
        });
        let size = |facets: &Vec<Facet>| facets.iter().map(|facet| self.size(facet)).sum::<usize>();
        let fewest = pairs.chain(one_of).min_by_key(size)?;
        let keys = fewest.iter().filter_map(|facet| self.0.get(facet)).flat_map(|keys| keys.iter());
        Some(match fewest.as_slice() {
            // In order already.
            [_] => keys.collect(),
            _ => keys.collect::<BTreeSet<_>>().into_iter().collect(),
        })
    }
}

impl Snapshot {
    /// Makes, replaces or takes away a typed object, with everything that is derived from it.
    pub fn set<T: Typed>(&mut self, key: &ObjectKey, new: Option<Arc<T>>) {
        let old = match &new {
            Some(new) => {
                let old = T::of(self).get(key).cloned();
                T::of_mut(self).insert_mut(key.clone(), new.clone());
                old
            }
            None => {
                let old = T::of(self).get(key).cloned();
                T::of_mut(self).remove_mut(key);
                old
            }
        };
        let facets = |object: &Option<Arc<T>>| {
            let mut facets = Facets::default();
            object.iter().for_each(|object| object.facets(&mut facets));
            facets
        };
        self.indexes.set(key, &facets(&old), &facets(&new));
        let was = old.as_ref().and_then(|object| object.selector());
        let is = new.as_ref().and_then(|object| object.selector());
        if was.is_some() || is.is_some() {
            let index = Index::Selector(T::PLURAL);
            self.indexes.set_selector(index, &key.namespace, key, was.as_deref(), is.as_deref());
        }
        T::account(self, key, old.as_deref(), new.as_deref());
    }

    /// The objects of a kind that are found there, in order of key.
    pub fn found<'a, T: Typed + 'a>(
        &'a self,
        index: Index,
        first: &str,
        second: &str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<T>)> + use<'a, T> {
        self.indexes.get(index, first, second).filter_map(|key| T::of(self).get_key_value(key))
    }

    /// The objects of a namespace that a selector selects, in order of key. Asks the index of labels, so `T` must add
    /// its labels to its facets.
    pub fn selected<'a, T: Typed + Metadata<Ty = ObjectMeta> + 'a>(
        &'a self,
        namespace: &str,
        selector: &LabelSelector,
    ) -> Vec<(&'a ObjectKey, &'a Arc<T>)> {
        let objects = T::of(self);
        let matches = |object: &Arc<T>| selects(selector, object.metadata().labels.as_ref());
        match self.indexes.selected(T::PLURAL, namespace, selector) {
            Some(keys) => {
                let all = keys.into_iter().filter_map(|key| objects.get_key_value(key));
                all.filter(|(_, object)| matches(object)).collect()
            }
            None => in_namespace(objects, namespace).filter(|(_, object)| matches(object)).collect(),
        }
    }

    /// The objects of a namespace that have all these labels, in order of key.
    pub fn labelled<'a, T: Typed + Metadata<Ty = ObjectMeta> + 'a>(
        &'a self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<(&'a ObjectKey, &'a Arc<T>)> {
        self.selected(namespace, &LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() })
    }

    /// The objects of a namespace whose selectors may select an object with these labels, in order of key; some do
    /// not, so ask them.
    pub fn selecting<'a, T: Typed + 'a>(
        &'a self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<T>)> {
        // Each change of a pod asks for several kinds of which many a cluster has none.
        let keys = match T::of(self).is_empty() {
            true => BTreeSet::new(),
            false => self.indexes.selecting(Index::Selector(T::PLURAL), namespace, labels),
        };
        keys.into_iter().filter_map(|key| T::of(self).get_key_value(key))
    }

    /// The objects of a kind that name an owner by uid, in order of key.
    pub fn owned_by<'a, T: Typed + 'a>(&'a self, uid: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<T>)> {
        let uid: Arc<str> = uid.into();
        let start = (uid.clone(), kinds::LEAST.clone(), ObjectKey::new("", ""));
        self.owned
            .range(start..)
            .take_while(move |((owner, ..), ())| *owner == uid)
            .filter(|((_, kind, _), ())| kind.plural == T::PLURAL && kind.group == T::GROUP)
            .filter_map(|((.., key), ())| T::of(self).get_key_value(key))
    }

    /// What an owner has to look at: the objects of its namespace that name it as an owner, and those that its
    /// selector selects, in order of key. All others are foreign to it ([`crate::ownership::Owner::relation`]).
    pub fn related<'a, T: Typed + Metadata<Ty = ObjectMeta> + 'a>(
        &'a self,
        owner: &ObjectMeta,
        selector: &LabelSelector,
    ) -> Vec<&'a T> {
        let namespace = owner.namespace.as_deref().unwrap_or("");
        let owned = self.owned_by::<T>(owner.uid.as_deref().unwrap_or(""));
        let mut owned: Vec<(&ObjectKey, &T)> =
            owned.filter(|(key, _)| *key.namespace == *namespace).map(|(key, object)| (key, &**object)).collect();
        owned.sort_by_key(|(key, _)| *key);
        let objects = T::of(self);
        let keys = self.indexes.selected(T::PLURAL, namespace, selector);
        let keys = keys.unwrap_or_else(|| in_namespace(objects, namespace).map(|(key, _)| key).collect());
        // Two lists in one order, of mostly the same keys: only what is selected and not owned is looked up.
        let (mut owned, mut related) = (owned.into_iter().peekable(), Vec::with_capacity(keys.len()));
        for key in keys {
            while let Some((_, object)) = owned.next_if(|(of, _)| *of < key) {
                related.push(object);
            }
            let own = owned.next_if(|(of, _)| *of == key).map(|(_, object)| object);
            let selected = || objects.get(key).map(|object| &**object);
            related.extend(
                own.or_else(|| selected().filter(|object| selects(selector, object.metadata().labels.as_ref()))),
            );
        }
        related.extend(owned.map(|(_, object)| object));
        related
    }
}
