//! The lane builder: typed arithmetic, memory, variables and control flow over inkwell.
//!
//! inkwell returns an error only when its builder is used before it has a position or with values of unlike kinds;
//! both would be mistakes in a template, so [`ok`] turns them into one panic with a clear message.

use std::cell::Cell;

use inkwell::attributes::AttributeLoc;
use inkwell::basic_block::BasicBlock;
use inkwell::builder::{Builder as LlvmBuilder, BuilderError};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::types::{BasicMetadataTypeEnum, BasicTypeEnum};
use inkwell::values::{BasicValueEnum, FunctionValue, PointerValue};
use inkwell::{AddressSpace, IntPredicate};

use crate::spec::KernelSpec;
use crate::targets::{Machine, Target};

/// Lanes of a lane value.
pub const LANES: usize = 16;
/// LLVM's calling convention number of PTX kernels.
const PTX_KERNEL: u32 = 71;

/// Element kinds of uniform and lane values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 8-bit integer.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Kind {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::I8 => 1,
            Kind::I16 | Kind::F16 => 2,
            Kind::I32 | Kind::F32 => 4,
            Kind::I64 | Kind::F64 => 8,
        }
    }
}

/// A value: uniform (a scalar) or one element per lane.
#[derive(Clone, Copy, Debug)]
pub struct Val<'c>(pub BasicValueEnum<'c>);

/// Builds one kernel function at a time inside a module.
pub struct Builder<'c> {
    /// The context that owns all types and values.
    pub context: &'c Context,
    /// The module that kernels are added to.
    pub module: Module<'c>,
    /// The machine.
    pub target: &'static Target,
    pub(super) llvm: LlvmBuilder<'c>,
    pub(super) function: Cell<Option<FunctionValue<'c>>>,
    operands: Vec<PointerValue<'c>>,
    params: Vec<Val<'c>>,
    units: Option<(Val<'c>, Val<'c>, Val<'c>)>,
    pub(super) lane: Option<Val<'c>>,
    pub(super) teams: usize,
    pub(super) whole_warps: bool,
    block_of_rows: Option<Val<'c>>,
}

/// Unwraps inkwell's result; an error is a mistake in a template.
pub(super) fn ok<T>(result: Result<T, BuilderError>) -> T {
    result.expect("a template used the LLVM builder wrongly")
}

