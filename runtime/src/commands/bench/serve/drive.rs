//! Sends the requests of a load: in a closed loop, at the times of a Poisson process, or beside streams that go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::{Target, Usage};
use super::workload::{Ask, Kind, requests, seed_of};

/// Tokens that each stream must have had before its gaps count: a server has to settle first.
const SETTLED: usize = 16;
/// Prompt and answer of a stream; one that ends is begun anew.
const STREAM: (usize, usize) = (64, 2000);

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many clients, each of which sends its next request when the last is answered.
    Closed(usize),
    /// So many requests a second on average, at the times of a Poisson process, whatever becomes of them.
    Poisson(f64),
}

/// A request that was answered. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// From sending to the first token.
    pub first: f64,
    /// Between one token and the next.
    pub gaps: Vec<f64>,
    /// From sending to the end.
    pub whole: f64,
    /// What the server counted.
    pub usage: Usage,
}

/// A load that is over.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Its answers.
    pub answers: Vec<Answer>,
    /// Why others have none.
    pub failures: Vec<anyhow::Error>,
    /// From the first request to the last answer.
    pub took: Duration,
}

/// Sends all requests and waits for their answers.
pub async fn run(target: &Arc<Target>, asks: &Arc<[Ask]>, arrivals: Arrivals) -> Outcome {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    match arrivals {
        Arrivals::Closed(clients) => {
            let next = Arc::new(AtomicUsize::new(0));
            for _ in 0..clients {
                let (target, asks, next) = (Arc::clone(target), Arc::clone(asks), Arc::clone(&next));
                tasks.spawn(async move {
                    let mut answers = Vec::new();
                    while let Some(ask) = asks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        answers.push(time(&target, ask).await);
                    }
                    answers
                });
            }
        }
        Arrivals::Poisson(rate) => {
            for index in 0..asks.len() {
                let (target, asks) = (Arc::clone(target), Arc::clone(asks));
                let at = start + Duration::from_secs_f64(asks[index].arrival / rate);
                tasks.spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    vec![time(&target, &asks[index]).await]
                });
            }
        }
    }
    let mut outcome = Outcome::default();
    while let Some(answers) = tasks.join_next().await {
        for answer in answers.unwrap_or_else(|error| vec![Err(error.into())]) {
            match answer {
                Ok(answer) => outcome.answers.push(answer),
                Err(error) => outcome.failures.push(error),
            }
        }
    }
    outcome.took = start.elapsed();
    outcome
}

/// Sends one request.
async fn time(target: &Target, ask: &Ask) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let mut tokens: Vec<Instant> = Vec::with_capacity(ask.generate);
    let usage = target.complete(ask, |now| tokens.push(now)).await?;
    let first = tokens.first().map_or_else(|| start.elapsed(), |first| *first - start);
    Ok(Answer {
        first: first.as_secs_f64(),
        gaps: tokens.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect(),
        whole: start.elapsed().as_secs_f64(),
        usage,
    })
}

/// The gaps of streams, each with the time at which it ended, in seconds since their quiet part began.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// While nothing else ran.
    pub quiet: Vec<(f64, f64)>,
    /// While the load arrived.
    pub loaded: Vec<(f64, f64)>,
}

/// Runs streams, at first alone for a while, then beside a load until that has ended.
pub async fn beside_streams(
    target: &Arc<Target>,
    count: usize,
    quiet: Duration,
    kind: &Kind,
    seed: u64,
    load: impl Future<Output = Outcome>,
) -> anyhow::Result<(Streams, Outcome)> {
    let (sender, mut tokens) = mpsc::unbounded_channel::<(usize, Option<Instant>)>();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for stream in 0..count {
        let (target, sender) = (Arc::clone(target), sender.clone());
        let kind = Kind { prompt: STREAM.0..=STREAM.0, generate: STREAM.1, prefix: 0, ..kind.clone() };
        tasks.spawn(async move {
            for run in 0.. {
                let ask = &requests(&kind, 1, seed_of(seed, &[stream as u64, run]))[0];
                let tell = |now| {
                    // Nobody listens any more once the load has ended.
                    let _ = sender.send((stream, now));
                };
                tell(None);
                target.complete(ask, |now| tell(Some(now))).await?;
            }
            Ok(())
        });
    }
    let mut last: Vec<Option<Instant>> = vec![None; count];
    let mut gap = |stream: usize, now: Option<Instant>| {
        let before = std::mem::replace(&mut last[stream], now);
        Some((now?, (now? - before?).as_secs_f64()))
    };
    let mut seen = vec![0; count];
    while seen.iter().any(|seen| *seen < SETTLED) {
        tokio::select! {
            Some((stream, now)) = tokens.recv() => {
                seen[stream] += usize::from(now.is_some());
                gap(stream, now);
            }
            Some(ended) = tasks.join_next() => ended??,
        }
    }
    let start = Instant::now();
    let mut streams = Streams::default();
    let until = tokio::time::sleep(quiet);
    tokio::pin!(until, load);
    let mut outcome = None;
    let mut is_quiet = true;
    while outcome.is_none() {
        tokio::select! {
            Some((stream, now)) = tokens.recv() => {
                if let Some((end, gap)) = gap(stream, now) {
                    let gaps = if is_quiet { &mut streams.quiet } else { &mut streams.loaded };
                    gaps.push((end.saturating_duration_since(start).as_secs_f64(), gap));
                }
            }
            Some(ended) = tasks.join_next() => ended??,
            () = &mut until, if is_quiet => is_quiet = false,
            ended = &mut load, if !is_quiet => outcome = Some(ended),
        }
    }
    Ok((streams, outcome.unwrap_or_default()))
}
