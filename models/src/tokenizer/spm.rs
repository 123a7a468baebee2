//! `SentencePiece`'s BPE: files give each token a score, spell spaces as `▁` and single bytes as `<0x0A>`.

use super::{Algorithm, Token, TokenKind, wrong};
use crate::config::Metadata;
use crate::error::ModelError;

/// What stands for a space in the file.
pub(crate) const SPACE: char = '▁';

/// Reads the scores and the bytes of the tokens.
pub(super) fn read(
    metadata: &Metadata,
    texts: &[String],
    kinds: &[TokenKind],
) -> Result<(Algorithm, Vec<Token>), ModelError> {
    // Written by converters and without a meaning here: nothing cuts the text before scores apply.
    metadata.get("tokenizer.ggml.pre");
    let scores = metadata.floats("tokenizer.ggml.scores")?;
    if scores.len() != texts.len() {
        let expected = format!("a score for each of {} tokens", texts.len());
        return Err(wrong(expected, format!("{} scores", scores.len())));
    }
    if let Some(id) = scores.iter().position(|score| !score.is_finite()) {
        return Err(wrong(format!("a finite score for token {id}"), scores[id].to_string()));
    }
    let space_prefix = metadata.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let token =
        |(id, (text, &kind)): (usize, (&String, &TokenKind))| bytes(id, text, kind).map(|bytes| Token { bytes, kind });
    let tokens = texts.iter().zip(kinds).enumerate().map(token).collect::<Result<_, _>>()?;
    Ok((Algorithm::Spm { scores, space_prefix }, tokens))
}

/// The bytes that a token's text in the file stands for.
fn bytes(id: usize, text: &str, kind: TokenKind) -> Result<Vec<u8>, ModelError> {
    match kind {
        TokenKind::Normal => Ok(text.replace(SPACE, " ").into_bytes()),
        TokenKind::Byte => {
            let byte = byte(text);
            let found = || format!("'{}'", text.escape_debug());
            byte.map(|byte| vec![byte]).ok_or_else(|| wrong(format!("a byte such as <0x0A> as token {id}"), found()))
        }
        TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined | TokenKind::Unused => {
            Ok(text.as_bytes().to_vec())
        }
    }
}

/// The byte that a text such as `<0x0A>` stands for.
pub(crate) fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    let digits = digits.filter(|digits| digits.len() == 2 && !digits.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

/// A token's text as files spell it.
pub(crate) fn spelled(token: &Token) -> String {
    let text = || String::from_utf8_lossy(&token.bytes);
    match (token.kind, token.bytes.as_slice()) {
        (TokenKind::Normal, _) => text().replace(' ', "▁"),
        (TokenKind::Byte, [byte]) => format!("<0x{byte:02X}>"),
        _ => text().into_owned(),
    }
}
