//! Texts that stand for whole tokens: control tokens and those that a vocabulary adds by hand.
//!
//! They are found from the left, the longest first at each place, before anything else looks at the text.

use std::collections::HashMap;

use lathe_plan::{TokenKind, TokenizerTables};

use super::{Control, Segment};

/// The texts.
#[derive(Debug)]
pub struct Added {
    /// Each text with its token, and whether that is a control token.
    tokens: HashMap<String, (u32, bool)>,
    /// The different lengths of the texts in bytes, longest first.
    lengths: Vec<usize>,
    /// Which bytes a text starts with.
    starts: [bool; 256],
}

impl Added {
    /// Finds them in the tables: control and user-defined tokens that are text.
    pub fn new(tables: &TokenizerTables) -> Added {
        let mut added = Added { tokens: HashMap::new(), lengths: Vec::new(), starts: [false; 256] };
        for (id, kind) in (0..).zip(&tables.kinds) {
            let is_control = match kind {
                TokenKind::Control => true,
                TokenKind::UserDefined => false,
                _ => continue,
            };
            let Some(text) = tables.token(id).and_then(|bytes| std::str::from_utf8(bytes).ok()) else { continue };
            let Some(first) = text.bytes().next() else { continue };
            added.starts[usize::from(first)] = true;
            added.lengths.push(text.len());
            added.tokens.entry(text.to_owned()).or_insert((id, is_control));
        }
        added.lengths.sort_unstable_by(|a, b| b.cmp(a));
        added.lengths.dedup();
        added
    }

    /// The texts of the control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|(_, (_, is_control))| *is_control).map(|(text, _)| text.as_str())
    }

    /// Takes a text apart. Empty stretches of text are left out.
    pub fn segments<'a>(&'a self, text: &'a str, control: Control) -> impl Iterator<Item = Segment<'a>> {
        let mut rest = text;
        let mut found = None;
        std::iter::from_fn(move || {
            if let Some(token) = found.take() {
                return Some(Segment::Token(token));
            }
            let (before, token, after) = self.first(rest, control);
            rest = after;
            if before.is_empty() {
                return token.map(Segment::Token);
            }
            found = token;
            Some(Segment::Text(before))
        })
    }

    /// What comes before the first token, the token, and what comes after it.
    fn first<'a>(&self, text: &'a str, control: Control) -> (&'a str, Option<u32>, &'a str) {
        for (at, byte) in text.bytes().enumerate() {
            if !self.starts[usize::from(byte)] {
                continue;
            }
            for length in &self.lengths {
                let Some(&(token, is_control)) = text.get(at..at + length).and_then(|part| self.tokens.get(part))
                else {
                    continue;
                };
                if control == Control::Recognize || !is_control {
                    return (&text[..at], Some(token), &text[at + length..]);
                }
            }
        }
        (text, None, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_and_then_the_longest_text_is_found() {
        let mut tables = TokenizerTables::default();
        for text in ["<a>", "<a><b>", "<b>", "é>"] {
            tables.push(text.as_bytes(), TokenKind::Control);
        }
        tables.push(b"<a>!", TokenKind::Normal);
        let added = Added::new(&tables);
        let check = |text: &str, expected: &[Segment]| {
            assert_eq!(added.segments(text, Control::Recognize).collect::<Vec<_>>(), expected, "{text}");
        };
        check("x<<a>!", &[Segment::Text("x<"), Segment::Token(0), Segment::Text("!")]);
        check("<a><b><b>", &[Segment::Token(1), Segment::Token(2)]);
        check("<a><aé>", &[Segment::Token(0), Segment::Text("<a"), Segment::Token(3)]);
        check("", &[]);
        check("<a", &[Segment::Text("<a")]);
    }
}
