//! Seeded simulations of the whole core on the null device, whose tokens tell when a page was mixed up.

use std::collections::{BTreeMap, HashMap};

use lathe_plan::program::StepSize;

use super::*;
use crate::{
    batcher::FinishReason,
    device::{GroupLimits, null::NullDevice},
    error::Error,
    sample::mix,
};

const VOCABULARY: u32 = 97;
const WEIGHTS: u64 = 5;

fn limits(pages: u32) -> Limits {
    Limits {
        max: StepSize { tokens: 24, sequences: 5, rows: 4 },
        vocabulary: VOCABULARY,
        max_context: 64,
        groups: vec![GroupLimits { page_tokens: 4, pages, window: None }],
    }
}

fn engine(pages: u32, prefill_chunk: Option<usize>, token_budget: Option<usize>) -> Engine {
    let options = EngineOptions { prefill_chunk, token_budget, ..EngineOptions::default() };
    Engine::with_device(Box::new(NullDevice::new(limits(pages), WEIGHTS)), &options)
}

/// The same on a device whose tokens reach the next step without the host.
fn fed_engine(pages: u32, prefill_chunk: Option<usize>, token_budget: Option<usize>) -> Engine {
    let options = EngineOptions { prefill_chunk, token_budget, ..EngineOptions::default() };
    Engine::with_device(Box::new(NullDevice::new(limits(pages), WEIGHTS).that_feeds_back()), &options)
}

/// What a request's answer must be, computed without batches or pages.
fn answer(request: &Request, limit: usize) -> (Vec<u32>, FinishReason) {
    let mut history = request.tokens.clone();
    while history.len() < limit {
        let token = NullDevice::next_token(WEIGHTS, history.iter().copied(), VOCABULARY);
        if request.stop.contains(&token) {
            return (history.split_off(request.tokens.len()), FinishReason::Stop(token));
        }
        history.push(token);
    }
    (history.split_off(request.tokens.len()), FinishReason::Length)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (mix(mix(self.0)) % n as u64) as usize
    }
}

/// Submits and cancels at random for a while, then lets everything end, and checks each answer. How many steps there were,
/// and how many of them were composed ahead.
fn simulate(seed: u64, pages: u32, mut engine: Engine) -> (usize, u64) {
    let mut random = Random(seed << 32);
    let mut requests: HashMap<RequestId, Request> = HashMap::new();
    let mut answers: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    let mut ends: BTreeMap<RequestId, FinishReason> = BTreeMap::new();
    let mut cancelled = Vec::new();
    let mut steps = 0;
    while steps < 300 || !engine.is_idle() {
        assert!(steps < 20_000, "the simulation does not end");
        if steps < 300 && random.below(3) == 0 {
            let tokens = (0..=random.below(30)).map(|_| random.below(VOCABULARY as usize) as u32).collect();
            let max_tokens = [None, Some(random.below(30))][random.below(2)];
            let stop = (0..random.below(4)).map(|_| random.below(VOCABULARY as usize) as u32).collect();
            let request = Request { tokens, max_tokens, stop, ..Request::default() };
            match engine.submit(request.clone()) {
                Ok(id) => assert!(requests.insert(id, request).is_none(), "an id was given twice"),
                Err(error) => assert!(matches!(error, Error::TooLong { .. }), "{error}"),
            }
        }
        if random.below(25) == 0 && !requests.is_empty() {
            let id = RequestId(random.below(requests.len()) as u64);
            engine.cancel(id);
            cancelled.push(id);
        }
        for event in engine.step().unwrap() {
            match event {
                Event::Token { request, token, .. } => {
                    assert!(!ends.contains_key(request), "a token after the end");
                    answers.entry(*request).or_default().push(*token);
                }
                Event::Started { .. } | Event::Prompt { .. } | Event::Verified { .. } => {}
                Event::Finished { request, reason, .. } => {
                    assert!(ends.insert(*request, *reason).is_none(), "a request ended twice");
                }
            }
        }
        engine.batcher.check_integrity().unwrap();
        steps += 1;
    }
    assert_eq!(ends.len(), requests.len(), "a request never ended");
    let capacity = (pages as usize * 4).min(64);
    for (id, request) in &requests {
        let limit = request.max_tokens.map_or(capacity, |max| request.tokens.len() + max);
        let (wanted, reason) = answer(request, limit);
        let found = answers.remove(id).unwrap_or_default();
        if ends[id] == FinishReason::Cancelled {
            assert!(cancelled.contains(id));
            assert!(wanted.starts_with(&found), "{id:?} went astray before it was cancelled");
        } else {
            assert_eq!((found, ends[id]), (wanted, reason), "{id:?} of seed {seed}");
        }
    }
    let cache = engine.batcher.cache();
    assert_eq!(cache.free_pages(), cache.pages(), "pages were lost");
    (steps, engine.counters().steps_ahead)
}

#[test]
fn answers_do_not_depend_on_batches_chunks_or_cache_size() {
    let (mut steps, mut ahead) = (0, 0);
    for seed in 0..24 {
        // From so few pages that requests displace each other to more than ever needed.
        let pages = [10, 16, 20, 80][seed as usize % 4];
        let chunk = [None, Some(1), Some(7)][seed as usize % 3];
        let budget = [None, Some(3), Some(9), Some(1)][(seed as usize / 3) % 4];
        steps += simulate(seed, pages, engine(pages, chunk, budget)).0;
        ahead += simulate(seed, pages, fed_engine(pages, chunk, budget)).1;
    }
    assert!(steps > 8_000 && ahead > 1_000, "{steps}, {ahead}");
}

