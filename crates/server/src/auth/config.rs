//! Further ways to say who one is, from files: an `AuthenticationConfiguration` with JWT issuers and rules for nobody
//! in particular, and upstream's static token file.

use std::collections::HashMap;

use mainstay_api::schema::yaml;
use serde::Deserialize;

use super::User;

/// `apiserver.config.k8s.io` AuthenticationConfiguration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    api_version: String,
    kind: String,
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
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Jwt {
    /// Who.
    pub issuer: Issuer,
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: ClaimMappings,
    user_validation_rules: Vec<serde_json::Value>,
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
    audiences: Vec<String>,
    audience_match_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClaimMappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not of the form of its kind.
    #[error("{0}")]
    Form(String),
    /// A part that this server does not carry out.
    #[error("{0}: expressions (CEL) are not supported; use claims and prefixes")]
    Expression(String),
}

impl Authentication {
    /// Reads YAML.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = yaml::read(text).map_err(ConfigError::Form)?;
        let form = |why: &str| Err(ConfigError::Form(why.to_owned()));
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|version| format!("apiserver.config.k8s.io/{version}"));
        if config.kind != "AuthenticationConfiguration" || !versions.contains(&config.api_version) {
            return form("not an AuthenticationConfiguration of apiserver.config.k8s.io/v1");
        }
        for (index, jwt) in config.jwt.iter().enumerate() {
            jwt.check(&format!("jwt[{index}]"))?;
            if config.jwt.iter().filter(|other| other.issuer.url == jwt.issuer.url).count() > 1 {
                return form("two issuers have one url");
            }
        }
        Ok(config)
    }

    /// Whether a request without credentials may be made to this path.
    pub fn lets_anonymous(&self, path: &str) -> bool {
        self.anonymous.as_ref().is_none_or(|anonymous| {
            let all = &anonymous.conditions;
            anonymous.enabled && (all.is_empty() || all.iter().any(|condition| condition.path == path))
        })
    }
}

impl Jwt {
    fn check(&self, at: &str) -> Result<(), ConfigError> {
        let form = |field: &str, why: &str| Err(ConfigError::Form(format!("{at}.{field}: {why}")));
        let issuer = &self.issuer;
        if !issuer.url.starts_with("https://") {
            return form("issuer.url", "must be an https URL");
        }
        if !issuer.discovery_url.is_empty() && !issuer.discovery_url.starts_with("https://") {
            return form("issuer.discoveryURL", "must be an https URL");
        }
        if issuer.audiences.is_empty() {
            return form("issuer.audiences", "at least one is required");
        }
        if !matches!(issuer.audience_match_policy.as_str(), "" | "MatchAny") {
            return form("issuer.audienceMatchPolicy", "must be MatchAny");
        }
        let mappings = &self.claim_mappings;
        let expressions = [&mappings.username.expression, &mappings.groups.expression, &mappings.uid.expression]
            .into_iter()
            .chain(self.claim_validation_rules.iter().map(|rule| &rule.expression));
        if expressions.into_iter().any(|expression| !expression.is_empty())
            || !mappings.extra.is_empty()
            || !self.user_validation_rules.is_empty()
        {
            return Err(ConfigError::Expression(at.to_owned()));
        }
        if mappings.username.claim.is_empty() {
            return form("claimMappings.username.claim", "is required");
        }
        if mappings.username.prefix.is_none() {
            return form("claimMappings.username.prefix", "is required where a claim is set; it may be \"\"");
        }
        if !mappings.groups.claim.is_empty() && mappings.groups.prefix.is_none() {
            return form("claimMappings.groups.prefix", "is required where a claim is set; it may be \"\"");
        }
        Ok(())
    }

    /// Who the claims are of, if they are for this server and fit the rules. Signature, issuer and time are checked
    /// already.
    pub fn user(&self, claims: &serde_json::Value) -> Result<User, &'static str> {
        let texts = |value: Option<&serde_json::Value>| -> Vec<String> {
            match value {
                Some(serde_json::Value::String(one)) => vec![one.clone()],
                Some(serde_json::Value::Array(all)) => {
                    all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
                }
                _ => Vec::new(),
            }
        };
        if !texts(claims.get("aud")).iter().any(|audience| self.issuer.audiences.contains(audience)) {
            return Err("the token is for another audience");
        }
        for rule in &self.claim_validation_rules {
            if claims.get(&rule.claim).and_then(serde_json::Value::as_str) != Some(rule.required_value.as_str()) {
                return Err("a claim has not the required value");
            }
        }
        let mappings = &self.claim_mappings;
        let name = claims.get(&mappings.username.claim).and_then(serde_json::Value::as_str).unwrap_or("");
        if name.is_empty() {
            return Err("the claim of the user's name is missing");
        }
        if mappings.username.claim == "email"
            && claims.get("email_verified").is_some_and(|verified| *verified != serde_json::Value::Bool(true))
        {
            return Err("the email address is not verified");
        }
        let prefixed = |mapping: &Mapping, text: &str| format!("{}{text}", mapping.prefix.as_deref().unwrap_or(""));
        let mut groups: Vec<String> = Vec::new();
        if !mappings.groups.claim.is_empty() {
            let found = texts(claims.get(&mappings.groups.claim));
            groups.extend(found.iter().map(|group| prefixed(&mappings.groups, group)));
        }
        let uid = match mappings.uid.claim.as_str() {
            "" => String::new(),
            claim => claims.get(claim).and_then(serde_json::Value::as_str).unwrap_or("").to_owned(),
        };
        let name = prefixed(&mappings.username, name);
        if name.starts_with("system:") {
            return Err("an issuer's users may not be the system's");
        }
        let mut user = User::authenticated(name, groups, uid);
        if let Some(id) = claims.get("jti").and_then(serde_json::Value::as_str) {
            user.extra.insert(super::CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        Ok(user)
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
            let wrong = |why: &str| ConfigError::Form(format!("line {}: {why}", index + 1));
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
            ("claim: sub, prefix: \"oidc:\"", "expression: claims.sub"),
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
