//! Image archives: what `docker save`, `podman save`, `skopeo` and `buildah` write, as a tar (also compressed) or as
//! the unpacked folder.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::blob::{Layer, decompress, short_layer};
use super::store::Record;
use super::unpack::{Extended, open_at};
use super::{ImageConfig, ImageError, ImageStore, Progress, ProgressFn, Reference};

/// Manifests, indexes and configs are read up to here.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// All of those in one archive, each counted as often as it is referred to.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Entries of an archive (not of its layers), the bytes of their names, and a tar's header.
const MAX_MEMBERS: usize = 100_000;
const MAX_NAMES: usize = 16 << 20;
const BLOCK: u64 = 512;
/// An archive that comes as a stream is written down up to here (bytes).
const MAX_ARCHIVE: u64 = 512 << 30;
/// Images in one archive, and layers of one image (as Docker limits them).
const MAX_IMAGES: usize = 1000;
pub const MAX_LAYERS: usize = 127;
/// Indexes may point to indexes: so deep.
const MAX_NESTING: usize = 4;
/// An archive whose layer vanished under a concurrent removal is loaded again so often.
const COMMIT_TRIES: usize = 3;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

type Result<T> = std::result::Result<T, ImageError>;

/// Where the archive's files are.
enum Source {
    Folder(OwnedFd),
    /// Name to offset and length in an uncompressed tar.
    Tar(File, BTreeMap<PathBuf, (u64, u64)>),
}

struct Archive {
    /// For messages.
    path: String,
    source: Source,
    /// Bytes of manifests, indexes and configs that may still be read.
    documents: Cell<u64>,
}

/// One image of an archive, before its layers are unpacked.
struct Found {
    config: Vec<u8>,
    config_digest: String,
    layers: Vec<FoundLayer>,
    tags: Vec<String>,
    digests: Vec<String>,
}

struct FoundLayer {
    member: PathBuf,
    digest: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Loads an OCI layout or docker archive (tar, tar.gz, tar.zst, or the unpacked folder); returns the names it
    /// brought (the id for an image without a name). Blocking: call it in `spawn_blocking`.
    pub fn load(&self, path: &Path, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        let metadata = fs::metadata(path).map_err(ImageError::io(format!("cannot open {}", path.display())))?;
        let open = || File::open(path).map_err(ImageError::io(format!("cannot open {}", path.display())));
        if metadata.is_dir() {
            return self.load_archive(
                &Archive::new(path.display().to_string(), Source::Folder(OwnedFd::from(open()?))),
                progress,
            );
        }
        if metadata.is_file() && !is_compressed(&open()?) {
            return self.load_tar(path.display().to_string(), open()?, progress);
        }
        self.load_stream(path.display().to_string(), &mut open()?, progress)
    }

    /// Like [`ImageStore::load`], from a stream.
    pub fn load_reader(&self, reader: &mut dyn Read, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        self.load_stream("(stream)".to_owned(), reader, progress)
    }

