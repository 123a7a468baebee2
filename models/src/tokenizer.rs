//! The tokenizer of a model as neutral data: token bytes, what joins them, special tokens.
//!
//! Two kinds are read. Byte-level BPE (`tokenizer/bpe.rs`) is `gpt2` in GGUF files and joins by a list of merges;
//! `SentencePiece`'s BPE (`tokenizer/spm.rs`) is `llama` there and joins by the score of what comes out. Both files spell
//! tokens in ways of their own; here a token is the text that it stands for. Tokens that are never made from plain text,
//! such as `<|im_end|>`, are spelled literally in the file.

pub(crate) mod bpe;
pub(crate) mod spm;

pub(crate) use bpe::byte_characters;
pub(crate) use spm::spelled;

use std::collections::BTreeMap;

use crate::config::Metadata;
use crate::error::ModelError;

/// How text is cut before merges apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Runs of punctuation, then GPT-2's pattern, then digits by threes: what llama.cpp does where a file says no more.
    Default,
    /// GPT-2's pattern: contractions, letters, numbers and others, each with one space before it.
    Gpt2,
    /// Words that change from capitals to small letters once, with contractions; up to three digits (`GPT-4o`, `Phi 4 mini`).
    Gpt4o,
    /// Up to three digits at a time, line breaks with what is before them; whole pieces are kept (`Llama 3`).
    LlamaBpe,
    /// As [`PreTokenizer::LlamaBpe`], and pieces are always merged (`GPT-4`, `OLMo 2`, `Phi 4`).
    Dbrx,
    /// As [`PreTokenizer::LlamaBpe`] with single digits (`Qwen 2`, `Qwen 2.5`, `Qwen 3`).
    Qwen2,
    /// Single digits, then GPT-2's pattern (`SmolLM`, `SmolLM2`, `StarCoder 2`, `Granite`).
    SmolLm,
    /// As [`PreTokenizer::Gpt4o`] without contractions, with single digits (`Mistral Nemo`).
    Tekken,
}

impl PreTokenizer {
    /// All of them.
    pub const ALL: &'static [PreTokenizer] = &[
        PreTokenizer::Default,
        PreTokenizer::Gpt2,
        PreTokenizer::Gpt4o,
        PreTokenizer::LlamaBpe,
        PreTokenizer::Dbrx,
        PreTokenizer::Qwen2,
        PreTokenizer::SmolLm,
        PreTokenizer::Tekken,
    ];

    /// Other names in GGUF files for rules that are the same.
    const ALIASES: &'static [(&'static str, PreTokenizer)] = &[
        ("command-r", PreTokenizer::SmolLm),
        ("deepseek-r1-qwen", PreTokenizer::Qwen2),
        ("falcon3", PreTokenizer::LlamaBpe),
        ("llama-v3", PreTokenizer::LlamaBpe),
        ("llama3", PreTokenizer::LlamaBpe),
        ("mpt", PreTokenizer::Gpt2),
        ("olmo", PreTokenizer::Gpt2),
        ("phi-2", PreTokenizer::Gpt2),
        ("refact", PreTokenizer::SmolLm),
        ("smaug-bpe", PreTokenizer::Dbrx),
        ("stablelm2", PreTokenizer::Qwen2),
        ("starcoder", PreTokenizer::SmolLm),
    ];

    /// The rule with this name in GGUF files.
    pub fn named(name: &str) -> Option<PreTokenizer> {
        let by_name = PreTokenizer::ALL.iter().copied().find(|pre| pre.name() == name);
        by_name.or_else(|| PreTokenizer::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, pre)| *pre))
    }

    /// The name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Default => "default",
            PreTokenizer::Gpt2 => "gpt-2",
            PreTokenizer::Gpt4o => "gpt-4o",
            PreTokenizer::LlamaBpe => "llama-bpe",
            PreTokenizer::Dbrx => "dbrx",
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::SmolLm => "smollm",
            PreTokenizer::Tekken => "tekken",
        }
    }

    /// Whether, in GGUF files, a piece that is a token as a whole becomes that token, whatever merges would make of it.
    pub fn keeps_whole_pieces(self) -> bool {
        matches!(self, PreTokenizer::LlamaBpe | PreTokenizer::Tekken)
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

/// How a text's bytes or characters become tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// Byte-level BPE.
    Bpe {
        /// How text is cut before merges apply.
        pre: PreTokenizer,
        /// Whether a piece that is a token as a whole becomes that token, whatever merges would make of it.
        whole_pieces: bool,
        /// Whether text is put into Unicode's normalization form C first.
        nfc: bool,
        /// Merges, the first to apply first. Each token id in them exists.
        merges: Vec<Merge>,
    },
    /// `SentencePiece`'s BPE: of all neighbours whose joined text is a token, those with the highest score join first.
    Spm {
        /// One finite number per token.
        scores: Vec<f32>,
        /// Whether a text gets a space in front.
        space_prefix: bool,
    },
    /// `SentencePiece`'s BPE as `tokenizer.json` writes it: merges over characters, of which those without a token are
    /// spelled in bytes before. There is a token for every byte.
    Characters {
        /// Merges, the first to apply first. Each token id in them exists.
        merges: Vec<Merge>,
        /// Where a text gets a space in front.
        space_prefix: SpacePrefix,
    },
}

