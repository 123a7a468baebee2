//! Byte-level BPE: files spell each byte of a token as a printable character and each merge as a pair of such texts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Algorithm, Merge, PreTokenizer, Token, TokenKind, must_be_false, wrong};
use crate::config::Metadata;
use crate::error::ModelError;

/// Reads the merges and the bytes of the tokens.
pub(super) fn read(
    metadata: &Metadata,
    texts: &[String],
    kinds: &[TokenKind],
) -> Result<(Algorithm, Vec<Token>), ModelError> {
    must_be_false(metadata, "tokenizer.ggml.add_space_prefix", "byte-level BPE has no space prefix")?;
    let pre = pre_tokenizer(metadata)?;
    let bytes_of = bytes_by_character();
    let token = |(id, (text, &kind)): (usize, (&String, &TokenKind))| token(id, text, kind, &bytes_of);
    let tokens = texts.iter().zip(kinds).enumerate().map(token).collect::<Result<_, _>>()?;
    let merges = merges(texts, metadata.texts("tokenizer.ggml.merges")?)?;
    Ok((Algorithm::Bpe { pre, whole_pieces: pre.keeps_whole_pieces(), nfc: false, merges }, tokens))
}

fn pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, ModelError> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?;
    PreTokenizer::named(name).ok_or_else(|| {
        let known: Vec<String> = PreTokenizer::ALL.iter().map(|pre| format!("'{}'", pre.name())).collect();
        let expected = format!("one of {} (others would cut text at other places)", known.join(", "));
        ModelError::Unsupported { key: key.to_owned(), expected, found: format!("'{name}'") }
    })
}

fn token(id: usize, text: &str, kind: TokenKind, bytes_of: &BTreeMap<char, u8>) -> Result<Token, ModelError> {
    if kind != TokenKind::Normal {
        return Ok(Token { bytes: text.as_bytes().to_vec(), kind });
    }
    let byte = |character: char| {
        bytes_of.get(&character).copied().ok_or_else(|| {
            let expected = format!("characters of the byte-to-unicode map in token {id}");
            wrong(expected, format!("'{}'", character.escape_debug()))
        })
    };
    Ok(Token { bytes: text.chars().map(byte).collect::<Result<_, _>>()?, kind })
}

/// Merges in the file are pairs of token texts with a space between; a space inside a token is spelled otherwise.
pub(crate) fn merges(texts: &[String], lines: &[String]) -> Result<Vec<Merge>, ModelError> {
    let mut ids: HashMap<&str, u32> = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(first) = ids.insert(text, id as u32) {
            let found = format!("'{}' as {first} and {id}", text.escape_debug());
            return Err(wrong("each token once".to_owned(), found));
        }
    }
    let mut seen = BTreeSet::new();
    let mut merges = Vec::with_capacity(lines.len());
    for (rank, line) in lines.iter().enumerate() {
        let shown = || format!("'{}'", line.escape_debug());
        let (left, right) = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '))
            .ok_or_else(|| wrong(format!("two tokens and a space between them in merge {rank}"), shown()))?;
        let id = |text: &str| {
            let missing = || wrong(format!("'{}' of merge {rank} to be a token", text.escape_debug()), shown());
            ids.get(text).copied().ok_or_else(missing)
        };
        let merge = Merge { left: id(left)?, right: id(right)?, merged: id(&format!("{left}{right}"))? };
        if !seen.insert((merge.left, merge.right)) {
            return Err(wrong("each merge once".to_owned(), format!("{} again as merge {rank}", shown())));
        }
        merges.push(merge);
    }
    Ok(merges)
}

/// GPT-2's map from bytes to printable characters: printable bytes of Latin-1 stand for themselves, the others for
/// the characters from U+0100 on, in order.
pub(crate) fn byte_characters() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

pub(crate) fn bytes_by_character() -> BTreeMap<char, u8> {
    (0..=255u8).zip(byte_characters()).map(|(byte, character)| (character, byte)).collect()
}
