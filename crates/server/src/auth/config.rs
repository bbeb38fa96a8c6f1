//! Further ways to say who one is, from files: an `AuthenticationConfiguration` with JWT issuers and rules for nobody
//! in particular, and upstream's static token file.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_api::schema::yaml;
use serde::Deserialize;

use super::User;
use super::claims::{self, Meaning, texts};

/// Issuers of one configuration, as upstream.
const MAX_ISSUERS: usize = 64;

/// `apiserver.config.k8s.io` AuthenticationConfiguration.
#[derive(Clone, Debug, Default)]
pub struct Authentication {
    /// Who may issue tokens.
    pub jwt: Vec<Jwt>,
    /// Whether, and where, requests without credentials count as `system:anonymous`.
    pub anonymous: Option<Anonymous>,
}

/// Rules for requests without credentials.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Anonymous {
    enabled: bool,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Condition {
    path: String,
}

/// An issuer of JSON Web Tokens and what its claims mean.
#[derive(Clone, Debug, Default)]
pub struct Jwt {
    /// Who.
    pub issuer: Issuer,
    /// Whom its claims are of.
    pub meaning: Arc<Meaning>,
}

/// Who issues, and where its keys are found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Issuer {
    /// The token's `iss`, and the beginning of its discovery document's URL.
    pub url: String,
    /// The discovery document's own URL, where it is another.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM; the machine's roots where it is empty.
    pub certificate_authority: String,
    /// Whom its tokens are for; one of them is enough.
    pub audiences: Vec<String>,
    audience_match_policy: String,
}

/// The file, as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Written {
    api_version: String,
    kind: String,
    jwt: Vec<claims::Written>,
    anonymous: Option<Anonymous>,
}

/// Why a configuration is refused, with the field's path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Authentication {
    /// Reads YAML.
    ///
    /// # Errors
    /// What is not of the form of its kind, about as upstream says it; expressions have to compile.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let written: Written = yaml::read(text).map_err(ConfigError)?;
        let wrong = |why: &str| Err(ConfigError(why.to_owned()));
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|version| format!("apiserver.config.k8s.io/{version}"));
        if written.kind != "AuthenticationConfiguration" || !versions.contains(&written.api_version) {
            return wrong("not an AuthenticationConfiguration of apiserver.config.k8s.io/v1");
        }
        if written.jwt.len() > MAX_ISSUERS {
            return Err(ConfigError(format!("jwt: must have at most {MAX_ISSUERS} items")));
        }
        let mut jwt: Vec<Jwt> = Vec::new();
        for (index, one) in written.jwt.into_iter().enumerate() {
            one.issuer.check(&format!("jwt[{index}].issuer"))?;
            if jwt.iter().any(|other| other.issuer.url == one.issuer.url) {
                return wrong("two issuers have one url");
            }
            let meaning = Meaning::compile(&one, &format!("jwt[{index}]"))?;
            jwt.push(Jwt { issuer: one.issuer, meaning: Arc::new(meaning) });
        }
        if written.anonymous.as_ref().is_some_and(|rules| !rules.enabled && !rules.conditions.is_empty()) {
            return wrong("anonymous.conditions: enabled should be set to true when conditions are defined");
        }
        Ok(Self { jwt, anonymous: written.anonymous })
    }

    /// Whether a request without credentials may be made to this path.
    pub fn lets_anonymous(&self, path: &str) -> bool {
        self.anonymous.as_ref().is_none_or(|anonymous| {
            let all = &anonymous.conditions;
            anonymous.enabled && (all.is_empty() || all.iter().any(|condition| condition.path == path))
        })
    }
}

impl Issuer {
    fn check(&self, at: &str) -> Result<(), ConfigError> {
        let wrong = |field: &str, why: &str| Err(ConfigError(format!("{at}.{field}: {why}")));
        if !self.url.starts_with("https://") {
            return wrong("url", "URL scheme must be https");
        }
        if !self.discovery_url.is_empty() && !self.discovery_url.starts_with("https://") {
            return wrong("discoveryURL", "URL scheme must be https");
        }
        if self.discovery_url.trim_end_matches('/') == self.url.trim_end_matches('/') {
            return wrong("discoveryURL", "discoveryURL must be different from URL");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return wrong("audiences", "at least one is required, and none may be empty");
        }
        match self.audience_match_policy.as_str() {
            "MatchAny" => Ok(()),
            "" if self.audiences.len() == 1 => Ok(()),
            _ => wrong("audienceMatchPolicy", "audienceMatchPolicy must be MatchAny for multiple audiences"),
        }
    }
}

