//! What a block of GPU threads shares: memory, a barrier, and the tensor cores of each warp.

use inkwell::AddressSpace;
use inkwell::types::BasicType;
use inkwell::values::{BasicValueEnum, PointerValue};

use super::builder::{Builder, Kind, LANES, Val, ok};

/// Threads of a warp.
pub const WARP: usize = 32;
/// Indices whose loads a team has under way together: as many as there are of the first of these, then of the next.
const AT_ONCE: [usize; 3] = [8, 4, 1];
/// LLVM's number of the address space of a block's shared memory.
const SHARED: u16 = 3;

impl<'c> Builder<'c> {
    /// A special register, as i64.
    pub fn special(&self, name: &str) -> Val<'c> {
        let register = self.intrinsic(&format!("llvm.nvvm.read.ptx.sreg.{name}"), &[], &[]);
        self.zext(register, Kind::I64)
    }

    /// An array of `count` f32 that the threads of a block share.
    pub fn shared(&self, name: &str, count: usize) -> PointerValue<'c> {
        let ty = self.context.f32_type().array_type(count as u32);
        let global = self.module.add_global(ty, Some(AddressSpace::from(SHARED)), name);
        global.set_initializer(&ty.as_basic_type_enum().into_array_type().get_undef());
        global.set_linkage(inkwell::module::Linkage::Internal);
        global.set_alignment(16);
        global.as_pointer_value()
    }

    /// Which of the teams of 16 threads that compute a unit together this thread belongs to, and how many there are: one
    /// where lanes are a vector, and where a block of threads computes several units.
    pub fn team(&self) -> (Val<'c>, usize) {
        match self.teams {
            1 => (self.int(0), 1),
            teams => (self.udiv(self.special("tid.x"), self.int(LANES as i64)), teams),
        }
    }

    /// Runs `body` for each index below `count`, shared among the teams of a unit.
    pub fn for_team(&self, count: Val<'c>, body: impl FnOnce(Val<'c>)) {
        let (team, teams) = self.team();
        self.for_range(team, count, self.int(teams as i64), body);
    }

    /// Runs `body` for each index from `begin` to `end`, a multiple of `step` further on: `times` of them in a row without
    /// a branch, so that loads of later ones are under way while earlier ones are computed.
    pub fn unrolled(&self, [begin, end]: [Val<'c>; 2], step: usize, times: usize, body: impl Fn(Val<'c>)) {
        if times == 1 {
            return self.for_range(begin, end, self.int(step as i64), body);
        }
        let stride = self.int((step * times) as i64);
        let whole = self.sub(end, self.urem(self.sub(end, begin), stride));
        for (begin, end, times) in [(begin, whole, times), (whole, end, 1)] {
            self.for_range(begin, end, self.int((step * times) as i64), |first| {
                (0..times).for_each(|i| body(self.add(first, self.int((step * i) as i64))));
            });
        }
    }

    /// Runs `body` for each index below `count`, shared among the teams of a unit, on what `load` has loaded for it. Where
    /// teams are threads, what several indices need is loaded before the first of them is worked on.
    pub fn for_team_ahead<L>(&self, count: Val<'c>, load: impl Fn(Val<'c>) -> L, body: impl Fn(Val<'c>, L)) {
        let (team, teams) = self.team();
        if teams == 1 {
            return self.for_range(team, count, self.int(1), |i| body(i, load(i)));
        }
        // A team behind the last index has nothing to do.
        let end = self.overloaded("llvm.smax", &[team, count]);
        let at_once = |times: usize, begin: Val<'c>, end: Val<'c>| {
            self.for_range(begin, end, self.int((teams * times) as i64), |first| {
                let indices = (0..times).map(|i| self.add(first, self.int((teams * i) as i64)));
                let loaded: Vec<(Val<'c>, L)> = indices.map(|i| (i, load(i))).collect();
                for (i, loaded) in loaded {
                    body(i, loaded);
                }
            });
        };
        AT_ONCE.into_iter().fold(team, |begin, times| {
            let left = self.urem(self.sub(end, begin), self.int((teams * times) as i64));
            let whole = if times == 1 { end } else { self.sub(end, left) };
            at_once(times, begin, whole);
            whole
        });
    }

    /// The sum of a uniform f32 of each team of a unit, for all of them: lane `i` adds those of teams `i`, `i + 16`, and so
    /// on, then lanes add pairwise.
    pub fn sum_teams(&self, value: Val<'c>) -> Val<'c> {
        let (team, teams) = self.team();
        if teams == 1 {
            return value;
        }
        debug_assert!(teams.is_multiple_of(LANES), "as many sums for each lane");
        let slots = self.shared("teams", teams);
        self.store(Kind::F32, self.element(slots, team, Kind::F32.bytes()), value);
        self.barrier();
        let of = |first: usize| self.load_lanes(Kind::F32, self.offset(slots, self.int((4 * first) as i64)));
        let sum = (LANES..teams).step_by(LANES).fold(of(0), |sum, first| self.fadd(sum, of(first)));
        let total = self.sum(sum);
        // The next value goes to the same place.
        self.barrier();
        total
    }

    /// The value of the thread at XOR distance `distance`, 1 or 2, of a warp whose threads are all here; NVPTX only.
    fn butterfly_of_four(&self, value: Val<'c>, distance: i32) -> Val<'c> {
        let args = [self.int32(-1), value, self.int32(distance), self.int32(0x1f)];
        self.intrinsic("llvm.nvvm.shfl.sync.bfly.i32", &[], &args)
    }

    /// The integer sum of what four threads that follow each other have; all of the warp are here. NVPTX only.
    pub fn sum_of_four(&self, value: Val<'c>) -> Val<'c> {
        [2, 1].into_iter().fold(value, |sum, distance| self.add(sum, self.butterfly_of_four(sum, distance)))
    }

    /// The largest signed word of four threads that follow each other; all of the warp are here. NVPTX only.
    pub fn max_of_four(&self, value: Val<'c>) -> Val<'c> {
        let larger = |a, b| self.overloaded("llvm.smax", &[a, b]);
        [2, 1].into_iter().fold(value, |most, distance| larger(most, self.butterfly_of_four(most, distance)))
    }

    /// The low bytes of four words as one, the first lowest; NVPTX only.
    pub fn low_bytes(&self, words: [Val<'c>; 4]) -> Val<'c> {
        let permuted = |low, high, by| self.intrinsic("llvm.nvvm.prmt", &[], &[low, high, self.int32(by)]);
        let [low, high] = [[words[0], words[1]], [words[2], words[3]]].map(|[low, high]| permuted(low, high, 0x40));
        permuted(low, high, 0x5410)
    }

    /// Waits until all threads of the block are here; what they wrote before is then seen by all.
    pub fn barrier(&self) {
        self.effect("llvm.nvvm.barrier.cta.sync.aligned.all", &[self.int32(0)]);
    }

    /// Lets the kernels behind this one begin, where the chip can: they wait for this one to end before they read what it
    /// writes.
    pub(super) fn let_later_kernels_begin(&self) {
        if self.target.begins_kernels_early() {
            self.effect("llvm.nvvm.griddepcontrol.launch.dependents", &[]);
        }
    }

    /// Waits until the kernels before this one have ended, where the chip begins kernels early. Nothing but weights may be
    /// read, and nothing written, before.
    pub fn await_earlier_kernels(&self) {
        if self.target.begins_kernels_early() {
            self.effect("llvm.nvvm.griddepcontrol.wait", &[]);
        }
    }

    /// Two f32 rounded to bf16, the first in the low half of a word; NVPTX only.
    pub fn to_bf16_pair(&self, low: Val<'c>, high: Val<'c>) -> Val<'c> {
        self.bitcast(self.intrinsic("llvm.nvvm.ff2bf16x2.rn", &[], &[high, low]), Kind::I32)
    }

    /// Adds to `sums` the products of 16 rows of weights with 8 rows of activations, 16 columns of bf16 each, by the tensor
    /// cores. Fragments are those of [`Builder::mma`] with pairs of bf16 for words of four bytes (PTX ISA, `mma.m16n8k16`).
    pub fn mma_bf16(&self, weights: &[Val<'c>; 4], activations: &[Val<'c>; 2], sums: [Val<'c>; 4]) -> [Val<'c>; 4] {
        let arguments: Vec<Val<'c>> = weights.iter().chain(activations).chain(&sums).copied().collect();
        self.four(self.intrinsic("llvm.nvvm.mma.m16n8k16.row.col.bf16", &[], &arguments))
    }

    /// Two f32 rounded to f16, the first in the low half of a word; NVPTX only.
    pub fn to_f16_pair(&self, low: Val<'c>, high: Val<'c>) -> Val<'c> {
        self.bitcast(self.intrinsic("llvm.nvvm.ff2f16x2.rn", &[], &[high, low]), Kind::I32)
    }

    /// As [`Builder::mma_bf16`] with f16.
    pub fn mma_f16(&self, rows: &[Val<'c>; 4], columns: &[Val<'c>; 2], sums: [Val<'c>; 4]) -> [Val<'c>; 4] {
        let pair = self.context.f16_type().vec_type(2);
        let halves = |word: &Val<'c>| Val(ok(self.llvm.build_bit_cast(word.0, pair, "")));
        let arguments: Vec<Val<'c>> = rows.iter().chain(columns).map(halves).chain(sums).collect();
        self.four(self.intrinsic("llvm.nvvm.mma.m16n8k16.row.col.f32.f32", &[], &arguments))
    }

    /// A word with a bit for each thread of the warp, set where its condition holds; all of them are here.
    pub fn ballot(&self, condition: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.nvvm.vote.ballot.sync", &[], &[self.int32(-1), condition])
    }

    /// The least of the signed words of a warp's threads; all of them are here.
    pub fn warp_min(&self, value: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.nvvm.redux.sync.min", &[], &[value, self.int32(-1)])
    }

    /// The largest of the signed words of a warp's threads; all of them are here.
    pub fn warp_max(&self, value: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.nvvm.redux.sync.max", &[], &[value, self.int32(-1)])
    }

    /// The four results of a product.
    pub(super) fn four(&self, results: Val<'c>) -> [Val<'c>; 4] {
        let BasicValueEnum::StructValue(results) = results.0 else { unreachable!("mma gives four sums") };
        [0, 1, 2, 3].map(|i| Val(ok(self.llvm.build_extract_value(results, i, ""))))
    }

    /// Adds to `sums` the products of 16 rows of unsigned bytes with 8 rows of signed bytes, by the tensor cores. With two
    /// words of weights the rows are 16 bytes long, with four 32.
    ///
    /// In thread `4 g + t` the first words hold bytes `4 t ..` of rows `g` and `g + 8` of the weights, the next two the
    /// bytes from `16 + 4 t` on, likewise of row `g` of the activations; the sums are those of weight rows `g`, `g`, `g + 8`,
    /// `g + 8` with activation rows `2 t`, `2 t + 1`, `2 t`, `2 t + 1` (PTX ISA, fragments of `mma.m16n8k16` and `m16n8k32`).
    pub fn mma(&self, weights: &[Val<'c>], activations: &[Val<'c>], sums: [Val<'c>; 4]) -> [Val<'c>; 4] {
        let k = 8 * weights.len();
        let arguments: Vec<Val<'c>> = weights.iter().chain(activations).chain(&sums).copied().collect();
        self.four(self.intrinsic(&format!("llvm.nvvm.mma.m16n8k{k}.row.col.u8.s8"), &[], &arguments))
    }
}
