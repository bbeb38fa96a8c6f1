//! An image made of this very binary, so that a demonstration needs neither registry nor archive.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::store::Record;
use super::{Image, ImageConfig, ImageError, ImageStore, Reference};

/// What the binary is called in the image.
const PROGRAM: &str = "mainstay";

impl ImageStore {
    /// Makes `name` (`mainstay.local/demo:1`) from this very binary and the libraries it maps; no network. Its entry
    /// point is `/mainstay`, its default arguments are `args`. Blocking; quick when the image of the same binary is
    /// there already.
    pub fn build_from_self(&self, name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Image, ImageError> {
        let exe = fs::read_link("/proc/self/exe").map_err(ImageError::io("cannot find this program"))?;
        let mut files: BTreeSet<PathBuf> = mapped_files(&fs::read_to_string("/proc/self/maps").unwrap_or_default());
        files.remove(&exe);
        // The layer is named by what went into it: made again only for another binary.
        let mut digest = Sha256::new();
        for path in files.iter().chain([&exe]) {
            let metadata = fs::metadata(path).map_err(ImageError::io(format!("cannot read {}", path.display())))?;
            digest.update(format!(
                "{}\0{}\0{}\0{}\0{}\n",
                path.display(),
                metadata.len(),
                metadata.ino(),
                metadata.mtime(),
                metadata.mtime_nsec()
            ));
        }
        let short: String = format!("{:x}", digest.finalize()).chars().take(24).collect();
        if !self.layer_path(&short).is_dir() {
            let work = self.workspace()?;
            let root = work.path.join("fs");
            lay_out(&root, &exe, &files).map_err(ImageError::io("cannot make an image of this program"))?;
            self.keep_layer(&root, &short)?;
        }
        // Arguments of the pod take the place of `args`, so that the image's other tools are one word away.
        let entrypoint = vec![format!("/{PROGRAM}")];
        let cmd = args.iter().map(|arg| (*arg).to_owned()).collect();
        let path = ("PATH".to_owned(), "/".to_owned());
        let env = std::iter::once(path)
            .chain(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
            .collect();
        let config = ImageConfig { entrypoint, cmd, env, working_dir: "/".to_owned(), ..ImageConfig::default() };
        let layers = vec![short];
        let identity = serde_json::to_vec(&(&config, &layers))
            .map_err(|error| ImageError::io("cannot describe the image")(error.into()))?;
        let size = self.layers_size(&layers);
        let id = super::archive::digest_of(&identity);
        let record = Record { id, layers, size, created_at: None, config, is_pulled: false };
        let tag = Reference::parse(name)?.to_string();
        self.commit(&record, std::slice::from_ref(&tag), &[])?;
        self.resolve(&tag).ok_or(ImageError::NotFound(tag))
    }
}

/// The files that this process runs: itself, its libraries, the dynamic loader.
fn mapped_files(maps: &str) -> BTreeSet<PathBuf> {
    let executable =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|permissions| permissions.contains('x')));
    let paths = executable.filter_map(|line| line.find('/').and_then(|start| line.get(start..)));
    paths.filter(|path| !path.ends_with(" (deleted)")).map(PathBuf::from).collect()
}

fn lay_out(root: &Path, exe: &Path, libraries: &BTreeSet<PathBuf>) -> std::io::Result<()> {
    for folder in ["etc", "tmp", "data", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/mainstay\nnobody:x:65534:65534:nobody:/:/mainstay\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    copy(exe, &root.join(PROGRAM))?;
    for library in libraries {
        place_library(root, library)?;
    }
    for interpreter in [
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-linux-aarch64.so.1",
        "/lib/ld-musl-x86_64.so.1",
        "/lib/ld-musl-aarch64.so.1",
    ] {
        if Path::new(interpreter).exists() {
            place_library(root, Path::new(interpreter))?;
        }
    }
    Ok(())
}

/// A library goes to its own path, and (programs name libraries by their links) to every name in its folder that leads
/// to it.
fn place_library(root: &Path, library: &Path) -> std::io::Result<()> {
    let real = library.canonicalize()?;
    let mut names = BTreeSet::from([library.to_owned(), real.clone()]);
    for entry in real.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_symlink())
            && entry.path().canonicalize().is_ok_and(|target| target == real)
        {
            names.insert(entry.path());
        }
    }
    for name in names {
        let target = root.join(name.strip_prefix("/").unwrap_or(&name));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        if !target.exists() {
            copy(&real, &target)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_with_code_are_taken() {
        let maps = "1-2 r--p 0 fe:00 1 /bin/x\n1-2 r-xp 0 fe:00 1     /bin/x\n3-4 r-xp 0 fe:00 2 /lib/libc.so.6\n\
                    5-6 r-xp 0 00:00 0 [vdso]\n7-8 r--p 0 fe:00 3 /usr/share/locale\n9-a r-xp 0 fe:00 4 /gone \
                        (deleted)\n";
        assert_eq!(mapped_files(maps), BTreeSet::from([PathBuf::from("/bin/x"), PathBuf::from("/lib/libc.so.6")]));
    }
}
