//! Changes of inputs by what they are, so that the rest of an input stays sound.

mod bytes;
mod gguf;
mod json;
mod plan;

use crate::bundle;
use crate::random::Random;

/// How an input is built.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A JSON value.
    Json,
    /// Text with words of a language.
    Text(&'static [&'static str]),
    /// A GGUF file.
    Gguf,
    /// A safetensors file.
    Safetensors,
    /// A plan.
    Plan,
    /// Several files.
    Bundle(&'static [Shape]),
}

/// The input with one change; `other` is another input of this shape, to take parts from.
pub fn change(shape: Shape, random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    // What knows no format finds what the others keep sound.
    if !matches!(shape, Shape::Bundle(_)) && random.once_in(8) {
        return bytes::change(random, input, other, &[]);
    }
    match shape {
        Shape::Json => json::change(random, input, other),
        Shape::Text(words) => bytes::change(random, input, other, words),
        Shape::Gguf => gguf::change(random, input, other),
        Shape::Safetensors => safetensors(random, input, other),
        Shape::Plan => plan::change(random, input),
        Shape::Bundle(shapes) => {
            let (parts, others) = (bundle::parts(input, shapes.len()), bundle::parts(other, shapes.len()));
            let mut files: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
            let at = random.below(files.len());
            files[at] = match random.below(40) {
                0 => Vec::new(),
                1 => others[at].to_vec(),
                _ => change(shapes[at], random, parts[at], others[at]),
            };
            bundle::join(&files)
        }
    }
}

/// Changes the header as JSON and says its new length, or the data.
fn safetensors(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let split = |file: &[u8]| {
        let (length, rest) = file.split_first_chunk::<8>()?;
        let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some((header.to_vec(), data.to_vec()))
    };
    let (Some((mut header, mut data)), Some((other_header, other_data))) = (split(input), split(other)) else {
        return bytes::change(random, input, other, &[]);
    };
    match random.below(8) {
        0 => data = bytes::change(random, &data, &other_data, &[]),
        1 => data.truncate(random.below(data.len() + 1)),
        2 => data.extend(vec![0; random.below(64)]),
        _ => header = json::change(random, &header, &other_header),
    }
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
