//! A graph from its text; the grammar is what [`crate::print`] writes, with free spacing and free choice of value names.
//!
//! ```text
//! graph     = "graph" name "(" [input {"," input}] ")" "{" {weight | cache | op} "return" [output {"," output}] "}"
//! input     = "%" word ":" type                 output = name "=" value
//! weight    = "@" name ":" type "=" source      cache  = "cache" "$" name ":" type
//! source    = part | "concat" "(" parts ")" | "interleave" rows "(" parts ")"
//! part      = string ["[" rows "]"] ["pairs_to_halves" "(" head_dim ")"] ["plus_one"]
//! op        = values "=" word [values] ["pre" stages] ["post" stages] [attributes] ":" type {"," type}
//! stages    = "[" word ["(" values ")"] [attributes] {"," …} "]"
//! ```
//!
//! A two-dimensional weight type of `f32` or `bf16` is a matrix in that scheme; a one-dimensional one is a plain vector.

mod types;
mod words;

use std::collections::HashMap;

use crate::attributes::{Attribute, AttributeError, Attributes};
use crate::graph::{Arrangement, Graph, Part, RowOrder, StepInput, Value, Weight};
use crate::lex::{Name, Place, Token, lex};
use crate::op::{Op, OpError};
use crate::print::implied_rows;
use crate::scheme::{Code, Scheme};
use crate::types::{Elem, Type};

/// Why text is not a graph, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Another word belongs here.
    #[error("expected {expected}, found {found}")]
    Syntax {
        /// What belongs here.
        expected: String,
        /// What stands here.
        found: String,
    },
    /// A value is used that no earlier line defines.
    #[error("{name} is not defined; define it on an earlier line")]
    Undefined {
        /// The value.
        name: String,
    },
    /// A value is defined again.
    #[error("{name} is already defined; choose another name")]
    Redefined {
        /// The value.
        name: String,
    },
    /// There is no such op.
    #[error("unknown op '{name}'; ops are {}", Op::NAMES.join(", "))]
    UnknownOp {
        /// Its name.
        name: String,
    },
    /// The attributes do not make the op.
    #[error("{op}: {source}")]
    Attributes {
        /// The op.
        op: String,
        /// Why.
        source: AttributeError,
    },
    /// The op refuses its operands.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The declared results are not those of the op.
    #[error("the results are {expected}, but the text declares {found}")]
    Results {
        /// What the op yields.
        expected: String,
        /// What the text says.
        found: String,
    },
}

/// Reads a graph.
///
/// # Errors
/// The first place where the text is not a graph.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let tokens = lex(text).map_err(|(place, expected)| {
        let problem = Problem::Syntax { expected: expected.to_string(), found: "the end of the text".to_string() };
        ParseError { line: place.line, column: place.column, problem }
    })?;
    let mut parser = Parser { tokens, at: 0, graph: Graph::new(""), values: HashMap::new() };
    parser.graph()?;
    Ok(parser.graph)
}

type Parsed<T> = Result<T, ParseError>;

fn fail<T>(place: Place, problem: Problem) -> Parsed<T> {
    Err(ParseError { line: place.line, column: place.column, problem })
}

struct Parser {
    tokens: Vec<(Token, Place)>,
    at: usize,
    graph: Graph,
    values: HashMap<Name, Value>,
}

/// Declarations.
impl Parser {
    fn graph(&mut self) -> Parsed<()> {
        self.keyword("graph")?;
        self.graph.name = self.label("a graph name")?;
        self.mark('(')?;
        if !self.eat(')') {
            self.list(Parser::input)?;
            self.mark(')')?;
        }
        self.mark('{')?;
        loop {
            match self.peek() {
                Token::Name(name) if name.sigil == '@' => self.weight()?,
                Token::Name(_) => self.statement()?,
                Token::Word(word) if word == "cache" => self.cache()?,
                Token::Word(word) if word == "return" => break,
                _ => return self.expected("a weight, a cache, an op or 'return'"),
            }
        }
        self.keyword("return")?;
        if !self.eat('}') {
            self.graph.outputs = self.list(|parser| {
                let name = parser.label("an output name or '}'")?;
                parser.mark('=')?;
                Ok((name, parser.value()?))
            })?;
            self.mark('}')?;
        }
        if *self.peek() == Token::End { Ok(()) } else { self.expected("the end of the text") }
    }

