//! Instructions that compute on registers alone.

use super::compare::{self, comparison, type_code};
use super::flags::{COMPARE, FROM, FTZ, INTEGER, NAN, RELU, SAT, TO, XORSIGN};
use super::{Decoder, Mods, Result, floating, integer};
use crate::counters::Class;
use crate::exec::op::{Op, Reg};
use crate::exec::regs::{Exec, exec, lanes};
use crate::float::Round;
use crate::ptx::tree::{Instruction, Operand, Ty};
use crate::ptx::{Position, PtxError};

type Guard = Option<(u32, bool)>;

fn wrong<T>(i: &Instruction, what: &str) -> Result<T> {
    Err(PtxError::new(i.at, format!("`{}`: {what}", i.opcode)))
}

fn round_flags(round: Round) -> u64 {
    match round {
        Round::Nearest => 0,
        Round::Zero => 1,
        Round::Down => 2,
        Round::Up => 3,
        Round::Away => 4,
    }
}

/// Roundings to integers have names of their own.
fn integer_round(name: &str) -> Option<Round> {
    Some(match name {
        "rni" => Round::Nearest,
        "rzi" => Round::Zero,
        "rmi" => Round::Down,
        "rpi" => Round::Up,
        _ => return None,
    })
}

impl Decoder<'_> {
    /// Where a result of a type goes, and the register that is to receive it if wider.
    fn target(&mut self, operand: &Operand, ty: Ty, at: Position) -> Result<(u32, Option<Reg>)> {
        let Operand::Name { name, negated: false } = operand else {
            return Err(PtxError::new(at, "the result needs a register"));
        };
        let own = |found: Reg| match found {
            Reg::R32(reg, _) | Reg::R64(reg) | Reg::Pred(reg) => reg,
            Reg::None => 0,
        };
        if name == "_" {
            let fresh = self.fresh(ty, at)?;
            return Ok((own(fresh), None));
        }
        let (_, reg) = self.register(name, at)?;
        match (reg, ty.bytes() == 8) {
            (Reg::R32(reg, _), false) | (Reg::R64(reg), true) if ty != Ty::Pred => Ok((reg, None)),
            (Reg::Pred(reg), _) if ty == Ty::Pred => Ok((reg, None)),
            (Reg::R64(_), false) if ty != Ty::Pred && self.takes_wider => {
                let narrow = self.fresh(Ty::B32, at)?;
                Ok((own(narrow), Some(reg)))
            }
            _ => Err(PtxError::new(
                at,
                format!("`{name}` has another width or kind than the result of {} bits", 8 * ty.bytes()),
            )),
        }
    }

    /// Emits an instruction with operands of given types, and what widens its result.
    fn emit(&mut self, i: &Instruction, guard: Guard, class: Class, run: Exec, types: &[Ty], flags: u64) -> Result<()> {
        if i.operands.len() != types.len() {
            return wrong(i, &format!("takes {} operands, found {}", types.len(), i.operands.len()));
        }
        let (d, wide) = self.target(&i.operands[0], types[0], i.at)?;
        let mut regs = [d, 0, 0, 0, 0];
        for (slot, (operand, &ty)) in i.operands[1..].iter().zip(&types[1..]).enumerate() {
            let place = if slot == 3 { 1 } else { slot + 2 };
            regs[place] = self.operand(operand, ty, i.at)?;
        }
        self.alu(run, regs, flags, guard, class, i.at)?;
        if let Some(Reg::R64(wide)) = wide {
            let ty = if types[0].is_signed() { Ty::S32 } else { Ty::U32 };
            self.alu(compare::convert(Ty::U64, ty, 0), [wide, 0, d, 0, 0], 0, guard, class, i.at)?;
        }
        Ok(())
    }

    pub(super) fn arithmetic(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        i: &Instruction,
        guard: Guard,
    ) -> Result<bool> {
        match name {
            "mov" => self.mov(mods, i, guard)?,
            "setp" => self.setp(mods, i, guard)?,
            "cvt" => self.cvt(mods, i, guard)?,
            "selp" => {
                let ty = mods.ty()?;
                let [d, a, b, p] = &i.operands[..] else { return wrong(i, "takes four operands") };
                let (d, _) = self.target(d, ty, i.at)?;
                let (a, b) = (self.operand(a, ty, i.at)?, self.operand(b, ty, i.at)?);
                let (p, negated) = self.predicate(p, i.at)?;
                let run: Exec = if ty.bytes() == 8 { select64() } else { select32() };
                self.alu(run, [d, 0, a, b, p], u64::from(negated), guard, Class::Integer, i.at)?;
            }
            "set" => {
                let cmp = mods.find(comparison);
                let Some(code) = cmp else { return wrong(i, "has no comparison") };
                let flags = if mods.take("ftz") { FTZ } else { 0 };
                let (to, from) = (mods.ty()?, mods.ty()?);
                let flags = flags | code << COMPARE | type_code(to) << TO | type_code(from) << FROM;
                self.emit(i, guard, Class::Integer, compare::set, &[to, from, from], flags)?;
            }
            "testp" => {
                let names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
                let property = mods.find(|name| names.iter().position(|&known| known == name));
                let Some(property) = property else { return wrong(i, "has no property") };
                let ty = mods.ty()?;
                let flags = (property as u64) << 40 | type_code(ty) << FROM;
                self.emit(i, guard, Class::Float, compare::testp, &[Ty::Pred, ty], flags)?;
            }
            "cvta" => {
                // Windows of the generic space; global memory is at its own addresses.
                let to = mods.take("to");
                let space = mods.find(|name| match name {
                    "shared" | "shared::cta" => Some(super::SHARED_BASE),
                    "local" => Some(super::LOCAL_BASE),
                    "global" | "const" | "param" => Some(0),
                    _ => None,
                });
                let Some(base) = space else { return wrong(i, "has no state space") };
                let ty = mods.ty()?;
                let run = if to {
                    lanes!(r64 <- r64 |a; x| a.wrapping_sub(x.flags))
                } else {
                    lanes!(r64 <- r64 |a; x| a.wrapping_add(x.flags))
                };
                if ty.bytes() != 8 {
                    return wrong(i, "only 64-bit addresses are supported");
                }
                self.emit(i, guard, Class::Integer, run, &[Ty::U64, Ty::U64], base)?;
            }
            "not" | "and" | "or" | "xor" if mods.take("pred") => {
                let [d, sources @ ..] = &i.operands[..] else { return wrong(i, "has no operands") };
                let (d, _) = self.target(d, Ty::Pred, i.at)?;
                let mut regs = [d, 0, 0, 0, 0];
                let mut flags = match name {
                    "and" => 0,
                    "or" => 1,
                    "xor" => 2,
                    _ => 3,
                };
                for (slot, source) in sources.iter().take(2).enumerate() {
                    let (p, negated) = self.predicate(source, i.at)?;
                    regs[slot + 2] = p;
                    flags |= u64::from(negated) << (4 + slot);
                }
                self.alu(predicates, regs, flags, guard, Class::Integer, i.at)?;
            }
            "lop3" => {
                let ty = mods.ty()?;
                let Some(Operand::Int(table)) = i.operands.get(4) else {
                    return wrong(i, "takes three sources and a table");
                };
                let Some(run) = integer::ternary("lop3", ty) else { return wrong(i, "takes .b32") };
                let short = Instruction { operands: i.operands[..4].to_vec(), ..i.clone() };
                self.emit(&short, guard, Class::Integer, run, &[ty; 4], *table)?;
            }
            "bfi" => {
                let ty = mods.ty()?;
                let Some(run) = integer::insert(ty) else { return wrong(i, "takes .b32 or .b64") };
                self.emit(i, guard, Class::Integer, run, &[ty, ty, ty, Ty::U32, Ty::U32], 0)?;
            }
            "shf" => {
                let side = mods.find(|name| matches!(name, "l" | "r").then(|| name.to_owned()));
                let mode = mods.find(|name| matches!(name, "wrap" | "clamp").then(|| name.to_owned()));
                let (Some(side), Some(mode)) = (side, mode) else { return wrong(i, "has no direction or mode") };
                let ty = mods.ty()?;
                let Some(run) = integer::ternary(&format!("shf.{side}.{mode}"), ty) else {
                    return wrong(i, "takes .b32");
                };
                self.emit(i, guard, Class::Integer, run, &[Ty::B32; 4], 0)?;
            }
            "dp4a" => {
                let (a, b) = (mods.ty()?, mods.ty()?);
                let name = |ty: Ty| if ty == Ty::S32 { "s32" } else { "u32" };
                let Some(run) = integer::ternary(&format!("dp4a.{}.{}", name(a), name(b)), Ty::U32) else {
                    return wrong(i, "takes .u32 and .s32");
                };
                self.emit(i, guard, Class::Integer, run, &[Ty::U32; 4], 0)?;
            }
            "isspacep" => {
                let window = mods.find(|name| match name {
                    "shared" | "shared::cta" => Some(super::SHARED_BASE >> 40),
                    "local" => Some(super::LOCAL_BASE >> 40),
                    "param" => Some(super::PARAM_BASE >> 40),
                    "global" => Some(0),
                    _ => None,
                });
                let Some(window) = window else { return wrong(i, "has no state space") };
                let run = lanes!(p <- r64 |a; x| u32::from(
                    if x.flags == 0 { !(1..=3).contains(&(a >> 40)) } else { a >> 40 == x.flags }));
                self.emit(i, guard, Class::Integer, run, &[Ty::Pred, Ty::U64], window)?;
            }
            "createpolicy" => {
                mods.list.clear();
                let (d, _) = self.target(&i.operands[0], Ty::U64, i.at)?;
                let zero = self.literal64(0, i.at)?;
                self.alu(lanes!(r64 <- r64 |a| a), [d, 0, zero, 0, 0], 0, guard, Class::Integer, i.at)?;
            }
            _ => return self.plain(name, mods, i, guard),
        }
        Ok(true)
    }

    /// Instructions whose operands all have the instruction's type, or its double width.
    fn plain(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<bool> {
        let part = mods.find(|name| matches!(name, "lo" | "hi" | "wide").then(|| name.to_owned()));
        let mut flags = mods.find(Round::parse).map_or(0, round_flags);
        for (modifier, flag) in
            [("ftz", FTZ), ("sat", SAT), ("NaN", NAN), ("xorsign", XORSIGN), ("relu", RELU), ("abs", 0)]
        {
            if mods.take(modifier) {
                flags |= flag;
            }
        }
        if name == "mul24" || name == "mad24" {
            return Ok(false);
        }
        match name {
            "div" => drop(mods.take("approx") || mods.take("full")),
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => drop(mods.take("approx")),
            _ => {}
        }
        let part = part.or_else(|| (name == "bfind" && mods.take("shiftamt")).then(|| "shiftamt".to_owned()));
        let Some(ty) = mods.find(Ty::parse) else { return Ok(false) };
        if flags & RELU != 0 && !matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2) {
            return wrong(i, "`.relu` is for f16 and bf16");
        }
        let full = match &part {
            Some(part) => format!("{name}.{part}"),
            None => name.to_owned(),
        };
        let operands = i.operands.len();
        if ty.is_float() {
            let plain = flags == 0;
            let run = match (full.as_str(), operands) {
                ("fma" | "mad", 4) => floating::fma(ty, plain),
                (_, 3) => floating::binary(&full, ty, plain),
                (_, 2) => floating::unary(&full, ty),
                _ => None,
            };
            let Some(run) = run else { return Ok(false) };
            if ty == Ty::F64 && flags & 7 != 0 {
                return wrong(i, "f64 arithmetic is supported with `.rn` only");
            }
            self.emit(i, guard, Class::Float, run, &vec![ty; operands], flags)?;
            return Ok(true);
        }
        if flags & !SAT != 0 {
            return Ok(false);
        }
        if flags & SAT != 0 {
            let run: Exec = match full.as_str() {
                "add" if ty == Ty::S32 => lanes!(r32 <- r32 r32 |a, b| (a as i32).saturating_add(b as i32) as u32),
                "sub" if ty == Ty::S32 => lanes!(r32 <- r32 r32 |a, b| (a as i32).saturating_sub(b as i32) as u32),
                _ => return Ok(false),
            };
            self.emit(i, guard, Class::Integer, run, &[ty; 3], 0)?;
            return Ok(true);
        }
        let wide = if ty.bytes() == 2 { Ty::B32 } else { Ty::B64 };
        let (run, types) = match operands {
            2 => {
                let to = if matches!(name, "popc" | "clz" | "bfind") { Ty::U32 } else { ty };
                (integer::unary(&full, ty), vec![to, ty])
            }
            3 => {
                let types = match full.as_str() {
                    "shl" | "shr" => vec![ty, ty, Ty::U32],
                    "mul.wide" => vec![if ty.is_signed() && wide == Ty::B32 { Ty::S32 } else { wide }, ty, ty],
                    _ => vec![ty; 3],
                };
                (integer::binary(&full, ty), types)
            }
            4 => {
                let types = match full.as_str() {
                    "mad.wide" => vec![wide, ty, ty, wide],
                    "bfe" => vec![ty, ty, Ty::U32, Ty::U32],
                    _ => vec![ty; 4],
                };
                (integer::ternary(&full, ty), types)
            }
            _ => (None, vec![]),
        };
        let Some(run) = run else { return Ok(false) };
        self.emit(i, guard, Class::Integer, run, &types, 0)?;
        Ok(true)
    }

    fn mov(&mut self, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<()> {
        let ty = mods.ty()?;
        let [d, a] = &i.operands[..] else { return wrong(i, "takes two operands") };
        match (d, a) {
            (Operand::List(parts), _) => {
                // Unpack: the source is cut into equal parts, lowest first.
                let source = self.operand(a, ty, i.at)?;
                let width = 8 * ty.bytes() / (parts.len().max(1) as u32);
                for (index, part) in parts.iter().enumerate() {
                    if matches!(part, Operand::Name { name, .. } if name == "_") {
                        continue;
                    }
                    let part_ty = if width == 32 { Ty::B32 } else { Ty::B16 };
                    let (d, _) = self.target(part, part_ty, i.at)?;
                    let run = if ty.bytes() == 8 {
                        lanes!(r32 <- r64 |a; x| (a >> (x.flags & 63)) as u32 & (x.flags >> 8) as u32)
                    } else {
                        lanes!(r32 <- r32 |a; x| (a >> (x.flags & 31)) & (x.flags >> 8) as u32)
                    };
                    let mask = if width == 32 { u64::from(u32::MAX) } else { (1 << width) - 1 };
                    let flags = u64::from(index as u32 * width) | mask << 8;
                    self.alu(run, [d, 0, source, 0, 0], flags, guard, Class::Integer, i.at)?;
                }
            }
            (_, Operand::List(parts)) => {
                let width = 8 * ty.bytes() / (parts.len().max(1) as u32);
                let (d, _) = self.target(d, ty, i.at)?;
                let part_ty = match width {
                    32 => Ty::B32,
                    16 => Ty::B16,
                    _ => Ty::B8,
                };
                let sources: Vec<u32> =
                    parts.iter().map(|part| self.source32(part, part_ty, i.at)).collect::<Result<_>>()?;
                match (ty.bytes(), &sources[..]) {
                    (8, &[a, b]) => {
                        let run = lanes!(r64 <- r32 r32 |a, b| u64::from(a) | u64::from(b) << 32);
                        self.alu(run, [d, 0, a, b, 0], 0, guard, Class::Integer, i.at)?;
                    }
                    (4, &[a, b]) => {
                        let run = lanes!(r32 <- r32 r32 |a, b| a & 0xffff | b << 16);
                        self.alu(run, [d, 0, a, b, 0], 0, guard, Class::Integer, i.at)?;
                    }
                    (4, &[a, b, c, e]) => {
                        self.alu(pack4, [d, e, a, b, c], 8, guard, Class::Integer, i.at)?;
                    }
                    (8, &[a, b, c, e]) => {
                        self.alu(pack4, [d, e, a, b, c], 16, guard, Class::Integer, i.at)?;
                    }
                    _ => return wrong(i, "packs two or four parts"),
                }
            }
            (_, Operand::Name { name, .. }) if name.starts_with("%clock") || name.starts_with("%globaltimer") => {
                let (_, reg) = match d {
                    Operand::Name { name, .. } => self.register(name, i.at)?,
                    _ => return wrong(i, "needs a register"),
                };
                self.push(Op::Clock { d: reg }, guard, Class::Integer, i.at)?;
            }
            _ if ty == Ty::Pred => {
                let (d, _) = self.target(d, ty, i.at)?;
                let (a, negated) = match a {
                    Operand::Int(value) => {
                        // A literal predicate is `x or not x`, or its opposite.
                        let flags = if *value != 0 { 1 | 1 << 5 } else { 1 << 5 };
                        self.alu(predicates, [d, 0, d, d, 0], flags, guard, Class::Integer, i.at)?;
                        return Ok(());
                    }
                    _ => self.predicate(a, i.at)?,
                };
                self.alu(predicates, [d, 0, a, a, 0], u64::from(negated) * 0b11_0000, guard, Class::Integer, i.at)?;
            }
            _ => {
                let run: Exec = if ty.bytes() == 8 { lanes!(r64 <- r64 |a| a) } else { lanes!(r32 <- r32 |a| a) };
                self.emit(i, guard, Class::Integer, run, &[ty, ty], 0)?;
            }
        }
        Ok(())
    }

    fn setp(&mut self, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<()> {
        let Some(code) = mods.find(comparison) else { return wrong(i, "has no comparison") };
        let boolean = mods.find(|name| match name {
            "and" => Some(1u64),
            "or" => Some(2),
            "xor" => Some(3),
            _ => None,
        });
        let ftz = if mods.take("ftz") { FTZ } else { 0 };
        let ty = mods.ty()?;
        let [d, a, b, rest @ ..] = &i.operands[..] else { return wrong(i, "takes three operands") };
        let flags = ftz | code << COMPARE | type_code(ty) << FROM;
        let (a, b) = (self.operand(a, ty, i.at)?, self.operand(b, ty, i.at)?);
        if let (Operand::Name { .. }, None) = (d, boolean) {
            let (d, _) = self.target(d, Ty::Pred, i.at)?;
            let Some(run) = compare::setp(code, ty, ftz != 0) else { return wrong(i, "does not compare this type") };
            return self.alu(run, [d, 0, a, b, 0], flags, guard, Class::Integer, i.at);
        }
        let (d, d2, second) = match d {
            Operand::Pair(p, q) => {
                let name = |name: &String| Operand::Name { name: name.clone(), negated: false };
                (self.target(&name(p), Ty::Pred, i.at)?.0, self.target(&name(q), Ty::Pred, i.at)?.0, 1 << 43)
            }
            _ => (self.target(d, Ty::Pred, i.at)?.0, 0, 0),
        };
        let (c, negated) = match rest.first() {
            Some(operand) => self.predicate(operand, i.at)?,
            None => (d, false),
        };
        let flags = flags | boolean.unwrap_or(0) << 40 | u64::from(negated) << 42 | second;
        self.alu(compare::setp_with, [d, d2, a, b, c], flags, guard, Class::Integer, i.at)
    }

    fn cvt(&mut self, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<()> {
        let mut flags = mods.find(Round::parse).map_or(0, round_flags);
        if let Some(round) = mods.find(integer_round) {
            flags |= round_flags(round) | INTEGER;
        }
        for (modifier, flag) in [("ftz", FTZ), ("sat", SAT), ("satfinite", SAT), ("relu", RELU)] {
            if mods.take(modifier) {
                flags |= flag;
            }
        }
        let (to, from) = (mods.ty()?, mods.ty()?);
        if i.operands.len() == 3 {
            let format = match to {
                Ty::F16x2 => 0u64,
                Ty::Bf16x2 => 1,
                Ty::E4m3x2 => 2,
                Ty::E5m2x2 => 3,
                _ => return wrong(i, "does not convert two values"),
            };
            return self.emit(i, guard, Class::Convert, compare::convert_pair, &[to, from, from], flags | format << 40);
        }
        if to == Ty::F16x2 {
            let format = u64::from(from == Ty::E5m2x2);
            return self.emit(i, guard, Class::Convert, compare::widen_pair, &[to, from], format << 40);
        }
        if matches!(to, Ty::Pred | Ty::B128) || matches!(from, Ty::Pred | Ty::B128) || to == Ty::Bf16x2 {
            return wrong(i, "converts between types that have no conversion");
        }
        if from.is_float() && !to.is_float() && flags & INTEGER == 0 {
            return wrong(i, "needs `.rni`, `.rzi`, `.rmi` or `.rpi`");
        }
        let flags = flags | type_code(to) << TO | type_code(from) << FROM;
        let run = compare::convert(to, from, flags & 0xffff);
        self.emit(i, guard, Class::Convert, run, &[to, from], flags)?;
        // A register of 16 bits keeps zeros above them.
        if to.bytes() < 4 {
            let (reg, bytes) = match &i.operands[0] {
                Operand::Name { name, .. } => match self.register(name, i.at)?.1 {
                    Reg::R32(reg, bytes) => (reg, bytes),
                    _ => return Ok(()),
                },
                _ => return Ok(()),
            };
            if bytes == 2 && to.is_signed() {
                self.alu(lanes!(r32 <- r32 |a| a & 0xffff), [reg, 0, reg, 0, 0], 0, guard, Class::Convert, i.at)?;
            }
        }
        Ok(())
    }
}

/// `selp` on 32 bits.
fn select32() -> Exec {
    exec!(|regs, x, mask| {
        let p = regs.p[x.c as usize] ^ if x.flags != 0 { u32::MAX } else { 0 };
        let (a, b) = (&regs.r32[x.a as usize], &regs.r32[x.b as usize]);
        let out = std::array::from_fn(|lane| if p >> lane & 1 != 0 { a[lane] } else { b[lane] });
        regs.put32(x.d, &out, mask);
    })
}

/// `selp` on 64 bits.
fn select64() -> Exec {
    exec!(|regs, x, mask| {
        let p = regs.p[x.c as usize] ^ if x.flags != 0 { u32::MAX } else { 0 };
        let (a, b) = (&regs.r64[x.a as usize], &regs.r64[x.b as usize]);
        let out = std::array::from_fn(|lane| if p >> lane & 1 != 0 { a[lane] } else { b[lane] });
        regs.put64(x.d, &out, mask);
    })
}

/// Logic on predicates: the function in the low bits, negations of the operands in bits 4 and 5.
fn predicates(regs: &mut crate::exec::regs::Regs, x: &crate::exec::regs::Args, mask: u32) {
    let read = |p: u32, bit: u32| regs.p[p as usize] ^ if x.flags >> bit & 1 != 0 { u32::MAX } else { 0 };
    let (a, b) = (read(x.a, 4), read(x.b, 5));
    let bits = match x.flags & 3 {
        0 => a & b,
        1 => a | b,
        2 => a ^ b,
        _ => !a,
    };
    regs.put_pred(x.d, bits, mask);
}

/// Four parts of 8 bits into 32, or of 16 into 64.
fn pack4(regs: &mut crate::exec::regs::Regs, x: &crate::exec::regs::Args, mask: u32) {
    let parts = [x.a, x.b, x.c, x.d2].map(|reg| regs.r32[reg as usize]);
    let part_mask = (1u64 << x.flags) - 1;
    let out: [u64; 32] = std::array::from_fn(|lane| {
        (0..4).fold(0, |sum, part| sum | (u64::from(parts[part][lane]) & part_mask) << (x.flags * part as u64))
    });
    if x.flags == 16 {
        regs.put64(x.d, &out, mask);
    } else {
        regs.put32(x.d, &out.map(|value| value as u32), mask);
    }
}
