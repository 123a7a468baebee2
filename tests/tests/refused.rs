//! Bad input at the command line, one row for each kind: what is wrong, the exit code, and words of the sentence, which
//! says what was expected, what was found and what to do.

#[expect(dead_code, reason = "the reader's tests need more of it")]
#[path = "../../models/tests/hf/directory.rs"]
mod directory;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use directory::{Directory, Tensor};
use lathe_ir::scheme::Scheme;
use lathe_models::gguf::write::{RawTensor, raw, to_bytes};
use lathe_models::gguf::{Header, TensorType, Value, ValueType};
use lathe_models::seeded::small_model;
use lathe_tests::{Scratch, lathe, lathe_compile};
use serde_json::json;

/// Exit codes as `lathe-compile --help` documents them.
const DAMAGED: i32 = 3;
const UNSUPPORTED: i32 = 4;

const PAGE: &[u8] = b"<!DOCTYPE html><html><body>Sign in</body></html>";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
const ONNX: &[u8] = b"\x08\x08\x12\x07pytorch";
const TENSORRT: &[u8] = b"ftrt\x00\x00\x00\x00\x01\x00\x00\x00";

/// What is wrong, the bytes, the exit code, words of the sentence.
type Row<'a, T> = (&'a str, T, i32, &'a [&'a str]);

/// Runs a command that has to fail and gives what is wrong with how it did.
fn fault(what: &str, command: &mut Command, code: i32, words: &[&str]) -> Option<String> {
    let output = command.output().expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{what} ({code}): {}", message.trim());
    let missing: Vec<&&str> = words.iter().filter(|word| !message.contains(**word)).collect();
    let is_right = output.status.code() == Some(code) && missing.is_empty() && message.starts_with("error: ");
    let one_sentence = message.trim_end().lines().count() == 1;
    let found = || format!("{what}: {:?}, lacks {missing:?}: {message}", output.status.code());
    (!(is_right && one_sentence)).then(found)
}

/// The fault of a compile that reads every weight.
fn compile(what: &str, model: &Path, code: i32, words: &[&str]) -> Option<String> {
    let mut command = Command::new(lathe_compile());
    command.arg(model).args(["--emit", "manifest", "--target", "x86-64-v3", "--activations", "f32"]);
    fault(what, &mut command, code, words)
}

