//! Test tooling: writes a model as a GGUF file, so that the command line can be tested on small files.
//!
//! Nothing of the product writes checkpoints. What is written reads back exactly: same knobs, same tokenizer, same
//! codes and scales.

use std::path::Path;

use half::{bf16, f16};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};

use super::tensor::TensorType;
use super::value::ValueType;
use super::{DEFAULT_ALIGNMENT, MAGIC, VERSION, Value};
use crate::Model;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::tokenizer::{Algorithm, TokenKind, Tokenizer, byte_characters, spelled};

/// Elements of a block of both quantized types that are written.
const BLOCK: usize = 32;

/// Writes a model of the llama family as a GGUF file.
///
/// # Errors
/// When the file cannot be written or a tensor cannot be loaded.
pub fn write_gguf(path: &Path, model: &Model) -> Result<(), ModelError> {
    let bytes = to_bytes(model)?;
    std::fs::write(path, bytes).map_err(|error| ModelError::Io { action: "write", path: path.to_owned(), error })
}

/// The bytes of such a file.
///
/// # Errors
/// When a tensor cannot be loaded.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, ModelError> {
    let mut pairs = config_pairs(&model.config);
    pairs.extend(tokenizer_pairs(&model.tokenizer)?);
    let texts = [("tokenizer.chat_template", &model.chat_template), ("general.license", &model.licence)];
    pairs.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Value::String(text.clone()?)))));

    let tensor = |name: &str| {
        let matrix = model.checkpoint.load(name)?;
        let scheme = model.checkpoint.tensor(name).map_or(Scheme::F32, |info| info.scheme);
        let (ty, bytes) = encode(&matrix, scheme);
        let dims = if matrix.rows == 1 { vec![matrix.cols] } else { vec![matrix.cols, matrix.rows] };
        Ok(RawTensor { name: name.to_owned(), dims, ty, bytes })
    };
    let tensors: Vec<RawTensor> =
        model.checkpoint.names().into_iter().map(tensor).collect::<Result<_, ModelError>>()?;
    Ok(raw(&pairs, &tensors))
}

/// A tensor as it is written.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the innermost first.
    pub dims: Vec<usize>,
    /// How it is stored.
    pub ty: TensorType,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The bytes of a file of these metadata pairs and tensors, whatever they are.