    fn input(&mut self) -> Parsed<()> {
        let place = self.place();
        let known = StepInput::ALL.map(|input| format!("%{}", input.name())).join(", ");
        let name = self.name("%", &format!("a step input ({known})"))?;
        let Some(input) = StepInput::ALL.into_iter().find(|input| input.name() == name.text) else {
            let problem = Problem::Syntax { expected: format!("a step input ({known})"), found: name.to_string() };
            return fail(place, problem);
        };
        self.mark(':')?;
        let type_place = self.place();
        let ty = self.ty()?;
        if ty != input.ty() {
            let problem = Problem::Syntax { expected: input.ty().to_string(), found: ty.to_string() };
            return fail(type_place, problem);
        }
        let value = self.graph.input(input);
        self.define(name, place, value)
    }

    fn weight(&mut self) -> Parsed<()> {
        let place = self.place();
        let name = self.name("@", "a weight name")?;
        self.mark(':')?;
        let ty = match self.ty()? {
            Type::Tensor { elem: Elem::Dense(dtype), shape } if shape.len() == 2 => {
                let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.code == Code::Float(dtype));
                Type::Tensor { elem: scheme.map_or(Elem::Dense(dtype), Elem::Weight), shape }
            }
            ty => ty,
        };
        self.mark('=')?;
        let (parts, arrangement) = if self.eat_word("concat") {
            (self.parts()?, Arrangement::Concat)
        } else if self.eat_word("interleave") {
            let rows = self.count("rows per block")?;
            (self.parts()?, Arrangement::Interleave { rows })
        } else {
            (vec![self.part(Some(implied_rows(&ty)))?], Arrangement::Concat)
        };
        let value = self.graph.weight(Weight { name: name.text.clone(), parts, arrangement }, ty);
        self.define(name, place, value)
    }

    fn parts(&mut self) -> Parsed<Vec<Part>> {
        self.mark('(')?;
        let parts = self.list(|parser| parser.part(None))?;
        self.mark(')')?;
        Ok(parts)
    }

    fn part(&mut self, implied: Option<usize>) -> Parsed<Part> {
        let Token::Text(tensor) = self.peek().clone() else {
            return self.expected("a tensor name in quotes, 'concat' or 'interleave'");
        };
        self.next();
        let rows = if let Some(rows) = implied {
            rows
        } else {
            self.mark('[')?;
            let rows = self.count("rows")?;
            self.mark(']')?;
            rows
        };
        let order = if self.eat_word("pairs_to_halves") {
            self.mark('(')?;
            let head_dim = self.count("rows per head")?;
            self.mark(')')?;
            RowOrder::PairsToHalves { head_dim }
        } else {
            RowOrder::AsStored
        };
        let plus_one = self.eat_word("plus_one");
        Ok(Part { tensor, rows, order, plus_one })
    }

    fn cache(&mut self) -> Parsed<()> {
        self.keyword("cache")?;
        let place = self.place();
        let name = self.name("$", "a cache name")?;
        if !name.given {
            let problem = Problem::Syntax {
                expected: "a cache name that begins with a letter".to_string(),
                found: name.to_string(),
            };
            return fail(place, problem);
        }
        self.mark(':')?;
        self.keyword("cache")?;
        let ty = self.cache_type()?;
        let value = self.graph.cache(name.text.clone(), ty);
        self.define(name, place, value)
    }

    fn define(&mut self, name: Name, place: Place, value: Value) -> Parsed<()> {
        if self.values.contains_key(&name) {
            return fail(place, Problem::Redefined { name: name.to_string() });
        }
        self.values.insert(name, value);
        Ok(())
    }
}

/// Ops.
impl Parser {
    fn statement(&mut self) -> Parsed<()> {
        let names = self.list(|parser| Ok((parser.place(), parser.name("%$", "a result name")?)))?;
        self.mark('=')?;
        let place = self.place();
        let op_name = self.word("an op")?;
        let mut inputs = if matches!(self.peek(), Token::Name(_)) { self.list(Parser::value)? } else { Vec::new() };
        let prologue = if self.eat_word("pre") { self.stages(&mut inputs)? } else { Vec::new() };
        let epilogue = if self.eat_word("post") { self.stages(&mut inputs)? } else { Vec::new() };
        let staged = !prologue.is_empty() || !epilogue.is_empty();
        let mut op = self.op(place, &op_name)?;
        match &mut op {
            Op::Linear(linear) => (linear.prologue, linear.epilogue) = (prologue, epilogue),
            _ if staged => {
                let (expected, found) = ("linear before 'pre' or 'post'".to_string(), format!("'{op_name}'"));
                return fail(place, Problem::Syntax { expected, found });
            }
            _ => {}
        }
        self.mark(':')?;
        let types_place = self.place();
        let types = self.list(Parser::ty)?;
        let values = match self.graph.op(op, &inputs) {
            Ok(values) => values,
            Err(error) => return fail(place, Problem::Op(error)),
        };
        let expected: Vec<Type> = values.iter().map(|&value| self.graph.ty(value).clone()).collect();
        if types != expected {
            return fail(types_place, Problem::Results { expected: spell(&expected), found: spell(&types) });
        }
        if names.len() != values.len() {
            let found = names.iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>().join(", ");
            return fail(names[0].0, Problem::Results { expected: spell(&expected), found });
        }
        for ((place, name), value) in names.into_iter().zip(values) {
            self.define(name, place, value)?;
        }
        Ok(())
    }

