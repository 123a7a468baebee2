//! Weights that a seed stands for, in place of a checkpoint's: a plan of some kilobytes that takes as long as the real
//! one, for benchmarks of models whose weights are not at hand.
//!
//! A weight is a pattern of pieces, repeated until it is full. Every 32-bit word of a piece has some bits that the plan
//! fixes and some that come from the generator, so the compiler decides which bits are codes, and that scales are finite
//! and of a sane magnitude; this crate knows no scheme. A word depends on the seed and on its place alone, so that threads
//! may fill any part at any time.

use crate::codec::{DecodeError, fields};
use crate::format::CHUNK;
use crate::program::{Program, WeightSpan};

/// The feature that a plan with random weights demands: a reader that does not know it would find no weights.
pub const FEATURE: &str = "random-weights";

/// The weights of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomWeights {
    /// What they are made from.
    pub seed: u64,
    /// The pattern of each weight of the program, in order.
    pub patterns: Vec<Pattern>,
}

/// What a weight is made of, again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    /// Its pieces in order.
    pub pieces: Vec<Piece>,
}

/// Words of which some bits are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes: a multiple of 4.
    pub bytes: u32,
    /// The bits of each word that are fixed …
    pub fixed: u32,
    /// … and which bits the generator adds.
    pub free: u32,
}

fields!(RandomWeights { seed: u64, patterns: Vec<Pattern> });
fields!(Pattern { pieces: Vec<Piece> });
fields!(Piece { bytes: u32, fixed: u32, free: u32 });

/// Bytes of a word.
const WORD: u64 = 4;

impl Pattern {
    /// Bytes after which it begins again.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
    }
}

impl RandomWeights {
    /// Bytes of all weights of a program.
    pub(crate) fn total(program: &Program) -> u64 {
        program.weights.last().map_or(0, |span| span.offset.saturating_add(span.bytes))
    }

    /// Checks that the patterns fill the weights of a program.
    pub(crate) fn check(&self, program: &Program) -> Result<(), DecodeError> {
        let wrong = |why: String| Err(DecodeError::Inconsistent(why));
        if self.patterns.len() != program.weights.len() {
            return wrong(format!("expected {} patterns, found {}", program.weights.len(), self.patterns.len()));
        }
        for (pattern, span) in self.patterns.iter().zip(&program.weights) {
            let words =
                pattern.pieces.iter().all(|piece| piece.bytes > 0 && u64::from(piece.bytes).is_multiple_of(WORD));
            let period = pattern.bytes();
            if !words || period == 0 || !span.bytes.is_multiple_of(period) {
                return wrong(format!(
                    "the pattern of weight `{}`, of {period} bytes, does not fill its {} bytes",
                    span.name, span.bytes
                ));
            }
        }
        Ok(())
    }

    /// Fills chunk `chunk` of the zeroed weights of a program for which [`RandomWeights::check`] has passed.
    pub(crate) fn fill(&self, program: &Program, chunk: usize, out: &mut [u8]) {
        let begin = (chunk * CHUNK) as u64;
        let end = begin + out.len() as u64;
        let words = Words::new(self.seed, chunk);
        for (pattern, span) in self.patterns.iter().zip(&program.weights) {
            let (from, to) = (span.offset.max(begin), (span.offset + span.bytes).min(end));
            if from < to {
                let part = &mut out[(from - begin) as usize..(to - begin) as usize];
                fill_span(pattern, span, &words, from, (from - begin) as usize, part);
            }
        }
    }
}

/// Fills the part of a weight that begins at byte `from` of all weights and byte `at` of the chunk.
fn fill_span(pattern: &Pattern, span: &WeightSpan, words: &Words, from: u64, mut at: usize, mut part: &mut [u8]) {
    let mut skip = (from - span.offset) % pattern.bytes();
    while !part.is_empty() {
        for piece in &pattern.pieces {
            let bytes = u64::from(piece.bytes);
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let count = (bytes - skip).min(part.len() as u64) as usize;
            let (now, rest) = std::mem::take(&mut part).split_at_mut(count);
            for (index, word) in now.as_chunks_mut::<{ WORD as usize }>().0.iter_mut().enumerate() {
                *word = (piece.fixed | words.at((at / WORD as usize + index) as u32) & piece.free).to_le_bytes();
            }
            (skip, at, part) = (0, at + count, rest);
        }
    }
}

