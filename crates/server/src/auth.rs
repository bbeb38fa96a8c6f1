//! Who asks (X1): a client certificate, or a service account's token.

use mainstay_api::{Kind, kinds, object};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::{Api, TokenError, Tokens};

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:node:<name>`, `system:serviceaccount:<namespace>:<name>`, …
    pub name: String,
    /// `system:masters`, …
    pub groups: Vec<String>,
    /// The service account's uid.
    pub uid: String,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            uid: String::new(),
        }
    }

    fn authenticated(name: String, mut groups: Vec<String>, uid: String) -> Self {
        groups.push("system:authenticated".to_owned());
        Self { name, groups, uid }
    }

    /// Somebody that another one acts as. Without groups a service account has its own; everybody who is somebody
    /// is authenticated.
    pub fn impersonated(name: String, mut groups: Vec<String>, uid: String) -> Self {
        if groups.is_empty()
            && let Some((namespace, _)) =
                name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'))
        {
            groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        if name == Self::anonymous().name {
            return Self { name, groups: vec!["system:unauthenticated".to_owned()], uid };
        }
        groups.retain(|group| group != "system:authenticated");
        Self::authenticated(name, groups, uid)
    }

    /// Whether nothing is known of them.
    pub fn is_anonymous(&self) -> bool {
        self.is_in("system:unauthenticated")
    }

    /// Whether they belong to a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The subject of a certificate that TLS has already checked against our CA: `CN` the name, each `O` a group.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
        (!name.is_empty()).then(|| Self::authenticated(name, groups, String::new()))
    }

    /// The service account behind a token for one of `audiences`, if it and all that the token is bound to are still
    /// the same ones; and for which of the audiences it is.
    pub fn of_token(
        api: &Api,
        tokens: &Tokens,
        token: &str,
        audiences: &[&str],
    ) -> Result<(Self, Vec<String>), TokenError> {
        let claims = tokens.check(token, audiences, api.now())?;
        let mut batch = api.batch();
        let mut is_still = |kind: &Kind, name: &str, uid: &str| {
            let namespace = if kind.namespaced { claims.namespace.as_str() } else { "" };
            let found = batch.get(kind, namespace, name).ok().flatten();
            // A pod that is ending still works until its last container has; anything else ends at once.
            let may_end = *kind == kinds::POD;
            !uid.is_empty()
                && found.is_some_and(|found| object::uid(&found) == uid && (may_end || !object::is_terminating(&found)))
        };
        if !is_still(&kinds::SERVICE_ACCOUNT, &claims.account, &claims.uid) {
            return Err(TokenError::Gone);
        }
        if !claims.bound.iter().all(|bound| is_still(bound.kind, &bound.name, &bound.uid)) {
            return Err(TokenError::Gone);
        }
        let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", claims.namespace)];
        let name = format!("system:serviceaccount:{}:{}", claims.namespace, claims.account);
        Ok((Self::authenticated(name, groups, claims.uid), claims.audiences))
    }
}
