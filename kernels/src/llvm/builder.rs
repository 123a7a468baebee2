//! The lane builder: typed arithmetic, memory, variables and control flow over inkwell.
//!
//! inkwell returns an error only when its builder is used before it has a position or with values of unlike kinds;
//! both would be mistakes in a template, so [`ok`] turns them into one panic with a clear message.

use std::cell::Cell;

use inkwell::attributes::AttributeLoc;
use inkwell::basic_block::BasicBlock;
use inkwell::builder::{Builder as LlvmBuilder, BuilderError};
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Module;
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum};
use inkwell::values::{BasicMetadataValueEnum, BasicValue, BasicValueEnum, FunctionValue, PointerValue};
use inkwell::{AddressSpace, FloatPredicate, IntPredicate};

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

/// A mutable variable that LLVM promotes to a register.
#[derive(Clone, Copy, Debug)]
pub struct Var<'c> {
    slot: PointerValue<'c>,
    ty: BasicTypeEnum<'c>,
}

/// Builds one kernel function at a time inside a module.
pub struct Builder<'c> {
    /// The context that owns all types and values.
    pub context: &'c Context,
    /// The module that kernels are added to.
    pub module: Module<'c>,
    /// The machine.
    pub target: &'static Target,
    pub(super) llvm: LlvmBuilder<'c>,
    function: Cell<Option<FunctionValue<'c>>>,
    operands: Vec<PointerValue<'c>>,
    params: Vec<Val<'c>>,
    units: Option<(Val<'c>, Val<'c>, Val<'c>)>,
    lane: Option<Val<'c>>,
}