/// The generator of a chunk: word `i` is a mixture of `i` with two keys of the chunk.
struct Words {
    keys: [u32; 2],
}

impl Words {
    fn new(seed: u64, chunk: usize) -> Words {
        let key = mix(seed.wrapping_add((chunk as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Words { keys: [key as u32, (key >> 32) as u32] }
    }

    /// A bijection of 32 bits whose every output bit depends on every input bit.
    fn at(&self, index: u32) -> u32 {
        let mut x = index.wrapping_mul(0x9e37_79b9) ^ self.keys[0];
        x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
        x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
        x ^ x >> 16 ^ self.keys[1]
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(bytes: &[(u64, u64)]) -> Program {
        let span = |&(offset, bytes): &(u64, u64)| WeightSpan { name: format!("at {offset}"), offset, bytes };
        Program { weights: bytes.iter().map(span).collect(), ..Program::default() }
    }

    fn piece(bytes: u32, fixed: u32, free: u32) -> Piece {
        Piece { bytes, fixed, free }
    }

    #[test]
    fn bits_are_fixed_or_free_as_the_pattern_says_across_chunks() {
        let pattern = Pattern { pieces: vec![piece(8, 0, u32::MAX), piece(4, 0x3c00_0000, 0xff)] };
        // The second weight begins in one chunk and ends in the next, neither at a boundary of its pattern.
        let program = program(&[(0, 120), (128, 12 * (CHUNK as u64 / 12 + 5))]);
        let weights = RandomWeights { seed: 7, patterns: vec![pattern; 2] };
        weights.check(&program).expect("the patterns fill the weights");
        let mut bytes = vec![0; RandomWeights::total(&program) as usize];
        for (chunk, part) in bytes.chunks_mut(CHUNK).enumerate() {
            weights.fill(&program, chunk, part);
        }
        let mut seen = [0u32; 2];
        for span in &program.weights {
            for record in bytes[span.offset as usize..][..span.bytes as usize].chunks_exact(12) {
                let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
                assert_eq!(word(8) & !0xff, 0x3c00_0000);
                seen = [seen[0] | word(0), seen[1] | word(8)];
            }
        }
        assert_eq!(seen, [u32::MAX, 0x3c00_00ff], "every free bit is set somewhere");
        assert_eq!(bytes[120..128], [0; 8], "nothing between weights");
    }

    #[test]
    fn seeds_and_places_give_words_of_their_own() {
        let words = |seed, chunk| (0..4096).map(|i| Words::new(seed, chunk).at(i)).collect::<Vec<u32>>();
        let [first, chunk, seed] = [words(1, 0), words(1, 1), words(2, 0)];
        assert_eq!(first, words(1, 0));
        let alike = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(alike(&first, &chunk) < 2 && alike(&first, &seed) < 2);
        let ones: u32 = first.iter().map(|word| word.count_ones()).sum();
        // Half of 131,072 bits, give or take ten standard deviations.
        assert!((63_700..67_400).contains(&ones), "{ones}");
    }

    #[test]
    fn patterns_that_do_not_fill_their_weight_are_refused() {
        let check = |pieces: &[Piece], patterns: usize| {
            let pattern = Pattern { pieces: pieces.to_vec() };
            RandomWeights { seed: 0, patterns: vec![pattern; patterns] }.check(&program(&[(0, 64)]))
        };
        assert!(check(&[piece(16, 0, 0), piece(16, 0, 0)], 1).is_ok());
        for (pieces, patterns) in [
            (&[][..], 1),
            (&[piece(0, 0, 0)][..], 1),
            (&[piece(6, 0, 0), piece(2, 0, 0)][..], 1),
            (&[piece(48, 0, 0)][..], 1),
            (&[piece(64, 0, 0)][..], 2),
        ] {
            assert!(check(pieces, patterns).is_err(), "{pieces:?}");
        }
    }
}
