//! Tokens to the tree of a module. It reads what nvcc, Triton and LLVM write; whatever else it meets is an error with
//! line and column. Nesting is kept flat, so that no text makes it recurse without bound.

use std::collections::HashSet;

use super::lex::{Placed, Token, tokens};
use super::tree::{Function, Instruction, Operand, Space, Statement, Tree};
use super::{Position, PtxError};

/// The most threads of a block.
const MOST_THREADS: u32 = 1024;
/// The most registers that one declaration names.
const MOST_REGISTERS: u64 = 1 << 16;

/// Reads a module.
pub(crate) fn parse(text: &str) -> Result<Tree, PtxError> {
    Parser { tokens: tokens(text)?, at: 0 }.module()
}

pub(super) struct Parser<'a> {
    tokens: Vec<Placed<'a>>,
    pub(super) at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token<'a> {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    pub(super) fn place(&self) -> Position {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    pub(super) fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    pub(super) fn wrong<T>(&self, expected: &str) -> Result<T, PtxError> {
        let found = match self.peek() {
            Token::Word(word) => format!("`{word}`"),
            Token::Int(value) => format!("the number {value}"),
            Token::Single(_) | Token::Double(_) => "a floating-point number".into(),
            Token::Text(_) => "a string".into(),
            Token::Punct(c) => format!("`{c}`"),
            Token::End => "the end of the text".into(),
        };
        Err(PtxError::new(self.place(), format!("expected {expected}, found {found}")))
    }

    pub(super) fn takes(&mut self, c: char) -> bool {
        let found = self.peek() == Token::Punct(c);
        self.at += usize::from(found);
        found
    }

    pub(super) fn takes_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Token::Word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn punct(&mut self, c: char) -> Result<(), PtxError> {
        if self.takes(c) { Ok(()) } else { self.wrong(&format!("`{c}`")) }
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, PtxError> {
        match self.peek() {
            Token::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.wrong(what),
        }
    }

    pub(super) fn int(&mut self, what: &str) -> Result<u64, PtxError> {
        match self.peek() {
            Token::Int(value) => {
                self.at += 1;
                Ok(value)
            }
            _ => self.wrong(what),
        }
    }

    fn module(mut self) -> Result<Tree, PtxError> {
        let mut tree = Tree::default();
        loop {
            let place = self.place();
            match self.peek() {
                Token::End => break,
                Token::Word(".version") => {
                    self.at += 1;
                    tree.version = self.version()?;
                }
                Token::Word(".target") => {
                    self.at += 1;
                    self.word("a target such as sm_80")?.clone_into(&mut tree.target);
                    while self.takes(',') {
                        self.word("a target option")?;
                    }
                }
                Token::Word(".address_size") => {
                    self.at += 1;
                    if self.int("64")? != 64 {
                        return Err(PtxError::new(place, "only `.address_size 64` is supported"));
                    }
                }
                Token::Word(".file" | ".loc") => self.skip_line(),
                Token::Word(".section") => self.skip_to('}')?,
                Token::Word(".pragma") => self.skip_to(';')?,
                Token::Word(_) => self.declaration(&mut tree)?,
                _ => return self.wrong("a directive"),
            }
        }
        let mut defined = HashSet::new();
        if let Some(twice) = tree.functions.iter().find(|f| f.body.is_some() && !defined.insert(f.name.as_str())) {
            return Err(PtxError::new(twice.at, format!("the function `{}` is defined twice", twice.name)));
        }
        let missing = match (tree.version, tree.target.as_str()) {
            ((0, 0), _) => Some("`.version` is missing"),
            (_, "") => Some("`.target` is missing"),
            _ => None,
        };
        if let Some(missing) = missing {
            return Err(PtxError::new(Position { line: 1, column: 1 }, missing));
        }
        Ok(tree)
    }

    fn version(&mut self) -> Result<(u32, u32), PtxError> {
        let place = self.place();
        let Token::Double(bits) = self.next() else {
            return Err(PtxError::new(place, "expected a version such as 7.0"));
        };
        let tenths = (f64::from_bits(bits) * 10.0).round();
        if !(10.0..=94.0).contains(&tenths) {
            return Err(PtxError::new(place, "PTX versions from 1.0 to 9.4 are understood"));
        }
        Ok((tenths as u32 / 10, tenths as u32 % 10))
    }

    /// Skips directives that end with their line.
    fn skip_line(&mut self) {
        let line = self.place().line;
        while self.place().line == line && self.peek() != Token::End {
            self.at += 1;
        }
    }

    /// Skips through a closing character.
    pub(super) fn skip_to(&mut self, close: char) -> Result<(), PtxError> {
        while !self.takes(close) {
            if self.next() == Token::End {
                return self.wrong(&format!("`{close}`"));
            }
        }
        Ok(())
    }

    /// A variable or a function, with its linkage.
    fn declaration(&mut self, tree: &mut Tree) -> Result<(), PtxError> {
        let mut is_extern = false;
        loop {
            match self.peek() {
                Token::Word(".extern") => is_extern = true,
                Token::Word(".visible" | ".weak" | ".common") => {}
                _ => break,
            }
            self.at += 1;
        }
        match self.peek() {
            Token::Word(".entry") => {
                self.at += 1;
                let function = self.function(true)?;
                tree.functions.push(function);
            }
            Token::Word(".func") => {
                self.at += 1;
                let function = self.function(false)?;
                tree.functions.push(function);
            }
            Token::Word(word) => match Space::parse(word) {
                Some(space @ (Space::Global | Space::Const | Space::Shared)) => {
                    self.at += 1;
                    let variables = self.variables(space, is_extern)?;
                    tree.variables.extend(variables);
                }
                _ => return self.wrong("a directive of a module (`.entry`, `.func`, `.global`, `.const`, `.shared`)"),
            },
            _ => return self.wrong("a directive"),
        }
        Ok(())
    }

    fn function(&mut self, is_entry: bool) -> Result<Function, PtxError> {
        let returns = if !is_entry && self.takes('(') { self.params()? } else { vec![] };
        let at = self.place();
        let name = self.word("the function's name")?.to_owned();
        let params = if self.takes('(') { self.params()? } else { vec![] };
        let mut function =
            Function { name, at, is_entry, returns, params, body: None, max_threads: None, required_block: None };
        loop {
            match self.peek() {
                Token::Word(".maxntid") => {
                    self.at += 1;
                    function.max_threads = Some(self.dims()?.iter().map(|&d| u64::from(d)).product());
                }
                Token::Word(".reqntid") => {
                    self.at += 1;
                    function.required_block = Some(self.dims()?);
                }
                Token::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm") => {
                    self.at += 1;
                    self.int("a count")?;
                }
                Token::Word(".noreturn" | ".unique" | ".abi_preserve") => self.at += 1,
                Token::Word(".pragma") => self.skip_to(';')?,
                Token::Punct(';') => {
                    self.at += 1;
                    return Ok(function);
                }
                Token::Punct('{') => {
                    self.at += 1;
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                _ => return self.wrong("a performance directive, `;` or the body of the function"),
            }
        }
    }

    /// The size of a block.
    fn dims(&mut self) -> Result<[u32; 3], PtxError> {
        let (start, mut dims) = (self.place(), [1; 3]);
        for (index, dim) in dims.iter_mut().enumerate() {
            if index > 0 && !self.takes(',') {
                break;
            }
            let place = self.place();
            let size = self.int("a size")?;
            // So bounded, the product of three has room.
            *dim = u32::try_from(size).ok().filter(|size| (1..=MOST_THREADS).contains(size)).ok_or_else(|| {
                PtxError::new(
                    place,
                    format!("a block of {size} threads in one direction; 1 to {MOST_THREADS} are possible"),
                )
            })?;
        }
        let threads: u64 = dims.iter().map(|&dim| u64::from(dim)).product();
        if threads > u64::from(MOST_THREADS) {
            let message = format!("a block of {threads} threads; {MOST_THREADS} are the most");
            return Err(PtxError::new(start, message));
        }
        Ok(dims)
    }

    /// The statements of a body after its opening brace, through the closing one.
    fn body(&mut self) -> Result<Vec<Statement>, PtxError> {
        let (mut out, mut depth) = (Vec::new(), 1u32);
        loop {
            let at = self.place();
            match self.peek() {
                Token::Punct('{') => {
                    self.at += 1;
                    depth += 1;
                    out.push(Statement::Open(at));
                }
                Token::Punct('}') => {
                    self.at += 1;
                    depth -= 1;
                    if depth == 0 {
                        return Ok(out);
                    }
                    out.push(Statement::Close);
                }
                Token::Punct(';') => self.at += 1,
                Token::Word(".loc" | ".file") => self.skip_line(),
                Token::Word(".pragma" | ".callprototype") => self.skip_to(';')?,
                Token::Word(".branchtargets") => {
                    self.at += 1;
                    let mut labels = vec![self.word("a label")?.to_owned()];
                    while self.takes(',') {
                        labels.push(self.word("a label")?.to_owned());
                    }
                    self.punct(';')?;
                    out.push(Statement::Targets(labels));
                }
                Token::Word(".reg") => self.registers(&mut out)?,
                Token::Word(word) if Space::parse(word).is_some() => {
                    self.at += 1;
                    let variables = self.variables(Space::parse(word).unwrap_or(Space::Local), false)?;
                    out.extend(variables.into_iter().map(Statement::Variable));
                }
                Token::Word(word) if self.tokens.get(self.at + 1).is_some_and(|t| t.0 == Token::Punct(':')) => {
                    self.at += 2;
                    out.push(Statement::Label(word.to_owned(), at));
                }
                Token::Punct('@') => {
                    self.at += 1;
                    let negated = self.takes('!');
                    let guard = self.word("a predicate")?.to_owned();
                    out.push(Statement::Instruction(self.instruction(Some((guard, negated)))?));
                }
                Token::Word(word) if !word.starts_with(['.', '%', '$']) => {
                    out.push(Statement::Instruction(self.instruction(None)?));
                }
                _ => return self.wrong("an instruction, a label, a declaration or `}`"),
            }
        }
    }

    fn registers(&mut self, out: &mut Vec<Statement>) -> Result<(), PtxError> {
        self.at += 1;
        let shape = self.shape()?;
        loop {
            let at = self.place();
            let name = self.word("a register")?.to_owned();
            let count = if self.takes('<') {
                let count = self.int("how many registers")?;
                if count > MOST_REGISTERS {
                    return Err(PtxError::new(
                        at,
                        format!("{count} registers of one name; {MOST_REGISTERS} is the most"),
                    ));
                }
                self.punct('>')?;
                Some(count as u32)
            } else {
                None
            };
            out.push(Statement::Registers { ty: shape.ty, name, count, at });
            if !self.takes(',') {
                break;
            }
        }
        self.punct(';')
    }

    fn instruction(&mut self, guard: Option<(String, bool)>) -> Result<Instruction, PtxError> {
        let at = self.place();
        let opcode = self.word("an opcode")?.to_owned();
        let mut operands = Vec::new();
        while !self.takes(';') {
            if !operands.is_empty() && !self.takes(',') && self.peek() != Token::Punct('(') {
                return self.wrong("`,` or `;`");
            }
            operands.push(self.operand(0)?);
        }
        Ok(Instruction { at, guard, opcode, operands })
    }

    fn operand(&mut self, depth: u32) -> Result<Operand, PtxError> {
        match self.peek() {
            Token::Punct('!') => {
                self.at += 1;
                Ok(Operand::Name { name: self.word("a predicate")?.to_owned(), negated: true })
            }
            Token::Punct('-') => {
                self.at += 1;
                match self.next() {
                    Token::Int(value) => Ok(Operand::Int(value.wrapping_neg())),
                    Token::Single(bits) => Ok(Operand::Single(bits ^ 1 << 31)),
                    Token::Double(bits) => Ok(Operand::Double(bits ^ 1 << 63)),
                    _ => {
                        self.at -= 1;
                        self.wrong("a number after `-`")
                    }
                }
            }
            Token::Int(value) => {
                self.at += 1;
                Ok(Operand::Int(value))
            }
            Token::Single(bits) => {
                self.at += 1;
                Ok(Operand::Single(bits))
            }
            Token::Double(bits) => {
                self.at += 1;
                Ok(Operand::Double(bits))
            }
            Token::Punct(open @ ('{' | '(')) if depth < 2 => {
                self.at += 1;
                let close = if open == '{' { '}' } else { ')' };
                let mut items = Vec::new();
                while !self.takes(close) {
                    if !items.is_empty() {
                        self.punct(',')?;
                    }
                    items.push(self.operand(depth + 1)?);
                }
                Ok(Operand::List(items))
            }
            Token::Punct('[') => {
                self.at += 1;
                self.address()
            }
            Token::Word(name) => {
                self.at += 1;
                let name = name.to_owned();
                if self.takes('|') {
                    return Ok(Operand::Pair(name, self.word("a predicate")?.to_owned()));
                }
                // `mov.u64 %rd1, name+8`: an address as a value.
                if self.takes('+') {
                    let offset = self.int("an offset")? as i64;
                    return Ok(Operand::Address { base: Some(name), offset });
                }
                Ok(Operand::Name { name, negated: false })
            }
            _ => self.wrong("an operand"),
        }
    }

    fn address(&mut self) -> Result<Operand, PtxError> {
        let base = match self.peek() {
            Token::Word(name) => {
                self.at += 1;
                Some(name.to_owned())
            }
            _ => None,
        };
        let mut offset = 0i64;
        while !self.takes(']') {
            if base.is_some() && self.takes(',') {
                self.operand(1)?;
                self.punct(']')?;
                return Ok(Operand::Tensor);
            }
            let plus = self.takes('+');
            let minus = self.takes('-');
            if base.is_some() && !plus && !minus {
                return self.wrong("`+`, `-` or `]`");
            }
            let value = self.int("an offset")? as i64;
            offset = offset.wrapping_add(if minus { value.wrapping_neg() } else { value });
        }
        Ok(Operand::Address { base, offset })
    }
}
