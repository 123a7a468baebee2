//! Seeded simulation of the whole core: a fake device whose tokens tell when a page was mixed up, a clock that only the
//! simulation moves, and requests that come, fork, vanish and run late at random. After every step everything that must
//! hold is checked. `cargo xtask simulate 17` replays seed 17.

mod drafters;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lathe_plan::program::StepSize;
use lathe_runtime::batcher::{BatchOptions, Batcher, Event, FinishReason, Policy, Request, RequestId};
use lathe_runtime::device::{Device, GroupLimits, Limits, Row, Step, StepOutput, Ticket, null::NullDevice};
use lathe_runtime::error::Error;
use lathe_runtime::kv::{CacheOptions, prefix::Root};
use lathe_runtime::speculate::{Drafter, Mode, Speculation, Tally, ngram::Ngram};

use self::drafters::{Apprentice, Seer};

const VOCABULARY: u32 = 97;
const CONTEXT: u32 = 64;
const WEIGHTS: u64 = 5;
const STEPS: usize = 10_000;
const MOST_WAITING: usize = 12;

/// The generator `SplitMix64`.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// An answer as it must be, computed without batches or pages.
struct Answer {
    request: Request,
    choice: u32,
    history: Vec<u32>,
    /// Hash of the history in the group that keeps all of it.
    hash: u64,
    window: Option<u32>,
    limit: usize,
    is_cancelled: bool,
    breaks: Option<u64>,
}

impl Answer {
    fn new(request: &Request, choice: u32, world: &Rules) -> Answer {
        let limit = request.max_tokens.map_or(world.capacity, |max| request.tokens.len() + max);
        let mut answer = Answer {
            request: request.clone(),
            choice,
            history: Vec::new(),
            hash: NullDevice::start(WEIGHTS),
            window: world.window,
            limit,
            is_cancelled: false,
            breaks: world.breaks,
        };
        request.tokens.iter().for_each(|&token| answer.push(token));
        answer
    }

    fn push(&mut self, token: u32) {
        self.history.push(token);
        self.hash = NullDevice::hash(self.hash, [token]);
    }

    /// The hash from which the next token follows.
    fn row(&self) -> u64 {
        let Some(window) = self.window else { return self.hash };
        let begin = self.history.len().saturating_sub(window as usize);
        NullDevice::hash(self.hash, self.history[begin..].iter().copied())
    }

    /// Whether its logits are not finite now.
    fn is_broken(&self) -> bool {
        self.breaks.is_some_and(|one_in| NullDevice::is_broken(self.row(), one_in))
    }

    /// Whether logits that judge its prompt are not finite, if any do.
    fn has_a_broken_prompt(&self, world: &Rules) -> bool {
        let mut prompt = Answer::new(&Request::default(), 0, world);
        let judged = self.request.prompt_logprobs.is_some() && self.choice == 0;
        judged
            && self.request.tokens.iter().any(|&token| {
                prompt.push(token);
                prompt.is_broken()
            })
    }

    fn next(&self) -> u32 {
        let is_early = self.history.len() - self.request.tokens.len() < self.request.min_tokens;
        let is_forbidden = |token| is_early && self.request.stop.contains(&token);
        NullDevice::choose(self.row(), self.choice, VOCABULARY, is_forbidden)
    }
}

/// What holds for all answers of a world.
#[derive(Clone, Copy, Default)]
struct Rules {
    window: Option<u32>,
    capacity: usize,
    /// Of so many histories one has logits that are not finite.
    breaks: Option<u64>,
}

struct World {
    seed: u64,
    random: Random,
    now: Duration,
    device: NullDevice,
    batcher: Batcher,
    drafters: Vec<Box<dyn Drafter>>,
    token_budget: usize,
    policy: Policy,
    rules: Rules,
    speculation: Speculation,
    is_failing: bool,
    is_drafted: bool,                   // whether a draft model alone guesses
    under_way: Option<(Ticket, usize)>, // a step that was composed ahead, and its tokens
    live: HashMap<(RequestId, u32), Answer>,
    prefixes: Vec<Vec<u32>>,
    delivered: u64,
    submitted: u64,
    refused: u64,
    ends: Ends,
    verified: Tally,
}

