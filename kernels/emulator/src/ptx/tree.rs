//! The tree of a PTX module, as written: names are not resolved, opcodes not understood.

use super::Position;

/// State spaces of variables and memory instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

impl Space {
    /// The space of a directive such as `.shared`.
    pub(crate) fn parse(word: &str) -> Option<Space> {
        Some(match word {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".param" => Space::Param,
            _ => return None,
        })
    }
}

/// Scalar types; the bits of `.f16x2` and the like are named by instructions, never by variables alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3x2,
    E5m2x2,
}

impl Ty {
    /// The type with a name such as `u32`.
    pub(crate) fn parse(name: &str) -> Option<Ty> {
        Some(match name {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "e4m3x2" => Ty::E4m3x2,
            "e5m2x2" => Ty::E5m2x2,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate counts as one.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }

    /// Whether values are signed integers.
    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Whether values are floating point.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 | Ty::F64)
    }
}

/// A variable in memory, or a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) at: Position,
    pub(crate) space: Space,
    /// Bytes in all; 0 for an array without a length (dynamic shared memory).
    pub(crate) bytes: u64,
    pub(crate) align: u32,
    /// Initial contents, shorter than `bytes` where the rest is zero.
    pub(crate) init: Vec<u8>,
    /// Places in `init` that hold the address of a symbol: byte offset, symbol, addend.
    pub(crate) references: Vec<(usize, String, i64)>,
    pub(crate) is_extern: bool,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, variable, label or special register, with `!` before it or not.
    Name {
        name: String,
        negated: bool,
    },
    /// Two's complement of the literal.
    Int(u64),
    Single(u32),
    Double(u64),
    /// `[base + offset]`; without a base the offset is absolute. Further operands in brackets follow `base`.
    Address {
        base: Option<String>,
        offset: i64,
    },
    /// `[base, {coordinates}]` of a tensor copy.
    Tensor,
    /// `{a, b}`, or `(a, b)` of a call.
    List(Vec<Operand>),
    /// `%p|%q`.
    Pair(String, String),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) at: Position,
    /// The guard: its register, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// Opcode with modifiers.
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
}

/// What a function body consists of.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Instruction(Instruction),
    Label(String, Position),
    Variable(Variable),
    /// `.reg .b32 %r<10>` with its count, or one name without.
    Registers {
        ty: Ty,
        name: String,
        count: Option<u32>,
        at: Position,
    },
    /// The labels of a `.branchtargets`, whose own label precedes it.
    Targets(Vec<String>),
    /// `{` and `}`.
    Open(Position),
    Close,
}

/// A kernel or a device function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) at: Position,
    pub(crate) is_entry: bool,
    pub(crate) returns: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    /// Nothing where it is only declared.
    pub(crate) body: Option<Vec<Statement>>,
    /// Largest block, from `.maxntid`.
    pub(crate) max_threads: Option<u64>,
    /// The one block that it may be launched with, from `.reqntid`.
    pub(crate) required_block: Option<[u32; 3]>,
}

/// A whole module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
}

impl Tree {
    /// The number of its target, 80 for `sm_80`.
    pub(crate) fn chip(&self) -> u32 {
        self.target.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse().unwrap_or(0)
    }
}
