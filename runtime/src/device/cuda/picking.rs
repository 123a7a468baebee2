//! Picks the rows of a finished step on the host: one thread for a few of them, more where there are many.

use std::thread;

use crate::{
    device::{Row, RowOutput, wide},
    sample::Sampler,
};

/// Rows that are worth a thread: starting one takes as long as picking from a few thousand logits.
const ROWS_OF_A_THREAD: usize = 2;
/// Most threads: beyond, memory limits them.
const MOST_THREADS: usize = 8;

/// Threads' worth of samplers.
#[derive(Debug)]
pub struct Pickers {
    vocabulary: usize,
    samplers: Vec<Sampler>, // [threads]
}

impl Pickers {
    /// As many as the process may use.
    pub fn new(vocabulary: usize) -> Pickers {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        Pickers { vocabulary, samplers: (0..threads).map(|_| Sampler::new(vocabulary)).collect() }
    }

    /// Picks a token for each row from its logits, the first of these.
    pub fn pick(&mut self, mut rows: Vec<(&Row, &[f32], &mut RowOutput)>) {
        let vocabulary = self.vocabulary;
        let share = rows.len().div_ceil(self.samplers.len()).max(ROWS_OF_A_THREAD);
        let pick = |rows: &mut [(&Row, &[f32], &mut RowOutput)], sampler: &mut Sampler| {
            for (row, logits, output) in rows {
                wide::pick(row, &logits[..vocabulary], sampler, output);
            }
        };
        let mut work = rows.chunks_mut(share).zip(&mut self.samplers);
        let own = work.next();
        thread::scope(|scope| {
            for (share, sampler) in work {
                scope.spawn(move || pick(share, sampler));
            }
            if let Some((share, sampler)) = own {
                pick(share, sampler);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Pick,
        sample::{NoiseKey, SampleParams, mix},
    };

    #[test]
    fn every_row_is_picked_from_its_own_logits_however_many_there_are() {
        let (vocabulary, stride) = (500, 512);
        for count in [0, 1, 2, 3, 17, 64] {
            let logits: Vec<f32> = (0..count * stride).map(|at| (mix(at as u64) % 65_521) as f32 / 4096.0).collect();
            let params = SampleParams { temperature: 0.9, ..SampleParams::default() };
            let row = |position| {
                let pick = Pick::Sample(params, NoiseKey { seed: 3, choice: 0, position });
                Row { pick, top: 2, ..Row::default() }
            };
            let rows: Vec<Row> = (0..count as u32).map(row).collect();
            let mut outputs = vec![RowOutput::default(); count];
            let of_rows = rows.iter().zip(logits.chunks(stride)).zip(&mut outputs);
            Pickers::new(vocabulary).pick(of_rows.map(|((row, logits), output)| (row, logits, output)).collect());
            for ((row, logits), output) in rows.iter().zip(logits.chunks(stride)).zip(&outputs) {
                let mut alone = RowOutput::default();
                row.pick(&logits[..vocabulary], &mut Sampler::new(vocabulary), &mut alone);
                assert_eq!(*output, alone);
            }
        }
    }
}
