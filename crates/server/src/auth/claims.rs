//! What the claims of an issuer's tokens mean: a name, groups, a uid and extra fields, each by a claim or by an
//! expression (CEL), and the rules that claims and user have to fit. As upstream's structured authentication.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_api::cel::types::Object;
use mainstay_api::cel::{self, Budget, Environment, Program, Type, Value};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::User;
use super::config::{ConfigError, Issuer};

/// One issuer, as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Written {
    /// Who.
    pub issuer: Issuer,
    claim_validation_rules: Vec<WrittenRule>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<WrittenUserRule>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenUserRule {
    expression: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<Extra>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Extra {
    key: String,
    value_expression: String,
}

/// How users are made of claims.
#[derive(Debug, Default)]
pub struct Meaning {
    rules: Vec<Rule>,
    username: Source,
    groups: Source,
    uid: Source,
    /// By their keys.
    extra: Vec<(String, Expression)>,
    user_rules: Vec<Condition>,
}

/// Where a part of the user is taken from.
#[derive(Debug, Default)]
enum Source {
    /// From nowhere.
    #[default]
    None,
    Claim {
        name: String,
        prefix: String,
    },
    Expression(Expression),
}

#[derive(Debug)]
enum Rule {
    /// The claim is this text.
    Is(String, String),
    Holds(Condition),
}

#[derive(Debug)]
struct Condition {
    expression: Expression,
    /// What is said where it does not hold.
    message: String,
}

#[derive(Debug)]
struct Expression {
    text: String,
    program: Program,
}

/// The texts of a claim: one, or a list of them.
pub fn texts(value: Option<&Json>) -> Vec<String> {
    match value {
        Some(Json::String(one)) => vec![one.clone()],
        Some(Json::Array(all)) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

/// Compiles what is written for one issuer; fields are named from `at` on.
struct Compiler<'a> {
    at: &'a str,
    claims: Environment,
    user: Environment,
}

impl Compiler<'_> {
    fn wrong<T>(&self, field: &str, why: &str) -> Result<T, ConfigError> {
        Err(ConfigError(format!("{}.{field}: {why}", self.at)))
    }

    fn expression(&self, environment: &Environment, field: &str, text: &str) -> Result<Expression, ConfigError> {
        match environment.compile(text) {
            Ok(program) => Ok(Expression { text: text.to_owned(), program }),
            Err(faults) => self.wrong(field, &format!("compilation failed: {}", cel::faults_shown(&faults, text))),
        }
    }

    fn condition(
        &self,
        environment: &Environment,
        field: &str,
        text: &str,
        message: &str,
    ) -> Result<Condition, ConfigError> {
        let expression = self.expression(environment, &format!("{field}.expression"), text)?;
        if *expression.program.result() != Type::Bool {
            return self.wrong(&format!("{field}.expression"), "must evaluate to bool");
        }
        Ok(Condition { expression, message: message.to_owned() })
    }

    fn rule(&self, rule: &WrittenRule, field: &str) -> Result<Rule, ConfigError> {
        match (rule.claim.as_str(), rule.expression.as_str()) {
            ("", "") => self.wrong(field, "claim or expression is required"),
            (claim, "") if rule.message.is_empty() => Ok(Rule::Is(claim.to_owned(), rule.required_value.clone())),
            (_, "") => self.wrong(&format!("{field}.message"), "may not be specified when claim is set"),
            ("", text) if rule.required_value.is_empty() => {
                Ok(Rule::Holds(self.condition(&self.claims, field, text, &rule.message)?))
            }
            ("", _) => self.wrong(&format!("{field}.requiredValue"), "may not be specified when expression is set"),
            _ => self.wrong(field, "claim and expression can't both be set"),
        }
    }

    /// A uid has no prefix.
    fn source(&self, mapping: &Mapping, field: &str) -> Result<Source, ConfigError> {
        let field = &format!("claimMappings.{field}");
        match (mapping.claim.as_str(), mapping.expression.as_str(), &mapping.prefix) {
            ("", "", _) => Ok(Source::None),
            ("", text, None) => {
                Ok(Source::Expression(self.expression(&self.claims, &format!("{field}.expression"), text)?))
            }
            ("", _, Some(_)) => self.wrong(&format!("{field}.prefix"), "may not be specified when expression is set"),
            (name, "", prefix) => {
                Ok(Source::Claim { name: name.to_owned(), prefix: prefix.clone().unwrap_or_default() })
            }
            _ => self.wrong(field, "claim and expression can't both be set"),
        }
    }

    fn prefixed(&self, mapping: &Mapping, field: &str) -> Result<Source, ConfigError> {
        if !mapping.claim.is_empty() && mapping.expression.is_empty() && mapping.prefix.is_none() {
            let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
            return self.wrong(&format!("claimMappings.{field}.prefix"), why);
        }
        self.source(mapping, field)
    }

    fn extra(&self, extra: &Extra, field: &str) -> Result<(String, Expression), ConfigError> {
        let key = extra.key.as_str();
        let (domain, path) = key.split_once('/').unwrap_or(("", ""));
        if domain.is_empty() || path.is_empty() {
            return self.wrong(&format!("{field}.key"), "must be a domain-prefixed path (such as \"acme.io/foo\")");
        }
        if key.chars().any(char::is_uppercase) {
            return self.wrong(&format!("{field}.key"), "must be lowercase");
        }
        if ["kubernetes.io", "k8s.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}"))) {
            let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            return self.wrong(&format!("{field}.key"), why);
        }
        if extra.value_expression.is_empty() {
            return self.wrong(&format!("{field}.valueExpression"), "is required");
        }
        let field = format!("{field}.valueExpression");
        Ok((key.to_owned(), self.expression(&self.claims, &field, &extra.value_expression)?))
    }
}

