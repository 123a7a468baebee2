//! Whole graphs over steps: caches carry over, and how a request is cut into steps changes nothing.

use lathe_ir::eval::{Caches, EvalError, StepInputs, Tensor, evaluate};
use lathe_ir::parse::parse;
use lathe_ir::scheme::Scheme;

use crate::fixtures::{VOCAB, decoder, logits, weights};

const PROMPT: [i32; 7] = [3, 1, 4, 1, 5, 9, 2];

#[test]
fn chunks_of_a_prompt_give_the_same_logits() {
    let graph = decoder(2, Scheme::INT4);
    let whole = logits(&graph, &StepInputs::sequence(0, 0, &PROMPT), &mut Caches::new());
    assert_eq!(whole.len(), VOCAB);
    for chunk in [1, 2, 5] {
        let mut caches = Caches::new();
        let mut last = Vec::new();
        for (at, tokens) in PROMPT.chunks(chunk).enumerate() {
            last = logits(&graph, &StepInputs::sequence(0, (at * chunk) as i32, tokens), &mut caches);
        }
        assert_eq!(last, whole, "chunks of {chunk}");
    }
}

#[test]
fn sequences_of_a_step_do_not_see_each_other() {
    let graph = decoder(2, Scheme::INT8);
    let alone = |tokens: &[i32]| logits(&graph, &StepInputs::sequence(0, 0, tokens), &mut Caches::new());
    let step = StepInputs {
        tokens: vec![3, 7, 1, 8, 4],
        positions: vec![0, 0, 1, 1, 2],
        sequences: vec![0, 1, 0, 1, 0],
        rows: vec![3, 4],
    };
    let both = logits(&graph, &step, &mut Caches::new());
    assert_eq!(both, [alone(&[7, 8]), alone(&[3, 1, 4])].concat());
    assert_ne!(both[..VOCAB], both[VOCAB..]);
}

#[test]
fn an_earlier_token_changes_later_logits() {
    let graph = decoder(1, Scheme::F32);
    let run = |first| logits(&graph, &StepInputs::sequence(0, 0, &[first, 5]), &mut Caches::new());
    assert_ne!(run(1), run(2));
}

#[test]
fn errors_name_what_went_wrong() {
    let graph = decoder(1, Scheme::F32);
    let run = |step: &StepInputs| evaluate(&graph, &weights, step, &mut Caches::new()).unwrap_err().to_string();
    let mut step = StepInputs::sequence(0, 0, &[1, 2]);
    step.positions.pop();
    assert_eq!(run(&step), "step input 'positions' has 1 entries, expected 2 (one per token)");
    let text = run(&StepInputs::sequence(0, 0, &[99]));
    assert!(text.starts_with("in embed (node ") && text.ends_with("token is 99, expected 0 to 80 exclusive"), "{text}");
    let text = run(&StepInputs::sequence(0, 3, &[1]));
    assert!(text.contains("sequence 0 has no cached token at position 0"), "{text}");

    let step = StepInputs::sequence(0, 0, &[1]);
    let missing = evaluate(&graph, &|_, _| Err("no such tensor".to_string()), &step, &mut Caches::new());
    assert_eq!(missing, Err(EvalError::Weight { name: "embd".to_string(), message: "no such tensor".to_string() }));
    let short = evaluate(&graph, &|_, _| Ok(Tensor::f32(vec![1], vec![0.0])), &step, &mut Caches::new()).unwrap_err();
    assert_eq!(short.to_string(), "embd: expected shape [80, 64] for f32[80, 64], found [1]");
}

#[test]
fn an_unused_cache_stays_empty() {
    let text = "graph g(%tokens: i32[T]) {\n  @t: f32[8, 4] = \"t\"\n  cache $kv: cache<f16, 1x4>\n  \
                %0 = embed %tokens, @t : f32[T, 4]\n  return y = %0\n}\n";
    let mut caches = Caches::new();
    evaluate(&parse(text).unwrap(), &weights, &StepInputs::sequence(0, 0, &[1]), &mut caches).unwrap();
    assert!(caches["kv"].visible(0, 0, None).is_err());
}
