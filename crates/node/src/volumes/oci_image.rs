//! `image` volumes: the files of an image, for reading only.

use std::fs;

use k8s_openapi::api::core::v1::Volume;
use mainstay_logic::kubelet::{PullPolicy, pull_policy};

use super::{Answer, Driver, Ready, Request, VolumeError, blocking};
use crate::kubelet::credentials;

/// An image as a volume. Upstream's words for what keeps it from being one.
pub struct OciImage;

impl Driver for OciImage {
    fn name(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        Box::pin(async move {
            let source = request.volume.image.clone().unwrap_or_default();
            let reference = source.reference.unwrap_or_default();
            let images = request.kubelet.images.clone();
            let path = request.target.clone();
            // What is mounted stays, whatever its name means by now.
            let present = images.resolve_apart(&reference).await;
            let policy = if request.again {
                PullPolicy::IfNotPresent
            } else {
                pull_policy(&reference, source.pull_policy.as_deref())
            };
            let image = match (present, policy) {
                (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => image,
                (None, PullPolicy::Never) => {
                    let why = format!("Container image \"{reference}\" is not present with pull policy of Never");
                    return Err(VolumeError::Refused(why));
                }
                (_, PullPolicy::Always | PullPolicy::IfNotPresent) => {
                    let pulled = credentials::pull(request.kubelet, request.context, &reference).await;
                    pulled.map_err(|error| VolumeError::Refused(format!("ErrImagePull: {error}")))?
                }
            };
            blocking(move || {
                fs::create_dir_all(&path).map_err(VolumeError::io("making the directory"))?;
                images.mount_read_only(&image.id, &path).map_err(|error| VolumeError::Refused(error.to_string()))?;
                Ok(Ready { path, read_only: true, ..Ready::default() })
            })
            .await
        })
    }
}
