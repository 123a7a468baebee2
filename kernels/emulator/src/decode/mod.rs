//! From the tree of a module to kernels that can run: names become indices, opcodes functions, device functions are
//! written into their callers, and blocks are ordered so that lanes that part meet again as early as they can.

mod arithmetic;
mod carry;
pub(crate) mod compare;
mod control;
pub(crate) mod flags;
pub(crate) mod floating;
mod hopper;
mod integer;
mod modifiers;
mod order;
mod special;
mod system;

use std::collections::{HashMap, HashSet};

use crate::counters::Class;
use crate::exec::op::{Base, Inst, Kernel, Op, Param, Reg, Special};
use crate::ptx::tree::{Function, Instruction, Operand, Space, Statement, Tree, Ty, Variable};
use crate::ptx::{Position, PtxError};
use modifiers::Mods;

/// Where windows of the generic address space begin.
pub(crate) const SHARED_BASE: u64 = 1 << 40;
pub(crate) const LOCAL_BASE: u64 = 2 << 40;
pub(crate) const PARAM_BASE: u64 = 3 << 40;

/// The most instructions of one kernel, device functions written out.
const MOST_CODE: usize = 1 << 20;
/// The most calls of a kernel that are written out.
const MOST_CALLS: usize = 1 << 14;
/// The deepest chain of calls.
const MOST_DEPTH: usize = 32;
/// The most registers of a kernel that it uses.
const MOST_USED: u32 = 1 << 15;
/// The most local memory of a thread, as on the device.
const MOST_LOCAL: u64 = 512 << 10;

type Result<T> = std::result::Result<T, PtxError>;

/// What a name stands for.
#[derive(Clone, Debug)]
enum Symbol {
    Register(Ty, Reg),
    /// A register of a range that nothing used yet.
    Memory(Space, u64),
}

/// Names of one `{ }`.
#[derive(Default)]
struct Scope {
    id: usize,
    symbols: HashMap<String, Symbol>,
    /// `.reg .b32 %r<10>`: prefix, type, count.
    ranges: Vec<(String, Ty, u32)>,
    /// The ranges by prefix, and the single registers.
    prefixes: HashMap<String, u32>,
    singles: HashSet<String>,
}

impl Scope {
    /// Declares a range of registers, or with a count of 0 a single one; false where one of its names is taken.
    fn declare_registers(&mut self, name: &str, ty: Ty, count: u32) -> bool {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let in_range = |at: usize| {
            let count = self.prefixes.get(&name[..at]).copied().unwrap_or(0);
            name[at..].parse::<u32>().is_ok_and(|number| number < count)
        };
        // A number that is written with more digits is no place in a range.
        if count == 0 && (name.len() - digits.min(10)..name.len()).any(in_range) {
            return false;
        }
        self.ranges.push((name.to_owned(), ty, count));
        if count == 0 {
            self.singles.insert(name.to_owned())
        } else {
            self.prefixes.insert(name.to_owned(), count).is_none()
        }
    }
}

/// Decodes every kernel of a module. `globals` gives the addresses of its variables in device memory.
pub(crate) fn kernels(tree: &Tree, globals: &HashMap<String, u64>) -> Result<Vec<Kernel>> {
    let functions: HashMap<&str, &Function> =
        tree.functions.iter().filter(|f| f.body.is_some()).map(|f| (f.name.as_str(), f)).collect();
    tree.functions
        .iter()
        .filter(|f| f.is_entry && f.body.is_some())
        .map(|f| Decoder::kernel(tree, &functions, globals, f))
        .collect()
}

