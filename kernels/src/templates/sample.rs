//! Sampling: the runtime's sampler (`lathe_runtime::sample`) on a GPU, with the same bits.
//!
//! A token's score is its logit, or the logit over the temperature plus Gumbel noise that is a hash of the row's stream and
//! the token's id; the largest score wins, the lower id of equals. The noise takes two logarithms in f64, so scores are first
//! bounded by the leading zeros of the hash: a token is scored only if it may be as large as the least that the largest
//! score of the row can be. Exponentials of logits less the largest are added up by the recipe of the runtime's logprobs.
//!
//! Nothing here may be joined to a fused multiply-add: the runtime has none.

use inkwell::values::PointerValue;
use inkwell::{FloatPredicate, IntPredicate};

use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{PICK_BYTES, SAMPLE_BLOCK, SAMPLE_BOUND_BYTES, SAMPLE_SUM_BYTES, SamplePart};

/// Logits of a lane that are loaded together.
const AHEAD: usize = 8;
/// Gumbel noise is never below: `-ln(-ln(2⁻⁵³))` is above −3.61.
const LEAST_NOISE: f64 = -3.7;
/// Room for the rounding of ln 2 times the number of a hash's leading zeros.
const LN_2_ROOM: f64 = 1e-9;
/// Room for rounding where a logit is multiplied by the temperature's inverse, relative to it.
const SCORE_ROOM: f64 = 1e-12;
/// The largest magnitude of which that room is taken: an infinite one would leave no number.
const MOST_SCORE: f64 = 1e300;
/// The bits of a hash that count.
const HASH_BITS: i32 = 52;

/// Params: R, V, N, C. Operands: logits, picks, then bounds and sums where they were made, out.
pub fn sample(b: &Builder<'_>, part: SamplePart) {
    match part {
        SamplePart::Bounds => bounds(b),
        SamplePart::Sums => sums(b),
        SamplePart::Merge => merge(b),
    }
}

/// How a row is sampled.
struct Pick<'c> {
    temperature: Val<'c>, // f32
    given: Val<'c>,       // i32
    stream: Val<'c>,      // i64
    is_noisy: Val<'c>,
}

fn pick<'c>(b: &Builder<'c>, row: Val<'c>) -> Pick<'c> {
    let words = b.element(b.operand(1), row, PICK_BYTES);
    let temperature = b.load(Kind::F32, words);
    Pick {
        temperature,
        given: b.load(Kind::I32, b.offset(words, b.int(4))),
        stream: b.load(Kind::I64, b.offset(words, b.int(8))),
        is_noisy: b.fcmp(FloatPredicate::OGT, temperature, b.float(0.0)),
    }
}

/// A block of a row's logits.
#[derive(Clone, Copy)]
struct Block<'c> {
    logits: PointerValue<'c>, // of its first token
    first: Val<'c>,           // token
    count: Val<'c>,
}

/// Runs `body` for every block of every row: with the row, where the block's record lies among all, and the block.
fn for_blocks<'c>(b: &Builder<'c>, body: impl FnOnce(Val<'c>, Val<'c>, Block<'c>)) {
    let [vocabulary, stride, blocks] = [1, 2, 3].map(|at| b.param(at));
    b.for_units(|unit| {
        let (row, block) = (b.udiv(unit, blocks), b.urem(unit, blocks));
        let first = b.mul(block, b.int(SAMPLE_BLOCK as i64));
        let count = b.overloaded("llvm.smin", &[b.sub(vocabulary, first), b.int(SAMPLE_BLOCK as i64)]);
        let logits = b.element(b.operand(0), b.add(b.mul(row, stride), first), Kind::F32.bytes());
        body(row, unit, Block { logits, first, count });
    });
}

/// Runs `body` with the number of each of this lane's tokens in the block, in ascending order, and its logit.
fn for_tokens<'c>(b: &Builder<'c>, block: Block<'c>, body: impl Fn(Val<'c>, Val<'c>)) {
    let lane = b.zext(b.lane_index(), Kind::I64);
    let end = b.overloaded("llvm.smax", &[lane, block.count]);
    b.unrolled([lane, end], LANES, AHEAD, |at| {
        body(at, b.load(Kind::F32, b.element(block.logits, at, Kind::F32.bytes())));
    });
}

/// The largest of something and whose it is.
struct Best<'c> {
    score: Var<'c>, // f32 or f64
    token: Var<'c>, // i32
}

