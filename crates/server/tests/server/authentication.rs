//! X1 through the real server: who is believed to be whom. Tokens of other issuers, fixed tokens, bootstrap tokens,
//! and what the audit log says of it. On loopback.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mainstay_api::kinds;
use mainstay_client::{Client, Config, Informer, ListOptions, Notice, PatchType};
use mainstay_server::{Files, start_with};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{admin, bearer, config, tls};

async fn who(client: &Client) -> Result<Value, Option<u16>> {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let answer = client.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await;
    answer.map(|review| review["status"]["userInfo"].clone()).map_err(|error| error.code())
}

/// An issuer: HTTPS on loopback with its discovery document and one key; the URL, the CA, and what signs.
async fn issuer() -> (String, String, EcdsaKeyPair) {
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "issuer-ca");
    let ca_pem = ca.self_signed(&ca_key).expect("signed").pem();
    let ca = Issuer::new(ca, ca_key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let leaf =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name").signed_by(&key, &ca).expect("signed");
    let acceptor = tls::acceptor(leaf.der().clone(), &key);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));

    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("a key");
    let point = signer.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    let keys =
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "x": x, "y": y }] }).to_string();
    let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            let body = if head[..length].starts_with(b"GET /keys ") { &keys } else { &discovery };
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (url, ca_pem, signer)
}

fn signed(signer: &EcdsaKeyPair, kid: &str, claims: &Value) -> String {
    let head = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256", "kid": kid }).to_string());
    let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = signer.sign(&ring::rand::SystemRandom::new(), text.as_bytes()).expect("signed");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn x1_a_token_of_a_configured_issuer_is_its_user_and_any_other_is_nobodys() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, ca, signer) = issuer().await;
    let file = folder.path().join("authentication.yaml");
    let ca = ca.lines().map(|line| format!("      {line}\n")).collect::<String>();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: \
            {url}\n    audiences: [mainstay]\n    certificateAuthority: |\n{ca}  claimMappings:\n    username: {{ \
            claim: sub, prefix: \"oidc:\" }}\n    groups: {{ claim: groups, prefix: \"oidc:\" }}\nanonymous:\n  \
            enabled: true\n  conditions: [{{ path: /healthz }}]\n"
    );
    std::fs::write(&file, text).expect("written");
    let tokens = folder.path().join("tokens.csv");
    std::fs::write(&tokens, "fixed-token,jane,42,\"dev,ops\"\n").expect("written");
    let files = Files { authentication: Some(file), tokens: Some(tokens), ..Files::default() };
    let server = start_with(config(&folder.path().join("data")), &files).await.expect("started");
    let now = jiff::Timestamp::now().as_second();
    let claims = |aud: &str, exp: i64| {
        json!({ "iss": url, "aud": aud, "sub": "joe", "groups": ["dev"], "exp": exp,
        "nbf": now - 10 })
    };
    let good = signed(&signer, "k1", &claims("mainstay", now + 600));
    let user = who(&bearer(&server, &good)).await.expect("believed");
    assert_eq!(user["username"], "oidc:joe");
    assert_eq!(user["groups"], json!(["oidc:dev", "system:authenticated"]));
    let random = ring::rand::SystemRandom::new();
    let other = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let other = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, other.as_ref(), &random).expect("a key");
    for wrong in [
        signed(&other, "k1", &claims("mainstay", now + 600)),
        signed(&signer, "k2", &claims("mainstay", now + 600)),
        signed(&signer, "k1", &claims("elsewhere", now + 600)),
        signed(&signer, "k1", &claims("mainstay", now - 1)),
        "fixed-toke".to_owned(),
    ] {
        assert_eq!(who(&bearer(&server, &wrong)).await, Err(Some(401)), "{wrong}");
    }
    let jane = who(&bearer(&server, "fixed-token")).await.expect("believed");
    assert_eq!((jane["username"].as_str(), jane["uid"].as_str()), (Some("jane"), Some("42")));
    let mut nobody = Config::parse(server.admin.kubeconfig.as_bytes()).expect("a kubeconfig");
    nobody.identity = None;
    let nobody = Client::new(nobody).expect("a client");
    assert_eq!(nobody.get_text("/healthz").await.expect("public"), "ok");
    assert_eq!(nobody.get_text("/version").await.expect_err("closed").code(), Some(401));
    server.shutdown().await;
}

