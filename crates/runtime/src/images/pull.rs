//! Pulling from registries.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::archive::{digest_of, record};
use super::blob::{Layer, short_layer};
use super::registry::{Descriptor, Manifest, Patience, Registry};
use super::{Image, ImageError, ImageStore, Progress, ProgressFn, Reference, RegistryAuth};

/// Largest compressed layer.
const MAX_LAYER: u64 = 32 << 30;
/// An image whose layer vanished under a concurrent removal is pulled again so often.
const COMMIT_TRIES: usize = 3;

impl ImageStore {
    /// Pulls an image from its registry: HTTPS, and plain HTTP only where the registry is on this machine's loopback.
    /// What is there already is not fetched again. Nothing is kept of a pull that fails, but for whole layers.
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
        let manifest = registry.manifest().await.map_err(failed)?;
        let config = registry.config(&manifest.config).await.map_err(failed)?;
        let (mut record, diff_ids) = record(&config.bytes, &digest_of(&config.bytes)).map_err(failed)?;
        drop(config);
        if diff_ids.len() != manifest.layers.len() {
            return Err(failed("its manifest and its config do not belong together".to_owned()));
        }
        let tags: Vec<String> = reference.digest.is_none().then(|| reference.to_string()).into_iter().collect();
        let digests: Vec<String> =
            manifest.digests.iter().map(|digest| format!("{}@{digest}", reference.name())).collect();
        for _ in 0..COMMIT_TRIES {
            self.pull_layers(&mut registry, &manifest, &diff_ids, progress)
                .await
                .map_err(|error| failed(error.to_string()))?;
            record.size = self.layers_size(&record.layers);
            record.is_pulled = true;
            if self.commit(&record, &tags, &digests)? {
                return self.resolve(&record.id).ok_or_else(|| ImageError::NotFound(name.to_owned()));
            }
        }
        Err(failed("its layers were removed while it was pulled".to_owned()))
    }

    async fn pull_layers(
        &self,
        registry: &mut Registry,
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
            let work = self.workspace()?;
            let path = work.path.join("blob");
            let step = format!("layer {} of {count}", index + 1);
            fetch(registry, layer, &path, &step, progress).await.map_err(failed)?;
            let (store, layer, diff_id) = (self.clone(), layer.clone(), diff_id.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                let _work = work;
                let info = Layer {
                    digest: Some(&layer.digest),
                    diff_id: &diff_id,
                    number: index + 1,
                    count,
                    total_bytes: Some(layer.size),
                };
                store.ensure_layer(&info, &mut || Ok(Box::new(File::open(&path)?)), &mut |_| ())
            });
            unpacked.await.map_err(|error| ImageError::Layer { digest: String::new(), why: error.to_string() })??;
        }
        Ok(())
    }
}

/// Writes a layer down and tells how far it is.
async fn fetch(
    registry: &mut Registry,
    layer: &Descriptor,
    path: &Path,
    step: &str,
    progress: ProgressFn<'_>,
) -> Result<(), String> {
    /// How often progress is told: every so many bytes.
    const STEP: u64 = 1 << 20;
    let mut file = File::create(path).map_err(|error| format!("cannot write it down: {error}"))?;
    let (mut done, mut told) = (0u64, 0u64);
    let mut take = |bytes: &[u8]| -> io::Result<()> {
        file.write_all(bytes)?;
        done += bytes.len() as u64;
        if done - told >= STEP || done == layer.size {
            told = done;
            progress(Progress { step: step.to_owned(), done_bytes: done, total_bytes: Some(layer.size) });
        }
        Ok(())
    };
    registry.layer(layer, &mut take).await
}
