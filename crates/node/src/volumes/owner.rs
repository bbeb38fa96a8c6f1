//! Whose volumes these are (A11): the cluster's name in a file at the volume root, so that volumes are never given to,
//! reclaimed by or mixed with those of another cluster that came to run on this folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use mainstay_runtime::safe_path::make_private_dir;

/// The note at the volume root. No volume has such a name: theirs begin with a letter or a digit.
const FILE: &str = ".cluster";
/// What volumes without a note say: they were made before there were notes.
const UNNAMED: &str = "unnamed";

/// Beside it: where the volume root has been, a path a line. PersistentVolumes keep the path that they were declared
/// with for life.
const ROOTS: &str = ".roots";

/// Notes where a data folder's volume root is now.
///
/// # Errors
/// It takes no file.
pub fn note_root(data_dir: &Path) -> io::Result<()> {
    let root = data_dir.join("volumes");
    let own = root.to_string_lossy().into_owned();
    let mut all = roots(&root);
    if all.contains(&root) || own.contains('\n') {
        return Ok(());
    }
    all.push(root.clone());
    make_private_dir(&root)?;
    let partial = root.join(".roots.partial");
    let text: String = all.iter().map(|path| format!("{}\n", path.display())).collect();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, root.join(ROOTS))?;
    File::open(&root)?.sync_all()
}

/// Where a volume root is and has been.
pub fn roots(root: &Path) -> Vec<PathBuf> {
    fs::read_to_string(root.join(ROOTS)).unwrap_or_default().lines().map(PathBuf::from).collect()
}

/// Why the volumes are not used.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// They are another cluster's.
    #[error(
        "the volumes in {root} are those of cluster {found}, not of cluster {cluster}; they are left alone, and so is \
         this node"
    )]
    Other { root: PathBuf, found: String, cluster: String },
    /// The note cannot be read or written.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Whose volumes a data folder holds: the cluster's name; something that is no name where they are older than such
/// notes; `None` where there are no volumes.
///
/// # Errors
/// When that cannot be read.
pub fn noted(data_dir: &Path) -> Result<Option<String>, OwnerError> {
    let root = data_dir.join("volumes");
    let path = root.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OwnerError::File { path, source }),
    }
    match fs::read_dir(&root) {
        Ok(mut volumes) => Ok(volumes.next().map(|_| UNNAMED.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OwnerError::File { path: root, source }),
    }
}

/// Takes the volumes of a data folder for a cluster: nobody's, or its own; another's only if that is meant
/// (`take_over`), and then they stay where they are, for nobody in the new cluster knows them.
///
/// # Errors
/// [`OwnerError::Other`] when they are another cluster's.
pub fn take(data_dir: &Path, cluster: &str, take_over: bool) -> Result<(), OwnerError> {
    let root = data_dir.join("volumes");
    match noted(data_dir)? {
        Some(found) if found == cluster => return Ok(()),
        Some(found) if found != UNNAMED && !take_over => {
            return Err(OwnerError::Other { root, found, cluster: cluster.to_owned() });
        }
        _ => {}
    }
    let (path, partial) = (root.join(FILE), root.join(".cluster.partial"));
    let write = || -> io::Result<()> {
        make_private_dir(&root)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        writeln!(file, "{cluster}")?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(&root)?.sync_all()
    };
    write().map_err(|source| OwnerError::File { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v5_a_folder_that_was_moved_knows_its_volumes_by_their_old_paths() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        take(&first, "one", false).unwrap();
        note_root(&first).unwrap();
        note_root(&first).unwrap();
        fs::rename(&first, &second).unwrap();
        note_root(&second).unwrap();
        assert_eq!(roots(&second.join("volumes")), [first.join("volumes"), second.join("volumes")]);
        let here = crate::volumes::Volumes::new(&second);
        let placed = |path: PathBuf| here.placed(path);
        for root in [&first, &second] {
            assert_eq!(placed(root.join("volumes/pvc-1")), second.join("volumes/pvc-1"));
        }
        // What is not a folder in one of them stays where it is, and is refused as before.
        for other in ["volumes/a/b", "volumes", "volumes/../x", "elsewhere/pvc-1"] {
            assert_eq!(placed(first.join(other)), first.join(other), "{other}");
        }
        assert_eq!(noted(&second).unwrap().as_deref(), Some("one"));
    }

    #[test]
    fn volumes_know_their_cluster_a11() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(noted(data.path()).unwrap(), None);
        take(data.path(), "one", false).unwrap();
        take(data.path(), "one", false).unwrap();
        let refused = take(data.path(), "two", false).unwrap_err().to_string();
        assert!(refused.contains("those of cluster one, not of cluster two"), "{refused}");
        assert_eq!(noted(data.path()).unwrap().as_deref(), Some("one"));
        let volume = data.path().join("volumes/pvc-1");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("bytes"), "precious").unwrap();
        take(data.path(), "two", true).unwrap();
        assert_eq!(noted(data.path()).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::read(volume.join("bytes")).unwrap(), b"precious");
        // Volumes from before there were notes are the next cluster's that has a store for them.
        fs::remove_file(data.path().join("volumes").join(FILE)).unwrap();
        assert!(noted(data.path()).unwrap().is_some_and(|found| found != "two"));
        take(data.path(), "three", false).unwrap();
        assert_eq!(noted(data.path()).unwrap().as_deref(), Some("three"));
    }
}
