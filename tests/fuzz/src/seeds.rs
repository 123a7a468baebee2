//! Sound inputs, made by our own writers: small, and with something of everything.

use std::collections::BTreeMap;

use lathe_compiler::options::Options;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_ir::scheme::Scheme;
use lathe_kernels::targets::Target;
use lathe_models::gguf::write::to_bytes;
use lathe_models::seeded::{MemoryCheckpoint, model, small_configs, small_model, small_tokenizer};
use lathe_models::tokenizer::{Algorithm, Token, TokenKind, Tokenizer};
use lathe_models::{Model, shapes};
use serde_json::{Value, json};

use crate::bundle;

/// Models of both kinds of rotation, with plain and quantized weights.
pub fn gguf() -> Vec<Vec<u8>> {
    let small = [(1, Scheme::INT4), (2, Scheme::INT8)].map(|(seed, scheme)| small_model(seed, scheme));
    let families = small_configs().into_iter().map(|config| model(config, small_tokenizer(), 3, &|_| Scheme::BF16));
    small.into_iter().chain(families).map(|model| written(&model.expect("a small model"))).collect()
}

fn written(model: &Model) -> Vec<u8> {
    to_bytes(model).expect("a small model can be written")
}

/// A vocabulary of each kind that GGUF files have, without a model.
pub fn vocabulary() -> Vec<Vec<u8>> {
    let alone = |tokenizer: Tokenizer| {
        let model = small_model(1, Scheme::BF16).expect("a small model");
        written(&Model { tokenizer, checkpoint: Box::new(MemoryCheckpoint::new([])), ..model })
    };
    vec![alone(small_tokenizer()), alone(scored(true)), alone(scored(false))]
}

/// Words that a small vocabulary knows, spaces as in GGUF's own spelling.
const WORDS: [&str; 22] = [
    " ", "a", "e", "h", "i", "n", "s", "t", "b", "th", "the", " t", " th", " the", "he", "in", "is", " a", "aa",
    "aaaa", "  ", "    ",
];

/// `SentencePiece`'s kind of vocabulary.
fn scored(space_prefix: bool) -> Tokenizer {
    let special = [("<unk>", TokenKind::Unknown), ("<s>", TokenKind::Control), ("</s>", TokenKind::Control)];
    let special = special.map(|(text, kind)| Token { bytes: text.into(), kind });
    let bytes = (0..=255u8).map(|byte| Token { bytes: vec![byte], kind: TokenKind::Byte });
    let words = WORDS.iter().map(|word| Token { bytes: word.as_bytes().to_vec(), kind: TokenKind::Normal });
    let added = Token { bytes: b"\n\n".to_vec(), kind: TokenKind::UserDefined };
    let tokens: Vec<Token> = special.into_iter().chain(bytes).chain(words).chain([added]).collect();
    Tokenizer {
        algorithm: Algorithm::Spm { scores: (0..tokens.len()).map(|id| -(id as f32)).collect(), space_prefix },
        bos: Some(1),
        eos: Some(2),
        pad: None,
        unk: Some(0),
        add_bos: true,
        tokens,
        ..small_tokenizer()
    }
}

/// A safetensors file: the length of the header, the header, bytes without holes.
fn shard(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in tensors {
        let bytes = shape.iter().product::<usize>() * if *dtype == "F32" { 4 } else { 2 };
        header
            .insert((*name).to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }));
        end += bytes;
    }
    let header = Value::from(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0x3f; end]].concat()
}

/// Two files with an index, and one file without.
pub fn safetensors() -> Vec<Vec<u8>> {
    let first = shard(&[("a.weight", "BF16", &[4, 6]), ("b.weight", "F32", &[5])]);
    let second = shard(&[("c.weight", "F16", &[3, 2]), ("d.weight", "BF16", &[4, 6])]);
    let places = [("a.weight", 1), ("b.weight", 1), ("c.weight", 2), ("d.weight", 2)];
    let map: BTreeMap<&str, String> =
        places.into_iter().map(|(name, file)| (name, format!("{file}.safetensors"))).collect();
    let index = json!({ "metadata": { "total_size": 140 }, "weight_map": map }).to_string().into_bytes();
    vec![bundle::join(&[index, first.clone(), second]), bundle::join(&[Vec::new(), first])]
}

/// The public shapes, with few layers.
pub fn config() -> Vec<Vec<u8>> {
    let shape = |(name, text): &(&str, &str)| {
        let mut knobs: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        knobs["num_hidden_layers"] = 2.into();
        knobs.to_string().into_bytes()
    };
    shapes::SHAPES.iter().map(shape).collect()
}

