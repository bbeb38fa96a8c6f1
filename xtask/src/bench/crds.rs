//! 500 CustomResourceDefinitions of real size: what they cost in memory, discovery and start, beside a server without
//! them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mainstay_api::kinds;
use serde_json::{Value, json};

use super::cluster::{Cluster, NAMESPACE, PATIENCE};
use super::processes;
use super::table::{Table, Times, ms};

/// How many definitions there are.
const COUNT: usize = 500;
/// Every so manieth is as large as they come.
const LARGE_EVERY: usize = 50;
/// Fields of the schema of most, and of a large one: about 60 KB and 1 MB as JSON.
const FIELDS: usize = 300;
const LARGE_FIELDS: usize = 4_800;
/// How often each request is made.
const ROUNDS: usize = 5;
/// Before memory is looked at.
const SETTLE: Duration = Duration::from_secs(20);

/// A definition whose schema has so many fields, with rules, defaults, lists and maps among them.
fn definition(number: usize, fields: usize) -> Value {
    let field = |index: usize| {
        let description = format!(
            "Field {index}, about which there is as much to say as about most: what it is for, what it may be."
        );
        match index % 6 {
            0 => json!({ "type": "string", "description": description, "maxLength": 64, "pattern": "^[a-z0-9-]+$" }),
            1 => json!({ "type": "integer", "description": description, "minimum": 0, "default": index }),
            2 => json!({ "type": "array", "description": description, "maxItems": 10, "items": { "type": "string" } }),
            3 => json!({ "type": "object", "description": description, "additionalProperties": { "type": "string" } }),
            4 => json!({ "description": description, "x-kubernetes-int-or-string": true }),
            _ => json!({ "type": "object", "description": description, "properties": {
                "a": { "type": "integer" }, "b": { "type": "integer" } },
                "x-kubernetes-validations": [{ "rule": "!has(self.a) || !has(self.b) || self.a <= self.b" }] }),
        }
    };
    let properties: serde_json::Map<String, Value> =
        (0..fields).map(|index| (format!("field{index}"), field(index))).collect();
    let (plural, kind) = (format!("things{number}"), format!("Thing{number}"));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.bench.example.com") },
        "spec": {
            "group": "bench.example.com", "scope": "Namespaced", "names": { "plural": plural, "kind": kind },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object",
                    "properties": { "spec": { "type": "object", "properties": properties } } } },
            }],
        },
    })
}

/// Everything, without definitions and with them.
pub async fn measure(cluster: &mut Cluster, table: &mut Table) -> Result<()> {
    let before = look(cluster).await?;
    let begun = Instant::now();
    let mut bytes = 0;
    for number in 0..COUNT {
        let fields = if number % LARGE_EVERY == 0 { LARGE_FIELDS } else { FIELDS };
        let definition = definition(number, fields);
        bytes += definition.to_string().len();
        cluster.client.create(&kinds::CUSTOM_RESOURCE_DEFINITION, "", &definition).await?;
    }
    served(cluster).await?;
    let installed = begun.elapsed();
    let after = look(cluster).await?;
    cluster.stop().await?;
    let again = cluster.up().await?;
    let answers = Instant::now();
    served(cluster).await?;
    let first_answer = answers.elapsed();
    let restarted = look(cluster).await?;
    let name = format!("{COUNT} definitions, {:.0} MB", bytes as f64 / 1e6);
    table.row(&format!("{name}: installed in"), format!("{:.1} s", installed.as_secs_f64()), "", "", "");
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    table.row(
        &format!("{name}: main process PSS"),
        mib(after.memory),
        format!("without {}", mib(before.memory)),
        "",
        "",
    );
    table.row(&format!("{name}: PSS after a restart"), mib(restarted.memory), "", "", "");
    for (index, (what, _)) in REQUESTS.iter().enumerate() {
        let (with, without) = (after.requests[index].clone(), before.requests[index].clone());
        table.row(&format!("{name}: {what}"), with, format!("without {without}"), "", "");
    }
    table.row(&format!("{name}: start again: exec to API ready"), ms(again.api), "", "", "");
    table.row(&format!("{name}: start again: first list of a kind"), ms(first_answer), "", "", "");
    Ok(())
}

const REQUESTS: [(&str, &str); 4] = [
    ("GET /apis", "/apis"),
    ("GET a group's resources", "/apis/apiextensions.k8s.io/v1"),
    ("GET /openapi/v3", "/openapi/v3"),
    ("list of ConfigMaps", "/api/v1/namespaces/default/configmaps"),
];

struct Seen {
    memory: u64,
    requests: Vec<String>,
}

async fn look(cluster: &Cluster) -> Result<Seen> {
    let mut requests = Vec::new();
    for (_, path) in REQUESTS {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            cluster.client.get_text(path).await?;
            times.push(begun.elapsed());
        }
        requests.push(Times::new(times).summary());
    }
    tokio::time::sleep(SETTLE).await;
    Ok(Seen { memory: processes::memory(cluster.pid()?)?.pss, requests })
}

/// Until the last one is served.
async fn served(cluster: &Cluster) -> Result<()> {
    let path = format!("/apis/bench.example.com/v1/namespaces/{NAMESPACE}/things{}", COUNT - 1);
    let wait = async {
        while cluster.client.get_text(&path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the last definition is not served")
}
