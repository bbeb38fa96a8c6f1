//! SPDY/3 header blocks: name and value pairs, compressed with one zlib stream per direction for the connection's whole
//! life, that starts from a dictionary both sides know.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// A header block after decompression (bytes).
pub const MAX_HEADER_BLOCK: usize = 64 * 1024;
/// Pairs in a header block.
pub const MAX_HEADERS: usize = 256;

/// The dictionary's words, each preceded by its length as 32 bits, then [`TAIL`] as it stands (SPDY/3, section
/// 2.6.10.1).
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age \
    allow authorization cache-control connection content-base content-encoding content-language content-length \
        content-location \
    content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
        if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range \
        referer retry-after \
    server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
        version \
    HTTP/1.1 url public set-cookie keep-alive origin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative \
    Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 \
        Internal Server \
    Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, \
        Tue, Wed, Thu, \
    Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        out.extend_from_slice(&(word.len() as u32).to_be_bytes());
        out.extend(word.bytes().map(|byte| if byte == b'_' { b' ' } else { byte }));
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

/// Why a header block cannot be read. The connection cannot go on after it: its compression state is lost.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("header block is not valid zlib")]
    Compression,
    #[error("header block of more than {MAX_HEADER_BLOCK} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    #[error("header block is malformed")]
    Malformed,
}

/// Names (lower case) and values in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a header; names are compared without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
        let count = take_length(&mut block)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::TooLarge);
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut block)?;
            headers.push((name, take_text(&mut block)?));
        }
        if block.is_empty() { Ok(Headers(headers)) } else { Err(HeaderError::Malformed) }
    }

    fn block(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}

fn take_length(block: &mut &[u8]) -> Result<usize, HeaderError> {
    let (bytes, rest) = block.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn take_text(block: &mut &[u8]) -> Result<String, HeaderError> {
    let length = take_length(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
}

/// The peer's header blocks. Every block has to pass through here in order, also those of refused streams.
pub struct HeaderDecoder {
    inflate: Decompress,
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self { inflate: Decompress::new(true) }
    }
}

impl HeaderDecoder {
    /// One block as it came in a frame.
    ///
    /// # Errors
    /// A block that is not zlib, too large, or not a list of pairs.
    pub fn decode(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = Vec::new();
        let mut rest = compressed;
        let mut piece = [0u8; 4096];
        loop {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress(rest, &mut piece, FlushDecompress::Sync);
            rest = rest.get((self.inflate.total_in() - read) as usize..).unwrap_or_default();
            let produced = (self.inflate.total_out() - written) as usize;
            block.extend_from_slice(piece.get(..produced).unwrap_or_default());
            if block.len() > MAX_HEADER_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            match result {
                // The first block of a connection asks for the dictionary.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
                Ok(_) if produced < piece.len() => break,
                Ok(_) => {}
            }
        }
        if rest.is_empty() { Headers::parse(&block) } else { Err(HeaderError::Compression) }
    }
}

/// Our header blocks.
pub struct HeaderEncoder {
    deflate: Compress,
}

impl Default for HeaderEncoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // Fails only after data was compressed.
        let _ = deflate.set_dictionary(&dictionary());
        Self { deflate }
    }
}

impl HeaderEncoder {
    /// A block for a frame.
    pub fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.block();
        let mut out = Vec::with_capacity(block.len() + 128);
        let mut rest = block.as_slice();
        loop {
            let read = self.deflate.total_in();
            // Compressing into memory cannot fail: the flush mode is a valid one.
            let _ = self.deflate.compress_vec(rest, &mut out, FlushCompress::Sync);
            rest = rest.get((self.deflate.total_in() - read) as usize..).unwrap_or_default();
            if rest.is_empty() && out.len() < out.capacity() {
                return out;
            }
            out.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_dictionary_is_spdy_3s() {
        // Its Adler-32 is what every SPDY/3 header block begins with.
        let block = HeaderEncoder::default().encode(&headers(&[("a", "b")]));
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(block.get(2..6), Some(&[0xe3, 0xc6, 0xa7, 0xc2][..]));
    }

    #[test]
    fn blocks_pass_through_one_stream_in_order() {
        let (mut encoder, mut decoder) = (HeaderEncoder::default(), HeaderDecoder::default());
        let long = "x".repeat(20_000);
        for list in
            [headers(&[("streamtype", "error")]), headers(&[]), headers(&[("streamtype", "stdin"), ("long", &long)])]
        {
            assert_eq!(decoder.decode(&encoder.encode(&list)), Ok(list));
        }
    }

    #[test]
    fn bombs_and_lies_are_refused_x4() {
        let bomb = headers(&[("a", &"x".repeat(MAX_HEADER_BLOCK))]);
        assert_eq!(
            HeaderDecoder::default().decode(&HeaderEncoder::default().encode(&bomb)),
            Err(HeaderError::TooLarge)
        );
        assert_eq!(HeaderDecoder::default().decode(b"not zlib at all"), Err(HeaderError::Compression));
        assert_eq!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]), Err(HeaderError::Malformed));
        assert_eq!(Headers::parse(&[0xff, 0xff, 0xff, 0xff]), Err(HeaderError::TooLarge));
    }
}
