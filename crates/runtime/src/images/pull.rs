//! Pulling from registries.

use std::fs::File;

use super::archive::{digest_of, record};
use super::blob::{Layer, short_layer};
use super::partial::{Partial, Sink, unpacking, writing};
use super::registry::{Descriptor, Manifest, Patience, Registry};
use super::{Image, ImageError, ImageStore, Progress, ProgressFn, Reference, RegistryAuth};

/// Largest compressed layer.
const MAX_LAYER: u64 = 32 << 30;
/// An image whose layer vanished under a concurrent removal is pulled again so often.
const COMMIT_TRIES: usize = 3;

impl ImageStore {
    /// Pulls an image from its registry: HTTPS, and plain HTTP only where the registry is on this machine's loopback.
    /// What is there already is not fetched again. Of a pull that fails whole layers are kept, and for a day what came
    /// of others: the next pull of that repository's layer asks for the rest.
    ///
    /// Limits: manifests 4 MiB, configs 8 MiB, layers 32 GiB compressed, 127 of them; a registry that says nothing for
    /// 60 s is given up, and one that sends a layer's bytes more slowly than 64 KiB in 60 s.
    pub async fn pull(
        &self,
        name: &str,
        auth: Option<&RegistryAuth>,
        progress: ProgressFn<'_>,
    ) -> Result<Image, ImageError> {
        let reference = Reference::parse(name)?;
        let registry = Registry::new(&reference, auth, Patience::default(), &self.documents);
        let registry = registry.map_err(|why| ImageError::Pull { name: name.to_owned(), why })?;
        self.pull_from(registry, name, &reference, progress).await
    }

    pub(super) async fn pull_from(
        &self,
        mut registry: Registry,
        name: &str,
        reference: &Reference,
        progress: ProgressFn<'_>,
    ) -> Result<Image, ImageError> {
        let failed = |why: String| ImageError::Pull { name: name.to_owned(), why };
        progress(Progress { step: "manifest".to_owned(), done_bytes: 0, total_bytes: None });
        let repository = reference.name();
        let manifest = registry.manifest().await.map_err(failed)?;
        let config = registry.config(&manifest.config).await.map_err(failed)?;
        let read = writing(move || record(&config.bytes, &digest_of(&config.bytes)));
        let (mut record, diff_ids) = read.await.map_err(failed)?.map_err(failed)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(failed("its manifest and its config do not belong together".to_owned()));
        }
        record.is_pulled = true;
        let tags: Vec<String> = reference.digest.is_none().then(|| reference.to_string()).into_iter().collect();
        let digests: Vec<String> = manifest.digests.iter().map(|digest| format!("{repository}@{digest}")).collect();
        for _ in 0..COMMIT_TRIES {
            self.pull_layers(&mut registry, &repository, &manifest, &diff_ids, progress)
                .await
                .map_err(|error| failed(error.to_string()))?;
            let (store, mut record, tags, digests) = (self.clone(), record.clone(), tags.clone(), digests.clone());
            let commit = move || {
                record.size = store.layers_size(&record.layers);
                let is_done = store.commit(&record, &tags, &digests)?;
                Ok(is_done.then(|| store.resolve(&record.id).ok_or(ImageError::NotFound(record.id))))
            };
            if let Some(image) = unpacking(commit).await.map_err(failed)?? {
                return image;
            }
        }
        Err(failed("its layers were removed while it was pulled".to_owned()))
    }

    async fn pull_layers(
        &self,
        registry: &mut Registry,
        repository: &str,
        manifest: &Manifest,
        diff_ids: &[String],
        progress: ProgressFn<'_>,
    ) -> Result<(), ImageError> {
        let count = diff_ids.len();
        for (index, (layer, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            if self.layer_path(&short_layer(diff_id)).is_dir() {
                continue;
            }
            let failed = |why: String| ImageError::Layer { digest: layer.digest.clone(), why };
            if layer.size > MAX_LAYER {
                return Err(failed(format!("its size of {} bytes cannot be", layer.size)));
            }
            let step = format!("layer {} of {count}", index + 1);
            let blob = self.fetch(registry, repository, layer, &step, progress).await?;
            let (store, layer, diff_id) = (self.clone(), layer.clone(), diff_id.clone());
            let unpacked = unpacking(move || {
                let info = Layer {
                    digest: Some(&layer.digest),
                    diff_id: &diff_id,
                    number: index + 1,
                    count,
                    total_bytes: Some(layer.size),
                };
                let made = store.ensure_layer(&info, &mut || Ok(Box::new(File::open(&blob.path)?)), &mut |_| ());
                // It is of its digest: what cannot be unpacked now never can, or is in the way on a full disk.
                blob.discard();
                made
            });
            unpacked.await.map_err(failed)??;
        }
        Ok(())
    }

    /// Writes a layer down, from where an earlier pull of it broke off, and tells how far it is.
    async fn fetch(
        &self,
        registry: &mut Registry,
        repository: &str,
        layer: &Descriptor,
        step: &str,
        progress: ProgressFn<'_>,
    ) -> Result<Partial, ImageError> {
        let failed = |why: String| ImageError::Layer { digest: layer.digest.clone(), why };
        let (store, of, digest, size) = (self.clone(), repository.to_owned(), layer.digest.clone(), layer.size);
        let open = unpacking(move || Partial::open(&store, &of, &digest, size));
        let partial = open.await.map_err(failed)??;
        /// How often progress is told: every so many bytes.
        const STEP: u64 = 1 << 20;
        let mut next = 0;
        let mut tell = |done: u64| {
            if done >= next || done == size {
                next = done + STEP;
                progress(Progress { step: step.to_owned(), done_bytes: done, total_bytes: Some(size) });
            }
        };
        let mut sink = Sink::new(partial, &mut tell);
        let fetched = registry.layer(layer, &mut sink).await;
        // What came is kept, whatever came between.
        let written = sink.flush().await;
        let partial = sink.into_partial().ok_or_else(|| failed("its file is lost".to_owned()))?;
        match fetched.and(written) {
            Ok(()) => Ok(partial),
            Err(why) => {
                let store = self.clone();
                let swept = writing(move || {
                    match partial.is_empty() {
                        true => partial.discard(),
                        false => drop(partial),
                    }
                    store.sweep_partial();
                });
                swept.await.map_err(failed)?;
                Err(failed(why))
            }
        }
    }
}