/// A jump whose label is not known yet, by its place in the code.
struct Decoder<'a> {
    functions: &'a HashMap<&'a str, &'a Function>,
    /// The module's target, 80 for `sm_80`.
    target: u32,
    kernel: Kernel,
    scopes: Vec<Scope>,
    next_scope: usize,
    /// Position of labels by scope and name.
    labels: HashMap<(usize, String), u32>,
    /// Label lists of `.branchtargets`.
    tables: HashMap<String, Vec<String>>,
    jumps: Vec<(usize, usize, Vec<usize>, String, Position)>,
    literals32: HashMap<u32, u32>,
    literals64: HashMap<u64, u32>,
    /// Names of the functions being written out.
    chain: Vec<String>,
    /// Calls written out so far.
    calls: usize,
    /// Where `ret` goes in a device function: its jumps are patched to the end.
    returns: Vec<Vec<usize>>,
    last_label: Option<String>,
    /// The predicate that stands for the carry, once something uses it.
    carry_flag: Option<u32>,
    /// Whether the instruction takes registers that are wider than its type.
    takes_wider: bool,
}

impl<'a> Decoder<'a> {
    fn kernel(
        tree: &Tree,
        functions: &'a HashMap<&'a str, &'a Function>,
        globals: &HashMap<String, u64>,
        function: &'a Function,
    ) -> Result<Kernel> {
        let kernel = Kernel {
            name: function.name.clone(),
            code: vec![],
            regs32: 0,
            regs64: 0,
            preds: 0,
            literals32: vec![],
            literals64: vec![],
            specials: vec![],
            params: vec![],
            param_bytes: 0,
            shared_bytes: 0,
            local_bytes: 0,
            max_threads: function.max_threads,
            required_block: function.required_block,
        };
        let mut decoder = Decoder {
            functions,
            target: tree.chip(),
            kernel,
            scopes: vec![],
            next_scope: 0,
            labels: HashMap::new(),
            tables: HashMap::new(),
            jumps: vec![],
            literals32: HashMap::new(),
            literals64: HashMap::new(),
            chain: vec![],
            calls: 0,
            returns: vec![],
            last_label: None,
            carry_flag: None,
            takes_wider: false,
        };
        decoder.open();
        let mut dynamic = Vec::new();
        for variable in &tree.variables {
            let symbol = if variable.space == Space::Shared {
                if variable.bytes == 0 {
                    dynamic.push(variable);
                    continue;
                }
                Symbol::Memory(Space::Shared, decoder.place_shared(variable)?)
            } else {
                let address = globals.get(&variable.name).copied().unwrap_or(0);
                Symbol::Memory(variable.space, address)
            };
            decoder.scopes[0].symbols.insert(variable.name.clone(), symbol);
        }
        let mut offset = 0u64;
        for param in &function.params {
            offset = offset.next_multiple_of(u64::from(param.align));
            if offset + param.bytes > 32764 {
                return Err(PtxError::new(param.at, "parameters of more than 32764 bytes"));
            }
            decoder.kernel.params.push(Param {
                name: param.name.clone(),
                offset: offset as u32,
                bytes: param.bytes as u32,
            });
            decoder.scopes[0].symbols.insert(param.name.clone(), Symbol::Memory(Space::Param, offset));
            offset += param.bytes;
        }
        decoder.kernel.param_bytes = offset as u32;
        let body = function.body.as_deref().unwrap_or_default();
        // Static shared variables precede dynamic ones, wherever they are declared.
        let in_body = body.iter().filter_map(|statement| match statement {
            Statement::Variable(v) if v.space == Space::Shared => Some(v),
            _ => None,
        });
        for variable in in_body.filter(|v| v.bytes > 0) {
            let at = decoder.place_shared(variable)?;
            decoder.scopes[0].symbols.insert(variable.name.clone(), Symbol::Memory(Space::Shared, at));
        }
        for variable in dynamic {
            let at = decoder.kernel.shared_bytes.next_multiple_of(u64::from(variable.align.max(16)));
            decoder.kernel.shared_bytes = at;
            decoder.scopes[0].symbols.insert(variable.name.clone(), Symbol::Memory(Space::Shared, at));
        }
        decoder.body(body)?;
        let at = body.iter().rev().find_map(|s| if let Statement::Instruction(i) = s { Some(i.at) } else { None });
        decoder.push(Op::Exit, None, Class::Control, at.unwrap_or(function.at))?;
        decoder.resolve()?;
        let mut kernel = decoder.kernel;
        kernel.literals32 = decoder.literals32.into_iter().map(|(value, reg)| (reg, value)).collect();
        kernel.literals64 = decoder.literals64.into_iter().map(|(value, reg)| (reg, value)).collect();
        order::order(&mut kernel.code);
        Ok(kernel)
    }

