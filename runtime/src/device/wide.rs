//! Picking tokens in code for wide vectors, where the CPU has them. The operations and their order are those of the plain code,
//! and the compiler joins no multiplication with an addition, so the bits are the same.

#![expect(unsafe_code, reason = "code for features that not every CPU has")]

use std::arch::is_x86_feature_detected;

use super::{Row, RowOutput};
use crate::sample::Sampler;

/// [`Row::pick`], at the width of this CPU.
pub fn pick(row: &Row, logits: &[f32], sampler: &mut Sampler, output: &mut RowOutput) {
    if is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512vl")
    {
        sampler.use_vectors();
        // SAFETY: the features were asked for.
        unsafe { pick_512(row, logits, sampler, output) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was asked for.
        unsafe { pick_256(row, logits, sampler, output) };
    } else {
        row.pick(logits, sampler, output);
    }
}

/// With products and leading zeros of 64-bit integers in vectors, which the sampling noise is made of.
#[target_feature(enable = "avx512f,avx512dq,avx512cd,avx512vl,avx2")]
fn pick_512(row: &Row, logits: &[f32], sampler: &mut Sampler, output: &mut RowOutput) {
    row.pick(logits, sampler, output);
}

#[target_feature(enable = "avx2")]
fn pick_256(row: &Row, logits: &[f32], sampler: &mut Sampler, output: &mut RowOutput) {
    row.pick(logits, sampler, output);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Pick,
        sample::{NoiseKey, SampleParams, mix},
    };

    #[test]
    fn every_width_gives_the_same_bits() {
        let logits: Vec<f32> = (0..5003u64).map(|token| (mix(token) % 65_521) as f32 / 4096.0).collect();
        let base = SampleParams { temperature: 0.8, ..SampleParams::default() };
        let ways = [
            SampleParams::default(),
            base,
            SampleParams { top_k: 40, ..base },
            SampleParams { top_p: 0.95, ..base },
            SampleParams { min_p: 0.1, ..base },
        ];
        for (params, position) in ways.into_iter().cycle().zip(0..100) {
            let pick = Pick::Sample(params, NoiseKey { seed: 9, choice: 0, position });
            let row = Row { pick, top: 5, ..Row::default() };
            let mut outputs = [RowOutput::default(), RowOutput::default(), RowOutput::default()];
            let sampler = || Sampler::new(logits.len());
            row.pick(&logits, &mut sampler(), &mut outputs[0]);
            assert!(!outputs[0].is_broken);
            super::pick(&row, &logits, &mut sampler(), &mut outputs[1]);
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the feature was asked for.
                unsafe { pick_256(&row, &logits, &mut sampler(), &mut outputs[2]) };
                assert_eq!(outputs[2], outputs[0], "{params:?}");
            }
            assert_eq!(outputs[1], outputs[0], "{params:?}");
        }
    }
}