#[tokio::test]
async fn m4_a_machine_with_a_bootstrap_token_gets_a_nodes_certificate_and_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start_with(config(folder.path()), &Files::default()).await.expect("started");
    let admin = admin(&server);
    let encoded = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "metadata": { "name": "bootstrap-token-abcdef" }, "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": encoded("abcdef"), "token-secret": encoded("0123456789abcdef"),
            "usage-bootstrap-authentication": encoded("true"), "usage-bootstrap-signing": encoded("true"),
            "auth-extra-groups": encoded("system:bootstrappers:workers"),
        },
    });
    admin.create(&kinds::SECRET, "kube-system", &secret).await.expect("a token");
    assert_eq!(who(&bearer(&server, "abcdef.0123456789abcdee")).await, Err(Some(401)));
    let machine = bearer(&server, "abcdef.0123456789abcdef");
    let user = who(&machine).await.expect("believed");
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(user["groups"], json!(["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"]));
    let refused = machine.list(&kinds::SECRET, "kube-system", &ListOptions::default()).await.expect_err("not its own");
    assert_eq!(refused.code(), Some(403));

    let kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let request = |name: &str, group: &str, signer: &str| {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
                "metadata": { "generateName": "csr-" },
            "spec": { "request": STANDARD.encode(pem), "signerName": signer, "expirationSeconds": 3600,
                "usages": ["client auth", "digital signature"], "username": "system:admin",
                    "groups": ["system:masters"] },
        })
    };
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    let made = machine.create(kind, "", &request("system:node:n2", "system:nodes", kubelet)).await.expect("asked");
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef", "who asks is not what they say");
    let issued = until_issued(&admin, kind, made["metadata"]["name"].as_str().expect("a name")).await;
    let mut identity =
        Config::parse(server.node.as_ref().expect("a node").kubeconfig.as_bytes()).expect("a kubeconfig");
    let certificate = String::from_utf8(STANDARD.decode(issued).expect("base64")).expect("PEM");
    identity.identity = Some((certificate, key.serialize_pem()));
    let node = Client::new(identity).expect("a client");
    let user = who(&node).await.expect("believed");
    assert_eq!(
        (user["username"].as_str(), &user["groups"]),
        (Some("system:node:n2"), &json!(["system:nodes", "system:authenticated"]))
    );
    let named = json!({ "metadata": { "name": "n2" } });
    node.create(&kinds::NODE, "", &named).await.expect("itself");
    assert_eq!(
        node.create(&kinds::NODE, "", &json!({ "metadata": { "name": "n3" } })).await.expect_err("not itself").code(),
        Some(403)
    );

    // Nobody approves without the right to, and the cluster's administrators are made by nobody's request.
    let client = "kubernetes.io/kube-apiserver-client";
    let masters = machine.create(kind, "", &request("eve", "system:masters", client)).await.expect_err("refused");
    assert_eq!(masters.code(), Some(403));
    let person = machine.create(kind, "", &request("eve", "dev", client)).await.expect("asked");
    let name = person["metadata"]["name"].as_str().expect("a name");
    let approval = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "Test",
        "message": "" }] } });
    let own = machine.patch(kind, "", name, "approval", PatchType::Merge, &approval).await.expect_err("not its to say");
    assert_eq!(own.code(), Some(403));
    admin.patch(kind, "", name, "approval", PatchType::Merge, &approval).await.expect("approved");
    assert!(!until_issued(&admin, kind, name).await.is_empty());
    server.shutdown().await;
}

async fn until_issued(admin: &Client, kind: &mainstay_api::Kind, name: &str) -> String {
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut informer = Informer::new(admin.clone(), kind, "", options);
    loop {
        if let Notice::Put(_, request) = informer.next().await
            && let Some(certificate) = request["status"]["certificate"].as_str()
        {
            return certificate.to_owned();
        }
    }
}

