//! Tokenizers against llama.cpp's, on real vocabularies: each pre-tokenizer over each vocabulary that merges by rank,
//! and `SentencePiece`'s scores; and against Hugging Face's library on tokenizer.json files of the published kinds ([`hub`]).
//!
//! Where the models or the Python package are missing, `cargo xtask setup` says what it brings.

mod hub;
mod templates;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use lathe_models::config::Metadata;
use lathe_models::gguf::{Header, Value};
use lathe_plan::PackedTokenizer;
use lathe_runtime::stream::TextStream;
use lathe_runtime::tokenizer::decoder::Decoder;
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::{CORPUS, gemma3, python, qwen2, root, smollm2};

/// The tokenizer of a GGUF file as the compiler writes it; `pre` replaces the file's pre-tokenizer unless it is empty.
fn tokenizer(path: &Path, pre: &str) -> Tokenizer {
    let file = std::fs::read(path).expect("the model can be read");
    let mut metadata = Header::metadata(&file).expect("the header is sound");
    if !pre.is_empty() {
        metadata.insert("tokenizer.ggml.pre".to_owned(), Value::String(pre.to_owned()));
    }
    let tokenizer = lathe_models::tokenizer::Tokenizer::read(&Metadata::new(&metadata)).expect("it is supported");
    emitted(&tokenizer)
}

/// The runtime's tokenizer by way of a plan's bytes.
fn emitted(tokenizer: &lathe_models::tokenizer::Tokenizer) -> Tokenizer {
    let bytes = lathe_compiler::emit::tokenizer(tokenizer).to_bytes();
    let begin = Instant::now();
    let tables = PackedTokenizer::from_bytes(bytes).expect("the section reads back");
    let loaded = Tokenizer::new(tables).expect("the tables are sound");
    println!("a vocabulary of {} tokens was ready after {:?}", loaded.tables().len(), begin.elapsed());
    loaded
}

/// What llama.cpp makes of the texts.
fn expected(path: &Path, pre: &str, texts: &[(String, Control)]) -> Vec<Vec<u32>> {
    let mut oracle = Command::new(python());
    oracle.arg(root().join("tests/tests/tokenizers/oracle.py")).arg(path).arg(pre);
    let mut oracle = oracle.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
    let mut input = Vec::new();
    for (text, control) in texts {
        input.push(u8::from(*control == Control::Recognize));
        input.extend((text.len() as u32).to_le_bytes());
        input.extend(text.as_bytes());
    }
    let mut stdin = oracle.stdin.take().expect("it is piped");
    let writer = thread::spawn(move || stdin.write_all(&input).expect("the oracle reads all texts"));
    let output = oracle.wait_with_output().expect("the oracle ends");
    writer.join().expect("writing does not panic");
    assert!(output.status.success(), "the oracle failed");
    let mut words = output.stdout.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut tokens = || {
        let count = words.next().expect("an answer for each text");
        (0..count).map(|_| words.next().expect("as many tokens as announced")).collect()
    };
    texts.iter().map(|_| tokens()).collect()
}

/// Texts that ask for every rule: the corpus and its lines, all sorts of characters between letters, what repeats for
/// long, random mixtures, and random bytes as far as they are text.
fn texts(tokenizer: &Tokenizer) -> Vec<(String, Control)> {
    let mut texts: Vec<String> = CORPUS.lines().map(str::to_owned).collect();
    texts.push(CORPUS.to_owned());
    texts
        .extend(["", " ", "\u{2581}", "\u{2581}\u{2581} \u{2581}a", "\0\u{1}\u{1b}[0m\u{7f}\u{85}"].map(str::to_owned));
    texts.push(" ".repeat(1 << 20));
    texts.extend(["\n", "a", "=", "\u{1f44d}", " a", "\r\n "].map(|part| part.repeat(3000)));
    let assigned = |c: &char| ASSIGNED_LONG_AGO.iter().any(|range| range.contains(&u32::from(*c)));
    let characters: Vec<char> = ('\0'..=char::MAX).filter(assigned).step_by(7).collect();
    for some in characters.chunks(64) {
        texts.push(some.iter().flat_map(|c| [*c, 'a', ' ', *c, *c, '\n', ' ', *c, '1', *c, '.']).collect());
    }
    let mut state = 11u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..3000 {
        texts.push((0..random(24)).map(|_| PARTS[random(PARTS.len())]).collect());
    }
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..random(200)).map(|_| random(256) as u8).collect();
        texts.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    let mut texts: Vec<(String, Control)> = texts.into_iter().map(|text| (text, Control::AsText)).collect();
    let controls: Vec<&str> = tokenizer.control_texts().collect();
    for text in &controls {
        for control in [Control::AsText, Control::Recognize] {
            texts.push((format!("x {text} {text}{text}\n{text}"), control));
        }
    }
    texts
}