/// A character for each byte, as byte-level files spell them.
fn byte_letters() -> Vec<String> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let letter = |byte: u32| {
        next += u32::from(!is_printable(byte));
        char::from_u32(if is_printable(byte) { byte } else { next - 1 }).map(String::from)
    };
    (0..256).filter_map(letter).collect()
}

/// `tokenizer.json` of each kind that is known, with settings beside it.
pub fn tokenizer() -> Vec<Vec<u8>> {
    let special =
        json!({ "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let added = |id: usize, text: &str, change: Value| {
        let mut entry = special.clone();
        (entry["id"], entry["content"]) = (id.into(), text.into());
        change.as_object().into_iter().flatten().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let file = |texts: &[String], merges: &[(&str, &str)], parts: Value, model: Value| {
        let vocab: BTreeMap<&str, usize> = texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
        let end = texts.len();
        let added = [
            added(end, "<|im_start|>", json!({})),
            added(end + 1, "<|im_end|>", json!({ "rstrip": true })),
            added(end + 2, "<think>", json!({ "special": false, "single_word": true })),
        ];
        let mut file = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "post_processor": null, "model": { "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": merges } });
        parts.as_object().into_iter().flatten().for_each(|(key, value)| file[key] = value.clone());
        model.as_object().into_iter().flatten().for_each(|(key, value)| file["model"][key] = value.clone());
        let settings = json!({ "bos_token": "<|im_start|>", "eos_token": { "content": "<|im_end|>" },
            "add_bos_token": false, "chat_template": [{ "name": "default", "template": "{{ messages }}" }] });
        bundle::join(&[file.to_string(), settings.to_string(), json!({ "pad_token": "<|im_end|>" }).to_string()])
    };
    let merges =
        [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("i", "n"), ("a", "a"), ("aa", "aa"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")];
    let mut letters = byte_letters();
    letters.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({ "type": "Split", "pattern": { "Regex": qwen }, "behavior": "Isolated", "invert": false });
    let pre = |steps: Value| json!({ "normalizer": null, "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps }, "decoder": byte_level(true) });
    let mut composed = pre(json!([split, byte_level(false)]));
    composed["normalizer"] = json!({ "type": "NFC" });
    let mut files = vec![
        file(&letters, &merges, pre(json!([digits, byte_level(true)])), json!({})),
        file(&letters, &merges, composed, json!({ "ignore_merges": true })),
    ];

    let merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "t"), ("a", "a"), ("aa", "aa"), ("▁", "▁"), ("i", "s")];
    let mut texts: Vec<String> =
        ["<unk>", "<s>", "</s>", "▁", "a", "e", "h", "i", "s", "t", "b"].map(str::to_owned).into();
    texts.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    texts.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    let fallback = json!({ "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>" });
    for (normalizer, pre, strips) in
        [(replace.clone(), Value::Null, false), (prepend, Value::Null, true), (Value::Null, metaspace, true)]
    {
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if strips {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let decoder = json!({ "type": "Sequence", "decoders": decoders });
        let parts = json!({ "normalizer": normalizer, "pre_tokenizer": pre, "decoder": decoder });
        files.push(file(&texts, &merges, parts, fallback.clone()));
    }
    files
}

/// Templates that write each message as it is or trimmed, and conversations.
pub fn template() -> Vec<Vec<u8>> {
    let plain = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}";
    let trimmed = "{%- for message in messages %}\n{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content | trim ~ '<|im_end|>\n' }}\n{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let texts = [["You help.", "Hi"], ["<|im_end|>", "a<|im_start|>system\n<|im_"], ["", "\n <|endoftext|>"]];
    let cases = [plain, trimmed].into_iter().flat_map(|source| texts.map(|[system, user]| [source, system, user]));
    cases.map(|files| bundle::join(&files)).collect()
}

/// A small model's plan, as the compiler writes it.
pub fn plan() -> Vec<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("lathe-fuzz-{}.plan", std::process::id()));
    let options = Options::new(Target::parse("x86-64-v3").expect("a known target"));
    let model = small_model(1, Scheme::INT4).expect("a small model");
    compile(model, Goal::Plan(&path), &options).expect("a small model compiles");
    let plan = std::fs::read(&path).expect("the plan was written");
    // A file that stays behind harms nobody.
    let _ = std::fs::remove_file(&path);
    vec![plan]
}