impl<'c> Best<'c> {
    fn new(b: &Builder<'c>, least: Val<'c>) -> Best<'c> {
        Best { score: b.var(least), token: b.var(b.int32(-1)) }
    }

    /// Takes a token of this lane, whose id is above those of the tokens before.
    fn take(&self, b: &Builder<'c>, score: Val<'c>, token: Val<'c>) {
        let is_more = b.fcmp(FloatPredicate::OGT, score, b.get(self.score));
        b.set(self.score, b.select(is_more, score, b.get(self.score)));
        b.set(self.token, b.select(is_more, token, b.get(self.token)));
    }

    /// The best of all lanes: of equal ones the lowest token.
    fn of_lanes(&self, b: &Builder<'c>) -> (Val<'c>, Val<'c>) {
        let (mut score, mut token) = (b.get(self.score), b.get(self.token));
        for distance in [8, 4, 2, 1] {
            let (other, of) = (b.butterfly(score, distance), b.butterfly(token, distance));
            let is_more = b.fcmp(FloatPredicate::OGT, other, score);
            let is_lower = b.icmp(IntPredicate::ULT, of, token);
            let is_tied = b.and(b.fcmp(FloatPredicate::OEQ, other, score), is_lower);
            let takes = b.or(is_more, is_tied);
            (score, token) = (b.select(takes, other, score), b.select(takes, of, token));
        }
        (score, token)
    }
}

fn bounds(b: &Builder<'_>) {
    let out = b.last_operand();
    for_blocks(b, |row, unit, block| {
        let pick = pick(b, row);
        let best = Best::new(b, b.float(f32::NEG_INFINITY));
        for_tokens(b, block, |at, logit| best.take(b, logit, b.trunc(b.add(block.first, at), Kind::I32)));
        let (largest, token) = best.of_lanes(b);
        let record = b.element(out, unit, SAMPLE_BOUND_BYTES);
        b.store(Kind::F32, record, largest);
        b.store(Kind::I32, b.offset(record, b.int(4)), token);
        let least = b.var(f64(b, f64::NEG_INFINITY));
        b.when(pick.is_noisy, || {
            let inverse = inverse(b, &pick);
            for_tokens(b, block, |at, logit| {
                let zeros = leading_zeros(b, hash(b, pick.stream, b.add(block.first, at)));
                let noise = b.fmul(whole(b, b.sub(zeros, b.int32(1))), f64(b, std::f64::consts::LN_2 - LN_2_ROOM));
                let is_large = b.icmp(IntPredicate::EQ, zeros, b.int32(0));
                let noise = b.select(is_large, f64(b, LEAST_NOISE), noise);
                let (score, room) = rough_score(b, logit, inverse);
                let bound = b.fadd(b.fsub(score, room), noise);
                let is_more = b.fcmp(FloatPredicate::OGT, bound, b.get(least));
                b.set(least, b.select(is_more, bound, b.get(least)));
            });
        });
        b.store(Kind::F64, b.offset(record, b.int(8)), largest_of_lanes(b, b.get(least)));
    });
}

fn sums<'c>(b: &Builder<'c>) {
    let (bounds, out) = (b.operand(2), b.last_operand());
    for_blocks(b, |row, unit, block| {
        let pick = pick(b, row);
        let (largest, least) = of_row(b, bounds, row);
        let sum = b.var(b.float(0.0));
        let best = Best::new(b, f64(b, f64::NEG_INFINITY));
        let add = |logit: Val<'c>| b.set(sum, b.fadd(b.get(sum), exp(b, b.fsub(logit, largest))));
        b.either(
            pick.is_noisy,
            || {
                let inverse = inverse(b, &pick);
                for_tokens(b, block, |at, logit| {
                    add(logit);
                    let token = b.add(block.first, at);
                    let hash = hash(b, pick.stream, token);
                    let zeros = b.add(leading_zeros(b, hash), b.int32(1));
                    let noise = b.fmul(whole(b, zeros), f64(b, std::f64::consts::LN_2 + LN_2_ROOM));
                    let (score, room) = rough_score(b, logit, inverse);
                    let may_win = b.fcmp(FloatPredicate::OGE, b.fadd(b.fadd(score, room), noise), least);
                    b.when(may_win, || {
                        let logit = b.to_width(logit, Kind::F64);
                        let score = b.fdiv(logit, b.to_width(pick.temperature, Kind::F64));
                        best.take(b, b.fadd(score, gumbel(b, hash)), b.trunc(token, Kind::I32));
                    });
                });
            },
            || for_tokens(b, block, |_, logit| add(logit)),
        );
        let record = b.element(out, unit, SAMPLE_SUM_BYTES);
        let lanes = b.get(sum);
        let total =
            (0..LANES).fold(f64(b, 0.0), |total, lane| b.fadd(total, b.to_width(b.of_lane(lanes, lane), Kind::F64)));
        let (score, token) = best.of_lanes(b);
        b.store(Kind::F64, record, total);
        b.store(Kind::F64, b.offset(record, b.int(8)), score);
        b.store(Kind::I32, b.offset(record, b.int(16)), token);
    });
}

