//! XDR (RFC 4506): big-endian words, byte strings padded to four bytes. Reading never allocates and never trusts a
//! length: everything is a view of the bytes that are really there (X4).

/// The bytes are not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is cut short or malformed")]
pub struct Garbage;

/// Reads a message from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// That many bytes as they are, without padding.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Garbage> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Garbage)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        self.take(N)?.try_into().map_err(|_| Garbage)
    }

    /// An unsigned int.
    pub fn u32(&mut self) -> Result<u32, Garbage> {
        self.array().map(u32::from_be_bytes)
    }

    /// An unsigned hyper.
    pub fn u64(&mut self) -> Result<u64, Garbage> {
        self.array().map(u64::from_be_bytes)
    }

    /// A bool; anything but 0 is true, as peers are generous here.
    pub fn bool(&mut self) -> Result<bool, Garbage> {
        self.u32().map(|word| word != 0)
    }

    /// Opaque bytes of a fixed length.
    pub fn fixed(&mut self, length: usize) -> Result<&'a [u8], Garbage> {
        let bytes = self.take(length)?;
        self.take(padding(length))?;
        Ok(bytes)
    }

    /// Opaque bytes or a string, of at most `limit` bytes.
    pub fn opaque(&mut self, limit: usize) -> Result<&'a [u8], Garbage> {
        let length = usize::try_from(self.u32()?).map_err(|_| Garbage)?;
        if length > limit {
            return Err(Garbage);
        }
        self.fixed(length)
    }
}

/// Writes a message.
#[derive(Clone, Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// An unsigned int.
    pub fn u32(&mut self, word: u32) -> &mut Self {
        self.0.extend_from_slice(&word.to_be_bytes());
        self
    }

    /// An unsigned hyper.
    pub fn u64(&mut self, word: u64) -> &mut Self {
        self.0.extend_from_slice(&word.to_be_bytes());
        self
    }

    /// A bool.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u32(value.into())
    }

    /// Opaque bytes of a fixed length.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len() + padding(bytes.len()), 0);
        self
    }

    /// Opaque bytes or a string. Callers bound them far below 4 GiB.
    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.fixed(bytes)
    }
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new();
        writer.u32(7).u64(1 << 40).bool(true).opaque(b"abcde").fixed(b"xyz");
        assert_eq!(writer.0.len(), 4 + 8 + 4 + 4 + 8 + 4);
        let mut reader = Reader::new(&writer.0);
        assert_eq!((reader.u32(), reader.u64(), reader.bool()), (Ok(7), Ok(1 << 40), Ok(true)));
        assert_eq!((reader.opaque(5), reader.fixed(3)), (Ok(&b"abcde"[..]), Ok(&b"xyz"[..])));
        assert_eq!(reader.u32(), Err(Garbage));
    }

    #[test]
    fn a_length_beyond_the_message_or_the_limit_is_garbage_x4() {
        let mut huge = Writer::new();
        huge.u32(u32::MAX);
        assert_eq!(Reader::new(&huge.0).opaque(usize::MAX), Err(Garbage));
        let mut long = Writer::new();
        long.opaque(b"abcdef");
        assert_eq!(Reader::new(&long.0).opaque(5), Err(Garbage));
        assert_eq!(Reader::new(&long.0[..9]).opaque(6), Err(Garbage));
    }
}
