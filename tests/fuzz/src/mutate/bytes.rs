//! Changes of bytes without a meaning, and of text by inserting words.

use crate::random::Random;

/// The input with some bytes changed, moved, added or taken away; `words` may be inserted.
pub fn change(random: &mut Random, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut out = input.to_vec();
    if !words.is_empty() && random.once_in(2) {
        let at = random.below(out.len() + 1);
        out.splice(at..at, random.of(words).bytes());
        return out;
    }
    let piece = |random: &mut Random, bytes: &[u8]| {
        let from = random.below(bytes.len() + 1);
        let length = random.below(bytes.len() - from + 1);
        from..from + length.min(1 + random.below(64))
    };
    match random.below(8) {
        0 | 1 if !out.is_empty() => {
            let at = random.below(out.len());
            out[at] ^= 1 << random.below(8);
        }
        2 if !out.is_empty() => {
            let at = random.below(out.len());
            out[at] = *random.of(&[0, 1, b' ', b'"', b'{', 0x7f, 0x80, 0xff]);
        }
        3 => {
            let number = random.awkward().to_le_bytes();
            let width = *random.of(&[1, 2, 4, 8]);
            let at = random.below(out.len() + 1);
            let end = (at + width).min(out.len());
            out.splice(at..end, number[..width].iter().copied());
        }
        4 => drop(out.drain(piece(random, input))),
        5 => {
            let copied = input[piece(random, input)].to_vec();
            let at = random.below(out.len() + 1);
            out.splice(at..at, copied);
        }
        6 => {
            let copied = other[piece(random, other)].to_vec();
            let at = piece(random, input);
            out.splice(at, copied);
        }
        _ => out.truncate(random.below(input.len() + 1)),
    }
    out
}
