//! Loads, stores and variables.

use inkwell::IntPredicate;
use inkwell::types::{BasicType, BasicTypeEnum};
use inkwell::values::{BasicValue, PointerValue};

use super::builder::{Builder, Kind, LANES, Val, ok};

/// A mutable variable that LLVM promotes to a register.
#[derive(Clone, Copy, Debug)]
pub struct Var<'c> {
    slot: PointerValue<'c>,
    ty: BasicTypeEnum<'c>,
}

impl<'c> Builder<'c> {
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

    pub(super) fn aligned_load(&self, ty: BasicTypeEnum<'c>, pointer: PointerValue<'c>, align: usize) -> Val<'c> {
        let value = ok(self.llvm.build_load(ty, pointer, ""));
        let instruction = value.as_instruction_value().expect("a load is an instruction");
        instruction.set_alignment(align as u32).expect("alignments are powers of two");
        Val(value)
    }

    pub(super) fn aligned_store(&self, pointer: PointerValue<'c>, value: Val<'c>, align: usize) {
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

    /// Asks for the cache line of an address that will be read soon, into the second cache: on Zen 4, fetching into the
    /// first made attention over histories in memory slower than no fetching at all. The address may lie anywhere.
    pub fn prefetch(&self, pointer: PointerValue<'c>) {
        let args = [self.int32(0), self.int32(2), self.int32(1)]; // to read, into the second cache, as data
        self.effect_at("llvm.prefetch", pointer, &args);
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

    /// Stores a value of this thread's own.
    pub fn plain_store(&self, kind: Kind, pointer: PointerValue<'c>, value: Val<'c>) {
        self.aligned_store(pointer, value, kind.bytes());
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
}
