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

    /// What the file's format calls the type of a tensor (`Q4_K`, `BF16`); its scheme where there is no file.
    fn type_name(&self, name: &str) -> Option<String> {
        self.tensor(name).map(|info| info.scheme.to_string())
    }

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
    let infos = part_infos(checkpoint, weight)?;
    if infos.len() > 1 && infos.iter().zip(&weight.parts).all(|(info, part)| is_joined_vector(*info, part)) {
        let load = |part| load_part(checkpoint, part, 0..1);
        return Ok(join_vectors(&weight.parts.iter().map(load).collect::<Result<Vec<_>, _>>()?));
    }
    assemble_rows(checkpoint, weight, 0..weight.parts.iter().map(|part| part.rows).sum())
}

/// Some rows of what [`assemble`] gives for a matrix, loading no more of each part than the rows between the first and
/// the last one that is needed.
///
/// # Errors
/// As [`assemble`].
pub fn assemble_rows(checkpoint: &dyn Checkpoint, weight: &Weight, rows: Range<usize>) -> Result<Matrix, ModelError> {
    let infos = part_infos(checkpoint, weight)?;
    let Some(first) = infos.first() else {
        return Err(mismatch(weight, "at least one part", "none".to_owned()));
    };
    for (info, part) in infos.iter().zip(&weight.parts) {
        if info.rows != part.rows {
            return Err(ModelError::Shape {
                tensor: part.tensor.clone(),
                expected: format!("{} rows", part.rows),
                found: format!("{} rows", info.rows),
            });
        }
    }
    if let Some(other) = infos.iter().find(|info| info.cols != first.cols) {
        return Err(mismatch(weight, "parts of equal width", format!("{} and {} columns", first.cols, other.cols)));
    }
    check_arrangement(weight)?;
    let mut places: Vec<(usize, usize)> = rows.map(|row| place(weight, row)).collect(); // (part, stored row)
    let mut parts = Vec::with_capacity(infos.len());
    for (at, part) in weight.parts.iter().enumerate() {
        let needed = || places.iter().filter(|place| place.0 == at).map(|place| place.1);
        let from = needed().min().unwrap_or(0);
        let matrix = load_part(checkpoint, part, from..needed().max().map_or(from, |last| last + 1))?;
        places.iter_mut().filter(|place| place.0 == at).for_each(|place| place.1 -= from);
        parts.push(matrix);
    }
    Ok(pick_rows(parts, &places))
}

fn part_infos(checkpoint: &dyn Checkpoint, weight: &Weight) -> Result<Vec<TensorInfo>, ModelError> {
    let info = |part: &Part| {
        checkpoint.tensor(&part.tensor).ok_or_else(|| ModelError::NoTensor { tensor: part.tensor.clone() })
    };
    weight.parts.iter().map(info).collect()
}

fn mismatch(weight: &Weight, expected: &str, found: String) -> ModelError {
    ModelError::Weight { weight: weight.name.clone(), expected: expected.to_owned(), found }
}

/// Whether a part is a vector that names its elements, to be joined with others.
fn is_joined_vector(info: TensorInfo, part: &Part) -> bool {
    info.rows == 1 && part.rows == info.cols && part.order == RowOrder::AsStored
}

/// One vector after the other, as floats.
fn join_vectors(parts: &[Matrix]) -> Matrix {
    let values: Vec<f32> = parts.iter().flat_map(Matrix::to_f32).collect();
    Matrix { rows: 1, cols: values.len(), data: MatrixData::Float(values) }
}

/// Some rows of a part, with what is added to them.
fn load_part(checkpoint: &dyn Checkpoint, part: &Part, rows: Range<usize>) -> Result<Matrix, ModelError> {
    let matrix = checkpoint.load_rows(&part.tensor, rows.clone())?;
    check_finite(&part.tensor, &matrix, rows.start)?;
    if part.plus_one {
        let values = matrix.to_f32().into_iter().map(|value| 1.0 + value).collect();
        return Ok(Matrix { data: MatrixData::Float(values), ..matrix });
    }
    Ok(matrix)
}

/// Refuses values, scales and minima that are infinite or not a number. The matrix is some rows of the tensor, from
/// `first_row` on.
pub fn check_finite(tensor: &str, matrix: &Matrix, first_row: usize) -> Result<(), ModelError> {
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
    Err(ModelError::NotFinite { tensor: tensor.to_owned(), row: first_row + at / per_row, part, value })
}

fn find_bad<T: Copy>(values: &[T], is_finite: fn(T) -> bool) -> Option<usize> {
    values.iter().position(|&value| !is_finite(value))
}

/// Refuses parts whose rows cannot be arranged and ordered as the weight asks.
fn check_arrangement(weight: &Weight) -> Result<(), ModelError> {
    let rows = weight.parts[0].rows;
    if let Arrangement::Interleave { rows: block } = weight.arrangement
        && (block == 0 || !rows.is_multiple_of(block) || weight.parts.iter().any(|part| part.rows != rows))
    {
        let counts: Vec<usize> = weight.parts.iter().map(|part| part.rows).collect();
        let expected = format!("parts with one number of rows, a multiple of {block}");
        return Err(mismatch(weight, &expected, format!("rows {counts:?}")));
    }
    for part in &weight.parts {
        if let RowOrder::PairsToHalves { head_dim } = part.order
            && (head_dim == 0 || !head_dim.is_multiple_of(2) || !part.rows.is_multiple_of(head_dim))
        {
            let expected = format!("heads of an even number of rows ({head_dim})");
            return Err(mismatch(weight, &expected, format!("{} rows in '{}'", part.rows, part.tensor)));
        }
    }
    Ok(())
}

/// The part and its stored row that become a row of the weight.
fn place(weight: &Weight, row: usize) -> (usize, usize) {
    let (part, row) = match weight.arrangement {
        Arrangement::Concat => {
            let mut row = row;
            let holds = |part: &Part| {
                let found = row < part.rows;
                row -= if found { 0 } else { part.rows };
                found
            };
            let part = weight.parts.iter().position(holds).unwrap_or(0);
            (part, row)
        }
        Arrangement::Interleave { rows: block } => {
            let (round, within) = (row / (block * weight.parts.len()), row % (block * weight.parts.len()));
            (within / block, round * block + within % block)
        }
    };
    match weight.parts[part].order {
        RowOrder::AsStored => (part, row),
        RowOrder::PairsToHalves { head_dim } => {
            let (head, at, half) = (row / head_dim, row % head_dim, head_dim / 2);
            (part, head * head_dim + if at < half { 2 * at } else { 2 * (at - half) + 1 })
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
