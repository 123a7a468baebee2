//! Types of graph values: element types, symbolic dimensions, tensors and caches.
//!
//! A dimension is an affine expression over the symbols of one step: `T` tokens, `S` sequences and `R` rows whose
//! logits are wanted. Element types print as `f32`, `int8[32]` (activations quantized in groups of 32), or a scheme.

use std::fmt;

use crate::scheme::Scheme;

/// The largest number that a text may give for a dimension, a row count or a head count: products of two stay within
/// 64 bits.
pub const MAX_COUNT: usize = 1 << 30;

/// The size of one step: values for the symbols that dimensions are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSize {
    /// Tokens in the step.
    pub tokens: usize,
    /// Sequences that the tokens belong to.
    pub sequences: usize,
    /// Rows whose logits are wanted.
    pub rows: usize,
}

/// An affine dimension `t·T + s·S + r·R + c`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Coefficient of `T`.
    pub t: usize,
    /// Coefficient of `S`.
    pub s: usize,
    /// Coefficient of `R`.
    pub r: usize,
    /// The constant.
    pub c: usize,
}

impl Dim {
    /// The symbol `T`: tokens in the step.
    pub const T: Dim = Dim { t: 1, s: 0, r: 0, c: 0 };
    /// The symbol `S`: sequences in the step.
    pub const S: Dim = Dim { t: 0, s: 1, r: 0, c: 0 };
    /// The symbol `R`: rows whose logits are wanted.
    pub const R: Dim = Dim { t: 0, s: 0, r: 1, c: 0 };

    /// A constant dimension.
    pub const fn of(c: usize) -> Dim {
        Dim { t: 0, s: 0, r: 0, c }
    }

    /// The value when no symbol occurs.
    pub fn constant(self) -> Option<usize> {
        (self.t == 0 && self.s == 0 && self.r == 0).then_some(self.c)
    }

    /// The value in a step of the given size.
    pub fn eval(self, size: StepSize) -> usize {
        self.t * size.tokens + self.s * size.sequences + self.r * size.rows + self.c
    }
}

impl From<usize> for Dim {
    fn from(c: usize) -> Dim {
        Dim::of(c)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut terms = Vec::new();
        for (coefficient, symbol) in [(self.t, "T"), (self.s, "S"), (self.r, "R")] {
            match coefficient {
                0 => {}
                1 => terms.push(symbol.to_string()),
                n => terms.push(format!("{n}*{symbol}")),
            }
        }
        if self.c != 0 || terms.is_empty() {
            terms.push(self.c.to_string());
        }
        f.write_str(&terms.join("+"))
    }
}

/// Element type of a dense value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32-bit signed integer (token ids, positions, indices).
    I32,
    /// 8-bit signed codes with scales beside them; in caches only, see [`CacheType`].
    Int8,
}

impl DType {
    /// Bytes of one element; of codes without their scales.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::Int8 => 1,
        }
    }

    /// The spelling in the text IR.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::Int8 => "int8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the elements of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// One plain element per position.
    Dense(DType),
    /// A weight in a quantization scheme (also plain `bf16` and `f32` weight matrices).
    Weight(Scheme),
    /// An activation row quantized to signed 8 bits in groups along its last dimension, each group with an f32 scale
    /// and the sum of its codes. Prints as `int8[group]`.
    Act {
        /// Elements that share a scale.
        group: usize,
    },
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::Dense(dtype) => write!(f, "{dtype}"),
            Elem::Weight(scheme) => write!(f, "{scheme}"),
            Elem::Act { group } => write!(f, "int8[{group}]"),
        }
    }
}

/// Elements of a key that share a scale in a cache of int8 codes; the last group of a head may have fewer.
pub const KEY_GROUP: usize = 32;

/// A key/value cache of one layer, addressed by (sequence, logical position).
///
/// In a cache of `int8` an element is a code of -127 to 127 times an f16 scale. Each token has one scale per head and
/// [`KEY_GROUP`] elements of its key, since models with biases have keys with a few large elements, and one per head of
/// its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheType {
    /// Element type of keys and values.
    pub dtype: DType,
    /// Key/value heads.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl CacheType {
    /// Elements in so many heads; saturates, so that no nonsense in a checkpoint overflows.
    pub fn width(self, heads: usize) -> usize {
        heads.saturating_mul(self.head_dim)
    }

    /// Bytes of one token's key and value.
    pub fn token_bytes(self) -> usize {
        let scales = if self.dtype == DType::Int8 { 2 * (self.head_dim.div_ceil(KEY_GROUP) + 1) } else { 0 };
        self.heads * (2 * self.head_dim * self.dtype.bytes() + scales)
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache<{}, {}x{}>", self.dtype, self.heads, self.head_dim)
    }
}

/// The type of a graph value. Prints as `f32[T, 576]` or `cache<f16, 3x64>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A tensor.
    Tensor {
        /// Element storage.
        elem: Elem,
        /// Shape, outermost first.
        shape: Vec<Dim>,
    },
    /// The cache of one layer; an op that appends to it yields its next state.
    Cache(CacheType),
}

impl Type {
    /// A dense tensor type.
    pub fn dense(dtype: DType, shape: impl Into<Vec<Dim>>) -> Type {
        Type::Tensor { elem: Elem::Dense(dtype), shape: shape.into() }
    }

    /// A dense f32 tensor type.
    pub fn f32(shape: impl Into<Vec<Dim>>) -> Type {
        Type::dense(DType::F32, shape)
    }

    /// A dense i32 tensor type.
    pub fn i32(shape: impl Into<Vec<Dim>>) -> Type {
        Type::dense(DType::I32, shape)
    }

    /// The shape of a tensor; `None` for a cache.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            Type::Tensor { shape, .. } => Some(shape),
            Type::Cache(_) => None,
        }
    }

    /// The element storage of a tensor; `None` for a cache.
    pub fn elem(&self) -> Option<&Elem> {
        match self {
            Type::Tensor { elem, .. } => Some(elem),
            Type::Cache(_) => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor { elem, shape } => {
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, "{elem}[{}]", dims.join(", "))
            }
            Type::Cache(cache) => write!(f, "{cache}"),
        }
    }
}