/// How often rare things happened.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    late: u64,
    broken: u64,
    failed: u64,
    accepted: u64,
    accepted_of_model: u64,
    branched: u64,
    branched_of_model: u64,
    ahead: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed << 20);
        let pages = random.pick(&[2, 4, 10, 16, 20, 80]);
        let window = random.pick(&[None, None, Some(7), Some(16)]);
        let mut groups = vec![GroupLimits { page_tokens: 4, pages, window: None }];
        if window.is_some() {
            groups.push(GroupLimits { page_tokens: random.pick(&[4, 2, 8]), pages: random.pick(&[8, 20, 40]), window });
        }
        let limits = Limits {
            max: StepSize { tokens: 24, sequences: 5, rows: 5 },
            vocabulary: VOCABULARY,
            max_context: CONTEXT,
            groups,
        };
        let policy = random.pick(&Policy::ALL).1;
        let token_budget = random.pick(&[usize::MAX, 9, 3, 1]);
        let mode = random.pick(&[Mode::Off, Mode::Auto, Mode::Ngram, Mode::Draft, Mode::Draft, Mode::Own]);
        let device = NullDevice::new(limits.clone(), WEIGHTS);
        let device = if random.below(2) == 0 { device.that_feeds_back() } else { device };
        let is_alone = random.below(2) == 0;
        let seer = Seer { window, random: Random(seed), is_alone, known: HashMap::new() };
        let drafters: Vec<Box<dyn Drafter>> = match mode {
            Mode::Off => Vec::new(),
            Mode::Draft => vec![Box::new(Apprentice::new(window, &mut random))],
            Mode::Own => vec![Box::new(Apprentice::beside(&device, window, &mut random))],
            _ if is_alone => vec![Box::new(seer)],
            _ => {
                vec![
                    Box::new(Ngram::default()),
                    Box::new(Apprentice::new(window, &mut random)),
                    Box::new(Apprentice::beside(&device, window, &mut random)),
                    Box::new(seer),
                ]
            }
        };
        let options = BatchOptions {
            prefill_chunk: random.pick(&[usize::MAX, 1, 7, 16]),
            token_budget,
            stretch: random.pick(&[f64::INFINITY, 2.0]),
            policy,
            is_static: random.below(8) == 0,
            max_running: usize::MAX,
            max_waiting: MOST_WAITING,
            max_waiting_tokens: random.pick(&[usize::MAX, 200]),
            cache: CacheOptions {
                remember: random.below(5) > 0,
                quota_percent: random.pick(&[100, 30]),
                name_bits: random.pick(&[256, 256, 8, 0]),
                ..CacheOptions::default()
            },
            speculation: Speculation {
                mode,
                depth: Some(random.pick(&[1, 3, 8, 20])),
                width: random.pick(&[None, Some(1), Some(2), Some(4)]),
            },
        };
        let speculation = options.speculation;
        let batcher = Batcher::new(&limits, options);
        let breaks = random.pick(&[None, None, Some(200)]);
        let prefixes = (0..4).map(|n| (0..30).map(|i| (i * 7 + n * 13) % VOCABULARY).collect()).collect();
        let mut world = World {
            seed,
            random,
            now: Duration::ZERO,
            device: if let Some(one_in) = breaks { device.that_breaks(one_in) } else { device },
            batcher,
            drafters,
            token_budget,
            policy,
            rules: Rules { window, capacity: 0, breaks },
            speculation,
            is_failing: false,
            is_drafted: matches!(mode, Mode::Draft | Mode::Own),
            under_way: None,
            live: HashMap::new(),
            prefixes,
            delivered: 0,
            submitted: 0,
            refused: 0,
            ends: Ends::default(),
            verified: Tally::default(),
        };
        world.rules.capacity = world.find_capacity();
        world
    }

    /// How long an answer may get, as the refusal of an endless one tells.
    fn find_capacity(&mut self) -> usize {
        let endless = Request { tokens: vec![1], max_tokens: Some(usize::MAX), ..Request::default() };
        match self.batcher.submit(self.now, endless) {
            Err(Error::TooLong { limit, .. }) => limit,
            other => panic!("an endless request gave {other:?}"),
        }
    }

    fn request(&mut self) -> Request {
        let random = &mut self.random;
        // Many begin alike, so that pages are shared.
        let prefix = random.below(31);
        let mut tokens: Vec<u32> = self.prefixes[random.below(4)][..prefix].to_vec();
        tokens.extend((0..=random.below(12)).map(|_| random.below(VOCABULARY as usize) as u32));
        let deadline = (random.below(6) == 0).then(|| self.now + Duration::from_millis(50 << random.below(9)));
        Request {
            tokens,
            max_tokens: match random.below(4) {
                0 => None,
                1 => Some(random.below(2)),
                _ => Some(random.below(30)),
            },
            min_tokens: random.pick(&[0, 0, 5]),
            stop: (0..random.below(4)).map(|_| random.below(VOCABULARY as usize) as u32).collect(),
            more: random.pick(&[0, 0, 0, 1, 3]),
            prompt_logprobs: (random.below(8) == 0).then_some(0),
            priority: random.below(5) as i32 - 2,
            deadline,
            root: Root { owner: random.below(3) as u64, name: [random.below(3) as u8; 32] },
            ..Request::default()
        }
    }

    fn submit(&mut self) {
        let request = self.request();
        match self.batcher.submit(self.now, request.clone()) {
            Ok(id) => {
                self.submitted += 1;
                for choice in 0..=request.more {
                    let answer = Answer::new(&request, choice, &self.rules);
                    assert!(self.live.insert((id, choice), answer).is_none(), "an id was given twice");
                }
            }
            Err(Error::TooLong { needed, limit, .. }) => {
                assert!(needed > limit && limit == self.rules.capacity);
                self.refused += 1;
            }
            Err(Error::QueueFull { requests, .. }) => assert!(requests > 0 && requests <= MOST_WAITING + 5),
            Err(Error::Late { .. }) => assert!(self.policy == Policy::Deadline && request.deadline.is_some()),
            Err(Error::TooManyChoices { found, limit }) => assert!(found > limit),
            Err(error) => panic!("{error}"),
        }
    }

    fn cancel_one(&mut self) {
        // In an order that does not depend on the hasher.
        let mut keys: Vec<_> = self.live.keys().copied().collect();
        keys.sort_unstable();
        if keys.is_empty() {
            return;
        }
        let (id, choice) = self.random.pick(&keys);
        let whole = self.random.below(2) == 0;
        self.batcher.cancel(id, (!whole).then_some(choice));
        for ((other, number), answer) in &mut self.live {
            answer.is_cancelled |= *other == id && (whole || *number == choice);
        }
    }

    fn step(&mut self) {
        let (mut output, mut events) = (StepOutput::default(), Vec::new());
        self.batcher.admit(self.now, &mut events);
        let begin = self.now;
        let under_way = self.under_way.take().or_else(|| self.compose());
        let ahead = under_way.and_then(|(ticket, _)| self.compose_ahead(ticket));
        self.is_failing = under_way.is_some() && self.random.below(2000) == 0;
        if let Some((ticket, tokens)) = under_way {
            self.device.collect(ticket, &mut output).expect("it ran");
            if self.is_failing {
                self.batcher.abort(&mut events);
            } else {
                let took = Duration::from_micros(10_000 + 500 * tokens as u64 + self.random.next() % 1000);
                self.now += took;
                self.batcher.retire(took, &output, &mut events);
            }
        } else {
            self.now += Duration::from_millis(1);
        }
        if let Some((ticket, tokens)) = ahead {
            self.ends.ahead += 1;
            if self.batcher.is_under_way() {
                self.under_way = Some((ticket, tokens));
            } else {
                self.device.collect(ticket, &mut output).expect("it ran, for nobody");
            }
        }
        for event in events {
            self.hear(begin, event);
        }
        self.check();
    }

    /// Hands the device a step of what is known; its ticket and tokens.
    fn compose(&mut self) -> Option<(Ticket, usize)> {
        let mut step = Step::default();
        self.batcher.draft(&mut self.drafters).expect("these drafters do not fail");
        self.batcher.compose(&mut step).then(|| {
            assert!(step.tokens.len() <= self.token_budget, "guesses are beyond the budget");
            (self.device.submit(&step).expect("the step is sound"), step.tokens.len())
        })
    }

    /// Hands the device the step behind one that is under way, where that can be.
    fn compose_ahead(&mut self, ticket: Ticket) -> Option<(Ticket, usize)> {
        let mut step = Step::default();
        let feeds_back = self.device.feeds_back(&Row::default());
        self.batcher.compose_ahead(ticket, |_| feeds_back, &mut step).then(|| {
            assert!(step.tokens.len() <= self.token_budget, "a step ahead is beyond the budget");
            (self.device.submit(&step).expect("the step is sound"), step.tokens.len())
        })
    }

    fn hear(&mut self, begin: Duration, event: Event) {
        match event {
            Event::Started { request, choice, cached } => {
                let answer = &self.live[&(request, choice)];
                assert!(cached < answer.request.tokens.len(), "nothing is left to compute");
            }
            Event::Prompt { request, first, entries } => {
                let answer = &self.live[&(request, 0)];
                assert!(first > 0 && answer.request.prompt_logprobs.is_some());
                let mut prompt = Answer::new(&Request::default(), 0, &self.rules);
                for (index, &token) in answer.request.tokens.iter().enumerate() {
                    if let Some((logprob, _)) = index.checked_sub(first).and_then(|at| entries.get(at)) {
                        let wanted = NullDevice::logprob(prompt.row(), token);
                        assert_eq!(logprob.to_bits(), wanted.to_bits(), "prompt token {index}");
                    }
                    prompt.push(token);
                }
            }
            Event::Verified { request, choice, drafted, accepted, branched } => {
                let answer = &self.live[&(request, choice)];
                assert!(
                    drafted > 0
                        && branched <= accepted
                        && accepted <= drafted
                        && drafted <= self.speculation.depth.unwrap_or(12)
                );
                assert!(answer.history.len() + accepted < answer.limit);
                assert!(self.speculation.ways() > 1 || answer.history.len() + drafted < answer.limit);
                self.verified.count(drafted, accepted, branched);
            }
            Event::Token { request, choice, token, logprob, .. } => {
                let answer = self.live.get_mut(&(request, choice)).expect("a token of an answer that has not ended");
                assert!(!answer.is_broken(), "a token from logits that are not finite");
                assert_eq!(token, answer.next(), "token {} of {request:?}", answer.history.len());
                assert_eq!(logprob.to_bits(), NullDevice::logprob(answer.row(), token).to_bits());
                assert!(!answer.request.stop.contains(&token) && answer.history.len() < answer.limit);
                answer.push(token);
                self.delivered += 1;
            }
            Event::Finished { request, choice, reason } => {
                let answer = self.live.remove(&(request, choice)).expect("an answer ends once");
                match reason {
                    FinishReason::Late => self.ends.late += 1,
                    FinishReason::NotFinite => self.ends.broken += 1,
                    FinishReason::Failed => self.ends.failed += 1,
                    _ => {}
                }
                match reason {
                    FinishReason::Stop(token) => {
                        assert!(!answer.is_broken() && token == answer.next() && answer.request.stop.contains(&token));
                    }
                    FinishReason::Length => assert_eq!(answer.history.len(), answer.limit),
                    FinishReason::Cancelled => assert!(answer.is_cancelled),
                    FinishReason::Late => assert!(answer.request.deadline.is_some_and(|deadline| deadline <= begin)),
                    FinishReason::NotFinite => assert!(answer.is_broken() || answer.has_a_broken_prompt(&self.rules)),
                    FinishReason::Failed => assert!(self.is_failing, "no step failed"),
                }
            }
        }
    }

    fn check(&self) {
        self.batcher.check_integrity().unwrap();
        let gauges = self.batcher.gauges();
        assert_eq!(gauges.running + gauges.waiting, self.live.len());
        assert!(gauges.waiting <= MOST_WAITING + 5 && gauges.idle_pages + gauges.held_pages <= gauges.pages);
        assert_eq!(self.batcher.counters().generated_tokens, self.delivered, "what was counted was not delivered");
        assert_eq!(self.batcher.counters().speculation, self.verified, "what was verified was not told");
        for group in 0..self.device.limits().groups.len() {
            for (page, tokens) in self.batcher.remembered(group) {
                assert_eq!(self.device.page(group, page), tokens, "page {page} is not what it is known for");
            }
        }
        // The queue's whole work takes some 35 seconds at worst; by its own rule a policy may let others pass for longer.
        let bound = match self.policy {
            Policy::Fcfs => 60,
            Policy::Priority => 70,
            Policy::Deadline => 130,
        };
        let oldest = self.batcher.oldest_arrival().unwrap_or(self.now);
        assert!(self.now.saturating_sub(oldest) < Duration::from_secs(bound), "a request starves");
    }

    fn run(&mut self, steps: usize) -> Ends {
        let eagerness = self.random.pick(&[3, 8, 30]);
        for _ in 0..steps {
            if self.random.below(eagerness) == 0 {
                self.submit();
            }
            if self.random.below(40) == 0 {
                self.cancel_one();
            }
            self.step();
        }
        assert!(
            self.submitted > 0 && (self.rules.capacity > 40 || self.refused > 0),
            "seed {} did too little",
            self.seed
        );
        // All clients vanish, and one step later all pages are back.
        let ids: Vec<RequestId> = self.live.keys().map(|(id, _)| *id).collect();
        for id in ids {
            self.batcher.cancel(id, None);
        }
        self.live.values_mut().for_each(|answer| answer.is_cancelled = true);
        self.step();
        assert!(self.live.is_empty());
        let gauges = self.batcher.gauges();
        assert_eq!((gauges.running, gauges.waiting, gauges.held_pages), (0, 0, 0));
        let Ends { accepted, accepted_of_model, branched, branched_of_model, .. } = &mut self.ends;
        let (all, on_branches) =
            if self.is_drafted { (accepted_of_model, branched_of_model) } else { (accepted, branched) };
        (*all, *on_branches) = (self.verified.accepted, self.verified.branched);
        self.ends
    }
}

