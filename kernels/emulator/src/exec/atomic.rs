//! Atomics and reductions on memory.

use super::cta::Cta;
use super::memory::{Place, misaligned, place};
use super::op::{Access, AtomOp, Reg};
use super::regs::LANES;
use super::warp::Warp;
use crate::decode::floating::add_bits;
use crate::fault::Wrong;
use crate::ptx::tree::Ty;

impl Cta<'_> {
    /// Read-modify-write of each lane in turn, atomic against other CTAs.
    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        op: AtomOp,
        ty: Ty,
        [d, b, c]: [Reg; 3],
        mask: u32,
    ) -> Result<(), Wrong> {
        let addresses = Self::addresses(warp, access);
        self.count_access(access.space, &addresses, access.bytes, mask, true);
        let mut out = [0u64; LANES];
        for lane in Warp::lanes(mask) {
            let address = addresses[lane];
            if !address.is_multiple_of(u64::from(access.bytes)) {
                return Err(misaligned(address, access.bytes, lane));
            }
            let place = place(access.space, address);
            let (b, c) = (Self::get(warp, b, lane), Self::get(warp, c, lane));
            let flushes = matches!(place, Place::Global(_));
            let f = |old: u64| combine(op, ty, old, b, c, flushes);
            let strong = access.order.is_strong_at(place);
            self.publish(place, access.order);
            self.watch(place);
            out[lane] = match (place, access.bytes) {
                (Place::Global(at), 1..=4) => {
                    let index = self.region(at, access.bytes, lane)?;
                    let region = &self.grid.regions[index];
                    self.check_update(region, at, access.bytes, strong, lane)?;
                    let (shift, width) = (8 * (at & 3) as u32, 8 * access.bytes);
                    let field = if width == 32 { u32::MAX } else { ((1 << width) - 1) << shift };
                    let (old, changed) = region.update(at & !3, |old| {
                        let new = (f(u64::from((old & field) >> shift)) as u32) << shift;
                        old & !field | new & field
                    });
                    self.writes += u64::from(changed);
                    u64::from((old & field) >> shift)
                }
                (_, 8) => {
                    let guard = self.grid.wide_atomics.lock();
                    let low = self.read(warp, place, 4, strong, lane)?;
                    let upper = self.upper_half(place, true);
                    let high = self.read(warp, upper, 4, strong, lane)?;
                    let old = u64::from(low) | u64::from(high) << 32;
                    let new = f(old);
                    self.write(warp, place, 4, new as u32, strong, lane)?;
                    self.write(warp, upper, 4, (new >> 32) as u32, strong, lane)?;
                    drop(guard);
                    old
                }
                _ => {
                    let old = u64::from(self.read(warp, place, access.bytes, true, lane)?);
                    self.write(warp, place, access.bytes, f(old) as u32, true, lane)?;
                    old
                }
            };
            self.observe(warp.index, place, access.order);
            self.publish_shared(warp.index, place, access.order);
        }
        Self::put(warp, d, &out, mask);
        Ok(())
    }
}

/// What an atomic leaves in memory.
pub(crate) fn combine(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64, flushes: bool) -> u64 {
    let signed = |value: u64| if ty.bytes() == 8 { value as i64 } else { i64::from(value as i32) };
    match op {
        AtomOp::Add if ty.is_float() => add_bits(ty, old, b, flushes),
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::Min if ty.is_signed() => signed(old).min(signed(b)) as u64,
        AtomOp::Max if ty.is_signed() => signed(old).max(signed(b)) as u64,
        AtomOp::Min => old.min(b),
        AtomOp::Max => old.max(b),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
