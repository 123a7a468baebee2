//! Texts that stand for whole tokens: control tokens and those that a vocabulary adds by hand.
//!
//! They are found from the left, the longest first at each place, before anything else looks at the text. Some take the
//! white space beside them along, some stand only between words, and some are looked for only in what the others leave.

use lathe_plan::PackedTokenizer;
use lathe_plan::tokenizer::AddedToken;

use super::{Control, Segment};

/// Which bytes such texts start with, so that most of a text is passed over quickly.
#[derive(Debug)]
pub struct Added {
    starts: [bool; 256],
    /// Whether some are looked for only in what the others leave.
    has_second: bool,
}

impl Added {
    /// Looks at the tables.
    pub fn new(tables: &PackedTokenizer) -> Added {
        let mut added = Added { starts: [false; 256], has_second: false };
        for token in tokens(tables) {
            if let Some(first) = token.text.bytes().next() {
                added.starts[usize::from(first)] = true;
            }
            added.has_second |= token.matching.second;
        }
        added
    }

    /// Takes a text apart. Empty stretches of text are left out.
    pub fn segments<'a>(&self, tables: &PackedTokenizer, text: &'a str, control: Control) -> Vec<Segment<'a>> {
        let first = self.split(tables, text, control, false);
        if !self.has_second {
            return first;
        }
        let again = |segment| match segment {
            Segment::Text(text) => self.split(tables, text, control, true),
            Segment::Token(_) => vec![segment],
        };
        first.into_iter().flat_map(again).collect()
    }

    fn split<'a>(&self, tables: &PackedTokenizer, text: &'a str, control: Control, second: bool) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let (mut done, mut at) = (0, 0);
        while let Some(skipped) = text.as_bytes()[at..].iter().position(|byte| self.starts[usize::from(*byte)]) {
            let start = at + skipped;
            let Some(token) = longest(tables, &text.as_bytes()[start..], control, second) else {
                at = start + 1;
                continue;
            };
            let end = start + token.text.len();
            at = end;
            let matching = token.matching;
            if matching.single_word && (ends_in_word(&text[..start]) || starts_in_word(&text[end..])) {
                continue;
            }
            // What an earlier token took with it is not there any more.
            let from = if matching.lstrip { text[..start].trim_end().len().max(done) } else { start.max(done) };
            let after = &text[end..];
            let to = if matching.rstrip { end + after.len() - after.trim_start().len() } else { end };
            if done < from {
                segments.push(Segment::Text(&text[done..from]));
            }
            segments.push(Segment::Token(token.id));
            done = to.max(done);
        }
        if done < text.len() {
            segments.push(Segment::Text(&text[done..]));
        }
        segments
    }
}

fn tokens(tables: &PackedTokenizer) -> impl Iterator<Item = AddedToken<'_>> {
    (0..tables.added_count()).filter_map(|index| tables.added(index))
}

/// The texts of the control tokens.
pub fn control_texts(tables: &PackedTokenizer) -> impl Iterator<Item = &str> {
    tokens(tables).filter(|token| token.is_control).map(|token| token.text)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn starts_in_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

/// The longest token that `text` starts with: the tokens that agree with one byte more of it are a part, in their order,
/// of those that agree with one byte less.
fn longest<'a>(tables: &'a PackedTokenizer, text: &[u8], control: Control, second: bool) -> Option<AddedToken<'a>> {
    let (mut from, mut to) = (0, tables.added_count());
    let mut longest = None;
    for (depth, byte) in text.iter().enumerate() {
        let at_depth = |index: usize| tables.added(index).and_then(|token| token.text.as_bytes().get(depth).copied());
        to = partition(from, to, |index| at_depth(index) <= Some(*byte));
        from = partition(from, to, |index| at_depth(index) < Some(*byte));
        // The shortest is first: the text itself, if it is a token.
        let Some(first) = (from < to).then(|| tables.added(from)).flatten() else { break };
        let is_whole = first.text.len() == depth + 1;
        let is_wanted = first.matching.second == second && (control == Control::Recognize || !first.is_control);
        if is_whole && is_wanted {
            longest = Some(first);
        }
        if is_whole && to - from == 1 {
            break;
        }
    }
    longest
}

/// The first index for which `is_before` no longer holds.
fn partition(mut from: usize, mut to: usize, is_before: impl Fn(usize) -> bool) -> usize {
    while from < to {
        let middle = from.midpoint(to);
        if is_before(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use lathe_plan::{Matching, TokenKind, TokenizerTables};

    use super::*;

    #[track_caller]
    fn check(tables: &TokenizerTables, text: &str, expected: &[Segment]) {
        let packed = PackedTokenizer::try_from(tables.clone()).expect("the tables are sound");
        let segments = Added::new(&packed).segments(&packed, text, Control::Recognize);
        assert_eq!(segments, expected, "{text}");
    }

    fn tables(texts: &[&str]) -> TokenizerTables {
        let mut tables = TokenizerTables::default();
        for text in texts {
            tables.push(text.as_bytes(), TokenKind::Control);
        }
        tables
    }

    #[test]
    fn the_leftmost_and_then_the_longest_text_is_found() {
        let mut tables = tables(&["<a>", "<a><b>", "<b>", "é>"]);
        tables.push(b"<a>!", TokenKind::Normal);
        check(&tables, "x<<a>!", &[Segment::Text("x<"), Segment::Token(0), Segment::Text("!")]);
        check(&tables, "<a><b><b>", &[Segment::Token(1), Segment::Token(2)]);
        check(&tables, "<a><aé>", &[Segment::Token(0), Segment::Text("<a"), Segment::Token(3)]);
        check(&tables, "", &[]);
        check(&tables, "<a", &[Segment::Text("<a")]);
    }

    #[test]
    fn white_space_beside_a_token_may_belong_to_it() {
        let mut tables = tables(&["<l>", "<r>", "<w>"]);
        tables.matching.insert(0, Matching { lstrip: true, ..Matching::default() });
        tables.matching.insert(1, Matching { rstrip: true, ..Matching::default() });
        tables.matching.insert(2, Matching { single_word: true, ..Matching::default() });
        check(&tables, "a \n<l> b", &[Segment::Text("a"), Segment::Token(0), Segment::Text(" b")]);
        check(&tables, "a <r> \u{a0}b", &[Segment::Text("a "), Segment::Token(1), Segment::Text("b")]);
        check(&tables, "<r>  <l>", &[Segment::Token(1), Segment::Token(0)]);
        check(&tables, "a<w> <w>1 (<w>)", &[Segment::Text("a<w> <w>1 ("), Segment::Token(2), Segment::Text(")")]);
    }

    #[test]
    fn some_are_found_in_what_the_others_leave() {
        let mut tables = tables(&["ab", "bcd"]);
        tables.matching.insert(0, Matching { second: true, ..Matching::default() });
        check(&tables, "abcd ab", &[Segment::Text("a"), Segment::Token(1), Segment::Text(" "), Segment::Token(0)]);
    }
}
