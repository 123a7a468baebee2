//! Reference evaluation of a graph: slow, obvious, and the oracle for every pass and kernel.
//!
//! Values between ops are f32. Long sums (dot products, norms, softmax) accumulate in f64 in plain order and round once,
//! so that the oracle is nearer to the exact result than any recipe that a kernel implements.

mod cache;
mod tensor;

use std::collections::{BTreeMap, HashMap};

pub use cache::{CacheRow, CacheState, codes};
pub use tensor::{Data, Tensor};

use crate::graph::{Graph, NodeKind, StepInput, Value, Weight};
use crate::types::{StepSize, Type};

/// Why evaluation stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A tensor holds another kind of data than the op reads.
    #[error("expected {expected} data, found {found}")]
    Kind {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: &'static str,
    },
    /// Another number of operands than the op takes.
    #[error("expected {expected} operands, found {found}")]
    Operands {
        /// What was expected.
        expected: usize,
        /// What was found.
        found: usize,
    },
    /// A tensor's shape is not that of its type in this step.
    #[error("{what}: expected shape {expected:?} for {ty}, found {found:?}")]
    Shape {
        /// What has the shape.
        what: String,
        /// The type.
        ty: String,
        /// The shape that the type has in this step.
        expected: Vec<usize>,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// An index is out of range.
    #[error("{what} is {index}, expected 0 to {limit} exclusive")]
    Index {
        /// What the index is.
        what: &'static str,
        /// The index.
        index: i32,
        /// One more than the largest.
        limit: usize,
    },
    /// Attention reads a position that no step has appended.
    #[error("sequence {sequence} has no cached token at position {position}; append every position in order")]
    NotCached {
        /// The sequence.
        sequence: i32,
        /// The position.
        position: i32,
    },
    /// The caller could not supply a weight.
    #[error("weight '{name}': {message}")]
    Weight {
        /// Its name in the graph.
        name: String,
        /// What the caller said.
        message: String,
    },
    /// Step inputs that belong together differ in length.
    #[error("step input '{name}' has {found} entries, expected {expected} (one per token)")]
    Step {
        /// The input.
        name: &'static str,
        /// Tokens in the step.
        expected: usize,
        /// Its entries.
        found: usize,
    },
    /// A value is read before it is computed; the verifier names such a cycle.
    #[error("a value is used before it is computed: the graph has a cycle; run the verifier")]
    Cycle,
    /// An op failed.
    #[error("in {op} (node {node}): {source}")]
    Node {
        /// Name of the op.
        op: &'static str,
        /// Its node.
        node: u32,
        /// What went wrong.
        source: Box<EvalError>,
    },
}

/// What ops may read besides their operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalContext {
    /// Threads that a large product may use. Results never depend on it.
    pub threads: usize,
}

