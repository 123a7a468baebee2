//! Text into tokens and tokens into bytes, from the plan's ready tables.
//!
//! Byte-level byte-pair encoding: texts that stand for whole tokens are taken out first ([`added`]), what lies between
//! is cut into pieces ([`split`]), and merges are applied to the bytes of each piece ([`merge`]). Every stage takes time
//! of at most `n log n`, whatever the text.
//!
//! A control token such as `<|im_end|>` is structure. It is made from text only when the caller says that the text is
//! trusted to hold structure ([`Control::Recognize`]); a user's text never becomes one, because no merge may yield one.

pub mod added;
pub mod merge;
pub mod split;

use lathe_plan::{TokenKind, TokenizerTables};

use self::added::Added;
use self::merge::{Merger, Merges};
use self::split::Scanner;

/// Why tables make no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tables contradict themselves.
    #[error("the plan's tokenizer is inconsistent: {0}; recompile the model")]
    Tables(lathe_plan::DecodeError),
    /// A pre-tokenizer that this version does not know.
    #[error("the plan's tokenizer cuts text by the rule `{found}`, this version knows {known}; use a newer lathe")]
    Pretokenizer {
        /// The name in the tables.
        found: String,
        /// All known names.
        known: String,
    },
    /// A merge yields a control token, so that a user could write one.
    #[error("merge {rank} of the plan's tokenizer yields the control token {token}; the model's tokenizer is damaged")]
    ControlMerge {
        /// Index of the merge.
        rank: usize,
        /// The token.
        token: u32,
    },
}

/// What the text of a control token becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Plain text, spelled with ordinary tokens: for what users and documents say.
    AsText,
    /// The token: for templates and for prompts that their author wrote token by token.
    Recognize,
}

/// Part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// A text that stands for one token.
    Token(u32),
    /// What merges apply to.
    Text(&'a str),
}

/// A tokenizer, ready to use.
#[derive(Debug)]
pub struct Tokenizer {
    tables: TokenizerTables,
    scanner: Scanner,
    merges: Merges,
    added: Added,
    /// The token of each single byte; a byte that has none is left out of the encoding, as elsewhere.
    bytes: [Option<u32>; 256],
}

impl Tokenizer {
    /// Builds the lookup structures. A vocabulary of 49,152 tokens takes one or two milliseconds.
    pub fn new(tables: TokenizerTables) -> Result<Tokenizer, TokenizerError> {
        tables.validate().map_err(TokenizerError::Tables)?;
        let scanner = split::scanner(&tables.pretokenizer).ok_or_else(|| TokenizerError::Pretokenizer {
            found: tables.pretokenizer.clone(),
            known: split::SCANNERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })?;
        let is_control = |id: u32| tables.kinds[id as usize] == TokenKind::Control;
        if let Some(rank) = tables.merges.iter().position(|merge| is_control(merge.merged)) {
            return Err(TokenizerError::ControlMerge { rank, token: tables.merges[rank].merged });
        }
        let mut bytes = [None; 256];
        for (id, kind) in (0..).zip(&tables.kinds) {
            if let (TokenKind::Normal | TokenKind::Byte, Some(&[byte])) = (kind, tables.token(id)) {
                bytes[usize::from(byte)].get_or_insert(id);
            }
        }
        Ok(Tokenizer { scanner, merges: Merges::new(&tables.merges), added: Added::new(&tables), bytes, tables })
    }

    /// The tokens of a text, without a BOS token.
    pub fn encode(&self, text: &str, control: Control) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 4 + 4);
        let mut merger = Merger::default();
        for segment in self.segments(text, control) {
            match segment {
                Segment::Token(id) => out.push(id),
                Segment::Text(text) => self.encode_text(text, &mut merger, &mut out),
            }
        }
        out
    }

    /// The tokens of a whole document: [`Self::encode`] with the BOS token in front, where the model expects one.
    pub fn encode_document(&self, text: &str, control: Control) -> Vec<u32> {
        let mut tokens = self.encode(text, control);
        if let Some(bos) = self.leading_bos().filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// Takes apart what stands for whole tokens and what merges apply to.
    pub fn segments<'a>(&'a self, text: &'a str, control: Control) -> impl Iterator<Item = Segment<'a>> {
        self.added.segments(text, control)
    }

    /// Merges within each piece of a text that holds no whole tokens.
    fn encode_text(&self, mut text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        while !text.is_empty() {
            let (piece, rest) = text.split_at((self.scanner)(text));
            let tokens = piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)]);
            merger.merge(&self.merges, tokens, out);
            text = rest;
        }
    }

    /// The bytes that a token stands for; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.tables.token(id).unwrap_or_default()
    }

    /// The bytes to show for a token: as [`Self::bytes`], but nothing for control tokens and unused rows.
    pub fn visible_bytes(&self, id: u32) -> &[u8] {
        match self.tables.kinds.get(id as usize) {
            None | Some(TokenKind::Control | TokenKind::Unused) => &[],
            Some(_) => self.bytes(id),
        }
    }

    /// The bytes of a sequence, control tokens included.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| self.bytes(*id)).copied().collect()
    }

    /// The texts of all control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.added.control_texts()
    }

    /// The BOS token, where texts are tokenized with it in front.
    pub fn leading_bos(&self) -> Option<u32> {
        self.tables.bos.filter(|_| self.tables.add_bos)
    }

    /// The tables.
    pub fn tables(&self) -> &TokenizerTables {
        &self.tables
    }
}

#[cfg(test)]
mod tests {
    use lathe_plan::Merge;

    use super::*;

    const END: u32 = 256;
    const THINK: u32 = 257;

