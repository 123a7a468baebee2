//! Instructions that reach beyond a lane's registers: memory, other lanes, barriers, tensor cores.

use super::{Decoder, Mods, Result};
use crate::counters::Class;
use crate::exec::mma;
use crate::exec::op::{Access, AtomOp, Bar, BarKind, Element, Members, Mma, Op, Order, Reg, Shuffle, Vote};
use crate::ptx::PtxError;
use crate::ptx::tree::{Instruction, Operand, Space, Ty};

type Guard = Option<(u32, bool)>;

fn wrong<T>(i: &Instruction, what: &str) -> Result<T> {
    Err(PtxError::new(i.at, format!("`{}`: {what}", i.opcode)))
}

fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

impl Decoder<'_> {
    fn reg(&mut self, operand: &Operand, i: &Instruction) -> Result<Reg> {
        match operand {
            Operand::Name { name, negated: false } if name == "_" => Ok(Reg::None),
            Operand::Name { name, negated: false } => Ok(self.register(name, i.at)?.1),
            _ => wrong(i, "expected a register"),
        }
    }

    fn reg32(&mut self, operand: &Operand, i: &Instruction) -> Result<u32> {
        match self.reg(operand, i)? {
            Reg::R32(reg, _) => Ok(reg),
            _ => wrong(i, "expected a register of 32 bits"),
        }
    }

    /// The mask of a collective.
    fn members(&mut self, operand: &Operand, i: &Instruction) -> Result<Members> {
        Ok(match operand {
            Operand::Int(mask) => Members::Mask(*mask as u32),
            _ => Members::Reg(self.source32(operand, Ty::B32, i.at)?),
        })
    }

    fn access(&mut self, operand: &Operand, space: Space, bytes: u32, i: &Instruction) -> Result<Access> {
        let (space, base, offset) = self.address(operand, space, i.at)?;
        Ok(Access { space, base, offset, bytes, signed: false, order: Order::default(), regs: vec![] })
    }

    pub(super) fn system(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<bool> {
        let (op, class) = match name {
            "ld" | "ldu" | "st" => (self.load_or_store(name, mods, i)?, Class::Memory),
            "atom" | "red" => (self.atomic(name, mods, i)?, Class::Atomic),
            "shfl" => (self.shuffle(mods, i)?, Class::Warp),
            "vote" | "match" | "elect" => (self.vote(name, mods, i)?, Class::Warp),
            "redux" => (self.redux(mods, i)?, Class::Warp),
            "activemask" => {
                mods.take("b32");
                let [d] = &i.operands[..] else { return wrong(i, "takes one result") };
                (Op::ActiveMask { d: self.reg32(d, i)? }, Class::Warp)
            }
            "bar" | "barrier" => (self.barrier(name, mods, i)?, Class::Sync),
            "membar" | "fence" => {
                let scope = mods.fence(name)?;
                Self::takes(0, i)?;
                (Op::Fence(scope), Class::Sync)
            }
            "nanosleep" => {
                mods.take("u32");
                let [time] = &i.operands[..] else { return wrong(i, "takes a time") };
                self.source32(time, Ty::U32, i.at)?;
                (Op::Sleep, Class::Sync)
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                mods.find(|name| ["global", "local"].contains(&name).then_some(()));
                let levels = ["L1", "L2", "L2::evict_last", "L2::evict_normal"];
                if mods.find(|name| levels.contains(&name).then_some(())).is_none() {
                    return wrong(i, "has no level of cache");
                }
                Self::takes(if name.starts_with("prefetch") { 1 } else { 2 }, i)?;
                (Op::Nop, Class::Memory)
            }
            "griddepcontrol" => {
                if !mods.take("wait") && !mods.take("launch_dependents") {
                    return wrong(i, "has no action that is known");
                }
                Self::takes(0, i)?;
                (Op::Nop, Class::Sync)
            }
            "setmaxnreg" => {
                let known = (mods.take("inc") || mods.take("dec")) & mods.take("sync") & mods.take("aligned");
                mods.take("u32");
                let [Operand::Int(24..=256)] = &i.operands[..] else { return wrong(i, "takes 24 to 256 registers") };
                if !known {
                    return wrong(i, "needs `.inc` or `.dec`, and `.sync.aligned`");
                }
                (Op::Nop, Class::Sync)
            }
            "cp" if mods.take("async") => return self.copy(mods, i, guard).map(|()| true),
            "ldmatrix" => (self.ldmatrix(mods, i)?, Class::Memory),
            "mma" => (self.mma(mods, i)?, Class::Tensor),
            _ => return Ok(false),
        };
        self.push(op, guard, class, i.at)?;
        Ok(true)
    }

    /// Refuses another number of operands.
    pub(super) fn takes(count: usize, i: &Instruction) -> Result<()> {
        if i.operands.len() == count {
            return Ok(());
        }
        wrong(i, &format!("takes {count} operands and is given {}", i.operands.len()))
    }

    fn load_or_store(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        let (orders, policies): (_, &[&str]) = match name {
            "st" => (["relaxed", "release"], &["wb", "cg", "cs", "wt"]),
            _ => (["relaxed", "acquire"], &["ca", "cg", "cs", "lu", "cv"]),
        };
        let order = mods.order(&orders)?;
        let found = mods.find(space).unwrap_or(Space::Generic);
        mods.drop_hints(policies, order);
        if name == "ld" && found == Space::Global && !order.strong {
            mods.take("nc");
        }
        let lanes = mods.find(|name| match name {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        let ty = mods.ty()?;
        let (([value, address, ..], "ld" | "ldu") | ([address, value, ..], "st")) = (&i.operands[..], name) else {
            return wrong(i, "takes a register and an address");
        };
        let mut access = self.access(address, found, ty.bytes(), i)?;
        access.order = order;
        access.signed = ty.is_signed();
        if u64::from(ty.bytes()) * lanes.unwrap_or(1) as u64 > 32 {
            return wrong(i, "has a vector of more than 32 bytes");
        }
        if ty.bytes() > 8 {
            return wrong(i, "accesses of 128 bits in one register are not supported");
        }
        let items = match value {
            Operand::List(items) => items.clone(),
            single => vec![single.clone()],
        };
        if items.len() != lanes.unwrap_or(1) {
            return wrong(i, "has another number of registers than its vector");
        }
        for item in &items {
            let reg = match item {
                Operand::Name { name, .. } if name == "_" => Reg::None,
                _ if name == "st" => {
                    let reg = self.operand(item, ty, i.at)?;
                    if ty.bytes() == 8 { Reg::R64(reg) } else { Reg::R32(reg, 4) }
                }
                _ => self.reg(item, i)?,
            };
            if matches!(reg, Reg::Pred(_)) || matches!(reg, Reg::R32(..)) && ty.bytes() == 8 {
                return wrong(i, "the register is too narrow");
            }
            access.regs.push(reg);
        }
        if name == "st" && matches!(access.space, Space::Const) {
            return wrong(i, "stores to constant memory");
        }
        Ok(if name == "st" { Op::Store(Box::new(access)) } else { Op::Load(Box::new(access)) })
    }

    fn atomic(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        let orders: &[&str] = match name {
            "red" => &["relaxed", "release"],
            _ => &["relaxed", "acquire", "release", "acq_rel"],
        };
        let order = mods.atomic_order(orders);
        let found = mods.find(space).unwrap_or(Space::Generic);
        mods.drop_hints(&[], order);
        mods.take("noftz");
        let op = mods.find(|name| {
            Some(match name {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                "exch" => AtomOp::Exch,
                "cas" => AtomOp::Cas,
                "inc" => AtomOp::Inc,
                "dec" => AtomOp::Dec,
                _ => return None,
            })
        });
        let Some(op) = op else { return wrong(i, "has no operation that is known") };
        let ty = mods.ty()?;
        let has_type = match op {
            AtomOp::Add => true,
            AtomOp::Exch | AtomOp::Cas => !ty.is_float() || name == "atom",
            AtomOp::Min | AtomOp::Max => !ty.is_float(),
            AtomOp::And | AtomOp::Or | AtomOp::Xor => !ty.is_float() && !ty.is_signed(),
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
        };
        if !has_type {
            return wrong(i, "has an operation that is not there for its type");
        }
        let (d, rest) = match (name, &i.operands[..]) {
            ("atom", [d, rest @ ..]) => (self.reg(d, i)?, rest),
            (_, rest) => (Reg::None, rest),
        };
        let [address, b, more @ ..] = rest else { return wrong(i, "takes an address and a value") };
        if (op == AtomOp::Cas) != (more.len() == 1) {
            return wrong(i, "has another number of values than its operation takes");
        }
        let mut access = self.access(address, found, ty.bytes(), i)?;
        access.order = order;
        access.signed = ty.is_signed();
        if matches!(access.space, Space::Const | Space::Param | Space::Local) || matches!(b, Operand::List(_)) {
            return wrong(i, "this space or vector has no atomics here");
        }
        let mut value = |operand: &Operand| -> Result<Reg> {
            let reg = self.operand(operand, ty, i.at)?;
            Ok(if ty.bytes() == 8 { Reg::R64(reg) } else { Reg::R32(reg, 4) })
        };
        let b = value(b)?;
        let c = match more.first() {
            Some(c) => value(c)?,
            None => Reg::None,
        };
        Ok(Op::Atom { access: Box::new(access), op, ty, d, b, c })
    }

    fn shuffle(&mut self, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        mods.take("sync");
        let kind = mods.find(|name| {
            Some(match name {
                "up" => Shuffle::Up,
                "down" => Shuffle::Down,
                "bfly" => Shuffle::Butterfly,
                "idx" => Shuffle::Index,
                _ => return None,
            })
        });
        let Some(kind) = kind else { return wrong(i, "has no mode") };
        mods.take("b32");
        let [d, a, b, c, members] = &i.operands[..] else { return wrong(i, "takes five operands") };
        let (d, p) = match d {
            Operand::Pair(d, p) => {
                let d = Operand::Name { name: d.clone(), negated: false };
                let p = Operand::Name { name: p.clone(), negated: false };
                (self.reg32(&d, i)?, Some(self.predicate(&p, i.at)?.0))
            }
            _ => (self.reg32(d, i)?, None),
        };
        let mut value = |operand: &Operand| self.source32(operand, Ty::B32, i.at);
        let (a, b, c) = (value(a)?, value(b)?, value(c)?);
        let members = self.members(members, i)?;
        Ok(Op::Shfl { kind, d, p, a, b, c, members })
    }

    fn vote(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        mods.take("sync");
        if name == "elect" {
            let (Some(Operand::Pair(d, p)), Some(members)) = (i.operands.first(), i.operands.get(1)) else {
                return wrong(i, "takes a register, a predicate and a mask");
            };
            let named = |name: &String| Operand::Name { name: name.clone(), negated: false };
            let d = self.reg(&named(d), i)?;
            let d2 = Reg::Pred(self.predicate(&named(p), i.at)?.0);
            let members = self.members(members, i)?;
            return Ok(Op::Vote { kind: Vote::Elect, d, d2, source: 0, negated: false, members });
        }
        let kind = mods.find(|name| {
            Some(match name {
                "all" => Vote::All,
                "any" => Vote::Any,
                "uni" => Vote::Uniform,
                "ballot" => Vote::Ballot,
                _ => return None,
            })
        });
        let Some(mut kind) = kind else { return wrong(i, "has no mode") };
        let ty = mods.ty()?;
        let [d, source, members] = &i.operands[..] else { return wrong(i, "takes three operands") };
        let members = self.members(members, i)?;
        let d = self.reg(d, i)?;
        if name == "match" {
            if kind != Vote::Any {
                return wrong(i, "only `match.any` is supported");
            }
            kind = if ty.bytes() == 8 { Vote::MatchAny64 } else { Vote::MatchAny32 };
            let source = self.operand(source, ty, i.at)?;
            return Ok(Op::Vote { kind, d, d2: Reg::None, source, negated: false, members });
        }
        let (source, negated) = match source {
            Operand::Int(value) => {
                // A literal predicate: one that no lane sets, negated or not.
                let Reg::Pred(zero) = self.fresh(Ty::Pred, i.at)? else { return wrong(i, "needs a predicate") };
                (zero, *value != 0)
            }
            _ => self.predicate(source, i.at)?,
        };
        Ok(Op::Vote { kind, d, d2: Reg::None, source, negated, members })
    }

    fn redux(&mut self, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        mods.take("sync");
        let op = mods.find(|name| {
            Some(match name {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                _ => return None,
            })
        });
        let Some(op) = op else { return wrong(i, "has no operation that is known") };
        let ty = mods.ty()?;
        if ty.is_float() {
            return wrong(i, "is supported for integers only");
        }
        let [d, a, members] = &i.operands[..] else { return wrong(i, "takes three operands") };
        let d = self.reg32(d, i)?;
        let (a, members) = (self.source32(a, ty, i.at)?, self.members(members, i)?);
        Ok(Op::Redux { op, signed: ty.is_signed(), d, a, members })
    }

    fn barrier(&mut self, name: &str, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        if mods.take("warp") {
            mods.take("sync");
            let Some(members) = i.operands.first() else { return wrong(i, "takes a mask") };
            return Ok(Op::WarpBar { members: self.members(members, i)? });
        }
        mods.take("cta");
        let is_aligned = mods.take("aligned") || name == "bar";
        let red = mods.take("red");
        let kind = mods.find(|name| {
            Some(match name {
                "sync" => BarKind::Sync,
                "arrive" => BarKind::Arrive,
                "and" if red => BarKind::And,
                "or" if red => BarKind::Or,
                "popc" if red => BarKind::Popc,
                _ => return None,
            })
        });
        let Some(kind) = kind else { return wrong(i, "has no mode") };
        if !red {
            let (id, count) = match &i.operands[..] {
                [id] => (id, None),
                [id, count] => (id, Some(count)),
                _ => return wrong(i, "takes a barrier and a count"),
            };
            if matches!(id, Operand::Int(16..)) {
                return wrong(i, "a CTA has barriers 0 to 15");
            }
            let id = self.source32(id, Ty::U32, i.at)?;
            let count = count.map(|count| self.source32(count, Ty::U32, i.at)).transpose()?;
            return Ok(Op::Bar(Bar { kind, is_aligned, id, count, d: Reg::None, source: 0, negated: false }));
        }
        let _ = mods.take("pred") || mods.take("u32");
        let (d, id, count, source) = match &i.operands[..] {
            [d, id, source] => (d, id, None, source),
            [d, id, count, source] => (d, id, Some(count), source),
            _ => return wrong(i, "takes a result, a barrier, a count and a predicate"),
        };
        let d = self.reg(d, i)?;
        let id = self.source32(id, Ty::U32, i.at)?;
        let count = count.map(|count| self.source32(count, Ty::U32, i.at)).transpose()?;
        let (source, negated) = self.predicate(source, i.at)?;
        Ok(Op::Bar(Bar { kind, is_aligned, id, count, d, source, negated }))
    }

    /// `cp.async` in its three forms.
    fn copy(&mut self, mods: &mut Mods<'_>, i: &Instruction, guard: Guard) -> Result<()> {
        if mods.take("commit_group") {
            Self::takes(0, i)?;
            return self.push(Op::CpCommit, guard, Class::Sync, i.at).map(drop);
        }
        if mods.take("wait_all") {
            Self::takes(0, i)?;
            self.push(Op::CpCommit, guard, Class::Sync, i.at)?;
            return self.push(Op::CpWait(0), guard, Class::Sync, i.at).map(drop);
        }
        if mods.take("wait_group") {
            Self::takes(1, i)?;
            let Some(Operand::Int(left)) = i.operands.first() else { return wrong(i, "takes a number of groups") };
            return self.push(Op::CpWait(*left as u32), guard, Class::Sync, i.at).map(drop);
        }
        mods.take("shared");
        mods.take("shared::cta");
        mods.take("global");
        mods.drop_hints(&["ca", "cg"], Order::default());
        let [to, from, bytes, rest @ ..] = &i.operands[..] else { return wrong(i, "takes three operands") };
        let Operand::Int(bytes @ (4 | 8 | 16)) = *bytes else { return wrong(i, "copies 4, 8 or 16 bytes") };
        let to = Box::new(self.access(to, Space::Shared, bytes as u32, i)?);
        let from = Box::new(self.access(from, Space::Global, bytes as u32, i)?);
        let source_bytes = match rest.first() {
            Some(Operand::Int(source)) if *source > bytes => return wrong(i, "reads more bytes than it copies"),
            Some(source) => Some(self.source32(source, Ty::U32, i.at)?),
            None => None,
        };
        self.push(Op::CpAsync { to, from, bytes: bytes as u32, source_bytes }, guard, Class::Memory, i.at).map(drop)
    }

    fn ldmatrix(&mut self, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        let known = mods.take("sync") & mods.take("aligned") & mods.take("m8n8") & mods.take("b16");
        let transposed = mods.take("trans");
        let count = mods.find(|name| match name {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let space = mods.find(space).unwrap_or(Space::Generic);
        let (true, Some(count), [regs, address]) = (known, count, &i.operands[..]) else {
            return wrong(i, "only `.m8n8` of `.b16` is supported");
        };
        let mut access = self.access(address, space, 16, i)?;
        let items = match regs {
            Operand::List(items) => items.clone(),
            single => vec![single.clone()],
        };
        if items.len() != count {
            return wrong(i, "has another number of registers than matrices");
        }
        for item in &items {
            access.regs.push(Reg::R32(self.reg32(item, i)?, 4));
        }
        Ok(Op::Ldmatrix { access: Box::new(access), count: count as u32, transposed })
    }

    fn mma(&mut self, mods: &mut Mods<'_>, i: &Instruction) -> Result<Op> {
        let known = mods.take("sync") & mods.take("aligned");
        let shape = mods.find(|name| {
            let rest = name.strip_prefix('m')?;
            let (m, rest) = rest.split_once('n')?;
            let (n, k) = rest.split_once('k')?;
            Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
        });
        let layout = mods.take("row") & mods.take("col");
        let saturate = mods.take("satfinite");
        let combined = mods.find(|name| match name {
            "and" => Some(false),
            "xor" => Some(true),
            _ => None,
        });
        let counts = mods.take("popc");
        let (true, true, Some((m, n, k))) = (known, layout, shape) else {
            return wrong(i, "needs `.sync.aligned`, a shape and `.row.col`");
        };
        let types: Vec<String> = mods.list.drain(..).map(str::to_owned).collect();
        let [d, a, b, c] = &types[..] else { return wrong(i, "needs four types") };
        let element = |name: &str| {
            Some(match name {
                "f16" => Element::F16,
                "bf16" => Element::Bf16,
                "tf32" => Element::Tf32,
                "e4m3" => Element::E4m3,
                "e5m2" => Element::E5m2,
                "s8" => Element::S8,
                "u8" => Element::U8,
                "s4" => Element::S4,
                "u4" => Element::U4,
                "b1" => Element::B1,
                _ => return None,
            })
        };
        let (Some(a), Some(b)) = (element(a), element(b)) else {
            return wrong(i, "has element types that are not supported");
        };
        let accumulator = Ty::parse(d).filter(|ty| d == c && matches!(ty, Ty::F32 | Ty::F16 | Ty::S32));
        let Some(accumulator) = accumulator else { return wrong(i, "accumulates in a type that is not supported") };
        let bits = mma::bits(a);
        let supported: &[(usize, usize)] = match bits {
            16 => &[(16, 8), (16, 16)],
            32 => &[(16, 4), (16, 8)],
            4 => &[(8, 32), (16, 32), (16, 64)],
            1 => &[(8, 128), (16, 128), (16, 256)],
            _ => &[(8, 16), (16, 16), (16, 32)],
        };
        let is_float = matches!(a, Element::F16 | Element::Bf16 | Element::Tf32 | Element::E4m3 | Element::E5m2);
        let of_one_kind = bits == mma::bits(b) && (bits == 1) == counts && (bits == 1) == combined.is_some();
        // With eight rows there are integers only.
        let fits = m == 16 || !is_float;
        if n != 8 || !supported.contains(&(m, k)) || is_float == (accumulator == Ty::S32) || !of_one_kind || !fits {
            return wrong(i, "this shape with these types is not supported");
        }
        let [d, a_list, b_list, c] = &i.operands[..] else { return wrong(i, "takes four fragments") };
        let mut fragment = |operand: &Operand, count: usize| -> Result<Vec<u32>> {
            let items = match operand {
                Operand::List(items) => items.clone(),
                single => vec![single.clone()],
            };
            if items.len() != count {
                return wrong(i, &format!("has a fragment of {} registers where {count} are due", items.len()));
            }
            items.iter().map(|item| self.source32(item, Ty::B32, i.at)).collect()
        };
        let per_lane = |rows: usize, bits: usize| (rows * bits / 32 / 32).max(1);
        let accumulators = if accumulator == Ty::F16 || m == 8 { 2 } else { 4 };
        let (a_regs, b_regs) = (fragment(a_list, per_lane(m * k, bits))?, fragment(b_list, per_lane(n * k, bits))?);
        let (c_regs, d_regs) = (fragment(c, accumulators)?, fragment(d, accumulators)?);
        let (is_xor, run) = (combined == Some(true), mma::runner(accumulator));
        Ok(Op::Mma(Box::new(Mma { m, n, k, a, b, accumulator, saturate, is_xor, run, d_regs, a_regs, b_regs, c_regs })))
    }
}
