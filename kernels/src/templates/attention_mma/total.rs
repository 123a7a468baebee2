//! Merging the splits of a history, in order and with the arithmetic of [`super::super::attention_block`].

use super::{Kernel, State};
use crate::llvm::builder::{Builder, Val};
use crate::llvm::memory::Var;

/// What splits merge to. Sums of values of large heads would take registers that the split at hand needs: they lie where
/// the result goes.
pub(super) struct Total<'c> {
    max: [Var<'c>; 2],
    pub(super) sum: [Var<'c>; 2],
    pub(super) values: Option<Vec<[Var<'c>; 8]>>,
}

impl<'c> Total<'c> {
    /// Most pairs of a head whose totals stay in registers.
    const MOST_PAIRS: usize = 4;

    pub(super) fn new(kernel: &Kernel<'_, 'c>) -> Total<'c> {
        let State { max, sum, values } = kernel.start();
        Total { max, sum, values: (values.len() <= Self::MOST_PAIRS).then_some(values) }
    }

    /// Merges a finished split, of one of this thread's rows: what the total and the split are multiplied with.
    pub(super) fn merge(&self, kernel: &Kernel<'_, 'c>, split: &State<'c>, row: usize) -> [Val<'c>; 2] {
        let b = kernel.b;
        let (old, other) = (b.get(self.max[row]), b.get(split.max[row]));
        let new = b.fmax(old, other);
        let shift = kernel.finite(new);
        let shares = [old, other].map(|max| b.exp(b.fsub(max, shift)));
        let combine = |total: Var<'c>, split: Var<'c>| b.set(total, combined(b, b.get(total), b.get(split), shares));
        combine(self.sum[row], split.sum[row]);
        for (total, split) in self.values.iter().flatten().zip(&split.values) {
            let of_row = |values: &[Var<'c>; 8]| [0, 1, 4, 5].map(|i| values[i + 2 * row]);
            of_row(total).into_iter().zip(of_row(split)).for_each(|(total, split)| combine(total, split));
        }
        b.set(self.max[row], new);
        shares
    }
}

/// A total after a split.
pub(super) fn combined<'c>(b: &Builder<'c>, total: Val<'c>, split: Val<'c>, [keep, take]: [Val<'c>; 2]) -> Val<'c> {
    b.fma(split, take, b.fmul(total, keep))
}
