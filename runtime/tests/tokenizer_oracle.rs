//! The tokenizer against the Hugging Face `tokenizers` library, over a small vocabulary that both are built from.

use std::collections::HashMap;

use lathe_plan::{Merge, TokenKind, TokenizerTables};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use serde_json::json;

const CONTROL: [&str; 3] = ["<|end|>", "<|end", "<s>"];
const USER_DEFINED: [&str; 2] = ["<think>", "‖"];

/// What merges are learned from: few distinct words, many repeated pairs, several scripts.
const CORPUS: &str = "the theme of this thesis is that there they're thin; isn't it? It's theirs, I'll say. \
    naïve café déjà vu — „Ünïcödé“ – größer Straße. Привет, мир! Как дела, мир? 中文 中文字符 文字 漢字。 \
    नमस्ते दुनिया का की के। 0 1 22 333 4444 ½ ² Ⅷ ٣٤   tabs\t\ttabs\n\n\nlines\r\n  indent\n    indent\n\
    fn main() { let x = a[i] + b[j]; } // code -> => != == :: 👍👍🏽 👩‍👩‍👧 <|en <thin";

/// A token's text in the library's alphabet: each byte as a printable character.
fn spelled(bytes: &[u8]) -> String {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let shifted: Vec<u8> = (0..=255).filter(|byte| !is_printable(*byte)).collect();
    let spell = |byte: &u8| match shifted.iter().position(|other| other == byte) {
        Some(index) => char::from_u32(256 + index as u32).expect("a letter of Latin Extended-A"),
        None => char::from(*byte),
    };
    bytes.iter().map(spell).collect()
}

/// Learns merges from the whole corpus without cutting it, so that many of them cross the places where text is cut.
fn learned(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut tokens: Vec<Vec<u8>> = CORPUS.bytes().map(|byte| vec![byte]).collect();
    let mut merges: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    while merges.len() < count {
        let mut counts: HashMap<(&[u8], &[u8]), usize> = HashMap::new();
        for pair in tokens.windows(2) {
            *counts.entry((&pair[0], &pair[1])).or_default() += 1;
        }
        let Some((pair, _)) = counts.into_iter().max_by_key(|(pair, count)| (*count, *pair)) else { break };
        let (left, right) = (pair.0.to_vec(), pair.1.to_vec());
        let mut next: Vec<Vec<u8>> = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let joins = tokens[at] == left && tokens.get(at + 1) == Some(&right);
            next.push(if joins { [left.clone(), right.clone()].concat() } else { tokens[at].clone() });
            at += if joins { 2 } else { 1 };
        }
        tokens = next;
        merges.push((left, right));
    }
    merges
}

/// Both tokenizers over the same vocabulary: all bytes but that of q, the added tokens, the learned merges.
fn both() -> (Tokenizer, tokenizers::Tokenizer) {
    let mut tables = TokenizerTables { pretokenizer: "smollm".to_owned(), ..TokenizerTables::default() };
    let mut ids: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut add = |tables: &mut TokenizerTables, bytes: &[u8], kind: TokenKind| {
        let id = *ids.entry(bytes.to_vec()).or_insert(tables.len() as u32);
        if id as usize == tables.len() {
            tables.push(bytes, kind);
        }
        id
    };
    let mut vocabulary: HashMap<String, u32> = HashMap::new();
    for byte in (0..=255).filter(|byte| *byte != b'q') {
        vocabulary.insert(spelled(&[byte]), add(&mut tables, &[byte], TokenKind::Normal));
    }
    for text in CONTROL {
        vocabulary.insert(text.to_owned(), add(&mut tables, text.as_bytes(), TokenKind::Control));
    }
    for text in USER_DEFINED {
        vocabulary.insert(text.to_owned(), add(&mut tables, text.as_bytes(), TokenKind::UserDefined));
    }
    let mut merges = Vec::new();
    for (left, right) in learned(400) {
        merges.push((spelled(&left), spelled(&right)));
        let joined = [left.clone(), right.clone()].concat();
        let [left, right] = [left, right].map(|part| add(&mut tables, &part, TokenKind::Normal));
        let merged = add(&mut tables, &joined, TokenKind::Normal);
        vocabulary.insert(spelled(&joined), merged);
        tables.merges.push(Merge { left, right, merged });
    }
    let added = |text: &str, special: bool| {
        json!({ "id": vocabulary[text], "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special })
    };
    let added: Vec<_> = CONTROL
        .iter()
        .map(|text| added(text, true))
        .chain(USER_DEFINED.iter().map(|text| added(text, false)))
        .collect();
    let file = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
    });
    let oracle = tokenizers::Tokenizer::from_bytes(file.to_string()).expect("the file is a tokenizer.json");
    (Tokenizer::new(tables).expect("the tables are sound"), oracle)
}

/// Random strings of what scanners tell apart, with whole words and added tokens among it.
fn random_texts(count: usize) -> Vec<String> {
    const PARTS: [&str; 48] = [
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{85}",
        "\u{200b}",
        "'",
        "'s",
        "'ll",
        "'RE",
        "'d",
        "a",
        "the",
        "this",
        "THE",
        "é",
        "e\u{301}",
        "ß",
        "мир",
        "中",
        "文字",
        "का",
        "नम",
        "ⓐ",
        "ª",
        "ǅ",
        "ʰ",
        "0",
        "12",
        "½",
        "²",
        "Ⅷ",
        "٣",
        "!",
        "...",
        "->",
        "_",
        "👍",
        "👩‍👩‍👧",
        "<|end|>",
        "<s>",
        "<think>",
        "q",
    ];
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    (0..count).map(|_| (0..random(24)).map(|_| PARTS[random(PARTS.len())]).collect()).collect()
}

#[test]
fn tokens_are_those_of_the_library() {
    let (tokenizer, oracle) = both();
    let mut texts = random_texts(4000);
    texts.push(CORPUS.to_owned());
    texts.extend(CORPUS.split('.').map(str::to_owned));
    let mut merged = 0;
    for text in texts {
        let expected = oracle.encode(text.as_str(), false).expect("the library encodes any text");
        let tokens = tokenizer.encode(&text, Control::Recognize);
        assert_eq!(tokens, expected.get_ids(), "{text:?}");
        merged += text.len() - tokens.len();
    }
    assert!(merged > 10_000, "the merges hardly ever applied: {merged}");
}

#[test]
fn every_character_is_cut_as_by_the_library() {
    let (tokenizer, oracle) = both();
    // Between letters, a letter joins both sides, a number stands alone, and others part them.
    let classes = ('\0'..=char::MAX).step_by(3).filter(|c| u32::from(*c) < 0x3_5000);
    for c in classes {
        let text = format!("the{c}the the {c}");
        let expected = oracle.encode(text.as_str(), false).expect("the library encodes any text");
        assert_eq!(tokenizer.encode(&text, Control::Recognize), expected.get_ids(), "U+{:04X}", u32::from(c));
    }
}
