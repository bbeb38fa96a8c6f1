//! Bytes with a digest: checked while they are read, decompressed by what they begin with.

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::store::Workspace;
use super::unpack::{MAX_STREAM, unpack};
use super::{ImageError, ImageStore, Progress, ProgressFn};

/// Window of a zstd stream: larger ones would let an archive choose our memory use.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// Passes bytes on and digests them, up to a limit: a short stream may decompress to a very long one.
pub struct Digesting<R> {
    inner: R,
    digest: Sha256,
    left: u64,
}

impl<R: Read> Digesting<R> {
    /// More than `limit` bytes are an error.
    pub fn new(inner: R, limit: u64) -> Digesting<R> {
        Digesting { inner, digest: Sha256::new(), left: limit }
    }

    /// Reads what is left; the digest of everything.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(format!("sha256:{:x}", self.digest.finalize()))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(length as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is too large"))?;
        self.digest.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// Wraps a reader of plain, gzip or zstd bytes, told by their first four.
pub fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = [0u8; 4];
    let mut length = 0;
    while let Some(rest) = start.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest)? {
            0 => break,
            more => length += more,
        }
    }
    let head = io::Cursor::new(start.get(..length).unwrap_or_default().to_vec());
    let whole = head.chain(reader);
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::new(whole)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        }
        _ => Ok(Box::new(whole)),
    }
}

/// What a layer is supposed to be.
pub struct Layer<'a> {
    /// Of the blob as it is transported; None in a docker archive.
    pub digest: Option<&'a str>,
    /// Of the plain tar.
    pub diff_id: &'a str,
    pub number: usize,
    pub count: usize,
    pub total_bytes: Option<u64>,
}

/// A layer's folder is named by its plain digest's beginning: two layers that agree in it are the same in practice, and
/// the mount options stay short.
pub fn short_layer(diff_id: &str) -> String {
    diff_id.trim_start_matches("sha256:").chars().take(24).collect()
}

impl ImageStore {
    /// Unpacks a layer unless it is there already. Nothing is kept of one whose digests are not what they should be.
    pub(super) fn ensure_layer(
        &self,
        layer: &Layer<'_>,
        open: &mut dyn FnMut() -> io::Result<Box<dyn Read + Send>>,
        progress: ProgressFn<'_>,
    ) -> Result<(), ImageError> {
        let short = short_layer(layer.diff_id);
        if self.layer_path(&short).is_dir() {
            return Ok(());
        }
        let failed = |why: String| ImageError::Layer { digest: layer.digest.unwrap_or(layer.diff_id).to_owned(), why };
        let work: Workspace = self.workspace()?;
        let folder = work.path.join("fs");
        std::fs::create_dir(&folder).map_err(ImageError::io("cannot make a layer's folder"))?;
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(ImageError::io("cannot make a layer's folder"))?;
        let mut blob = Digesting::new(open().map_err(|error| failed(error.to_string()))?, MAX_STREAM);
        let diff_id = unpack_stream(&mut blob, &folder, layer, progress).map_err(failed)?;
        let digest = blob.finish().map_err(|error| failed(error.to_string()))?;
        if layer.digest.is_some_and(|expected| expected != digest) {
            return Err(failed(format!("its digest is {digest}")));
        }
        if diff_id != layer.diff_id {
            return Err(failed(format!("its content's digest is {diff_id}, the image says {}", layer.diff_id)));
        }
        self.keep_layer(&folder, &short)
    }
}

pub(super) fn unpack_stream(
    blob: &mut dyn Read,
    folder: &Path,
    layer: &Layer<'_>,
    progress: ProgressFn<'_>,
) -> Result<String, String> {
    let mut plain = Digesting::new(decompress(blob).map_err(|error| error.to_string())?, MAX_STREAM);
    let (mut done, mut told) = (0u64, 0u64);
    /// How often progress is told: every so many bytes.
    const STEP: u64 = 1 << 20;
    let mut on_bytes = |bytes: u64| {
        done += bytes;
        if done - told >= STEP {
            told = done;
            progress(Progress {
                step: format!("layer {} of {}", layer.number, layer.count),
                done_bytes: done,
                total_bytes: layer.total_bytes,
            });
        }
    };
    unpack(&mut plain, folder, &mut on_bytes)?;
    let diff_id = plain.finish().map_err(|error| error.to_string())?;
    progress(Progress {
        step: format!("layer {} of {}", layer.number, layer.count),
        done_bytes: done,
        total_bytes: Some(done),
    });
    Ok(diff_id)
}
