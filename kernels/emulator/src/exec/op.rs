//! Decoded instructions: registers are indices, branch targets positions, modifiers data.

use super::memory::Place;
use super::regs::{Args, Exec};
use crate::counters::Class;
use crate::ptx::tree::{Space, Ty};

/// A register: its bank and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    /// 32-bit bank, with the bytes that it was declared with.
    R32(u32, u32),
    R64(u32),
    Pred(u32),
    /// The sink `_`.
    None,
}

/// Where an address begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Absolute,
    R32(u32),
    R64(u32),
}

/// The threads that a strong access or a fence orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of the CTA; its cluster too, since each CTA is one of its own.
    Cta,
    /// Those of the device, or of the system.
    #[default]
    Device,
}

/// Strength and ordering of an access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// Not weak: relaxed, volatile, acquire, release or atomic.
    pub(crate) strong: bool,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    pub(crate) scope: Scope,
}

impl Order {
    /// Whether it is strong towards all who reach a place: in global memory those are other CTAs too.
    pub(crate) fn is_strong_at(self, place: Place) -> bool {
        self.strong && (self.scope == Scope::Device || !matches!(place, Place::Global(_)))
    }
}

/// An address and how it is accessed.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) base: Base,
    pub(crate) offset: i64,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) order: Order,
    /// Loaded or stored registers.
    pub(crate) regs: Vec<Reg>,
}

impl Access {
    /// Whether it is weak and in whole words of global or shared memory, as most are.
    pub(crate) fn is_whole(&self) -> bool {
        let has_all = self.regs.iter().all(|reg| matches!(reg, Reg::R32(_, 4) | Reg::R64(_)));
        let is_wide = matches!(self.bytes, 4 | 8) && self.bytes as usize / 4 * self.regs.len() <= 8;
        is_wide && has_all && !self.order.strong && matches!(self.space, Space::Global | Space::Shared)
    }
}

/// What an atomic does to the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// How a shuffle picks its source lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Votes and matches over a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
    MatchAny32,
    MatchAny64,
    Elect,
}

/// What a barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    And,
    Or,
    Popc,
}

/// A barrier instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// Whether all lanes of a warp execute it together.
    pub(crate) is_aligned: bool,
    /// Registers of its number and of the threads that it awaits.
    pub(crate) id: u32,
    pub(crate) count: Option<u32>,
    /// The result of a vote, and the predicate that is voted on.
    pub(crate) d: Reg,
    pub(crate) source: u32,
    pub(crate) negated: bool,
}

/// Which lanes an instruction needs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// All 32.
    Warp,
    /// All that have not exited.
    Aligned,
    /// Those that a mask names, of those that have not exited.
    Members(Members),
}

/// The lanes that take part in a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// The same for all lanes.
    Mask(u32),
    /// A register of masks.
    Reg(u32),
}

/// Element types of a matrix multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
    B1,
}

/// `mma.sync`: shape, types and fragments.
#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Element,
    pub(crate) b: Element,
    /// Accumulators: f32, f16, s32.
    pub(crate) accumulator: Ty,
    pub(crate) saturate: bool,
    /// Bits are combined by exclusive or instead of `and`.
    pub(crate) is_xor: bool,
    pub(crate) run: super::mma::Run,
    pub(crate) d_regs: Vec<u32>,
    pub(crate) a_regs: Vec<u32>,
    pub(crate) b_regs: Vec<u32>,
    pub(crate) c_regs: Vec<u32>,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nop,
    Alu {
        run: Exec,
        args: Args,
    },
    Bra {
        target: u32,
    },
    Brx {
        index: u32,
        targets: Box<[u32]>,
    },
    Exit,
    Trap(&'static str),
    Sleep,
    Clock {
        d: Reg,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    /// Atomic on memory: `d` is the old value; operands are registers of the width.
    Atom {
        access: Box<Access>,
        op: AtomOp,
        ty: Ty,
        d: Reg,
        b: Reg,
        c: Reg,
    },
    Shfl {
        kind: Shuffle,
        d: u32,
        p: Option<u32>,
        a: u32,
        b: u32,
        c: u32,
        members: Members,
    },
    /// `source` is a predicate (votes, negated where told) or a register (matches).
    Vote {
        kind: Vote,
        d: Reg,
        d2: Reg,
        source: u32,
        negated: bool,
        members: Members,
    },
    Redux {
        op: AtomOp,
        signed: bool,
        d: u32,
        a: u32,
        members: Members,
    },
    ActiveMask {
        d: u32,
    },
    Bar(Bar),
    /// All the lanes named by a mask meet.
    WarpBar {
        members: Members,
    },
    Fence(Scope),
    /// Bytes to copy, and optionally how many of them come from the source.
    CpAsync {
        to: Box<Access>,
        from: Box<Access>,
        bytes: u32,
        source_bytes: Option<u32>,
    },
    CpCommit,
    CpWait(u32),
    Ldmatrix {
        access: Box<Access>,
        count: u32,
        transposed: bool,
    },
    Mma(Box<Mma>),
}

impl Op {
    /// The lanes that it needs together, where it needs any.
    pub(crate) fn meeting(&self) -> Option<Meeting> {
        match self {
            Op::Bar(bar) => bar.is_aligned.then_some(Meeting::Aligned),
            Op::Mma(_) | Op::Ldmatrix { .. } => Some(Meeting::Warp),
            Op::Shfl { members, .. }
            | Op::Vote { members, .. }
            | Op::Redux { members, .. }
            | Op::WarpBar { members } => Some(Meeting::Members(*members)),
            _ => None,
        }
    }
}

/// An instruction with its guard, class and line.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) class: Class,
    pub(crate) line: u32,
}

/// Registers that hold the same for the whole life of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    WarpSize,
    SmId,
    NSmId,
    GridId,
    MaskEq,
    MaskLe,
    MaskLt,
    MaskGe,
    MaskGt,
    DynamicShared,
    TotalShared,
    Zero,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX.
    pub name: String,
    /// Its place in the parameter space, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) regs32: u32,
    pub(crate) regs64: u32,
    pub(crate) preds: u32,
    pub(crate) literals32: Vec<(u32, u32)>,
    pub(crate) literals64: Vec<(u32, u64)>,
    pub(crate) specials: Vec<(u32, Special)>,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: u32,
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
    pub(crate) max_threads: Option<u64>,
    pub(crate) required_block: Option<[u32; 3]>,
}

impl Kernel {
    /// Whether it orders some warps of a CTA only: by barriers, or by releases in memory that may be shared.
    pub(crate) fn orders_some(&self) -> bool {
        let is_partial = |op: &Op| matches!(op, Op::Bar(bar) if bar.count.is_some() || bar.kind == BarKind::Arrive);
        let has_fences = self.code.iter().any(|inst| matches!(inst.op, Op::Fence(_)));
        let may_release = |op: &Op| match op {
            Op::Store(access) | Op::Atom { access, .. } => {
                let Order { strong, release, .. } = access.order;
                matches!(access.space, Space::Shared | Space::Generic) && (release || strong && has_fences)
            }
            _ => false,
        };
        self.code.iter().any(|inst| is_partial(&inst.op) || may_release(&inst.op))
    }
}