    fn open(&mut self) {
        self.scopes.push(Scope { id: self.next_scope, ..Scope::default() });
        self.next_scope += 1;
    }

    fn place_shared(&mut self, variable: &Variable) -> Result<u64> {
        let at = self.kernel.shared_bytes.next_multiple_of(u64::from(variable.align));
        self.kernel.shared_bytes = at + variable.bytes;
        if self.kernel.shared_bytes > 1 << 20 {
            let message = format!("`{}` brings the shared memory past what any device has", variable.name);
            return Err(PtxError::new(variable.at, message));
        }
        Ok(at)
    }

    fn place_local(&mut self, variable: &Variable) -> Result<u64> {
        let at = self.kernel.local_bytes.next_multiple_of(u64::from(variable.align.max(4)));
        self.kernel.local_bytes = at + variable.bytes;
        if self.kernel.local_bytes > MOST_LOCAL {
            let message = format!("`{}` brings the local memory of a thread past {MOST_LOCAL} bytes", variable.name);
            return Err(PtxError::new(variable.at, message));
        }
        Ok(at)
    }

    fn push(&mut self, op: Op, guard: Option<(u32, bool)>, class: Class, at: Position) -> Result<usize> {
        if self.kernel.code.len() >= MOST_CODE {
            return Err(PtxError::new(at, format!("more than {MOST_CODE} instructions in one kernel")));
        }
        self.kernel.code.push(Inst { op, guard, class, line: at.line });
        Ok(self.kernel.code.len() - 1)
    }

