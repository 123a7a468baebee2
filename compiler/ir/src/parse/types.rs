//! Types in text: `f32[T, 576]`, `int8[32][T, 576]`, `int4:g32+min[576, 576]`, `int6:g16s8/256[576, 512]`,
//! `cache<f16, 3x64>`, `cache<int8, 3x64>`.

use super::words::parse_count;
use super::{Parsed, Parser, Problem, fail};
use crate::lex::Token;
use crate::scheme::Scheme;
use crate::types::{CacheType, DType, Dim, Elem, Type};

impl Parser {
    pub(super) fn ty(&mut self) -> Parsed<Type> {
        let place = self.place();
        let word = self.word("a type")?;
        if word == "cache" {
            return Ok(Type::Cache(self.cache_type()?));
        }
        let elem = if self.eat(':') {
            let mut text = format!("{word}:{}", self.word("a group (g32)")?);
            if self.eat('/') {
                text = format!("{text}/{}", self.word("the columns of a super-block (256)")?);
            }
            if self.eat('+') {
                text = format!("{text}+{}", self.word("'min'")?);
            }
            let Ok(scheme) = text.parse::<Scheme>() else {
                let known = Scheme::ALL.map(|scheme| scheme.to_string()).join(", ");
                return fail(place, Problem::Syntax { expected: format!("a scheme ({known})"), found: text });
            };
            Elem::Weight(scheme)
        } else if word == "int8" {
            self.mark('[')?;
            let group = self.count("a group size")?;
            self.mark(']')?;
            Elem::Act { group }
        } else if let Some(dtype) = dtype(&word) {
            Elem::Dense(dtype)
        } else {
            let problem = Problem::Syntax { expected: "an element type".to_string(), found: format!("'{word}'") };
            return fail(place, problem);
        };
        self.mark('[')?;
        let shape = self.list(Parser::dim)?;
        self.mark(']')?;
        Ok(Type::Tensor { elem, shape })
    }

    /// What follows the word `cache`: `<f16, 3x64>`.
    pub(super) fn cache_type(&mut self) -> Parsed<CacheType> {
        self.mark('<')?;
        let Some(dtype) = (match self.peek() {
            Token::Word(word) if word == DType::Int8.name() => Some(DType::Int8),
            Token::Word(word) => dtype(word),
            _ => None,
        }) else {
            return self.expected("an element type");
        };
        self.next();
        self.mark(',')?;
        let size = match self.peek() {
            Token::Word(word) => {
                word.split_once('x').and_then(|(heads, dim)| Some((parse_count(heads)?, parse_count(dim)?)))
            }
            _ => None,
        };
        let Some((heads, head_dim)) = size else {
            return self.expected("heads and elements per head (3x64)");
        };
        self.next();
        self.mark('>')?;
        Ok(CacheType { dtype, heads, head_dim })
    }

    /// `T`, `576`, `2*T+S+1`: each symbol and the constant at most once.
    fn dim(&mut self) -> Parsed<Dim> {
        let mut dim = Dim::default();
        loop {
            let place = self.place();
            let coefficient = match self.peek() {
                Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => Some(self.count("a number")?),
                _ => None,
            };
            let term = if coefficient.is_none() || self.eat('*') {
                match self.word("a number or one of the symbols T, S and R")?.as_str() {
                    "T" => &mut dim.t,
                    "S" => &mut dim.s,
                    "R" => &mut dim.r,
                    other => {
                        let (expected, found) = ("one of the symbols T, S and R".to_string(), format!("'{other}'"));
                        return fail(place, Problem::Syntax { expected, found });
                    }
                }
            } else {
                &mut dim.c
            };
            if *term != 0 {
                let expected = "each symbol and the constant at most once".to_string();
                return fail(place, Problem::Syntax { expected, found: "another one".to_string() });
            }
            *term = coefficient.unwrap_or(1);
            if !self.eat('+') {
                return Ok(dim);
            }
        }
    }
}

fn dtype(word: &str) -> Option<DType> {
    [DType::F32, DType::F16, DType::Bf16, DType::I32].into_iter().find(|dtype| dtype.name() == word)
}
