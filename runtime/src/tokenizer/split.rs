//! Pre-tokenizers: where a text is cut before merges are applied within each piece.
//!
//! A tokenizer's authors describe this with regular expressions that look ahead. Each is a scanner here, written by
//! hand: it runs in linear time on any input and needs no regex engine. A new one is a function and a line in
//! [`SCANNERS`].

use unicode_general_category::{GeneralCategory, get_general_category};

/// Length in bytes of the first piece of a text that is not empty: at least one character.
pub type Scanner = fn(&str) -> usize;

/// Every scanner by the name that model files give it.
pub const SCANNERS: &[(&str, Scanner)] = &[("gpt2", gpt2), ("smollm", smollm)];

/// The scanner of that name.
pub fn scanner(name: &str) -> Option<Scanner> {
    SCANNERS.iter().find(|(known, _)| *known == name).map(|(_, scanner)| *scanner)
}

/// What the scanners tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s`, the property `White_Space`.
    Space,
    /// `[^\s\p{L}\p{N}]`.
    Other,
}

/// The class of a character. `char::is_alphabetic` would not do: it counts combining marks and letter numbers too.
fn class(c: char) -> Class {
    use GeneralCategory as G;
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        c if c.is_whitespace() => Class::Space,
        c if c.is_ascii() => Class::Other,
        c => match get_general_category(c) {
            G::UppercaseLetter | G::LowercaseLetter | G::TitlecaseLetter | G::ModifierLetter | G::OtherLetter => {
                Class::Letter
            }
            G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::Number,
            _ => Class::Other,
        },
    }
}

/// Bytes of the longest prefix whose characters all have this class.
fn run(text: &str, wanted: Class) -> usize {
    text.find(|c| class(c) != wanted).unwrap_or(text.len())
}

/// GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2(text: &str) -> usize {
    words(text, |_| false)
}

/// `SmolLM`: each `\p{N}` is a piece of its own, and what lies between them is cut as by GPT-2.
fn smollm(text: &str) -> usize {
    let is_number = |c| class(c) == Class::Number;
    match text.chars().next() {
        Some(c) if is_number(c) => c.len_utf8(),
        _ => words(text, is_number),
    }
}

/// The pattern of GPT-2 on a text that ends before the first character for which `ends` holds.
fn words(text: &str, ends: impl Fn(char) -> bool) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(contraction) = CONTRACTIONS.iter().find(|contraction| text.starts_with(**contraction)) {
        return contraction.len();
    }
    let blank = usize::from(text.starts_with(' '));
    let word = &text[blank..];
    match word.chars().next().filter(|c| !ends(*c)).map(class) {
        Some(kind) if kind != Class::Space => return blank + run(word, kind),
        _ => {}
    }
    // Only whitespace remains: all of it at the end of the text, else all but the last character (`\s+(?!\S)`), which
    // the next word may take as its blank, unless it is the only one.
    let spaces = run(text, Class::Space);
    let Some(last) = text[..spaces].chars().next_back() else { return text.len() };
    let at_end = text[spaces..].chars().next().is_none_or(ends);
    if at_end || spaces == last.len_utf8() { spaces } else { spaces - last.len_utf8() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `text` and compares; the pieces are what the regular expression gives, worked out by hand.
    fn check(name: &str, text: &str, expected: &[&str]) {
        let scanner = scanner(name).expect("the scanner is listed");
        let mut rest = text;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(scanner(rest));
            pieces.push(piece);
            rest = after;
        }
        assert_eq!(pieces, expected, "{name} on {text:?}");
    }

    #[test]
    fn words_take_one_blank_before_them() {
        check("gpt2", "Hello, big world!", &["Hello", ",", " big", " world", "!"]);
        check("gpt2", " (x) != y", &[" (", "x", ")", " !=", " y"]);
    }

    #[test]
    fn contractions_are_pieces_in_lower_case_only() {
        check("gpt2", "I'll we've it's X'S", &["I", "'ll", " we", "'ve", " it", "'s", " X", "'", "S"]);
        check("gpt2", "'tis 'quoted'", &["'t", "is", " '", "quoted", "'"]);
        check("gpt2", "a!'s ''s", &["a", "!'", "s", " ''", "s"]);
    }

    #[test]
    fn whitespace_leaves_its_last_character_to_the_next_word() {
        check("gpt2", "a   b", &["a", "  ", " b"]);
        check("gpt2", "a\n\nb", &["a", "\n", "\n", "b"]);
        check("gpt2", "a \n", &["a", " \n"]);
        check("gpt2", "  ", &["  "]);
        check("gpt2", "\u{a0}x \u{3000}y", &["\u{a0}", "x", " ", "\u{3000}", "y"]);
    }

    #[test]
    fn gpt2_keeps_numbers_together() {
        check("gpt2", "in 2024, ½ x²", &["in", " 2024", ",", " ½", " x", "²"]);
    }

    #[test]
    fn smollm_cuts_out_every_digit() {
        check("smollm", "in 2024!", &["in", " ", "2", "0", "2", "4", "!"]);
        check("smollm", "a  1  b", &["a", "  ", "1", " ", " b"]);
        check("smollm", "Ⅷ½٣x", &["Ⅷ", "½", "٣", "x"]);
    }

    #[test]
    fn letters_are_exactly_the_general_category() {
        // A Devanagari vowel sign (Mc) is alphabetic but no letter; a circled letter (So) neither.
        check("gpt2", "का", &["क", "ा"]);
        check("gpt2", "aⓐ", &["a", "ⓐ"]);
        check("gpt2", "naïve Ünï 中文字", &["naïve", " Ünï", " 中文字"]);
    }

    #[test]
    fn every_scanner_advances_to_a_character_boundary() {
        for (name, scanner) in SCANNERS {
            for text in ["é", "\u{85}é", " \u{2028}7", "'", " '", "\u{301}", "\0", " 👩‍👧", "\u{10ffff} "] {
                let length = scanner(text);
                assert!(length > 0 && text.is_char_boundary(length), "{name} on {text:?} gives {length}");
            }
        }
    }
}