fn merge(b: &Builder<'_>) {
    let (logits, bounds, sums, out) = (b.operand(0), b.operand(2), b.operand(3), b.last_operand());
    let [rows, vocabulary, stride, blocks] = [0, 1, 2, 3].map(|at| b.param(at));
    b.for_units(|row| {
        let pick = pick(b, row);
        let lane = b.zext(b.lane_index(), Kind::I64);
        let step = b.int(LANES as i64);
        let (greatest, noisy) = (Best::new(b, b.float(f32::NEG_INFINITY)), Best::new(b, f64(b, f64::NEG_INFINITY)));
        let total = b.var(f64(b, 0.0));
        let first = b.mul(row, blocks);
        b.for_range(b.int(0), blocks, step, |block| {
            let at = b.add(block, lane);
            let is_inside = b.icmp(IntPredicate::SLT, at, blocks);
            // Zeros behind the last block change no sum.
            let sum = b.var(f64(b, 0.0));
            b.when(is_inside, || {
                let at = b.add(first, at);
                let (bound, record) =
                    (b.element(bounds, at, SAMPLE_BOUND_BYTES), b.element(sums, at, SAMPLE_SUM_BYTES));
                greatest.take(b, b.load(Kind::F32, bound), b.load(Kind::I32, b.offset(bound, b.int(4))));
                b.set(sum, b.load(Kind::F64, record));
                let score = b.load(Kind::F64, b.offset(record, b.int(8)));
                noisy.take(b, score, b.load(Kind::I32, b.offset(record, b.int(16))));
            });
            let sum = b.get(sum);
            for lane in 0..LANES {
                b.set(total, b.fadd(b.get(total), b.of_lane(sum, lane)));
            }
        });
        let ((largest, greedy), (_, drawn)) = (greatest.of_lanes(b), noisy.of_lanes(b));
        let total = b.get(total);
        let sampled = b.select(pick.is_noisy, drawn, greedy);
        let is_given = b.icmp(IntPredicate::NE, pick.given, b.int32(-1));
        // Whatever a broken row holds, what reads the token finds it in the vocabulary.
        let last = b.trunc(b.sub(vocabulary, b.int(1)), Kind::I32);
        let token = b.overloaded("llvm.umin", &[b.select(is_given, pick.given, sampled), last]);
        let at = b.add(b.mul(row, stride), b.zext(token, Kind::I64));
        let logit = b.load(Kind::F32, b.element(logits, at, Kind::F32.bytes()));
        let record = b.element(out, row, PICK_BYTES);
        b.store(Kind::F32, record, largest);
        b.store(Kind::F32, b.offset(record, b.int(4)), logit);
        b.store(Kind::F64, b.offset(record, b.int(8)), total);
        let tokens = b.element(out, rows, PICK_BYTES);
        b.store(Kind::I32, b.element(tokens, row, 4), token);
    });
}

/// The largest logit of a row, and the least that its largest score can be.
fn of_row<'c>(b: &Builder<'c>, bounds: PointerValue<'c>, row: Val<'c>) -> (Val<'c>, Val<'c>) {
    let (largest, least) = (b.var(b.float(f32::NEG_INFINITY)), b.var(f64(b, f64::NEG_INFINITY)));
    let blocks = b.param(3);
    let first = b.mul(row, blocks);
    b.for_range(b.zext(b.lane_index(), Kind::I64), blocks, b.int(LANES as i64), |block| {
        let record = b.element(bounds, b.add(first, block), SAMPLE_BOUND_BYTES);
        b.set(largest, b.fmax(b.get(largest), b.load(Kind::F32, record)));
        b.set(least, b.fmax(b.get(least), b.load(Kind::F64, b.offset(record, b.int(8)))));
    });
    (b.max(b.get(largest)), largest_of_lanes(b, b.get(least)))
}

fn f64<'c>(b: &Builder<'c>, value: f64) -> Val<'c> {
    Val(b.context.f64_type().const_float(value).into())
}

/// A small integer as f64.
fn whole<'c>(b: &Builder<'c>, value: Val<'c>) -> Val<'c> {
    b.to_float(value, Kind::F64)
}

/// The largest f64 of all lanes.
fn largest_of_lanes<'c>(b: &Builder<'c>, value: Val<'c>) -> Val<'c> {
    [8, 4, 2, 1].into_iter().fold(value, |value, distance| b.fmax(value, b.butterfly(value, distance)))
}

/// One over the temperature.
fn inverse<'c>(b: &Builder<'c>, pick: &Pick<'c>) -> Val<'c> {
    b.fdiv(f64(b, 1.0), b.to_width(pick.temperature, Kind::F64))
}