impl Default for EvalContext {
    fn default() -> EvalContext {
        EvalContext { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// The step inputs of one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// Token ids, `[T]`.
    pub tokens: Vec<i32>,
    /// Logical positions, `[T]`.
    pub positions: Vec<i32>,
    /// The sequence of each token, `[T]`. Caches are keyed by it, so a sequence keeps its number from step to step.
    pub sequences: Vec<i32>,
    /// Token indices whose logits are wanted, `[R]`.
    pub rows: Vec<i32>,
}

impl StepInputs {
    /// All tokens of one sequence, starting at position `start`, with logits wanted for the last token only.
    pub fn sequence(sequence: i32, start: i32, tokens: &[i32]) -> StepInputs {
        let count = tokens.len() as i32;
        StepInputs {
            tokens: tokens.to_vec(),
            positions: (start..start + count).collect(),
            sequences: vec![sequence; tokens.len()],
            rows: if count > 0 { vec![count - 1] } else { Vec::new() },
        }
    }

    /// The size of the step.
    pub fn size(&self) -> StepSize {
        let distinct: std::collections::BTreeSet<i32> = self.sequences.iter().copied().collect();
        StepSize { tokens: self.tokens.len(), sequences: distinct.len(), rows: self.rows.len() }
    }

    fn values(&self, input: StepInput) -> &[i32] {
        match input {
            StepInput::Tokens => &self.tokens,
            StepInput::Positions => &self.positions,
            StepInput::Sequences => &self.sequences,
            StepInput::Rows => &self.rows,
        }
    }
}

/// Cache states by name, carried from step to step. Starts empty.
pub type Caches = HashMap<String, CacheState>;

/// Supplies the data of a weight in the type that the graph declares, or says why it cannot. A matrix comes as
/// [`Data::Matrix`], a vector as [`Data::F32`].
pub type Weights<'a> = dyn Fn(&Weight, &Type) -> Result<Tensor, String> + 'a;

/// Evaluates one step: every node in canonical order. Gives the graph's outputs by name and leaves in `caches` the
/// states after the step.
///
/// # Errors
/// When the step inputs or a weight contradict their types, or an op fails; the error names the op.
pub fn evaluate(
    graph: &Graph,
    weights: &Weights<'_>,
    step: &StepInputs,
    caches: &mut Caches,
) -> Result<BTreeMap<String, Tensor>, EvalError> {
    for input in [StepInput::Positions, StepInput::Sequences] {
        let found = step.values(input).len();
        if found != step.tokens.len() {
            return Err(EvalError::Step { name: input.name(), expected: step.tokens.len(), found });
        }
    }
    let size = step.size();
    let mut context = EvalContext::default();
    let mut values: HashMap<Value, Tensor> = HashMap::new();
    let mut cache_names: HashMap<Value, String> = HashMap::new();
    let order = graph.order();
    let mut last_use: HashMap<Value, usize> = HashMap::new();
    for (at, &id) in order.iter().enumerate() {
        last_use.extend(graph.node(id).inputs.iter().map(|&input| (input, at)));
    }
    last_use.extend(graph.outputs.iter().map(|(_, value)| (*value, usize::MAX)));

    for (at, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        let first = Value { node: id, result: 0 };
        match &node.kind {
            NodeKind::Input(input) => {
                let entries = step.values(*input).to_vec();
                let tensor = Tensor::i32(vec![entries.len()], entries);
                check_shape(input.name(), &node.results[0], size, &tensor)?;
                values.insert(first, tensor);
            }
            NodeKind::Weight(weight) => {
                let tensor = weights(weight, &node.results[0])
                    .map_err(|message| EvalError::Weight { name: weight.name.clone(), message })?;
                check_shape(&weight.name, &node.results[0], size, &tensor)?;
                values.insert(first, tensor);
            }
            NodeKind::Cache(name) => {
                let Type::Cache(ty) = node.results[0] else {
                    return Err(EvalError::Kind { expected: "cache", found: "tensor" });
                };
                let state = caches.entry(name.clone()).or_insert_with(|| CacheState::new(ty));
                values.insert(first, Tensor::cache(state.clone()));
                cache_names.insert(first, name.clone());
            }
            NodeKind::Op(op) => {
                let at_node =
                    |source| EvalError::Node { op: op.name(), node: id.index() as u32, source: Box::new(source) };
                let inputs: Option<Vec<Tensor>> = node.inputs.iter().map(|value| values.get(value).cloned()).collect();
                let inputs = inputs.ok_or(EvalError::Cycle)?;
                let results = op.eval(&inputs, &mut context).map_err(at_node)?;
                let cache_name = node.inputs.iter().find_map(|value| cache_names.get(value)).cloned();
                for (result, (tensor, ty)) in results.into_iter().zip(&node.results).enumerate() {
                    check_shape("result", ty, size, &tensor).map_err(at_node)?;
                    let value = Value { node: id, result: result as u32 };
                    if let (Data::Cache(state), Some(name)) = (&tensor.data, &cache_name) {
                        caches.insert(name.clone(), state.clone());
                        cache_names.insert(value, name.clone());
                    }
                    values.insert(value, tensor);
                }
            }
        }
        values.retain(|value, _| last_use.get(value).is_some_and(|&last| last > at));
    }
    let output = |(name, value): &(String, Value)| match values.get(value) {
        Some(tensor) => Ok((name.clone(), tensor.clone())),
        None => Err(EvalError::Cycle),
    };
    graph.outputs.iter().map(output).collect()
}

fn check_shape(what: &str, ty: &Type, size: StepSize, tensor: &Tensor) -> Result<(), EvalError> {
    let Some(shape) = ty.shape() else { return Ok(()) };
    let expected: Vec<usize> = shape.iter().map(|dim| dim.eval(size)).collect();
    if expected == tensor.shape {
        return Ok(());
    }
    let (what, ty, found) = (what.to_string(), ty.to_string(), tensor.shape.clone());
    Err(EvalError::Shape { what, ty, expected, found })
}
