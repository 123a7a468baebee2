//! What pre-tokenizers tell apart in characters, by Unicode's general categories. `char::is_alphabetic` and its like
//! would not do: they count combining marks and letter numbers too.

use unicode_general_category::{GeneralCategory as G, get_general_category};

/// What most rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s`, the property `White_Space`.
    Space,
    /// `[^\s\p{L}\p{N}]`.
    Other,
}

/// The class of a character.
pub fn class(c: char) -> Class {
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
pub fn run(text: &str, wanted: Class) -> usize {
    text.find(|c| class(c) != wanted).unwrap_or(text.len())
}

/// `[\p{P}$+<=>^~|]`.
pub fn is_mark(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_punctuation() && c != '`';
    }
    let category = get_general_category(c);
    let brackets = [G::OpenPunctuation, G::ClosePunctuation, G::InitialPunctuation, G::FinalPunctuation];
    let others = [G::ConnectorPunctuation, G::DashPunctuation, G::OtherPunctuation];
    brackets.contains(&category) || others.contains(&category)
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
pub fn is_upper(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_uppercase();
    }
    let category = get_general_category(c);
    matches!(category, G::UppercaseLetter | G::TitlecaseLetter) || is_caseless(category)
}

/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
pub fn is_lower(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_lowercase();
    }
    let category = get_general_category(c);
    category == G::LowercaseLetter || is_caseless(category)
}

/// `[\p{Lm}\p{Lo}\p{M}]`.
fn is_caseless(category: G) -> bool {
    let marks = [G::NonspacingMark, G::SpacingMark, G::EnclosingMark];
    matches!(category, G::ModifierLetter | G::OtherLetter) || marks.contains(&category)
}
