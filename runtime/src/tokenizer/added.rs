//! Texts that stand for whole tokens: control tokens and those that a vocabulary adds by hand.
//!
//! They are found from the left, the longest first at each place, before anything else looks at the text.

use lathe_plan::{TokenKind, TokenizerTables};

use super::{Control, Segment};

/// The texts.
#[derive(Debug)]
pub struct Added {
    /// Sorted by text, each once.
    tokens: Vec<AddedToken>,
    /// Which bytes a text starts with.
    starts: [bool; 256],
}

#[derive(Debug)]
struct AddedToken {
    text: String,
    id: u32,
    /// Whether it is structure, which only trusted text may hold.
    is_control: bool,
}

impl Added {
    /// Finds them in the tables: control, unknown and user-defined tokens that are text.
    pub fn new(tables: &TokenizerTables) -> Added {
        let mut added = Added { tokens: Vec::new(), starts: [false; 256] };
        for (id, kind) in (0..).zip(&tables.kinds) {
            let is_control = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Byte | TokenKind::Unused => continue,
            };
            let Some(text) = tables.token(id).and_then(|bytes| std::str::from_utf8(bytes).ok()) else { continue };
            let Some(first) = text.bytes().next() else { continue };
            added.starts[usize::from(first)] = true;
            added.tokens.push(AddedToken { text: text.to_owned(), id, is_control });
        }
        // A stable sort: the first of two tokens with one text stays.
        added.tokens.sort_by(|a, b| a.text.cmp(&b.text));
        added.tokens.dedup_by(|a, b| a.text == b.text);
        added
    }

    /// The texts of the control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|token| token.is_control).map(|token| token.text.as_str())
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
            if let Some(token) = self.longest(&text.as_bytes()[at..], control) {
                return (&text[..at], Some(token.id), &text[at + token.text.len()..]);
            }
        }
        (text, None, "")
    }

    /// The longest token that `text` starts with: the tokens that agree with one byte more of it are a part, in their
    /// order, of those that agree with one byte less.
    fn longest(&self, text: &[u8], control: Control) -> Option<&AddedToken> {
        let mut agree = self.tokens.as_slice();
        let mut longest = None;
        for (depth, byte) in text.iter().enumerate() {
            let at_depth = |token: &AddedToken| token.text.as_bytes().get(depth).copied();
            let from = agree.partition_point(|token| at_depth(token) < Some(*byte));
            let to = agree.partition_point(|token| at_depth(token) <= Some(*byte));
            agree = &agree[from..to];
            // The shortest is first: the text itself, if it is a token.
            let Some(first) = agree.first() else { break };
            if first.text.len() == depth + 1 && (control == Control::Recognize || !first.is_control) {
                longest = Some(first);
            }
            if agree.len() == 1 && first.text.len() == depth + 1 {
                break;
            }
        }
        longest
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
