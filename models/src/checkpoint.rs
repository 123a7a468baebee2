//! Checkpoints: named tensors, and how a weight of the graph is put together from them.
//!
//! [`assemble`] is the one way from a checkpoint to a graph's weight: it loads the parts, brings their rows into the
//! order that the graph wants, joins them, and refuses numbers that are not finite. Quantized parts keep their exact
//! codes and scales, because only whole rows move.

use std::collections::BTreeSet;
use std::ops::Range;

use half::f16;
use lathe_ir::graph::{Arrangement, Part, RowOrder, Weight};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};

use crate::error::ModelError;

/// Shape and storage of a tensor. A vector is a matrix of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Rows (outputs), N.
    pub rows: usize,
    /// Columns (inputs), K.
    pub cols: usize,
    /// The scheme that holds the stored values exactly.
    pub scheme: Scheme,
}

impl TensorInfo {
    /// Refuses a range of rows that the tensor does not have.
    pub(crate) fn check_rows(self, name: &str, rows: &Range<usize>) -> Result<(), ModelError> {
        if rows.start <= rows.end && rows.end <= self.rows {
            return Ok(());
        }
        Err(ModelError::Shape {
            tensor: name.to_owned(),
            expected: format!("rows {} to {}", rows.start, rows.end),
            found: format!("{} rows", self.rows),
        })
    }
}

/// Named tensors of one model, in a file or in memory.
pub trait Checkpoint: Send + Sync {
    /// Names of all tensors, sorted.
    fn names(&self) -> BTreeSet<&str>;

    /// Shape and storage of a tensor.
    fn tensor(&self, name: &str) -> Option<TensorInfo>;

    /// Some rows of a tensor, as stored.
    ///
    /// # Errors
    /// When there is no such tensor or it has fewer rows.
    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError>;

    /// A whole tensor, as stored.
    ///
    /// # Errors
    /// When there is no such tensor.
    fn load(&self, name: &str) -> Result<Matrix, ModelError> {
        let info = self.tensor(name).ok_or_else(|| ModelError::NoTensor { tensor: name.to_owned() })?;
        self.load_rows(name, 0..info.rows)
    }
}

/// Loads the parts of a weight, orders their rows and joins them.
///
/// The result is quantized when all parts are, in one scheme; otherwise all parts become floats.
///
/// # Errors
/// When a part is missing or has another shape, when the parts do not fit together, and when a value or scale is not
/// a finite number.
pub fn assemble(checkpoint: &dyn Checkpoint, weight: &Weight) -> Result<Matrix, ModelError> {
    let parts = weight.parts.iter().map(|part| load_part(checkpoint, part)).collect::<Result<Vec<_>, _>>()?;
    if parts.len() > 1 && parts.iter().zip(&weight.parts).all(|(matrix, part)| is_joined_vector(matrix, part)) {
        return Ok(join_vectors(&parts));
    }
    let Some(first) = parts.first() else {
        return Err(mismatch(weight, "at least one part", "none".to_owned()));
    };
    if let Some(other) = parts.iter().find(|part| part.cols != first.cols) {
        return Err(mismatch(weight, "parts of equal width", format!("{} and {} columns", first.cols, other.cols)));
    }
    let sources = arranged_rows(weight, &parts)?;
    let orders: Vec<Vec<usize>> =
        weight.parts.iter().map(|part| stored_rows(weight, part)).collect::<Result<_, _>>()?;
    let rows: Vec<(usize, usize)> = sources.into_iter().map(|(part, row)| (part, orders[part][row])).collect();
    Ok(pick_rows(parts, &rows))
}

fn mismatch(weight: &Weight, expected: &str, found: String) -> ModelError {
    ModelError::Weight { weight: weight.name.clone(), expected: expected.to_owned(), found }
}

/// Whether a part is a vector that names its elements, to be joined with others.
fn is_joined_vector(matrix: &Matrix, part: &Part) -> bool {
    matrix.rows == 1 && part.rows == matrix.cols && part.order == RowOrder::AsStored
}

/// One vector after the other, as floats.
fn join_vectors(parts: &[Matrix]) -> Matrix {
    let values: Vec<f32> = parts.iter().flat_map(Matrix::to_f32).collect();
    Matrix { rows: 1, cols: values.len(), data: MatrixData::Float(values) }
}

fn load_part(checkpoint: &dyn Checkpoint, part: &Part) -> Result<Matrix, ModelError> {
    let matrix = checkpoint.load(&part.tensor)?;
    if matrix.rows != part.rows && !is_joined_vector(&matrix, part) {
        return Err(ModelError::Shape {
            tensor: part.tensor.clone(),
            expected: format!("{} rows", part.rows),
            found: format!("{} rows", matrix.rows),
        });
    }
    check_finite(&part.tensor, &matrix)?;
    if part.plus_one {
        let values = matrix.to_f32().into_iter().map(|value| 1.0 + value).collect();
        return Ok(Matrix { data: MatrixData::Float(values), ..matrix });
    }
    Ok(matrix)
}

