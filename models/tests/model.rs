//! From a file or a seed to a model: assembled weights, the graph and its evaluation, the tokenizer, and refusals.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use lathe_ir::eval::{Caches, Data, StepInputs, Tensor, evaluate};
use lathe_ir::graph::{Arrangement, NodeKind, Part, RowOrder, Weight};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::{DType, Elem, Type};
use lathe_ir::verify::verify;
use lathe_models::checkpoint::{Checkpoint, TensorInfo, assemble};
use lathe_models::config::ModelConfig;
use lathe_models::gguf::write::{to_bytes, write_gguf};
use lathe_models::gguf::{Gguf, Value, ValueType};
use lathe_models::layers::decoder;
use lathe_models::seeded::{MemoryCheckpoint, model, seeded, small_configs, small_llama, small_model, small_tokenizer};
use lathe_models::tokenizer::{Algorithm, Merge, TokenKind};
use lathe_models::{Model, ModelError, families, from_gguf, open};

/// A float matrix of one column, whose values tell the rows apart.
fn column(values: &[f32]) -> Matrix {
    Matrix { rows: values.len(), cols: 1, data: MatrixData::Float(values.to_vec()) }
}

/// An int8 matrix of 32 columns: row n has the code n everywhere and the scale n.
fn int8(rows: std::ops::Range<u8>) -> Matrix {
    let codes = rows.clone().flat_map(|n| [n; 32]).collect();
    let scales = rows.clone().map(|n| f16::from_f32(f32::from(n))).collect();
    let data = MatrixData::Quantized { scheme: Scheme::INT8, codes, scales, mins: Vec::new(), subs: Vec::new() };
    Matrix { rows: rows.len(), cols: 32, data }
}

/// Assembles these tensors, in this order of rows.
fn join(parts: &[&Matrix], order: RowOrder, arrangement: Arrangement) -> Result<Matrix, ModelError> {
    let named = parts.iter().enumerate().map(|(at, &matrix)| (at.to_string(), Scheme::F32, matrix.clone()));
    let checkpoint = MemoryCheckpoint::new(named);
    let part =
        |(at, matrix): (usize, &&Matrix)| Part { tensor: at.to_string(), rows: matrix.rows, order, plus_one: false };
    let parts = parts.iter().enumerate().map(part).collect();
    assemble(&checkpoint, &Weight { name: "joined".to_owned(), parts, arrangement })
}

