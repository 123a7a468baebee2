//! tokenizer.json files in the forms that published models have, made of the vocabularies at hand, against Hugging Face's
//! own library.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use lathe_models::config::Metadata;
use lathe_models::gguf::{Header, Value as Stored};
use lathe_models::hf::tokenizer::{Settings, read};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::{gemma3, qwen2, smollm2};
use serde_json::{Value, json};

use super::{emitted, texts};

/// Kinds of tokens in GGUF files.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The vocabulary of a GGUF file as it spells it.
struct Vocabulary {
    texts: Vec<String>,
    kinds: Vec<i64>,
    merges: Vec<String>,
    scores: Vec<f32>,
}

fn vocabulary(path: &Path) -> Vocabulary {
    let file = std::fs::read(path).expect("the model can be read");
    let pairs: BTreeMap<String, Stored> = Header::metadata(&file).expect("the header is sound");
    let metadata = Metadata::new(&pairs);
    let texts = metadata.texts("tokenizer.ggml.tokens").expect("there are tokens");
    let merges = metadata.texts("tokenizer.ggml.merges").unwrap_or_default();
    Vocabulary {
        texts: texts.to_vec(),
        kinds: metadata.integers("tokenizer.ggml.token_type").expect("there are types"),
        merges: merges.to_vec(),
        scores: metadata.floats("tokenizer.ggml.scores").unwrap_or_default(),
    }
}

impl Vocabulary {
    /// The added tokens; `matching` adds to each.
    fn added(&self, matching: &Value) -> Vec<Value> {
        let is_added = |(_, kind): &(usize, &i64)| [CONTROL, USER_DEFINED].contains(kind);
        let entry = |(id, kind): (usize, &i64)| {
            let mut entry = json!({ "id": id, "content": self.texts[id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind == CONTROL });
            for (key, value) in matching.as_object().expect("an object") {
                entry[key] = value.clone();
            }
            entry
        };
        self.kinds.iter().enumerate().filter(is_added).map(entry).collect()
    }

    fn ids(&self) -> HashMap<&str, usize> {
        self.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect()
    }
}

/// A text is what the library's own encoder makes of it, as trusted and as plain text.
#[track_caller]
fn check(name: &str, file: &Value, rows: usize, longest: usize) {
    let object = file.as_object().expect("an object");
    let tokenizer = read(object, Settings::default(), rows).expect("the form is known");
    check_against(name, &emitted(&tokenizer), file, longest);
}

fn check_against(name: &str, ours: &Tokenizer, file: &Value, longest: usize) {
    let mut oracle = tokenizers::Tokenizer::from_bytes(file.to_string()).expect("it is a tokenizer.json");
    let mut compared = 0;
    // Runs of ▁ are added tokens of Gemma's, and in place of them Lathe merges them as the spaces that they mean.
    let is_compared = |text: &str| text.len() <= longest && !text.contains("▁▁");
    for (text, control) in texts(ours).into_iter().filter(|(text, _)| is_compared(text)) {
        oracle.set_encode_special_tokens(control == Control::AsText);
        let expected = oracle.encode_fast(text.as_str(), false).expect("the library encodes any text");
        let tokens = ours.encode(&text, control);
        if tokens != expected.get_ids() {
            let at = tokens.iter().zip(expected.get_ids()).take_while(|(ours, theirs)| ours == theirs).count();
            let shown = |ids: &[u32]| -> Vec<String> {
                let some = &ids[at.saturating_sub(2)..ids.len().min(at + 4)];
                some.iter().map(|id| format!("{id} {:?}", String::from_utf8_lossy(ours.bytes(*id)))).collect()
            };
            let text: String = text.chars().take(200).collect();
            panic!(
                "{name} {control:?} {text:?}\n  token {at}: {:?}\n  {:?}",
                shown(&tokens),
                shown(expected.get_ids())
            );
        }
        compared += 1;
    }
    assert!(compared > 5000, "only {compared} texts were compared");
}

/// The parts of byte-level files that differ: normalizer, pre-tokenizer, `ignore_merges`, how added tokens match.
fn byte_level_forms() -> Vec<(&'static str, Value, Value, bool, Value)> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split = |pattern: &str, behavior: &str, invert: bool| {
        let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": behavior, "invert": invert });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    let lines = |digits: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let cased = |suffix: &str, digits: &str| {
        let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
        let before = r"[^\r\n\p{L}\p{N}]?";
        format!(
            r"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let tiktoken = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let digits = json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level(true)] });
    let (nfc, none) = (json!({ "type": "NFC" }), Value::Null);
    let plain = json!({});
    vec![
        ("gpt2", none.clone(), byte_level(true), false, json!({ "normalized": true })),
        ("smollm, starcoder2, granite", none.clone(), digits, false, plain.clone()),
        ("llama-3", none.clone(), split(&lines("{1,3}"), "Isolated", false), true, plain.clone()),
        ("qwen2, qwen3", nfc.clone(), split(&lines(""), "Isolated", false), false, plain.clone()),
        ("stablelm", nfc, byte_level(true), false, plain.clone()),
        ("olmo2", none.clone(), split(tiktoken, "Isolated", false), false, plain.clone()),
        (
            "phi-4",
            none.clone(),
            split(&lines("{1,3}"), "Removed", true),
            false,
            json!({ "lstrip": true, "rstrip": true }),
        ),
        (
            "phi-4 mini",
            none.clone(),
            split(&cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "{1,3}"), "Isolated", false),
            false,
            plain.clone(),
        ),
        ("mistral nemo", none, split(&cased("", ""), "Isolated", false), true, json!({ "single_word": true })),
    ]
}

fn byte_level(path: &Path) {
    let vocabulary = vocabulary(path);
    for (name, normalizer, pre, ignore_merges, matching) in byte_level_forms() {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer, "pre_tokenizer": pre,
            "added_tokens": vocabulary.added(&matching), "post_processor": { "type": "ByteLevel", "add_prefix_space": true,
                "trim_offsets": false, "use_regex": true },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                "vocab": vocabulary.ids(), "merges": vocabulary.merges },
        });
        // The library's regular expressions give up on longer runs.
        check(name, &file, vocabulary.texts.len(), 20_000);
    }
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn byte_level_forms_over_a_large_vocabulary() {
    byte_level(&qwen2());
}

