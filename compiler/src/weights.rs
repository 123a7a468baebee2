//! Weights from the checkpoint to stored bytes, piece by piece: assembled, brought into their scheme, packed; and what
//! that cost them.
//!
//! A piece is some blocks of rows of one weight. Pieces are packed by several threads, and no more of them are in memory
//! at once than a few per thread, so a compile needs little memory however large the model is. How a weight is divided
//! depends on its shape alone, so that neither bytes nor errors depend on the threads.

use std::ops::Range;

use lathe_ir::graph::Part;
use lathe_ir::scheme::{Matrix, Scheme};
use lathe_ir::types::{Elem, Type};
use lathe_kernels::packing;
use lathe_kernels::spec::{BLOCK_ROWS, STRIP_ROWS};
use lathe_models::checkpoint::{Checkpoint, assemble, assemble_rows};

use crate::error::CompileError;
use crate::schedule::ScheduledWeight;

/// Elements of a piece: enough that reading and handing over cost little, few enough that the pieces in hand take some
/// megabytes.
const PIECE: usize = 1 << 19;

/// Some rows of a weight, by its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the weight.
    pub weight: usize,
    /// Rows of a matrix; a vector is one row.
    pub rows: Range<usize>,
}

/// A piece as the plan stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What storing it cost.
    pub error: ErrorSum,
}

/// Sums of squares over elements; pieces of a weight are added in order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSum {
    /// Of stored − source.
    pub difference: f64,
    /// Of the source.
    pub norm: f64,
}

impl ErrorSum {
    /// The sum over both.
    #[must_use]
    pub fn plus(self, other: ErrorSum) -> ErrorSum {
        ErrorSum { difference: self.difference + other.difference, norm: self.norm + other.norm }
    }

    /// ‖stored − source‖ / ‖source‖; zero when it is stored exactly, `None` where it is no finite number.
    pub fn relative(self) -> Option<f64> {
        let error = if self.difference == 0.0 { 0.0 } else { (self.difference / self.norm).sqrt() };
        error.is_finite().then_some(error)
    }
}

/// The pieces of all weights, in the order in which the plan holds them.
pub fn pieces(weights: &[ScheduledWeight]) -> Vec<Piece> {
    let of = |(weight, scheduled): (usize, &ScheduledWeight)| {
        let sizes: Vec<usize> =
            scheduled.ty.shape().unwrap_or_default().iter().filter_map(|dim| dim.constant()).collect();
        let (rows, step) = match sizes[..] {
            [n, k] => (n, (PIECE / k.max(1) / BLOCK_ROWS).max(1) * BLOCK_ROWS),
            _ => (1, 1),
        };
        (0..rows).step_by(step).map(move |start| Piece { weight, rows: start..(start + step).min(rows) })
    };
    weights.iter().enumerate().flat_map(of).collect()
}

/// A piece of a weight as the plan stores it.
///
/// # Errors
/// When the checkpoint cannot supply it, or its values are too large for its scheme.
pub fn store(
    checkpoint: &dyn Checkpoint,
    weight: &ScheduledWeight,
    rows: Range<usize>,
) -> Result<Stored, CompileError> {
    let mut bytes = Vec::new();
    let Some(scheme) = scheme(&weight.ty) else {
        bytes.extend(assemble(checkpoint, &weight.weight)?.to_f32().iter().flat_map(|value| value.to_le_bytes()));
        bytes.resize(weight.bytes as usize, 0);
        return Ok(Stored { bytes, error: ErrorSum::default() });
    };
    // The last rows are followed by the zeros that fill the last strip.
    let is_last = weight.ty.shape().is_some_and(|shape| shape[0].c == rows.end);
    let stored_rows = if is_last { rows.end.next_multiple_of(STRIP_ROWS) } else { rows.end } - rows.start;
    let mut matrix = assemble_rows(checkpoint, &weight.weight, rows)?;
    let is_kept =
        |part: &Part| !part.plus_one && checkpoint.tensor(&part.tensor).is_some_and(|info| info.scheme == scheme);
    if weight.weight.parts.iter().all(is_kept) {
        packing::pad_rows(&mut matrix, stored_rows);
        packing::pack(&matrix, scheme, &mut bytes);
        return Ok(Stored { bytes, error: ErrorSum::default() });
    }
    let mut stored = packing::quantize(&matrix, scheme);
    let error = error(&matrix, &stored);
    if !error.difference.is_finite() {
        return Err(CompileError::Overflow {
            weight: weight.weight.name.clone(),
            tensors: weight.weight.parts.iter().map(|part| part.tensor.clone()).collect(),
            form: scheme.to_string(),
            wider: if scheme == Scheme::BF16 { "f32" } else { "bf16" },
        });
    }
    packing::pad_rows(&mut stored, stored_rows);
    packing::pack(&stored, scheme, &mut bytes);
    Ok(Stored { bytes, error })
}

/// What a matrix loses by being stored as another one.
fn error(source: &Matrix, stored: &Matrix) -> ErrorSum {
    let (mut from, mut to) = (vec![0.0f32; source.cols], vec![0.0f32; source.cols]); // [K]
    let mut sum = ErrorSum::default();
    for n in 0..source.rows {
        source.row(n, &mut from);
        stored.row(n, &mut to);
        for (&from, &to) in from.iter().zip(&to) {
            sum.difference += (f64::from(to) - f64::from(from)).powi(2);
            sum.norm += f64::from(from).powi(2);
        }
    }
    sum
}

/// The scheme of a matrix; `None` for a vector.
pub fn scheme(ty: &Type) -> Option<Scheme> {
    match ty.elem() {
        Some(Elem::Weight(scheme)) => Some(*scheme),
        _ => None,
    }
}
