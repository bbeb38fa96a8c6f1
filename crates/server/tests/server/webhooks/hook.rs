//! A webhook on loopback, over TLS, that answers as a test says and remembers what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::tls;

/// What a webhook does with a request.
pub enum Says {
    /// This `response`, with the request's uid.
    Response(Value),
    /// These bytes, with this code.
    Bytes(u16, Vec<u8>),
    /// Nothing, ever.
    Silence,
}

impl Says {
    pub fn yes() -> Self {
        Self::Response(json!({ "allowed": true }))
    }

    pub fn no(status: Value) -> Self {
        Self::Response(json!({ "allowed": false, "status": status }))
    }

    /// Allowed, with a JSON patch.
    pub fn patch(patch: Value) -> Self {
        let patch = STANDARD.encode(patch.to_string());
        Self::Response(json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
    }
}

type Answer = Arc<dyn Fn(Value) -> std::pin::Pin<Box<dyn Future<Output = Says> + Send>> + Send + Sync>;

/// A running webhook.
pub struct Hook {
    pub url: String,
    /// `caBundle`: its own certificate.
    pub bundle: String,
    /// The `request` of every review, in order.
    pub asked: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    /// One that answers at once.
    pub async fn start(answer: impl Fn(&Value) -> Says + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::start_async(move |request| {
            let said = answer(&request);
            async move { said }
        })
        .await
    }

    /// One that may do something before it answers.
    pub async fn start_async<F>(answer: impl Fn(Value) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Says> + Send + 'static,
    {
        let answer: Answer = Arc::new(move |request| Box::pin(answer(request)));
        let (listener, acceptor, own) = tls::listen(&["127.0.0.1"]).await;
        let url = format!("https://{}/review", listener.local_addr().expect("an address"));
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let noted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer, noted) = (acceptor.clone(), answer.clone(), noted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let (answer, noted) = (answer.clone(), noted.clone());
                        async move { Ok::<_, Infallible>(reply(request, answer, noted).await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new();
                    let _ = served.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, bundle: STANDARD.encode(own), asked }
    }

    /// One webhook of a configuration, about creates and updates of a resource; `more` is merged into it.
    pub fn webhook(&self, name: &str, resource: &str, more: Value) -> Value {
        let (group, plural) = resource.split_once('/').expect("group/plural");
        let mut hook = json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 10,
            "clientConfig": { "url": self.url, "caBundle": self.bundle },
            "rules": [{ "operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["*"],
                "resources": [plural] }],
        });
        mainstay_api::object::merge(&mut hook, more);
        hook
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Value> {
        self.asked.lock().expect("never poisoned").clone()
    }
}

async fn reply(request: Request<Incoming>, answer: Answer, noted: Arc<Mutex<Vec<Value>>>) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("a review");
    let asked = review["request"].clone();
    noted.lock().expect("never poisoned").push(asked.clone());
    let (code, bytes) = match answer(asked.clone()).await {
        Says::Response(mut response) => {
            response["uid"] = asked["uid"].clone();
            let review = json!({ "kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response });
            (200, review.to_string().into_bytes())
        }
        Says::Bytes(code, bytes) => (code, bytes),
        Says::Silence => std::future::pending().await,
    };
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a code");
    response
}

/// A configuration with these webhooks.
pub fn configuration(name: &str, webhooks: Vec<Value>) -> Value {
    json!({ "metadata": { "name": name }, "webhooks": webhooks })
}
