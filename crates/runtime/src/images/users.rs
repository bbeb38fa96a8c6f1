//! Users and groups by name, as the image itself defines them.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::unpack::{open_at, open_in_root};
use super::{ImageError, ImageStore, ResolvedUser};

/// /etc/passwd and /etc/group are read up to here.
const MAX_FILE: u64 = 1 << 20;

impl ImageStore {
    /// The `USER` of an image (or a pod's numeric user), looked up in the image's own passwd and group files: `""`,
    /// `1000`, `1000:1000`, `postgres`, `postgres:postgres`. A number need not be in the files.
    pub fn resolve_user(&self, image_id: &str, user: &str) -> Result<ResolvedUser, ImageError> {
        let layers = self.layer_dirs(image_id)?;
        let passwd = read_file(&layers, Path::new("etc/passwd"));
        let group = read_file(&layers, Path::new("etc/group"));
        resolve(user, &passwd, &group)
    }
}

fn resolve(user: &str, passwd: &str, group: &str) -> Result<ResolvedUser, ImageError> {
    let (user, group_name) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = fields(passwd).find(|entry| match number {
        Some(uid) => entry.get(2).and_then(|field| field.parse().ok()) == Some(uid),
        None => entry.first() == Some(&user),
    });
    let entry_number = |index: usize| entry.as_ref().and_then(|entry| entry.get(index)?.parse::<u32>().ok());
    let uid = number.or_else(|| entry_number(2)).ok_or_else(|| ImageError::UnknownUser(user.to_owned()))?;
    let name = entry.as_ref().and_then(|entry| entry.first().copied());
    let gid = match group_name.filter(|group| !group.is_empty()) {
        None => entry_number(3).unwrap_or(0),
        Some(group_name) => match group_name.parse() {
            Ok(gid) => gid,
            Err(_) => fields(group)
                .find(|entry| entry.first() == Some(&group_name))
                .and_then(|entry| entry.get(2)?.parse().ok())
                .ok_or_else(|| ImageError::UnknownUser(format!("{user}:{group_name}")))?,
        },
    };
    let is_member = |entry: &Vec<&str>| {
        name.is_some_and(|name| entry.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
    };
    // As with `docker run --user`: a group that was named explicitly is the only one.
    let groups = if group_name.is_some() {
        Vec::new()
    } else {
        fields(group)
            .filter(is_member)
            .filter_map(|entry| entry.get(2)?.parse().ok())
            .filter(|member| *member != gid)
            .collect()
    };
    let home = entry
        .as_ref()
        .and_then(|entry| entry.get(5))
        .filter(|home| !home.is_empty())
        .map_or("/", |home| home)
        .to_owned();
    Ok(ResolvedUser { uid, gid, groups, home })
}

fn fields(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

/// A file as the topmost layer that has it shows it; empty where none has.
fn read_file(layers: &[PathBuf], path: &Path) -> String {
    for layer in layers.iter().rev() {
        let Ok(root) = File::open(layer).map(OwnedFd::from) else { continue };
        if let Ok(fd) = open_at(&root, path, libc::O_PATH) {
            let file = File::from(fd);
            let Ok(kind) = file.metadata().map(|metadata| metadata.file_type()) else { continue };
            // A whiteout hides what is below.
            if kind.is_char_device() || !kind.is_file() {
                return String::new();
            }
            let mut text = Vec::new();
            if let Ok(fd) = open_at(&root, path, libc::O_RDONLY | libc::O_NOCTTY) {
                let _ = File::from(fd).take(MAX_FILE).read_to_end(&mut text);
            }
            return String::from_utf8_lossy(&text).into_owned();
        }
        let parent_ends =
            path.parent().is_some_and(|parent| open_in_root(&root, parent).is_ok_and(|dir| is_opaque(&dir)));
        if parent_ends {
            return String::new();
        }
    }
    String::new()
}

fn is_opaque(dir: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}\0", dir.as_raw_fd());
    let mut value = [0u8; 4];
    // SAFETY: NUL-terminated names and a buffer with its length.
    let length = unsafe {
        libc::getxattr(path.as_ptr().cast(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    length == 1 && value.first() == Some(&b'y')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a \
        comment\npostgres:x:999:998:PostgreSQL:/var/lib/postgresql:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\npostgres:x:998:\nssl-cert:x:110:www-data,postgres\nadm:x:4:root\n";

    #[test]
    fn users_are_found_as_the_image_defines_them() {
        let user = |uid, gid, groups: &[u32], home: &str| ResolvedUser {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        };
        let table = [
            ("", user(0, 0, &[4], "/root")),
            ("postgres", user(999, 998, &[110], "/var/lib/postgresql")),
            ("999", user(999, 998, &[110], "/var/lib/postgresql")),
            ("postgres:ssl-cert", user(999, 110, &[], "/var/lib/postgresql")),
            ("1234", user(1234, 0, &[], "/")),
            ("1234:5678", user(1234, 5678, &[], "/")),
        ];
        for (name, expected) in table {
            assert_eq!(resolve(name, PASSWD, GROUP).unwrap(), expected, "{name}");
        }
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("postgres:nogroup", PASSWD, GROUP).is_err());
        assert_eq!(resolve("7", "", "").unwrap().uid, 7);
    }
}
