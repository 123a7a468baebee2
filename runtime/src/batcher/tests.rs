//! Refusals of the batcher and the make-up of its steps; its simulations are in the engine's tests.

use lathe_plan::program::StepSize;

use super::*;
use crate::device::{Edit, GroupLimits, Pick, RowOutput, StepToken};
use crate::sample::{NoiseKey, SampleParams};
use crate::speculate::{Ask, Drafter, Guess, Key, Kind, Mode, tree::Branch};

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

/// Guesses that the number after each last token follows.
#[derive(Debug, Default)]
struct Counting {
    forgotten: Vec<Key>,
}

impl Drafter for Counting {
    fn kind(&self) -> Kind {
        Kind::Ngram
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> Result<()> {
        for ask in asks {
            let last = ask.rule.tokens[ask.rule.tokens.len() - 1];
            let next = (1..=ask.most as u32).map(|n| last + n);
            ask.guesses.extend(next.map(|token| Guess { token, class: 0, chance: 0.5 }));
            // Or ten more, and on from there, or beside the second guess twenty more.
            if ask.width > 1 {
                let other = |token| Guess { token, class: 1, chance: 0.8 };
                ask.branches.push(Branch { from: 0, guesses: vec![other(last + 10), other(last + 11)] });
                ask.branches.push(Branch { from: 1, guesses: vec![other(last + 20)] });
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        self.forgotten.push(key);
    }
}

/// A batcher whose answers get at most so many guesses, with a request that has its first token, 3, already.
fn guessing(depth: usize, pages: u32, request: Request) -> (Batcher, Vec<Box<dyn Drafter>>) {
    let limits = batcher(100, pages).limits;
    branching(depth, 1, &limits, request)
}

/// The same, in so many ways and within these limits.
fn branching(depth: usize, width: usize, limits: &Limits, request: Request) -> (Batcher, Vec<Box<dyn Drafter>>) {
    let speculation = Speculation { mode: Mode::Ngram, depth: Some(depth), width: Some(width) };
    let mut batcher = Batcher::new(limits, BatchOptions { speculation, ..BatchOptions::default() });
    batcher.submit(NOW, request).unwrap();
    let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Counting::default())];
    let tokens = step(&mut batcher, &mut drafters, &[3]);
    assert_eq!(tokens, [3]);
    (batcher, drafters)
}

/// One step whose rows sample these tokens; the tokens that answers get.
fn step(batcher: &mut Batcher, drafters: &mut [Box<dyn Drafter>], sampled: &[u32]) -> Vec<u32> {
    let (mut step, mut events) = (Step::default(), Vec::new());
    batcher.admit(NOW, &mut events);
    batcher.draft(drafters).unwrap();
    assert!(batcher.compose(&mut step));
    assert_eq!(step.rows.len(), sampled.len());
    let rows = sampled.iter().map(|&token| RowOutput { token, ..RowOutput::default() }).collect();
    batcher.retire(Duration::from_millis(1), &StepOutput { rows }, &mut events);
    batcher.check_integrity().unwrap();
    let token = |event: &Event| if let Event::Token { token, .. } = event { Some(*token) } else { None };
    events.iter().filter_map(token).collect()
}

#[test]
fn guesses_count_until_the_first_that_is_wrong() {
    let (mut batcher, mut drafters) = guessing(3, 100, request(2, None));
    assert_eq!(step(&mut batcher, &mut drafters, &[4, 5, 9, 7]), [4, 5, 9]);
    assert_eq!(step(&mut batcher, &mut drafters, &[1, 11, 12, 13]), [1]);
    assert_eq!(step(&mut batcher, &mut drafters, &[2, 3, 4, 5]), [2, 3, 4, 5]);
    let tally = batcher.counters().speculation;
    assert_eq!((tally.drafts, tally.drafted, tally.accepted, tally.histogram()), (3, 9, 5, vec![1, 0, 1, 1]));
}

#[test]
fn each_guess_has_the_noise_and_the_penalties_of_its_place() {
    let penalties = Penalties { presence: 0.5, frequency: 0.25, repetition: 1.0 };
    let ask = Request { tokens: vec![1, 2], penalties, seed: 8, min_tokens: 3, stop: vec![40], ..Request::default() };
    let (mut batcher, mut drafters) = guessing(3, 100, ask);
    let mut composed = Step::default();
    batcher.draft(&mut drafters).unwrap();
    assert!(batcher.compose(&mut composed));
    assert_eq!(composed.tokens, [3, 4, 5, 6].map(StepToken::Known));
    assert_eq!((&composed.positions[..], &composed.sequences[..]), (&[2, 3, 4, 5][..], &[0; 4][..]));
    let seen = |token| Edit { add: -0.75, ..Edit::of(token) };
    let forbidden = Edit { add: f32::NEG_INFINITY, ..Edit::of(40) };
    // The third token may be the stop token only when two came before it.
    let edits = [
        vec![seen(3), forbidden],
        vec![seen(3), seen(4), forbidden],
        vec![seen(3), seen(4), seen(5)],
        vec![seen(3), seen(4), seen(5), seen(6)],
    ];
    for (place, (row, edits)) in composed.rows.iter().zip(edits).enumerate() {
        let key = NoiseKey { seed: 8, choice: 0, position: 3 + place as u32 };
        assert_eq!(row.pick, Pick::Sample(SampleParams::default(), key));
        assert_eq!((row.token, &row.edits), (place as u32, &edits), "{place}");
    }
}

#[test]
fn guesses_end_with_the_answer() {
    let (mut batcher, mut drafters) = guessing(7, 100, Request { stop: vec![5], ..request(2, None) });
    // One row for each of the eight tokens that a step has, of which four are rows.
    assert_eq!(step(&mut batcher, &mut drafters, &[4, 5, 6, 7]), [4]);
    assert_eq!((batcher.unfinished(), batcher.gauges().held_pages), (0, 0));
    let (mut batcher, mut drafters) = guessing(7, 100, request(2, Some(4)));
    // Three tokens may still come, so two guesses are of use.
    assert_eq!(step(&mut batcher, &mut drafters, &[4, 5, 6]), [4, 5, 6]);
    assert_eq!(batcher.unfinished(), 0);
}

#[test]
fn without_pages_there_are_fewer_guesses_and_nothing_fails() {
    // Two pages of four tokens, of which one answer may have all: its guesses end where the pages do.
    let (mut batcher, mut drafters) = guessing(3, 2, request(5, Some(3)));
    assert_eq!(step(&mut batcher, &mut drafters, &[4, 5]), [4, 5]);
    // The third page goes to another answer, so that of two guesses that find rows one finds a page.
    let (mut batcher, mut drafters) = guessing(3, 3, request(6, Some(6)));
    batcher.submit(NOW, request(3, Some(1))).unwrap();
    assert_eq!(step(&mut batcher, &mut drafters, &[4, 5, 20]), [4, 5, 20]);
}

#[test]
fn an_answer_that_is_cancelled_with_guesses_at_hand_gives_everything_back() {
    let (mut batcher, mut drafters) = guessing(3, 100, request(2, None));
    batcher.draft(&mut drafters).unwrap();
    batcher.cancel(RequestId(0), None);
    let mut events = Vec::new();
    batcher.admit(NOW, &mut events);
    assert!(matches!(events[..], [Event::Finished { reason: FinishReason::Cancelled, .. }]));
    assert!(!batcher.compose(&mut Step::default()));
    assert_eq!(batcher.gauges().held_pages, 0);
    let mut forgetful: [Box<dyn Drafter>; 1] = [Box::new(Counting::default())];
    batcher.draft(&mut forgetful).unwrap();
    assert!(format!("{forgetful:?}").contains("RequestId(0), 0"), "{forgetful:?}");
}

/// Limits of a batcher for branches: so many pages, and tokens, sequences and rows of a step.
fn room(pages: u32, tokens: u32, sequences: u32, rows: u32) -> Limits {
    Limits { max: StepSize { tokens, sequences, rows }, ..batcher(100, pages).limits }
}

#[test]
fn a_branch_that_is_right_goes_on_and_its_pages_become_the_answers() {
    let (mut batcher, mut drafters) = branching(5, 2, &room(9, 16, 4, 16), request(2, None));
    // Behind 3 the trunk is 4 5 6 with chances of 0.5, 0.25 and 0.125; 13 14 have 0.4 and 0.32, and 23 behind 4 has 0.2.
    // Rows: behind 3, 4 and 5, then behind 13 and 14, and behind 23.
    assert_eq!(step(&mut batcher, &mut drafters, &[13, 0, 0, 14, 7, 0]), [13, 14, 7]);
    // The trunk is right: what the branch says does not count.
    assert_eq!(step(&mut batcher, &mut drafters, &[8, 9, 40, 18, 19, 41]), [8, 9, 40]);
    // The first guess is right, and then the second branch.
    assert_eq!(step(&mut batcher, &mut drafters, &[41, 60, 0, 0, 0, 8]), [41, 60, 8]);
    // None is.
    assert_eq!(step(&mut batcher, &mut drafters, &[1, 0, 0, 0, 0, 0]), [1]);
    let tally = batcher.counters().speculation;
    assert_eq!((tally.drafts, tally.drafted, tally.accepted, tally.branched), (4, 20, 6, 3));
    assert_eq!(batcher.gauges().held_pages, 3, "of thirteen tokens, the last of which is not computed");
}

#[test]
fn a_branch_computes_the_last_token_again_on_a_copy_of_its_page() {
    let (mut batcher, mut drafters) = branching(3, 2, &room(9, 16, 4, 16), request(2, None));
    let (mut step, mut events) = (Step::default(), Vec::new());
    batcher.admit(NOW, &mut events);
    batcher.draft(&mut drafters).unwrap();
    assert!(batcher.compose(&mut step));
    let known = |tokens: &[u32]| tokens.iter().map(|&token| StepToken::Known(token)).collect::<Vec<_>>();
    assert_eq!(step.tokens, known(&[3, 4, 3, 13, 14]));
    assert_eq!((&step.positions[..], &step.sequences[..]), (&[2, 3, 2, 3, 4][..], &[0, 0, 1, 1, 1][..]));
    let pages: Vec<&[u32]> = step.block_tables[0].iter().collect();
    assert_eq!(pages, [&[0][..], &[1, 2]]);
    assert_eq!(step.copies, [PageCopy { group: 0, from: 0, to: 1 }]);
    let places: Vec<u32> = step.rows.iter().map(|row| row.token).collect();
    assert_eq!(places, [0, 1, 3, 4]);
    let positions = step.rows.iter().map(|row| match &row.pick {
        Pick::Sample(_, key) => key.position,
        Pick::Given(token) => panic!("{token} was given"),
    });
    assert_eq!(positions.collect::<Vec<_>>(), [3, 4, 4, 5], "the noise is that of the place");
    // The device fails in the middle: nothing is left behind.
    batcher.abort(&mut events);
    assert_eq!(batcher.gauges().held_pages, 0);
    batcher.check_integrity().unwrap();
}

#[test]
fn a_tree_that_finds_no_room_is_smaller_and_nothing_fails() {
    let rows = |limits: Limits| {
        let (mut batcher, mut drafters) = branching(5, 2, &limits, request(2, None));
        let (mut step, mut events) = (Step::default(), Vec::new());
        batcher.admit(NOW, &mut events);
        batcher.draft(&mut drafters).unwrap();
        assert!(batcher.compose(&mut step));
        let rows = step.rows.iter().map(|_| RowOutput { token: 13, ..RowOutput::default() }).collect();
        batcher.retire(Duration::from_millis(1), &StepOutput { rows }, &mut events);
        batcher.check_integrity().unwrap();
        step.rows.iter().map(|row| row.token).collect::<Vec<_>>()
    };
    assert_eq!(rows(room(9, 16, 4, 16)), [0, 1, 2, 4, 5, 8]);
    assert_eq!(rows(room(9, 16, 2, 16)), [0, 1, 2, 4, 5], "one branch is all that the sequences allow");
    assert_eq!(rows(room(9, 16, 1, 16)), [0, 1, 2]);
    assert_eq!(rows(room(9, 5, 4, 16)), [0, 1, 3, 4], "the token budget");
    assert_eq!(rows(room(9, 16, 4, 3)), [0, 1, 3], "the rows");
    assert_eq!(rows(room(4, 16, 4, 16)), [0, 1, 2, 4, 5], "two pages for the trunk and two for a branch");
    assert_eq!(rows(room(3, 16, 4, 16)), [0, 1, 2, 4], "one for a part of a branch");
    assert_eq!(rows(room(2, 16, 4, 16)), [0, 1, 2]);
}

#[test]
fn guesses_that_are_wrong_stop_where_they_are_to_pay() {
    let limits = batcher(1000, 1000).limits;
    let speculation = Speculation { mode: Mode::Auto, depth: Some(3), ..Speculation::default() };
    let mut batcher = Batcher::new(&limits, BatchOptions { speculation, ..BatchOptions::default() });
    batcher.submit(NOW, request(2, None)).unwrap();
    let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Counting::default())];
    // Each token takes a millisecond beyond the ten of a step.
    let mut run = |batcher: &mut Batcher, is_right: bool| {
        let (mut step, mut events) = (Step::default(), Vec::new());
        batcher.admit(NOW, &mut events);
        batcher.draft(&mut drafters).unwrap();
        assert!(batcher.compose(&mut step));
        let next = |row: &crate::device::Row| {
            let StepToken::Known(token) = step.tokens[row.token as usize] else { panic!("it is known") };
            if is_right { token + 1 } else { token / 2 }
        };
        let rows = step.rows.iter().map(|row| RowOutput { token: next(row), ..RowOutput::default() }).collect();
        batcher.retire(Duration::from_millis(10 + step.tokens.len() as u64), &StepOutput { rows }, &mut events);
        step.tokens.len()
    };
    for _ in 0..5 {
        run(&mut batcher, true);
    }
    assert_eq!(run(&mut batcher, true), 4);
    for _ in 0..40 {
        run(&mut batcher, false);
    }
    assert_eq!(run(&mut batcher, false), 1);
    // What is right again is seen without being verified.
    for _ in 0..40 {
        run(&mut batcher, true);
    }
    assert_eq!(run(&mut batcher, true), 4);
}
