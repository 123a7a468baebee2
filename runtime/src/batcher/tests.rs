//! Refusals of the batcher; its simulations are in the engine's tests.

use lathe_plan::program::StepSize;

use super::*;
use crate::device::GroupLimits;

fn batcher(context: u32, pages: u32) -> Batcher {
    let limits = Limits {
        max: StepSize { tokens: 8, sequences: 4, rows: 4 },
        vocabulary: 50,
        max_context: context,
        groups: vec![GroupLimits { page_tokens: 4, pages }],
    };
    Batcher::new(&limits, BatchOptions { prefill_chunk: 8, token_budget: 8 })
}

fn request(prompt: usize, max_tokens: Option<usize>) -> Request {
    Request { tokens: vec![1; prompt], max_tokens, ..Request::default() }
}

#[test]
fn a_request_that_never_fits_is_refused_at_once() {
    let mut batcher = batcher(100, 5);
    assert!(matches!(batcher.submit(request(0, None)), Err(Error::EmptyPrompt)));
    assert!(batcher.submit(request(15, Some(5))).is_ok());
    let error = batcher.submit(request(15, Some(6))).unwrap_err().to_string();
    assert!(
        error.contains("needs 21 positions") && error.contains("20 are available") && error.contains("cache"),
        "{error}"
    );
    assert!(batcher.submit(request(usize::MAX >> 50, None)).is_err());
    assert!(batcher.submit(request(1, Some(usize::MAX))).is_err());
    assert_eq!(batcher.unfinished(), 1);
}

#[test]
fn the_context_limits_too() {
    let mut batcher = batcher(10, 100);
    assert!(batcher.submit(request(9, None)).is_ok());
    let error = batcher.submit(request(10, None)).unwrap_err().to_string();
    assert!(error.contains("needs 11") && error.contains("context"), "{error}");
}

#[test]
fn unknown_tokens_and_bad_parameters_are_refused() {
    let mut batcher = batcher(10, 100);
    let unknown = Request { tokens: vec![1, 50], ..Request::default() };
    assert!(matches!(batcher.submit(unknown), Err(Error::UnknownToken { index: 1, token: 50, vocabulary: 50 })));
    let sampling = SampleParams { top_p: -1.0, ..SampleParams::default() };
    assert!(matches!(batcher.submit(Request { sampling, ..request(1, None) }), Err(Error::Sampling { .. })));
}

#[test]
fn answers_in_progress_go_before_prompts() {
    let mut batcher = batcher(100, 100);
    let mut step = Step::default();
    let mut events = Vec::new();
    let short = batcher.submit(request(2, None)).unwrap();
    batcher.admit(&mut events);
    assert!(batcher.compose(&mut step));
    let row = RowOutput { token: 3, ..RowOutput::default() };
    batcher.retire(&StepOutput { rows: vec![row] }, &mut events);
    assert!(matches!(events[..], [Event::Token { request, token: 3, .. }] if request == short));

    batcher.submit(request(30, None)).unwrap();
    batcher.admit(&mut events);
    assert!(batcher.compose(&mut step));
    // One token of the answer and seven of the new prompt fill the budget of eight.
    assert_eq!(step.tokens[0], StepToken::Known(3));
    assert_eq!(step.positions, [2, 0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(step.sequences, [0, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(step.rows.len(), 1);
}

#[test]
fn no_tokens_wanted_means_none_given() {
    let mut batcher = batcher(100, 100);
    let id = batcher.submit(request(3, Some(0))).unwrap();
    let mut events = Vec::new();
    batcher.admit(&mut events);
    assert_eq!(events, [Event::Finished { request: id, reason: FinishReason::Length }]);
    assert!(!batcher.compose(&mut Step::default()));
}
