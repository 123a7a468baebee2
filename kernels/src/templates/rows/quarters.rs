//! The second half of a norm where many teams of threads share a row: from the row and its factor to the form of the result,
//! by threads that take eight neighbouring columns each, a quarter of a group. Each element and each group has the bits that
//! [`super::store_group`] and its like give it.
//!
//! What a thread needs of the norm's weights for its first quarter, mostly its only one, it loads before the kernels that
//! make the row have ended.

use inkwell::values::PointerValue;
use inkwell::{FloatPredicate, IntPredicate};

use super::MAX_CODE;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{ACT_GROUP_BYTES, Activation, GROUP};

/// Columns of a thread.
const COLUMNS: usize = 8;
/// Threads of a group.
const THREADS: usize = GROUP / COLUMNS;

/// What all rows of a block of threads share.
pub struct Quarters<'b, 'c> {
    b: &'b Builder<'c>,
    form: Activation,
    /// Groups of a row.
    groups: Val<'c>,
    /// The norm's weight and its bias.
    vectors: [Option<PointerValue<'c>>; 2],
    /// This thread among all of the block.
    thread: Val<'c>,
    /// Threads of the block.
    threads: Val<'c>,
    /// What it needs of both vectors for its first quarter.
    first: [Option<[Val<'c>; COLUMNS]>; 2],
}

/// A row between its sums and its result.
pub struct Row<'c> {
    /// Its elements.
    pub x: PointerValue<'c>,
    /// Its mean, if it is centred.
    pub mean: Option<Val<'c>>,
    /// What it is scaled by.
    pub factor: Val<'c>,
    /// What is added to it.
    pub residual: Option<PointerValue<'c>>,
    /// The results of all rows.
    pub out: PointerValue<'c>,
    /// Groups of the rows before it.
    pub before: Val<'c>,
}

impl<'b, 'c> Quarters<'b, 'c> {
    /// Loads weights, then waits for earlier kernels, where teams share rows; nothing elsewhere.
    pub fn begin(
        b: &'b Builder<'c>,
        groups: Val<'c>,
        vectors: [Option<PointerValue<'c>>; 2],
        form: Activation,
    ) -> Option<Self> {
        let (_, teams) = b.team();
        if teams == 1 {
            return None;
        }
        let thread = b.special("tid.x");
        let threads = b.int((teams * LANES) as i64);
        let mut quarters = Quarters { b, form, groups, vectors, thread, threads, first: [None; 2] };
        let own = quarters.bounded(thread);
        quarters.first = vectors.map(|vector| vector.map(|vector| quarters.load(vector, own)));
        b.await_earlier_kernels();
        Some(quarters)
    }

    /// Quarters of a row.
    fn count(&self) -> Val<'c> {
        self.b.mul(self.groups, self.b.int(THREADS as i64))
    }

    /// A quarter of the row; what is behind the last is the one of its place in the last group, and stored by nobody, so that
    /// all threads of a warp go the same way.
    fn bounded(&self, quarter: Val<'c>) -> Val<'c> {
        let b = self.b;
        let within = b.urem(quarter, b.int(THREADS as i64));
        let last = b.add(b.sub(self.count(), b.int(THREADS as i64)), within);
        b.overloaded("llvm.smin", &[quarter, last])
    }

    fn load(&self, base: PointerValue<'c>, quarter: Val<'c>) -> [Val<'c>; COLUMNS] {
        let b = self.b;
        let at = b.element(base, quarter, 4 * COLUMNS);
        let [low, high]: [[Val<'c>; 4]; 2] =
            [0, 4].map(|column| b.load_together(Kind::F32, b.offset(at, b.int(4 * column))));
        std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
    }

    /// Finishes a row.
    pub fn finish(&self, row: &Row<'c>) {
        let b = self.b;
        let quarter = |at: Val<'c>, quarter: Val<'c>, vectors: [Option<[Val<'c>; COLUMNS]>; 2]| {
            let [weight, bias] = vectors;
            let x = self.load(row.x, quarter);
            let residual = row.residual.map(|residual| self.load(residual, quarter));
            let value = |i: usize| {
                let mut value = x[i];
                if let Some(weight) = weight {
                    let scaled = b.fmul(row.mean.map_or(value, |mean| b.fsub(value, mean)), row.factor);
                    value = match bias {
                        Some(bias) => b.fma(scaled, weight[i], bias[i]),
                        None => b.fmul(scaled, weight[i]),
                    };
                }
                residual.map_or(value, |residual| b.fadd(value, residual[i]))
            };
            let is_of_row = b.icmp(IntPredicate::SLT, at, self.count());
            self.store(row, is_of_row, quarter, std::array::from_fn(value));
        };
        quarter(self.thread, self.bounded(self.thread), self.first);
        b.for_range(self.threads, self.count(), self.threads, |first| {
            let at = b.add(first, self.thread);
            let own = self.bounded(at);
            quarter(at, own, self.vectors.map(|vector| vector.map(|vector| self.load(vector, own))));
        });
    }

    /// Stores a quarter in the form of the result, if it is one of the row.
    fn store(&self, row: &Row<'c>, is_of_row: Val<'c>, quarter: Val<'c>, values: [Val<'c>; COLUMNS]) {
        let b = self.b;
        let threads = b.int(THREADS as i64);
        let (group, within) = (b.udiv(quarter, threads), b.urem(quarter, threads));
        let own = b.element(row.out, b.add(row.before, group), self.form.group_bytes());
        match self.form {
            Activation::F32 => b.when(is_of_row, || {
                let at = b.element(own, within, 4 * COLUMNS);
                b.store_together(at, [values[0], values[1], values[2], values[3]]);
                b.store_together(b.offset(at, b.int(16)), [values[4], values[5], values[6], values[7]]);
            }),
            Activation::Bf16 => b.when(is_of_row, || {
                let at = b.element(own, within, 4);
                for (t, pair) in values.chunks(2).enumerate() {
                    let word = b.to_bf16_pair(pair[0], pair[1]);
                    b.plain_store(Kind::I32, b.offset(at, b.int((4 * THREADS * t) as i64)), word);
                }
            }),
            Activation::Int8 => {
                let record = b.element(row.out, row.before, ACT_GROUP_BYTES);
                self.store_codes(record, is_of_row, [group, within], values);
            }
        }
    }

    /// Quantizes a quarter of a group of the record at `record`.
    fn store_codes(
        &self,
        record: PointerValue<'c>,
        is_of_row: Val<'c>,
        [group, within]: [Val<'c>; 2],
        values: [Val<'c>; COLUMNS],
    ) {
        let b = self.b;
        let larger = |most, next| b.overloaded("llvm.smax", &[most, next]);
        // Magnitudes sort as their bits do.
        let magnitudes = values.map(|value| b.bitcast(b.overloaded("llvm.fabs", &[value]), Kind::I32));
        let most = magnitudes[1..].iter().fold(magnitudes[0], |most, &next| larger(most, next));
        let scale = b.fdiv(b.bitcast(b.max_of_four(most), Kind::F32), b.float(MAX_CODE));
        let positive = b.fcmp(FloatPredicate::OGT, scale, b.float(0.0));
        let inverse = b.select(positive, b.fdiv(b.float(1.0), scale), b.float(0.0));
        let codes = values.map(|value| b.to_int(b.overloaded("llvm.roundeven", &[b.fmul(value, inverse)]), Kind::I32));
        let sum = b.sum_of_four(codes[1..].iter().fold(codes[0], |sum, &code| b.add(sum, code)));
        b.when(is_of_row, || {
            let at = b.element(b.element(record, group, GROUP), within, COLUMNS);
            // Records begin at multiples of four bytes.
            b.plain_store(Kind::I32, at, b.low_bytes([codes[0], codes[1], codes[2], codes[3]]));
            b.plain_store(Kind::I32, b.offset(at, b.int(4)), b.low_bytes([codes[4], codes[5], codes[6], codes[7]]));
            b.when(b.icmp(IntPredicate::EQ, within, b.int(0)), || {
                let field = |bytes: usize| b.element(b.element(record, self.groups, bytes), group, 4);
                b.plain_store(Kind::F32, field(GROUP), scale);
                b.plain_store(Kind::F32, field(GROUP + 4), b.fmul(scale, b.to_float(sum, Kind::F32)));
                b.plain_store(Kind::I32, field(GROUP + 8), sum);
            });
        });
    }
}
