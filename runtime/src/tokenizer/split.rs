//! Pre-tokenizers: where a text is cut before merges are applied within each piece.
//!
//! A tokenizer's authors describe this with regular expressions that look ahead. Each is a scanner here, written by
//! hand: it runs in linear time on any input and needs no regex engine. A new one is a function and a line in
//! [`SCANNERS`].

use super::categories::{Class, class, is_lower, is_mark, is_upper, run};

/// Length in bytes of the first piece of a text that is not empty: at least one character.
pub type Scanner = fn(&str) -> usize;

/// Every scanner by the name that model files give it.
pub const SCANNERS: &[(&str, Scanner)] = &[
    ("dbrx", llama_bpe),
    ("default", default),
    ("gpt-2", gpt2),
    ("gpt-4o", gpt4o),
    ("llama-bpe", llama_bpe),
    ("qwen2", qwen2),
    ("smollm", smollm),
    ("tekken", tekken),
];

/// The scanner of that name.
pub fn scanner(name: &str) -> Option<Scanner> {
    SCANNERS.iter().find(|(known, _)| *known == name).map(|(_, scanner)| *scanner)
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

/// `Llama 3` and GPT-4 (of which `dbrx` is a copy): [`letters_and_lines`] with `\p{N}{1,3}`.
fn llama_bpe(text: &str) -> usize {
    letters_and_lines(text, 3)
}

/// `Qwen 2` and later: [`letters_and_lines`] with `\p{N}`.
fn qwen2(text: &str) -> usize {
    letters_and_lines(text, 1)
}

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// GPT-4o: [`cased_words`] with contractions at their end, `\p{N}{1,3}`.
fn gpt4o(text: &str) -> usize {
    cased_words(text, contraction, 3)
}

/// Mistral's `Tekken`: [`cased_words`] and `\p{N}`.
fn tekken(text: &str) -> usize {
    cased_words(text, |_| 0, 1)
}

/// Bytes of a contraction that the text starts with, in either case: `(?i:'s|'t|'re|'ve|'m|'ll|'d)`.
fn contraction(text: &str) -> usize {
    let is_next = |wanted: &&&str| text.get(..wanted.len()).is_some_and(|next| next.eq_ignore_ascii_case(wanted));
    CONTRACTIONS.iter().find(is_next).map_or(0, |contraction| contraction.len())
}

/// `'s|'t|'re|'ve|'m|'ll|'d` in either case, then
/// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn letters_and_lines(text: &str, digits: usize) -> usize {
    let contraction = contraction(text);
    if contraction > 0 {
        return contraction;
    }
    let Some(first) = text.chars().next() else { return 0 };
    let kind = class(first);
    if kind == Class::Number {
        return some_digits(text, digits);
    }
    let before = if kind == Class::Letter || is_line_end(first) { 0 } else { first.len_utf8() };
    let letters = run(&text[before..], Class::Letter);
    if letters > 0 {
        return before + letters;
    }
    others_and_lines(text, is_line_end)
}

/// Words that change from capitals to small letters at most once, and end with `suffix`:
/// `[^\r\n\p{L}\p{N}]?U*L+SUFFIX|[^\r\n\p{L}\p{N}]?U+L*SUFFIX|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// with `U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and `L = [\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
fn cased_words(text: &str, suffix: fn(&str) -> usize, digits: usize) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    let kind = class(first);
    if kind == Class::Number {
        return some_digits(text, digits);
    }
    // A character before the word goes with it; a mark may be that or part of the word.
    let before = if kind == Class::Letter || is_line_end(first) { 0 } else { first.len_utf8() };
    let starts = if before > 0 { &[before, 0][..] } else { &[0] };
    for rule in [small_word, capital_word] {
        for start in starts {
            if let Some(word) = rule(&text[*start..]) {
                let end = start + word;
                return end + suffix(&text[end..]);
            }
        }
    }
    others_and_lines(text, |c| is_line_end(c) || c == '/')
}

/// `U*L+`: of what is both, as much as can be is taken for `U`.
fn small_word(text: &str) -> Option<usize> {
    let capitals = text.find(|c| !is_upper(c)).unwrap_or(text.len());
    let small = text[capitals..].find(|c| !is_lower(c)).unwrap_or(text.len() - capitals);
    if small > 0 {
        return Some(capitals + small);
    }
    text[..capitals].char_indices().rfind(|(_, c)| is_lower(*c)).map(|(at, c)| at + c.len_utf8())
}

/// `U+L*` where `U*L+` does not match: nothing of `L` follows.
fn capital_word(text: &str) -> Option<usize> {
    Some(text.find(|c| !is_upper(c)).unwrap_or(text.len())).filter(|capitals| *capitals > 0)
}

/// ` ?[^\s\p{L}\p{N}]+[LINES]*|\s*[\r\n]+|\s+(?!\S)|\s+` where neither letters nor numbers come first.
fn others_and_lines(text: &str, is_line: impl Fn(char) -> bool) -> usize {
    let blank = usize::from(text.starts_with(' '));
    let others = run(&text[blank..], Class::Other);
    if others > 0 {
        let lines = &text[blank + others..];
        return blank + others + lines.find(|c| !is_line(c)).unwrap_or(lines.len());
    }
    let spaces = &text[..run(text, Class::Space)];
    spaces.rfind(is_line_end).map_or_else(|| blanks(text, |_| false), |at| at + 1)
}

/// `\p{N}{1,MOST}` where a number comes first.
fn some_digits(text: &str, most: usize) -> usize {
    let end = text.char_indices().take(most).find(|(_, c)| class(*c) != Class::Number);
    let all = || text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
    end.map_or_else(all, |(at, _)| at)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n')
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
    fn cased_words_change_to_small_letters_once() {
        check("tekken", "HelloWorld itsHTTPServer1234", &["Hello", "World", " its", "HTTPServer", "1", "2", "3", "4"]);
        check("tekken", "I'LL a\u{301}B 中文A", &["I", "'LL", " a\u{301}", "B", " 中文", "A"]);
        check("tekken", "x//\n/y !!/\n", &["x", "//\n/", "y", " !!/\n"]);
        check("gpt-4o", "I'LL x's we'Ve 12345", &["I'LL", " x's", " we'Ve", " ", "123", "45"]);
        check("gpt-4o", "\u{301}A ABC", &["\u{301}", "A", " ABC"]);
        check("gpt-4o", "a\u{301}\u{301}. \u{301}", &["a\u{301}\u{301}", ".", " \u{301}"]);
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
