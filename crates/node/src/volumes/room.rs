//! How many bytes the image volumes of this node may have, all together: what their file system has free, and what they
//! have taken of it already. Images are sparse, so only the sum stays as they are written; who was promised how much is
//! known to [`mainstay_logic::volume::room`].

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The file in a volume's folder that takes the room.
const IMAGE: &str = "image";

/// Bytes below a volume root; the root need not be there yet.
pub fn bytes(root: &Path) -> io::Result<u64> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let system = nix::sys::statvfs::statvfs(there)?;
    let mut bytes = system.blocks_available().saturating_mul(system.fragment_size());
    let folders = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
        folders => folders?,
    };
    for folder in folders {
        match folder?.path().join(IMAGE).symlink_metadata() {
            Ok(image) if image.is_file() => bytes = bytes.saturating_add(image.blocks().saturating_mul(512)),
            // A plain directory, or a volume that is being removed.
            _ => {}
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use nix::mount::{MsFlags, mount};

    use crate::volumes::tests::alone;

    #[test]
    fn v10_what_images_have_taken_is_theirs_still() {
        alone(|base| {
            mount(Some("tmpfs"), base, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
            let root = base.join("volumes");
            let empty = super::bytes(&root).unwrap();
            fs::create_dir_all(root.join("pvc-1")).unwrap();
            let image = fs::File::create(root.join("pvc-1/image")).unwrap();
            image.set_len(4 << 20).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty, "a sparse file has taken nothing");
            image.write_all_at(&[1; 1 << 20], 1 << 20).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty, "what is written was free before");
            fs::write(base.join("other"), [1; 1 << 20]).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty - (1 << 20), "what others take is gone");
        });
    }
}
