//! Kept sets by hand, distributions by counting with fixed seeds.

use std::collections::BTreeSet;

use super::*;

const BASE: SampleParams = SampleParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Logits of these probabilities.
fn logits(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

/// The tokens that sampling at many positions ever gives.
fn drawn(logits: &[f32], params: SampleParams) -> BTreeSet<u32> {
    let mut sampler = Sampler::new(logits.len());
    (0..4000).map(|position| sampler.sample(logits, &params, NoiseKey { seed: 3, choice: 0, position })).collect()
}

#[track_caller]
fn check_kept(params: SampleParams, wanted: &[u32]) {
    let logits = logits(&[0.05, 0.4, 0.1, 0.25, 0.2]);
    let mut sampler = Sampler::new(logits.len());
    sampler.keep(&logits, &params);
    assert_eq!(sampler.kept.iter().copied().collect::<BTreeSet<_>>(), wanted.iter().copied().collect());
    assert_eq!(drawn(&logits, params), wanted.iter().copied().collect(), "the draw must give just the kept tokens");
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0], 3.0), 1);
    assert_eq!(greedy(&[0.0, -0.0], 0.0), 0);
    assert_eq!(greedy(&[-0.0, 0.0], 0.0), 0);
    assert_eq!(greedy(&[f32::NEG_INFINITY, f32::NEG_INFINITY, -5.0], -5.0), 2);
    let params = SampleParams { top_k: 1, ..BASE };
    assert_eq!(Sampler::default().sample(&[1.0, 3.0, 3.0], &params, NoiseKey::default()), 1);
}

#[test]
fn top_k_keeps_the_greatest() {
    check_kept(SampleParams { top_k: 2, ..BASE }, &[1, 3]);
    check_kept(SampleParams { top_k: 4, ..BASE }, &[1, 2, 3, 4]);
    check_kept(SampleParams { top_k: 9, ..BASE }, &[0, 1, 2, 3, 4]);
}

#[test]
fn top_k_ties_go_to_the_lower_id() {
    let mut sampler = Sampler::default();
    sampler.keep(&[1.0, 2.0, 2.0, 2.0], &SampleParams { top_k: 2, ..BASE });
    assert_eq!(sampler.kept.iter().copied().collect::<BTreeSet<_>>(), [1, 2].into());
}

#[test]
fn top_p_keeps_the_shortest_prefix_that_reaches_it() {
    check_kept(SampleParams { top_p: 0.3, ..BASE }, &[1]);
    check_kept(SampleParams { top_p: 0.5, ..BASE }, &[1, 3]);
    check_kept(SampleParams { top_p: 0.7, ..BASE }, &[1, 3, 4]);
    check_kept(SampleParams { top_p: 0.9, ..BASE }, &[1, 2, 3, 4]);
    check_kept(SampleParams { top_p: 1e-9, ..BASE }, &[1]);
}

#[test]
fn top_p_counts_what_top_k_left() {
    // Of 0.4 and 0.25, renormalized, the first alone is 0.615.
    check_kept(SampleParams { top_k: 2, top_p: 0.6, ..BASE }, &[1]);
    check_kept(SampleParams { top_k: 2, top_p: 0.63, ..BASE }, &[1, 3]);
}

#[test]
fn top_p_counts_at_the_temperature() {
    // At temperature 0.5 the probabilities are squared: 0.16, 0.0625, 0.04, 0.01, 0.0025 of 0.275.
    check_kept(SampleParams { temperature: 0.5, top_p: 0.57, ..BASE }, &[1]);
    check_kept(SampleParams { temperature: 0.5, top_p: 0.8, ..BASE }, &[1, 3]);
}

#[test]
fn top_p_finds_a_long_prefix() {
    let mut sampler = Sampler::default();
    sampler.keep(&[0.0; 3000], &SampleParams { top_p: 0.5, ..BASE });
    assert_eq!(sampler.kept, (0..1500).collect::<Vec<u32>>());
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    check_kept(SampleParams { min_p: 0.45, ..BASE }, &[1, 3, 4]);
    check_kept(SampleParams { min_p: 0.55, ..BASE }, &[1, 3]);
    check_kept(SampleParams { min_p: 1.0, ..BASE }, &[1]);
}

#[test]
fn the_same_key_gives_the_same_token_and_any_other_key_other_noise() {
    let logits = vec![0.0; 1000];
    let token = |seed, choice, position| Sampler::default().sample(&logits, &BASE, NoiseKey { seed, choice, position });
    for position in 0..50 {
        assert_eq!(token(1, 0, position), token(1, 0, position));
    }
    let differs = |other: &dyn Fn(u32) -> u32| (0..50).filter(|&p| other(p) != token(1, 0, p)).count();
    assert!(differs(&|p| token(2, 0, p)) > 40);
    assert!(differs(&|p| token(1, 1, p)) > 40);
    assert!(differs(&|p| token(1, 0, p + 1)) > 40);
}

#[test]
fn noise_does_not_depend_on_which_tokens_are_kept() {
    // The winner among all tokens wins among any subset that has it.
    let logits: Vec<f32> = (0..500u64).map(|token| (mix(token) % 1000) as f32 / 250.0).collect();
    let mut kept = 0;
    for position in 0..300 {
        let key = NoiseKey { seed: 7, choice: 0, position };
        let all = Sampler::default().sample(&logits, &BASE, key);
        let params = SampleParams { top_k: 250, ..BASE };
        let mut sampler = Sampler::default();
        let some = sampler.sample(&logits, &params, key);
        if sampler.kept.contains(&all) {
            kept += 1;
            assert_eq!(some, all);
        }
    }
    assert!(kept > 200, "only {kept} draws were compared");
}

