//! What must hold of any tokenizer that was accepted, on texts that ask for every rule.

use std::collections::BTreeSet;

use lathe_plan::{PackedTokenizer, SpacePrefix, TokenKind, TokenizerModel};
use lathe_runtime::stream::TextStream;
use lathe_runtime::tokenizer::decoder::Decoder;
use lathe_runtime::tokenizer::{Control, Tokenizer, TokenizerError};

/// Contractions, digits, scripts, marks, spaces of all kinds, control characters, what tokens are spelled like.
const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "  the theme is HERE\n\n\n it's 12345 they'LL ½ _x_ \t\r\n",
    "naïve e\u{301} ß мир 中文字 नमस्ते 👩‍👩‍👧 \u{200b}\u{3000}",
    "\0\u{1}\u{1b}[0m\u{7f}\u{85}\u{feff}\u{10ffff}",
    "▁▁ ▁a <0x0A> <unk><s></s><|im_end|> <|im_start|>user <|endoftext|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                        bb",
];

/// The runtime's tokenizer by way of a plan's bytes.
pub fn runtime(tokenizer: &lathe_models::tokenizer::Tokenizer) -> Result<Tokenizer, TokenizerError> {
    let bytes = lathe_compiler::emit::tokenizer(tokenizer).to_bytes();
    Tokenizer::new(PackedTokenizer::from_bytes(bytes).map_err(TokenizerError::Tables)?)
}

/// Encodes and decodes; `check` gets each text and its tokens. Says what kind of tokenizer it is.
pub fn exercise(tokenizer: &Tokenizer, check: impl Fn(&str, &[u32])) -> String {
    let tables = tokenizer.tables();
    let is_exact = is_exact(tokenizer);
    let own: Vec<&str> = tokenizer.control_texts().take(4).collect();
    for text in TEXTS.iter().chain(&own) {
        let tokens = tokenizer.encode(text, Control::AsText);
        for token in &tokens {
            assert!((*token as usize) < tables.len(), "token {token} of {}", tables.len());
            let is_structure = tables.kind(*token) == Some(TokenKind::Control) && Some(*token) != tables.unk;
            assert!(!is_structure, "{text:?} as plain text became the control token {token}");
        }
        let (decoded, mut decoder, mut stream) =
            (tokenizer.decode(&tokens), Decoder::new(tokenizer), TextStream::new());
        let mut streamed: String = tokens.iter().map(|id| stream.push(decoder.bytes(tokenizer, *id))).collect();
        streamed += &stream.finish();
        let decoded = String::from_utf8_lossy(&decoded);
        assert_eq!(streamed, decoded, "the stream of {text:?}");
        if is_exact {
            assert_eq!(decoded.replace('▁', " "), text.replace('▁', " "), "the tokens {tokens:?}");
        }
        check(text, &tokens);
        tokenizer.encode_document(text, Control::Recognize);
    }
    format!("{:?} {} {:?}, exact {is_exact}", tables.model, tables.pretokenizer, tables.space_prefix)
}

/// Whether every text can be spelled and comes back as it was.
fn is_exact(tokenizer: &Tokenizer) -> bool {
    let tables = tokenizer.tables();
    let is_byte = |kind| kind == TokenKind::Byte || (kind == TokenKind::Normal && tables.model == TokenizerModel::Bpe);
    let bytes: BTreeSet<&[u8]> =
        (0..).zip(tables.kinds()).filter(|(_, kind)| is_byte(*kind)).map(|(id, _)| tokenizer.bytes(id)).collect();
    let spells_all = (0..=255u8).all(|byte| bytes.contains(&[byte][..]));
    let takes_space = (0..tables.added_count())
        .filter_map(|index| tables.added(index))
        .any(|token| token.matching.lstrip || token.matching.rstrip);
    let is_plain = matches!(tables.space_prefix, SpacePrefix::Never | SpacePrefix::Always);
    spells_all && is_plain && !tables.nfc && !takes_space
}
