//! The tokenizer of a model as neutral data: token bytes, merges as token ids, special tokens.
//!
//! Only byte-level BPE is read so far, which GGUF calls `gpt2`. Its files spell each byte of a token as a printable
//! character (the byte-to-unicode map of GPT-2); here the bytes themselves are kept. Tokens that the tokenizer never
//! makes from plain text, such as `<|im_end|>`, are spelled literally in the file.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::Metadata;
use crate::error::ModelError;

/// How text is cut before merges apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Single digits, then GPT-2's pattern (`SmolLM`, `SmolLM2`).
    SmolLm,
}

impl PreTokenizer {
    /// All of them.
    pub const ALL: &'static [PreTokenizer] = &[PreTokenizer::SmolLm];

    /// The name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::SmolLm => "smollm",
        }
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Made from text by merges.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model and is never shown: an end of text, a start of turn.
    Control,
    /// Matched literally in text before merges apply.
    UserDefined,
    /// A place that no text leads to.
    Unused,
    /// One byte, in vocabularies that have a token for each.
    Byte,
}

impl TokenKind {
    /// The kind with this number in a GGUF file.
    fn from_id(id: i64) -> Option<TokenKind> {
        use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].get(index).copied()
    }

    /// Its number in a GGUF file.
    pub(crate) fn id(self) -> i32 {
        match self {
            TokenKind::Normal => 1,
            TokenKind::Unknown => 2,
            TokenKind::Control => 3,
            TokenKind::UserDefined => 4,
            TokenKind::Unused => 5,
            TokenKind::Byte => 6,
        }
    }
}

/// A token of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The text that it stands for; not always whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// What it is for.
    pub kind: TokenKind,
}

/// Two neighbouring tokens become one. Earlier merges apply first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The token on the left.
    pub left: u32,
    /// The token on the right.
    pub right: u32,
    /// The token that they become.
    pub merged: u32,
}

/// A byte-level BPE tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    /// How text is cut before merges apply.
    pub pre: PreTokenizer,
    /// The vocabulary by token id.
    pub tokens: Vec<Token>,
    /// Merges, the first to apply first. Each token id in them exists.
    pub merges: Vec<Merge>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a chat, where that is another token than `eos`.
    pub eot: Option<u32>,
    /// All tokens that end an answer, where the model's generation settings list them.
    pub ends: Vec<u32>,
    /// Fills batches; Lathe never needs it.
    pub pad: Option<u32>,
    /// Stands for bytes that the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// Whether a text gets `bos` in front. Then `bos` is there.
    pub add_bos: bool,
    /// Whether a text gets `eos` at its end. Then `eos` is there.
    pub add_eos: bool,
}

impl Tokenizer {
    /// Reads the tokenizer from a file's metadata.
    pub fn read(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
        check_model(metadata)?;
        let pre = pre_tokenizer(metadata)?;
        let texts = metadata.texts("tokenizer.ggml.tokens")?;
        let tokens = tokens(texts, &metadata.integers("tokenizer.ggml.token_type")?)?;
        let merges = merges(texts, metadata.texts("tokenizer.ggml.merges")?)?;
        let special = |role: &str| special_token(metadata, role, tokens.len());
        let (bos, eos, eot) = (special("bos")?, special("eos")?, special("eot")?);
        let (pad, unk) = (special("padding")?, special("unknown")?);
        let add_bos = adds(metadata, "tokenizer.ggml.add_bos_token", bos)?;
        let add_eos = adds(metadata, "tokenizer.ggml.add_eos_token", eos)?;
        Ok(Tokenizer { pre, tokens, merges, bos, eos, eot, ends: Vec::new(), pad, unk, add_bos, add_eos })
    }
}

fn check_model(metadata: &Metadata) -> Result<(), ModelError> {
    let key = "tokenizer.ggml.model";
    let model = metadata.text(key)?;
    if model != "gpt2" {
        let expected = "'gpt2' (byte-level BPE), the only kind that is supported so far".to_owned();
        return Err(ModelError::Key { key: key.to_owned(), expected, found: format!("'{model}'") });
    }
    let key = "tokenizer.ggml.add_space_prefix";
    if metadata.optional_bool(key)? == Some(true) {
        let expected = "false: byte-level BPE has no space prefix".to_owned();
        return Err(ModelError::Key { key: key.to_owned(), expected, found: "true".to_owned() });
    }
    Ok(())
}

fn pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, ModelError> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?;
    PreTokenizer::ALL.iter().copied().find(|pre| pre.name() == name).ok_or_else(|| {
        let known: Vec<String> = PreTokenizer::ALL.iter().map(|pre| format!("'{}'", pre.name())).collect();
        let expected = format!("one of {} (others would cut text at other places)", known.join(", "));
        ModelError::Key { key: key.to_owned(), expected, found: format!("'{name}'") }
    })
}

fn tokens(texts: &[String], kinds: &[i64]) -> Result<Vec<Token>, ModelError> {
    if texts.len() != kinds.len() {
        return Err(wrong(format!("a type for each of {} tokens", texts.len()), format!("{} types", kinds.len())));
    }
    let bytes_of = bytes_by_character();
    texts.iter().zip(kinds).enumerate().map(|(id, (text, &kind))| token(id, text, kind, &bytes_of)).collect()
}

fn token(id: usize, text: &str, kind: i64, bytes_of: &BTreeMap<char, u8>) -> Result<Token, ModelError> {
    let kind = TokenKind::from_id(kind)
        .ok_or_else(|| wrong(format!("a type from 1 to 6 for token {id}"), kind.to_string()))?;
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

fn special_token(metadata: &Metadata, role: &str, count: usize) -> Result<Option<u32>, ModelError> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    match metadata.optional_index(&key)? {
        Some(id) if id as usize >= count => {
            Err(ModelError::Key { key, expected: format!("a token below {count}"), found: id.to_string() })
        }
        id => Ok(id),
    }
}

/// A flag that asks for a special token, which then has to exist.
fn adds(metadata: &Metadata, key: &str, token: Option<u32>) -> Result<bool, ModelError> {
    let adds = metadata.optional_bool(key)?.unwrap_or(false);
    if adds && token.is_none() {
        let (expected, found) = ("a token to add".to_owned(), "none in the metadata".to_owned());
        return Err(ModelError::Key { key: key.to_owned(), expected, found });
    }
    Ok(adds)
}

fn wrong(expected: String, found: String) -> ModelError {
    ModelError::Tokenizer { expected, found }
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