    /// Bytes 0 to 255 are tokens 0 to 255, then `<|end|>` (control) and `<think>` (user-defined), then the merged tokens
    /// in the order of `merges`, each a pair of texts.
    fn tables(merges: &[(&str, &str)]) -> TokenizerTables {
        let mut tables = TokenizerTables { pretokenizer: "smollm".to_owned(), ..TokenizerTables::default() };
        for byte in 0..=255 {
            tables.push(&[byte], TokenKind::Normal);
        }
        tables.push(b"<|end|>", TokenKind::Control);
        tables.push(b"<think>", TokenKind::UserDefined);
        for (left, right) in merges {
            let find = |text: &str| (0..tables.len() as u32).find(|&id| tables.token(id) == Some(text.as_bytes()));
            let (Some(left_id), Some(right_id)) = (find(left), find(right)) else { panic!("{left} or {right}") };
            let merged = find(&format!("{left}{right}")).unwrap_or(tables.len() as u32);
            tables.merges.push(Merge { left: left_id, right: right_id, merged });
            if merged as usize == tables.len() {
                tables.push(format!("{left}{right}").as_bytes(), TokenKind::Normal);
            }
        }
        tables
    }

    fn tokenizer(merges: &[(&str, &str)]) -> Tokenizer {
        Tokenizer::new(tables(merges)).expect("the tables are sound")
    }

    /// Encodes as untrusted text and compares the tokens' texts.
    fn check(tokenizer: &Tokenizer, text: &str, expected: &[&str]) {
        let tokens = tokenizer.encode(text, Control::AsText);
        let texts: Vec<_> = tokens.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes(*id))).collect();
        assert_eq!(texts, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text.as_bytes(), "{text:?}");
    }

    #[test]
    fn merges_apply_by_rank_and_then_from_the_left() {
        let tokenizer = tokenizer(&[("b", "c"), ("a", "b"), ("a", "a"), ("aa", "a"), ("a", "bc")]);
        check(&tokenizer, "abc", &["abc"]);
        check(&tokenizer, "abd", &["ab", "d"]);
        check(&tokenizer, "aaaaa", &["aa", "aaa"]);
        check(&tokenizer, "aaa", &["aaa"]);
    }

    #[test]
    fn an_earlier_rank_wins_even_when_its_pair_appears_late() {
        // `xy` has the last rank but makes the pair (xy, z) of the first rank possible.
        let mut tables = tables(&[("x", "y"), ("xy", "z"), ("z", "w")]);
        tables.merges.swap(0, 1);
        tables.merges.swap(1, 2); // (xy, z), (z, w), (x, y)
        let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
        check(&tokenizer, "xyzw", &["xy", "zw"]);
        check(&tokenizer, "xyz", &["xyz"]);
    }

    #[test]
    fn merges_stay_within_a_piece() {
        let tokenizer = tokenizer(&[("a", " "), (" ", "b"), ("1", "2")]);
        check(&tokenizer, "a b12", &["a", " b", "1", "2"]);
    }

    #[test]
    fn control_tokens_are_made_only_when_asked() {
        let tokenizer = tokenizer(&[("<", "|")]);
        let text = "a<|end|><think>b";
        let trusted = tokenizer.encode(text, Control::Recognize);
        assert_eq!(trusted, [u32::from(b'a'), END, THINK, u32::from(b'b')]);
        check(&tokenizer, text, &["a", "<|", "e", "n", "d", "|", ">", "<think>", "b"]);
        assert_eq!(tokenizer.visible_bytes(END), b"");
        assert_eq!(tokenizer.visible_bytes(THINK), b"<think>");
    }

    #[test]
    fn a_document_starts_with_bos_once() {
        let with_bos = TokenizerTables { bos: Some(END), add_bos: true, ..tables(&[]) };
        let tokenizer = Tokenizer::new(with_bos).expect("the tables are sound");
        assert_eq!(tokenizer.encode_document("a", Control::AsText), [END, 97]);
        assert_eq!(tokenizer.encode_document("<|end|>a", Control::Recognize), [END, 97]);
    }

    #[test]
    fn bytes_without_a_token_are_left_out() {
        let mut tables = tables(&[]);
        tables.kinds[usize::from(b'x')] = TokenKind::Unused;
        let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
        assert_eq!(tokenizer.encode("axb", Control::AsText), [97, 98]);
    }

    #[test]
    fn tables_that_would_let_users_write_control_tokens_are_refused() {
        let mut tables = tables(&[]);
        tables.push(b"<|end|", TokenKind::Normal);
        let left = tables.len() as u32 - 1;
        tables.merges.push(Merge { left, right: u32::from(b'>'), merged: END });
        assert_eq!(Tokenizer::new(tables).unwrap_err(), TokenizerError::ControlMerge { rank: 0, token: END });
    }

    #[test]
    fn an_unknown_pretokenizer_is_a_sentence() {
        let tables = TokenizerTables { pretokenizer: "klingon".to_owned(), ..tables(&[]) };
        let message = Tokenizer::new(tables).unwrap_err().to_string();
        assert!(message.contains("klingon") && message.contains("smollm"), "{message}");
    }

    #[test]
    fn a_megabyte_without_a_break_is_encoded() {
        // Quadratic merging would take minutes here.
        let tokenizer = tokenizer(&[(" ", " "), ("  ", "  "), ("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]);
        let spaces = " ".repeat(1 << 20);
        assert_eq!(tokenizer.encode(&spaces, Control::AsText).len(), 1 << 18);
        let letters = "a".repeat(1 << 20);
        assert_eq!(tokenizer.encode(&letters, Control::AsText).len(), 1 << 17);
        let brackets = "<".repeat(1 << 20);
        assert_eq!(tokenizer.encode(&brackets, Control::Recognize).len(), 1 << 20);
    }
}