/// The vocabulary of `SmolLM2` lacks some bytes, as the library then leaves them out.
#[test]
fn byte_level_forms_over_a_small_vocabulary() {
    byte_level(&smollm2());
}

/// Merges as converters make them of scores: every pair of tokens whose joined text is a token, the best first.
fn merges_of_scores(vocabulary: &Vocabulary) -> Vec<[&str; 2]> {
    let ids = vocabulary.ids();
    let mut merges = Vec::new();
    for (id, text) in vocabulary.texts.iter().enumerate() {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((-vocabulary.scores[id], *left_id, *right_id, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(.., pair)| pair).collect()
}

#[test]
fn sentencepiece_forms() {
    let mut vocabulary = vocabulary(&gemma3());
    // A part is quicker to build: the special tokens and bytes, some words, and every character, which come last.
    let is_kept: Vec<bool> =
        (0..).zip(&vocabulary.texts).map(|(id, text)| id < 40_000 || text.chars().count() == 1).collect();
    let mut kept = is_kept.iter();
    vocabulary.texts.retain(|_| *kept.next().unwrap_or(&false));
    let mut kept = is_kept.iter();
    vocabulary.kinds.retain(|_| *kept.next().unwrap_or(&false));
    let mut kept = is_kept.iter();
    vocabulary.scores.retain(|_| *kept.next().unwrap_or(&false));
    let rows = vocabulary.texts.len();
    for (text, kind) in vocabulary.texts.iter_mut().zip(&vocabulary.kinds) {
        // Converters to GGUF put spaces into these.
        if *kind == USER_DEFINED {
            *text = text.replace(' ', "▁");
        }
    }
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace] });
    let split =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    let metaspace =
        |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
    let none = Value::Null;
    let rstrip = json!({ "rstrip": true });
    let forms = [
        ("gemma", replace, split, false, json!({})),
        ("llama-2, mistral", prepend.clone(), none.clone(), true, json!({})),
        ("phi-3", prepend, none.clone(), true, rstrip),
        ("mistral v0.3", none.clone(), metaspace("first"), true, json!({})),
        ("metaspace everywhere", none, metaspace("always"), true, json!({})),
    ];
    let merges = merges_of_scores(&vocabulary);
    for (name, normalizer, pre, has_prefix, matching) in forms {
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if has_prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer, "pre_tokenizer": pre,
            "added_tokens": vocabulary.added(&matching), "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocabulary.ids(), "merges": merges },
        });
        check(name, &file, rows, usize::MAX);
    }
}
