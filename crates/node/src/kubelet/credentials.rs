//! Whose credentials an image is asked for with: the pod's `imagePullSecrets`, by upstream's rules.
//!
//! An entry's key is a registry's host, each of its labels a pattern with `*`, and maybe a path: it is for the images
//! that begin with it. The longest path is tried first, then every other entry in turn, of one key in the order of the
//! pod's secrets. Where no entry is for the image, it is asked for without any.

use std::cmp::Reverse;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use mainstay_api::{kinds, object};
use mainstay_runtime::images::{Image, ImageError, RegistryAuth, normalize_name};
use serde_json::Value;

use super::{Kubelet, PodContext};

/// How many credentials are tried for one image, so that no pod makes its node ask for ever.
const MOST: usize = 16;

/// Pulls an image with the pod's credentials.
///
/// # Errors
/// What the registry answered to the last of them.
pub async fn pull(kubelet: &Kubelet, context: &PodContext, image: &str) -> Result<Image, ImageError> {
    let mut found = candidates(kubelet, context, image).await.into_iter();
    let mut pulled = kubelet.images.pull(image, found.next().as_ref(), &mut |_| {}).await;
    for auth in found {
        match pulled {
            Err(ImageError::InvalidName { .. }) | Ok(_) => return pulled,
            Err(error) => tracing::debug!(pod = context.name, image, %error, "the next credentials are tried"),
        }
        pulled = kubelet.images.pull(image, Some(&auth), &mut |_| {}).await;
    }
    pulled
}

async fn candidates(kubelet: &Kubelet, context: &PodContext, image: &str) -> Vec<RegistryAuth> {
    let (Ok(name), Some(kind)) = (normalize_name(image), kinds::find("", "v1", "secrets")) else { return Vec::new() };
    let secrets = context.spec().into_iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut all = Vec::new();
    for reference in secrets {
        if let Ok(secret) = kubelet.objects.get(&kind, &context.namespace, &reference.name).await {
            all.extend(entries(&secret));
        }
    }
    matching(&name, all)
}

/// A secret's entries: `kubernetes.io/dockerconfigjson`, or the older `kubernetes.io/dockercfg`.
fn entries(secret: &Value) -> Vec<(String, RegistryAuth)> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    let read =
        |key: &str| -> Option<Value> { serde_json::from_slice(&decode(object::text(secret, &["data", key]))?).ok() };
    let config = read(".dockerconfigjson").and_then(|mut file| Some(file.get_mut("auths")?.take()));
    let Some(Value::Object(servers)) = config.or_else(|| read(".dockercfg")) else { return Vec::new() };
    let auth = |entry: &Value| {
        let pair = pair(object::text(entry, &["auth"])).and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (username, password) =
            pair.unwrap_or_else(|| (object::text(entry, &["username"]), object::text(entry, &["password"])));
        let auth = RegistryAuth { username: username.to_owned(), password: password.to_owned() };
        (!username.is_empty()).then_some(auth)
    };
    servers.into_iter().filter_map(|(server, entry)| Some((server, auth(&entry)?))).collect()
}

/// What people write under `auth`, base64 of `name:password`: padded or not, and wrapped as `base64` wraps long ones.
/// Upstream takes both.
fn pair(auth: &str) -> Option<Vec<u8>> {
    const EITHER: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let unwrapped: String = auth.chars().filter(|at| !matches!(at, '\r' | '\n')).collect();
    EITHER.decode(unwrapped).ok()
}

/// The credentials for an image, by its full name, the best first.
fn matching(image: &str, entries: Vec<(String, RegistryAuth)>) -> Vec<RegistryAuth> {
    let mut found: Vec<(String, RegistryAuth)> =
        entries.into_iter().map(|(server, auth)| (key(&server), auth)).filter(|(key, _)| is_for(key, image)).collect();
    found.sort_by_key(|(key, _)| Reverse(key.clone()));
    let mut all: Vec<RegistryAuth> = Vec::new();
    for (_, auth) in found {
        let is_known = all.iter().any(|known| known.username == auth.username && known.password == auth.password);
        if !is_known && all.len() < MOST {
            all.push(auth);
        }
    }
    all
}

/// Host and path of an entry's key; `/v1/` and `/v2/` are no paths of images.
fn key(server: &str) -> String {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = ["v1", "v2"].into_iter().find_map(|version| {
        path.strip_prefix(version).and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('/') })
    });
    let path = path.unwrap_or_else(|| bare.split_once('/').map_or("", |(_, path)| path));
    // What Docker Hub has been called in such files for ever.
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