    /// Archives are read out of order (the manifest may come last): a stream is written down first.
    fn load_stream(&self, name: String, reader: &mut dyn Read, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        let work = self.workspace()?;
        let unusable = |error: io::Error| ImageError::Archive { path: name.clone(), why: error.to_string() };
        let mut plain = decompress(reader).map_err(unusable)?;
        let spool = work.path.join("archive.tar");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&spool)
            .map_err(ImageError::io("cannot write down the archive"))?;
        let mut buffer = vec![0u8; 256 * 1024];
        let mut done = 0u64;
        loop {
            let length = plain.read(&mut buffer).map_err(unusable)?;
            if length == 0 {
                break;
            }
            file.write_all(buffer.get(..length).unwrap_or_default())
                .map_err(ImageError::io("cannot write down the archive"))?;
            done += length as u64;
            if done > MAX_ARCHIVE {
                return Err(ImageError::Archive {
                    path: name,
                    why: format!("it is larger than {} GiB", MAX_ARCHIVE >> 30),
                });
            }
            progress(Progress { step: "reading".to_owned(), done_bytes: done, total_bytes: None });
        }
        drop(plain);
        self.load_tar(name, file, progress)
    }

    fn load_tar(&self, path: String, file: File, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        let members = index(&file).map_err(|why| ImageError::Archive { path: path.clone(), why })?;
        self.load_archive(&Archive::new(path, Source::Tar(file, members)), progress)
    }

    fn load_archive(&self, archive: &Archive, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        let images = archive.images()?;
        let mut names = Vec::new();
        for found in &images {
            names.extend(self.load_image(archive, found, progress)?);
        }
        Ok(names)
    }

    fn load_image(&self, archive: &Archive, found: &Found, progress: ProgressFn<'_>) -> Result<Vec<String>> {
        let (mut record, diff_ids) =
            record(&found.config, &found.config_digest).map_err(|why| archive.unusable(why))?;
        if diff_ids.len() != found.layers.len() {
            return Err(archive.unusable(format!(
                "its manifest has {} layers, its config {}",
                found.layers.len(),
                diff_ids.len()
            )));
        }
        for _ in 0..COMMIT_TRIES {
            for (index, (layer, diff_id)) in found.layers.iter().zip(&diff_ids).enumerate() {
                let total_bytes = archive.length(&layer.member);
                let layer_info = Layer {
                    digest: layer.digest.as_deref(),
                    diff_id,
                    number: index + 1,
                    count: diff_ids.len(),
                    total_bytes,
                };
                self.ensure_layer(&layer_info, &mut || archive.open(&layer.member), progress)?;
            }
            record.size = self.layers_size(&record.layers);
            if self.commit(&record, &found.tags, &found.digests)? {
                return Ok(if found.tags.is_empty() { vec![record.id] } else { found.tags.clone() });
            }
        }
        Err(archive.unusable("its layers were removed while it was loaded".to_owned()))
    }

    /// Bytes on disk. Folders are walked once, when the image comes.
    pub(super) fn layers_size(&self, layers: &[String]) -> u64 {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<PathBuf> = layers.iter().map(|layer| self.layer_path(layer)).collect();
        let mut size = 0u64;
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    pending.push(entry.path());
                } else if metadata.is_file() && seen.insert(std::os::unix::fs::MetadataExt::ino(&metadata)) {
                    size += metadata.len();
                }
            }
        }
        size
    }
}

/// What an image's config says, and its layers' plain digests.
pub fn record(config: &[u8], digest: &str) -> std::result::Result<(Record, Vec<String>), String> {
    let parsed: ImageConfiguration =
        serde_json::from_slice(config).map_err(|error| format!("its config is not readable: {error}"))?;
    let diff_ids: Vec<String> = parsed.rootfs().diff_ids().clone();
    if diff_ids.len() > MAX_LAYERS {
        return Err(format!("it has more than {MAX_LAYERS} layers"));
    }
    if let Some(wrong) = diff_ids.iter().find(|id| !is_digest(id)) {
        return Err(format!("{wrong:?} is not a digest"));
    }
    let mut image = ImageConfig::default();
    if let Some(from) = parsed.config() {
        image.entrypoint = from.entrypoint().clone().unwrap_or_default();
        image.cmd = from.cmd().clone().unwrap_or_default();
        let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        image.env = from.env().iter().flatten().filter_map(pair).collect();
        image.user = from.user().clone().unwrap_or_default();
        image.working_dir = from.working_dir().clone().unwrap_or_default();
        image.volumes = from.volumes().clone().unwrap_or_default();
        image.stop_signal = from.stop_signal().clone();
        image.exposed_ports = from.exposed_ports().clone().unwrap_or_default();
        image.labels = from.labels().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    }
    let layers = diff_ids.iter().map(|id| short_layer(id)).collect();
    let (id, created_at) = (digest.to_owned(), parsed.created().clone());
    let record = Record { id, layers, size: 0, created_at, config: image, is_pulled: false };
    Ok((record, diff_ids))
}

