//! Sampling as launches: bounds and sums by blocks of each row's logits, then what they say of the row.

use lathe_ir::graph::Value;
use lathe_ir::types::Dim;
use lathe_kernels::spec::{KernelSpec, SAMPLE_BLOCK, SamplePart};

use super::super::{Buffer, ScheduleError, Share, times};
use super::Lowering;

impl Lowering<'_> {
    /// Lowers the sampling of all rows of `logits`, which lie in a buffer; where the tokens are then.
    pub(super) fn sample(&mut self, value: Value, logits: Buffer) -> Result<Buffer, ScheduleError> {
        let (rows, vocabulary) = self.shape(value);
        let stride = self.padded.get(&value).copied().unwrap_or(vocabulary);
        let blocks = vocabulary.c.div_ceil(SAMPLE_BLOCK);
        let params = [rows, vocabulary, stride, Dim::of(blocks)];
        let mut operands = vec![logits, Buffer::Picks];
        for (label, part, units) in [
            ("sampling, bounds", SamplePart::Bounds, times(rows, blocks)),
            ("sampling, sums", SamplePart::Sums, times(rows, blocks)),
            ("sampling", SamplePart::Merge, rows),
        ] {
            let out = self.launch(label, KernelSpec::Sample(part), &operands, params.to_vec(), units, Share::Even)?;
            operands.push(out);
        }
        Ok(operands[operands.len() - 1])
    }
}
