//! Weights from the checkpoint to stored bytes: assembled, brought into their scheme, packed; and what that cost them.

use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::{Elem, Type};
use lathe_kernels::packing;
use lathe_models::checkpoint::{Checkpoint, assemble};

use crate::error::CompileError;
use crate::schedule::ScheduledWeight;

/// The bytes of a weight as the plan stores it.
///
/// # Errors
/// When the checkpoint cannot supply it.
pub fn stored_bytes(checkpoint: &dyn Checkpoint, weight: &ScheduledWeight) -> Result<Vec<u8>, CompileError> {
    let matrix = assemble(checkpoint, &weight.weight)?;
    let mut bytes = Vec::with_capacity(weight.bytes as usize);
    match scheme(&weight.ty) {
        Some(scheme) => packing::pack(&packing::quantize(&matrix, scheme), scheme, &mut bytes),
        None => bytes.extend(matrix.to_f32().iter().flat_map(|value| value.to_le_bytes())),
    }
    Ok(bytes)
}

/// ‖stored − source‖ / ‖source‖ of a weight; zero when it is stored exactly, `None` where it is no finite number.
///
/// # Errors
/// When the checkpoint cannot supply it.
pub fn relative_error(checkpoint: &dyn Checkpoint, weight: &ScheduledWeight) -> Result<Option<f64>, CompileError> {
    let Some(scheme) = scheme(&weight.ty) else { return Ok(Some(0.0)) };
    let part = |part: &lathe_ir::graph::Part| checkpoint.tensor(&part.tensor).map(|info| info.scheme);
    if scheme.is_integer() && weight.weight.parts.iter().all(|of| part(of) == Some(scheme)) {
        return Ok(Some(0.0));
    }
    let matrix = assemble(checkpoint, &weight.weight)?;
    if matches!(matrix.data, MatrixData::Quantized { scheme: source, .. } if source == scheme) {
        return Ok(Some(0.0));
    }
    Ok(distance(&matrix, &packing::quantize(&matrix, scheme)))
}

/// ‖b − a‖ / ‖a‖ in f64.
fn distance(a: &Matrix, b: &Matrix) -> Option<f64> {
    let (mut row_a, mut row_b) = (vec![0.0f32; a.cols], vec![0.0f32; a.cols]); // [K]
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for n in 0..a.rows {
        a.row(n, &mut row_a);
        b.row(n, &mut row_b);
        for (&a, &b) in row_a.iter().zip(&row_b) {
            difference += (f64::from(b) - f64::from(a)).powi(2);
            norm += f64::from(a).powi(2);
        }
    }
    let error = if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() };
    error.is_finite().then_some(error)
}

/// The scheme of a matrix; `None` for a vector.
pub fn scheme(ty: &Type) -> Option<Scheme> {
    match ty.elem() {
        Some(Elem::Weight(scheme)) => Some(*scheme),
        _ => None,
    }
}
