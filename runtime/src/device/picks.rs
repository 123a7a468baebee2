//! Rows that the step itself samples: how it is told to, and what comes back instead of logits.

use lathe_plan::program::{PickWords, Picked};

use super::{Pick, Row, RowOutput};
use crate::{math, sample::SampleParams};

/// What [`PickWords::given`] is where a token is sampled.
const SAMPLED: u32 = u32::MAX;

impl Row {
    /// How the step samples the row, if that tells all that is asked of it; else its logits are needed.
    pub(crate) fn words(&self) -> Option<PickWords> {
        if self.logits || self.top > 0 || self.rivals > 0 {
            return None;
        }
        match &self.pick {
            Pick::Given(token) => Some(PickWords { temperature: 0, given: *token, stream: [0; 2] }),
            Pick::Sample(..) if !self.edits.is_empty() => None,
            Pick::Sample(params, key) => {
                let stream = key.stream();
                let stream = [stream as u32, (stream >> 32) as u32];
                Some(PickWords { temperature: untruncated(params)?.to_bits(), given: SAMPLED, stream })
            }
        }
    }
}

/// The temperature, zero if the greatest logit is taken; `None` where unlikely tokens are left out before.
fn untruncated(params: &SampleParams) -> Option<f32> {
    if params.is_greedy() {
        return Some(0.0);
    }
    params.keeps_all().then_some(params.temperature)
}

/// What a step is told of a row whose logits are read: nothing that matters.
pub(crate) const UNUSED: PickWords = PickWords { temperature: 0, given: 0, stream: [0; 2] };

/// Reads what a step of so many rows has left in [`lathe_plan::program::Bucket::picks`]: of one row.
pub(crate) fn read(words: &[u32], rows: usize, row: usize, output: &mut RowOutput) {
    let [largest, logit, low, high] = [0, 1, 2, 3].map(|at| words[Picked::WORDS * row + at]);
    let (largest, logit) = (f32::from_bits(largest), f32::from_bits(logit));
    let total = f64::from_bits(u64::from(high) << 32 | u64::from(low));
    output.top.clear();
    output.rivals.clear();
    output.logits.clear();
    output.is_broken = !(largest.is_finite() && total.is_finite());
    (output.token, output.logprob) = (0, 0.0);
    if !output.is_broken {
        output.token = words[Picked::WORDS * rows + row];
        output.logprob = (f64::from(logit) - f64::from(largest) - math::ln(total)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Edit,
        sample::{NoiseKey, Sampler},
    };

    fn row(params: SampleParams) -> Row {
        Row { pick: Pick::Sample(params, NoiseKey { seed: 7, choice: 1, position: 9 }), ..Row::default() }
    }

    #[test]
    fn rows_of_which_more_is_asked_need_their_logits() {
        let warm = SampleParams { temperature: 0.7, ..SampleParams::default() };
        assert_eq!(row(SampleParams::default()).words().unwrap().temperature, 0);
        assert_eq!(row(SampleParams { top_k: 1, ..warm }).words().unwrap().temperature, 0);
        assert_eq!(row(warm).words().unwrap().temperature, 0.7f32.to_bits());
        assert_ne!(row(warm).words().unwrap().stream, [0; 2]);
        assert_eq!(Row { pick: Pick::Given(5), ..Row::default() }.words().unwrap().given, 5);
        let wanting = [
            row(SampleParams { top_k: 40, ..warm }),
            row(SampleParams { top_p: 0.9, ..warm }),
            row(SampleParams { min_p: 0.1, ..warm }),
            Row { edits: vec![Edit::of(3)], ..row(warm) },
            Row { top: 1, ..row(warm) },
            Row { rivals: 1, ..row(warm) },
            Row { logits: true, ..row(warm) },
        ];
        assert!(wanting.iter().all(|row| row.words().is_none()));
        // A given token's likelihood is that of the logits as they are.
        assert!(Row { edits: vec![Edit::of(3)], ..Row::default() }.words().is_some());
    }

    #[test]
    fn what_comes_back_says_what_the_logits_would() {
        let logits = [1.5f32, -2.0, 4.0, 3.5];
        let mut expected = RowOutput::default();
        row(SampleParams::default()).pick(&logits, &mut Sampler::new(4), &mut expected);
        let total = math::sum(&logits, |logit| math::exp(logit - 4.0)).to_bits();
        let words = |largest: f32, total: u64| [largest.to_bits(), 4f32.to_bits(), total as u32, (total >> 32) as u32];
        // The second of two rows; ids stand behind both.
        let all = [words(0.0, 0), words(4.0, total)].concat();
        let all = [&all[..], &[1, 2]].concat();
        let mut found = RowOutput { top: vec![(1, 1.0)], ..RowOutput::default() };
        read(&all, 2, 1, &mut found);
        assert_eq!(found, expected);
        for broken in [words(f32::INFINITY, total), words(4.0, f64::NAN.to_bits())] {
            read(&[&broken[..], &[3]].concat(), 1, 0, &mut found);
            assert!(found.is_broken && found.token == 0);
        }
    }
}
