//! The graph: typed SSA values over nodes, edges held by petgraph.
//!
//! A node is a step input, a weight, a cache or an op. A value is (node, result index). [`Graph::order`] is the one
//! canonical topological order, which printing, evaluation and scheduling all use, so that the same graph always gives
//! the same text.

use std::collections::HashSet;
use std::fmt;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};

use crate::op::{Op, OpError};
use crate::types::{CacheType, Dim, Type};

/// A node of the graph. Ids are never reused.
pub type NodeId = NodeIndex<u32>;

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node that computes it.
    pub node: NodeId,
    /// Which of the node's results.
    pub result: u32,
}

/// What the runtime supplies for each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepInput {
    /// Token ids, `i32[T]`.
    Tokens,
    /// Logical position of each token in its sequence, `i32[T]`.
    Positions,
    /// Sequence index of each token within the step, `i32[T]`.
    Sequences,
    /// Token indices whose logits are wanted, `i32[R]`.
    Rows,
}

impl StepInput {
    /// Every step input, in canonical order.
    pub const ALL: [StepInput; 4] = [StepInput::Tokens, StepInput::Positions, StepInput::Sequences, StepInput::Rows];

    /// The name in the text IR, printed as `%tokens`.
    pub fn name(self) -> &'static str {
        match self {
            StepInput::Tokens => "tokens",
            StepInput::Positions => "positions",
            StepInput::Sequences => "sequences",
            StepInput::Rows => "rows",
        }
    }

    /// Its type.
    pub fn ty(self) -> Type {
        Type::i32([if self == StepInput::Rows { Dim::R } else { Dim::T }])
    }
}

/// How rows of a checkpoint tensor are reordered on the way into a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// As stored.
    AsStored,
    /// Rotary pairs `(2i, 2i+1)` of each head of `head_dim` rows become halves `(i, i + head_dim/2)`: undoes the
    /// permutation that GGUF converters apply to the query and key weights of llama models.
    PairsToHalves {
        /// Rows per head.
        head_dim: usize,
    },
}

/// One checkpoint tensor inside a weight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Name of the tensor in the checkpoint.
    pub tensor: String,
    /// Rows that it contributes: 1 for a vector, but the elements of a vector that is joined with others.
    pub rows: usize,
    /// Order of its rows.
    pub order: RowOrder,
    /// Whether one is added to each element: the checkpoint stores the distance from one, as Gemma's norms do. Only for
    /// vectors.
    pub plus_one: bool,
}

/// How the parts of a merged weight are laid out along its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrangement {
    /// One after the other.
    Concat,
    /// Alternating blocks of this many rows: 16 of the first, 16 of the second, and so on.
    Interleave {
        /// Rows per block.
        rows: usize,
    },
}

/// A weight: a name, and the checkpoint tensors that it is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Name in the graph, printed as `@name`.
    pub name: String,
    /// The tensors, in order.
    pub parts: Vec<Part>,
    /// How they are laid out.
    pub arrangement: Arrangement,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// Supplied for each step.
    Input(StepInput),
    /// Constant data.
    Weight(Weight),
    /// The state of a cache before the step, by name (`kv.0`).
    Cache(String),
    /// Computed.
    Op(Op),
}

/// A node: what it is, its operands and the types of its results.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Operands, in the op's order.
    pub inputs: Vec<Value>,
    /// Result types.
    pub results: Vec<Type>,
}

