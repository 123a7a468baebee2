//! PTX as text: tokens, and the tree of directives and instructions that they form.

pub(crate) mod lex;
pub(crate) mod parse;
pub(crate) mod tree;
mod variable;

/// What is wrong with a PTX text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}, column {column}: {message}")]
pub struct PtxError {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1; 0 where a whole line is meant.
    pub column: u32,
    /// What was expected and what was found.
    pub message: String,
}

impl PtxError {
    pub(crate) fn new(at: Position, message: impl Into<String>) -> PtxError {
        PtxError { line: at.line, column: at.column, message: message.into() }
    }
}

/// A place in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}
