//! Patches that cost more than they look.

use std::time::Instant;

use anyhow::{Result, ensure};
use mainstay_api::kinds;
use mainstay_client::PatchType;
use serde_json::{Value, json};

use crate::bench::cluster::{Cluster, NAMESPACE};

/// How often each is thrown, by as many clients at once.
const EACH: usize = 4;

/// Each must be answered, and cost the others nothing.
pub async fn bombs(cluster: &Cluster) -> Result<String> {
    let set = json!({ "metadata": { "name": "target" }, "spec": { "serviceName": "target", "replicas": 0,
        "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    cluster.client.create(&kinds::STATEFUL_SET, NAMESPACE, &set).await?;
    let containers = |item: &dyn Fn(usize) -> Value, count: usize| {
        let items: Vec<Value> = (0..count).map(item).collect();
        json!({ "spec": { "template": { "spec": { "containers": items } } } })
    };
    let first = json!({ "op": "add", "path": "/spec/template/spec/containers/0", "value": { "name": "x" } });
    let many = json!({ "op": "add", "path": "/metadata/annotations", "value": { "a": "b" } });
    let bombs: Vec<(&str, PatchType, Value)> = vec![
        (
            "100,000 wrong containers",
            PatchType::Strategic,
            containers(&|index| json!({ "name": format!("c{index}!") }), 100_000),
        ),
        (
            "one container 60,000 times",
            PatchType::Strategic,
            containers(&|index| json!({ "name": "c", format!("f{index}"): 1 }), 60_000),
        ),
        ("10,000 insertions at the front", PatchType::Json, Value::Array(vec![first; 10_000])),
        ("20,000 operations", PatchType::Json, Value::Array(vec![many; 20_000])),
    ];
    let begun = Instant::now();
    let mut thrown = tokio::task::JoinSet::new();
    for (name, patch_type, patch) in &bombs {
        for _ in 0..EACH {
            let (client, name, patch_type, patch) = (cluster.another_client()?, *name, *patch_type, patch.clone());
            thrown.spawn(async move {
                (name, client.patch(&kinds::STATEFUL_SET, NAMESPACE, "target", "", patch_type, &patch).await)
            });
        }
    }
    let mut refused = 0;
    while let Some(done) = thrown.join_next().await {
        let (name, answer) = done?;
        let code = answer.as_ref().err().and_then(mainstay_client::Error::code);
        // What is only large, and fits, may be done.
        ensure!(answer.is_ok() || matches!(code, Some(400 | 413 | 422 | 429)), "{name}: {code:?}");
        refused += usize::from(answer.is_err());
    }
    cluster.client.delete(&kinds::STATEFUL_SET, NAMESPACE, "target", &json!({})).await?;
    let all = bombs.len() * EACH;
    Ok(format!("{all} patches, {refused} refused, in {:.1} s", begun.elapsed().as_secs_f64()))
}
