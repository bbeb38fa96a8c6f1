//! What is removed because nobody misses it: images of registries that no pod here uses, and what ended containers
//! wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_runtime::images::{Image, ImageError, ImageStore};

use super::{Kubelet, record};

/// An image is not looked at before it was here for so long: its pod may be about to start. As upstream.
const MIN_AGE: Duration = Duration::from_mins(2);
/// How often room is kept for images, as upstream.
const KEEP_EVERY: Duration = Duration::from_mins(5);
/// Above this use of their file system images are removed until it is below the other, in percent; as upstream.
const HIGH: u64 = 85;
const LOW: u64 = 80;

/// What is known of the images from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Collection {
    seen: BTreeMap<String, Seen>,
    last_look: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    first: Instant,
    last_used: Instant,
}

impl Collection {
    /// The images that may go, the one that was not used for longest first.
    fn unused(&mut self, images: Vec<Image>, used: &BTreeSet<String>, now: Instant) -> Vec<Image> {
        self.seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen { first: now, last_used: now });
            if used.contains(&image.id) {
                seen.last_used = now;
            }
        }
        let age = |image: &Image| self.seen.get(&image.id).map(|seen| now.duration_since(seen.first));
        let mut unused: Vec<Image> = images
            .into_iter()
            .filter(|image| image.is_pulled && !used.contains(&image.id))
            .filter(|image| age(image).is_some_and(|age| age >= MIN_AGE))
            .collect();
        unused.sort_by_key(|image| self.seen.get(&image.id).map(|seen| seen.last_used));
        unused
    }
}

/// Now and then: removes images while their file system is fuller than it should be.
pub(super) async fn keep_room(kubelet: &Arc<Kubelet>, collection: &mut Collection) {
    if collection.last_look.is_some_and(|last| last.elapsed() < KEEP_EVERY) {
        return;
    }
    collection.last_look = Some(Instant::now());
    let (unused, images) = (unused(kubelet, collection).await, kubelet.images.clone());
    let freed = tokio::task::spawn_blocking(move || {
        let mut wanted = excess(&images);
        if wanted > 0 {
            images.discard_partial();
            wanted = excess(&images);
        }
        let freed = if wanted > 0 { remove(&images, unused, wanted) } else { 0 };
        (wanted, freed)
    });
    if let Ok((wanted, freed)) = freed.await
        && freed < wanted
    {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
             {freed} bytes eligible to free."
        );
        record(kubelet, true, "FreeDiskSpaceFailed", message);
    }
}

/// Removes all that nobody misses.
pub(super) async fn remove_unused(kubelet: &Arc<Kubelet>, collection: &mut Collection) {
    let (unused, images) = (unused(kubelet, collection).await, kubelet.images.clone());
    let runtime = kubelet.runtime.clone();
    let work = move || {
        runtime.discard_written();
        images.discard_partial();
        remove(&images, unused, u64::MAX);
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%error, "what nobody misses was not removed");
    }
}

/// Bytes that are used beyond what should be, once the use is too high.
fn excess(images: &ImageStore) -> u64 {
    let Ok(system) = nix::sys::statvfs::statvfs(images.root()) else { return 0 };
    let bytes = |blocks: u64| blocks.saturating_mul(system.fragment_size());
    over(bytes(system.blocks_available()), bytes(system.blocks()))
}

fn over(available: u64, capacity: u64) -> u64 {
    let part = |percent: u64| capacity / 100 * percent;
    let used = capacity.saturating_sub(available);
    if capacity == 0 || used < part(HIGH) { 0 } else { used.saturating_sub(part(LOW)) }
}

/// Removes images until so many bytes are free; says how many are.
fn remove(images: &ImageStore, unused: Vec<Image>, wanted: u64) -> u64 {
    let mut freed: u64 = 0;
    for image in unused {
        if freed >= wanted {
            break;
        }
        match images.remove(&image.id) {
            Ok(()) => {
                tracing::info!(image = image.names.first().unwrap_or(&image.id), size = image.size, "image removed");
                freed = freed.saturating_add(image.size);
            }
            // A container began meanwhile, or somebody else removed it.
            Err(ImageError::InUse(_) | ImageError::NotFound(_)) => {}
            Err(error) => tracing::warn!(image = image.id, %error, "an image cannot be removed"),
        }
    }
    freed
}

/// The images that no pod of this node names and no container has.
async fn unused(kubelet: &Arc<Kubelet>, collection: &mut Collection) -> Vec<Image> {
    let images = kubelet.images.clone();
    let mut used: BTreeSet<String> = kubelet.runtime.list().into_iter().map(|status| status.image_id).collect();
    let names: BTreeSet<String> = kubelet.pods.all().iter().flat_map(|handle| handle.context.images()).collect();
    let found = tokio::task::spawn_blocking(move || {
        let named: Vec<String> = names.iter().filter_map(|name| Some(images.resolve(name)?.id)).collect();
        (images.list(), named)
    });
    let Ok((all, named)) = found.await else { return Vec::new() };
    used.extend(named);
    collection.unused(all, &used, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, is_pulled: bool) -> Image {
        Image { id: id.to_owned(), is_pulled, ..Image::default() }
    }

    #[test]
    fn x4_only_images_that_nobody_uses_and_a_registry_has_are_removed_the_oldest_use_first() {
        let mut collection = Collection::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let all = || ["a", "b", "loaded", "c"].map(|id| image(id, id != "loaded")).to_vec();
        let mut unused = |used: &[&str], now| {
            let used = used.iter().map(|id| (*id).to_owned()).collect();
            let unused = collection.unused(all(), &used, now);
            unused.into_iter().map(|image| image.id).collect::<Vec<_>>()
        };
        assert_eq!(unused(&["a"], at(0)), Vec::<String>::new(), "too young");
        assert_eq!(unused(&["a", "b"], at(60)), Vec::<String>::new());
        assert_eq!(unused(&["b"], at(120)), ["c", "a"], "one that is used stays, and so does one that was loaded");
        assert_eq!(unused(&[], at(180)), ["c", "a", "b"]);
    }

    #[test]
    fn room_for_images_is_kept_between_two_marks() {
        assert_eq!(over(151, 1000), 0);
        assert_eq!(over(150, 1000), 50);
        assert_eq!(over(0, 1000), 200);
        assert_eq!(over(0, 0), 0);
    }
}
