//! Refusals of the batcher; its simulations are in the engine's tests.

use lathe_plan::program::StepSize;

use super::*;
use crate::device::{GroupLimits, RowOutput, StepToken};
use crate::sample::SampleParams;

const NOW: Duration = Duration::from_secs(100);

fn batcher(context: u32, pages: u32) -> Batcher {
    let limits = Limits {
        max: StepSize { tokens: 8, sequences: 4, rows: 4 },
        vocabulary: 50,
        max_context: context,
        groups: vec![GroupLimits { page_tokens: 4, pages, window: None }],
    };
    Batcher::new(&limits, BatchOptions::default())
}

fn request(prompt: usize, max_tokens: Option<usize>) -> Request {
    Request { tokens: vec![1; prompt], max_tokens, ..Request::default() }
}

#[test]
fn a_request_that_never_fits_is_refused_at_once() {
    let mut batcher = batcher(100, 5);
    assert!(matches!(batcher.submit(NOW, request(0, None)), Err(Error::EmptyPrompt)));
    assert!(batcher.submit(NOW, request(15, Some(5))).is_ok());
    let error = batcher.submit(NOW, request(15, Some(6))).unwrap_err().to_string();
    assert!(
        error.contains("needs 21 positions") && error.contains("20 are available") && error.contains("cache"),
        "{error}"
    );
    assert!(batcher.submit(NOW, request(usize::MAX >> 50, None)).is_err());
    assert!(batcher.submit(NOW, request(1, Some(usize::MAX))).is_err());
    assert_eq!(batcher.unfinished(), 1);
}

#[test]
fn the_context_limits_too() {
    let mut batcher = batcher(10, 100);
    assert!(batcher.submit(NOW, request(9, None)).is_ok());
    let error = batcher.submit(NOW, request(10, None)).unwrap_err().to_string();
    assert!(error.contains("needs 11") && error.contains("context"), "{error}");
}

#[test]
fn unknown_tokens_and_bad_parameters_are_refused() {
    let mut batcher = batcher(10, 100);
    let unknown = Request { tokens: vec![1, 50], ..Request::default() };
    assert!(matches!(batcher.submit(NOW, unknown), Err(Error::UnknownToken { index: 1, token: 50, vocabulary: 50 })));
    let sampling = SampleParams { top_p: -1.0, ..SampleParams::default() };
    assert!(matches!(batcher.submit(NOW, Request { sampling, ..request(1, None) }), Err(Error::Sampling { .. })));
}

#[test]
fn answers_in_progress_go_before_prompts() {
    let mut batcher = batcher(100, 100);
    let mut step = Step::default();
    let mut events = Vec::new();
    let short = batcher.submit(NOW, request(2, None)).unwrap();
    batcher.admit(NOW, &mut events);
    assert!(batcher.compose(&mut step));
    let row = RowOutput { token: 3, ..RowOutput::default() };
    batcher.retire(Duration::from_millis(1), &StepOutput { rows: vec![row] }, &mut events);
    assert!(matches!(events[..], [Event::Started { .. }, Event::Token { request, token: 3, .. }] if request == short));

    batcher.submit(NOW, request(30, None)).unwrap();
    batcher.admit(NOW, &mut events);
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
    let id = batcher.submit(NOW, request(3, Some(0))).unwrap();
    let mut events = Vec::new();
    batcher.admit(NOW, &mut events);
    assert_eq!(events, [Event::Finished { request: id, choice: 0, reason: FinishReason::Length }]);
    assert!(!batcher.compose(&mut Step::default()));
}

#[test]
fn a_full_queue_refuses_and_an_empty_one_takes_anything() {
    let limits = batcher(100, 100).limits;
    let options = BatchOptions { max_waiting: 2, max_waiting_tokens: 10, ..BatchOptions::default() };
    let mut batcher = Batcher::new(&limits, options);
    assert!(batcher.submit(NOW, request(30, None)).is_ok());
    let error = batcher.submit(NOW, request(1, None)).unwrap_err();
    assert!(matches!(error, Error::QueueFull { requests: 1, tokens: 30 }), "{error}");
    batcher.admit(NOW, &mut Vec::new());
    assert!(batcher.submit(NOW, request(4, None)).is_ok());
    assert!(batcher.submit(NOW, request(4, None)).is_ok());
    assert!(matches!(batcher.submit(NOW, request(1, None)), Err(Error::QueueFull { requests: 2, tokens: 8 })));
}

#[test]
fn a_deadline_that_will_be_missed_is_refused_with_the_prediction() {
    let limits = batcher(100, 100).limits;
    let options = BatchOptions { policy: Policy::Deadline, ..BatchOptions::default() };
    let mut batcher = Batcher::new(&limits, options);
    for _ in 0..20 {
        batcher.predictor.learn(Load::of(0, 1), Duration::from_millis(10));
        batcher.predictor.learn(Load::of(0, 8), Duration::from_millis(17));
    }
    let ask =
        |milliseconds| Request { deadline: Some(NOW + Duration::from_millis(milliseconds)), ..request(1, Some(51)) };
    // The first token takes one step of 10 ms and the others 50 more.
    assert!(batcher.submit(NOW, ask(600)).is_ok());
    batcher.cancel(RequestId(0), None);
    batcher.admit(NOW, &mut Vec::new());
    match batcher.submit(NOW, ask(300)) {
        Err(Error::Late { predicted, allowed }) => {
            assert!(predicted.as_secs_f64() > 0.45 && predicted.as_secs_f64() < 0.6, "{predicted:?}");
            assert_eq!(allowed, Duration::from_millis(300));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_ends_at_its_deadline() {
    let mut batcher = batcher(100, 100);
    let late = Request { deadline: Some(NOW + Duration::from_secs(1)), ..request(1, None) };
    let request = batcher.submit(NOW, late).unwrap();
    let mut events = Vec::new();
    batcher.admit(NOW + Duration::from_millis(999), &mut events);
    assert!(matches!(events[..], [Event::Started { .. }]));
    batcher.admit(NOW + Duration::from_secs(1), &mut events);
    assert_eq!(events[1], Event::Finished { request, choice: 0, reason: FinishReason::Late });
    assert_eq!(batcher.gauges().held_pages, 0);
}

#[test]
fn the_more_urgent_go_first_until_others_have_waited_for_long() {
    let limits = batcher(100, 100).limits;
    let options = BatchOptions { policy: Policy::Priority, max_running: 1, ..BatchOptions::default() };
    let mut batcher = Batcher::new(&limits, options);
    let ask = |priority| Request { priority, ..request(1, None) };
    let patient = batcher.submit(NOW, ask(5)).unwrap();
    let urgent = batcher.submit(NOW + Duration::from_secs(1), ask(-2)).unwrap();
    let later = batcher.submit(NOW + Duration::from_secs(9), ask(-1)).unwrap();
    assert!(matches!(batcher.submit(NOW, ask(101)), Err(Error::Priority { .. })));
    let mut order = Vec::new();
    for _ in 0..3 {
        let mut events = Vec::new();
        batcher.admit(NOW, &mut events);
        let started = events.iter().filter_map(|event| match event {
            Event::Started { request, .. } => Some(*request),
            _ => None,
        });
        order.extend(started);
        batcher.cancel(*order.last().unwrap(), None);
    }
    assert_eq!(order, [urgent, patient, later]);
}
