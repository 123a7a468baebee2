//! A reader of little-endian fields that never trusts a length before it has seen that many bytes.

use crate::error::ModelError;

/// A position in the bytes of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], ModelError> {
        let bytes = self.bytes[self.at..].get(..length).ok_or_else(|| self.truncated(what, length as u64))?;
        self.at += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items of which each takes at least `least` bytes: refused when so many cannot follow.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, ModelError> {
        let count = self.u64(what)?;
        let needed = count.saturating_mul(least as u64);
        if needed > self.remaining() as u64 {
            return Err(self.truncated(what, needed));
        }
        Ok(count as usize)
    }

    /// A string: its length, then UTF-8 without a terminator.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let length = self.count(1, what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| ModelError::Malformed {
            what: what.to_owned(),
            expected: "UTF-8 text".to_owned(),
            found: format!("another byte after {} of {length}", error.valid_up_to()),
        })
    }

    fn truncated(&self, what: &str, needed: u64) -> ModelError {
        ModelError::Truncated { what: what.to_owned(), needed, remaining: self.remaining() as u64 }
    }
}
