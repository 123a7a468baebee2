//! Plain values to bytes and back, for what the plan's small sections hold.
//!
//! Numbers have their fixed width, little-endian. A list is its count as u64 and then its items, a string is a list of
//! UTF-8 bytes, an option is a byte 0 or 1 and then the value. Each value has exactly one spelling: reading what was
//! written and writing it again gives the same bytes. No count is believed before that many of the smallest items fit
//! into the bytes that remain, and bytes left over at the end are an error.

use std::convert::Infallible;

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("byte {at}: expected {needed} more bytes, found {remaining}")]
    Truncated {
        /// Where reading stood.
        at: usize,
        /// Bytes wanted.
        needed: usize,
        /// Bytes there.
        remaining: usize,
    },
    /// A list claims more items than there are bytes for.
    #[error("byte {at}: a list of {count} items of at least {size} bytes cannot fit the {remaining} bytes that follow")]
    Count {
        /// Where reading stood.
        at: usize,
        /// The claimed count.
        count: u64,
        /// Least bytes of one item.
        size: usize,
        /// Bytes there.
        remaining: usize,
    },
    /// A number stands for no variant.
    #[error("byte {at}: {found} is no {what}")]
    Tag {
        /// Where reading stood.
        at: usize,
        /// What was expected.
        what: &'static str,
        /// The number found.
        found: u8,
    },
    /// A string is not UTF-8.
    #[error("byte {at}: the string is not UTF-8")]
    Utf8 {
        /// Where the string starts.
        at: usize,
    },
    /// Bytes follow the value.
    #[error("expected the end, found {bytes} more bytes")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The text is not the JSON of a manifest.
    #[error("not the JSON of a manifest: {0}")]
    Json(String),
    /// The values are well formed but contradict each other.
    #[error("{0}")]
    Inconsistent(String),
}

impl From<Infallible> for DecodeError {
    fn from(never: Infallible) -> DecodeError {
        match never {}
    }
}

/// A value with a binary form.
pub trait Codec: Sized {
    /// The fewest bytes that a value takes; never zero.
    const MIN_BYTES: usize;

    /// Appends the value.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads a value.
    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError>;
}

/// The bytes of a value.
pub fn encode<T: Codec>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

/// The value that takes up all of `bytes`.
pub fn decode<T: Codec>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_all(bytes, T::decode)
}

/// What `read` makes of `bytes`, all of which it takes up.
pub(crate) fn decode_all<T>(
    bytes: &[u8],
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut input = Decoder { bytes, at: 0 };
    let value = read(&mut input)?;
    match input.remaining() {
        0 => Ok(value),
        bytes => Err(DecodeError::Trailing { bytes }),
    }
}

/// Bytes being read.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Where reading stands.
    pub fn at(&self) -> usize {
        self.at
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        let taken =
            rest.get(..count).ok_or(DecodeError::Truncated { at: self.at, needed: count, remaining: rest.len() })?;
        self.at += count;
        Ok(taken)
    }

    /// The count of a list whose items take at least `size` bytes each.
    pub fn count(&mut self, size: usize) -> Result<usize, DecodeError> {
        let at = self.at;
        let count = u64::decode(self)?;
        let remaining = self.remaining();
        usize::try_from(count)
            .ok()
            .filter(|count| count.checked_mul(size).is_some_and(|bytes| bytes <= remaining))
            .ok_or(DecodeError::Count { at, count, size, remaining })
    }

    /// A list of bytes, without a call per byte.
    pub fn byte_list(&mut self) -> Result<&'a [u8], DecodeError> {
        let count = self.count(1)?;
        self.take(count)
    }
}

/// Appends a list of bytes.
pub fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(bytes);
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Codec for $number {
            const MIN_BYTES: usize = size_of::<$number>();

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<$number>()];
                bytes.copy_from_slice(input.take(size_of::<$number>())?);
                Ok(<$number>::from_le_bytes(bytes))
            }
        }
    )*};
}

numbers!(u8, u32, u64);

impl Codec for bool {
    const MIN_BYTES: usize = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let at = input.at;
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::Tag { at, what: "truth value", found }),
        }
    }
}

impl Codec for String {
    const MIN_BYTES: usize = u64::MIN_BYTES;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_bytes(self.as_bytes(), out);
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let at = input.at;
        let bytes = input.byte_list()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8 { at })?.to_owned())
    }
}

impl<T: Codec> Codec for Option<T> {
    const MIN_BYTES: usize = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::decode(input)? { Some(T::decode(input)?) } else { None })
    }
}

impl<T: Codec> Codec for Vec<T> {
    const MIN_BYTES: usize = u64::MIN_BYTES;

    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        for item in self {
            item.encode(out);
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = input.count(T::MIN_BYTES)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(T::decode(input)?);
        }
        Ok(items)
    }
}

impl<T: Codec> Codec for [T; 2] {
    const MIN_BYTES: usize = 2 * T::MIN_BYTES;

    fn encode(&self, out: &mut Vec<u8>) {
        self[0].encode(out);
        self[1].encode(out);
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok([T::decode(input)?, T::decode(input)?])
    }
}

/// Implements [`Codec`] for a struct: its fields in the order given.
macro_rules! fields {
    ($name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        impl $crate::codec::Codec for $name {
            const MIN_BYTES: usize = 0 $(+ <$kind as $crate::codec::Codec>::MIN_BYTES)+;

            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)+
            }

            fn decode(input: &mut $crate::codec::Decoder<'_>) -> Result<Self, $crate::codec::DecodeError> {
                Ok($name { $($field: <$kind as $crate::codec::Codec>::decode(input)?),+ })
            }
        }
    };
}
/// Implements [`Codec`] for an enum: a tag byte, then the fields of the variant. A tuple variant's field is named `0`.
macro_rules! variants {
    ($name:ident, $what:literal, { $($tag:literal => $variant:ident { $($field:tt = $value:ident: $kind:ty),* }),+ $(,)? }) => {
        impl $crate::codec::Codec for $name {
            const MIN_BYTES: usize = 1;

            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant { $($field: $value),* } => {
                        out.push($tag);
                        $($crate::codec::Codec::encode($value, out);)*
                    })+
                }
            }

            fn decode(input: &mut $crate::codec::Decoder<'_>) -> Result<Self, $crate::codec::DecodeError> {
                let at = input.at();
                match <u8 as $crate::codec::Codec>::decode(input)? {
                    $($tag => Ok($name::$variant { $($field: <$kind as $crate::codec::Codec>::decode(input)?),* }),)+
                    found => Err($crate::codec::DecodeError::Tag { at, what: $what, found }),
                }
            }
        }
    };
}

pub(crate) use {fields, variants};
