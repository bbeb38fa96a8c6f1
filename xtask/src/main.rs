//! Everything about the project that is not the product: `cargo xtask TASK`.

mod attack;
mod bench;
mod ci;
mod fuzz;
mod helm;
mod images;
mod kubectl;
mod list_keys;
mod mutants;
mod tidy;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match task.as_str() {
        "attack" => attack::run(&rest),
        "bench" => bench::run(&rest),
        "ci" => ci::run(),
        "fuzz" => fuzz::run(&rest),
        "helm" => helm::run(),
        "images" => images::run(&rest),
        "kubectl" => kubectl::run(),
        "list-keys" => list_keys::run(),
        "mutants" => mutants::run(&rest),
        "tidy" => tidy::run(),
        other => {
            anyhow::bail!(
                "no such task: {other:?} (attack, bench, ci, fuzz, helm, images, kubectl, list-keys, mutants, tidy)"
            )
        }
    }
}
