//! Pieces of stored tensors as tensors of their own: a fused projection is several weights, a transposed one is stored
//! with its outputs along the columns.
//!
//! A name in [`TensorNames`] may end in `#PIECE`, `#PIECE^T` or `#^T`. The pieces of
//! one stored tensor follow each other along its outputs (its rows, its elements if it is a vector, its columns with
//! `^T`), in the order in which the decoder uses them: queries, keys, values; gate, up. A vector's name may end in `^H`:
//! its elements are stored as rotary pairs, and the decoder wants the halves of each head.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lathe_ir::scheme::{Code, Matrix, MatrixData};

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::config::{ModelConfig, RopeLayout};
use crate::error::ModelError;
use crate::layers::tensors::{self, TensorNames};

/// The name of a weight's bias. A bias is a vector and never transposed.
pub fn bias(weight: &str) -> String {
    let (tensor, piece) = weight.split_once('#').unwrap_or((weight, ""));
    let tensor = tensor.strip_suffix(".weight").unwrap_or(tensor);
    match piece.strip_suffix("^T").unwrap_or(piece) {
        "" => format!("{tensor}.bias"),
        piece => format!("{tensor}.bias#{piece}"),
    }
}

/// The name of a bias whose elements are stored as rotary pairs and are wanted as halves.
pub fn halves(bias: &str) -> String {
    format!("{bias}{}^H", if bias.contains('#') { "" } else { "#" })
}

/// The stored tensor that a name refers to.
pub fn stored(name: &str) -> &str {
    name.split_once('#').map_or(name, |(tensor, _)| tensor)
}

/// A tensor that is part of a stored one.
#[derive(Clone, Debug)]
struct View {
    info: TensorInfo,
    /// Its outputs in the stored tensor.
    outputs: Range<usize>,
    transposed: bool,
    /// Elements of a head, where a vector's pairs become halves.
    heads_of: Option<usize>,
}

/// A checkpoint with views of its tensors beside them.
pub struct Views {
    inner: Box<dyn Checkpoint>,
    pieces: BTreeMap<String, View>,
    hidden: BTreeSet<String>,
}

impl Views {
    /// The views that the names ask for. `hidden` are stored tensors that were read already and are no weights.
    ///
    /// # Errors
    /// When the pieces of a tensor do not make up the whole.
    pub fn new(
        inner: Box<dyn Checkpoint>,
        config: &ModelConfig,
        names: &TensorNames,
        hidden: BTreeSet<String>,
    ) -> Result<Views, ModelError> {
        let mut views = BTreeMap::new();
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        let used = [names.q, names.o, names.gate, names.up, names.down].iter().any(|name| name.contains('#'))
            || config.knobs.attention_bias && config.rope.layout == RopeLayout::Pairs;
        let slots = used.then(|| tensors::slots(config, names)).into_iter().flatten();
        for slot in slots.filter(|slot| slot.tensor.contains('#')) {
            // What is missing is refused later. A file may claim any number of layers: look no further.
            let Some(info) = inner.tensor(stored(&slot.tensor)) else { break };
            let transposed = slot.tensor.ends_with("^T");
            let heads_of = slot.tensor.ends_with("^H").then_some(config.head_dim);
            let end = ends.entry(stored(&slot.tensor).to_owned()).or_default();
            let outputs = *end..*end + if slot.vector { slot.cols } else { slot.rows };
            *end = outputs.end;
            let info = match (slot.vector, transposed) {
                (true, _) => TensorInfo { cols: outputs.len(), ..info },
                (false, false) => TensorInfo { rows: outputs.len(), ..info },
                (false, true) => TensorInfo { rows: outputs.len(), cols: info.rows, scheme: info.scheme },
            };
            views.insert(slot.tensor, View { info, outputs, transposed, heads_of });
        }
        for (name, end) in ends {
            let whole = inner.tensor(&name).map_or(0, |info| {
                let along_columns =
                    info.rows == 1 || views.iter().any(|(view, of)| stored(view) == name && of.transposed);
                if along_columns { info.cols } else { info.rows }
            });
            if whole != end {
                let expected = format!("{end} outputs, by the metadata");
                return Err(ModelError::Shape { tensor: name, expected, found: whole.to_string() });
            }
        }
        if let Some((name, view)) =
            views.iter().find(|(_, view)| view.transposed && !matches!(view.info.scheme.code, Code::Float(_)))
        {
            let (expected, found) = ("floats, since it is stored transposed".to_owned(), view.info.scheme.to_string());
            return Err(ModelError::Shape { tensor: stored(name).to_owned(), expected, found });
        }
        Ok(Views { inner, pieces: views, hidden })
    }
}

impl Checkpoint for Views {
    fn names(&self) -> BTreeSet<&str> {
        let mut names = self.inner.names();
        names.retain(|&name| !self.hidden.contains(name));
        names
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        self.pieces.get(name).map(|view| view.info).or_else(|| self.inner.tensor(name))
    }

    fn type_name(&self, name: &str) -> Option<String> {
        self.inner.type_name(if self.pieces.contains_key(name) { stored(name) } else { name })
    }

    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError> {
        let Some(view) = self.pieces.get(name) else { return self.inner.load_rows(name, rows) };
        view.info.check_rows(name, &rows)?;
        let (tensor, start) = (stored(name), view.outputs.start);
        if view.transposed {
            let whole = self.inner.load(tensor)?;
            return Ok(columns(&whole, start + rows.start..start + rows.end));
        }
        if view.info.rows > 1 || view.outputs.len() == 1 && self.inner.tensor(tensor).is_some_and(|info| info.rows > 1)
        {
            return self.inner.load_rows(tensor, start + rows.start..start + rows.end);
        }
        let whole = self.inner.load(tensor)?;
        let values = if rows.is_empty() { Vec::new() } else { whole.to_f32()[view.outputs.clone()].to_vec() };
        let values = match view.heads_of {
            Some(head_dim) => pairs_to_halves(&values, head_dim),
            None => values,
        };
        Ok(Matrix { rows: rows.len(), cols: view.info.cols, data: MatrixData::Float(values) })
    }
}

/// The first elements of all pairs of a head, then the second ones.
fn pairs_to_halves(values: &[f32], head_dim: usize) -> Vec<f32> {
    let of_head =
        |head: &[f32]| -> Vec<f32> { head.iter().step_by(2).chain(head.iter().skip(1).step_by(2)).copied().collect() };
    values.chunks(head_dim).flat_map(of_head).collect()
}

/// Some columns of a matrix, as rows.
fn columns(matrix: &Matrix, columns: Range<usize>) -> Matrix {
    let mut out = vec![0.0; columns.len() * matrix.rows];
    let mut row = vec![0.0; matrix.cols];
    for k in 0..matrix.rows {
        matrix.row(k, &mut row);
        for (n, value) in row[columns.clone()].iter().enumerate() {
            out[n * matrix.rows + k] = *value;
        }
    }
    Matrix { rows: columns.len(), cols: matrix.rows, data: MatrixData::Float(out) }
}
