//! A volume that takes no writes any more, for a write below it failed (a full disk): made well again before a
//! container of its pod is started. While another container has it nothing can be done, and the pod's people are told
//! so.

use std::path::Path;
use std::sync::Arc;

use mainstay_logic::kubelet::PodEvent;

use super::image::{Image, Recovery};
use super::users::Users;
use super::{VolumeError, blocking, blocking_on};
use crate::kubelet::events::Regarding;
use crate::kubelet::{Kubelet, PodContext};

/// Looks at all image volumes of a pod.
///
/// # Errors
/// What could not be mended; the container must not start on the folder below the mount.
pub async fn recover(
    kubelet: &Kubelet,
    context: &PodContext,
    users: &Arc<Users>,
    root: &Path,
) -> Result<(), VolumeError> {
    let pod_dir = kubelet.disk.pod_dir(&context.uid).map_err(VolumeError::io("the pod's folder"))?;
    let (of, root) = (users.clone(), root.to_owned());
    let images = blocking(move || {
        let records = of.records_of(&pod_dir).map_err(VolumeError::io("reading which volumes the pod has"))?;
        Ok(records.iter().filter_map(|record| Image::behind(&root, &record.path)).collect::<Vec<_>>())
    });
    for image in images.await? {
        let name = image.name();
        let alone = users.lock(&name).await;
        let work = move || {
            let _alone = alone;
            image.recover()
        };
        let result = blocking_on(&name, work).await;
        let (warning, reason, message) = match &result {
            Ok(Recovery::Unneeded) => continue,
            Ok(Recovery::Done) => (
                false,
                "VolumeRecovered",
                format!(
                    "volume \"{name}\" had become read-only after an error below it; it was checked and mounted again"
                ),
            ),
            Ok(Recovery::InUse) => (
                true,
                "VolumeReadOnly",
                format!(
                    "volume \"{name}\" has become read-only after an error below it; it recovers when no container \
                     uses it any more"
                ),
            ),
            Err(error) => (
                true,
                "VolumeReadOnly",
                format!("volume \"{name}\" has become read-only and does not recover: {error}"),
            ),
        };
        record(kubelet, context, warning, reason, message);
        result?;
    }
    Ok(())
}

/// Says that a volume of a pod was mounted anew.
pub fn mounted_again(kubelet: &Kubelet, context: &PodContext, name: &str) {
    let message = format!("volume \"{name}\" was not mounted any more; it was mounted again");
    record(kubelet, context, false, "VolumeRecovered", message);
}

pub(super) fn record(kubelet: &Kubelet, context: &PodContext, warning: bool, reason: &'static str, message: String) {
    let of = Regarding {
        kind: "Pod".into(),
        namespace: context.namespace.clone(),
        name: context.name.clone(),
        uid: context.uid.clone(),
    };
    kubelet.events.record(of, PodEvent { warning, reason, message, container: None });
}