/// Says how to see a failure again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("replay: cargo xtask simulate {seed}");
        }
    }
}

fn seeds() -> Range<u64> {
    let chosen = std::env::var("LATHE_SEEDS").unwrap_or_else(|_| "0..200".to_owned());
    let (begin, end) = chosen.split_once("..").expect("LATHE_SEEDS is FROM..TO");
    begin.parse().expect("a number")..end.parse().expect("a number")
}

#[test]
fn everything_that_must_hold_holds_after_every_step() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let start = Instant::now();
    let all = Mutex::new(Ends::default());
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let _replay = Replay(seed);
            let ends = World::new(seed).run(STEPS);
            let mut all = all.lock().expect("nobody panics here");
            (all.late, all.broken, all.failed) =
                (all.late + ends.late, all.broken + ends.broken, all.failed + ends.failed);
            all.accepted += ends.accepted;
            all.ahead += ends.ahead;
            all.accepted_of_model += ends.accepted_of_model;
            all.branched += ends.branched;
            all.branched_of_model += ends.branched_of_model;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(worker);
        });
    });
    let steps = (seeds.end - seeds.start) as f64 * STEPS as f64;
    let all = all.into_inner().expect("nobody panics here");
    let Ends { late, broken, failed, accepted, accepted_of_model, branched, branched_of_model, ahead } = all;
    let counts = [late, broken, failed, accepted, accepted_of_model, branched, branched_of_model, ahead];
    let is_rich = counts.iter().all(|&count| count > 0);
    assert!(is_rich || seeds.end - seeds.start < 200, "{all:?}: the simulation does not see what it should");
    println!("{steps} steps, {:.0} in a second", steps / start.elapsed().as_secs_f64());
}