/// What expressions about users name.
fn user_type() -> Type {
    let fields = [
        ("username", Type::String),
        ("uid", Type::String),
        ("groups", Type::list(Type::String)),
        ("extra", Type::map(Type::list(Type::String))),
    ];
    let fields = fields.map(|(name, type_)| (Box::<str>::from(name), type_));
    Type::Object(Object::new("kubernetes.UserInfo", fields).into())
}

impl Meaning {
    /// Compiles what is written; `at` is its path in the file.
    ///
    /// # Errors
    /// The first thing that does not fit, with its path, as upstream's validation says it.
    pub fn compile(written: &Written, at: &str) -> Result<Self, ConfigError> {
        let claims = Environment::new([("claims", Type::map(Type::Dyn))]);
        let compiler = Compiler { at, claims, user: Environment::new([("user", user_type())]) };
        let mut seen = BTreeSet::new();
        let mut once = |field: &str, text: &str| match seen.insert((field.to_owned(), text.to_owned())) {
            true => Ok(()),
            false => Err(ConfigError(format!("{at}.{field}: Duplicate value: {text:?}"))),
        };
        let mut meaning = Self::default();
        for (index, rule) in written.claim_validation_rules.iter().enumerate() {
            meaning.rules.push(compiler.rule(rule, &format!("claimValidationRules[{index}]"))?);
            once("claimValidationRules", &format!("{}{}", rule.claim, rule.expression))?;
        }
        let mappings = &written.claim_mappings;
        meaning.username = compiler.prefixed(&mappings.username, "username")?;
        if matches!(meaning.username, Source::None) {
            return compiler.wrong("claimMappings.username", "claim or expression is required");
        }
        meaning.groups = compiler.prefixed(&mappings.groups, "groups")?;
        if mappings.uid.prefix.is_some() {
            return compiler.wrong("claimMappings.uid", "unknown field \"prefix\"");
        }
        meaning.uid = compiler.source(&mappings.uid, "uid")?;
        for (index, extra) in mappings.extra.iter().enumerate() {
            meaning.extra.push(compiler.extra(extra, &format!("claimMappings.extra[{index}]"))?);
            once("claimMappings.extra", &extra.key)?;
        }
        for (index, rule) in written.user_validation_rules.iter().enumerate() {
            let field = format!("userValidationRules[{index}]");
            if rule.expression.is_empty() {
                return compiler.wrong(&format!("{field}.expression"), "is required");
            }
            let condition = compiler.condition(&compiler.user, &field, &rule.expression, &rule.message)?;
            meaning.user_rules.push(condition);
            once("userValidationRules", &rule.expression)?;
        }
        if !meaning.looks_whether_emails_are_verified() {
            let why = "claims.email_verified must be used in claimMappings.username.expression or \
                claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used \
                in claimMappings.username.expression";
            return compiler.wrong("claimMappings.username.expression", why);
        }
        Ok(meaning)
    }

    /// Anybody may tell most issuers any address: who makes names of them has to look whose they are.
    fn looks_whether_emails_are_verified(&self) -> bool {
        let Source::Expression(username) = &self.username else { return true };
        let rules = self.rules.iter().filter_map(|rule| match rule {
            Rule::Holds(condition) => Some(&condition.expression),
            Rule::Is(..) => None,
        });
        let mut all = rules.chain(self.extra.iter().map(|(_, expression)| expression)).chain([username]);
        !username.program.selects("claims", "email")
            || all.any(|expression| expression.program.selects("claims", "email_verified"))
    }

