//! Modifiers of arithmetic instructions as bits of `Args::flags`; the low three bits are the rounding.

pub(crate) const FTZ: u64 = 1 << 3;
pub(crate) const SAT: u64 = 1 << 4;
pub(crate) const NAN: u64 = 1 << 5;
pub(crate) const XORSIGN: u64 = 1 << 6;
pub(crate) const RELU: u64 = 1 << 7;
/// Rounds to an integer in the direction of the low bits.
pub(crate) const INTEGER: u64 = 1 << 8;
/// Where a conversion's types lie.
pub(crate) const FROM: u32 = 16;
pub(crate) const TO: u32 = 24;
/// Where a comparison lies.
pub(crate) const COMPARE: u32 = 32;
