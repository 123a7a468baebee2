//! Arithmetic, conversions and comparisons of uniform and lane values.

use inkwell::intrinsics::Intrinsic;
use inkwell::types::BasicTypeEnum;
use inkwell::values::PointerValue;
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, CallSiteValue};
use inkwell::{FloatPredicate, IntPredicate};

use super::builder::{Builder, Kind, Val, ok};

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
        /// Bitwise exclusive or.
        xor: IntValue build_xor;
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
        self.shift_right(a, b, false)
    }

    /// Arithmetic shift right.
    pub fn ashr(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.shift_right(a, b, true)
    }

    fn shift_right(&self, a: Val<'c>, b: Val<'c>, signed: bool) -> Val<'c> {
        match (a.0, b.0) {
            (BasicValueEnum::IntValue(a), BasicValueEnum::IntValue(b)) => {
                Val(ok(self.llvm.build_right_shift(a, b, signed, "")).into())
            }
            (BasicValueEnum::VectorValue(a), BasicValueEnum::VectorValue(b)) => {
                Val(ok(self.llvm.build_right_shift(a, b, signed, "")).into())
            }
            _ => panic!("operands of unlike kinds in a shift"),
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
        Val(self.call(name, types, args).try_as_basic_value().basic().expect("the intrinsic has a result"))
    }

    /// A call of an LLVM intrinsic without a result.
    pub fn effect(&self, name: &str, args: &[Val<'c>]) {
        self.call(name, &[], args);
    }

    /// A call of an LLVM intrinsic without a result, for an address.
    pub fn effect_at(&self, name: &str, pointer: PointerValue<'c>, args: &[Val<'c>]) {
        let args = [&[Val(pointer.into())], args].concat();
        self.call(name, &[pointer.get_type().into()], &args);
    }

    fn call(&self, name: &str, types: &[BasicTypeEnum<'c>], args: &[Val<'c>]) -> CallSiteValue<'c> {
        let intrinsic = Intrinsic::find(name).unwrap_or_else(|| panic!("LLVM has no intrinsic {name}"));
        let function = intrinsic
            .get_declaration(&self.module, types)
            .unwrap_or_else(|| panic!("LLVM's intrinsic {name} does not take these types"));
        let args: Vec<BasicMetadataValueEnum<'c>> = args.iter().map(|arg| arg.0.into()).collect();
        ok(self.llvm.build_call(function, &args, ""))
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
}
