//! Volumes made of API objects: configMap, secret, downwardAPI and projected (all of these and service account tokens).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume};
use mainstay_api::{kinds, object};
use serde_json::{Value, json};

use super::atomic::{self, File, Payload};
use super::{Answer, Driver, Ready, Request, VolumeError, blocking};
use crate::kubelet::environment::{self, Addresses};
use crate::kubelet::resources;
use mainstay_runtime::safe_path::mounts;

/// The mode of a projected file where nobody gives one.
const DEFAULT_MODE: i32 = 0o644;
/// The lifetime of a token where the pod does not say, seconds.
const TOKEN_SECONDS: i64 = 3600;
/// What a volume of secrets may hold, in bytes of memory.
const SECRETS: usize = 16 << 20;
/// The memory that it gets: the old files are there until the new ones are.
const SECRETS_SIZE: u64 = 2 * SECRETS as u64 + (1 << 20);
/// What any other one may hold: a pod names one ConfigMap as often as it likes.
const FILES: usize = 64 << 20;
/// What a file takes of memory at least, and is rounded up to.
const PAGE: usize = 4096;
/// What a file takes beside its bytes and its path, about.
const FILE: usize = 64;

/// Pod uid, volume name, path in the volume.
pub type TokenKey = (String, String, String);

/// A token and when a new one is due.
#[derive(Clone)]
pub struct Token {
    token: String,
    refresh_at: Timestamp,
}

/// configMap, secret, downwardAPI and projected volumes.
pub struct Projected;

impl Driver for Projected {
    fn name(&self) -> &'static str {
        "kubernetes.io/projected"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
    }

    fn ensure<'a>(&'a self, mut request: Request<'a>) -> Answer<'a> {
        Box::pin(async move {
            let mut refresh_at = None;
            let secret = request.volume.secret.is_some()
                || request.volume.projected.as_ref().is_some_and(|projected| {
                    projected
                        .sources
                        .iter()
                        .flatten()
                        .any(|source| source.secret.is_some() || source.service_account_token.is_some())
                });
            let payload = payload(&mut request, secret, &mut refresh_at).await?;
            let (target, group) = (request.target.clone(), request.fs_group());
            let stamp = Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
            blocking(move || {
                if !target.is_dir() {
                    fs::create_dir(&target).map_err(VolumeError::io("making the directory"))?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(0o777))
                        .map_err(VolumeError::io("setting its mode"))?;
                }
                // Secrets are never written to a disk (X2).
                if secret {
                    mounts::tmpfs(&target, 0o777, Some(SECRETS_SIZE)).map_err(VolumeError::io("mounting tmpfs"))?;
                }
                atomic::write(&target, &payload, group, &stamp).map_err(VolumeError::io("writing the files"))?;
                Ok(Ready { path: target, read_only: true, refresh_at, ..Ready::default() })
            })
            .await
        })
    }
}

/// A payload that is counted while it grows (X4).
struct Files {
    payload: Payload,
    /// Whether it is kept in memory.
    secret: bool,
    left: usize,
}

impl Files {
    fn new(secret: bool) -> Self {
        Self { payload: Payload::new(), secret, left: if secret { SECRETS } else { FILES } }
    }

    /// Adds a file. One that takes the place of another counts like it, too: it has been read.
    fn put(&mut self, path: String, file: File) -> Result<(), VolumeError> {
        let length = file.bytes.len();
        let takes = if self.secret { length.next_multiple_of(PAGE) } else { length + path.len() + FILE };
        let Some(left) = self.left.checked_sub(takes) else {
            let most = if self.secret { SECRETS } else { FILES };
            return Err(VolumeError::Refused(format!("its files take more than {most} bytes")));
        };
        self.left = left;
        self.payload.insert(path, file);
        Ok(())
    }
}