    /// The statements of a function, in scopes of their own.
    fn body(&mut self, body: &'a [Statement]) -> Result<()> {
        let outer = self.scopes.len();
        self.open();
        for statement in body {
            match statement {
                Statement::Open(at) => {
                    if self.scopes.len() > 256 {
                        return Err(PtxError::new(*at, "braces are nested more than 256 deep"));
                    }
                    self.open();
                }
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Label(name, at) => {
                    let scope = self.scopes.last().map_or(0, |scope| scope.id);
                    let here = self.kernel.code.len() as u32;
                    if self.labels.insert((scope, name.clone()), here).is_some() {
                        return Err(PtxError::new(*at, format!("the label `{name}` is there twice")));
                    }
                    self.last_label = Some(name.clone());
                }
                Statement::Targets(labels) => {
                    if let Some(name) = self.last_label.take() {
                        self.tables.insert(name, labels.clone());
                    }
                }
                Statement::Registers { ty, name, count, at } => {
                    let scope = self.scopes.last_mut().expect("a scope is open");
                    if !scope.declare_registers(name, *ty, count.unwrap_or(0)) {
                        return Err(PtxError::new(*at, format!("the register `{name}` is declared twice")));
                    }
                }
                Statement::Variable(variable) => {
                    let symbol = match variable.space {
                        Space::Shared
                            if self.chain.is_empty() && variable.bytes > 0 && self.scopes.len() <= outer + 1 =>
                        {
                            continue;
                        }
                        Space::Shared => Symbol::Memory(Space::Shared, self.place_shared(variable)?),
                        Space::Global | Space::Const => {
                            return Err(PtxError::new(variable.at, "global variables in a function are not supported"));
                        }
                        _ => Symbol::Memory(Space::Local, self.place_local(variable)?),
                    };
                    self.declare(variable.name.clone(), symbol);
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        self.scopes.truncate(outer);
        Ok(())
    }

    fn declare(&mut self, name: String, symbol: Symbol) {
        self.scopes.last_mut().expect("a scope is open").symbols.insert(name, symbol);
    }

    fn fresh(&mut self, ty: Ty, at: Position) -> Result<Reg> {
        let (counter, make): (&mut u32, fn(u32, u32) -> Reg) = match ty {
            Ty::Pred => (&mut self.kernel.preds, |i, _| Reg::Pred(i)),
            Ty::B128 => return Err(PtxError::new(at, "128-bit registers are not supported")),
            _ if ty.bytes() == 8 => (&mut self.kernel.regs64, |i, _| Reg::R64(i)),
            _ => (&mut self.kernel.regs32, Reg::R32),
        };
        if *counter >= MOST_USED {
            return Err(PtxError::new(at, format!("more than {MOST_USED} registers in use")));
        }
        *counter += 1;
        Ok(make(*counter - 1, ty.bytes()))
    }

    /// The symbol of a name; registers of ranges come to life here.
    fn symbol(&mut self, name: &str, at: Position) -> Result<Option<Symbol>> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        for index in (0..self.scopes.len()).rev() {
            if let Some(symbol) = self.scopes[index].symbols.get(name) {
                return Ok(Some(symbol.clone()));
            }
            let in_range = |(range, _, count): &&(String, Ty, u32)| {
                range == name && *count == 0
                    || range == prefix && number.parse::<u32>().is_ok_and(|number| number < *count)
                    || range.len() < name.len()
                        && name.starts_with(range.as_str())
                        && name[range.len()..].parse::<u32>().is_ok_and(|number| number < *count)
            };
            if let Some(&(_, ty, _)) = self.scopes[index].ranges.iter().find(in_range) {
                let symbol = Symbol::Register(ty, self.fresh(ty, at)?);
                self.scopes[index].symbols.insert(name.to_owned(), symbol.clone());
                return Ok(Some(symbol));
            }
        }
        Ok(None)
    }

    fn register(&mut self, name: &str, at: Position) -> Result<(Ty, Reg)> {
        match self.symbol(name, at)? {
            Some(Symbol::Register(ty, reg)) => Ok((ty, reg)),
            Some(Symbol::Memory(..)) => Err(PtxError::new(at, format!("`{name}` is a variable, not a register"))),
            None => Err(PtxError::new(at, format!("`{name}` is not declared"))),
        }
    }

    fn literal32(&mut self, value: u32, at: Position) -> Result<u32> {
        if let Some(&reg) = self.literals32.get(&value) {
            return Ok(reg);
        }
        let Reg::R32(reg, _) = self.fresh(Ty::B32, at)? else { unreachable!("a 32-bit register") };
        self.literals32.insert(value, reg);
        Ok(reg)
    }

    fn literal64(&mut self, value: u64, at: Position) -> Result<u32> {
        if let Some(&reg) = self.literals64.get(&value) {
            return Ok(reg);
        }
        let Reg::R64(reg) = self.fresh(Ty::B64, at)? else { unreachable!("a 64-bit register") };
        self.literals64.insert(value, reg);
        Ok(reg)
    }

    fn special(&mut self, special: Special, at: Position) -> Result<u32> {
        if let Some((reg, _)) = self.kernel.specials.iter().find(|(_, known)| *known == special) {
            return Ok(*reg);
        }
        let Reg::R32(reg, _) = self.fresh(Ty::B32, at)? else { unreachable!("a 32-bit register") };
        self.kernel.specials.push((reg, special));
        Ok(reg)
    }

    /// The bits of a literal for a type.
    fn bits(operand: &Operand, ty: Ty) -> Option<u64> {
        Some(match *operand {
            Operand::Int(value) if ty == Ty::F32 => u64::from((value as i64 as f32).to_bits()),
            Operand::Int(value) if ty == Ty::F64 => (value as i64 as f64).to_bits(),
            Operand::Int(value) => value,
            Operand::Single(bits) if ty == Ty::F64 => f64::from(f32::from_bits(bits)).to_bits(),
            Operand::Single(bits) => u64::from(bits),
            Operand::Double(bits) if ty.bytes() == 4 => u64::from((f64::from_bits(bits) as f32).to_bits()),
            Operand::Double(bits) => bits,
            _ => return None,
        })
    }

    /// Checks that a register has the width of a type.
    fn check_width(&mut self, operand: &Operand, ty: Ty, at: Position) -> Result<()> {
        let Operand::Name { name, .. } = operand else { return Ok(()) };
        let Some(Symbol::Register(declared, _)) = self.symbol(name, at)? else { return Ok(()) };
        let (found, due) = (declared.bytes(), ty.bytes());
        // A register of 8 bits is one of 16 for most purposes.
        let fits = found == due || due == 1 || declared == Ty::Pred || self.takes_wider && found > due;
        if fits {
            return Ok(());
        }
        Err(PtxError::new(at, format!("`{name}` has {} bits, and the instruction takes {} there", 8 * found, 8 * due)))
    }

    /// An operand to read as 32 bits or fewer.
    fn source32(&mut self, operand: &Operand, ty: Ty, at: Position) -> Result<u32> {
        self.check_width(operand, ty, at)?;
        if let Some(bits) = Self::bits(operand, ty) {
            let mask = if ty.bytes() < 4 { (1 << (8 * ty.bytes())) - 1 } else { u32::MAX };
            return self.literal32(bits as u32 & mask, at);
        }
        match self.source(operand, at)? {
            Reg::R32(reg, _) => Ok(reg),
            Reg::R64(reg) => {
                let Reg::R32(d, _) = self.fresh(Ty::B32, at)? else { unreachable!("a 32-bit register") };
                self.alu(compare::convert(Ty::U32, Ty::U64, 0), [d, 0, reg, 0, 0], 0, None, Class::Integer, at)?;
                Ok(d)
            }
            _ => Err(PtxError::new(at, "expected a register or a number of 32 bits")),
        }
    }

    /// An operand to read as 64 bits.
    fn source64(&mut self, operand: &Operand, ty: Ty, at: Position) -> Result<u32> {
        self.check_width(operand, ty, at)?;
        if let Some(bits) = Self::bits(operand, ty) {
            return self.literal64(bits, at);
        }
        match self.source(operand, at)? {
            Reg::R64(reg) => Ok(reg),
            Reg::R32(reg, _) => {
                let Reg::R64(d) = self.fresh(Ty::B64, at)? else { unreachable!("a 64-bit register") };
                self.alu(compare::convert(Ty::U64, Ty::U32, 0), [d, 0, reg, 0, 0], 0, None, Class::Integer, at)?;
                Ok(d)
            }
            _ => Err(PtxError::new(at, "expected a register or a number of 64 bits")),
        }
    }

    /// An operand of a type, in the bank of its width.
    fn operand(&mut self, operand: &Operand, ty: Ty, at: Position) -> Result<u32> {
        if ty.bytes() == 8 { self.source64(operand, ty, at) } else { self.source32(operand, ty, at) }
    }

    /// A register, special register, or address of a variable.
    fn source(&mut self, operand: &Operand, at: Position) -> Result<Reg> {
        match operand {
            Operand::Name { name, negated: false } => {
                if name == "_" {
                    return Ok(Reg::None);
                }
                match self.symbol(name, at)? {
                    Some(Symbol::Register(_, reg)) => Ok(reg),
                    Some(Symbol::Memory(space, address)) => {
                        Ok(Reg::R64(self.literal64(Self::address_value(space, address), at)?))
                    }
                    None => match special::parse(name) {
                        Some(special) => Ok(Reg::R32(self.special(special, at)?, 4)),
                        None => Err(PtxError::new(at, format!("`{name}` is not declared"))),
                    },
                }
            }
            Operand::Address { base: Some(name), offset } => match self.symbol(name, at)? {
                Some(Symbol::Memory(space, address)) => {
                    let value = Self::address_value(space, address).wrapping_add(*offset as u64);
                    Ok(Reg::R64(self.literal64(value, at)?))
                }
                _ => Err(PtxError::new(at, format!("`{name}` is not a variable"))),
            },
            Operand::Int(value) => Ok(Reg::R64(self.literal64(*value, at)?)),
            _ => Err(PtxError::new(at, "expected a register, a variable or a number")),
        }
    }

    /// What a `mov` of a variable gives: its address in its own space. Parameters have their window.
    fn address_value(space: Space, address: u64) -> u64 {
        if space == Space::Param { PARAM_BASE + address } else { address }
    }

    fn predicate(&mut self, operand: &Operand, at: Position) -> Result<(u32, bool)> {
        let Operand::Name { name, negated } = operand else {
            return Err(PtxError::new(at, "expected a predicate"));
        };
        match self.register(name, at)? {
            (_, Reg::Pred(p)) => Ok((p, *negated)),
            _ => Err(PtxError::new(at, format!("`{name}` is not a predicate"))),
        }
    }

    /// Emits an arithmetic instruction: `[d, d2, a, b, c]`.
    fn alu(
        &mut self,
        run: crate::exec::regs::Exec,
        [d, d2, a, b, c]: [u32; 5],
        flags: u64,
        guard: Option<(u32, bool)>,
        class: Class,
        at: Position,
    ) -> Result<()> {
        let args = crate::exec::regs::Args { d, d2, a, b, c, flags };
        self.push(Op::Alu { run, args }, guard, class, at).map(drop)
    }

    /// The space, base and offset of an address operand.
    fn address(&mut self, operand: &Operand, space: Space, at: Position) -> Result<(Space, Base, i64)> {
        let Operand::Address { base, offset } = operand else {
            return Err(PtxError::new(at, "expected an address in brackets"));
        };
        let Some(name) = base else { return Ok((space, Base::Absolute, *offset)) };
        match self.symbol(name, at)? {
            Some(Symbol::Register(_, Reg::R64(reg))) => Ok((space, Base::R64(reg), *offset)),
            Some(Symbol::Register(_, Reg::R32(reg, _))) => Ok((space, Base::R32(reg), *offset)),
            Some(Symbol::Memory(own, address)) => Ok((own, Base::Absolute, (address as i64).wrapping_add(*offset))),
            _ => Err(PtxError::new(at, format!("`{name}` is neither a register nor a variable"))),
        }
    }

    fn instruction(&mut self, i: &'a Instruction) -> Result<()> {
        let guard = match &i.guard {
            None => None,
            Some((name, negated)) => {
                let operand = Operand::Name { name: name.clone(), negated: *negated };
                Some(self.predicate(&operand, i.at)?)
            }
        };
        let mut parts = i.opcode.split('.');
        let name = parts.next().unwrap_or_default();
        let mut mods = Mods { list: parts.collect(), at: i.at, opcode: &i.opcode };
        Self::hopper(name, &mods, i)?;
        mods.check_target(name, self.target)?;
        self.takes_wider = matches!(name, "cvt" | "ld" | "ldu" | "st");
        if self.control(name, &mut mods, i, guard)? || self.system(name, &mut mods, i, guard)? {
            return mods.finish();
        }
        if self.carry(name, &mut mods, i, guard)? || self.arithmetic(name, &mut mods, i, guard)? {
            return mods.finish();
        }
        Err(PtxError::new(i.at, format!("the instruction `{}` is not known", i.opcode)))
    }

    fn resolve(&mut self) -> Result<()> {
        for (from, slot, scopes, label, at) in std::mem::take(&mut self.jumps) {
            let found = scopes.iter().rev().find_map(|&scope| self.labels.get(&(scope, label.clone())));
            let found = *found.ok_or_else(|| PtxError::new(at, format!("the label `{label}` is not there")))?;
            match &mut self.kernel.code[from].op {
                Op::Bra { target } => *target = found,
                Op::Brx { targets, .. } => targets[slot] = found,
                _ => {}
            }
        }
        Ok(())
    }
}