/// A typed dataflow graph of one program.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the program (`main`, `draft`, …).
    pub name: String,
    nodes: StableDiGraph<Node, ()>,
    /// Named results of the step, in order (`logits`).
    pub outputs: Vec<(String, Value)>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), nodes: StableDiGraph::default(), outputs: Vec::new() }
    }

    /// The value of a step input; added on first use, its type follows from the input.
    pub fn input(&mut self, input: StepInput) -> Value {
        let found = self.nodes.node_indices().find(|&id| self.nodes[id].kind == NodeKind::Input(input));
        let node = found.unwrap_or_else(|| self.insert(NodeKind::Input(input), Vec::new(), vec![input.ty()]));
        Value { node, result: 0 }
    }

    /// Adds a weight of the given type.
    pub fn weight(&mut self, weight: Weight, ty: Type) -> Value {
        Value { node: self.insert(NodeKind::Weight(weight), Vec::new(), vec![ty]), result: 0 }
    }

    /// Adds the initial state of a cache.
    pub fn cache(&mut self, name: impl Into<String>, cache: CacheType) -> Value {
        Value { node: self.insert(NodeKind::Cache(name.into()), Vec::new(), vec![Type::Cache(cache)]), result: 0 }
    }

    /// Adds an op; its result types follow from its operands.
    ///
    /// # Errors
    /// The op's own sentence when an operand has the wrong type or shape.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Vec<Value>, OpError> {
        let op = op.into();
        let types: Vec<&Type> = inputs.iter().map(|&value| self.ty(value)).collect();
        let results = op.infer(&types)?;
        let count = results.len() as u32;
        let node = self.insert(NodeKind::Op(op), inputs.to_vec(), results);
        Ok((0..count).map(|result| Value { node, result }).collect())
    }

    /// Adds an op with exactly one result.
    ///
    /// # Errors
    /// As [`Graph::op`].
    pub fn op1(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, OpError> {
        Ok(self.op(op, inputs)?[0])
    }

    fn insert(&mut self, kind: NodeKind, inputs: Vec<Value>, results: Vec<Type>) -> NodeId {
        let sources: Vec<NodeId> = inputs.iter().map(|value| value.node).collect();
        let node = self.nodes.add_node(Node { kind, inputs, results });
        for source in sources {
            self.nodes.add_edge(source, node, ());
        }
        node
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The op of a node, if it is one.
    pub fn as_op(&self, id: NodeId) -> Option<&Op> {
        match &self.nodes[id].kind {
            NodeKind::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &Type {
        &self.nodes[value.node].results[value.result as usize]
    }

    /// Changes the declared type of a weight (a pass chose another scheme).
    pub fn set_weight_type(&mut self, id: NodeId, ty: Type) {
        self.nodes[id].results = vec![ty];
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether a value exists: its node is there and has that result.
    pub fn contains(&self, value: Value) -> bool {
        self.nodes.node_weight(value.node).is_some_and(|node| (value.result as usize) < node.results.len())
    }

    /// Every node in canonical topological order: depth first from the outputs, operands in order before their user;
    /// then what no output needs, by insertion. So the order follows from the structure, however it was built.
    ///
    /// A cycle, which only [`Graph::replace_uses`] can make, is entered at some point; the verifier refuses it.
    pub fn order(&self) -> Vec<NodeId> {
        let roots = self.outputs.iter().map(|(_, value)| value.node).chain(self.nodes.node_indices());
        let mut seen = HashSet::with_capacity(self.nodes.node_count());
        let mut order = Vec::with_capacity(self.nodes.node_count());
        for root in roots.filter(|&root| self.nodes.contains_node(root)) {
            if !seen.insert(root) {
                continue;
            }
            let mut stack = vec![(root, 0)];
            while let Some((id, next)) = stack.last_mut() {
                if let Some(input) = self.nodes[*id].inputs.get(*next) {
                    *next += 1;
                    if seen.insert(input.node) {
                        stack.push((input.node, 0));
                    }
                } else {
                    order.push(*id);
                    stack.pop();
                }
            }
        }
        order
    }

    /// Nodes that use any result of `id`, each once, in id order.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut users: Vec<NodeId> = self.nodes.neighbors_directed(id, Direction::Outgoing).collect();
        users.sort();
        users.dedup();
        users
    }

    /// Nodes that use exactly this value, and whether it is also a graph output.
    pub fn uses(&self, value: Value) -> (Vec<NodeId>, bool) {
        let users =
            self.users(value.node).into_iter().filter(|&user| self.nodes[user].inputs.contains(&value)).collect();
        (users, self.outputs.iter().any(|(_, output)| *output == value))
    }

    /// Makes every use of `old` a use of `new`, graph outputs included. Uses by the node of `new` itself stay, so that a
    /// value can be replaced by an op on it.
    pub fn replace_uses(&mut self, old: Value, new: Value) {
        for user in self.users(old.node).into_iter().filter(|&user| user != new.node) {
            for slot in 0..self.nodes[user].inputs.len() {
                if self.nodes[user].inputs[slot] == old {
                    self.nodes[user].inputs[slot] = new;
                    if let Some(edge) = self.nodes.find_edge(old.node, user) {
                        self.nodes.remove_edge(edge);
                    }
                    self.nodes.add_edge(new.node, user, ());
                }
            }
        }
        for (_, output) in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
    }

    /// Removes every node that no graph output needs; returns how many went. Step inputs stay.
    pub fn remove_dead(&mut self) -> usize {
        let mut live: HashSet<NodeId> = HashSet::new();
        let mut stack: Vec<NodeId> = self.outputs.iter().map(|(_, value)| value.node).collect();
        while let Some(id) = stack.pop() {
            if live.insert(id) {
                stack.extend(self.nodes[id].inputs.iter().map(|value| value.node));
            }
        }
        let before = self.nodes.node_count();
        self.nodes.retain_nodes(|nodes, id| live.contains(&id) || matches!(nodes[id].kind, NodeKind::Input(_)));
        before - self.nodes.node_count()
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::print::print(self))
    }
}
