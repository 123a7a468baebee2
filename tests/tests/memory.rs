//! The memory of a compile: 512 MB and twice the largest tensor, however large the checkpoint is.

#[expect(dead_code, reason = "the reader's tests need more of it")]
#[path = "../../models/tests/hf/directory.rs"]
mod directory;

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use lathe_tests::{Scratch, lathe_compile, python};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 4096;
const FFN: usize = 14336;
const KEYS: usize = 1024;
const LAYERS: usize = 19;
/// What a compile may take beside the tensors in hand, in bytes.
const BASE: u64 = 512_000_000;

/// Runs a command and prints the most memory that it had, in KiB.
const MEASURE: &str = "\
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)";

/// The shapes of all tensors, as those of Llama 3.1 8B, with the vocabulary of the small tokenizer.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let of_layer = [
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![KEYS, HIDDEN]),
        ("self_attn.v_proj", vec![KEYS, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![FFN, HIDDEN]),
        ("mlp.up_proj", vec![FFN, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, FFN]),
    ];
    let layer = |at: usize| {
        of_layer.clone().map(|(role, shape)| (format!("model.layers.{at}.{role}.weight"), shape)).into_iter()
    };
    let outer = [("model.embed_tokens.weight", vec![128, HIDDEN]), ("model.norm.weight", vec![HIDDEN])];
    outer.map(|(name, shape)| (name.to_owned(), shape)).into_iter().chain((0..LAYERS).flat_map(layer)).collect()
}

#[test]
#[ignore = "compiles 8 GB; cargo xtask test --all runs it"]
fn eight_gigabytes_compile_within_the_bound() {
    let scratch = Scratch::new();
    let folder = scratch.file("sparse");
    let mut model = directory::directory("BF16");
    model.tensors.clear();
    let sizes = [("hidden_size", HIDDEN), ("intermediate_size", FFN), ("num_hidden_layers", LAYERS)];
    let heads = [("num_attention_heads", 32), ("num_key_value_heads", 8), ("head_dim", 128)];
    for (key, size) in sizes.into_iter().chain(heads) {
        model.config[key] = size.into();
    }
    model.write_to(&folder);

    let (mut header, mut end, mut largest) = (Map::new(), 0, 0);
    for (name, shape) in shapes() {
        let bytes = 2 * shape.iter().product::<usize>() as u64;
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes] }));
        (end, largest) = (end + bytes, largest.max(bytes));
    }
    assert!(end > 8_000_000_000, "{end} bytes");
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).expect("it is made");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .expect("written");
    // The file system keeps a hole, which reads as zeros, in place of the data.
    file.set_len(8 + header.len() as u64 + end).expect("holes are supported");

    let plan = scratch.file("sparse.plan");
    let mut command = Command::new(python());
    command.args(["-c", MEASURE]).arg(lathe_compile()).arg(&folder).arg("-o").arg(&plan).arg("--quiet");
    let output = command.output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peak: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number of KiB");
    let (peak, bound) = (peak * 1024, BASE + 2 * largest);
    println!("{end} bytes of weights, the largest tensor {largest}: {peak} bytes of memory, bound {bound}");
    assert!(fs::metadata(&plan).expect("the plan is there").len() > end / 2);
    assert!(peak <= bound, "{peak} bytes, bound {bound}");
}