async fn payload(
    request: &mut Request<'_>,
    secret: bool,
    refresh_at: &mut Option<Timestamp>,
) -> Result<Payload, VolumeError> {
    let mut payload = Files::new(secret);
    let volume = request.volume;
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        add_object(request, ("configmaps", &source.name), source.items.as_deref(), source.optional, mode, &mut payload)
            .await?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or("");
        add_object(request, ("secrets", name), source.items.as_deref(), source.optional, mode, &mut payload).await?;
    } else if let Some(source) = &volume.downward_api {
        add_fields(
            request,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode.unwrap_or(DEFAULT_MODE),
            &mut payload,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                add_object(request, ("configmaps", &map.name), map.items.as_deref(), map.optional, mode, &mut payload)
                    .await?;
            } else if let Some(secret) = &source.secret {
                add_object(
                    request,
                    ("secrets", &secret.name),
                    secret.items.as_deref(),
                    secret.optional,
                    mode,
                    &mut payload,
                )
                .await?;
            } else if let Some(fields) = &source.downward_api {
                add_fields(request, fields.items.as_deref().unwrap_or_default(), mode, &mut payload)?;
            } else if let Some(token) = &source.service_account_token {
                let due = add_token(request, token, mode, &mut payload).await?;
                *refresh_at = Some(refresh_at.map_or(due, |at: Timestamp| at.min(due)));
            } else {
                return Err(VolumeError::Refused("this node cannot project this kind of source".to_owned()));
            }
        }
    }
    Ok(payload.payload)
}

fn mode_of(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

async fn add_object(
    request: &mut Request<'_>,
    (plural, name): (&'static str, &str),
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default_mode: i32,
    payload: &mut Files,
) -> Result<(), VolumeError> {
    let optional = optional == Some(true);
    let found =
        environment::object(request.kubelet, request.context, plural, name, optional, request.dependencies).await?;
    let Some(found) = found else { return Ok(()) };
    add_keys(&found, items.unwrap_or_default(), optional, default_mode, payload).map_err(|missing| match missing {
        Ok(key) => {
            let kind = plural.trim_end_matches('s');
            VolumeError::Refused(format!("references non-existent {kind} key: {key}"))
        }
        Err(error) => error,
    })
}

/// All keys of a ConfigMap or Secret, or those that are named. An error is the key that is missing, or what else it is.
fn add_keys(
    object: &Value,
    items: &[KeyToPath],
    optional: bool,
    default_mode: i32,
    payload: &mut Files,
) -> Result<(), Result<String, VolumeError>> {
    if items.is_empty() {
        for key in environment::keys(object) {
            let Some(value) = environment::value_of(object, key) else { continue };
            let bytes = value.map_err(|why| Err(why.into()))?;
            payload.put(key.clone(), File { bytes, mode: mode_of(default_mode), user: None }).map_err(Err)?;
        }
        return Ok(());
    }
    for item in items {
        match environment::value_of(object, &item.key) {
            Some(value) => {
                let (bytes, mode) = (value.map_err(|why| Err(why.into()))?, item.mode.unwrap_or(default_mode));
                payload.put(item.path.clone(), File { bytes, mode: mode_of(mode), user: None }).map_err(Err)?;
            }
            None if optional => {}
            None => return Err(Ok(item.key.clone())),
        }
    }
    Ok(())
}

fn add_fields(
    request: &Request<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    payload: &mut Files,
) -> Result<(), VolumeError> {
    let node = request.kubelet.config.node_ip.to_string();
    let addresses = Addresses { node, pod: request.kubelet.pods.ip(&request.context.uid) };
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            environment::field_value(request.context, &field.field_path, &addresses)?
        } else if let Some(field) = &item.resource_field_ref {
            let name = field.container_name.as_deref().unwrap_or("");
            let container = request.context.container(name).ok_or_else(|| format!("container {name} not found"))?;
            resources::field(container, &field.resource, field.divisor.as_ref())?
        } else {
            continue;
        };
        let mode = mode_of(item.mode.unwrap_or(default_mode));
        payload.put(item.path.clone(), File { bytes: value.into_bytes(), mode, user: None })?;
    }
    Ok(())
}