pub fn raw(pairs: &[(String, Value)], tensors: &[RawTensor]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut data = Vec::new();
    for RawTensor { name, dims, ty, bytes } in tensors {
        put_text(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        out.extend(dims.iter().flat_map(|&dim| (dim as u64).to_le_bytes()));
        out.extend(ty.id().to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend_from_slice(bytes);
        data.resize(data.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    }
    out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    out.extend(data);
    out
}

fn config_pairs(config: &ModelConfig) -> Vec<(String, Value)> {
    let name = &config.architecture;
    let sizes = [
        ("block_count", config.layers),
        ("context_length", config.context),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab),
    ];
    let numbers = [("rope.freq_base", config.rope.theta), ("attention.layer_norm_rms_epsilon", config.norm_eps)];
    let mut pairs = vec![
        ("general.architecture".to_owned(), Value::String(name.clone())),
        ("general.name".to_owned(), Value::String(config.name.clone())),
    ];
    pairs.extend(sizes.map(|(key, size)| (format!("{name}.{key}"), Value::Unsigned(size as u64))));
    pairs.extend(numbers.map(|(key, number)| (format!("{name}.{key}"), Value::F32(number))));
    pairs
}

fn tokenizer_pairs(tokenizer: &Tokenizer) -> Result<Vec<(String, Value)>, ModelError> {
    let kinds = tokenizer.tokens.iter().flat_map(|token| token.kind.id().to_le_bytes()).collect();
    let mut pairs = vec![
        ("token_type", Value::Scalars { element: ValueType::I32, bytes: kinds }),
        ("add_bos_token", Value::Bool(tokenizer.add_bos)),
        ("add_eos_token", Value::Bool(tokenizer.add_eos)),
    ];
    let texts: Vec<String> = match &tokenizer.algorithm {
        Algorithm::Bpe { pre, merges, .. } => {
            let characters = byte_characters();
            let spelled = tokenizer.tokens.iter().map(|token| match token.kind {
                TokenKind::Normal => token.bytes.iter().map(|&byte| characters[usize::from(byte)]).collect(),
                _ => String::from_utf8_lossy(&token.bytes).into_owned(),
            });
            let texts: Vec<String> = spelled.collect();
            let text = |id: u32| &texts[id as usize];
            let merges = merges.iter().map(|merge| format!("{} {}", text(merge.left), text(merge.right))).collect();
            pairs.push(("model", Value::String("gpt2".to_owned())));
            pairs.push(("pre", Value::String(pre.name().to_owned())));
            pairs.push(("merges", Value::Strings(merges)));
            texts
        }
        Algorithm::Spm { scores, space_prefix } => {
            let bytes = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
            pairs.push(("model", Value::String("llama".to_owned())));
            pairs.push(("scores", Value::Scalars { element: ValueType::F32, bytes }));
            pairs.push(("add_space_prefix", Value::Bool(*space_prefix)));
            tokenizer.tokens.iter().map(spelled).collect()
        }
        Algorithm::Characters { .. } => {
            let expected = "a tokenizer that GGUF files can hold".to_owned();
            return Err(ModelError::Tokenizer { expected, found: "merges over characters".to_owned() });
        }
    };
    let special = [
        ("bos_token_id", tokenizer.bos),
        ("eos_token_id", tokenizer.eos),
        ("eot_token_id", tokenizer.eot),
        ("padding_token_id", tokenizer.pad),
        ("unknown_token_id", tokenizer.unk),
    ];
    pairs.extend(special.into_iter().filter_map(|(key, id)| Some((key, Value::Unsigned(u64::from(id?))))));
    pairs.push(("tokens", Value::Strings(texts)));
    Ok(pairs.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The type and the value; integers as 32 bits, which is what converters use for sizes and ids.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let put_type = |out: &mut Vec<u8>, ty: ValueType| out.extend((ty as u32).to_le_bytes());
    match value {
        Value::Unsigned(number) => {
            put_type(out, ValueType::U32);
            out.extend((*number as u32).to_le_bytes());
        }
        Value::Signed(number) => {
            put_type(out, ValueType::I32);
            out.extend((*number as i32).to_le_bytes());
        }
        Value::F32(number) => {
            put_type(out, ValueType::F32);
            out.extend(number.to_le_bytes());
        }
        Value::F64(number) => {
            put_type(out, ValueType::F64);
            out.extend(number.to_le_bytes());
        }
        Value::Bool(bool) => {
            put_type(out, ValueType::Bool);
            out.push(u8::from(*bool));
        }
        Value::String(text) => {
            put_type(out, ValueType::String);
            put_text(out, text);
        }
        Value::Strings(_) | Value::Scalars { .. } | Value::Arrays(_) => {
            put_type(out, ValueType::Array);
            put_array(out, value);
        }
    }
}

/// The element type, the count and the elements.
fn put_array(out: &mut Vec<u8>, value: &Value) {
    let mut head = |element: ValueType, count: usize| {
        out.extend((element as u32).to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Strings(texts) => {
            head(ValueType::String, texts.len());
            for text in texts {
                put_text(out, text);
            }
        }
        Value::Scalars { element, bytes } => {
            head(*element, bytes.len() / element.least_bytes());
            out.extend(bytes);
        }
        Value::Arrays(arrays) => {
            head(ValueType::Array, arrays.len());
            for array in arrays {
                put_array(out, array);
            }
        }
        _ => unreachable!("callers pass arrays"),
    }
}

/// The type and bytes of a matrix; a scheme other than those of the seeded models' files is written as f32.
fn encode(matrix: &Matrix, scheme: Scheme) -> (TensorType, Vec<u8>) {
    let mut out = Vec::new();
    match (&matrix.data, scheme) {
        (MatrixData::Float(values), Scheme::BF16) => {
            out.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
            (TensorType::BF16, out)
        }
        (MatrixData::Quantized { codes, scales, mins, .. }, Scheme::INT4) => {
            for (block, (scale, min)) in codes.chunks_exact(BLOCK).zip(scales.iter().zip(mins)) {
                put_halves(&mut out, &[*scale, *min]);
                let (low, high) = block.split_at(BLOCK / 2);
                out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
            }
            (TensorType::Q4_1, out)
        }
        (MatrixData::Quantized { codes, scales, .. }, Scheme::INT8) => {
            for (block, scale) in codes.chunks_exact(BLOCK).zip(scales) {
                put_halves(&mut out, &[*scale]);
                out.extend(block.iter().map(|code| code ^ 0x80));
            }
            (TensorType::Q8_0, out)
        }
        _ => {
            out.extend(matrix.to_f32().iter().flat_map(|value| value.to_le_bytes()));
            (TensorType::F32, out)
        }
    }
}

fn put_halves(out: &mut Vec<u8>, values: &[f16]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