impl Jwt {
    /// Who the claims are of, if they are for this server and fit the rules. Signature, issuer and time are checked
    /// already.
    ///
    /// # Errors
    /// Why there is no such user, for the log.
    pub fn user(&self, claims: &serde_json::Value) -> Result<User, String> {
        if !texts(claims.get("aud")).iter().any(|audience| self.issuer.audiences.contains(audience)) {
            return Err("the token is for another audience".to_owned());
        }
        self.meaning.user(claims)
    }
}

/// Upstream's `--token-auth-file`: lines of `token,user,uid[,"group1,group2"]`, by the token's digest.
#[derive(Clone, Default)]
pub struct StaticTokens(HashMap<[u8; 32], User>);

fn digest(token: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    <[u8; 32]>::try_from(digest.as_ref()).unwrap_or_default()
}

impl StaticTokens {
    /// Reads the file's text. What is wrong is said by its line, never by what it holds (X2).
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut all = HashMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |why: &str| ConfigError(format!("line {}: {why}", index + 1));
            let fields = columns(line).ok_or_else(|| wrong("a quotation mark is not closed"))?;
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                return Err(wrong("needs at least token, user name and uid"));
            };
            if token.is_empty() || name.is_empty() {
                return Err(wrong("the token and the user name may not be empty"));
            }
            let groups = rest.first().map(String::as_str).unwrap_or("").split(',').filter(|group| !group.is_empty());
            let user = User::authenticated(name.clone(), groups.map(str::to_owned).collect(), uid.clone());
            if all.insert(digest(token), user).is_some() {
                return Err(wrong("the token is there twice"));
            }
        }
        Ok(Self(all))
    }

    /// Whose token it is.
    pub fn user(&self, token: &str) -> Option<User> {
        self.0.get(&digest(token)).cloned()
    }
}

/// The columns of a CSV line.
fn columns(line: &str) -> Option<Vec<String>> {
    let (mut all, mut column, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut column).trim().to_owned()),
            c => column.push(c),
        }
    }
    all.push(column.trim().to_owned());
    (!quoted).then_some(all)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub const CONFIG: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://issuer.example
    audiences: [mainstay, other]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  claimMappings:
    username: { claim: sub, prefix: "oidc:" }
    groups: { claim: roles, prefix: "" }
    uid: { claim: uid }
anonymous:
  enabled: true
  conditions:
  - path: /healthz
"#;

    #[test]
    fn x1_claims_become_a_user_only_by_the_rules() {
        let config = Authentication::parse(CONFIG).expect("a configuration");
        assert!(config.lets_anonymous("/healthz") && !config.lets_anonymous("/version"));
        assert!(Authentication::default().lets_anonymous("/version"));
        let jwt = &config.jwt[0];
        let claims = |aud: serde_json::Value, hd: &str| {
            json!({ "aud": aud, "hd": hd, "sub": "jane", "roles": ["dev"],
            "uid": "7", "jti": "x" })
        };
        let user = jwt.user(&claims(json!(["mainstay"]), "example.com")).expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("oidc:jane", "7"));
        assert_eq!(user.groups, ["dev", "system:authenticated"]);
        assert!(jwt.user(&claims(json!("elsewhere"), "example.com")).is_err());
        assert!(jwt.user(&claims(json!("mainstay"), "example.org")).is_err());
        for (from, to) in [
            ("https://issuer", "http://issuer"),
            ("claim: sub, prefix: \"oidc:\"", "expression: claims."),
            ("url: https://issuer.example", "url: https://issuer.example\n    discoveryURL: https://issuer.example/"),
            ("enabled: true", "enabled: false"),
            ("claim: sub, prefix: \"oidc:\"", "claim: sub"),
            ("MatchAny", "MatchAll"),
            ("audiences: [mainstay, other]", "audiences: []"),
            ("kind: AuthenticationConfiguration", "kind: Other"),
            ("anonymous:", "nobody:"),
        ] {
            assert!(Authentication::parse(&CONFIG.replace(from, to)).is_err(), "{to}");
        }
        let system = CONFIG.replace("oidc:", "system:node:");
        let system = Authentication::parse(&system).expect("a configuration");
        assert!(system.jwt[0].user(&claims(json!("mainstay"), "example.com")).is_err());
    }

    #[test]
    fn x2_a_static_token_is_its_users_and_errors_do_not_repeat_it() {
        let tokens = StaticTokens::parse("s3cret,jane,7,\"dev,ops\"\n\nother,bob,8\n").expect("read");
        let jane = tokens.user("s3cret").expect("known");
        assert_eq!(jane.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(tokens.user("other").map(|user| user.name), Some("bob".into()));
        assert_eq!(tokens.user("s3cre"), None);
        for wrong in ["s3cret,jane", "s3cret,\"jane,7", ",jane,7", "s3cret,a,1\ns3cret,b,2"] {
            let error = StaticTokens::parse(wrong).err().expect("refused").to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