/// A token of the pod's own service account, bound to this pod; a new one when four fifths of its life are over.
async fn add_token(
    request: &Request<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    payload: &mut Files,
) -> Result<Timestamp, VolumeError> {
    let context = request.context;
    let key = (context.uid.clone(), request.volume.name.clone(), source.path.clone());
    let tokens = &request.kubelet.volumes.tokens;
    let lock = || tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let now = Timestamp::now();
    let kept = lock().get(&key).filter(|token| token.refresh_at > now).cloned();
    let token = match kept {
        Some(token) => token,
        None => {
            let fresh = request_token(request, source).await?;
            lock().insert(key, fresh.clone());
            fresh
        }
    };
    // Without an fsGroup the file belongs to the user that the containers run as, where all run as one.
    let user = context
        .spec()
        .and_then(|spec| spec.security_context.as_ref()?.run_as_user)
        .and_then(|user| u32::try_from(user).ok());
    let mode = if request.fs_group().is_some() {
        0o640
    } else if user.is_some() {
        0o600
    } else {
        mode_of(mode)
    };
    payload.put(source.path.clone(), File { bytes: token.token.into_bytes(), mode, user })?;
    Ok(token.refresh_at)
}

async fn request_token(request: &Request<'_>, source: &ServiceAccountTokenProjection) -> Result<Token, VolumeError> {
    let context = request.context;
    let account = context
        .spec()
        .and_then(|spec| spec.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    let kind = kinds::find("", "v1", "serviceaccounts").ok_or_else(|| "no kind ServiceAccount".to_owned())?;
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let audiences: Vec<&String> = source.audience.iter().filter(|audience| !audience.is_empty()).collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": context.name, "uid": context.uid },
        },
    });
    let answer = request.kubelet.objects.client().create_sub(&kind, &context.namespace, account, "token", &body).await;
    let answer = answer.map_err(|error| VolumeError::Refused(format!("failed to fetch token: {error}")))?;
    let token = object::text(&answer, &["status", "token"]).to_owned();
    if token.is_empty() {
        return Err(VolumeError::Refused("failed to fetch token: the answer holds none".to_owned()));
    }
    let now = Timestamp::now();
    let expires: Option<Timestamp> = object::text(&answer, &["status", "expirationTimestamp"]).parse().ok();
    let life = expires.map_or(SignedDuration::from_secs(seconds), |expires| expires.duration_since(now));
    let refresh_at = now.checked_add(life.saturating_mul(4) / 5).unwrap_or(now);
    Ok(Token { token, refresh_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(all: &[(&str, &str)]) -> Vec<KeyToPath> {
        let item =
            |(key, path): &(&str, &str)| KeyToPath { key: (*key).into(), path: (*path).into(), ..Default::default() };
        all.iter().map(item).collect()
    }

    /// X4: one key at many paths is not as many times in memory as a pod can name it.
    #[test]
    fn x4_files_are_counted_while_they_are_read() {
        let map = json!({ "kind": "ConfigMap", "data": { "a": "x".repeat(1 << 20), "b": "2" } });
        let paths: Vec<String> = (0..100).map(|number| format!("p{number}")).collect();
        let many: Vec<(&str, &str)> = paths.iter().map(|path| ("a", path.as_str())).collect();
        for (secret, most) in [(false, "67108864"), (true, "16777216")] {
            let mut files = Files::new(secret);
            let refused = add_keys(&map, &items(&many), false, 0o644, &mut files).unwrap_err().unwrap_err();
            assert!(refused.to_string().ends_with(&format!("take more than {most} bytes")), "{refused}");
        }
        // In memory each file takes a page.
        let mut files = Files::new(true);
        add_keys(&map, &items(&[("b", "x/1"), ("b", "2")]), false, 0o644, &mut files).unwrap();
        assert_eq!((files.payload.len(), files.left), (2, SECRETS - 2 * PAGE));
        let mut files = Files::new(false);
        add_keys(&map, &[], false, 0o644, &mut files).unwrap();
        assert_eq!(files.payload.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(add_keys(&map, &items(&[("c", "c")]), false, 0o644, &mut files).unwrap_err().unwrap(), "c");
        add_keys(&map, &items(&[("c", "c")]), true, 0o644, &mut files).unwrap();
    }
}
