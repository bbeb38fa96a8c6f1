//! Secrets of the type `kubernetes.io/service-account-token`: filled with a token of the account that their annotation
//! `kubernetes.io/service-account.name` names, and taken away with it, as upstream's tokens controller does.
//!
//! Such a token has no end of its own: it counts while its Secret is there and holds it ([`crate::auth`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::{ObjectKey, Registry, Status, kinds, object};
use mainstay_store::{Event, ReadError, WatchError, Watcher};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Batch, Body, DeleteOptions, Outcome, Part, Tokens, codec, key};

/// The type of these Secrets.
pub const TYPE: &str = "kubernetes.io/service-account-token";
/// Names the account.
const NAME: &str = "kubernetes.io/service-account.name";
/// The account's uid; written when the Secret is filled.
const UID: &str = "kubernetes.io/service-account.uid";
/// The field of the token.
pub const TOKEN: &str = "token";
/// Rows that are read at a time.
const PAGE: usize = 500;
/// The pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The Secrets that are looked after, and whose they are.
#[derive(Default)]
struct Known {
    account_of: BTreeMap<ObjectKey, ObjectKey>,
    secrets_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// To be looked at.
    due: BTreeSet<ObjectKey>,
}

impl Known {
    /// A Secret as it is, or `None` where it is gone.
    fn note(&mut self, secret: ObjectKey, object: Option<&Value>) {
        if let Some(account) = self.account_of.remove(&secret)
            && let Some(secrets) = self.secrets_of.get_mut(&account)
        {
            secrets.remove(&secret);
            if secrets.is_empty() {
                self.secrets_of.remove(&account);
            }
        }
        let Some(object) = object.filter(|object| is_one(object)) else { return };
        let account = ObjectKey::new(secret.namespace.clone(), account_of(object));
        self.secrets_of.entry(account.clone()).or_default().insert(secret.clone());
        self.account_of.insert(secret.clone(), account);
        self.due.insert(secret);
    }

    fn take_in(&mut self, registry: &Registry, event: &Event) {
        let Some((kind, object)) = key::parse(registry, &event.key) else { return };
        if kind == kinds::SECRET {
            let secret = if event.deleted { None } else { codec::decode(&event.value).ok() };
            self.note(object, secret.as_ref());
        } else if kind == kinds::SERVICE_ACCOUNT {
            self.due.extend(self.secrets_of.get(&object).into_iter().flatten().cloned());
        }
    }
}

fn is_one(secret: &Value) -> bool {
    object::text(secret, &["type"]) == TYPE
}

fn account_of(secret: &Value) -> &str {
    object::text(secret, &["metadata", "annotations", NAME])
}

/// The token that a Secret holds.
pub fn held(secret: &Value) -> Option<Vec<u8>> {
    let text = object::text(secret, &["data", TOKEN]);
    (is_one(secret) && !text.is_empty()).then(|| STANDARD.decode(text).ok())?
}

/// Looks after them until the server stops.
pub async fn run(api: Api, tokens: Tokens, mut closing: watch::Receiver<bool>) {
    while !*closing.borrow() {
        let loaded = {
            let api = api.clone();
            tokio::task::spawn_blocking(move || load(&api)).await
        };
        let Ok(Ok((mut known, mut watchers))) = loaded else { return };
        loop {
            let failed = tend_all(&api, &tokens, &mut known).await;
            let pause = if failed { PAUSE } else { Duration::from_secs(3600) };
            let heard = tokio::select! {
                heard = next(&mut watchers) => heard.map(Some),
                () = tokio::time::sleep(pause) => Ok(None),
                _ = closing.wait_for(|closing| *closing) => return,
            };
            match heard {
                Ok(event) => event.iter().for_each(|event| known.take_in(&api.served.now(), event)),
                Err(WatchError::Lagged { .. }) => break,
                Err(WatchError::Closed) => return,
            }
        }
    }
}

/// All there are, and the changes after that.
fn load(api: &Api) -> Result<(Known, [Watcher; 2]), ReadError> {
    let prefixes = [&kinds::SECRET, &kinds::SERVICE_ACCOUNT].map(|kind| key::prefix(kind, None));
    let revision = api.store.revision();
    let [secrets, accounts] = prefixes.clone();
    let watchers = [api.store.watch(secrets, revision)?, api.store.watch(accounts, revision)?];
    let (mut known, registry, mut after) = (Known::default(), api.served.now(), None);
    loop {
        let page = api.store.range(&prefixes[0], after.as_deref(), PAGE, Some(revision))?;
        for entry in &page.entries {
            if let (Some((_, key)), Ok(secret)) = (key::parse(&registry, &entry.key), codec::decode(&entry.value)) {
                known.note(key, Some(&secret));
            }
        }
        match page.entries.last().filter(|_| page.more) {
            Some(last) => after = Some(last.key.clone()),
            None => return Ok((known, watchers)),
        }
    }
}