/// Only what is a digest may become part of a path.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// True for the manifest that this machine runs.
pub fn is_this_platform(os: &str, architecture: &str) -> bool {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    os == "linux" && architecture == own
}

impl Archive {
    fn new(path: String, source: Source) -> Self {
        Self { path, source, documents: Cell::new(MAX_DOCUMENTS) }
    }

    fn unusable(&self, why: impl Into<String>) -> ImageError {
        ImageError::Archive { path: self.path.clone(), why: why.into() }
    }

    fn images(&self) -> Result<Vec<Found>> {
        // docker's newer archives are both; its own manifest has the full names.
        if self.has("manifest.json") {
            return self.docker_images();
        }
        if self.has("index.json") {
            return self.oci_images();
        }
        Err(self.unusable("it has neither index.json (OCI) nor manifest.json (docker)"))
    }

    fn docker_images(&self) -> Result<Vec<Found>> {
        let listed: Vec<DockerImage> = self.document(Path::new("manifest.json"))?;
        if listed.is_empty() || listed.len() > MAX_IMAGES {
            return Err(self.unusable(format!("it has {} images", listed.len())));
        }
        listed.into_iter().map(|image| self.docker_image(image)).collect()
    }

    fn docker_image(&self, image: DockerImage) -> Result<Found> {
        let config = self.bytes(Path::new(&image.config))?;
        let mut tags = Vec::new();
        for tag in image.repo_tags.iter().flatten() {
            tags.push(Reference::parse(tag)?.to_string());
        }
        let layers = image
            .layers
            .into_iter()
            .map(|member| FoundLayer { digest: blob_digest(&member), member: PathBuf::from(member) });
        Ok(Found { config_digest: digest_of(&config), config, layers: layers.collect(), tags, digests: Vec::new() })
    }

    fn oci_images(&self) -> Result<Vec<Found>> {
        let index: ImageIndex = self.document(Path::new("index.json"))?;
        let mut found = Vec::new();
        for descriptor in index.manifests() {
            let annotation =
                |key: &str| descriptor.annotations().as_ref().and_then(|annotations| annotations.get(key).cloned());
            // A bare tag (as some tools write) does not name an image.
            let name =
                annotation(CONTAINERD_NAME).or_else(|| annotation(REF_NAME).filter(|name| name.contains(['/', ':'])));
            let name = match name.or_else(|| {
                annotation(REF_NAME)
                    .filter(|name| index.manifests().len() == 1 && Reference::parse(name).is_ok() && !is_tag_only(name))
            }) {
                Some(name) => Some(Reference::parse(&name)?),
                None => None,
            };
            if let Some(image) = self.oci_image(descriptor.digest().as_ref(), name.as_ref(), 0)? {
                found.push(image);
            }
            if found.len() > MAX_IMAGES {
                return Err(self.unusable(format!("it has more than {MAX_IMAGES} images")));
            }
        }
        if found.is_empty() {
            Err(self.unusable(format!("it has no image for linux/{}", std::env::consts::ARCH)))
        } else {
            Ok(found)
        }
    }