#[test]
fn pairs_become_halves_in_each_head() {
    let stored = column(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let halves = join(&[&stored], RowOrder::PairsToHalves { head_dim: 4 }, Arrangement::Concat).unwrap();
    assert_eq!(halves, column(&[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]));
}

#[test]
fn parts_are_joined_one_after_the_other_or_in_turns() {
    let (a, b) = (column(&[0.0, 1.0, 2.0, 3.0]), column(&[10.0, 11.0, 12.0, 13.0]));
    let concat = join(&[&a, &b], RowOrder::AsStored, Arrangement::Concat).unwrap();
    assert_eq!(concat, column(&[0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]));
    let turns = join(&[&a, &b], RowOrder::AsStored, Arrangement::Interleave { rows: 2 }).unwrap();
    assert_eq!(turns, column(&[0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]));
    let both = join(&[&a, &b], RowOrder::PairsToHalves { head_dim: 4 }, Arrangement::Interleave { rows: 2 }).unwrap();
    assert_eq!(both, column(&[0.0, 2.0, 10.0, 12.0, 1.0, 3.0, 11.0, 13.0]));
}

#[test]
fn quantized_rows_move_with_their_codes_and_scales() {
    let joined = join(&[&int8(1..3), &int8(5..7)], RowOrder::AsStored, Arrangement::Interleave { rows: 1 }).unwrap();
    let MatrixData::Quantized { scheme, codes, scales, mins, .. } = joined.data else { panic!("{joined:?}") };
    assert_eq!((scheme, mins.len()), (Scheme::INT8, 0));
    assert_eq!(codes, [[1u8; 32], [5; 32], [2; 32], [6; 32]].concat());
    assert_eq!(scales.iter().map(|scale| scale.to_f32()).collect::<Vec<_>>(), [1.0, 5.0, 2.0, 6.0]);
}

#[test]
fn parts_of_different_schemes_become_floats() {
    let float = Matrix { rows: 1, cols: 32, data: MatrixData::Float(vec![0.5; 32]) };
    let joined = join(&[&int8(3..4), &float], RowOrder::AsStored, Arrangement::Concat).unwrap();
    // Code 3 means 3 − 128, and the scale is 3.
    assert_eq!(joined.data, MatrixData::Float([[-375.0f32; 32], [0.5; 32]].concat()));
}

/// Expects an error whose sentence contains all of these words.
#[track_caller]
fn refused<T>(result: Result<T, ModelError>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted; expected {words:?}") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "expected '{word}' in: {message}");
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let (three, four) = (column(&[0.0; 3]), column(&[0.0; 4]));
    let stored = RowOrder::AsStored;
    refused(join(&[], stored, Arrangement::Concat), &["'joined'", "at least one part"]);
    refused(join(&[&four, &int8(0..4)], stored, Arrangement::Concat), &["'joined'", "1 and 32 columns"]);
    refused(join(&[&four, &three], stored, Arrangement::Interleave { rows: 1 }), &["'joined'", "rows [4, 3]"]);
    refused(join(&[&four, &four], stored, Arrangement::Interleave { rows: 3 }), &["'joined'", "a multiple of 3"]);
    refused(join(&[&four], stored, Arrangement::Interleave { rows: 0 }), &["'joined'"]);
    for head_dim in [0, 1, 3, 8] {
        refused(join(&[&four], RowOrder::PairsToHalves { head_dim }, Arrangement::Concat), &["'joined'", "heads of"]);
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let plain = |matrix: &Matrix| join(&[matrix], RowOrder::AsStored, Arrangement::Concat);
    refused(plain(&column(&[0.0, 1.0, f32::NAN])), &["tensor '0', row 2", "NaN among its values"]);
    let mut matrix = int8(1..3);
    if let MatrixData::Quantized { scales, .. } = &mut matrix.data {
        scales[1] = f16::INFINITY;
    }
    refused(plain(&matrix), &["tensor '0', row 1", "inf among its scales"]);
}

/// Weights for the reference evaluation, in the types that the graph declares.
fn weight_data(model: &Model, weight: &Weight, ty: &Type) -> Result<Tensor, String> {
    let matrix = assemble(&*model.checkpoint, weight).map_err(|error| error.to_string())?;
    match ty.elem() {
        Some(Elem::Dense(_)) => Ok(Tensor::f32(vec![matrix.cols], matrix.to_f32())),
        _ => Ok(Tensor::matrix(matrix)),
    }
}

/// Logits of the last of `tokens`, fed in steps of at most `chunk`.
fn logits(model: &Model, tokens: &[i32], chunk: usize) -> Vec<f32> {
    let weights = |weight: &Weight, ty: &Type| weight_data(model, weight, ty);
    let mut caches = Caches::default();
    let mut last = Vec::new();
    for (at, part) in tokens.chunks(chunk).enumerate() {
        let step = StepInputs::sequence(0, (at * chunk) as i32, part);
        let outputs = evaluate(&model.graph, &weights, &step, &mut caches).unwrap();
        let Data::F32(values) = &outputs["logits"].data else { panic!("logits are floats") };
        last.clone_from(values);
    }
    last
}

#[test]
fn seeded_models_verify_and_give_logits_near_one() {
    for scheme in Scheme::ALL {
        let model = small_model(7, scheme).unwrap();
        verify(&model.graph).unwrap();
        let logits = logits(&model, &[5, 20, 90, 33], 4);
        assert_eq!(logits.len(), model.config.vocab);
        let power = (logits.iter().map(|logit| logit * logit).sum::<f32>() / logits.len() as f32).sqrt();
        assert!((0.2..5.0).contains(&power), "{scheme}: logits have the size {power}");
    }
}

#[test]
fn steps_of_any_size_give_the_same_logits() {
    let model = small_model(3, Scheme::INT4).unwrap();
    let tokens = [5, 20, 90, 33, 7];
    let whole = logits(&model, &tokens, 5);
    assert_eq!(whole, logits(&model, &tokens, 2));
    assert_ne!(whole, logits(&model, &[6, 20, 90, 33, 7], 5), "the first token must matter");
}

#[test]
fn a_seed_decides_the_weights() {
    let load = |seed| small_model(seed, Scheme::INT4).unwrap().checkpoint.load("blk.1.ffn_up.weight").unwrap();
    assert_eq!(load(1), load(1));
    assert_ne!(load(1), load(2));
}

/// A model whose matrices use all schemes, with a head of its own.
fn mixed_model() -> Model {
    let config = ModelConfig { tied_head: false, ..small_llama() };
    let scheme = |name: &str| match name {
        "output.weight" => Scheme::BF16,
        "token_embd.weight" => Scheme::INT8,
        name if name.ends_with("attn_v.weight") => Scheme::F32,
        _ => Scheme::INT4,
    };
    model(config, small_tokenizer(), 11, &scheme).unwrap()
}

#[test]
fn a_written_model_reads_back_exactly() {
    let of_family = |config| model(config, small_tokenizer(), 1, &|_| Scheme::INT4).unwrap();
    let models: Vec<Model> = std::iter::once(mixed_model()).chain(small_configs().into_iter().map(of_family)).collect();
    for (index, model) in models.into_iter().enumerate() {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("written-{index}.gguf"));
        write_gguf(&path, &model).unwrap();
        let read = open(&path).unwrap();
        assert_eq!(read.config, model.config);
        assert_eq!(read.tokenizer, model.tokenizer);
        assert_eq!((&read.chat_template, &read.licence), (&model.chat_template, &model.licence));
        assert_eq!(read.graph.to_string(), model.graph.to_string());
        assert_eq!(read.checkpoint.names(), model.checkpoint.names());
        for name in model.checkpoint.names() {
            assert_eq!(read.checkpoint.tensor(name), model.checkpoint.tensor(name));
            assert_eq!(read.checkpoint.load(name).unwrap(), model.checkpoint.load(name).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_head_is_the_embedding_only_when_tied() {
    let count = |model: &Model| {
        let order = model.graph.order();
        order.iter().filter(|&&id| matches!(model.graph.node(id).kind, NodeKind::Weight(_))).count()
    };
    // Nine weights in each of two layers, the embedding, the final norm.
    assert_eq!(count(&small_model(1, Scheme::F32).unwrap()), 20);
    assert_eq!(count(&mixed_model()), 21);
}

#[test]
fn the_cache_type_is_a_choice() {
    let model = small_model(1, Scheme::F32).unwrap();
    assert!(model.graph.to_string().contains("cache<f16, 2x32>"));
    let model = model.with_cache(DType::F32).unwrap();
    assert!(model.graph.to_string().contains("cache<f32, 2x32>"));
    verify(&model.graph).unwrap();
}

#[test]
fn missing_misshapen_and_unknown_tensors_are_refused() {
    let config = small_llama();
    let names = families::find("llama").unwrap().names;
    let whole = seeded(&config, 1, &|_| Scheme::F32).unwrap();
    let tensors: BTreeMap<String, Matrix> =
        whole.names().into_iter().map(|name| (name.to_owned(), whole.load(name).unwrap())).collect();
    let build = |change: &dyn Fn(&mut BTreeMap<String, Matrix>)| {
        let mut changed = tensors.clone();
        change(&mut changed);
        let named = changed.into_iter().map(|(name, matrix)| (name, Scheme::F32, matrix));
        decoder::build(&config, &names, &MemoryCheckpoint::new(named))
    };
    build(&|_| {}).unwrap();
    let remove = build(&|tensors| drop(tensors.remove("blk.1.attn_k.weight")));
    refused(remove, &["'blk.1.attn_k.weight' is missing", "64 rows of 64"]);
    let reshape = build(&|tensors| drop(tensors.insert("blk.0.ffn_up.weight".to_owned(), int8(0..8))));
    refused(reshape, &["'blk.0.ffn_up.weight'", "96 rows of 64", "8 rows of 32"]);
    let extra = build(&|tensors| drop(tensors.insert("rope_freqs.weight".to_owned(), column(&[1.0]))));
    refused(extra, &["'rope_freqs.weight'", "not understood"]);
}

/// Opens the small model with one metadata value replaced, added, or removed.
fn with(key: &str, value: impl Into<Option<Value>>) -> Result<Model, ModelError> {
    let mut gguf = Gguf::from_bytes(to_bytes(&small_model(1, Scheme::INT4)?)?)?;
    match value.into() {
        Some(value) => gguf.metadata.insert(key.to_owned(), value),
        None => gguf.metadata.remove(key),
    };
    from_gguf(gguf, "small.gguf")
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[test]
fn a_template_for_tools_is_taken_where_there_are_tools() {
    let template = with("tokenizer.chat_template.tool_use", text("x\n")).unwrap().chat_template.unwrap();
    assert!(template.starts_with("{% if tools %}\nx{%+ else %}\n{% for message"), "{template}");
}

#[test]
fn metadata_that_is_not_understood_is_refused_by_name() {
    with("general.author", text("anybody")).unwrap();
    for key in ["llama.rope.scaling.alpha", "llama.expert_count", "split.count", "tokenizer.ggml.precompiled_charsmap"]
    {
        refused(with(key, Value::Unsigned(1)), &[key, "not understood"]);
    }
    refused(with("llama.rope.scaling.type", text("spiral")), &["llama.rope.scaling.type", "'yarn'", "'spiral'"]);
    refused(with("general.type", text("adapter")), &["general.type", "'adapter'"]);
    refused(with("general.quantization_version", Value::Unsigned(3)), &["quantization_version", "integer 3"]);
    refused(with("general.architecture", text("mamba")), &["'mamba'", "'llama'"]);
}

#[test]
fn knobs_out_of_range_are_refused_by_name() {
    let number = |key: &str, value: u64| with(key, Value::Unsigned(value));
    refused(with("llama.block_count", None::<Value>), &["llama.block_count", "missing"]);
    refused(with("llama.block_count", text("two")), &["llama.block_count", "an integer", "'two'"]);
    refused(number("llama.block_count", 0), &["llama.block_count", "integer 0"]);
    refused(number("llama.block_count", 1 << 31), &["llama.block_count", "2147483648"]);
    refused(number("llama.block_count", (1 << 31) - 1), &["llama.block_count", "at most 1024 layers", "2147483647"]);
    refused(number("llama.block_count", 1024), &["'blk.2.attn_norm.weight' is missing"]);
    refused(number("llama.attention.head_count_kv", 3), &["head_count_kv", "a divisor of the 4", "3"]);
    refused(number("llama.attention.value_length", 16), &["value_length", "16"]);
    refused(number("llama.rope.dimension_count", 15), &["rope.dimension_count", "an even number up to 32", "15"]);
    refused(number("llama.rope.dimension_count", 34), &["rope.dimension_count", "an even number up to 32", "34"]);
    refused(number("llama.vocab_size", 127), &["llama.vocab_size", "128", "127"]);
    let float = |key: &str, value: f32| with(key, Value::F32(value));
    refused(float("llama.attention.layer_norm_rms_epsilon", f32::NAN), &["rms_epsilon", "NaN"]);
    refused(float("llama.rope.freq_base", -1.0), &["rope.freq_base", "-1"]);
}

#[test]
fn token_bytes_follow_the_byte_to_unicode_map() {
    let mut texts: Vec<String> = (0..small_tokenizer().tokens.len()).map(|id| format!("t{id}")).collect();
    // Space, newline, delete, the first and last byte of Latin-1's controls with the space after them, the soft hyphen,
    // and a letter that stands for itself.
    texts[3..10].clone_from_slice(&["Ġ", "Ċ", "ġ", "Ģ", "ł", "Ń", "é"].map(str::to_owned));
    let mut gguf = Gguf::from_bytes(to_bytes(&small_model(1, Scheme::INT4).unwrap()).unwrap()).unwrap();
    gguf.metadata.insert("tokenizer.ggml.tokens".to_owned(), Value::Strings(texts));
    gguf.metadata.insert("tokenizer.ggml.merges".to_owned(), Value::Strings(Vec::new()));
    let tokens = from_gguf(gguf, "small.gguf").unwrap().tokenizer.tokens;
    let bytes: Vec<&[u8]> = tokens[3..10].iter().map(|token| token.bytes.as_slice()).collect();
    assert_eq!(bytes, [[b' '], [b'\n'], [0x7f], [0x80], [0xa0], [0xad], [0xe9]]);
    assert_eq!((tokens[0].bytes.as_slice(), tokens[0].kind), (&b"t0"[..], TokenKind::Control));
}

#[test]
fn merges_name_tokens() {
    let tokenizer = with("general.author", text("anybody")).unwrap().tokenizer;
    let bytes = |id: u32| tokenizer.tokens[id as usize].bytes.as_slice();
    let Algorithm::Bpe { merges, .. } = &tokenizer.algorithm else { panic!("not BPE") };
    let Merge { left, right, merged } = merges[5];
    assert_eq!((bytes(left), bytes(right), bytes(merged)), (&b" t"[..], &b"he"[..], &b" the"[..]));
    assert_eq!(merges.len(), 28);
}

#[test]
fn contradictions_in_the_tokenizer_are_refused() {
    let merges = |line: &str| with("tokenizer.ggml.merges", Value::Strings(vec![line.to_owned()]));
    refused(merges("the"), &["merge 0", "'the'"]);
    refused(merges("a b c"), &["merge 0", "'a b c'"]);
    refused(merges("a zzz"), &["'zzz' of merge 0 to be a token"]);
    refused(merges("z z"), &["'zz' of merge 0 to be a token"]);
    let twice = Value::Strings(vec!["h e".to_owned(), "h e".to_owned()]);
    refused(with("tokenizer.ggml.merges", twice), &["each merge once", "'h e' again as merge 1"]);

    let kinds = |bytes: Vec<u8>| with("tokenizer.ggml.token_type", Value::Scalars { element: ValueType::U8, bytes });
    refused(kinds(vec![1; 127]), &["a type for each of 128 tokens", "127"]);
    refused(kinds(vec![7; 128]), &["a type from 1 to 6 for token 0", "7"]);
    let same = Value::Strings(vec!["a".to_owned(); 128]);
    refused(with("tokenizer.ggml.tokens", same), &["each token once", "'a' as 0 and 1"]);
    let odd = Value::Strings((0..128).map(|id| format!("{id} ")).collect());
    refused(with("tokenizer.ggml.tokens", odd), &["byte-to-unicode map in token 3", "' '"]);

    refused(with("tokenizer.ggml.bos_token_id", Value::Unsigned(128)), &["bos_token_id", "below 128", "128"]);
    refused(with("tokenizer.ggml.model", text("bert")), &["tokenizer.ggml.model", "'gpt2'", "'bert'"]);
    refused(with("tokenizer.ggml.pre", text("klingon")), &["tokenizer.ggml.pre", "'smollm'", "'klingon'"]);
    refused(with("tokenizer.ggml.add_sep_token", Value::Bool(true)), &["add_sep_token", "found true"]);
    let prefix = with("tokenizer.ggml.add_space_prefix", Value::Bool(true));
    refused(prefix, &["add_space_prefix", "found true"]);
    let mut gguf = Gguf::from_bytes(to_bytes(&small_model(1, Scheme::INT4).unwrap()).unwrap()).unwrap();
    gguf.metadata.remove("tokenizer.ggml.bos_token_id");
    gguf.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true));
    refused(from_gguf(gguf, "small.gguf"), &["add_bos_token", "a token to add"]);
}

/// The small model with a `SentencePiece` vocabulary: `▁` for spaces, a byte, scores.
fn with_scores(scores: Vec<f32>, edit: impl FnOnce(&mut Vec<String>)) -> Result<Model, ModelError> {
    let mut texts: Vec<String> = (0..128).map(|id| format!("▁{id}")).collect();
    texts[..2].clone_from_slice(&["<unk>", "<0xfF>"].map(str::to_owned));
    edit(&mut texts);
    let mut kinds = vec![1; 128];
    kinds[..2].copy_from_slice(&[2, 6]);
    let mut gguf = Gguf::from_bytes(to_bytes(&small_model(1, Scheme::INT4).unwrap()).unwrap()).unwrap();
    gguf.metadata.remove("tokenizer.ggml.merges");
    let scores = scores.into_iter().flat_map(f32::to_le_bytes).collect();
    for (key, value) in [
        ("model", text("llama")),
        ("tokens", Value::Strings(texts)),
        ("token_type", Value::Scalars { element: ValueType::U8, bytes: kinds }),
        ("scores", Value::Scalars { element: ValueType::F32, bytes: scores }),
    ] {
        gguf.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    }
    from_gguf(gguf, "small.gguf")
}

#[test]
fn sentencepiece_tokens_are_the_text_that_they_stand_for() {
    let model = with_scores(vec![-1.5; 128], |_| ()).unwrap();
    let tokenizer = &model.tokenizer;
    let bytes: Vec<&[u8]> = tokenizer.tokens[..3].iter().map(|token| token.bytes.as_slice()).collect();
    assert_eq!(bytes, [&b"<unk>"[..], b"\xff", b" 2"]);
    let Algorithm::Spm { scores, space_prefix } = &tokenizer.algorithm else { panic!("not SentencePiece") };
    assert_eq!((scores.len(), scores[7], *space_prefix), (128, -1.5, true));
    let again = from_gguf(Gguf::from_bytes(to_bytes(&model).unwrap()).unwrap(), "small.gguf").unwrap();
    assert_eq!(&again.tokenizer, tokenizer);
}

#[test]
fn contradictions_in_scores_and_bytes_are_refused() {
    refused(with_scores(vec![0.0; 127], |_| ()), &["a score for each of 128 tokens", "127 scores"]);
    let mut scores = vec![0.0; 128];
    scores[9] = f32::NAN;
    refused(with_scores(scores, |_| ()), &["a finite score for token 9", "NaN"]);
    for byte in ["<0x0>", "<0x+F>", "0x0A", "<0x0é>"] {
        let edit = |texts: &mut Vec<String>| byte.clone_into(&mut texts[1]);
        refused(with_scores(vec![0.0; 128], edit), &["a byte such as <0x0A> as token 1", byte]);
    }
}

#[test]
fn no_flipped_bit_of_a_model_makes_it_panic() {
    let config = ModelConfig { layers: 1, hidden: 32, heads: 1, kv_heads: 1, ffn: 32, ..small_llama() };
    let model = model(config, small_tokenizer(), 1, &|_| Scheme::INT4).unwrap();
    let whole = to_bytes(&model).unwrap();
    from_gguf(Gguf::from_bytes(whole.clone()).unwrap(), "tiny.gguf").unwrap();
    // A flip in the tensors' data changes a number and nothing else, so that only the header is tried.
    let bytes = |info: TensorInfo| (info.rows * info.scheme.row_bytes(info.cols)).next_multiple_of(32);
    let names = model.checkpoint.names();
    let data: usize = names.into_iter().filter_map(|name| model.checkpoint.tensor(name)).map(bytes).sum();
    let header = whole.len() - data;
    let mut refused = 0;
    for bit in 0..header * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused += u32::from(Gguf::from_bytes(flipped).and_then(|gguf| from_gguf(gguf, "tiny.gguf")).is_err());
    }
    assert!(refused > 10_000, "only {refused} flips were noticed");
}
