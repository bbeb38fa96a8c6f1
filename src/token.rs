//! `mainstay token …`: bootstrap tokens, as the Secrets that they are.

use anyhow::{Context as _, Result, bail};
use jiff::{SignedDuration, Timestamp};
use mainstay_api::{kinds, object};
use mainstay_cli::args::{AdminArgs, TokenCommand};
use mainstay_client::bootstrap_token::{NAMESPACE, PREFIX, TYPE, field};
use mainstay_client::{Client, Config, ListOptions};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;

/// What tokens are made of; a byte of 252 or more is drawn again, so that each is as likely as the others.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// `mainstay token …`.
pub fn run(command: &TokenCommand) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::up::runtime()?.block_on(async {
        match command {
            TokenCommand::Create { admin, ttl, description } => create(admin, ttl, description.as_deref()).await,
            TokenCommand::List { admin } => list(admin).await,
            TokenCommand::Delete { admin, token } => {
                let id = token.split_once('.').map_or(token.as_str(), |(id, _)| id);
                let client = client(admin)?;
                client.delete(&kinds::SECRET, NAMESPACE, &format!("{PREFIX}{id}"), &json!({})).await?;
                say!("token {id} deleted");
                Ok(())
            }
        }
    })
}

/// As the administrator.
pub fn client(admin: &AdminArgs) -> Result<Client> {
    let path = admin.kubeconfig.clone().unwrap_or_else(|| admin.data_dir.join("kubeconfig"));
    if admin.kubeconfig.is_none() {
        crate::instance::there_is("cluster", &admin.data_dir, crate::instance::was_here(&admin.data_dir))?;
    }
    Ok(Client::new(Config::read(&path)?)?)
}

async fn create(admin: &AdminArgs, ttl: &str, description: Option<&str>) -> Result<()> {
    let ttl: SignedDuration = match ttl {
        "0" => SignedDuration::ZERO,
        ttl => ttl.parse().with_context(|| format!("--ttl {ttl:?} is not a time such as 2h"))?,
    };
    if ttl.is_negative() {
        bail!("--ttl is in the past");
    }
    let client = client(admin)?;
    let info = client.get(&kinds::CONFIG_MAP, "kube-public", "cluster-info").await.context("reading cluster-info")?;
    let cluster = Config::parse(object::text(&info, &["data", "kubeconfig"]).as_bytes())?;
    let hash = mainstay_node::join::hash_of(&cluster.ca_pem).context("cluster-info has no CA")?;
    let (id, secret) = (random(6)?, random(16)?);
    let mut data = json!({
        "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
    });
    if let Some(description) = description {
        data["description"] = description.into();
    }
    if !ttl.is_zero() {
        let end = Timestamp::now().checked_add(ttl).context("--ttl is too long")?;
        data["expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE, "metadata": { "name": format!("{PREFIX}{id}") },
        "stringData": data,
    });
    client.create(&kinds::SECRET, NAMESPACE, &token).await?;
    say!("mainstay join https://{} --token {id}.{secret} --ca-hash {hash}", cluster.server);
    Ok(())
}

async fn list(admin: &AdminArgs) -> Result<()> {
    let options = ListOptions { field_selector: format!("type={TYPE}"), ..ListOptions::default() };
    let list = client(admin)?.list(&kinds::SECRET, NAMESPACE, &options).await?;
    say!("{:<8} {:<22} DESCRIPTION", "TOKEN", "EXPIRES");
    for secret in list["items"].as_array().into_iter().flatten() {
        let (id, end, about) = (field(secret, "token-id"), field(secret, "expiration"), field(secret, "description"));
        say!("{id:<8} {:<22} {about}", if end.is_empty() { "never" } else { &end });
    }
    Ok(())
}

fn random(length: usize) -> Result<String> {
    let system = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut byte = [0];
        system.fill(&mut byte).ok().context("the system has no randomness")?;
        if usize::from(byte[0]) < 7 * ALPHABET.len() {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(text)
}
