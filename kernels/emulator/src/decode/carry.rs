//! Arithmetic with a carry: `.cc` leaves it, `addc`, `subc` and `madc` take it up. The flag is a predicate of its own.

use super::{Decoder, Mods, Result};
use crate::counters::Class;
use crate::exec::op::Reg;
use crate::exec::regs::{Args, Regs};
use crate::ptx::PtxError;
use crate::ptx::tree::{Instruction, Operand, Ty};

/// Bits of `Args::flags`: subtract, multiply first (and take the upper half), read the carry, leave it, signed, 64 bits.
const SUB: u64 = 1;
const MAD: u64 = 2;
const HIGH: u64 = 4;
const READS: u64 = 8;
const LEAVES: u64 = 16;
const SIGNED: u64 = 32;
const WIDE: u64 = 64;

impl Decoder<'_> {
    /// Whether the instruction is one of these; if so it was decoded.
    pub(super) fn carry(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        i: &Instruction,
        guard: Option<(u32, bool)>,
    ) -> Result<bool> {
        let leaves = mods.take("cc");
        let (mut flags, operands) = match name {
            "addc" => (READS, 3),
            "subc" => (READS | SUB, 3),
            "madc" => (READS | MAD, 4),
            "add" if leaves => (0, 3),
            "sub" if leaves => (SUB, 3),
            "mad" if leaves => (MAD, 4),
            _ if leaves => return Err(PtxError::new(i.at, format!("`{}` leaves no carry", i.opcode))),
            _ => return Ok(false),
        };
        if flags & MAD != 0 {
            let part = mods.find(|part| matches!(part, "lo" | "hi").then(|| part == "hi"));
            let Some(high) = part else {
                return Err(PtxError::new(i.at, format!("`{}` needs `.lo` or `.hi`", i.opcode)));
            };
            flags |= if high { HIGH } else { 0 };
        }
        let ty = mods.ty()?;
        if !matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) || i.operands.len() != operands {
            let message = format!("`{}` takes {operands} operands of 32 or 64 bits", i.opcode);
            return Err(PtxError::new(i.at, message));
        }
        for (set, flag) in [(leaves, LEAVES), (ty.is_signed(), SIGNED), (ty.bytes() == 8, WIDE)] {
            flags |= if set { flag } else { 0 };
        }
        let d = match &i.operands[0] {
            Operand::Name { name, negated: false } => self.register(name, i.at)?.1,
            _ => Reg::None,
        };
        let d = match d {
            Reg::R32(d, _) if ty.bytes() == 4 => d,
            Reg::R64(d) if ty.bytes() == 8 => d,
            _ => return Err(PtxError::new(i.at, "the result needs a register of the instruction's width")),
        };
        let mut sources = [0; 3];
        for (source, operand) in sources.iter_mut().zip(&i.operands[1..]) {
            *source = self.operand(operand, ty, i.at)?;
        }
        if self.carry_flag.is_none()
            && let Reg::Pred(flag) = self.fresh(Ty::Pred, i.at)?
        {
            self.carry_flag = Some(flag);
        }
        let flag = self.carry_flag.unwrap_or_default();
        let [a, b, c] = sources;
        self.alu(run, [d, flag, a, b, c], flags, guard, Class::Integer, i.at)?;
        Ok(true)
    }
}

/// The flag is in `d2`. A borrow is kept as a carry of one.
fn run(regs: &mut Regs, x: &Args, mask: u32) {
    let (mut out, mut carries) = ([0u64; 32], 0u32);
    for (lane, out) in out.iter_mut().enumerate() {
        let read = |reg: u32| {
            let reg = reg as usize;
            if x.flags & WIDE != 0 { regs.r64[reg][lane] } else { u64::from(regs.r32[reg][lane]) }
        };
        let carry = u128::from(x.flags & READS != 0 && regs.p[x.d2 as usize] >> lane & 1 != 0);
        let bits = if x.flags & WIDE != 0 { 64 } else { 32 };
        let (mut a, mut b) = (u128::from(read(x.a)), u128::from(read(x.b)));
        if x.flags & MAD != 0 {
            let extend = |value: u128| {
                if x.flags & SIGNED != 0 { (value as i128) << (128 - bits) >> (128 - bits) } else { value as i128 }
            };
            let product = extend(a).wrapping_mul(extend(b)) as u128;
            let low = (1 << bits) - 1;
            a = if x.flags & HIGH != 0 { product >> bits & low } else { product & low };
            b = u128::from(read(x.c));
        }
        let sum = if x.flags & SUB != 0 { a.wrapping_sub(b).wrapping_sub(carry) } else { a + b + carry };
        *out = sum as u64;
        carries |= u32::from(sum >> bits & 1 != 0) << lane;
    }
    if x.flags & WIDE != 0 {
        regs.put64(x.d, &out, mask);
    } else {
        regs.put32(x.d, &out.map(|value| value as u32), mask);
    }
    if x.flags & LEAVES != 0 {
        regs.put_pred(x.d2, carries, mask);
    }
}