    /// The image that a manifest's (or index's) digest leads to; None where it is for other platforms only.
    fn oci_image(&self, digest: &str, name: Option<&Reference>, depth: usize) -> Result<Option<Found>> {
        let bytes = self.blob(digest)?;
        let parse = |error: serde_json::Error| self.unusable(format!("manifest {digest} is not readable: {error}"));
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(parse)?;
        if value.get("manifests").is_some() {
            let index: ImageIndex = serde_json::from_value(value).map_err(parse)?;
            let ours = index.manifests().iter().find(|manifest| {
                manifest.platform().as_ref().is_none_or(|platform| {
                    is_this_platform(&platform.os().to_string(), &platform.architecture().to_string())
                })
            });
            return match ours {
                Some(manifest) if depth < MAX_NESTING => {
                    let mut found = self.oci_image(manifest.digest().as_ref(), name, depth + 1)?;
                    if let (Some(found), Some(name)) = (&mut found, name) {
                        found.digests.push(format!("{}@{digest}", name.name()));
                    }
                    Ok(found)
                }
                Some(_) => Err(self.unusable("its indexes are nested too deeply")),
                None => Ok(None),
            };
        }
        let manifest: ImageManifest = serde_json::from_value(value).map_err(parse)?;
        let config_digest = manifest.config().digest().to_string();
        let config = self.blob(&config_digest)?;
        if serde_json::from_slice::<ImageConfiguration>(&config).is_err() && manifest.layers().is_empty() {
            return Ok(None);
        }
        let mut layers = Vec::new();
        for layer in manifest.layers() {
            let digest = layer.digest().to_string();
            layers.push(FoundLayer { member: self.blob_path(&digest)?, digest: Some(digest) });
        }
        let tags = name.filter(|name| name.digest.is_none()).map(|name| name.to_string()).into_iter().collect();
        let digests = name.map(|name| format!("{}@{digest}", name.name())).into_iter().collect();
        Ok(Some(Found { config, config_digest, layers, tags, digests }))
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        if !is_digest(digest) {
            return Err(self.unusable(format!("{digest:?} is not a sha256 digest")));
        }
        Ok(Path::new("blobs/sha256").join(digest.trim_start_matches("sha256:")))
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.bytes(&self.blob_path(digest)?)?;
        let actual = digest_of(&bytes);
        if actual == digest { Ok(bytes) } else { Err(self.unusable(format!("blob {digest} has the digest {actual}"))) }
    }

    fn document<T: DeserializeOwned>(&self, member: &Path) -> Result<T> {
        let bytes = self.bytes(member)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.unusable(format!("{} is not readable: {error}", member.display())))
    }

    fn bytes(&self, member: &Path) -> Result<Vec<u8>> {
        let reader = self.open(member).map_err(|error| self.unusable(format!("{}: {error}", member.display())))?;
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.unusable(format!("{}: {error}", member.display())))?;
        let length = bytes.len() as u64;
        if length > MAX_DOCUMENT {
            return Err(self.unusable(format!("{} is too large", member.display())));
        }
        let left = self.documents.get().checked_sub(length);
        self.documents.set(left.ok_or_else(|| self.unusable("its manifests and configs are too large"))?);
        Ok(bytes)
    }

    fn has(&self, member: &str) -> bool {
        match &self.source {
            Source::Folder(root) => open_at(root, Path::new(member), libc::O_PATH).is_ok(),
            Source::Tar(_, members) => members.contains_key(Path::new(member)),
        }
    }

    fn length(&self, member: &Path) -> Option<u64> {
        match &self.source {
            Source::Folder(root) => {
                File::from(open_at(root, member, libc::O_PATH).ok()?).metadata().ok().map(|metadata| metadata.len())
            }
            Source::Tar(_, members) => members.get(member).map(|(_, length)| *length),
        }
    }

    fn open(&self, member: &Path) -> io::Result<Box<dyn Read + Send>> {
        match &self.source {
            // Links in the folder lead nowhere outside of it (X3).
            Source::Folder(root) => Ok(Box::new(File::from(open_at(root, member, libc::O_RDONLY | libc::O_NONBLOCK)?))),
            Source::Tar(file, members) => {
                let (offset, length) = members
                    .get(member)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "missing in the archive"))?;
                Ok(Box::new(Section { file: file.try_clone()?, offset: *offset, left: *length }))
            }
        }
    }
}

fn is_tag_only(name: &str) -> bool {
    name == "latest" || name.starts_with(|first: char| first.is_ascii_digit() || first == 'v')
}

/// `blobs/sha256/<hex>` names its own digest.
fn blob_digest(member: &str) -> Option<String> {
    let digest = format!("sha256:{}", member.strip_prefix("blobs/sha256/")?);
    is_digest(&digest).then_some(digest)
}

