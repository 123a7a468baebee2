//! Rotary position embedding, as a checkpoint describes it.

use lathe_ir::ops::rotary::{Rotary, Scaling};

use crate::error::ModelError;

/// Which elements of a head rotate together, in the rows of the checkpoint's query and key weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Elements `(2i, 2i+1)`.
    Pairs,
    /// Elements `(i, i + head_dim/2)`.
    Halves,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles: `angle_i = position · theta^(−2i/D)` with D elements that rotate.
    pub theta: f32,
    /// Layout of the checkpoint's rows. The graph itself always rotates halves.
    pub layout: RopeLayout,
    /// Elements of a head that rotate, the first ones; `None` for all of them.
    pub partial: Option<usize>,
    /// What changes the frequencies.
    pub scaling: Scaling,
}

impl Rope {
    /// The op for heads of `head_dim` elements, when sequences have at most `longest` positions.
    ///
    /// Of `LongRoPE`'s two lists it takes one for all positions: keys of one sequence that are rotated by different lists
    /// would not fit together.
    pub fn op(&self, head_dim: usize, longest: usize) -> Rotary {
        let scaling = match self.scaling.clone() {
            Scaling::LongRope { original, attention_factor, short, long } => {
                let list = if longest > original { long } else { short };
                Scaling::LongRope { original, attention_factor, short: list.clone(), long: list }
            }
            scaling => scaling,
        };
        Rotary { dim: self.partial.unwrap_or(head_dim), theta: self.theta, scaling }
    }

    /// Refuses numbers that give no rotation.
    pub(super) fn check(&self, architecture: &str, head_dim: usize) -> Result<(), ModelError> {
        let wrong = |key: &str, expected: String, found: String| {
            Err(ModelError::Key { key: format!("{architecture}.rope.{key}"), expected, found })
        };
        if !(self.theta.is_finite() && self.theta > 0.0) {
            return wrong("freq_base", "a positive number".to_owned(), self.theta.to_string());
        }
        let dims = self.partial.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            return wrong("dimension_count", format!("an even number up to {head_dim}"), dims.to_string());
        }
        Ok(())
    }
}