async fn next(watchers: &mut [Watcher; 2]) -> Result<Event, WatchError> {
    std::future::poll_fn(|cx| {
        for watcher in watchers.iter_mut() {
            if let std::task::Poll::Ready(heard) = watcher.poll_next(cx) {
                return std::task::Poll::Ready(heard);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Looks at each Secret that is due; whether some are to be looked at again.
async fn tend_all(api: &Api, tokens: &Tokens, known: &mut Known) -> bool {
    let mut failed = BTreeSet::new();
    for secret in std::mem::take(&mut known.due) {
        let written = api.write(false, |batch| tend(batch, tokens, &secret)).await;
        match written {
            Ok(_) => {}
            // It is changed by somebody else, or nothing can be written now.
            Err(status) if status.code == 409 || status.code >= 500 => drop(failed.insert(secret)),
            Err(status) if status.code == 404 => {}
            Err(status) => {
                tracing::warn!(%secret, error = %status.message, "a service account's token could not be kept");
            }
        }
    }
    known.due = failed;
    !known.due.is_empty()
}

/// Fills one Secret, or takes it away where its account is gone or another one.
fn tend(batch: &mut Batch<'_>, tokens: &Tokens, key: &ObjectKey) -> Result<Outcome, Status> {
    let nothing = || Ok(Outcome { code: 200, body: Body::Value(Value::Null) });
    let secret = batch.get(&kinds::SECRET, &key.namespace, &key.name)?;
    let Some(secret) = secret.filter(|secret| is_one(secret) && !object::is_terminating(secret)) else {
        return nothing();
    };
    let name = account_of(&secret).to_owned();
    let account = batch.get(&kinds::SERVICE_ACCOUNT, &key.namespace, &name)?;
    let wanted = object::text(&secret, &["metadata", "annotations", UID]);
    let is_its = |account: &Value| wanted.is_empty() || wanted == object::uid(account);
    let Some(account) = account.filter(is_its) else {
        let options = DeleteOptions { uid: Some(object::uid(&secret).to_owned()), ..DeleteOptions::default() };
        return api::delete(batch, &kinds::SECRET, &key.namespace, &key.name, &options);
    };
    let mut data = serde_json::Map::new();
    let held = |field: &str| object::text(&secret, &["data", field]);
    for (field, value) in [("ca.crt", batch.settings.ca_pem.as_str()), ("namespace", &key.namespace)] {
        let text = STANDARD.encode(value);
        // Another namespace than its own is somebody's wish; another authority is an old one.
        if held(field) != text && (field == "ca.crt" || held(field).is_empty()) {
            data.insert(field.to_owned(), text.into());
        }
    }
    if held(TOKEN).is_empty() {
        let token = tokens.lasting(&key.namespace, &name, object::uid(&account), &key.name)?;
        data.insert(TOKEN.to_owned(), STANDARD.encode(token).into());
    }
    if data.is_empty() && wanted == object::uid(&account) {
        return nothing();
    }
    // The account that the token is of is there when it is written.
    batch.hold(&kinds::SERVICE_ACCOUNT, &key.namespace, &name);
    let patch = json!({ "metadata": { "annotations": { UID: object::uid(&account) } }, "data": data });
    let change = |old: &Value| {
        let mut new = old.clone();
        api::merge_patch(&mut new, patch.clone());
        Ok(new)
    };
    api::patch(batch, &kinds::SECRET, &key.namespace, &key.name, Part::Main, &change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TokenError;
    use crate::api::tests::Cluster;
    use crate::auth::User;

    fn tokens() -> Tokens {
        let random = ring::rand::SystemRandom::new();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        Tokens::new(key.as_ref()).expect("a key")
    }

    fn look(cluster: &Cluster, tokens: &Tokens, known: &mut Known, watchers: &mut [Watcher; 2]) {
        loop {
            for watcher in watchers.iter_mut() {
                while let Some(event) = watcher.try_next().expect("in the window") {
                    known.take_in(&cluster.api.served.now(), &event);
                }
            }
            let due = std::mem::take(&mut known.due);
            if due.is_empty() {
                return;
            }
            for secret in due {
                cluster.write(|batch| tend(batch, tokens, &secret)).expect("tended");
            }
        }
    }

    fn asked(account: &str) -> Value {
        json!({ "metadata": { "name": "ci-token", "annotations": { NAME: account } }, "type": TYPE })
    }

    /// S12: who waits for such a token gets it; it counts while the Secret is there, and goes with its account (X1).
    #[test]
    fn s12_x1_a_token_secret_is_filled_counts_while_it_is_there_and_goes_with_its_account() {
        let (cluster, tokens) = (Cluster::new(), tokens());
        let (mut known, mut watchers) = load(&cluster.api).expect("loaded");
        cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "ci" } })).expect("created");
        cluster.create(&kinds::SECRET, asked("ci")).expect("created");
        look(&cluster, &tokens, &mut known, &mut watchers);
        let secret = cluster.get(&kinds::SECRET, "ci-token").expect("there");
        let field = |name: &str| {
            let bytes = STANDARD.decode(object::text(&secret, &["data", name])).expect("base64");
            String::from_utf8(bytes).expect("text")
        };
        assert_eq!((field("namespace").as_str(), field("ca.crt").as_str()), ("default", "CA"));
        let uid = object::uid(&cluster.get(&kinds::SERVICE_ACCOUNT, "ci").expect("there")).to_owned();
        assert_eq!(secret["metadata"]["annotations"][UID], uid);
        let token = field(TOKEN);
        let user = || User::of_token(&cluster.api, &tokens, &token, &[api::ISSUER]).map(|(user, _)| user);
        let known_as = user().expect("counts");
        assert_eq!((known_as.name.as_str(), &known_as.uid), ("system:serviceaccount:default:ci", &uid));
        assert_eq!(
            User::of_token(&cluster.api, &tokens, &token, &["vault"]).map(|_| ()),
            Err(TokenError::Audience),
            "it is for this cluster's API"
        );
        // What somebody else wrote into the Secret is not this token, and nothing is filled twice.
        let version = object::resource_version(&secret).to_owned();
        known.due.insert(ObjectKey::new("default", "ci-token"));
        look(&cluster, &tokens, &mut known, &mut watchers);
        let same = cluster.get(&kinds::SECRET, "ci-token").expect("there");
        assert_eq!(object::resource_version(&same), version);
        cluster.merge(&kinds::SECRET, "ci-token", Part::Main, json!({ "data": { "token": "eA==" } })).expect("changed");
        assert_eq!(user().map(|_| ()), Err(TokenError::Gone));
        cluster
            .merge(&kinds::SECRET, "ci-token", Part::Main, json!({ "data": { "token": STANDARD.encode(&token) } }))
            .expect("changed");
        assert!(user().is_ok());
        // With the account it goes; one of the same name is another.
        cluster.delete(&kinds::SERVICE_ACCOUNT, "ci", &DeleteOptions::default()).expect("deleted");
        assert_eq!(user().map(|_| ()), Err(TokenError::Gone));
        cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "ci" } })).expect("created");
        look(&cluster, &tokens, &mut known, &mut watchers);
        assert!(cluster.get(&kinds::SECRET, "ci-token").is_none());
        assert_eq!(user().map(|_| ()), Err(TokenError::Gone));
        assert!(known.account_of.is_empty() && known.secrets_of.is_empty());
        // Of an account that is not there none is made; a Secret that is deleted ends its token.
        cluster.create(&kinds::SECRET, asked("nobody")).expect("created");
        look(&cluster, &tokens, &mut known, &mut watchers);
        assert!(cluster.get(&kinds::SECRET, "ci-token").is_none());
        cluster.create(&kinds::SECRET, asked("ci")).expect("created");
        look(&cluster, &tokens, &mut known, &mut watchers);
        let secret = cluster.get(&kinds::SECRET, "ci-token").expect("there");
        let token = String::from_utf8(held(&secret).expect("filled")).expect("text");
        let user = || User::of_token(&cluster.api, &tokens, &token, &[api::ISSUER]).map(|_| ());
        assert_eq!(user(), Ok(()));
        cluster.delete(&kinds::SECRET, "ci-token", &DeleteOptions::default()).expect("deleted");
        assert_eq!(user(), Err(TokenError::Gone));
    }
}
