//! Volumes made of API objects: configMap, secret, downwardAPI and projected (all of these and service account tokens).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume};
use mainstay_api::{kinds, object};
use serde_json::json;

use super::atomic::{self, File, Payload};
use super::{Answer, Driver, Ready, Request, VolumeError, blocking};
use crate::kubelet::{environment, resources};
use mainstay_runtime::safe_path::mounts;

/// The mode of a projected file where nobody gives one.
const DEFAULT_MODE: i32 = 0o644;
/// The lifetime of a token where the pod does not say, seconds.
const TOKEN_SECONDS: i64 = 3600;
/// The most memory that a volume of secrets may take.
const SECRETS_SIZE: u64 = 16 << 20;

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
            let payload = payload(&mut request, &mut refresh_at).await?;
            let (target, group) = (request.target.clone(), request.fs_group());
            let secret = request.volume.secret.is_some()
                || request.volume.projected.as_ref().is_some_and(|projected| {
                    projected
                        .sources
                        .iter()
                        .flatten()
                        .any(|source| source.secret.is_some() || source.service_account_token.is_some())
                });
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

async fn payload(request: &mut Request<'_>, refresh_at: &mut Option<Timestamp>) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
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
    Ok(payload)
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
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    let optional = optional == Some(true);
    let found =
        environment::object(request.kubelet, request.context, plural, name, optional, request.dependencies).await?;
    let Some(found) = found else { return Ok(()) };
    let mut data = environment::data(&found)?;
    match items {
        None | Some([]) => {
            let files =
                data.into_iter().map(|(key, bytes)| (key, File { bytes, mode: mode_of(default_mode), user: None }));
            payload.extend(files);
        }
        Some(items) => {
            for item in items {
                match data.remove(&item.key) {
                    Some(bytes) => {
                        let mode = mode_of(item.mode.unwrap_or(default_mode));
                        payload.insert(item.path.clone(), File { bytes: bytes.clone(), mode, user: None });
                        // The same key may be wanted at two places.
                        data.insert(item.key.clone(), bytes);
                    }
                    None if optional => {}
                    None => {
                        return Err(VolumeError::Refused(format!(
                            "references non-existent {} key: {}",
                            plural.trim_end_matches('s'),
                            item.key
                        )));
                    }
                }
            }
        }
    }
    Ok(())
}

fn add_fields(
    request: &Request<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            environment::field_value(
                request.kubelet,
                request.context,
                &field.field_path,
                request.kubelet.pods.ip(&request.context.uid).as_deref(),
            )?
        } else if let Some(field) = &item.resource_field_ref {
            let name = field.container_name.as_deref().unwrap_or("");
            let container = request.context.container(name).ok_or_else(|| format!("container {name} not found"))?;
            resources::field(container, &field.resource, field.divisor.as_ref())?
        } else {
            continue;
        };
        let mode = mode_of(item.mode.unwrap_or(default_mode));
        payload.insert(item.path.clone(), File { bytes: value.into_bytes(), mode, user: None });
    }
    Ok(())
}

/// A token of the pod's own service account, bound to this pod; a new one when four fifths of its life are over.
async fn add_token(
    request: &Request<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    payload: &mut Payload,
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
    payload.insert(source.path.clone(), File { bytes: token.token.into_bytes(), mode, user });
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
