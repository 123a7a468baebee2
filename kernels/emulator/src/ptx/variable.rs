//! Declarations of variables and parameters: their shapes and initial contents.

use std::collections::HashSet;

use super::PtxError;
use super::lex::Token;
use super::parse::Parser;
use super::tree::{Space, Ty, Variable};

/// The most bytes of one variable: more than any device holds in a module.
const MOST_BYTES: u64 = 1 << 32;
/// The most bytes of initial contents.
const MOST_INIT: usize = 1 << 26;

/// What precedes the name of a variable.
pub(super) struct Shape {
    pub(super) ty: Ty,
    align: u32,
    lanes: u64,
}

impl Parser<'_> {
    /// Parameters after the opening parenthesis.
    pub(super) fn params(&mut self) -> Result<Vec<Variable>, PtxError> {
        let mut out = Vec::new();
        let mut names = HashSet::new();
        while !self.takes(')') {
            if !out.is_empty() {
                self.punct(',')?;
            }
            if !self.takes_word(".param") {
                return self.wrong("`.param`");
            }
            let shape = self.shape()?;
            let param = self.variable(Space::Param, &shape, false)?;
            if !names.insert(param.name.clone()) {
                return Err(PtxError::new(param.at, format!("the parameter `{}` is there twice", param.name)));
            }
            out.push(param);
        }
        Ok(out)
    }

    /// Alignment, vector and type, and what else may precede a name.
    pub(super) fn shape(&mut self) -> Result<Shape, PtxError> {
        let (mut ty, mut align, mut lanes) = (None, None, 1);
        loop {
            let place = self.place();
            match self.peek() {
                Token::Word(".align") => {
                    self.at += 1;
                    let value = self.int("an alignment")?;
                    if !value.is_power_of_two() || value > 1 << 12 {
                        return Err(PtxError::new(place, format!("the alignment {value} is no power of two to 4096")));
                    }
                    // `.ptr .align` describes what is pointed at; only the first one is the parameter's own.
                    if ty.is_none() {
                        align = Some(value as u32);
                    }
                }
                Token::Word(".v2") => {
                    self.at += 1;
                    lanes = 2;
                }
                Token::Word(".v4") => {
                    self.at += 1;
                    lanes = 4;
                }
                Token::Word(".ptr" | ".global" | ".shared" | ".const" | ".local" | ".attribute") => {
                    self.at += 1;
                    if self.takes('(') {
                        self.skip_to(')')?;
                    }
                }
                Token::Word(word) if word.starts_with('.') => {
                    let Some(found) = Ty::parse(&word[1..]) else { return self.wrong("a type") };
                    self.at += 1;
                    ty = Some(found);
                }
                _ => break,
            }
        }
        let Some(ty) = ty else { return self.wrong("a type") };
        let natural = ty.bytes() * lanes as u32;
        Ok(Shape { ty, align: align.unwrap_or(natural), lanes })
    }

    /// One name with its dimensions and initial contents.
    fn variable(&mut self, space: Space, shape: &Shape, is_extern: bool) -> Result<Variable, PtxError> {
        let at = self.place();
        let name = self.word("a name")?.to_owned();
        let element = u64::from(shape.ty.bytes()) * shape.lanes;
        let (mut bytes, mut open) = (element, false);
        while self.takes('[') {
            if self.takes(']') {
                open = true;
                continue;
            }
            let count = self.int("a length")?;
            bytes = bytes
                .checked_mul(count)
                .filter(|&bytes| bytes <= MOST_BYTES)
                .ok_or_else(|| PtxError::new(at, format!("`{name}` is larger than {MOST_BYTES} bytes")))?;
            self.punct(']')?;
        }
        let (mut init, mut references) = (Vec::new(), Vec::new());
        if self.takes('=') {
            self.initial(shape.ty, &mut init, &mut references)?;
            if open {
                bytes = init.len() as u64;
            }
            if init.len() as u64 > bytes {
                return Err(PtxError::new(at, format!("`{name}` has {bytes} bytes and is given {}", init.len())));
            }
        } else if open {
            bytes = 0;
        }
        Ok(Variable { name, at, space, bytes, align: shape.align.max(1), init, references, is_extern })
    }

    /// Initial contents: a scalar, or lists whose nesting does not matter for the bytes.
    fn initial(
        &mut self,
        ty: Ty,
        init: &mut Vec<u8>,
        references: &mut Vec<(usize, String, i64)>,
    ) -> Result<(), PtxError> {
        let (mut depth, width) = (0, ty.bytes() as usize);
        loop {
            let place = self.place();
            if init.len() > MOST_INIT {
                return Err(PtxError::new(place, format!("more than {MOST_INIT} bytes of initial contents")));
            }
            match self.next() {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') if depth > 0 => depth -= 1,
                Token::Punct(',') if depth > 0 => continue,
                Token::Punct('-') => {
                    let value = self.int("a number")?.wrapping_neg();
                    init.extend(&value.to_le_bytes()[..width.min(8)]);
                }
                Token::Int(value) => init.extend(&value.to_le_bytes()[..width.min(8)]),
                Token::Single(bits) => init.extend(&bits.to_le_bytes()[..width.min(4)]),
                Token::Double(bits) if ty == Ty::F32 => {
                    init.extend((f64::from_bits(bits) as f32).to_le_bytes());
                }
                Token::Double(bits) => init.extend(&bits.to_le_bytes()[..width.min(8)]),
                Token::Word(_) if width != 8 => {
                    return Err(PtxError::new(place, "an address as an initial value has 8 bytes, such as `.u64`"));
                }
                Token::Word("generic") => {
                    self.punct('(')?;
                    let name = self.word("a variable")?.to_owned();
                    references.push((init.len(), name, 0));
                    init.extend(&[0; 8][..width.min(8)]);
                    self.punct(')')?;
                    self.addend(references)?;
                }
                Token::Word(name) => {
                    references.push((init.len(), name.to_owned(), 0));
                    init.extend(&[0; 8][..width.min(8)]);
                    self.addend(references)?;
                }
                _ => {
                    self.at -= 1;
                    return self.wrong("an initial value");
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn addend(&mut self, references: &mut [(usize, String, i64)]) -> Result<(), PtxError> {
        if self.takes('+') {
            let value = self.int("an offset")? as i64;
            if let Some(last) = references.last_mut() {
                last.2 = value;
            }
        }
        Ok(())
    }

    pub(super) fn variables(&mut self, space: Space, is_extern: bool) -> Result<Vec<Variable>, PtxError> {
        let shape = self.shape()?;
        let mut out = vec![self.variable(space, &shape, is_extern)?];
        while self.takes(',') {
            out.push(self.variable(space, &shape, is_extern)?);
        }
        self.punct(';')?;
        Ok(out)
    }
}
