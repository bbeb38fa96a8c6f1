//! Pulling from registries.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::{Client, secrets};
use tokio::io::AsyncWrite;

use super::archive::{digest_of, is_digest, record};
use super::blob::{Layer, short_layer};
use super::{Image, ImageError, ImageStore, Progress, ProgressFn, Reference, RegistryAuth};

/// A registry that is silent for so long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest compressed layer.
const MAX_LAYER: u64 = 32 << 30;
/// An image whose layer vanished under a concurrent removal is pulled again so often.
const COMMIT_TRIES: usize = 3;

impl ImageStore {
    /// Pulls an image from its registry: HTTPS, and plain HTTP only where the registry is on this machine's loopback.
    /// What is there already is not fetched again. Nothing is kept of a pull that fails, but for whole layers.
    pub async fn pull(
        &self,
        name: &str,
        auth: Option<&RegistryAuth>,
        progress: ProgressFn<'_>,
    ) -> Result<Image, ImageError> {
        let reference = Reference::parse(name)?;
        let failed = |why: String| ImageError::Pull { name: name.to_owned(), why };
        let client = client(&reference.domain).map_err(failed)?;
        let remote: oci_client::Reference =
            reference.to_string().parse().map_err(|error| failed(format!("{error}")))?;
        let auth = match auth {
            Some(auth) => secrets::RegistryAuth::Basic(auth.username.clone(), auth.password.clone()),
            None => secrets::RegistryAuth::Anonymous,
        };
        progress(Progress { step: "manifest".to_owned(), done_bytes: 0, total_bytes: None });
        let pulled = client.pull_manifest_and_config_and_list_digest(&remote, &auth).await;
        let (manifest, digest, config, list) = pulled.map_err(|error| failed(explain(&error)))?;
        let (mut record, diff_ids) = record(config.as_bytes(), &digest_of(config.as_bytes())).map_err(failed)?;
        if record.id != manifest.config.digest || diff_ids.len() != manifest.layers.len() {
            return Err(failed("its manifest and its config do not belong together".to_owned()));
        }
        let tags: Vec<String> = reference.digest.is_none().then(|| reference.to_string()).into_iter().collect();
        let digests: Vec<String> =
            [Some(digest), list].into_iter().flatten().map(|digest| format!("{}@{digest}", reference.name())).collect();
        for _ in 0..COMMIT_TRIES {
            self.pull_layers(&client, &remote, &manifest, &diff_ids, progress)
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
        client: &Client,
        remote: &oci_client::Reference,
        manifest: &OciImageManifest,
        diff_ids: &[String],
        progress: ProgressFn<'_>,
    ) -> Result<(), ImageError> {
        let count = diff_ids.len();
        for (index, (layer, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            if self.layer_path(&short_layer(diff_id)).is_dir() {
                continue;
            }
            let failed = |why: String| ImageError::Layer { digest: layer.digest.clone(), why };
            let length =
                u64::try_from(layer.size).ok().filter(|length| *length <= MAX_LAYER && is_digest(&layer.digest));
            let length =
                length.ok_or_else(|| failed(format!("its size of {} bytes or its digest cannot be", layer.size)))?;
            let work = self.workspace()?;
            let path = work.path.join("blob");
            let step = format!("layer {} of {count}", index + 1);
            fetch(client, remote, layer, &path, length, &step, progress).await.map_err(failed)?;
            let (store, layer, diff_id) = (self.clone(), layer.clone(), diff_id.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                let _work = work;
                let info = Layer {
                    digest: Some(&layer.digest),
                    diff_id: &diff_id,
                    number: index + 1,
                    count,
                    total_bytes: Some(length),
                };
                store.ensure_layer(&info, &mut || Ok(Box::new(File::open(&path)?)), &mut |_| ())
            });
            unpacked.await.map_err(|error| ImageError::Layer { digest: String::new(), why: error.to_string() })??;
        }
        Ok(())
    }
}

async fn fetch(
    client: &Client,
    remote: &oci_client::Reference,
    layer: &OciDescriptor,
    path: &Path,
    length: u64,
    step: &str,
    progress: ProgressFn<'_>,
) -> Result<(), String> {
    let file = File::create(path).map_err(|error| format!("cannot write it down: {error}"))?;
    let sink = Sink { file, done: 0, length, told: 0, step, progress };
    client.pull_blob(remote, layer, sink).await.map_err(|error| explain(&error))
}

fn client(domain: &str) -> Result<Client, String> {
    // Two providers in one program would make rustls refuse to choose; the first to come decides, and it is ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let protocol =
        if is_loopback(domain) { ClientProtocol::HttpsExcept(vec![domain.to_owned()]) } else { ClientProtocol::Https };
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("mainstay/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| explain(&error))
}

fn is_loopback(domain: &str) -> bool {
    let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An error with its causes, which say what the outermost does not (`error sending request`: why?).
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Writes a blob down and tells how far it is; never more than was announced.
struct Sink<'a> {
    file: File,
    done: u64,
    length: u64,
    told: u64,
    step: &'a str,
    progress: ProgressFn<'a>,
}

impl AsyncWrite for Sink<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        /// How often progress is told: every so many bytes.
        const STEP: u64 = 1 << 20;
        let sink = self.get_mut();
        sink.done += bytes.len() as u64;
        if sink.done > sink.length {
            return Poll::Ready(Err(io::Error::other("it is longer than the manifest says")));
        }
        sink.file.write_all(bytes)?;
        if sink.done - sink.told >= STEP || sink.done == sink.length {
            sink.told = sink.done;
            (sink.progress)(Progress {
                step: sink.step.to_owned(),
                done_bytes: sink.done,
                total_bytes: Some(sink.length),
            });
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