/// Where a text gets a space in front before it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Nowhere.
    Never,
    /// At its start and after each token that is matched whole.
    Always,
    /// In the same places, unless a space is there.
    Missing,
    /// At its start, unless a space is there.
    MissingAtStart,
}

/// How a token that is matched whole is matched; by default wherever its text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own in tokenizer files")]
pub struct Matching {
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space after it belongs to it.
    pub rstrip: bool,
    /// It stands between no letters, digits or underscores.
    pub single_word: bool,
    /// It is looked for in what the tokens without this leave over.
    pub second: bool,
}

/// A tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// How text becomes tokens.
    pub algorithm: Algorithm,
    /// The vocabulary by token id.
    pub tokens: Vec<Token>,
    /// The tokens that are matched in a way of their own.
    pub matching: BTreeMap<u32, Matching>,
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
    /// Stands for what the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// Whether a text gets `bos` in front. Then `bos` is there.
    pub add_bos: bool,
    /// Whether a text gets `eos` at its end. Then `eos` is there.
    pub add_eos: bool,
}

impl Tokenizer {
    /// Reads the tokenizer from a file's metadata.
    pub fn read(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
        let key = "tokenizer.ggml.model";
        let texts = metadata.texts("tokenizer.ggml.tokens")?;
        let kinds = kinds(texts.len(), &metadata.integers("tokenizer.ggml.token_type")?)?;
        let (algorithm, tokens) = match metadata.text(key)? {
            "gpt2" => bpe::read(metadata, texts, &kinds)?,
            "llama" => spm::read(metadata, texts, &kinds)?,
            model => {
                let expected = "'gpt2' (byte-level BPE) or 'llama' (SentencePiece's BPE)".to_owned();
                return Err(ModelError::Unsupported { key: key.to_owned(), expected, found: format!("'{model}'") });
            }
        };
        // What files that say nothing mean: llama.cpp's defaults.
        let (is_spm, adds_bos) = match &algorithm {
            Algorithm::Spm { .. } => (true, true),
            Algorithm::Bpe { pre, .. } => (false, matches!(pre, PreTokenizer::LlamaBpe | PreTokenizer::Tekken)),
            Algorithm::Characters { .. } => (false, false),
        };
        let special = |role: &str| special_token(metadata, role, tokens.len());
        let or = |id: u32| (is_spm && (id as usize) < tokens.len()).then_some(id);
        let (unk, bos, eos) = (special("unknown")?.or(or(0)), special("bos")?.or(or(1)), special("eos")?.or(or(2)));
        let eot = special("eot")?.or_else(|| end_of_turn(&tokens).filter(|&id| Some(id) != eos));
        let pad = special("padding")?;
        let add_bos = adds(metadata, "tokenizer.ggml.add_bos_token", bos, adds_bos)?;
        let add_eos = adds(metadata, "tokenizer.ggml.add_eos_token", eos, false)?;
        must_be_false(metadata, "tokenizer.ggml.add_sep_token", "no separator is added")?;
        let matching = BTreeMap::new();
        Ok(Tokenizer { algorithm, tokens, matching, bos, eos, eot, ends: Vec::new(), pad, unk, add_bos, add_eos })
    }
}

/// The end of a turn in a file that does not name it: the first of the usual texts that is a control token.
fn end_of_turn(tokens: &[Token]) -> Option<u32> {
    const TEXTS: [&str; 5] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"];
    let find = |text: &&str| {
        let is_it = |token: &Token| token.kind == TokenKind::Control && token.bytes == text.as_bytes();
        tokens.iter().position(is_it)
    };
    TEXTS.iter().find_map(find).map(|id| id as u32)
}

fn kinds(tokens: usize, kinds: &[i64]) -> Result<Vec<TokenKind>, ModelError> {
    if tokens != kinds.len() {
        return Err(wrong(format!("a type for each of {tokens} tokens"), format!("{} types", kinds.len())));
    }
    let kind = |(id, &kind): (usize, &i64)| {
        TokenKind::from_id(kind).ok_or_else(|| wrong(format!("a type from 1 to 6 for token {id}"), kind.to_string()))
    };
    kinds.iter().enumerate().map(kind).collect()
}

/// A flag that nothing supports when it is set.
fn must_be_false(metadata: &Metadata, key: &str, why: &str) -> Result<(), ModelError> {
    match metadata.optional_bool(key)? {
        Some(true) => {
            let (expected, found) = (format!("false: {why}"), "true".to_owned());
            Err(ModelError::Unsupported { key: key.to_owned(), expected, found })
        }
        _ => Ok(()),
    }
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
fn adds(metadata: &Metadata, key: &str, token: Option<u32>, default: bool) -> Result<bool, ModelError> {
    let adds = metadata.optional_bool(key)?.unwrap_or(default);
    if adds && token.is_none() {
        let (expected, found) = ("a token to add".to_owned(), "none in the metadata".to_owned());
        return Err(ModelError::Key { key: key.to_owned(), expected, found });
    }
    Ok(adds)
}

fn wrong(expected: String, found: String) -> ModelError {
    ModelError::Tokenizer { expected, found }
}