#[test]
fn the_shortcut_for_hopeless_tokens_changes_nothing() {
    let logits: Vec<f32> = (0..2000u64).map(|token| (mix(token ^ 0x63) % 4096) as f32 / 256.0).collect();
    for position in 0..200 {
        let stream = NoiseKey { seed: 5, choice: 2, position }.stream();
        // Against all noise computed, in the opposite order.
        let score = |token: u32| {
            let hash = mix(stream ^ u64::from(token).wrapping_mul(0xd6e8_feb8_6659_fd93));
            f64::from(logits[token as usize]) / 0.5 + gumbel(hash)
        };
        let wanted = (0..2000).rev().max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap();
        assert_eq!(draw(0..2000, &logits, 0.5, stream), wanted);
        assert_eq!(draw_from_all(&logits, 0.5, stream), wanted);
    }
}

#[test]
fn a_draw_from_all_never_gives_what_is_forbidden() {
    let mut logits = vec![f32::NEG_INFINITY; 200];
    logits[130] = -50.0;
    logits[7] = -1e30;
    for position in 0..100 {
        assert_eq!(draw_from_all(&logits, 1.0, NoiseKey { seed: 1, choice: 0, position }.stream()), 130);
    }
}

#[test]
fn kept_tokens_are_those_that_the_definitions_keep() {
    let count = 5000;
    let logits: Vec<f32> = (0..count).map(|token| (mix(token ^ 0x51) % 3000) as f32 / 200.0).collect();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    for (temperature, top_k, top_p, min_p) in [
        (0.7, 0, 0.9, 0.0),
        (3.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.01, 0, 1.0, 0.5),
        (1.0, 0, 0.8, 0.3),
        (1.0, 300, 0.95, 0.01),
        (2.0, 4000, 1.0, 0.0),
    ] {
        let params = SampleParams { temperature, top_k, top_p, min_p };
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let weight = |token: u32| (f64::from(logits[token as usize] - max) / f64::from(temperature)).exp();
        let wanted = f64::from(top_p) * order.iter().map(|&token| weight(token)).sum::<f64>();
        let mut reached = 0.0;
        let in_prefix = order.iter().take_while(|&&token| {
            let is_short = reached < wanted;
            reached += weight(token);
            is_short
        });
        let mut expected: Vec<u32> = in_prefix.copied().filter(|&token| weight(token) >= f64::from(min_p)).collect();
        let mut sampler = Sampler::new(logits.len());
        sampler.keep(&logits, &params);
        expected.sort_unstable();
        sampler.kept.sort_unstable();
        assert_eq!(sampler.kept, expected, "{params:?}");
    }
}

#[test]
fn draws_follow_the_softmax() {
    const DRAWS: u32 = 40_000;
    for temperature in [0.5, 1.0, 2.0] {
        let base = [0.05f64, 0.4, 0.1, 0.25, 0.2];
        let powers = base.map(|p| p.powf(1.0 / f64::from(temperature)));
        let total: f64 = powers.iter().sum();
        let params = SampleParams { temperature, ..BASE };
        let (logits, mut sampler, mut counts) = (logits(&base), Sampler::default(), [0u32; 5]);
        for position in 0..DRAWS {
            counts[sampler.sample(&logits, &params, NoiseKey { seed: 11, choice: 0, position }) as usize] += 1;
        }
        for (power, count) in powers.iter().zip(counts) {
            let p = power / total;
            let found = f64::from(count) / f64::from(DRAWS);
            // Five standard deviations; the seed is fixed, so this either always passes or never.
            let bound = 5.0 * (p * (1.0 - p) / f64::from(DRAWS)).sqrt();
            assert!((found - p).abs() < bound, "temperature {temperature}: {found} instead of {p}");
        }
    }
}

#[test]
fn gumbel_noise_is_finite_at_both_ends() {
    assert!(gumbel(0).is_finite() && gumbel(0) > 30.0);
    assert!(gumbel(u64::MAX).is_finite() && gumbel(u64::MAX) < -3.0);
}

#[test]
fn top_lists_the_likeliest_in_order() {
    let mut sampler = Sampler::default();
    assert_eq!(sampler.top(&[1.0, 4.0, 4.0, 2.0], 3), [1, 2, 3]);
    assert_eq!(sampler.top(&[1.0, 4.0], 9), [1, 0]);
    assert_eq!(sampler.top(&[1.0, 4.0], 0), [0u32; 0]);
}

#[test]
fn parameters_out_of_range_are_refused() {
    let refused = |params: SampleParams, name| {
        let error = params.check().unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    };
    refused(SampleParams { temperature: -1.0, ..BASE }, "temperature");
    refused(SampleParams { temperature: f32::NAN, ..BASE }, "temperature");
    refused(SampleParams { top_p: 0.0, ..BASE }, "top-p");
    refused(SampleParams { top_p: 1.1, ..BASE }, "top-p");
    refused(SampleParams { min_p: f32::NAN, ..BASE }, "min-p");
    assert!(SampleParams::default().check().is_ok());
}
