//! Pre-tokenizers: where a text is cut before merges are applied within each piece.
//!
//! A tokenizer's authors describe this with regular expressions that look ahead. Each is a scanner here, written by
//! hand: it runs in linear time on any input and needs no regex engine. A new one is a function and a line in
//! [`SCANNERS`].

use unicode_general_category::{GeneralCategory, get_general_category};

/// Length in bytes of the first piece of a text that is not empty: at least one character.
pub type Scanner = fn(&str) -> usize;

/// Every scanner by the name that model files give it.
pub const SCANNERS: &[(&str, Scanner)] =
    &[("default", default), ("gpt-2", gpt2), ("llama-bpe", llama_bpe), ("qwen2", qwen2), ("smollm", smollm)];

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

/// llama.cpp's rule for files that name none: cut out runs of `[\p{P}$+<=>^~|]`, cut what lies between as by GPT-2, cut
/// `\p{N}+` out of that, and every `[0-9][0-9][0-9]` out of those.
fn default(text: &str) -> usize {
    let marks = text.find(|c| !is_mark(c)).unwrap_or(text.len());
    if marks > 0 {
        return marks;
    }
    let piece = &text[..words(text, is_mark)];
    let number = piece.trim_start_matches(' ');
    if number.is_empty() || run(number, Class::Number) < number.len() {
        return piece.len();
    }
    if number.len() < piece.len() {
        return piece.len() - number.len();
    }
    let thousand = number.as_bytes().windows(3).position(|digits| digits.iter().all(u8::is_ascii_digit));
    match thousand {
        Some(0) => 3,
        Some(at) => at,
        None => number.len(),
    }
}

/// `[\p{P}$+<=>^~|]`.
fn is_mark(c: char) -> bool {
    use GeneralCategory as G;
    if c.is_ascii() {
        return c.is_ascii_punctuation() && c != '`';
    }
    let category = get_general_category(c);
    let brackets = [G::OpenPunctuation, G::ClosePunctuation, G::InitialPunctuation, G::FinalPunctuation];
    let others = [G::ConnectorPunctuation, G::DashPunctuation, G::OtherPunctuation];
    brackets.contains(&category) || others.contains(&category)
}

/// `Llama 3`: [`letters_and_lines`] with `\p{N}{1,3}`.
fn llama_bpe(text: &str) -> usize {
    letters_and_lines(text, 3)
}

/// `Qwen 2` and later: [`letters_and_lines`] with `\p{N}`.
fn qwen2(text: &str) -> usize {
    letters_and_lines(text, 1)
}

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// `'s|'t|'re|'ve|'m|'ll|'d` in either case, then
/// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn letters_and_lines(text: &str, digits: usize) -> usize {
    let is_next = |wanted: &&&str| text.get(..wanted.len()).is_some_and(|next| next.eq_ignore_ascii_case(wanted));
    if let Some(contraction) = CONTRACTIONS.iter().find(is_next) {
        return contraction.len();
    }
    let is_line_end = |c| matches!(c, '\r' | '\n');
    let Some(first) = text.chars().next() else { return 0 };
    let kind = class(first);
    if kind == Class::Number {
        let end = text.char_indices().take(digits).find(|(_, c)| class(*c) != Class::Number);
        let most = || text.char_indices().nth(digits).map_or(text.len(), |(at, _)| at);
        return end.map_or_else(most, |(at, _)| at);
    }
    let before = if kind == Class::Letter || is_line_end(first) { 0 } else { first.len_utf8() };
    let letters = run(&text[before..], Class::Letter);
    if letters > 0 {
        return before + letters;
    }
    let blank = usize::from(first == ' ');
    let others = run(&text[blank..], Class::Other);
    if others > 0 {
        let lines = &text[blank + others..];
        return blank + others + lines.find(|c| !is_line_end(c)).unwrap_or(lines.len());
    }
    let spaces = &text[..run(text, Class::Space)];
    spaces.rfind(is_line_end).map_or_else(|| blanks(text, |_| false), |at| at + 1)
}

