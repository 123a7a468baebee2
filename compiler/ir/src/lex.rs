//! Words of the text IR, with their places.
//!
//! A word is a run of letters, digits, `_` and `.`; a number may begin with `-` and have one after its `e`. A name is `%`,
//! `@` or `$` and a word or a quoted string.

use std::fmt;

/// A word of the text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// A keyword, number, op, element type or attribute name.
    Word(String),
    /// A quoted string.
    Text(String),
    /// A value.
    Name(Name),
    /// Anything else, one character.
    Mark(char),
    /// The end of the text.
    End,
}

/// The name of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    /// `%` for a value, `@` for a weight, `$` for a cache state.
    pub sigil: char,
    /// What follows, unquoted.
    pub text: String,
    /// Whether it was chosen by the model rather than counted: it begins with a letter or is quoted.
    pub given: bool,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.given {
            write!(f, "{}{}", self.sigil, bare_or_quoted(&self.text))
        } else {
            write!(f, "{}{}", self.sigil, self.text)
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => write!(f, "'{word}'"),
            Token::Text(text) => f.write_str(&quote(text)),
            Token::Name(name) => write!(f, "{name}"),
            Token::Mark(mark) => write!(f, "'{mark}'"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// Where a token begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// The name as it stands when it is a word that begins with a letter, quoted otherwise.
pub(crate) fn bare_or_quoted(name: &str) -> String {
    let bare = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_word);
    if bare { name.to_string() } else { quote(name) }
}

/// A string in quotes, with `"`, `\` and line ends escaped.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// Splits text into tokens; the last one is [`Token::End`].
///
/// # Errors
/// The place of a string that does not end, or of a `%`, `@` or `$` that nothing follows, and what was expected there.
pub(crate) fn lex(text: &str) -> Result<Vec<(Token, Place)>, (Place, &'static str)> {
    let mut lexer = Lexer { rest: text.chars().peekable(), place: Place { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        while lexer.next_if(char::is_whitespace).is_some() {}
        let place = lexer.place;
        let Some(&c) = lexer.rest.peek() else {
            tokens.push((Token::End, place));
            return Ok(tokens);
        };
        let token = match c {
            '"' => Token::Text(lexer.string().ok_or((place, "a closing quote"))?),
            '%' | '@' | '$' => Token::Name(lexer.name().ok_or((place, "a name after the sigil"))?),
            c if is_word(c) || c == '-' => Token::Word(lexer.word()),
            c => {
                lexer.next();
                Token::Mark(c)
            }
        };
        tokens.push((token, place));
    }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    place: Place,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.place = match c {
            '\n' => Place { line: self.place.line + 1, column: 1 },
            _ => Place { column: self.place.column + 1, ..self.place },
        };
        Some(c)
    }

    fn next_if(&mut self, accept: impl FnOnce(char) -> bool) -> Option<char> {
        self.rest.peek().is_some_and(|&c| accept(c)).then(|| self.next()).flatten()
    }

    fn word(&mut self) -> String {
        let mut word: String = self.next_if(|c| c == '-').into_iter().collect();
        let number = |word: &str| word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
        while let Some(c) = self.next_if(|c| is_word(c) || (c == '-' && number(&word) && word.ends_with('e'))) {
            word.push(c);
        }
        word
    }

    fn name(&mut self) -> Option<Name> {
        let sigil = self.next()?;
        let quoted = self.rest.peek() == Some(&'"');
        let text = if quoted { self.string()? } else { self.word() };
        let given = quoted || text.starts_with(|c: char| c.is_ascii_alphabetic());
        (quoted || !text.is_empty()).then_some(Name { sigil, text, given })
    }

    fn string(&mut self) -> Option<String> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next()? {
                '"' => return Some(text),
                '\\' => match self.next()? {
                    'n' => text.push('\n'),
                    c => text.push(c),
                },
                c => text.push(c),
            }
        }
    }
}
