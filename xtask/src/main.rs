mod list_keys;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("list-keys") => list_keys::run(),
        other => anyhow::bail!("no such task: {}", other.unwrap_or("")),
    }
}
