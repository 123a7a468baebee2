//! A seeded model as a Hugging Face directory in memory, whose files tests change before they are written and opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use lathe_models::checkpoint::Checkpoint;
use lathe_models::layers::decoder::{Slot, slots};
use lathe_models::seeded::small_model;
use lathe_models::tokenizer::{Algorithm, TokenKind};
use lathe_models::{Model, ModelError, families, open};
use serde_json::{Map, Value, json};

use lathe_ir::graph::RowOrder;
use lathe_ir::scheme::Scheme;

/// A tensor as it is written: type, shape, bytes.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(dtype: &'static str, shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = match dtype {
            "BF16" => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            "F16" => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        Tensor { dtype, shape: shape.to_vec(), bytes }
    }
}

/// The files of a directory, before they are files.
#[derive(Clone)]
pub struct Directory {
    pub config: Value,
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Any other files, which also replace those above.
    pub files: BTreeMap<&'static str, Vec<u8>>,
}

/// The model that [`directory`] writes.
pub fn source() -> Model {
    small_model(5, Scheme::BF16).unwrap()
}

/// The small model with its matrices in this type.
pub fn directory(dtype: &'static str) -> Directory {
    let model = source();
    let names = families::find_hf("LlamaForCausalLM").unwrap().names;
    let pairs = slots(&model.config, &model.names).zip(slots(&model.config, &names));
    let tensors = pairs.map(|(from, to)| (to.tensor, tensor(&*model.checkpoint, &from, dtype))).collect();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000, "rope_scaling": null, "tie_word_embeddings": true,
        "attention_bias": false, "torch_dtype": "bfloat16", "transformers_version": "4.40.0",
        "transformers.js_config": { "dtype": "q4" }, "eos_token_id": 2,
    });
    let tokenizer_config = json!({
        "bos_token": "<|im_start|>", "eos_token": { "content": "<|im_end|>", "special": true },
        "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer",
        "chat_template": model.chat_template,
    });
    Directory { config, tokenizer: tokenizer(&model), tokenizer_config, tensors, files: BTreeMap::new() }
}

/// A tensor with the rows of its heads in halves: row `i` of a half is row `2i`, or `2i + 1`, of the pairs.
fn tensor(checkpoint: &dyn Checkpoint, slot: &Slot, dtype: &'static str) -> Tensor {
    let values = checkpoint.load(&slot.tensor).unwrap().to_f32();
    if slot.vector {
        return Tensor::new("F32", &[slot.cols], &values);
    }
    let stored = |row: usize| match slot.order {
        RowOrder::AsStored => row,
        RowOrder::PairsToHalves { head_dim } => {
            let (head, half, pair) = (row / head_dim, row % head_dim / (head_dim / 2), row % (head_dim / 2));
            head * head_dim + 2 * pair + half
        }
    };
    let rows = (0..slot.rows).flat_map(|row| values[stored(row) * slot.cols..][..slot.cols].to_vec());
    Tensor::new(dtype, &[slot.rows, slot.cols], &rows.collect::<Vec<f32>>())
}

/// The tokenizer's text form. The small vocabulary is ASCII, of which the file spells three bytes in another way.
fn tokenizer(model: &Model) -> Value {
    let tokens = &model.tokenizer.tokens;
    let spell = |id: u32| {
        let text = String::from_utf8(tokens[id as usize].bytes.clone()).unwrap();
        text.replace(' ', "Ġ").replace('\n', "Ċ").replace('\t', "ĉ")
    };
    let vocab: Map<String, Value> = (0..tokens.len() as u32).map(|id| (spell(id), id.into())).collect();
    let control = tokens.iter().enumerate().filter(|(_, token)| token.kind == TokenKind::Control);
    let added = control.map(|(id, _)| json!({ "id": id, "content": spell(id as u32), "special": true }));
    let Algorithm::Bpe { merges, .. } = &model.tokenizer.algorithm else { panic!("the small tokenizer is BPE") };
    let merges = merges.iter().map(|merge| format!("{} {}", spell(merge.left), spell(merge.right)));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
        ] },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": merges.collect::<Vec<_>>() },
    })
}

/// A safetensors file of these tensors.
pub fn safetensors<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let offsets = [data.len(), data.len() + tensor.bytes.len()];
        header.insert(name.clone(), json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets }));
        data.extend(&tensor.bytes);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with any header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

impl Directory {
    /// Writes the files into a folder of their own and gives it.
    pub fn write(&self) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hf-{number}"));
        // A folder that an earlier run has left holds other files.
        let _ = std::fs::remove_dir_all(&path);
        self.write_to(&path);
        path
    }

    /// Writes the files into this folder.
    pub fn write_to(&self, path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        let json = |value: &Value| value.to_string().into_bytes();
        let mut files = BTreeMap::from([
            ("config.json", json(&self.config)),
            ("tokenizer.json", json(&self.tokenizer)),
            ("tokenizer_config.json", json(&self.tokenizer_config)),
        ]);
        if !self.tensors.is_empty() {
            files.insert("model.safetensors", safetensors(&self.tensors));
        }
        files.extend(self.files.clone());
        for (name, bytes) in files {
            std::fs::write(path.join(name), bytes).unwrap();
        }
    }

    /// Writes the files and opens them.
    pub fn open(&self) -> Result<Model, ModelError> {
        open(&self.write())
    }

    /// The same in two files with an index, which `change` may change.
    pub fn sharded(mut self, change: impl FnOnce(&mut Map<String, Value>)) -> Directory {
        let tensors = std::mem::take(&mut self.tensors);
        let (first, second): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, _)| name.contains("layers.0"));
        let mut map = Map::new();
        for (file, part) in [("model-1.safetensors", first), ("model-2.safetensors", second)] {
            map.extend(part.iter().map(|(name, _)| ((*name).clone(), file.into())));
            self.files.insert(file, safetensors(part));
        }
        change(&mut map);
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
        self.files.insert("model.safetensors.index.json", index.to_string().into_bytes());
        self
    }
}
