//! Bad input of every kind: each is refused, and the sentence says what was found.

use lathe_ir::graph::{Arrangement, Part, RowOrder, Weight};
use lathe_models::ModelError;
use lathe_models::checkpoint::assemble;
use lathe_models::hf::safetensors::Shard;
use serde_json::{Value, json};

use super::directory::{Directory, Tensor, directory, safetensors, with_header};

const EMBED: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Expects an error whose sentence contains all of these words.
#[track_caller]
fn refused<T>(result: Result<T, ModelError>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted; expected {words:?}") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "expected '{word}' in: {message}");
    }
}

/// Expects that a changed directory is refused.
#[track_caller]
fn changed(change: impl FnOnce(&mut Directory), words: &[&str]) {
    let mut directory = directory("BF16");
    change(&mut directory);
    refused(directory.open(), words);
}

#[track_caller]
fn knob(key: &str, value: impl Into<Value>, words: &[&str]) {
    changed(|directory| directory.config[key] = value.into(), &[&[key, "config.json"], words].concat());
}

#[test]
fn knobs_that_are_not_understood_are_refused_by_name() {
    for key in ["num_experts", "logits_scaling", "sliding_window", "quantization_config", "layer_types"] {
        knob(key, 1, &["not understood"]);
    }
    knob("quantization_config", json!({ "bits": 4 }), &["'quantization_config.bits'", "not understood"]);
    changed(
        |directory| directory.config["rope_scaling"] = json!({ "rope_type": "spiral" }),
        &["rope_type", "'spiral'", "'llama3'"],
    );
    changed(|directory| directory.config["rope_scaling"] = json!({ "factor": 8.0 }), &["'rope_scaling.factor'"]);
    knob("rope_interleaved", true, &["false", "true"]);
    knob("hidden_act", "relu", &["'silu'", "'relu'"]);
    let other = json!(["MambaForCausalLM"]);
    changed(|directory| directory.config["architectures"] = other, &["'MambaForCausalLM'", "'LlamaForCausalLM'"]);
    knob("architectures", json!(["A", "B"]), &["one name"]);
}

#[test]
fn knobs_out_of_range_are_refused_by_name() {
    knob("hidden_size", 0, &["integer 0"]);
    knob("hidden_size", "wide", &["'wide'"]);
    knob("num_hidden_layers", -1, &["-1"]);
    knob("rms_norm_eps", Value::Null, &["missing"]);
    changed(
        |directory| directory.config["num_hidden_layers"] = 5000.into(),
        &["num_hidden_layers", "at most 1024", "5000"],
    );
    changed(|directory| directory.config["head_dim"] = 16.into(), &["q_proj", "64 rows of 64", "128 rows of 64"]);
    changed(|directory| directory.config["num_key_value_heads"] = 3.into(), &["a divisor of the 4"]);
    changed(|directory| directory.config["vocab_size"] = (1u64 << 31).into(), &["vocab_size", "2147483648"]);
    changed(|directory| directory.config["vocab_size"] = 0x7fff_ffff.into(), &[EMBED, "128 rows of 64"]);
    let uneven = |directory: &mut Directory| {
        directory.config["head_dim"] = Value::Null;
        directory.config["num_attention_heads"] = 7.into();
    };
    changed(uneven, &["num_attention_heads", "a divisor of the width 64"]);
}

#[test]
fn files_of_other_kinds_are_named() {
    let kinds: [(&[u8], &str); 7] = [
        (b"ftrt\x00\x00\x00\x00\x00\x00\x00\x00", "a TensorRT plan"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04archive.zip", "a zip archive"),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "a GGUF file"),
        (b"", "an empty file"),
    ];
    for (bytes, kind) in kinds {
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            changed(|directory| drop(directory.files.insert(file, bytes.to_vec())), &[file, kind]);
        }
    }
    let alone = |name: &'static str, bytes: &[u8]| {
        let mut directory = directory("BF16");
        directory.tensors.clear();
        directory.files.insert(name, bytes.to_vec());
        directory
    };
    for (name, at) in [("rank0.engine", 0), ("model.onnx", 1), ("pytorch_model.bin", 4), ("model.gguf", 5)] {
        refused(alone(name, kinds[at].0).open(), &["model.safetensors", name, kinds[at].1]);
    }
    let folder = alone("model.gguf", kinds[5].0).write();
    for missing in ["config.json", "tokenizer.json"] {
        let folder = directory("BF16").write();
        std::fs::remove_file(folder.join(missing)).unwrap();
        refused(lathe_models::open(&folder), &[missing, "model.safetensors"]);
    }
    for other in ["tokenizer.model", "vocab.json"] {
        let mut directory = directory("BF16");
        directory.files.insert(other, b"\n\x0e\n\x05<unk>".to_vec());
        let folder = directory.write();
        std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
        refused(lathe_models::open(&folder), &["a tokenizer.json", other, "save_pretrained"]);
    }
    refused(lathe_models::open(&folder.join("nothing")), &["cannot open", "nothing"]);
}

