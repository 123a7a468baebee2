//! Checks every invariant of a graph. The compiler runs it after each pass that changed something.
//!
//! - **Order.** There is no cycle: every operand is computed before its user, and exists.
//! - **Names.** Weights have distinct names, caches have distinct names, outputs have distinct names.
//! - **Weights.** A weight is a matrix `[N, K]` in a scheme whose group divides K, or a vector `f32[K]`; its dimensions are
//!   constant. The rows of its parts sum to N; a vector has one part of one row, or joins
//!   several parts of as many rows as each has elements. Interleaved parts are of equal size,
//!   in whole blocks. A part that is reordered by head has whole heads of an even size; one is added to vectors only.
//! - **Caches.** A cache holds floats and has at least one head of at least one element.
//! - **Types.** The results of an op are those that it infers from its operands.
//! - **Stages.** A linear's prologue holds only ops that may stand there ([`Stage::Prologue`]), its epilogue likewise.
//! - **Linear caches.** A cache state that an op appends to has no other use: the runtime appends in place, so nobody may
//!   still read the earlier state, and no two ops may both append to it.
//! - **Outputs.** There is at least one; each is a tensor that exists.

use std::collections::{HashMap, HashSet};

use crate::graph::{Arrangement, Graph, NodeId, NodeKind, RowOrder, Value, Weight};
use crate::lex::Name;
use crate::op::{Op, OpError, Stage};
use crate::print::names;
use crate::types::{DType, Elem, Type};

/// Which invariant a graph breaks, and at which node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Order.
    #[error("{node}: an operand is not computed before it (the graph has a cycle)")]
    Cycle {
        /// The node.
        node: String,
    },
    /// Order.
    #[error("{node}: operand {operand} does not exist")]
    Missing {
        /// The node.
        node: String,
        /// The operand's slot.
        operand: usize,
    },
    /// Names.
    #[error("{node}: the name is defined twice")]
    DuplicateName {
        /// The node, or `output` and its name.
        node: String,
    },
    /// Weights.
    #[error("{node}: {message}")]
    Weight {
        /// The node.
        node: String,
        /// What was expected and what was found.
        message: String,
    },
    /// Caches.
    #[error("{node}: expected a cache of floats with heads and elements, found {found}")]
    Cache {
        /// The node.
        node: String,
        /// Its type.
        found: String,
    },
    /// Types: the op refuses its operands.
    #[error("{node}: {source}")]
    Op {
        /// The node.
        node: String,
        /// Why.
        source: OpError,
    },
    /// Types: the results are others than the node holds.
    #[error("{node}: the op infers {expected}, but the node holds {found}")]
    Results {
        /// The node.
        node: String,
        /// What the op infers.
        expected: String,
        /// What the node holds.
        found: String,
    },
    /// Stages.
    #[error("{node}: {stage} may not stand in the {place} of a linear")]
    Stage {
        /// The node.
        node: String,
        /// The op that is out of place.
        stage: &'static str,
        /// `prologue` or `epilogue`.
        place: &'static str,
    },
    /// Linear caches.
    #[error("{node}: appends to {state}, which has another use; a state that is appended to has no other use")]
    SharedCache {
        /// The node that appends.
        node: String,
        /// The state.
        state: String,
    },
    /// Outputs.
    #[error("the graph has no output")]
    NoOutput,
    /// Outputs.
    #[error("output '{name}': expected a tensor of the graph, found {found}")]
    Output {
        /// Its name.
        name: String,
        /// What it is.
        found: String,
    },
}

/// Checks every invariant of the page above.
///
/// # Errors
/// The first violation in canonical order, with the node's name as printed.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let verifier = Verifier { graph, names: names(graph) };
    let mut computed = HashSet::new();
    let mut weight_names = HashSet::new();
    let mut cache_names = HashSet::new();
    for id in graph.order() {
        let node = graph.node(id);
        let duplicate = match &node.kind {
            NodeKind::Input(_) => false,
            NodeKind::Weight(weight) => {
                verifier.weight(id, weight)?;
                !weight_names.insert(&weight.name)
            }
            NodeKind::Cache(name) => {
                verifier.cache(id)?;
                !cache_names.insert(name)
            }
            NodeKind::Op(op) => {
                verifier.op(id, op, &computed)?;
                false
            }
        };
        if duplicate {
            return Err(VerifyError::DuplicateName { node: verifier.label(id) });
        }
        computed.insert(id);
    }
    verifier.outputs()
}

struct Verifier<'a> {
    graph: &'a Graph,
    names: HashMap<Value, Name>,
}