#[test]
fn requests_displace_each_other_when_pages_run_out() {
    // Four requests of up to 40 tokens in 48 positions cannot all run to their end side by side.
    let mut engine = engine(12, None, None);
    let requests: Vec<Request> =
        (0..4).map(|n| Request { tokens: vec![n; 8], max_tokens: Some(32), ..Request::default() }).collect();
    let ids: Vec<RequestId> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut answers = vec![Vec::new(); 4];
    let mut prefills = 0;
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { request, token, .. } = event {
                answers[ids.iter().position(|id| id == request).unwrap()].push(*token);
            }
        }
        prefills += engine.step.positions.iter().filter(|&&position| position == 0).count();
    }
    for (request, found) in requests.iter().zip(&answers) {
        assert_eq!(*found, answer(request, 40).0);
    }
    assert!(prefills > 4, "no request was ever computed again");
}

#[test]
fn answers_that_end_leave_a_step_under_way_that_nobody_hears_of() {
    let mut engine = fed_engine(20, None, None);
    let request =
        |tokens: u32, stop| Request { tokens: vec![tokens; 3], max_tokens: Some(9), stop, ..Request::default() };
    let (whole, _) = answer(&request(4, Vec::new()), 12);
    // It ends by its fifth token, which the step behind has already.
    let stopped = request(4, vec![whole[4]]);
    engine.submit(stopped.clone()).unwrap();
    let mut found = Vec::new();
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        found.extend(
            events.iter().filter_map(|event| if let Event::Token { token, .. } = event { Some(*token) } else { None }),
        );
    }
    assert_eq!((found, FinishReason::Stop(whole[4])), answer(&stopped, 12));
    assert!(engine.stale.is_some() && engine.under_way.is_none());
    let cache = engine.batcher.cache();
    assert_eq!(cache.free_pages(), cache.pages());
    // Whoever needs the device next waits for it.
    assert_eq!(engine.score(&[1, 2, 3]).unwrap().len(), 2);
    assert!(engine.stale.is_none());
    assert_eq!(engine.counters().steps_ahead, 5);
}

#[test]
fn rows_that_the_last_token_has_a_say_in_wait_for_it() {
    use crate::batcher::Penalties;
    let base = Request { tokens: vec![1, 2, 3], max_tokens: Some(6), ..Request::default() };
    let counting = Penalties { frequency: 0.5, ..Penalties::default() };
    let cases = [
        (base.clone(), 5),
        (Request { penalties: counting, ..base.clone() }, 0),
        (Request { bias: vec![(5, 1.0)], ..base.clone() }, 0),
        // The rows of the first four tokens are edited.
        (Request { min_tokens: 4, stop: vec![96], ..base }, 2),
    ];
    for (request, ahead) in cases {
        let mut engine = fed_engine(20, None, None);
        engine.submit(request.clone()).unwrap();
        while !engine.is_idle() {
            engine.step().unwrap();
        }
        assert_eq!(engine.counters().steps_ahead, ahead, "{request:?}");
    }
}

#[test]
fn scoring_needs_an_idle_engine_and_gives_its_pages_back() {
    let mut engine = engine(20, Some(3), None);
    assert_eq!(engine.score(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap().len(), 9);
    assert_eq!(engine.score(&[1]).unwrap().len(), 0);
    assert!(matches!(engine.score(&[]), Err(Error::EmptyPrompt)));
    assert!(matches!(engine.score(&vec![1; 70]), Err(Error::TooLong { .. })));
    assert!(matches!(engine.score(&[1, VOCABULARY, 2]), Err(Error::StepRange { .. })));
    assert!(matches!(engine.score(&[1, 2, VOCABULARY]), Err(Error::StepRange { .. })));
    let cache = engine.batcher.cache();
    assert_eq!(cache.free_pages(), cache.pages());
    engine.submit(Request { tokens: vec![1], ..Request::default() }).unwrap();
    assert!(matches!(engine.score(&[1, 2]), Err(Error::Busy(1))));
}

/// Fails at its second step.
struct Failing(NullDevice);

impl Device for Failing {
    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn submit(&mut self, step: &Step) -> Result<crate::device::Ticket> {
        match self.0.steps().len() {
            1 => Err(Error::DeviceLost("on purpose".into())),
            _ => self.0.submit(step),
        }
    }

    fn collect(&mut self, ticket: crate::device::Ticket, output: &mut StepOutput) -> Result<()> {
        self.0.collect(ticket, output)
    }
}

#[test]
fn a_failed_step_ends_all_requests() {
    let device = Failing(NullDevice::new(limits(20), WEIGHTS));
    let mut engine = Engine::with_device(Box::new(device), &EngineOptions::default());
    engine.submit(Request { tokens: vec![1, 2], ..Request::default() }).unwrap();
    engine.submit(Request { tokens: vec![1, 2], ..Request::default() }).unwrap();
    let tokens = engine.step().unwrap().iter().filter(|event| matches!(event, Event::Token { .. }));
    assert_eq!(tokens.count(), 2);
    assert!(matches!(engine.step(), Err(Error::DeviceLost(_))));
    assert!(engine.is_idle());
    let cache = engine.batcher.cache();
    assert_eq!(cache.free_pages(), cache.pages());
}