/// Refuses values, scales and minima that are infinite or not a number.
pub fn check_finite(tensor: &str, matrix: &Matrix) -> Result<(), ModelError> {
    let bad = match &matrix.data {
        MatrixData::Float(values) => find_bad(values, f32::is_finite).map(|at| (at, values[at], "values")),
        MatrixData::Quantized { scales, mins, .. } => {
            let scale = find_bad(scales, f16::is_finite).map(|at| (at, scales[at].to_f32(), "scales"));
            scale.or_else(|| find_bad(mins, f16::is_finite).map(|at| (at, mins[at].to_f32(), "minima")))
        }
    };
    let Some((at, value, part)) = bad else { return Ok(()) };
    let per_row = match &matrix.data {
        MatrixData::Float(_) => matrix.cols,
        MatrixData::Quantized { scheme, .. } => matrix.cols / scheme.scale_columns(),
    };
    Err(ModelError::NotFinite { tensor: tensor.to_owned(), row: at / per_row, part, value })
}

fn find_bad<T: Copy>(values: &[T], is_finite: fn(T) -> bool) -> Option<usize> {
    values.iter().position(|&value| !is_finite(value))
}

/// Which row of which part becomes each row of the weight.
fn arranged_rows(weight: &Weight, parts: &[Matrix]) -> Result<Vec<(usize, usize)>, ModelError> {
    match weight.arrangement {
        Arrangement::Concat => Ok(parts
            .iter()
            .enumerate()
            .flat_map(|(part, matrix)| (0..matrix.rows).map(move |row| (part, row)))
            .collect()),
        Arrangement::Interleave { rows: block } => {
            let rows = parts[0].rows;
            if block == 0 || !rows.is_multiple_of(block) || parts.iter().any(|part| part.rows != rows) {
                let counts: Vec<usize> = parts.iter().map(|part| part.rows).collect();
                let expected = format!("parts with one number of rows, a multiple of {block}");
                return Err(mismatch(weight, &expected, format!("rows {counts:?}")));
            }
            Ok((0..rows / block)
                .flat_map(|at| (0..parts.len()).map(move |part| (part, at * block)))
                .flat_map(|(part, start)| (start..start + block).map(move |row| (part, row)))
                .collect())
        }
    }
}

/// The stored row of each row of a part.
fn stored_rows(weight: &Weight, part: &Part) -> Result<Vec<usize>, ModelError> {
    match part.order {
        RowOrder::AsStored => Ok((0..part.rows).collect()),
        RowOrder::PairsToHalves { head_dim } => {
            if head_dim == 0 || !head_dim.is_multiple_of(2) || !part.rows.is_multiple_of(head_dim) {
                let expected = format!("heads of an even number of rows ({head_dim})");
                return Err(mismatch(weight, &expected, format!("{} rows in '{}'", part.rows, part.tensor)));
            }
            let half = head_dim / 2;
            let stored = |row: usize| {
                let (head, at) = (row / head_dim, row % head_dim);
                head * head_dim + if at < half { 2 * at } else { 2 * (at - half) + 1 }
            };
            Ok((0..part.rows).map(stored).collect())
        }
    }
}

/// A matrix of the given rows, each (part, row).
fn pick_rows(mut parts: Vec<Matrix>, rows: &[(usize, usize)]) -> Matrix {
    // One part that keeps its order needs no copy.
    if parts.len() == 1 && rows.iter().enumerate().all(|(at, &(_, row))| at == row) {
        return parts.remove(0);
    }
    let cols = parts[0].cols;
    let data = match common_scheme(&parts) {
        None => MatrixData::Float(pick_values(&parts, rows, cols)),
        Some(scheme) => pick_codes(&parts, rows, cols, scheme),
    };
    Matrix { rows: rows.len(), cols, data }
}

/// The scheme of all parts when all are quantized in the same one.
fn common_scheme(parts: &[Matrix]) -> Option<Scheme> {
    let scheme = |part: &Matrix| match &part.data {
        MatrixData::Float(_) => None,
        MatrixData::Quantized { scheme, .. } => Some(*scheme),
    };
    let first = scheme(&parts[0])?;
    parts.iter().all(|part| scheme(part) == Some(first)).then_some(first)
}

fn pick_values(parts: &[Matrix], rows: &[(usize, usize)], cols: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows.len() * cols];
    for (out, &(part, row)) in values.chunks_exact_mut(cols).zip(rows) {
        parts[part].row(row, out);
    }
    values
}

fn pick_codes(parts: &[Matrix], rows: &[(usize, usize)], cols: usize, scheme: Scheme) -> MatrixData {
    let (mut codes, mut scales) = (Vec::with_capacity(rows.len() * cols), Vec::new());
    let (mut mins, mut subs) = (Vec::new(), Vec::new());
    for &(part, row) in rows {
        let part = &parts[part];
        if let MatrixData::Quantized { codes: c, scales: s, mins: m, subs: u, .. } = &part.data {
            codes.extend_from_slice(rows_of(c, part.rows, row..row + 1));
            scales.extend_from_slice(rows_of(s, part.rows, row..row + 1));
            mins.extend_from_slice(rows_of(m, part.rows, row..row + 1));
            subs.extend_from_slice(rows_of(u, part.rows, row..row + 1));
        }
    }
    MatrixData::Quantized { scheme, codes, scales, mins, subs }
}

/// Some rows of an array that holds as many elements for each of `count` rows; nothing of an empty one.
pub(crate) fn rows_of<T>(elements: &[T], count: usize, rows: Range<usize>) -> &[T] {
    let width = elements.len() / count.max(1);
    &elements[rows.start * width..rows.end * width]
}