#[test]
fn json_is_read_strictly() {
    let file = |text: &str, words: &[&str]| {
        changed(|directory| drop(directory.files.insert("config.json", text.as_bytes().to_vec())), words);
    };
    file(r#"{"hidden_size": 64, "hidden_size": 32}"#, &["config.json", "'hidden_size' twice"]);
    file(r#"{"a": {"b": 1, "b": 1}}"#, &["'b' twice"]);
    file(r#"{"hidden_size": 64"#, &["JSON", "EOF"]);
    file(&"{\"a\":".repeat(100_000), &["JSON", "recursion limit"]);
    file("[]", &["config.json"]);
    file("{\"a\": \"\u{1}\"}", &["JSON"]);
}

#[test]
fn missing_extra_and_misshapen_tensors_are_refused() {
    changed(|directory| drop(directory.tensors.remove(UP)), &[UP, "missing", "96 rows of 64"]);
    let small = Tensor::new("BF16", &[2, 2], &[0.0; 4]);
    changed(
        |directory| drop(directory.tensors.insert(UP.to_owned(), small.clone())),
        &[UP, "96 rows of 64", "2 rows of 2"],
    );
    let bias = "model.layers.0.self_attn.q_proj.bias".to_owned();
    changed(|directory| drop(directory.tensors.insert(bias.clone(), small.clone())), &[&bias, "not understood"]);
    // A tied head that is no copy of the embedding would be ignored.
    let head = Tensor::new("BF16", &[128, 64], &vec![0.0; 128 * 64]);
    changed(|directory| drop(directory.tensors.insert("lm_head.weight".to_owned(), head)), &["lm_head.weight"]);
    changed(|directory| directory.config["tie_word_embeddings"] = false.into(), &["lm_head.weight", "missing"]);
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for (dtype, value) in [("F32", f32::NAN), ("F16", f32::INFINITY), ("BF16", f32::NEG_INFINITY)] {
        let mut directory = directory("BF16");
        let mut values = vec![0.5; 96 * 64];
        values[64 * 7 + 3] = value;
        directory.tensors.insert(UP.to_owned(), Tensor::new(dtype, &[96, 64], &values));
        let model = directory.open().unwrap();
        let parts = vec![Part { tensor: UP.to_owned(), rows: 96, order: RowOrder::AsStored, plus_one: false }];
        let weight = Weight { name: "up".to_owned(), parts, arrangement: Arrangement::Concat };
        refused(assemble(&*model.checkpoint, &weight), &[UP, "row 7", &value.to_string()]);
    }
}

#[test]
fn an_index_names_exactly_what_its_files_hold() {
    let index = |file: &str, words: &[&str]| {
        refused(directory("BF16").sharded(|map| drop(map.insert(UP.to_owned(), file.into()))).open(), words);
    };
    index("model-1.safetensors", &[UP, "it in 'model-1.safetensors'", "it in 'model-2.safetensors'"]);
    index("model-9.safetensors", &["cannot open", "model-9.safetensors"]);
    let outside =
        ["../model-2.safetensors", "/etc/model.safetensors", "a\\model.safetensors", "a/model.safetensors", ".."];
    for path in [&outside[..], &["c:model.safetensors", "config.json", "", ".safetensors"]].concat() {
        index(path, &["model.safetensors.index.json", UP, "plain name"]);
    }
    let extra =
        |map: &mut serde_json::Map<String, Value>| drop(map.insert("x".to_owned(), "model-1.safetensors".into()));
    refused(directory("BF16").sharded(extra).open(), &["tensor 'x'", "no such tensor there"]);
    refused(directory("BF16").sharded(|map| drop(map.remove(UP))).open(), &[UP, "none, by the index"]);
    refused(directory("BF16").sharded(serde_json::Map::clear).open(), &["weight_map"]);

    let mut both = directory("BF16").sharded(|_| {});
    both.tensors = directory("BF16").tensors;
    refused(both.open(), &["one set of weights", "both model.safetensors and an index"]);
}

/// Refuses a safetensors file with this header and these many bytes of data.
#[track_caller]
fn header(header: &Value, data: usize, words: &[&str]) {
    refused(Shard::from_bytes(with_header(&header.to_string(), &vec![0; data])), words);
}

#[test]
fn a_header_keeps_to_its_own_file() {
    let tensor = |dtype: &str, shape: Value, from: u64, to: u64| json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
    let one = |dtype: &str, shape: Value, to: u64| json!({ "w": tensor(dtype, shape, 0, to) });
    assert!(Shard::from_bytes(with_header(&one("F32", json!([2, 2]), 16).to_string(), &[0; 16])).is_ok());
    header(&one("F32", json!([2, 2]), 16), 15, &["'w'", "needs 16 bytes", "found 15", "cut short"]);
    header(&one("F32", json!([2, 2]), 16), 17, &["the data", "its end at byte"]);
    header(&one("F32", json!([2, 2]), 12), 16, &["'w'", "the bytes of [2, 2] elements"]);
    header(&one("F32", json!([1u64 << 62, 1u64 << 62]), 16), 16, &["'w'", "data_offsets 0 to 16"]);
    header(&json!({ "w": tensor("F32", json!([1]), 8, 4) }), 16, &["'w'", "8 to 4"]);
    header(&json!({ "w": tensor("F32", json!([1]), u64::MAX - 3, u64::MAX) }), 16, &["'w'"]);
    header(&one("F32", json!([0]), 0), 0, &["'w'", "a vector or a matrix", "[0]"]);
    header(&one("F32", json!([]), 4), 4, &["'w'", "a vector or a matrix"]);
    header(&one("F32", json!([1, 1, 1]), 4), 4, &["'w'", "[1, 1, 1]"]);
    header(&one("F8_E4M3", json!([4]), 4), 4, &["'w'", "F8_E4M3", "F32, F16 or BF16"]);
    header(&one("I64", json!([1]), 8), 8, &["'w'", "I64"]);
    header(&json!({ "w": { "dtype": "F32", "shape": [1] } }), 4, &["'w'", "data_offsets"]);
    header(&json!({ "w": 1 }), 4, &["'w'", "a dtype"]);
    header(&one("F32", json!([-1]), 4), 4, &["'w'"]);
    let two = |from, to| json!({ "a": tensor("F32", json!([2]), 0, 8), "b": tensor("F32", json!([1]), from, to) });
    header(&two(4, 8), 8, &["overlap"]);
    header(&two(12, 16), 16, &["a hole"]);
    refused(Shard::from_bytes(with_header(r#"{"w": 1, "w": 1}"#, &[])), &["'w' twice"]);
    refused(Shard::from_bytes(with_header("{", &[])), &["header", "JSON"]);
}

#[test]
fn every_truncation_and_no_flipped_bit_passes_unnoticed_or_panics() {
    let tensors = [
        ("a".to_owned(), Tensor::new("BF16", &[2, 3], &[1.0; 6])),
        ("b".to_owned(), Tensor::new("F32", &[2], &[1.0; 2])),
    ];
    let whole = safetensors(tensors.iter().map(|(name, tensor)| (name, tensor)));
    assert!(Shard::from_bytes(whole.clone()).is_ok());
    for length in 0..whole.len() {
        assert!(Shard::from_bytes(whole[..length].to_vec()).is_err(), "accepted {length} of {} bytes", whole.len());
    }
    let header = whole.len() - 20;
    let mut refused = 0;
    for bit in 0..header * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(Shard::from_bytes(flipped).is_err());
    }
    assert!(refused > header * 4, "only {refused} flips were noticed");
}

#[track_caller]
fn tokenizer(change: impl FnOnce(&mut Value), words: &[&str]) {
    changed(|directory| change(&mut directory.tokenizer), &[&["tokenizer"], words].concat());
}

#[test]
fn a_tokenizer_that_works_in_another_way_is_refused() {
    tokenizer(|file| file["normalizer"] = json!({ "type": "NFKC" }), &["'normalizer'", "NFKC"]);
    let lower = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "Lowercase" }] });
    tokenizer(|file| file["normalizer"] = lower, &["'normalizer'", "Lowercase"]);
    tokenizer(
        |file| file["pre_tokenizer"] = json!({ "type": "Whitespace" }),
        &["'pre_tokenizer'", "Whitespace", "smollm"],
    );
    tokenizer(
        |file| file["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false.into(),
        &["'pre_tokenizer'"],
    );
    tokenizer(|file| file["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = false.into(), &["'pre_tokenizer'"]);
    tokenizer(|file| file["decoder"] = json!({ "type": "WordPiece" }), &["'decoder'", "WordPiece"]);
    tokenizer(|file| file["post_processor"] = json!({ "type": "BertProcessing" }), &["'post_processor'", "Bert"]);
    let other = json!({ "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<|endoftext|>" } }, { "Sequence": { "id": "A" } }] });
    tokenizer(|file| file["post_processor"] = other, &["'post_processor'", "endoftext"]);
    tokenizer(|file| file["model"]["type"] = "Unigram".into(), &["'model.type'", "Unigram"]);
    tokenizer(|file| file["model"]["byte_fallback"] = true.into(), &["'pre_tokenizer'", "byte_fallback"]);
    tokenizer(|file| file["model"]["ignore_merges"] = 1.into(), &["ignore_merges", "1"]);
    let split = |pattern: &str, behavior: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": behavior, "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false },
        ] })
    };
    tokenizer(|file| file["pre_tokenizer"] = split("\\s+", "Isolated"), &["'pre_tokenizer'", "s+", "qwen2"]);
    let known = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    tokenizer(|file| file["pre_tokenizer"] = split(known, "Removed"), &["'pre_tokenizer'", "Removed"]);
    let prefixed = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
    tokenizer(|file| file["pre_tokenizer"] = prefixed, &["'pre_tokenizer'", "add_prefix_space"]);
    tokenizer(|file| file["model"]["end_of_word_suffix"] = "</w>".into(), &["end_of_word_suffix", "</w>"]);
    tokenizer(|file| file["model"]["dropout"] = 0.1.into(), &["dropout", "0.1"]);
    tokenizer(|file| file["model"]["unk_token"] = "<|endoftext|>".into(), &["unk_token", "every byte"]);
    tokenizer(|file| file["model"]["seed"] = 1.into(), &["'seed'"]);
    tokenizer(|file| file["extra"] = 1.into(), &["'extra'"]);
    tokenizer(|file| file["version"] = "2.0".into(), &["'version'", "2.0"]);
    for flag in ["special", "normalized", "lstrip", "rstrip", "single_word"] {
        tokenizer(|file| file["added_tokens"][0][flag] = 1.into(), &[flag, "<|endoftext|>", "true or false"]);
    }
    let composed = |file: &mut Value| {
        file["normalizer"] = json!({ "type": "NFC" });
        let entry = json!({ "id": 127, "content": "\u{e9}", "special": false, "normalized": true });
        file["added_tokens"].as_array_mut().unwrap().push(entry);
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| *id != 127);
        file["model"]["merges"].as_array_mut().unwrap().pop();
    };
    tokenizer(composed, &["'normalized'", "\u{e9}"]);
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_refused() {
    tokenizer(|file| file["model"]["vocab"]["new"] = 128.into(), &["128 rows of the embedding", "128 for 'new'"]);
    tokenizer(|file| file["model"]["vocab"]["new"] = u64::MAX.into(), &["'new'"]);
    tokenizer(|file| file["model"]["vocab"]["new"] = "1".into(), &["none for 'new'"]);
    tokenizer(|file| file["model"]["vocab"]["new"] = 5.into(), &["each id once", "new"]);
    tokenizer(|file| file["model"]["vocab"] = json!([]), &["'vocab'"]);
    tokenizer(|file| file["model"]["merges"] = Value::Null, &["'merges'"]);
    tokenizer(|file| file["model"]["merges"][0] = 1.into(), &["'merges'", "1"]);
    tokenizer(|file| file["model"]["merges"][0] = json!(["Ġ", "t", "h"]), &["'merges'"]);
    tokenizer(|file| file["model"]["merges"][0] = json!(["Ġ", "zz"]), &["'zz' of merge 0"]);
    tokenizer(
        |file| file["added_tokens"][0]["content"] = "<other>".into(),
        &["each id once", "<|endoftext|>", "<other>"],
    );
    tokenizer(|file| file["added_tokens"][0]["content"] = Value::Null, &["'added_tokens'"]);
    let spelled = |file: &mut Value| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("~").unwrap();
        vocab.insert("a b".to_owned(), id);
    };
    tokenizer(spelled, &["byte-to-unicode", "a b"]);

    let setting = |key: &str, value: Value, words: &[&str]| {
        changed(|directory| directory.tokenizer_config[key] = value, &[&[key], words].concat());
    };
    setting("bos_token", json!("<s>"), &["the text of a token", "<s>"]);
    setting("add_prefix_space", json!(true), &["false"]);
    setting("add_bos_token", json!(true), &["post_processor"]);
    setting("add_bos_token", json!("yes"), &["true or false"]);
    setting("chat_template", json!([]), &["'default'"]);
    setting("added_tokens_decoder", json!([]), &["an object of added tokens by id", "[]"]);
    setting("added_tokens_decoder", json!({ "one": {} }), &["by id", "one"]);
    setting("added_tokens_decoder", json!({ "1": 5 }), &["by id"]);
    setting(
        "added_tokens_decoder",
        json!({ "1": { "content": "<s>" } }),
        &["<|im_start|>", "as tokenizer.json", "<s>"],
    );
    let beyond = json!({ "500": { "content": "<s>" } });
    changed(|directory| directory.tokenizer_config["added_tokens_decoder"] = beyond, &["128 rows", "500 for '<s>'"]);
    changed(|directory| directory.config["eos_token_id"] = 128.into(), &["'eos_token_id'", "below 128"]);
    let end = |directory: &mut Directory| {
        drop(directory.files.insert("generation_config.json", br#"{"eos_token_id": ["x"]}"#.to_vec()));
    };
    changed(end, &["generation_config.json", "'eos_token_id'", "x"]);
    for (settings, words) in [
        (r#"{"temperature": "hot", "top_p": 0.5}"#, ["'temperature'", "at least 0", "hot"]),
        (r#"{"temperature": -1}"#, ["'temperature'", "at least 0", "-1"]),
        (r#"{"top_p": 7}"#, ["'top_p'", "above 0 and at most 1", "7"]),
        (r#"{"top_p": 0}"#, ["'top_p'", "above 0 and at most 1", "0"]),
        (r#"{"top_k": 1.5}"#, ["'top_k'", "whole number", "1.5"]),
        (r#"{"min_p": 2}"#, ["'min_p'", "from 0 to 1", "2"]),
        (r#"{"repetition_penalty": 0}"#, ["'repetition_penalty'", "from 0.01 to 10", "0"]),
        (r#"{"do_sample": 1}"#, ["'do_sample'", "true or false", "1"]),
    ] {
        let file = ("generation_config.json", settings.as_bytes().to_vec());
        changed(|directory| directory.files.extend([file]), &[&["generation_config.json"], &words[..]].concat());
    }
    changed(
        |directory| drop(directory.files.insert("chat_template.jinja", vec![0xff])),
        &["chat_template.jinja", "UTF-8"],
    );
}

#[test]
fn knobs_that_contradict_are_named_as_in_the_file() {
    knob("num_key_value_heads", 3, &["'num_key_value_heads'", "a divisor of the 4 query heads", "3"]);
    knob("rope_theta", -1.5, &["'rope_theta'", "a positive number"]);
    knob("rms_norm_eps", 0, &["'rms_norm_eps'", "a positive number"]);
    knob("head_dim", 33, &["'head_dim'", "an even number"]);
    knob("num_hidden_layers", 5000, &["'num_hidden_layers'", "at most 1024"]);
    knob("model_type", "qwen2", &["'llama', as architectures says LlamaForCausalLM", "qwen2"]);
}

#[test]
fn no_flipped_bit_of_a_text_makes_the_reader_panic() {
    let mut directory = directory("BF16").sharded(|_| {});
    directory.files.insert("generation_config.json", br#"{"eos_token_id": [0, 2]}"#.to_vec());
    let folder = directory.write();
    let files = [
        ("config.json", 100),
        ("generation_config.json", 10),
        ("model.safetensors.index.json", 100),
        ("tokenizer.json", 100),
        ("tokenizer_config.json", 30),
    ];
    for (name, least) in files {
        let whole = std::fs::read(folder.join(name)).unwrap();
        // A few hundred places, spread over the file.
        let refused = (0..whole.len()).step_by(whole.len().div_ceil(300)).filter(|&at| {
            let mut flipped = whole.clone();
            // Another bit in each byte, of the seven that ASCII has.
            flipped[at] ^= 1 << (at % 7);
            std::fs::write(folder.join(name), flipped).unwrap();
            lathe_models::open(&folder).is_err()
        });
        let refused = refused.count();
        assert!(refused > least, "only {refused} flips in {} bytes of {name} were noticed", whole.len());
        std::fs::write(folder.join(name), whole).unwrap();
    }
    lathe_models::open(&folder).unwrap();
}
