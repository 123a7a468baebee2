//! Asynchronous copies from a GPU's memory to the shared memory of a block, and what reads them there (PTX ISA,
//! `cp.async`, `ldmatrix`).

use inkwell::values::{BasicValueEnum, PointerValue};

use super::block::WARP;
use super::builder::{Builder, Kind, Val, ok};

impl<'c> Builder<'c> {
    /// Begins a copy of 16 bytes, from and to multiples of 16, past the first-level cache.
    pub fn copy_16(&self, to: PointerValue<'c>, from: PointerValue<'c>) {
        self.effect("llvm.nvvm.cp.async.cg.shared.global.16", &[Val(to.into()), Val(from.into())]);
    }

    /// As [`Builder::copy_16`] where `bytes`, an i32, is 16; where it is 0, nothing is read and zeros come.
    pub fn copy_16_or_zeros(&self, to: PointerValue<'c>, from: PointerValue<'c>, bytes: Val<'c>) {
        self.effect("llvm.nvvm.cp.async.cg.shared.global.16.s", &[Val(to.into()), Val(from.into()), bytes]);
    }

    /// Begins a copy of four bytes, from and to multiples of four.
    pub fn copy_4(&self, to: PointerValue<'c>, from: PointerValue<'c>) {
        self.effect("llvm.nvvm.cp.async.ca.shared.global.4", &[Val(to.into()), Val(from.into())]);
    }

    /// Closes this thread's group of copies.
    pub fn commit_copies(&self) {
        self.effect("llvm.nvvm.cp.async.commit.group", &[]);
    }

    /// Waits until all of this thread's groups of copies but the last `left` are done.
    pub fn wait_copies(&self, left: usize) {
        self.effect("llvm.nvvm.cp.async.wait.group", &[self.int32(left as i32)]);
    }

    /// Four matrices of eight rows of 16 bytes in shared memory, each turned. Lane `8 i + r` gives the address of row `r` of
    /// matrix `i`; lane `4 c + w` gets elements `c` of rows `2 w` and `2 w + 1` of each.
    pub fn load_transposed(&self, row: PointerValue<'c>) -> [Val<'c>; 4] {
        let name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16";
        self.four(self.intrinsic(name, &[row.get_type().into()], &[Val(row.into())]))
    }

    /// `N` consecutive words by one load; the address is a multiple of their size.
    pub fn load_together<const N: usize>(&self, kind: Kind, pointer: PointerValue<'c>) -> [Val<'c>; N] {
        let ty = match self.scalar_type(kind) {
            inkwell::types::BasicTypeEnum::FloatType(ty) => ty.vec_type(N as u32),
            inkwell::types::BasicTypeEnum::IntType(ty) => ty.vec_type(N as u32),
            _ => unreachable!("kinds are integers and floats"),
        };
        let vector = self.aligned_load(ty.into(), pointer, N * kind.bytes());
        let BasicValueEnum::VectorValue(vector) = vector.0 else { unreachable!("a vector was loaded") };
        std::array::from_fn(|i| {
            let index = self.context.i32_type().const_int(i as u64, false);
            Val(ok(self.llvm.build_extract_element(vector, index, "")))
        })
    }

    /// Stores `N` f32 of this thread's own, one behind the other, by one store; the address is a multiple of their size.
    pub fn store_together<const N: usize>(&self, pointer: PointerValue<'c>, values: [Val<'c>; N]) {
        let mut vector = self.context.f32_type().vec_type(N as u32).get_undef();
        for (i, value) in values.into_iter().enumerate() {
            let index = self.context.i32_type().const_int(i as u64, false);
            vector = ok(self.llvm.build_insert_element(vector, value.0, index, ""));
        }
        self.aligned_store(pointer, Val(vector.into()), N * Kind::F32.bytes());
    }

    /// Asks the second-level cache of a GPU for the line at `pointer`.
    pub fn ask_for_line(&self, pointer: PointerValue<'c>) {
        // LLVM has an intrinsic from PTX 8.0 on alone.
        let ty = self.context.void_type().fn_type(&[pointer.get_type().into()], false);
        let text = "prefetch.global.L2 [$0];".to_owned();
        let ask = self.context.create_inline_asm(ty, text, "l".to_owned(), true, false, None, false);
        ok(self.llvm.build_indirect_call(ty, ask, &[pointer.into()], ""));
    }

    /// Runs `body` with each number below `count`, shared among the `threads` of a block: those of a thread are `threads`
    /// apart, and known before the kernel runs but for the thread's own number.
    pub fn for_pieces(&self, count: usize, threads: usize, mut body: impl FnMut(usize, Val<'c>)) {
        debug_assert!(threads.is_multiple_of(WARP));
        let thread = self.special("tid.x");
        for turn in 0..count.div_ceil(threads) {
            let piece = self.add(thread, self.int((turn * threads) as i64));
            if (turn + 1) * threads <= count {
                body(turn, piece);
                continue;
            }
            self.when(self.icmp(inkwell::IntPredicate::SLT, piece, self.int(count as i64)), || body(turn, piece));
        }
    }
}