#[tokio::test]
async fn x2_the_audit_log_says_who_did_what_and_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let (policy, log) = (folder.path().join("policy.yaml"), folder.path().join("audit.log"));
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: \
        Metadata\n  resources:\n  - group: \"\"\n    resources: [secrets]\n- level: RequestResponse\n  resources:\n  \
        - group: \"\"\n    resources: [configmaps]\n";
    std::fs::write(&policy, rules).expect("written");
    let files = Files { audit_policy: Some(policy), audit_log: Some(log.clone()), ..Files::default() };
    let server = start_with(config(&folder.path().join("data")), &files).await.expect("started");
    let admin = admin(&server);
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "password": "hunter2" } });
    admin.create(&kinds::SECRET, "default", &secret).await.expect("made");
    admin
        .create(&kinds::CONFIG_MAP, "default", &json!({ "metadata": { "name": "c" }, "data": { "a": "b" } }))
        .await
        .expect("made");
    let nobody = bearer(&server, "abcdef.0123456789abcdef");
    assert_eq!(who(&nobody).await, Err(Some(401)));
    server.shutdown().await;
    // The log's thread may still be writing.
    let mut text = String::new();
    while !text.contains("configmaps") || !text.ends_with('\n') {
        tokio::task::yield_now().await;
        text = std::fs::read_to_string(&log).expect("readable");
    }
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |resource: &str| events.iter().find(|event| event["objectRef"]["resource"] == resource).expect("recorded");
    let secret = of("secrets");
    assert_eq!(
        (secret["verb"].as_str(), secret["user"]["username"].as_str()),
        (Some("create"), Some("kubernetes-admin"))
    );
    assert_eq!(
        (secret["responseStatus"]["code"].as_i64(), secret["sourceIPs"][0].as_str()),
        (Some(201), Some("127.0.0.1"))
    );
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"), "{text}");
    let map = of("configmaps");
    assert_eq!((&map["requestObject"]["data"]["a"], &map["responseObject"]["data"]["a"]), (&json!("b"), &json!("b")));
    assert_eq!(map["annotations"]["authorization.k8s.io/decision"], "allow");
}

#[tokio::test]
async fn x2_what_is_refused_before_it_is_understood_is_in_the_audit_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let (policy, log) = (folder.path().join("policy.yaml"), folder.path().join("audit.log"));
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
        - level: Metadata\n";
    std::fs::write(&policy, rules).expect("written");
    let files = Files { audit_policy: Some(policy), audit_log: Some(log.clone()), ..Files::default() };
    let server = start_with(config(&folder.path().join("data")), &files).await.expect("started");
    let nobody = bearer(&server, "abcdef.0123456789abcdef");
    assert_eq!(nobody.get_text("/api/v1/refused-token").await.expect_err("refused").code(), Some(401));
    assert_eq!(admin(&server).get_text("/apis/no/v1/such-path").await.expect_err("nothing").code(), Some(404));
    let mut sender = super::pressure::http2(&server).await;
    let (path, as_jane) = ("/api/v1/impersonated", [("impersonate-user", "jane")]);
    let answer = super::pressure::send(&mut sender, &server, http::Method::GET, path, &as_jane, "").await;
    assert_eq!(answer.status(), 404);
    server.shutdown().await;
    let mut text = String::new();
    while !text.contains("/api/v1/impersonated") || !text.ends_with('\n') {
        tokio::task::yield_now().await;
        text = std::fs::read_to_string(&log).expect("readable");
    }
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |uri: &str| {
        let event = events.iter().find(|event| event["requestURI"] == uri).expect(uri);
        (event["responseStatus"]["code"].as_i64(), event["user"]["username"].as_str().map(str::to_owned))
    };
    assert_eq!(of("/api/v1/refused-token"), (Some(401), Some(String::new())));
    assert_eq!(of("/apis/no/v1/such-path"), (Some(404), Some("kubernetes-admin".to_owned())));
    assert_eq!(of("/api/v1/impersonated"), (Some(404), Some("kubernetes-admin".to_owned())));
}