fn is_for(key: &str, image: &str) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let (of_image, name) = image.split_once('/').unwrap_or((image, ""));
    let (labels, of_image) = (host.split('.'), of_image.split('.'));
    labels.clone().count() == of_image.clone().count()
        && labels.zip(of_image).all(|(pattern, label)| is_like(pattern, label))
        && name.starts_with(path)
}

/// Whether a label is like a pattern with any number of `*`.
fn is_like(pattern: &str, label: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == label };
    let Some(mut label) = label.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or("");
    for part in parts {
        let Some((_, after)) = label.split_once(part) else { return false };
        label = after;
    }
    label.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn users(image: &str, servers: &[&str]) -> Vec<String> {
        let auth = |user: &str| RegistryAuth { username: user.to_owned(), password: "p".to_owned() };
        let entries = servers.iter().map(|server| ((*server).to_owned(), auth(server))).collect();
        matching(image, entries).into_iter().map(|auth| auth.username).collect()
    }

    #[test]
    fn the_longest_path_is_tried_first_and_then_every_other_one() {
        let all = ["r.test", "r.test/org1", "https://r.test/org2/", "other.test", "r.test:5000"];
        assert_eq!(users("r.test/org2/path:1", &all), ["https://r.test/org2/", "r.test"]);
        assert_eq!(users("r.test/org1/path:1", &all), ["r.test/org1", "r.test"]);
        assert_eq!(users("r.test:5000/x:1", &all), ["r.test:5000"]);
        assert_eq!(users("none.test/x:1", &all), [""; 0]);
        assert_eq!(users("docker.io/library/x:1", &["https://index.docker.io/v1/"]), ["https://index.docker.io/v1/"]);
        assert_eq!(users("r.test/v1x/y:1", &["r.test/v1x", "r.test/v2"]), ["r.test/v1x", "r.test/v2"]);
        let many: Vec<String> = (0..100).map(|number| format!("r.test/{}", "o".repeat(number))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(users(&format!("r.test/{}/x", "o".repeat(100)), &many).len(), MOST);
    }

    #[test]
    fn hosts_are_patterns_label_by_label() {
        for (pattern, image, expected) in [
            ("*.example.org", "a.example.org/x", true),
            ("*.example.org", "a.b.example.org/x", false),
            ("a*c.example.org", "abbc.example.org/x", true),
            ("a*c.example.org", "abbd.example.org/x", false),
            ("*a*b*.t", "xaxbx.t/y", true),
            ("*a*b*.t", "xbxax.t/y", false),
            ("ab*b.t", "ab.t/y", false),
        ] {
            assert_eq!(users(image, &[pattern]).len(), usize::from(expected), "{pattern} {image}");
        }
    }

    #[test]
    fn both_kinds_of_secrets_are_read() {
        let encode = |value: Value| base64::engine::general_purpose::STANDARD.encode(value.to_string());
        let servers = json!({ "r.test": { "auth": encode(json!("x")), "username": "u", "password": "p" },
            "s.test": { "auth": base64::engine::general_purpose::STANDARD.encode("v:q:r") }, "t.test": {} });
        for data in [
            json!({ ".dockerconfigjson": encode(json!({ "auths": servers })) }),
            json!({ ".dockercfg": encode(servers.clone()) }),
        ] {
            let all = entries(&json!({ "data": data }));
            let all: Vec<(&str, &str, &str)> =
                all.iter().map(|(of, auth)| (of.as_str(), auth.username.as_str(), auth.password.as_str())).collect();
            assert_eq!(all, [("r.test", "u", "p"), ("s.test", "v", "q:r")]);
        }
        assert!(entries(&json!({ "data": { ".dockercfg": "!" } })).is_empty());
    }

    #[test]
    fn credentials_written_by_hand_are_read_as_upstream_reads_them_padded_or_not_and_wrapped() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let password = "p".repeat(100);
        let long = encode(&format!("u:{password}"));
        let wrapped = format!("{}\n{}\r\n", &long[..76], &long[76..]);
        for (auth, expected) in [
            (wrapped, Some(password.as_str())),
            (encode("u:pp"), Some("pp")),
            (encode("u:pp").trim_end_matches('=').to_owned(), Some("pp")),
            (encode("u:p"), Some("p")),
            ("dTpw!".to_owned(), None),
        ] {
            let servers = json!({ "r.test": { "auth": auth } });
            let all = entries(&json!({ "data": { ".dockercfg": encode(&servers.to_string()) } }));
            let found: Vec<&str> = all.iter().map(|(_, auth)| auth.password.as_str()).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{auth:?}");
        }
    }
}
