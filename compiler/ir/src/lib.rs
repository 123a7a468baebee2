//! The typed graph of a model, the cornerstone of the compiler: no other crate of Lathe is below it.
//!
//! A [`graph::Graph`] is one program in SSA form. Its nodes are step inputs, weights, caches and ops; a value is one
//! result of a node and has a [`types::Type`]. Dimensions are affine in the symbols of a step: `T` tokens, `S`
//! sequences, `R` rows whose logits are wanted. A weight's type carries its quantization [`scheme::Scheme`]; its data
//! stays outside the graph. The order in which each reduction adds is a [`recipe::Recipe`].
//!
//! An op owns everything about itself in one file under [`ops`]: shape rule, text form, reference evaluation, cost. A
//! [`ops::linear::Linear`] also holds the ops that passes fuse before and after its product.
//!
//! The text form is real syntax: [`print::print`] is canonical (same graph, same bytes) and [`parse::parse`] reads it
//! back. [`verify::verify`] checks every invariant; it runs after each pass. [`eval::evaluate`] interprets a graph
//! slowly in f32 and is the oracle for every pass and kernel.
//!
//! ```
//! let text = "\
//! graph main(%tokens: i32[T]) {
//!   @embd: int8:g32[256, 64] = \"token_embd.weight\"
//!   @norm: f32[64] = \"output_norm.weight\"
//!   %0 = embed %tokens, @embd : f32[T, 64]
//!   %1 = linear %0, @embd pre [rms_norm(@norm) {eps = 1e-5}] : f32[T, 256]
//!   return logits = %1
//! }
//! ";
//! let graph = lathe_ir::parse::parse(text).unwrap();
//! lathe_ir::verify::verify(&graph).unwrap();
//! assert_eq!(graph.to_string(), text);
//! ```

pub mod attributes;
pub mod eval;
pub mod graph;
mod lex;
pub mod op;
pub mod ops;
pub mod parse;
pub mod print;
pub mod recipe;
pub mod scheme;
pub mod types;
pub mod verify;
