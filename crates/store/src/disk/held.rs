//! Changes to a file that are kept in memory, to be made later or never.
//!
//! While a file is being opened it is only read: what the engine would change (its repair after a crash drops the
//! newest commit when a page of it is damaged) is seen by the engine, and made only after everything was found sound.
//! So a damaged file stays as it was found (A10).

/// What was asked for while held, in order; the file as it would be by then.
#[derive(Debug)]
pub(super) struct Held {
    pub calls: Vec<Call>,
    /// As it would be.
    pub length: u64,
    /// Of the file itself, so many bytes are to be seen.
    kept: u64,
}

#[derive(Debug)]
pub(super) enum Call {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

impl Held {
    pub fn new(length: u64) -> Self {
        Self { calls: Vec::new(), length, kept: length }
    }

    pub fn set_length(&mut self, length: u64) {
        self.length = length;
        self.kept = self.kept.min(length);
        // What is cut off must not come back when the file grows again.
        for call in &mut self.calls {
            if let Call::Write(offset, bytes) = call {
                bytes.truncate(usize::try_from(length.saturating_sub(*offset)).unwrap_or(usize::MAX));
            }
        }
        self.calls.push(Call::Length(length));
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.length = self.length.max(offset.saturating_add(bytes.len() as u64));
        self.calls.push(Call::Write(offset, bytes.to_vec()));
    }

    /// How many bytes of a read at `offset` are to be taken from the file; the rest begins as zeros.
    pub fn file_part(&self, offset: u64, length: usize) -> usize {
        usize::try_from(self.kept.saturating_sub(offset)).unwrap_or(usize::MAX).min(length)
    }

    /// Puts what was written over what was read at `offset`.
    pub fn overlay(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        for call in &self.calls {
            let Call::Write(at, bytes) = call else { continue };
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                let (into, of) = ((from - offset) as usize, (from - at) as usize);
                let count = (to - from) as usize;
                out[into..into + count].copy_from_slice(&bytes[of..of + count]);
            }
        }
    }
}
