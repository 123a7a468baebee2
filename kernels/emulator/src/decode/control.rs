//! Branches, returns and calls. A device function is written out where it is called.

use super::{Decoder, MOST_CALLS, MOST_DEPTH, Mods, Result, Symbol};
use crate::counters::Class;
use crate::exec::op::Op;
use crate::ptx::tree::{Instruction, Operand, Ty};
use crate::ptx::{Position, PtxError};

impl<'a> Decoder<'a> {
    /// Branches, calls, returns.
    pub(super) fn control(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        i: &'a Instruction,
        guard: Option<(u32, bool)>,
    ) -> Result<bool> {
        match name {
            "bra" => {
                mods.take("uni");
                let [Operand::Name { name, .. }] = &i.operands[..] else {
                    return Err(PtxError::new(i.at, "`bra` takes a label"));
                };
                let from = self.push(Op::Bra { target: 0 }, guard, Class::Control, i.at)?;
                self.jump(from, 0, name, i.at);
            }
            "brx" => {
                mods.take("uni");
                mods.take("idx");
                let [index, Operand::Name { name, .. }] = &i.operands[..] else {
                    return Err(PtxError::new(i.at, "`brx.idx` takes an index and a list of targets"));
                };
                let index = self.source32(index, Ty::U32, i.at)?;
                let labels = self.tables.get(name).cloned();
                let labels = labels.ok_or_else(|| PtxError::new(i.at, format!("`{name}` is no `.branchtargets`")))?;
                let targets = vec![0; labels.len()].into_boxed_slice();
                let from = self.push(Op::Brx { index, targets }, guard, Class::Control, i.at)?;
                for (slot, label) in labels.iter().enumerate() {
                    self.jump(from, slot, label, i.at);
                }
            }
            "ret" | "exit" => {
                Self::takes(0, i)?;
                mods.take("uni");
                if name == "ret" && !self.chain.is_empty() {
                    let from = self.push(Op::Bra { target: 0 }, guard, Class::Control, i.at)?;
                    self.returns.last_mut().expect("a function is open").push(from);
                } else {
                    self.push(Op::Exit, guard, Class::Control, i.at)?;
                }
            }
            "trap" => {
                Self::takes(0, i)?;
                self.push(Op::Trap("a trap instruction"), guard, Class::Control, i.at)?;
            }
            "brkpt" | "pmevent" => {
                let operands = usize::from(name == "pmevent");
                Self::takes(operands, i)?;
                if operands == 1 && !matches!(i.operands[0], Operand::Int(0..=15)) && !mods.take("mask") {
                    return Err(PtxError::new(i.at, "`pmevent` takes an event from 0 to 15"));
                }
                self.push(Op::Nop, guard, Class::Control, i.at)?;
            }
            "call" => {
                mods.take("uni");
                self.call(i, guard)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn jump(&mut self, from: usize, slot: usize, label: &str, at: Position) {
        let scopes = self.scopes.iter().map(|scope| scope.id).collect();
        self.jumps.push((from, slot, scopes, label.to_owned(), at));
    }

    /// Writes a device function out where it is called.
    fn call(&mut self, i: &'a Instruction, guard: Option<(u32, bool)>) -> Result<()> {
        let mut operands = i.operands.iter();
        let mut results: &[Operand] = &[];
        let mut callee = operands.next();
        if let Some(Operand::List(items)) = callee {
            results = items;
            callee = operands.next();
        }
        let Some(Operand::Name { name, .. }) = callee else {
            return Err(PtxError::new(i.at, "`call` takes the name of a function"));
        };
        let arguments: &[Operand] = match operands.next() {
            Some(Operand::List(items)) => items,
            _ => &[],
        };
        if matches!(name.as_str(), "__assertfail" | "__trap") {
            self.push(Op::Trap("a failed device assertion"), guard, Class::Control, i.at)?;
            return Ok(());
        }
        if name == "vprintf" {
            // What a kernel prints is not shown; its result is not used by anything.
            self.push(Op::Nop, guard, Class::Control, i.at)?;
            return Ok(());
        }
        if name.starts_with('%') {
            return Err(PtxError::new(i.at, "calls of a function whose address is in a register are not emulated"));
        }
        let function = self.functions.get(name.as_str()).copied();
        let function =
            function.ok_or_else(|| PtxError::new(i.at, format!("the function `{name}` has no body in this module")))?;
        if self.chain.iter().any(|open| open == name) || self.chain.len() >= MOST_DEPTH {
            return Err(PtxError::new(i.at, format!("`{name}` calls itself, or calls are nested too deep")));
        }
        self.calls += 1;
        if self.calls > MOST_CALLS {
            return Err(PtxError::new(i.at, format!("more than {MOST_CALLS} calls in one kernel, written out")));
        }
        if function.returns.len() != results.len() || function.params.len() != arguments.len() {
            return Err(PtxError::new(i.at, format!("`{name}` has other numbers of arguments or results")));
        }
        let skip = match guard {
            Some((p, negated)) => Some(self.push(Op::Bra { target: 0 }, Some((p, !negated)), Class::Control, i.at)?),
            None => None,
        };
        let mut bound = Vec::new();
        for (variable, operand) in function.returns.iter().chain(&function.params).zip(results.iter().chain(arguments))
        {
            let Operand::Name { name, .. } = operand else {
                return Err(PtxError::new(i.at, "arguments of `call` are parameters"));
            };
            match self.symbol(name, i.at)? {
                Some(symbol @ Symbol::Memory(..)) => bound.push((variable.name.clone(), symbol)),
                _ => return Err(PtxError::new(i.at, format!("`{name}` is not a parameter"))),
            }
        }
        let outer = std::mem::take(&mut self.scopes);
        self.open();
        // Variables of the module stay visible.
        let module: Vec<_> = outer[0].symbols.iter().map(|(name, symbol)| (name.clone(), symbol.clone())).collect();
        self.scopes[0].symbols.extend(module);
        self.scopes[0].symbols.extend(bound);
        self.chain.push(name.clone());
        self.returns.push(vec![]);
        self.body(function.body.as_deref().unwrap_or_default())?;
        self.scopes = outer;
        self.chain.pop();
        let end = self.kernel.code.len() as u32;
        for from in self.returns.pop().into_iter().flatten().chain(skip) {
            self.kernel.code[from].op = Op::Bra { target: end };
        }
        Ok(())
    }
}