#[track_caller]
fn none(faults: Vec<Option<String>>) {
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The small model's file, its metadata and its tensors.
struct Parts {
    whole: Vec<u8>,
    pairs: Vec<(String, Value)>,
    tensors: Vec<RawTensor>,
}

fn parts() -> Parts {
    let whole = to_bytes(&small_model(1, Scheme::F32).expect("it is sound")).expect("it is written");
    let Header { metadata, tensors } = Header::parse(&whole).expect("it is read");
    let tensor = |(name, entry): (String, lathe_models::gguf::TensorEntry)| RawTensor {
        name,
        dims: entry.dims,
        ty: entry.ty,
        bytes: whole[entry.bytes].to_vec(),
    };
    Parts { pairs: metadata.into_iter().collect(), tensors: tensors.into_iter().map(tensor).collect(), whole }
}

/// The small model's file after a change.
fn gguf(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = parts();
    change(&mut parts);
    raw(&parts.pairs, &parts.tensors)
}

fn with(key: &str, value: Value) -> Vec<u8> {
    gguf(|parts| {
        parts.pairs.retain(|(other, _)| other != key);
        parts.pairs.push((key.to_owned(), value));
    })
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A tensor of the file, changed.
fn tensor(name: &str, change: impl FnOnce(&mut RawTensor)) -> Vec<u8> {
    gguf(|parts| change(parts.tensors.iter_mut().find(|tensor| tensor.name == name).expect("it has that name")))
}

/// The bytes with some of them exchanged, wherever they stand first.
fn exchanged(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("they are there");
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn bad_gguf_files() {
    const UP: &str = "blk.1.ffn_up.weight";
    let whole = parts().whole;
    // Behind the name stand the number of dimensions, two of them, and the type.
    let ty = |id: u32| {
        let at = whole.windows(UP.len()).position(|window| window == UP.as_bytes()).expect("it is there");
        let mut bytes = whole.clone();
        bytes[at + UP.len() + 4 + 16..][..4].copy_from_slice(&id.to_le_bytes());
        bytes
    };
    let nan = tensor(UP, |tensor| tensor.bytes[400..404].copy_from_slice(&f32::NAN.to_le_bytes()));
    let misshapen = tensor(UP, |tensor| {
        tensor.dims = vec![64, 8];
        tensor.bytes.truncate(64 * 8 * 4);
    });
    let extra = gguf(|parts| {
        parts.tensors.push(RawTensor { name: "x".to_owned(), dims: vec![1], ty: TensorType::F32, bytes: vec![0; 4] });
    });
    let twice = gguf(|parts| parts.pairs.push(("llama.block_count".to_owned(), Value::Unsigned(2))));
    let fewer = gguf(|parts| {
        parts.pairs.retain(|(key, _)| key != "llama.vocab_size");
        for (key, value) in &mut parts.pairs {
            match (key.as_str(), value) {
                ("tokenizer.ggml.tokens", Value::Strings(texts)) => texts.truncate(100),
                ("tokenizer.ggml.token_type", Value::Scalars { bytes, .. }) => bytes.truncate(400),
                ("tokenizer.ggml.merges", Value::Strings(merges)) => merges.clear(),
                _ => {}
            }
        }
    });
    let wide = Value::Scalars { element: ValueType::U8, bytes: vec![0; 1 << 20] };
    let rows: &[Row<Vec<u8>>] = &[
        ("an empty file", Vec::new(), DAMAGED, &["expected a GGUF file", "an empty file", "download it again"]),
        ("a file cut in its header", whole[..200].to_vec(), DAMAGED, &["cut short", "get a complete copy"]),
        ("a file cut in its data", whole[..whole.len() - 9].to_vec(), DAMAGED, &["needs", "cut short"]),
        ("a TensorRT plan", TENSORRT.to_vec(), DAMAGED, &["a TensorRT plan", "give it the checkpoint"]),
        ("an ONNX file", ONNX.to_vec(), DAMAGED, &["an ONNX model", "give the checkpoint"]),
        ("a git-LFS pointer", POINTER.to_vec(), DAMAGED, &["a git-LFS pointer", "git lfs pull"]),
        ("an HTML page", PAGE.to_vec(), DAMAGED, &["a web page", "use the link of the file itself"]),
        ("another version", exchanged(whole.clone(), b"GGUF\x03", b"GGUF\x02"), DAMAGED, &["version 2", "convert"]),
        (
            "an unknown architecture",
            with("general.architecture", text("mamba")),
            UNSUPPORTED,
            &["'mamba'", "'stablelm'"],
        ),
        ("an unknown quantization", ty(19), UNSUPPORTED, &[UP, "IQ1_S", "Q4_K", "use a file"]),
        ("a quantization from the future", ty(999), UNSUPPORTED, &[UP, "unknown type 999"]),
        ("an unknown tokenizer", with("tokenizer.ggml.pre", text("klingon")), UNSUPPORTED, &["'klingon'", "'qwen2'"]),
        ("an unknown knob", with("llama.expert_count", Value::Unsigned(8)), UNSUPPORTED, &["'llama.expert_count'"]),
        ("an unknown rotation", with("llama.rope.scaling.type", text("spiral")), UNSUPPORTED, &["'spiral'", "'yarn'"]),
        ("a missing tensor", gguf(|parts| parts.tensors.retain(|tensor| tensor.name != UP)), DAMAGED, &[UP, "missing"]),
        ("an extra tensor", extra, UNSUPPORTED, &["'x'", "not understood"]),
        ("a misshapen tensor", misshapen, DAMAGED, &[UP, "96 rows of 64", "8 rows of 64", "get both anew"]),
        ("a NaN", nan, DAMAGED, &[UP, "row 1", "finite numbers", "NaN", "damaged"]),
        ("a key twice", twice, DAMAGED, &["each key once", "'llama.block_count' twice"]),
        ("an absurd number of layers", with("llama.block_count", Value::Unsigned(1 << 31)), DAMAGED, &["2147483648"]),
        ("no layers", with("llama.block_count", Value::Unsigned(0)), DAMAGED, &["an integer from 1", "the integer 0"]),
        ("an array for a number", with("llama.block_count", wide), DAMAGED, &["an array of 1048576"]),
        ("an absurd alignment", with("general.alignment", Value::Unsigned(24)), DAMAGED, &["a power of two", "24"]),
        ("fewer tokens than rows", fewer, DAMAGED, &["128 rows", "100 tokens", "get the tokenizer"]),
        ("a part alone", with("split.count", Value::Unsigned(2)), DAMAGED, &["'-00001-of-00002.gguf'"]),
    ];
    let scratch = Scratch::new();
    let path = scratch.file("model.gguf");
    let check = |(what, bytes, code, words): &Row<Vec<u8>>| {
        fs::write(&path, bytes).expect("it is written");
        compile(what, &path, *code, words)
    };
    let mut faults: Vec<Option<String>> = rows.iter().map(check).collect();
    fs::write(&path, &whole).expect("it is written");
    let sound = Command::new(lathe_compile()).arg(&path).args(["--emit", "graph"]).output().expect("it starts");
    faults.push((!sound.status.success()).then(|| "the file without a change is sound".to_owned()));
    faults.push(compile("no file", &scratch.file("none.gguf"), DAMAGED, &["cannot open", "none.gguf"]));
    none(faults);
}

#[test]
fn bad_directories() {
    const EMBED: &str = "model.embed_tokens.weight";
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    type Change = Box<dyn Fn(Directory) -> Directory>;
    let change = |change: fn(&mut Directory)| -> Change {
        Box::new(move |mut directory| {
            change(&mut directory);
            directory
        })
    };
    let file = |name: &'static str, bytes: &'static [u8]| -> Change {
        Box::new(move |mut directory| {
            directory.files.insert(name, bytes.to_vec());
            directory
        })
    };
    let index = |place: &'static str| -> Change {
        Box::new(move |directory| directory.sharded(|map| drop(map.insert(UP.to_owned(), place.into()))))
    };
    let rows: &[Row<Change>] = &[
        ("a page for a config", file("config.json", PAGE), DAMAGED, &["config.json", "a web page"]),
        ("a pointer for weights", file("model.safetensors", POINTER), DAMAGED, &["git lfs pull"]),
        ("a pointer for a tokenizer", file("tokenizer.json", POINTER), DAMAGED, &["tokenizer.json", "git lfs pull"]),
        ("ONNX for weights", file("model.safetensors", ONNX), DAMAGED, &["an ONNX model"]),
        ("TensorRT for weights", file("model.safetensors", TENSORRT), DAMAGED, &["a TensorRT plan"]),
        ("half a config", file("config.json", b"{\"hidden_size\": 64"), DAMAGED, &["config.json", "JSON", "EOF"]),
        ("a key twice", file("config.json", b"{\"a\": 1, \"a\": 2}"), DAMAGED, &["'a' twice"]),
        (
            "an unknown architecture",
            change(|directory| directory.config["architectures"] = json!(["MambaForCausalLM"])),
            UNSUPPORTED,
            &["'MambaForCausalLM'", "'StableLmForCausalLM'"],
        ),
        (
            "an unknown quantization",
            change(|directory| directory.config["quantization_config"] = json!({ "quant_method": "awq" })),
            UNSUPPORTED,
            &["'quantization_config.quant_method'", "not understood"],
        ),
        (
            "weights of eight bits",
            change(|directory| {
                let tensor = Tensor { dtype: "F8_E4M3", shape: vec![96, 64], bytes: vec![0; 96 * 64] };
                directory.tensors.insert(UP.to_owned(), tensor);
            }),
            UNSUPPORTED,
            &[UP, "F8_E4M3", "BF16"],
        ),
        ("a missing tensor", change(|directory| drop(directory.tensors.remove(UP))), DAMAGED, &[UP, "missing"]),
        (
            "a misshapen tensor",
            change(|directory| {
                drop(directory.tensors.insert(UP.to_owned(), Tensor::new("F32", &[2, 2], &[0.0; 4])));
            }),
            DAMAGED,
            &[UP, "96 rows of 64", "2 rows of 2"],
        ),
        (
            "an extra tensor",
            change(|directory| drop(directory.tensors.insert("x".to_owned(), Tensor::new("F32", &[1], &[0.0])))),
            UNSUPPORTED,
            &["'x'", "not understood"],
        ),
        (
            "a NaN",
            change(|directory| {
                let mut values = vec![0.5; 96 * 64];
                values[64 * 7 + 3] = f32::NAN;
                directory.tensors.insert(UP.to_owned(), Tensor::new("F32", &[96, 64], &values));
            }),
            DAMAGED,
            &[UP, "row 7", "NaN"],
        ),
        (
            "a tensor that leaves its file",
            Box::new(|mut directory| {
                let mut bytes = directory::safetensors(&directory.tensors);
                bytes.truncate(bytes.len() - 100);
                directory.files.insert("model.safetensors", bytes);
                directory
            }),
            DAMAGED,
            &["cut short", "get a complete copy"],
        ),
        ("an index that leaves the folder", index("../../model.safetensors"), DAMAGED, &[UP, "plain name"]),
        ("an index with a whole path", index("/etc/model.safetensors"), DAMAGED, &[UP, "plain name"]),
        ("an index to nothing", index("model-9.safetensors"), DAMAGED, &["cannot open", "model-9.safetensors"]),
        ("an index to another file", index("model-1.safetensors"), DAMAGED, &[UP, "by the index"]),
        (
            "a tokenizer of another kind",
            change(|directory| directory.tokenizer["model"]["type"] = "Unigram".into()),
            UNSUPPORTED,
            &["'model.type'", "Unigram", "BPE"],
        ),
        (
            "more tokens than rows",
            change(|directory| directory.tokenizer["model"]["vocab"]["new"] = 128.into()),
            DAMAGED,
            &["128 rows of the embedding", "'new'"],
        ),
        (
            "an embedding of another size",
            change(|directory| directory.config["vocab_size"] = 130.into()),
            DAMAGED,
            &[EMBED, "130 rows", "128 rows"],
        ),
    ];
    let check = |(what, change, code, words): &Row<Change>| {
        let folder: PathBuf = change(directory::directory("BF16")).write();
        compile(what, &folder, *code, words)
    };
    none(rows.iter().map(check).collect());
}

#[test]
fn what_is_no_plan_is_named() {
    let scratch = Scratch::new();
    let model = scratch.file("model.gguf");
    fs::write(&model, parts().whole).expect("it is written");
    let plan = scratch.file("sound.plan");
    let compiled = Command::new(lathe_compile()).arg(&model).arg("-o").arg(&plan).arg("--quiet").output();
    assert!(compiled.expect("the compiler starts").status.success());
    let plan = fs::read(plan).expect("it is there");
    let mut flipped = plan.clone();
    flipped[plan.len() / 2] ^= 1;
    let rows: &[Row<Vec<u8>>] = &[
        ("an empty file", Vec::new(), DAMAGED, &["empty"]),
        ("a TensorRT plan", TENSORRT.to_vec(), DAMAGED, &["TensorRT"]),
        ("an ONNX file", ONNX.to_vec(), DAMAGED, &["ONNX"]),
        ("a git-LFS pointer", POINTER.to_vec(), DAMAGED, &["git lfs pull"]),
        ("an HTML page", PAGE.to_vec(), DAMAGED, &["HTML page"]),
        ("a checkpoint", parts().whole, DAMAGED, &["GGUF", "compiled first"]),
        ("half a plan", plan[..plan.len() / 2].to_vec(), DAMAGED, &["cut off", "compile it again"]),
        ("a flipped bit", flipped, DAMAGED, &["does not match its digest", "compile it again"]),
    ];
    let path = scratch.file("not.plan");
    let check = |(what, bytes, code, words): &Row<Vec<u8>>| {
        fs::write(&path, bytes).expect("it is written");
        fault(what, Command::new(lathe()).arg("run").arg(&path).args(["-p", "a"]), *code, words)
    };
    none(rows.iter().map(check).collect());
}