/// A part of a file, read without moving the file's own position (several parts share it).
struct Section {
    file: File,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length =
            std::os::unix::fs::FileExt::read_at(&self.file, buffer.get_mut(..room).unwrap_or_default(), self.offset)?;
        if length == 0 && self.left > 0 && room > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is truncated"));
        }
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

fn is_compressed(mut file: &File) -> bool {
    let mut start = [0u8; 4];
    file.read_exact(&mut start).is_ok() && (start.starts_with(&[0x1f, 0x8b]) || start == [0x28, 0xb5, 0x2f, 0xfd])
}

/// Where each file of a tar is. Links between members (docker's old archives share layers so) are followed by name.
fn index(file: &File) -> std::result::Result<BTreeMap<PathBuf, (u64, u64)>, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut members = BTreeMap::new();
    let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
    let (mut at, mut name_bytes, mut extended) = (0u64, 0, Extended::default());
    for count in 0.. {
        if count >= MAX_MEMBERS {
            return Err(format!("it has more than {MAX_MEMBERS} entries"));
        }
        let Some(header) = header_at(file, at, length)? else { break };
        let offset = at + BLOCK;
        let size = extended.size.filter(|_| !Extended::is(&header));
        let size = size.map_or_else(|| header.entry_size().map_err(|error| error.to_string()), Ok)?;
        let end = offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
        at = end.ok_or("it is truncated, or damaged")?;
        if Extended::is(&header) {
            extended.read(
                header.entry_type(),
                size,
                &mut Section { file: file.try_clone().map_err(|error| error.to_string())?, offset, left: size },
            )?;
            continue;
        }
        let Extended { path, link, .. } = std::mem::take(&mut extended);
        let path = lexical(Path::new(""), Path::new(OsStr::from_bytes(&path.map_or(header.path_bytes(), Into::into))));
        name_bytes += path.as_os_str().len();
        if name_bytes > MAX_NAMES {
            return Err(format!("its names have more than {MAX_NAMES} bytes"));
        }
        let kind = header.entry_type();
        if kind.is_file() {
            if offset + size > length {
                return Err(format!("it is truncated: {} is incomplete", path.display()));
            }
            members.insert(path, (offset, size));
        } else if kind.is_symlink() || kind.is_hard_link() {
            let base =
                if kind.is_symlink() { path.parent().unwrap_or(Path::new("")).to_owned() } else { PathBuf::new() };
            let target = link.map(Into::into).or_else(|| header.link_name_bytes()).unwrap_or_default();
            name_bytes += target.len();
            let target = lexical(&base, Path::new(OsStr::from_bytes(&target)));
            links.push((path, target));
        }
    }
    if members.is_empty() {
        return Err("it is empty, or not a tar archive".to_owned());
    }
    for (path, target) in links {
        if let Some(member) = members.get(&target).copied() {
            members.entry(path).or_insert(member);
        }
    }
    Ok(members)
}

/// The header at an offset; None at the end, which is a block of zeros or the file's own.
fn header_at(file: &File, at: u64, length: u64) -> std::result::Result<Option<tar::Header>, String> {
    let mut header = tar::Header::new_old();
    if at >= length {
        return Ok(None);
    }
    let damaged = || "it is not a tar archive, or damaged".to_owned();
    std::os::unix::fs::FileExt::read_exact_at(file, header.as_mut_bytes(), at).map_err(|_| damaged())?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The checksum's own eight bytes count as spaces.
    let sum = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let own = header.as_old().cksum.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    match header.cksum() {
        Ok(said) if said == sum - own + 8 * u32::from(b' ') => Ok(Some(header)),
        _ => Err(damaged()),
    }
}

/// `a/b` + `../c/layer.tar` is `a/c/layer.tar`: a key of the map, never a path of this machine.
fn lexical(base: &Path, target: &Path) -> PathBuf {
    let mut path = base.to_owned();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::Normal(part) => path.push(part),
            _ => (),
        }
    }
    path
}