impl Verifier<'_> {
    /// `%12 (linear)`, `@blk.0.attn_q`.
    fn label(&self, id: NodeId) -> String {
        let name = self.names.get(&Value { node: id, result: 0 }).map_or_else(|| "a node".to_string(), Name::to_string);
        match self.graph.as_op(id) {
            Some(op) => format!("{name} ({})", op.name()),
            None => name,
        }
    }

    fn weight(&self, id: NodeId, weight: &Weight) -> Result<(), VerifyError> {
        let fail = |message: String| Err(VerifyError::Weight { node: self.label(id), message });
        let ty = &self.graph.node(id).results[0];
        let (Some(elem), Some(shape)) = (ty.elem(), ty.shape()) else {
            return fail(format!("a weight is a tensor, found {ty}"));
        };
        let sizes: Option<Vec<usize>> = shape.iter().map(|dim| dim.constant()).collect();
        let rows = match (elem, sizes.as_deref()) {
            (Elem::Weight(scheme), Some(&[n, k])) => {
                if scheme.is_integer() && k % scheme.span() != 0 {
                    return fail(format!("{k} columns are not whole groups of {}", scheme.span()));
                }
                n
            }
            (Elem::Dense(DType::F32), Some([_])) if weight.parts.len() == 1 => 1,
            (Elem::Dense(DType::F32), Some(&[k])) if weight.arrangement == Arrangement::Concat => k,
            _ => return fail(format!("expected a constant matrix in a scheme or f32[K], found {ty}")),
        };
        let total: usize = weight.parts.iter().map(|part| part.rows).sum();
        if total != rows {
            return fail(format!("its parts have {total} rows in all, expected {rows}"));
        }
        if let Arrangement::Interleave { rows: block } = weight.arrangement
            && (block == 0
                || weight.parts.iter().any(|part| part.rows != total / weight.parts.len() || part.rows % block != 0))
        {
            return fail(format!("interleaved parts are of equal size in whole blocks of {block} rows"));
        }
        for part in &weight.parts {
            if part.plus_one && shape.len() != 1 {
                return fail(format!("'{}' is a matrix; one is added to vectors only", part.tensor));
            }
            if let RowOrder::PairsToHalves { head_dim } = part.order
                && (head_dim == 0 || head_dim % 2 != 0 || part.rows % head_dim != 0)
            {
                return fail(format!(
                    "'{}' has {} rows, not whole heads of an even {head_dim}",
                    part.tensor, part.rows
                ));
            }
        }
        Ok(())
    }

    fn cache(&self, id: NodeId) -> Result<(), VerifyError> {
        match &self.graph.node(id).results[0] {
            Type::Cache(cache) if cache.dtype != DType::I32 && cache.heads > 0 && cache.head_dim > 0 => Ok(()),
            found => Err(VerifyError::Cache { node: self.label(id), found: found.to_string() }),
        }
    }

    fn op(&self, id: NodeId, op: &Op, computed: &HashSet<NodeId>) -> Result<(), VerifyError> {
        let node = self.graph.node(id);
        if let Some(operand) = node.inputs.iter().position(|&input| !self.graph.contains(input)) {
            return Err(VerifyError::Missing { node: self.label(id), operand });
        }
        if node.inputs.iter().any(|input| !computed.contains(&input.node)) {
            return Err(VerifyError::Cycle { node: self.label(id) });
        }
        if let Op::Linear(linear) = op {
            for (place, stages, wanted) in
                [("prologue", &linear.prologue, Stage::Prologue), ("epilogue", &linear.epilogue, Stage::Epilogue)]
            {
                if let Some(stage) = stages.iter().find(|stage| stage.stage() != wanted) {
                    return Err(VerifyError::Stage { node: self.label(id), stage: stage.name(), place });
                }
            }
        }
        let types: Vec<&Type> = node.inputs.iter().map(|&input| self.graph.ty(input)).collect();
        let results = op.infer(&types).map_err(|source| VerifyError::Op { node: self.label(id), source })?;
        if results != node.results {
            let spell = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            let (expected, found) = (spell(&results), spell(&node.results));
            return Err(VerifyError::Results { node: self.label(id), expected, found });
        }
        let appends = results.iter().any(|ty| matches!(ty, Type::Cache(_)));
        for (slot, &input) in node.inputs.iter().enumerate() {
            let (users, output) = self.graph.uses(input);
            let twice = node.inputs.iter().skip(slot + 1).any(|&other| other == input);
            if appends && matches!(self.graph.ty(input), Type::Cache(_)) && (users.len() > 1 || twice || output) {
                let state = self.names[&input].to_string();
                return Err(VerifyError::SharedCache { node: self.label(id), state });
            }
        }
        Ok(())
    }

    fn outputs(&self) -> Result<(), VerifyError> {
        if self.graph.outputs.is_empty() {
            return Err(VerifyError::NoOutput);
        }
        let mut seen = HashSet::new();
        for (name, value) in &self.graph.outputs {
            let found = match self.graph.contains(*value).then(|| self.graph.ty(*value)) {
                Some(Type::Tensor { elem: Elem::Dense(_), .. }) => None,
                Some(other) => Some(other.to_string()),
                None => Some("a value that was removed".to_string()),
            };
            if let Some(found) = found {
                return Err(VerifyError::Output { name: name.clone(), found });
            }
            if !seen.insert(name) {
                return Err(VerifyError::DuplicateName { node: format!("output '{name}'") });
            }
        }
        Ok(())
    }
}