impl<'c> Builder<'c> {
    /// A builder with an empty module.
    pub fn new(context: &'c Context, target: &'static Target) -> Builder<'c> {
        Builder {
            context,
            module: context.create_module("lathe"),
            target,
            llvm: context.create_builder(),
            function: Cell::new(None),
            operands: Vec::new(),
            params: Vec::new(),
            units: None,
            lane: None,
            teams: 1,
            whole_warps: false,
            block_of_rows: None,
        }
    }

    /// Whether lane values are vectors (x86) rather than threads (NVPTX).
    pub fn is_vector(&self) -> bool {
        self.target.machine == Machine::X86
    }

    /// Opens the function of a kernel: loads operands and parameters.
    pub fn begin(&mut self, symbol: &str, spec: &KernelSpec) {
        let operands = spec.operands();
        let params = spec.params();
        self.function.set(None);
        let i64_type = self.context.i64_type();
        if self.is_vector() {
            let pointer = self.context.ptr_type(AddressSpace::default());
            let args: [BasicMetadataTypeEnum<'c>; 4] =
                [pointer.into(), pointer.into(), i64_type.into(), i64_type.into()];
            let function = self.open(symbol, &args);
            for (key, value) in [
                ("target-cpu", self.target.cpu),
                ("target-features", self.target.llvm_features),
                ("prefer-vector-width", &self.target.vector_bits.to_string()),
                ("min-legal-vector-width", &self.target.vector_bits.to_string()),
                ("no-builtins", ""),
                ("no-jump-tables", "true"),
                ("denormal-fp-math", "preserve-sign,preserve-sign"),
            ] {
                function.add_attribute(AttributeLoc::Function, self.context.create_string_attribute(key, value));
            }
            let buffers = function.get_nth_param(0).expect("declared").into_pointer_value();
            let values = function.get_nth_param(1).expect("declared").into_pointer_value();
            self.operands = (0..operands.len())
                .map(|i| {
                    let slot = self.offset(buffers, self.int(8 * i as i64));
                    let loaded = ok(self.llvm.build_load(pointer, slot, operands[i].name)).into_pointer_value();
                    loaded.set_name(operands[i].name);
                    loaded
                })
                .collect();
            self.params =
                (0..params.len()).map(|i| self.load(Kind::I64, self.offset(values, self.int(8 * i as i64)))).collect();
            let begin = Val(function.get_nth_param(2).expect("declared"));
            let end = Val(function.get_nth_param(3).expect("declared"));
            self.units = Some((begin, end, self.int(1)));
            self.lane = None;
        } else {
            let pointer = self.context.ptr_type(AddressSpace::from(1));
            let mut args: Vec<BasicMetadataTypeEnum<'c>> = vec![pointer.into(); operands.len()];
            args.extend(vec![BasicMetadataTypeEnum::from(i64_type); params.len() + 1]);
            let function = self.open(symbol, &args);
            function.set_call_conventions(PTX_KERNEL);
            for (key, value) in [("target-cpu", self.target.cpu), ("target-features", self.target.llvm_features)] {
                function.add_attribute(AttributeLoc::Function, self.context.create_string_attribute(key, value));
            }
            self.let_later_kernels_begin();
            if !spec.loads_weights_early() {
                self.await_earlier_kernels();
            }
            let arg = |i: usize| function.get_nth_param(i as u32).expect("declared");
            self.operands = (0..operands.len()).map(|i| arg(i).into_pointer_value()).collect();
            for (pointer, operand) in self.operands.iter().zip(&operands) {
                pointer.set_name(operand.name);
            }
            self.params = (0..params.len()).map(|i| Val(arg(operands.len() + i))).collect();
            let end = Val(arg(operands.len() + params.len()));
            let (tid, ncta) = (self.special("tid.x"), self.special("nctaid.x"));
            let [cta, rows] = self.place_in_grid(spec);
            self.block_of_rows = Some(rows);
            let lanes = self.int(LANES as i64);
            self.lane = Some(self.urem(tid, lanes));
            let grid = spec.grid();
            self.whole_warps = spec.runs_whole_warps();
            self.teams = if grid.is_shared() { grid.threads as usize / LANES } else { 1 };
            self.units = if grid.is_shared() {
                let threads = grid.threads.to_string();
                let attribute = self.context.create_string_attribute("nvvm.reqntid", &threads);
                function.add_attribute(AttributeLoc::Function, attribute);
                if let Some(blocks) = spec.blocks_at_once() {
                    let attribute = self.context.create_string_attribute("nvvm.minctasm", &blocks.to_string());
                    function.add_attribute(AttributeLoc::Function, attribute);
                }
                let units = |blocks: Val<'c>| match grid.units {
                    1 => blocks,
                    units => self.mul(blocks, self.int(i64::from(units))),
                };
                Some((units(cta), end, units(ncta)))
            } else {
                let ntid = self.special("ntid.x");
                let first = self.udiv(self.add(self.mul(cta, ntid), tid), lanes);
                Some((first, end, self.udiv(self.mul(ncta, ntid), lanes)))
            };
        }
    }

    fn open(&self, symbol: &str, args: &[BasicMetadataTypeEnum<'c>]) -> FunctionValue<'c> {
        let function = self.module.add_function(symbol, self.context.void_type().fn_type(args, false), None);
        let nounwind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
        function.add_attribute(AttributeLoc::Function, self.context.create_enum_attribute(nounwind, 0));
        self.llvm.position_at_end(self.context.append_basic_block(function, "entry"));
        self.function.set(Some(function));
        function
    }

    /// Closes the function.
    pub fn end(&mut self) {
        ok(self.llvm.build_return(None));
    }

    /// The base of operand `i`.
    pub fn operand(&self, i: usize) -> PointerValue<'c> {
        self.operands[i]
    }

    /// The base of the last operand: scratch, where a kernel has any.
    pub fn last_operand(&self) -> PointerValue<'c> {
        *self.operands.last().expect("every kernel has operands")
    }

    /// Launch parameter `i`.
    pub fn param(&self, i: usize) -> Val<'c> {
        self.params[i]
    }

    /// Runs `body` for every unit of this worker or thread group; where a block of threads shares several, for the first
    /// of them.
    pub fn for_units(&self, body: impl FnOnce(Val<'c>)) {
        let (begin, end, step) = self.units.expect("a kernel is open");
        self.for_range(begin, end, step, body);
    }

    /// The first of this worker's units, and the end of them.
    pub fn unit_range(&self) -> (Val<'c>, Val<'c>) {
        let (begin, end, _) = self.units.expect("a kernel is open");
        (begin, end)
    }

    /// Which block of units and which block of rows of the grid this is. Where several blocks of rows read the same weights,
    /// those follow each other, so that weights come from memory once.
    fn place_in_grid(&self, spec: &KernelSpec) -> [Val<'c>; 2] {
        let places = ["ctaid.x", "ctaid.y", "nctaid.x", "nctaid.y"];
        if !spec.takes_rows_first() {
            return [self.special(places[0]), self.special(places[1])];
        }
        let [x, y, width, height] = places.map(|name| self.trunc(self.special(name), Kind::I32));
        let (unit, rows) = (self.var(x), self.var(y));
        // Where there is one block of rows, divisions would only delay the first loads.
        self.when(self.icmp(IntPredicate::NE, height, self.int32(1)), || {
            let number = self.add(self.mul(y, width), x);
            self.set(unit, self.udiv(number, height));
            self.set(rows, self.urem(number, height));
        });
        [unit, rows].map(|place| self.zext(self.get(place), Kind::I64))
    }

    /// Which block of rows this block of threads takes; NVPTX only.
    pub fn block_of_rows(&self) -> Val<'c> {
        self.block_of_rows.expect("a kernel is open")
    }

    /// Runs `body` with each first of `count` units of this worker, and where they end: earlier for the last of them.
    pub fn for_units_by(&self, count: usize, body: impl FnOnce(Val<'c>, Val<'c>)) {
        let (begin, end, _) = self.units.expect("a kernel is open");
        let step = self.int(count as i64);
        self.for_range(begin, end, step, |first| {
            body(first, self.overloaded("llvm.smin", &[self.add(first, step), end]));
        });
    }

    // Constants.

    /// A uniform i64.
    pub fn int(&self, value: i64) -> Val<'c> {
        Val(self.context.i64_type().const_int(value as u64, true).into())
    }

    /// A uniform i32.
    pub fn int32(&self, value: i32) -> Val<'c> {
        Val(self.context.i32_type().const_int(value as u64, true).into())
    }

    /// A uniform f32.
    pub fn float(&self, value: f32) -> Val<'c> {
        Val(self.context.f32_type().const_float(f64::from(value)).into())
    }

    /// An f32 in every lane.
    pub fn float_lanes(&self, value: f32) -> Val<'c> {
        self.splat(self.float(value))
    }

    /// An i32 in every lane.
    pub fn int_lanes(&self, value: i32) -> Val<'c> {
        self.splat(self.int32(value))
    }

    /// A constant table of doubles in the code object.
    pub fn table(&self, name: &str, values: &[f64]) -> PointerValue<'c> {
        let f64_type = self.context.f64_type();
        let constants: Vec<_> = values.iter().map(|&value| f64_type.const_float(value)).collect();
        let space = if self.is_vector() { AddressSpace::default() } else { AddressSpace::from(1) };
        let global = self.module.add_global(f64_type.array_type(values.len() as u32), Some(space), name);
        global.set_initializer(&f64_type.const_array(&constants));
        global.set_constant(true);
        global.set_linkage(inkwell::module::Linkage::Private);
        global.set_alignment(64);
        global.as_pointer_value()
    }

    // Types.

    pub(super) fn scalar_type(&self, kind: Kind) -> BasicTypeEnum<'c> {
        match kind {
            Kind::I8 => self.context.i8_type().into(),
            Kind::I16 => self.context.i16_type().into(),
            Kind::I32 => self.context.i32_type().into(),
            Kind::I64 => self.context.i64_type().into(),
            Kind::F16 => self.context.f16_type().into(),
            Kind::F32 => self.context.f32_type().into(),
            Kind::F64 => self.context.f64_type().into(),
        }
    }

    /// The LLVM type of a lane value.
    pub fn lane_type(&self, kind: Kind) -> BasicTypeEnum<'c> {
        let scalar = self.scalar_type(kind);
        if !self.is_vector() {
            return scalar;
        }
        match scalar {
            BasicTypeEnum::IntType(int) => int.vec_type(LANES as u32).into(),
            BasicTypeEnum::FloatType(float) => float.vec_type(LANES as u32).into(),
            _ => unreachable!("kinds are integers and floats"),
        }
    }

    pub(super) fn like(&self, value: Val<'c>, kind: Kind) -> BasicTypeEnum<'c> {
        if value.0.is_vector_value() { self.lane_type(kind) } else { self.scalar_type(kind) }
    }

    // Lanes.

    /// A uniform value in every lane.
    pub fn splat(&self, value: Val<'c>) -> Val<'c> {
        if !self.is_vector() {
            return value;
        }
        let ty = match value.0 {
            BasicValueEnum::IntValue(v) => v.get_type().vec_type(LANES as u32),
            BasicValueEnum::FloatValue(v) => v.get_type().vec_type(LANES as u32),
            _ => panic!("splat needs a scalar"),
        };
        let zero = self.context.i32_type().const_zero();
        let one = ok(self.llvm.build_insert_element(ty.get_poison(), value.0, zero, ""));
        let mask = self.context.i32_type().vec_type(LANES as u32).const_zero();
        Val(ok(self.llvm.build_shuffle_vector(one, ty.get_poison(), mask, "")).into())
    }

    /// The index of each lane as i32: 0, 1, … 15.
    pub fn lane_index(&self) -> Val<'c> {
        if let Some(lane) = self.lane {
            return self.trunc(lane, Kind::I32);
        }
        let i32_type = self.context.i32_type();
        let indices: Vec<_> = (0..LANES as u64).map(|i| i32_type.const_int(i, false)).collect();
        Val(inkwell::types::VectorType::const_vector(&indices).into())
    }

    /// The value of the lane at XOR distance `distance`.
    pub fn butterfly(&self, value: Val<'c>, distance: u64) -> Val<'c> {
        if self.lane.is_some() {
            return self.shuffle("bfly", value, self.int32(distance as i32));
        }
        let i32_type = self.context.i32_type();
        let order: Vec<_> = (0..LANES as u64).map(|i| i32_type.const_int(i ^ distance, false)).collect();
        let vector = value.0.into_vector_value();
        let mask = inkwell::types::VectorType::const_vector(&order);
        Val(ok(self.llvm.build_shuffle_vector(vector, vector.get_type().get_poison(), mask, "")).into())
    }

    /// A warp shuffle among the 16 threads of a unit; NVPTX only. A lane index counts within it. The two halves of a warp may
    /// be at different units, so that only this half takes part; where they are not all do, which takes one instruction
    /// instead of many that find out who they are.
    pub(super) fn shuffle(&self, mode: &str, value: Val<'c>, lane: Val<'c>) -> Val<'c> {
        match value.0 {
            BasicValueEnum::IntValue(int) if int.get_type().get_bit_width() == 64 => {
                // A word after the other.
                let high = self.trunc(self.lshr(value, self.int(32)), Kind::I32);
                let [low, high] = [self.trunc(value, Kind::I32), high]
                    .map(|word| self.zext(self.shuffle(mode, word, lane), Kind::I64));
                return self.or(low, self.shl(high, self.int(32)));
            }
            BasicValueEnum::FloatValue(float) if float.get_type() == self.context.f64_type() => {
                let bits = self.shuffle(mode, self.bitcast(value, Kind::I64), lane);
                return self.bitcast(bits, Kind::F64);
            }
            _ => {}
        }
        let mask = if self.whole_warps {
            self.int32(-1)
        } else {
            let tid = self.intrinsic("llvm.nvvm.read.ptx.sreg.tid.x", &[], &[]);
            self.shl(self.int32(0xffff), self.and(tid, self.int32(16)))
        };
        let name = if value.0.is_float_value() { "f32" } else { "i32" };
        // Segments of 16 threads (PTX ISA, `shfl.sync`: the segment mask in bits 8 to 12, the clamp below).
        let args = [mask, value, lane, self.int32(0x101f)];
        self.intrinsic(&format!("llvm.nvvm.shfl.sync.{mode}.{name}"), &[], &args)
    }

    /// The value of one lane, for all of them; NVPTX only.
    pub fn of_lane(&self, value: Val<'c>, lane: usize) -> Val<'c> {
        self.shuffle("idx", value, self.int32(lane as i32))
    }

    /// Lanes `first .. first + 16` of two vectors; x86 only.
    pub(super) fn pick(&self, low: Val<'c>, high: Val<'c>, first: usize) -> Val<'c> {
        let i32_type = self.context.i32_type();
        let order: Vec<_> = (0..LANES).map(|i| i32_type.const_int((i + first) as u64, false)).collect();
        let mask = inkwell::types::VectorType::const_vector(&order);
        let (low, high) = (low.0.into_vector_value(), high.0.into_vector_value());
        Val(ok(self.llvm.build_shuffle_vector(low, high, mask, "")).into())
    }

    /// A lane value whose lanes all agree, as a uniform value.
    pub fn first(&self, value: Val<'c>) -> Val<'c> {
        match value.0 {
            BasicValueEnum::VectorValue(v) => self.extract(Val(v.into()), 0),
            _ => value,
        }
    }

    /// One lane of a vector; x86 only.
    pub fn extract(&self, value: Val<'c>, lane: u64) -> Val<'c> {
        let index = self.context.i32_type().const_int(lane, false);
        Val(ok(self.llvm.build_extract_element(value.0.into_vector_value(), index, "")))
    }

    // Control flow.

    pub(super) fn block(&self) -> BasicBlock<'c> {
        self.llvm.get_insert_block().expect("the builder has a position")
    }

    pub(super) fn append(&self, name: &str) -> BasicBlock<'c> {
        self.context.append_basic_block(self.function.get().expect("a kernel is open"), name)
    }

    /// `for i in (begin..end).step_by(step)` over uniform i64.
    pub fn for_range(&self, begin: Val<'c>, end: Val<'c>, step: Val<'c>, body: impl FnOnce(Val<'c>)) {
        let from = self.block();
        let (head, inside, done) = (self.append("head"), self.append("body"), self.append("done"));
        ok(self.llvm.build_unconditional_branch(head));
        self.llvm.position_at_end(head);
        let index = ok(self.llvm.build_phi(self.context.i64_type(), "i"));
        let i = Val(index.as_basic_value());
        let more = self.icmp(IntPredicate::SLT, i, end);
        ok(self.llvm.build_conditional_branch(more.0.into_int_value(), inside, done));
        self.llvm.position_at_end(inside);
        body(i);
        let next = self.add(i, step);
        index.add_incoming(&[(&begin.0, from), (&next.0, self.block())]);
        ok(self.llvm.build_unconditional_branch(head));
        self.llvm.position_at_end(done);
    }

    /// Runs `body` for each index below `count`, without a loop when there is one.
    pub fn repeat(&self, count: usize, body: impl FnOnce(Val<'c>)) {
        if count == 1 {
            return body(self.int(0));
        }
        self.for_range(self.int(0), self.int(count as i64), self.int(1), body);
    }

    /// Runs `body` where the uniform condition holds.
    pub fn when(&self, condition: Val<'c>, body: impl FnOnce()) {
        self.either(condition, body, || {});
    }

    /// Runs one of two bodies by a uniform condition.
    pub fn either(&self, condition: Val<'c>, then: impl FnOnce(), otherwise: impl FnOnce()) {
        let (yes, no, done) = (self.append("then"), self.append("else"), self.append("done"));
        ok(self.llvm.build_conditional_branch(condition.0.into_int_value(), yes, no));
        self.llvm.position_at_end(yes);
        then();
        ok(self.llvm.build_unconditional_branch(done));
        self.llvm.position_at_end(no);
        otherwise();
        ok(self.llvm.build_unconditional_branch(done));
        self.llvm.position_at_end(done);
    }
}