    fn value(&mut self) -> Parsed<Value> {
        let place = self.place();
        let name = self.name("%@$", "a value")?;
        match self.values.get(&name) {
            Some(&value) => Ok(value),
            None => fail(place, Problem::Undefined { name: name.to_string() }),
        }
    }

    /// The ops of a stage list; their operands go to the end of `inputs`.
    fn stages(&mut self, inputs: &mut Vec<Value>) -> Parsed<Vec<Op>> {
        self.mark('[')?;
        let stages = self.list(|parser| {
            let place = parser.place();
            let name = parser.word("an op")?;
            let mut extra = Vec::new();
            if parser.eat('(') {
                extra = parser.list(Parser::value)?;
                parser.mark(')')?;
            }
            let op = parser.op(place, &name)?;
            if matches!(op, Op::Linear(_)) || extra.len() + 1 != op.arity() {
                let expected = match op {
                    Op::Linear(_) => "a stage other than linear".to_string(),
                    _ => format!("{} operands of stage {name} besides the running value", op.arity() - 1),
                };
                return fail(place, Problem::Syntax { expected, found: format!("{} of '{name}'", extra.len()) });
            }
            inputs.extend(extra);
            Ok(op)
        })?;
        self.mark(']')?;
        Ok(stages)
    }

    /// Reads attributes, if any, and makes the op of this name, which stands at `place`.
    fn op(&mut self, place: Place, name: &str) -> Parsed<Op> {
        let mut attributes = Attributes::new();
        if self.eat('{') {
            let entries = self.list(|parser| {
                let key = parser.word("an attribute name")?;
                parser.mark('=')?;
                Ok((key, parser.attribute()?))
            })?;
            self.mark('}')?;
            for (key, value) in entries {
                if let Err(source) = attributes.add(&key, value) {
                    return fail(place, Problem::Attributes { op: name.to_string(), source });
                }
            }
        }
        match Op::from_attributes(name, &mut attributes) {
            Some(Ok(op)) => Ok(op),
            Some(Err(source)) => fail(place, Problem::Attributes { op: name.to_string(), source }),
            None => fail(place, Problem::UnknownOp { name: name.to_string() }),
        }
    }

    fn attribute(&mut self) -> Parsed<Attribute> {
        if self.eat('[') {
            let values = self.list(Parser::number)?;
            self.mark(']')?;
            return Ok(Attribute::Floats(values));
        }
        self.scalar()
    }

    fn scalar(&mut self) -> Parsed<Attribute> {
        let value = match self.peek() {
            Token::Text(text) => Some(Attribute::Text(text.clone())),
            Token::Word(word) => match word.as_str() {
                "true" => Some(Attribute::Bool(true)),
                "false" => Some(Attribute::Bool(false)),
                // Float parsing also takes words such as `inf`; those are no attribute values.
                number if number.starts_with(|c: char| c.is_ascii_digit() || c == '-') => number
                    .parse()
                    .map(Attribute::Int)
                    .or_else(|_| number.parse().map(Attribute::Float))
                    .ok()
                    .filter(|value| !matches!(value, Attribute::Float(value) if !value.is_finite())),
                _ => None,
            },
            _ => None,
        };
        match value {
            Some(value) => {
                self.next();
                Ok(value)
            }
            None => self.expected("a number, a string, true or false"),
        }
    }

    fn number(&mut self) -> Parsed<f32> {
        let (place, found) = (self.place(), self.peek().to_string());
        match self.scalar()? {
            Attribute::Float(value) => Ok(value),
            Attribute::Int(value) => Ok(value as f32),
            _ => fail(place, Problem::Syntax { expected: "a number".to_string(), found }),
        }
    }
}

fn spell(types: &[Type]) -> String {
    types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ")
}