    /// Who the claims are of, if they fit the rules.
    ///
    /// # Errors
    /// Why there is no such user.
    pub fn user(&self, claims: &Json) -> Result<User, String> {
        let mut budget = Budget::of(cel::RUNTIME_BUDGET);
        let values = [("claims", Value::json(claims))];
        for rule in &self.rules {
            match rule {
                Rule::Is(claim, required) if claims.get(claim).and_then(Json::as_str) == Some(required.as_str()) => {}
                Rule::Is(claim, _) => return Err(format!("the claim {claim:?} has not the required value")),
                Rule::Holds(condition) => condition.check(&values, &mut budget)?,
            }
        }
        let name = self.name(claims, &values, &mut budget)?;
        let groups = match &self.groups {
            Source::None => Vec::new(),
            Source::Claim { name, prefix } => {
                texts(claims.get(name)).iter().map(|group| format!("{prefix}{group}")).collect()
            }
            Source::Expression(expression) => expression.texts(&values, &mut budget)?,
        };
        let uid = match &self.uid {
            Source::None => String::new(),
            Source::Claim { name, .. } => claims.get(name).and_then(Json::as_str).unwrap_or("").to_owned(),
            Source::Expression(expression) => expression.text(&values, &mut budget)?,
        };
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let found = expression.texts(&values, &mut budget)?;
            if !found.is_empty() {
                extra.insert(key.clone(), found);
            }
        }
        let info = json!({ "username": name, "groups": groups, "uid": uid, "extra": extra });
        let type_ = user_type();
        let of_user = [("user", Value::of(&info, &type_))];
        self.user_rules.iter().try_for_each(|rule| rule.check(&of_user, &mut budget))?;
        let mut user = User::authenticated(name, groups, uid);
        user.extra = extra;
        if let Some(id) = claims.get("jti").and_then(Json::as_str) {
            user.extra.insert(super::CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        Ok(user)
    }

    fn name(&self, claims: &Json, values: &[(&str, Value<'_>); 1], budget: &mut Budget) -> Result<String, String> {
        let (name, prefix) = match &self.username {
            Source::None => (String::new(), ""),
            Source::Claim { name, prefix } => {
                if name == "email" && claims.get("email_verified").is_some_and(|verified| *verified != Json::Bool(true))
                {
                    return Err("the email address is not verified".to_owned());
                }
                (claims.get(name).and_then(Json::as_str).unwrap_or("").to_owned(), prefix.as_str())
            }
            Source::Expression(expression) => (expression.text(values, budget)?, ""),
        };
        if name.is_empty() {
            return Err("the claim of the user's name is missing, or empty".to_owned());
        }
        let name = format!("{prefix}{name}");
        if name.starts_with("system:") {
            return Err("an issuer's users may not be the system's".to_owned());
        }
        Ok(name)
    }
}

impl Expression {
    fn value<'a>(&self, values: &[(&str, Value<'a>); 1], budget: &mut Budget) -> Result<Value<'a>, String> {
        let mut own = Budget::of(budget.left().min(cel::PER_CALL_LIMIT));
        let value = self.program.evaluate(values, &mut own);
        let spent = budget.spend(own.spent());
        let value = spent.and(value);
        value.map_err(|error| format!("expression '{}' resulted in error: {error}", self.text))
    }

    fn text(&self, values: &[(&str, Value<'_>); 1], budget: &mut Budget) -> Result<String, String> {
        let value = self.value(values, budget)?;
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("expression '{}' evaluated to {}, not to a string", self.text, value.type_name()))
    }

    /// A text or a list of them; nothing of null, and of texts that are empty.
    fn texts(&self, values: &[(&str, Value<'_>); 1], budget: &mut Budget) -> Result<Vec<String>, String> {
        let value = self.value(values, budget)?;
        let texts = match value.to_json() {
            Json::Null => Some(Vec::new()),
            Json::String(one) => Some(vec![one]),
            Json::Array(all) => all.into_iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let texts = texts.ok_or_else(|| {
            format!("expression '{}' evaluated to {}, not to a string or a list of them", self.text, value.type_name())
        })?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }
}

impl Condition {
    fn check(&self, values: &[(&str, Value<'_>); 1], budget: &mut Budget) -> Result<(), String> {
        match self.expression.value(values, budget)?.as_bool() {
            Some(true) => Ok(()),
            _ if self.message.is_empty() => Err(format!("validation expression '{}' failed", self.expression.text)),
            _ => Err(format!("validation expression '{}' failed: {}", self.expression.text, self.message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Authentication;
    use super::*;

    fn parse(jwt: &str) -> Result<Authentication, ConfigError> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n";
        Authentication::parse(&format!("{head}- issuer: {{ url: 'https://a.example', audiences: [me] }}\n{jwt}"))
    }

    const RULES: &str = r#"
  claimValidationRules:
  - expression: claims.exp - claims.nbf <= 86400
    message: lives too long
  claimMappings:
    username: { expression: "claims.email_verified ? 'x:' + claims.email : claims.sub" }
    groups: { expression: "claims.?roles.orValue([]).map(role, 'x:' + role)" }
    uid: { expression: claims.sub }
    extra:
    - { key: a.example/tenant, valueExpression: claims.tenant }
    - { key: a.example/none, valueExpression: "''" }
  userValidationRules:
  - expression: "!user.groups.exists(group, group.startsWith('x:system:'))"
    message: a reserved group
"#;

    #[test]
    fn conformance_x1_expressions_make_users_of_claims() {
        let config = parse(RULES).expect("a configuration");
        let user = |changed: Json| {
            let mut claims = json!({ "aud": "me", "exp": 10, "nbf": 0, "email": "j@a", "email_verified": true,
                "sub": "7", "roles": ["dev"], "tenant": ["t", ""], "jti": "1" });
            for (name, value) in changed.as_object().expect("an object") {
                claims[name] = value.clone();
            }
            config.jwt[0].user(&claims)
        };
        let jane = user(json!({})).expect("a user");
        assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("x:j@a", "7"));
        assert_eq!(jane.groups, ["x:dev", "system:authenticated"]);
        assert_eq!(jane.extra.get("a.example/tenant").map(Vec::as_slice), Some(&["t".to_owned()][..]));
        assert!(!jane.extra.contains_key("a.example/none"));
        assert_eq!(user(json!({ "email_verified": false })).expect("a user").name, "7");
        assert!(user(json!({ "roles": null })).expect_err("null has no items").contains("resulted in error"));
        for (changed, why) in [
            (json!({ "exp": 100_000 }), "lives too long"),
            (json!({ "exp": "soon" }), "resulted in error"),
            (json!({ "roles": ["system:masters"] }), "a reserved group"),
            (json!({ "email_verified": false, "sub": "system:admin" }), "may not be the system's"),
            (json!({ "email_verified": false, "sub": "" }), "is missing, or empty"),
            (json!({ "email_verified": false, "sub": 7 }), "not to a string"),
            (json!({ "tenant": { "a": 1 } }), "not to a string or a list of them"),
            (json!({ "tenant": [1] }), "not to a string or a list of them"),
        ] {
            let error = user(changed.clone()).expect_err("refused");
            assert!(error.contains(why), "{changed}: {error}");
        }
    }

    #[test]
    fn conformance_what_is_written_of_an_issuer_fits_together() {
        for (from, to, why) in [
            (
                "claims.exp - claims.nbf <= 86400",
                "claims.exp",
                "claimValidationRules[0].expression: must evaluate to bool",
            ),
            ("claims.exp - claims.nbf <= 86400", "user.name == ''", "compilation failed"),
            ("message: lives too long", "requiredValue: x", "may not be specified when expression is set"),
            ("message: lives too long", "claim: x", "claim and expression can't both be set"),
            (
                "claims.email_verified ? 'x:' + claims.email : claims.sub",
                "claims.email",
                "claims.email_verified must be used",
            ),
            ("{ expression: claims.sub }", "{ claim: a, expression: claims.sub }", "can't both be set"),
            ("groups: { ", "groups: { prefix: a, ", "claimMappings.groups.prefix: may not be specified"),
            ("groups: { expression", "groups: { claim: a } #", "prefix is required when claim is set"),
            ("a.example/none", "a.example/tenant", "Duplicate value"),
            ("a.example/none", "none", "domain-prefixed path"),
            ("a.example/none", "a.example/None", "must be lowercase"),
            ("a.example/none", "a.k8s.io/none", "are reserved for Kubernetes use"),
            ("- expression: \"!user.groups", "- expression: \"!user.names", "compilation failed"),
            ("username: {", "username: {} #", "claim or expression is required"),
            ("uid: {", "uid: { prefix: a,", "unknown field"),
        ] {
            assert!(RULES.contains(from), "{from}");
            let error = parse(&RULES.replace(from, to)).expect_err(to).to_string();
            assert!(error.starts_with("jwt[0].") && error.contains(why), "{to}: {error}");
        }
    }
}