/// Blocks whose characters have kept their category since long before any of the implementations were made.
const ASSIGNED_LONG_AGO: [std::ops::Range<u32>; 8] = [
    0..0x0220,
    0x0250..0x0370,
    0x0391..0x03a0,
    0x0410..0x0450,
    0x0904..0x0950,
    0x2010..0x2060,
    0x3000..0x3040,
    0x1_f300..0x1_f320,
];

/// What scanners tell apart, with whole words among it.
const PARTS: [&str; 40] = [
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{200b}",
    "'",
    "'s",
    "'LL",
    "'re",
    "a",
    "the",
    "This",
    "THE",
    "é",
    "e\u{301}",
    "ß",
    "мир",
    "中",
    "文字",
    "का",
    "\u{2581}",
    "ǅ",
    "0",
    "12",
    "345",
    "½",
    "Ⅷ",
    "!",
    "...",
    "->",
    "_",
    "$",
    "👩‍👩‍👧",
    "<div>",
];

/// Compares every text; `pre` is as for [`tokenizer`].
fn check(path: &Path, pre: &str) {
    let tokenizer = tokenizer(path, pre);
    // Some vocabularies lack bytes. They are left out as the `tokenizers` library does it, before merges apply;
    // llama.cpp lets them part their neighbours first. Texts with such bytes say nothing here.
    let mut spelled = [false; 256];
    for id in 0..tokenizer.tables().len() as u32 {
        if let [byte] = tokenizer.bytes(id) {
            spelled[usize::from(*byte)] = true;
        }
    }
    let mut texts = texts(&tokenizer);
    texts.retain(|(text, _)| text.bytes().all(|byte| spelled[usize::from(byte)]));
    for ((text, control), expected) in texts.iter().zip(expected(path, pre, &texts)) {
        let tokens = tokenizer.encode(text, *control);
        if tokens != expected {
            let at = tokens.iter().zip(&expected).take_while(|(ours, theirs)| ours == theirs).count();
            let shown = |tokens: &[u32]| {
                let some = &tokens[at.saturating_sub(2)..tokens.len().min(at + 4)];
                let texts = some.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes(*id)));
                format!("{:?} {some:?}", texts.collect::<Vec<_>>())
            };
            let text: String = text.chars().take(200).collect();
            panic!("{pre} {control:?} {text:?}\n  token {at}: {}\n  llama.cpp: {}", shown(&tokens), shown(&expected));
        }
        let decoded = tokenizer.decode(&tokens);
        let decoded = String::from_utf8_lossy(&decoded);
        assert_eq!(decoded.replace('\u{2581}', " "), text.replace('\u{2581}', " "), "the tokens of {text:?}");
        assert_eq!(streamed(&tokenizer, &tokens), decoded, "the stream of {text:?}");
    }
}

/// The text of tokens that arrive one by one.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let (mut decoder, mut stream) = (Decoder::new(tokenizer), TextStream::new());
    let mut text: String = tokens.iter().map(|token| stream.push(decoder.bytes(tokenizer, *token))).collect();
    text += &stream.finish();
    text
}

#[test]
fn smollm2_as_it_is() {
    check(&smollm2(), "");
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn qwen2_as_it_is() {
    check(&qwen2(), "");
}

#[test]
fn gemma3_as_it_is() {
    check(&gemma3(), "");
}

#[test]
fn other_pretokenizers_over_the_same_vocabulary() {
    others(&smollm2());
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn other_pretokenizers_over_a_vocabulary_of_all_bytes() {
    others(&qwen2());
}

fn others(path: &Path) {
    for pre in ["gpt-2", "llama-bpe", "default", "dbrx", "starcoder", "stablelm2"] {
        check(path, pre);
    }
}