/// Unwraps inkwell's result; an error is a mistake in a template.
pub(super) fn ok<T>(result: Result<T, BuilderError>) -> T {
    result.expect("a template used the LLVM builder wrongly")
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident: $variant:ident $method:ident;)+) => {
        $($(#[$doc])*
        pub fn $name(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
            match (a.0, b.0) {
                (BasicValueEnum::$variant(a), BasicValueEnum::$variant(b)) => Val(ok(self.llvm.$method(a, b, "")).into()),
                (BasicValueEnum::VectorValue(a), BasicValueEnum::VectorValue(b)) => {
                    Val(ok(self.llvm.$method(a, b, "")).into())
                }
                _ => panic!("operands of unlike kinds in {}", stringify!($name)),
            }
        })+
    };
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
                ("prefer-vector-width", "512"),
                ("min-legal-vector-width", "512"),
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
            let arg = |i: usize| function.get_nth_param(i as u32).expect("declared");
            self.operands = (0..operands.len()).map(|i| arg(i).into_pointer_value()).collect();
            for (pointer, operand) in self.operands.iter().zip(&operands) {
                pointer.set_name(operand.name);
            }
            self.params = (0..params.len()).map(|i| Val(arg(operands.len() + i))).collect();
            let end = Val(arg(operands.len() + params.len()));
            let special = |name: &str| {
                let register = self.intrinsic(&format!("llvm.nvvm.read.ptx.sreg.{name}"), &[], &[]);
                self.zext(register, Kind::I64)
            };
            let (tid, ntid) = (special("tid.x"), special("ntid.x"));
            let (cta, ncta) = (special("ctaid.x"), special("nctaid.x"));
            let thread = self.add(self.mul(cta, ntid), tid);
            let lanes = self.int(LANES as i64);
            let first = self.udiv(thread, lanes);
            let stride = self.udiv(self.mul(ncta, ntid), lanes);
            self.lane = Some(self.urem(tid, lanes));
            self.units = Some((first, end, stride));
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

    /// Launch parameter `i`.
    pub fn param(&self, i: usize) -> Val<'c> {
        self.params[i]
    }

    /// Runs `body` for every unit of this worker or thread group.
    pub fn for_units(&self, body: impl FnOnce(Val<'c>)) {
        let (begin, end, step) = self.units.expect("a kernel is open");
        self.for_range(begin, end, step, body);
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

    fn scalar_type(&self, kind: Kind) -> BasicTypeEnum<'c> {
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

    fn like(&self, value: Val<'c>, kind: Kind) -> BasicTypeEnum<'c> {
        if value.0.is_vector_value() { self.lane_type(kind) } else { self.scalar_type(kind) }
    }

    // Arithmetic.

    binary! {
        /// Integer sum.
        add: IntValue build_int_add;
        /// Integer difference.
        sub: IntValue build_int_sub;
        /// Integer product.
        mul: IntValue build_int_mul;
        /// Unsigned quotient.
        udiv: IntValue build_int_unsigned_div;
        /// Unsigned remainder.
        urem: IntValue build_int_unsigned_rem;
        /// Bitwise and.
        and: IntValue build_and;
        /// Bitwise or.
        or: IntValue build_or;
        /// Shift left.
        shl: IntValue build_left_shift;
        /// f32 or f64 sum.
        fadd: FloatValue build_float_add;
        /// f32 or f64 difference.
        fsub: FloatValue build_float_sub;
        /// f32 or f64 product.
        fmul: FloatValue build_float_mul;
        /// f32 or f64 quotient, correctly rounded.
        fdiv: FloatValue build_float_div;
    }

    /// Logical shift right.
    pub fn lshr(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        match (a.0, b.0) {
            (BasicValueEnum::IntValue(a), BasicValueEnum::IntValue(b)) => {
                Val(ok(self.llvm.build_right_shift(a, b, false, "")).into())
            }
            (BasicValueEnum::VectorValue(a), BasicValueEnum::VectorValue(b)) => {
                Val(ok(self.llvm.build_right_shift(a, b, false, "")).into())
            }
            _ => panic!("operands of unlike kinds in lshr"),
        }
    }

    /// `a · b + c` with one rounding.
    pub fn fma(&self, a: Val<'c>, b: Val<'c>, c: Val<'c>) -> Val<'c> {
        self.overloaded("llvm.fma", &[a, b, c])
    }

    /// The larger of two numbers.
    pub fn fmax(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.overloaded("llvm.maxnum", &[a, b])
    }

    /// An intrinsic overloaded on the type of its first argument.
    pub fn overloaded(&self, name: &str, args: &[Val<'c>]) -> Val<'c> {
        self.intrinsic(name, &[args[0].0.get_type()], args)
    }

    /// A call of an LLVM intrinsic.
    pub fn intrinsic(&self, name: &str, types: &[BasicTypeEnum<'c>], args: &[Val<'c>]) -> Val<'c> {
        let intrinsic = Intrinsic::find(name).unwrap_or_else(|| panic!("LLVM has no intrinsic {name}"));
        let function = intrinsic
            .get_declaration(&self.module, types)
            .unwrap_or_else(|| panic!("LLVM's intrinsic {name} does not take these types"));
        let args: Vec<BasicMetadataValueEnum<'c>> = args.iter().map(|arg| arg.0.into()).collect();
        let call = ok(self.llvm.build_call(function, &args, ""));
        Val(call.try_as_basic_value().basic().expect("the intrinsic has a result"))
    }

    // Conversions.

    /// Integer to f32 or f64.
    pub fn to_float(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        match (value.0, self.like(value, kind)) {
            (BasicValueEnum::IntValue(v), BasicTypeEnum::FloatType(ty)) => {
                Val(ok(self.llvm.build_signed_int_to_float(v, ty, "")).into())
            }
            (BasicValueEnum::VectorValue(v), BasicTypeEnum::VectorType(ty)) => {
                Val(ok(self.llvm.build_signed_int_to_float(v, ty, "")).into())
            }
            _ => panic!("to_float needs an integer"),
        }
    }

    /// Float to integer, toward zero.
    pub fn to_int(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        match (value.0, self.like(value, kind)) {
            (BasicValueEnum::FloatValue(v), BasicTypeEnum::IntType(ty)) => {
                Val(ok(self.llvm.build_float_to_signed_int(v, ty, "")).into())
            }
            (BasicValueEnum::VectorValue(v), BasicTypeEnum::VectorType(ty)) => {
                Val(ok(self.llvm.build_float_to_signed_int(v, ty, "")).into())
            }
            _ => panic!("to_int needs a float"),
        }
    }

    /// Between float widths, rounding to nearest even.
    pub fn to_width(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        match (value.0, self.like(value, kind)) {
            (BasicValueEnum::FloatValue(v), BasicTypeEnum::FloatType(ty)) => {
                Val(ok(self.llvm.build_float_cast(v, ty, "")).into())
            }
            (BasicValueEnum::VectorValue(v), BasicTypeEnum::VectorType(ty)) => {
                Val(ok(self.llvm.build_float_cast(v, ty, "")).into())
            }
            _ => panic!("to_width needs a float"),
        }
    }

    /// Zero extension.
    pub fn zext(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        match (value.0, self.like(value, kind)) {
            (BasicValueEnum::IntValue(v), BasicTypeEnum::IntType(ty)) => {
                Val(ok(self.llvm.build_int_z_extend(v, ty, "")).into())
            }
            (BasicValueEnum::VectorValue(v), BasicTypeEnum::VectorType(ty)) => {
                Val(ok(self.llvm.build_int_z_extend(v, ty, "")).into())
            }
            _ => panic!("zext needs an integer"),
        }
    }

    /// Truncation of integers.
    pub fn trunc(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        match (value.0, self.like(value, kind)) {
            (BasicValueEnum::IntValue(v), BasicTypeEnum::IntType(ty)) => {
                Val(ok(self.llvm.build_int_truncate(v, ty, "")).into())
            }
            (BasicValueEnum::VectorValue(v), BasicTypeEnum::VectorType(ty)) => {
                Val(ok(self.llvm.build_int_truncate(v, ty, "")).into())
            }
            _ => panic!("trunc needs an integer"),
        }
    }

    /// The same bits as another kind of the same width.
    pub fn bitcast(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        Val(ok(self.llvm.build_bit_cast(value.0, self.like(value, kind), "")))
    }

    // Comparison and selection.

    /// Ordered float comparison.
    pub fn fcmp(&self, predicate: FloatPredicate, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        match (a.0, b.0) {
            (BasicValueEnum::FloatValue(a), BasicValueEnum::FloatValue(b)) => {
                Val(ok(self.llvm.build_float_compare(predicate, a, b, "")).into())
            }
            (BasicValueEnum::VectorValue(a), BasicValueEnum::VectorValue(b)) => {
                Val(ok(self.llvm.build_float_compare(predicate, a, b, "")).into())
            }
            _ => panic!("operands of unlike kinds in fcmp"),
        }
    }

    /// Integer comparison.
    pub fn icmp(&self, predicate: IntPredicate, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        match (a.0, b.0) {
            (BasicValueEnum::IntValue(a), BasicValueEnum::IntValue(b)) => {
                Val(ok(self.llvm.build_int_compare(predicate, a, b, "")).into())
            }
            (BasicValueEnum::VectorValue(a), BasicValueEnum::VectorValue(b)) => {
                Val(ok(self.llvm.build_int_compare(predicate, a, b, "")).into())
            }
            _ => panic!("operands of unlike kinds in icmp"),
        }
    }

    /// `condition ? a : b`, per lane when the condition is.
    pub fn select(&self, condition: Val<'c>, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        match condition.0 {
            BasicValueEnum::IntValue(c) => Val(ok(self.llvm.build_select(c, a.0, b.0, ""))),
            BasicValueEnum::VectorValue(c) => Val(ok(self.llvm.build_select(c, a.0, b.0, ""))),
            _ => panic!("select needs a condition"),
        }
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
            // The two halves of a warp may be at different units, so only this half takes part.
            let tid = self.intrinsic("llvm.nvvm.read.ptx.sreg.tid.x", &[], &[]);
            let half = self.and(tid, self.int32(16));
            let mask = self.shl(self.int32(0xffff), half);
            let name = if value.0.is_float_value() { "f32" } else { "i32" };
            let args = [mask, value, self.int32(distance as i32), self.int32(31)];
            return self.intrinsic(&format!("llvm.nvvm.shfl.sync.bfly.{name}"), &[], &args);
        }
        let i32_type = self.context.i32_type();
        let order: Vec<_> = (0..LANES as u64).map(|i| i32_type.const_int(i ^ distance, false)).collect();
        let vector = value.0.into_vector_value();
        let mask = inkwell::types::VectorType::const_vector(&order);
        Val(ok(self.llvm.build_shuffle_vector(vector, vector.get_type().get_poison(), mask, "")).into())
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

    // Memory.

    /// `base + bytes`.
    #[expect(unsafe_code, reason = "LLVM's pointer arithmetic; it runs in the generated kernel, not here")]
    pub fn offset(&self, base: PointerValue<'c>, bytes: Val<'c>) -> PointerValue<'c> {
        // SAFETY: this only appends an instruction; whether the address is in bounds is the template's contract, which
        // the runtime checks against the operand's extent before the first launch.
        unsafe { ok(self.llvm.build_gep(self.context.i8_type(), base, &[bytes.0.into_int_value()], "")) }
    }

    /// `base + index · stride` bytes.
    pub fn element(&self, base: PointerValue<'c>, index: Val<'c>, stride: usize) -> PointerValue<'c> {
        self.offset(base, self.mul(index, self.int(stride as i64)))
    }

    fn aligned_load(&self, ty: BasicTypeEnum<'c>, pointer: PointerValue<'c>, align: usize) -> Val<'c> {
        let value = ok(self.llvm.build_load(ty, pointer, ""));
        let instruction = value.as_instruction_value().expect("a load is an instruction");
        instruction.set_alignment(align as u32).expect("alignments are powers of two");
        Val(value)
    }

    fn aligned_store(&self, pointer: PointerValue<'c>, value: Val<'c>, align: usize) {
        let store = ok(self.llvm.build_store(pointer, value.0));
        store.set_alignment(align as u32).expect("alignments are powers of two");
    }

    /// A uniform load.
    pub fn load(&self, kind: Kind, pointer: PointerValue<'c>) -> Val<'c> {
        self.aligned_load(self.scalar_type(kind), pointer, kind.bytes())
    }

    /// A uniform i32 index, widened.
    pub fn load_index(&self, base: PointerValue<'c>, index: Val<'c>) -> Val<'c> {
        self.zext(self.load(Kind::I32, self.element(base, index, 4)), Kind::I64)
    }

    /// Sixteen consecutive elements, one per lane.
    pub fn load_lanes(&self, kind: Kind, pointer: PointerValue<'c>) -> Val<'c> {
        match self.lane {
            None => self.aligned_load(self.lane_type(kind), pointer, kind.bytes()),
            Some(lane) => self.load(kind, self.element(pointer, lane, kind.bytes())),
        }
    }

    /// Stores sixteen consecutive elements, one per lane.
    pub fn store_lanes(&self, kind: Kind, pointer: PointerValue<'c>, value: Val<'c>) {
        match self.lane {
            None => self.aligned_store(pointer, value, kind.bytes()),
            Some(lane) => self.aligned_store(self.element(pointer, lane, kind.bytes()), value, kind.bytes()),
        }
    }

    /// Stores each lane `stride` bytes after the one before.
    pub fn store_strided(&self, kind: Kind, pointer: PointerValue<'c>, value: Val<'c>, stride: usize) {
        if let Some(lane) = self.lane {
            return self.aligned_store(self.element(pointer, lane, stride), value, kind.bytes());
        }
        for lane in 0..LANES {
            let slot = self.offset(pointer, self.int((lane * stride) as i64));
            self.aligned_store(slot, self.extract(value, lane as u64), kind.bytes());
        }
    }

    /// Stores a uniform value once.
    pub fn store(&self, kind: Kind, pointer: PointerValue<'c>, value: Val<'c>) {
        match self.lane {
            None => self.aligned_store(pointer, value, kind.bytes()),
            Some(lane) => {
                let leader = self.icmp(IntPredicate::EQ, lane, self.int(0));
                self.when(leader, || self.aligned_store(pointer, value, kind.bytes()));
            }
        }
    }

    /// An array of `count` f32 in the kernel's frame.
    pub fn frame(&self, count: usize) -> PointerValue<'c> {
        let ty = self.context.f32_type().array_type(count as u32);
        self.alloca(ty.into())
    }

    fn alloca(&self, ty: BasicTypeEnum<'c>) -> PointerValue<'c> {
        let here = self.block();
        let entry = self.function.get().expect("a kernel is open").get_first_basic_block().expect("it has an entry");
        match entry.get_first_instruction() {
            Some(first) => self.llvm.position_before(&first),
            None => self.llvm.position_at_end(entry),
        }
        let slot = ok(self.llvm.build_alloca(ty, ""));
        self.llvm.position_at_end(here);
        slot
    }

    /// A variable with an initial value.
    pub fn var(&self, initial: Val<'c>) -> Var<'c> {
        let var = Var { slot: self.alloca(initial.0.get_type()), ty: initial.0.get_type() };
        self.set(var, initial);
        var
    }

    /// The value of a variable.
    pub fn get(&self, var: Var<'c>) -> Val<'c> {
        Val(ok(self.llvm.build_load(var.ty, var.slot, "")))
    }

    /// Assigns a variable.
    pub fn set(&self, var: Var<'c>, value: Val<'c>) {
        debug_assert_eq!(var.ty, value.0.get_type().as_basic_type_enum());
        ok(self.llvm.build_store(var.slot, value.0));
    }

    // Control flow.

    fn block(&self) -> BasicBlock<'c> {
        self.llvm.get_insert_block().expect("the builder has a position")
    }

    fn append(&self, name: &str) -> BasicBlock<'c> {
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
