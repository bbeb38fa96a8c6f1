//! Who asks (X1): a client certificate, or a service account's token.

mod claims;
pub mod config;
mod impersonate;
pub mod oidc;

use std::collections::BTreeMap;

use mainstay_api::{Kind, kinds, object};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::{Api, TokenError, Tokens};
use crate::credentials::accounts;
use crate::subject::Subject;
pub use impersonate::{Impersonation, ServiceAccountName};

/// Whoever showed who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Whoever did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of whoever did not.
pub const ANONYMOUS: &str = "system:anonymous";
/// The extra field that names the credential, for the audit log.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:node:<name>`, `system:serviceaccount:<namespace>:<name>`, …
    pub name: String,
    /// `system:masters`, …
    pub groups: Vec<String>,
    /// The service account's uid.
    pub uid: String,
    /// What else the authenticator knows: the token's pod, the credential's id, …
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    fn authenticated(name: String, mut groups: Vec<String>, uid: String) -> Self {
        groups.push(AUTHENTICATED.to_owned());
        Self { name, groups, uid, ..Self::default() }
    }

    /// One of our own controllers, by the name that upstream's has: webhooks tell them apart by it.
    pub fn controller(name: &str) -> Self {
        if name.contains("scheduler") {
            return Self::authenticated("system:kube-scheduler".to_owned(), Vec::new(), String::new());
        }
        let account = match name {
            "daemonset-controller" => "daemon-set-controller",
            "endpoint-slice-controller" => "endpointslice-controller",
            "endpoint-slice-mirroring-controller" => "endpointslicemirroring-controller",
            "garbage-collector-controller" => "generic-garbage-collector",
            "job-pod-tracking-controller" => "job-controller",
            "persistentvolume-binder" | "persistentvolume-controller" => "persistent-volume-binder",
            "pod-garbage-collector-controller" => "pod-garbage-collector",
            "serviceaccount-controller" => "service-account-controller",
            name => name,
        };
        Self::service_account("kube-system", account)
    }

    /// A service account, by its name alone.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let account = ServiceAccountName { namespace, name };
        let name = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
        Self::authenticated(name, account.groups(), String::new())
    }

    /// The node whose kubelet this is: `system:node:<name>` of the group `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.is_in("system:nodes"))
    }

    /// As reviews show it (`authentication.k8s.io/v1` UserInfo).
    pub fn info(&self) -> Value {
        let mut info = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }

    /// Whether nothing is known of them.
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// Whether they belong to a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The subject of a certificate that TLS has already checked against our CA: `CN` the name, each `O` a group.
    /// Nobody where the subject can be read in more than one way.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let Subject { name, groups } = Subject::read(certificate.subject())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut user = Self::authenticated(name, groups, String::new());
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")]);
        (!user.name.is_empty()).then_some(user)
    }

    /// The service account behind a token, if it and what the token is bound to are still the same; and those of
    /// `audiences` that the token is for.
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
            !uid.is_empty()
                && found.is_some_and(|found| {
                    object::uid(&found) == uid && (*kind == kinds::POD || !object::is_terminating(&found))
                })
        };
        if !is_still(&kinds::SERVICE_ACCOUNT, &claims.account, &claims.uid) {
            return Err(TokenError::Gone);
        }
        if !claims.bound.iter().all(|bound| is_still(&bound.kind, &bound.name, &bound.uid)) {
            return Err(TokenError::Gone);
        }
        if let Some(secret) = &claims.secret {
            let found = batch.get(&kinds::SECRET, &claims.namespace, secret).ok().flatten();
            let found = found.filter(|found| !object::is_terminating(found));
            if found.and_then(|found| accounts::held(&found)).is_none_or(|held| held != token.as_bytes()) {
                return Err(TokenError::Gone);
            }
        }
        let account = ServiceAccountName { namespace: &claims.namespace, name: &claims.account };
        let name = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
        let mut user = Self::authenticated(name, account.groups(), claims.uid);
        let mut add = |field: &str, value: String| {
            if !value.is_empty() {
                user.extra.insert(format!("authentication.kubernetes.io/{field}"), vec![value]);
            }
        };
        if !claims.id.is_empty() {
            add("credential-id", format!("JTI={}", claims.id));
        }
        if let Some(pod) = claims.bound.into_iter().find(|bound| bound.kind == kinds::POD) {
            add("pod-name", pod.name);
            add("pod-uid", pod.uid);
        }
        if let Some((name, uid)) = claims.node {
            add("node-name", name);
            add("node-uid", uid);
        }
        Ok((user, claims.audiences))
    }
}
