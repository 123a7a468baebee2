//! Removes nodes that no output needs. It runs first, so that "the only user" means a live one to the passes after it.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @unused: bf16[64, 32] = "unused"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @embed : f32[T, 64]
//!   %2 = linear %0, @unused : f32[T, 64]
//!   return logits = %1
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @embed : f32[T, 64]
//!   return logits = %1
//! }
//! ```
//! Step inputs stay: they are the signature of the step. It never errs.

use lathe_ir::graph::Graph;

use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    Ok(graph.remove_dead() > 0)
}
