//! The ops, one file each. The registry is in [`crate::op`]; this page holds what their rules share.

pub mod add;
pub mod append;
pub mod append_qkv;
pub mod attention;
pub mod bias;
pub mod embed;
pub mod gather;
pub mod gelu;
pub mod glu;
pub mod head_norm;
pub mod layer_norm;
pub mod linear;
pub mod mul;
pub mod norm_add;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod rotary;
pub mod scale;
pub mod silu;
pub mod softcap;

use crate::eval::{EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::scheme::Scheme;
use crate::types::{CacheType, DType, Dim, Elem, StepSize, Type};

/// The operand types of an op, read by slot; a refusal names the op, the operand, what was expected and what was found.
pub(crate) struct Operands<'a> {
    op: &'static str,
    names: &'static [&'static str],
    types: &'a [&'a Type],
}

impl<'a> Operands<'a> {
    /// Those of `O`; refuses another number than it takes.
    pub(crate) fn of<O: OpRules>(types: &'a [&'a Type]) -> Result<Operands<'a>, OpError> {
        let operands = Operands { op: O::NAME, names: O::OPERANDS, types };
        if types.len() == O::OPERANDS.len() {
            return Ok(operands);
        }
        let names = O::OPERANDS.join(", ");
        operands.fail(format!("expected {} operands ({names}), found {}", O::OPERANDS.len(), types.len()))
    }

    /// A refusal that is not about one operand.
    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Result<T, OpError> {
        Err(OpError { op: self.op, message: message.into() })
    }

    /// A refusal of one operand.
    pub(crate) fn refuse<T>(&self, slot: usize, expected: &str) -> Result<T, OpError> {
        self.fail(format!("operand '{}' expects {expected}, found {}", self.names[slot], self.types[slot]))
    }

    /// `f32[M, K]`: M and K.
    pub(crate) fn rows(&self, slot: usize) -> Result<(Dim, usize), OpError> {
        if let Type::Tensor { elem: Elem::Dense(DType::F32), shape } = self.types[slot]
            && let [m, k] = shape[..]
            && let Some(k) = k.constant()
        {
            return Ok((m, k));
        }
        self.refuse(slot, "f32[M, K] with a constant K")
    }

    /// `f32[M, K]` with the given M: K.
    pub(crate) fn rows_of(&self, slot: usize, m: Dim) -> Result<usize, OpError> {
        match self.rows(slot)? {
            (found, k) if found == m => Ok(k),
            _ => self.refuse(slot, &format!("{m} rows")),
        }
    }

    /// `f32[K]`: K.
    pub(crate) fn vector(&self, slot: usize) -> Result<usize, OpError> {
        if let Type::Tensor { elem: Elem::Dense(DType::F32), shape } = self.types[slot]
            && let [k] = shape[..]
            && let Some(k) = k.constant()
        {
            return Ok(k);
        }
        self.refuse(slot, "f32[K] with a constant K")
    }

    /// `i32[M]`: M.
    pub(crate) fn indices(&self, slot: usize) -> Result<Dim, OpError> {
        if let Type::Tensor { elem: Elem::Dense(DType::I32), shape } = self.types[slot]
            && let [m] = shape[..]
        {
            return Ok(m);
        }
        self.refuse(slot, "i32[M]")
    }

    /// `i32[M]` with the given M.
    pub(crate) fn indices_of(&self, slot: usize, m: Dim) -> Result<(), OpError> {
        if self.indices(slot)? == m { Ok(()) } else { self.refuse(slot, &format!("i32[{m}]")) }
    }

    /// A weight matrix: its scheme, N and K.
    pub(crate) fn weight(&self, slot: usize) -> Result<(Scheme, usize, usize), OpError> {
        if let Type::Tensor { elem: Elem::Weight(scheme), shape } = self.types[slot]
            && let [n, k] = shape[..]
            && let (Some(n), Some(k)) = (n.constant(), k.constant())
        {
            return Ok((*scheme, n, k));
        }
        self.refuse(slot, "a weight matrix [N, K]")
    }

    /// A cache.
    pub(crate) fn cache(&self, slot: usize) -> Result<CacheType, OpError> {
        match self.types[slot] {
            Type::Cache(cache) => Ok(*cache),
            Type::Tensor { .. } => self.refuse(slot, "a cache"),
        }
    }

    /// Refuses an attribute that is not positive and finite.
    pub(crate) fn positive(&self, name: &str, value: f32) -> Result<(), OpError> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        self.fail(format!("attribute '{name}' expects a positive finite number, found {value:?}"))
    }
}

/// The operands of an evaluation, as many as the op takes.
pub(crate) fn tensors<const N: usize>(inputs: &[Tensor]) -> Result<&[Tensor; N], EvalError> {
    inputs.try_into().map_err(|_| EvalError::Operands { expected: N, found: inputs.len() })
}

/// An index as usize when it is below the limit.
pub(crate) fn index(what: &'static str, index: i32, limit: usize) -> Result<usize, EvalError> {
    usize::try_from(index).ok().filter(|&at| at < limit).ok_or(EvalError::Index { what, index, limit })
}

/// Elements of a tensor in a step; 0 for a cache.
pub(crate) fn elements(ty: &Type, size: StepSize) -> u64 {
    ty.shape().map_or(0, |shape| shape.iter().map(|dim| dim.eval(size) as u64).product())
}

/// Bytes of a value in memory. A quantized activation keeps per group a scale, scale · sum and the sum of its codes
/// beside the codes. A cache counts nothing here: ops count the rows that they touch.
pub(crate) fn bytes(ty: &Type, size: StepSize) -> u64 {
    let count = elements(ty, size);
    match ty {
        Type::Cache(_) => 0,
        Type::Tensor { elem: Elem::Dense(dtype), .. } => count * dtype.bytes() as u64,
        Type::Tensor { elem: Elem::Act { group }, .. } => count + count / (*group).max(1) as u64 * 12,
        Type::Tensor { elem: Elem::Weight(scheme), shape } => {
            let k = shape.last().map_or(0, |dim| dim.eval(size));
            count / k.max(1) as u64 * scheme.row_bytes(k) as u64
        }
    }
}

/// Bytes of one token's keys and values.
pub(crate) fn cache_row_bytes(cache: CacheType) -> u64 {
    cache.token_bytes() as u64
}

/// The cost of an op that reads each operand and writes each result once; of a cache it writes the step's tokens.
pub(crate) fn streaming_cost(inputs: &[&Type], results: &[Type], size: StepSize, flops: u64) -> Cost {
    let read: u64 = inputs.iter().map(|ty| bytes(ty, size)).sum();
    let written = results.iter().map(|ty| match ty {
        Type::Cache(cache) => size.tokens as u64 * cache_row_bytes(*cache),
        Type::Tensor { .. } => bytes(ty, size),
    });
    Cost { flops, bytes: read + written.sum::<u64>() }
}