/// A logit over the temperature, rounded once more than it is in the score, and by how much it may be off.
fn rough_score<'c>(b: &Builder<'c>, logit: Val<'c>, inverse: Val<'c>) -> (Val<'c>, Val<'c>) {
    let score = b.fmul(b.to_width(logit, Kind::F64), inverse);
    let size = b.overloaded("llvm.minnum", &[b.overloaded("llvm.fabs", &[score]), f64(b, MOST_SCORE)]);
    (score, b.fmul(size, f64(b, SCORE_ROOM)))
}

/// The hash from which a token's noise is made.
fn hash<'c>(b: &Builder<'c>, stream: Val<'c>, token: Val<'c>) -> Val<'c> {
    let word = |value: u64| b.int(value.cast_signed());
    let mixed = |x: Val<'c>, shift: i64| b.xor(x, b.lshr(x, b.int(shift)));
    let x = b.xor(stream, b.mul(token, word(0xd6e8_feb8_6659_fd93)));
    let x = b.add(x, word(0x9e37_79b9_7f4a_7c15));
    let x = b.mul(mixed(x, 30), word(0xbf58_476d_1ce4_e5b9));
    let x = b.mul(mixed(x, 27), word(0x94d0_49bb_1331_11eb));
    mixed(x, 31)
}

/// The leading zeros of a hash that count, as i32.
fn leading_zeros<'c>(b: &Builder<'c>, hash: Val<'c>) -> Val<'c> {
    let no_poison = Val(b.context.bool_type().const_zero().into());
    let zeros = b.trunc(b.overloaded("llvm.ctlz", &[hash, no_poison]), Kind::I32);
    b.overloaded("llvm.smin", &[zeros, b.int32(HASH_BITS)])
}

/// Gumbel noise `-ln(-ln(1 - q))` with q uniform on the odd multiples of 2⁻⁵³.
fn gumbel<'c>(b: &Builder<'c>, hash: Val<'c>) -> Val<'c> {
    let odd = b.fadd(whole(b, b.lshr(hash, b.int(12))), f64(b, 0.5));
    let q = b.fmul(odd, f64(b, 2f64.powi(-HASH_BITS)));
    let negative = |x: Val<'c>| b.fsub(f64(b, -0.0), x);
    negative(ln(b, negative(ln(b, b.fsub(f64(b, 1.0), q)))))
}

/// The runtime's natural logarithm of a positive normal number.
fn ln<'c>(b: &Builder<'c>, x: Val<'c>) -> Val<'c> {
    let bits = b.bitcast(x, Kind::I64);
    let exponent = b.sub(b.lshr(bits, b.int(52)), b.int(1023));
    let fraction = b.and(bits, b.int((1 << 52) - 1));
    let m = b.bitcast(b.or(fraction, b.int(1023 << 52)), Kind::F64);
    let is_large = b.fcmp(FloatPredicate::OGT, m, f64(b, std::f64::consts::SQRT_2));
    let m = b.select(is_large, b.fmul(m, f64(b, 0.5)), m);
    let exponent = b.select(is_large, b.add(exponent, b.int(1)), exponent);
    let s = b.fdiv(b.fsub(m, f64(b, 1.0)), b.fadd(m, f64(b, 1.0)));
    let square = b.fmul(s, s);
    let series = (3..=23)
        .rev()
        .step_by(2)
        .fold(f64(b, 0.0), |sum, odd| b.fmul(b.fadd(sum, f64(b, 1.0 / f64::from(odd))), square));
    let powers = b.fmul(b.to_float(exponent, Kind::F64), f64(b, std::f64::consts::LN_2));
    b.fadd(powers, b.fmul(f64(b, 2.0), b.fadd(s, b.fmul(s, series))))
}

/// The runtime's exponential in f32.
fn exp<'c>(b: &Builder<'c>, x: Val<'c>) -> Val<'c> {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let float = |value: f32| b.float(value);
    let is_small = b.fcmp(FloatPredicate::OLT, x, float(LEAST));
    // What is no number stays none.
    let clamped = b.select(is_small, float(LEAST), x);
    let clamped = b.select(b.fcmp(FloatPredicate::OGT, clamped, float(MOST)), float(MOST), clamped);
    let shifted = b.fadd(b.fmul(clamped, float(std::f32::consts::LOG2_E)), float(ROUND));
    let n = b.fsub(shifted, float(ROUND));
    let r = b.fsub(b.fsub(clamped, b.fmul(n, float(LN2_HIGH))), b.fmul(n, float(LN2_LOW)));
    let sum = [720.0f32, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0]
        .into_iter()
        .fold(float(1.0 / 5040.0), |sum, factor| b.fadd(b.fmul(sum, r), float(1.0 / factor)));
    let exponent = b.add(b.shl(b.bitcast(shifted, Kind::I32), b.int32(23)), b.int32(127 << 23));
    let value = b.fmul(sum, b.bitcast(exponent, Kind::F32));
    b.select(is_small, float(0.0), value)
}