/// The pattern of GPT-2 on a text that ends before the first character for which `ends` holds.
fn words(text: &str, ends: impl Fn(char) -> bool) -> usize {
    if let Some(contraction) = CONTRACTIONS.iter().find(|contraction| text.starts_with(**contraction)) {
        return contraction.len();
    }
    let blank = usize::from(text.starts_with(' '));
    let word = &text[blank..];
    match word.chars().next().filter(|c| !ends(*c)).map(class) {
        // A mark that ends the text is of the class of others, as what comes before it may be.
        Some(kind) if kind != Class::Space => blank + word.find(|c| class(c) != kind || ends(c)).unwrap_or(word.len()),
        _ => blanks(text, ends),
    }
}

/// `\s+(?!\S)|\s+` where only whitespace can match: all of it at the end of the text, else all but the last character,
/// which the next word may take as its blank, unless it is the only one.
fn blanks(text: &str, ends: impl Fn(char) -> bool) -> usize {
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
        check("gpt-2", "Hello, big world!", &["Hello", ",", " big", " world", "!"]);
        check("gpt-2", " (x) != y", &[" (", "x", ")", " !=", " y"]);
    }

    #[test]
    fn contractions_are_pieces_in_lower_case_only() {
        check("gpt-2", "I'll we've it's X'S", &["I", "'ll", " we", "'ve", " it", "'s", " X", "'", "S"]);
        check("gpt-2", "'tis 'quoted'", &["'t", "is", " '", "quoted", "'"]);
        check("gpt-2", "a!'s ''s", &["a", "!'", "s", " ''", "s"]);
    }

    #[test]
    fn whitespace_leaves_its_last_character_to_the_next_word() {
        check("gpt-2", "a   b", &["a", "  ", " b"]);
        check("gpt-2", "a\n\nb", &["a", "\n", "\n", "b"]);
        check("gpt-2", "a \n", &["a", " \n"]);
        check("gpt-2", "  ", &["  "]);
        check("gpt-2", "\u{a0}x \u{3000}y", &["\u{a0}", "x", " ", "\u{3000}", "y"]);
    }

    #[test]
    fn gpt2_keeps_numbers_together() {
        check("gpt-2", "in 2024, ½ x²", &["in", " 2024", ",", " ½", " x", "²"]);
    }

    #[test]
    fn smollm_cuts_out_every_digit() {
        check("smollm", "in 2024!", &["in", " ", "2", "0", "2", "4", "!"]);
        check("smollm", "a  1  b", &["a", "  ", "1", " ", " b"]);
        check("smollm", "Ⅷ½٣x", &["Ⅷ", "½", "٣", "x"]);
    }

    #[test]
    fn llama_and_qwen_take_any_character_before_letters_and_lines_after_marks() {
        for name in ["llama-bpe", "qwen2"] {
            check(name, "I'LL (say) what's", &["I", "'LL", " (", "say", ")", " what", "'s"]);
            check(name, "\tx\u{a0}y", &["\tx", "\u{a0}y"]);
            check(name, "if x;\n\n  y \n z", &["if", " x", ";\n\n", " ", " y", " \n", " z"]);
            check(name, "  \n \n  \r\n   a\n", &["  \n \n  \r\n", "  ", " a", "\n"]);
            check(name, "\t\t!  ", &["\t", "\t", "!", "  "]);
        }
        check("llama-bpe", "12345½ 6", &["123", "45½", " ", "6"]);
        check("qwen2", "123½ 6", &["1", "2", "3", "½", " ", "6"]);
    }

    #[test]
    fn default_cuts_marks_out_first_and_digits_by_threes() {
        check("default", "Hi, (x)=1234567  `a", &["Hi", ",", " ", "(", "x", ")=", "123", "456", "7", " ", " `", "a"]);
        check("default", "it's 12 ½345 ", &["it", "'", "s", " ", "12", " ", "½", "345", " "]);
        check("default", "a\n—b 👍!", &["a", "\n", "—", "b", " 👍", "!"]);
    }

    #[test]
    fn letters_are_exactly_the_general_category() {
        // A Devanagari vowel sign (Mc) is alphabetic but no letter; a circled letter (So) neither.
        check("gpt-2", "का", &["क", "ा"]);
        check("gpt-2", "aⓐ", &["a", "ⓐ"]);
        check("gpt-2", "naïve Ünï 中文字", &["naïve", " Ünï", " 中文字"]);
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
