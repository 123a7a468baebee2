//! Words and lists of them.

use super::{Parsed, Parser, Problem, fail};
use crate::lex::{Name, Place, Token};
use crate::types::MAX_COUNT;

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn place(&self) -> Place {
        self.tokens[self.at].1
    }

    /// Takes a token; the end stays.
    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn expected<T>(&self, expected: impl Into<String>) -> Parsed<T> {
        let problem = Problem::Syntax { expected: expected.into(), found: self.peek().to_string() };
        fail(self.place(), problem)
    }

    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = *self.peek() == Token::Mark(mark);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn mark(&mut self, mark: char) -> Parsed<()> {
        if self.eat(mark) { Ok(()) } else { self.expected(format!("'{mark}'")) }
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(found) if found == word);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn keyword(&mut self, word: &str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { self.expected(format!("'{word}'")) }
    }

    pub(super) fn word(&mut self, what: &str) -> Parsed<String> {
        match self.peek().clone() {
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            _ => self.expected(what),
        }
    }

    /// A word, or a string where a name is no word.
    pub(super) fn label(&mut self, what: &str) -> Parsed<String> {
        match self.peek().clone() {
            Token::Word(text) | Token::Text(text) => {
                self.next();
                Ok(text)
            }
            _ => self.expected(what),
        }
    }

    pub(super) fn name(&mut self, sigils: &str, what: &str) -> Parsed<Name> {
        match self.peek().clone() {
            Token::Name(name) if sigils.contains(name.sigil) => {
                self.next();
                Ok(name)
            }
            _ => self.expected(what),
        }
    }

    pub(super) fn count(&mut self, what: &str) -> Parsed<usize> {
        match self.peek() {
            Token::Word(word) => match parse_count(word) {
                Some(count) => {
                    self.next();
                    Ok(count)
                }
                None => self.expected(format!("{what} (a number up to {MAX_COUNT})")),
            },
            _ => self.expected(what),
        }
    }

    /// Items separated by commas.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.eat(',') {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

/// A number that a size may be.
pub(super) fn parse_count(word: &str) -> Option<usize> {
    word.parse().ok().filter(|&count| count <= MAX_COUNT)
}
