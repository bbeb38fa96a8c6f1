//! Image names, as Docker's tools write them.

use super::ImageError;

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
/// Longest repository name (the distribution specification's limit).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A name in its parts: `docker.io`, `library/nginx`, `1.25`, `sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub domain: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a name; without tag and digest the tag is `latest`.
    pub fn parse(name: &str) -> Result<Reference, ImageError> {
        let invalid = |why: &str| ImageError::InvalidName { name: name.to_owned(), why: why.to_owned() };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => {
                let hex = digest.strip_prefix("sha256:").ok_or_else(|| invalid("unsupported digest algorithm"))?;
                if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(invalid("invalid digest"));
                }
                (rest, Some(digest.to_owned()))
            }
            None => (name, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            let valid = tag.bytes().next().is_some_and(word)
                && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
            if !valid || tag.len() > MAX_TAG {
                return Err(invalid("invalid tag"));
            }
        }
        let (domain, path) = match path.split_once('/') {
            Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => (domain, path.to_owned()),
            _ => (DEFAULT_DOMAIN, path.to_owned()),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let repository =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{DEFAULT_NAMESPACE}/{path}") } else { path };
        if !valid_domain(domain) {
            return Err(invalid("invalid registry name"));
        }
        if !repository.split('/').all(valid_component) || domain.len() + repository.len() >= MAX_NAME {
            let upper = repository.bytes().any(|byte| byte.is_ascii_uppercase());
            return Err(invalid(if upper { "repository name must be lowercase" } else { "invalid reference format" }));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference { domain: domain.to_owned(), repository, tag, digest })
    }

    /// `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.repository)?;
        // With a digest the tag says nothing.
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = domain.rsplit_once(':').unwrap_or((domain, "0"));
    let host_ok = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'[' | b']' | b':'));
    host_ok && port.parse::<u16>().is_ok()
}

/// Lower-case letters and digits, with single separators between them.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends =
        component.as_bytes().first().is_some_and(alphanumeric) && component.as_bytes().last().is_some_and(alphanumeric);
    ends && component.bytes().all(|byte| alphanumeric(&byte) || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x/y:1", "localhost:5000/x/y:1".to_owned()),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9".to_owned()),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ];
        for (name, full) in table {
            assert_eq!(Reference::parse(name).unwrap().to_string(), full);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for name in [
            "",
            "Nginx",
            "a//b",
            "-a",
            "a:",
            "a:b c",
            "a@sha256:12",
            "a@md5:1",
            "x/../y",
            "ho st.com/a",
            "a.b:99999/c",
            "/a",
            "a/",
        ] {
            assert!(Reference::parse(name).is_err(), "{name:?}");
        }
        let message = Reference::parse("Nginx").unwrap_err().to_string();
        assert_eq!(message, "couldn't parse image name \"Nginx\": repository name must be lowercase");
    }
}
