//! Nothing out of range passes [`Step::check`].

use super::*;

fn limits() -> Limits {
    Limits {
        max: StepSize { tokens: 4, sequences: 2, rows: 2 },
        vocabulary: 10,
        max_context: 20,
        groups: vec![GroupLimits { page_tokens: 8, pages: 5, window: None }],
    }
}

/// Two sequences: positions 7 and 8 of one, 0 and 1 of the other.
fn step() -> Step {
    let mut step = Step::default();
    step.clear(1);
    step.push_sequence([StepToken::Known(1), StepToken::Known(9)], 7, [&[3, 4][..]]);
    step.push_sequence([StepToken::Known(0), StepToken::Known(2)], 0, [&[0][..]]);
    let pick = Pick::Sample(SampleParams::default(), NoiseKey::default());
    step.rows.push(Row { token: 1, pick, ..Row::default() });
    step.rows.push(Row { token: 3, pick: Pick::Given(9), ..Row::default() });
    step
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Step), words: &str) {
    let mut step = step();
    change(&mut step);
    let error = step.check(&limits()).expect_err(words).to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn a_sound_step_passes() {
    step().check(&limits()).unwrap();
    assert_eq!(step().size(), StepSize { tokens: 4, sequences: 2, rows: 2 });
    assert_eq!(step().clone(), step());
}

#[test]
fn what_is_out_of_range_is_refused() {
    refused(|step| step.clear(1), "no tokens");
    refused(|step| step.tokens[2] = StepToken::Known(10), "token 2 of the step is 10");
    refused(|step| step.positions[3] = 20, "position of token 3");
    refused(|step| step.positions[3] = 8, "pages of its sequence end at 8");
    refused(|step| step.positions[1] = 7, "must rise");
    refused(|step| step.sequences[3] = 2, "sequence of token 3");
    refused(|step| step.sequences[2] = 0, "must rise");
    refused(|step| step.sequences[0] = 1, "must rise");
    refused(|step| step.sequences[1] = 1, "end at 8");
    refused(|step| step.rows[1].token = 4, "token index of row 1");
    refused(|step| step.rows[1].pick = Pick::Given(10), "given token of row 1");
    refused(|step| step.rows.push(step.rows[0].clone()), "3 rows");
    refused(|step| step.block_tables[0].pages[2] = 5, "page 2 of the step is 5");
    refused(|step| step.block_tables[0].push(&[1]), "3 sequences");
    refused(|step| step.block_tables.clear(), "0 cache groups");
    refused(|step| step.copies.push(PageCopy { group: 1, from: 0, to: 0 }), "cache group of copy 0");
    refused(|step| step.copies.push(PageCopy { group: 0, from: 5, to: 0 }), "source page");
    refused(|step| step.copies.push(PageCopy { group: 0, from: 0, to: 5 }), "target page");
    refused(|step| step.positions.truncate(3), "3 positions");
    refused(|step| step.sequences.truncate(3), "3 sequence indices");
    refused(|step| step.push_sequence([StepToken::Known(1)], 0, [&[1, 2, 3, 4][..]]), "5 tokens");
    refused(
        |step| {
            step.clear(1);
            step.push_sequence([StepToken::Known(1)], 0, [&[1, 2, 3, 4][..]]);
        },
        "4 pages in a block table",
    );
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let params = SampleParams { temperature: 0.1, ..SampleParams::default() };
    let pick = Pick::Sample(params, NoiseKey::default());
    let row = Row { pick, top: 2, logits: true, ..Row::default() };
    let logits = [1.0f32, 3.0, 2.0, f32::NEG_INFINITY];
    let mut output = RowOutput::default();
    row.pick(&logits, &mut Sampler::default(), &mut output);
    assert!(!output.is_broken);
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let wanted = |logit: f64| (logit - total.ln()) as f32;
    assert_eq!(output.logits, logits);
    assert!((output.logprob - wanted(f64::from(logits[output.token as usize]))).abs() < 1e-6);
    assert_eq!(output.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    assert!((output.top[1].1 - wanted(2.0)).abs() < 1e-6);
    for broken in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
        row.pick(broken, &mut Sampler::default(), &mut output);
        assert!(output.is_broken && output.logits.is_empty() && output.top.is_empty(), "{broken:?}");
    }
}

#[test]
fn rivals_are_what_would_be_without_the_tokens_before_them() {
    let logits: Vec<f32> = (0..40).map(|n| (n * 7 % 40) as f32 / 8.0).collect();
    let check = |params: SampleParams, edits: &[Edit]| {
        let key = NoiseKey { seed: 5, choice: 1, position: 9 };
        let row = |edits: Vec<Edit>, rivals| Row { pick: Pick::Sample(params, key), edits, rivals, ..Row::default() };
        let (mut sampler, mut found, mut alone) = (Sampler::default(), RowOutput::default(), RowOutput::default());
        row(edits.to_vec(), 3).pick(&logits, &mut sampler, &mut found);
        let mut without = edits.to_vec();
        let tokens = std::iter::once(found.token).chain(found.rivals.iter().map(|(token, _)| *token));
        for token in tokens {
            row(without.clone(), 0).pick(&logits, &mut sampler, &mut alone);
            assert_eq!(token, alone.token, "{params:?}");
            without.retain(|edit| edit.token != token);
            without.push(Edit { add: f32::NEG_INFINITY, ..Edit::of(token) });
        }
        found.rivals
    };
    // Greedy, the logits go down by an eighth each: 7 n mod 40 is 38, 37 and 36 for these.
    let greedy = check(SampleParams::default(), &[]);
    assert_eq!(greedy.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [34, 11, 28]);
    assert!((greedy[0].1 - greedy[1].1 - 0.125).abs() < 1e-6);
    check(SampleParams { temperature: 0.8, ..SampleParams::default() }, &[]);
    check(
        SampleParams { temperature: 1.0, top_p: 0.9, ..SampleParams::default() },
        &[Edit { add: 9.0, ..Edit::of(3) }],
    );
    // Two tokens are not forbidden, and so there is one rival.
    let forbidden: Vec<Edit> = (2..40).map(|token| Edit { add: f32::NEG_INFINITY, ..Edit::of(token) }).collect();
    assert_eq!(check(SampleParams::default(), &forbidden).len(), 1);
}
