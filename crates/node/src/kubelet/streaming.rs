//! What the node's HTTPS server asks the kubelet.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Kubelet;
use super::pods::PodHandle;
use crate::streaming::Backend;
use crate::streaming::room::Claimed;

impl Backend for Kubelet {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.find(namespace, name, None).map(|handle| handle.context.pod)
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.all().into_iter().map(|handle| handle.context.pod).collect()
    }

    fn node_name(&self) -> &str {
        &self.config.node_name
    }

    fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        self.disk.log_path(&text(&metadata.namespace), &text(&metadata.name), &text(&metadata.uid), container, attempt)
    }

    fn folders(&self) -> (PathBuf, PathBuf) {
        (self.config.data_dir.clone(), self.images.root().to_owned())
    }

    fn claims(&self) -> Vec<Claimed> {
        let mut found = Vec::new();
        for PodHandle { context, .. } in self.pods.all() {
            let volumes = context.spec().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
            for volume in volumes {
                let Some((claim, _)) = mainstay_logic::pods::claim_name(&context.pod, volume) else { continue };
                let Ok(record) = self.volumes.mounted(&context.uid, &volume.name) else { continue };
                let (namespace, pod_uid) = (context.namespace.clone(), context.uid.clone());
                let (name, is_block) = (volume.name.clone(), record.block.is_some());
                let path = record.block.unwrap_or(record.path);
                found.push(Claimed { namespace, claim, pod_uid, name, path, is_block });
            }
        }
        found
    }

    fn probe_metrics(&self) -> String {
        self.probed.metrics(&self.pods.all())
    }

    fn load_images(&self, archive: &mut dyn std::io::Read) -> Result<Vec<String>, String> {
        self.images.load_reader(archive, &mut |_| {}).map_err(|error| error.to_string())
    }
}
