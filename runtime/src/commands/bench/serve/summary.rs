//! What came of a load, in numbers with the names that vLLM's benchmark gives them.

use serde::Serialize;

use super::drive::{Answer, Arrivals, Outcome, Streams};

/// A distribution of times in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    /// Their mean.
    pub mean: f64,
    /// Their median.
    pub median: f64,
    /// Nine of ten are no longer.
    pub p90: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// The shortest, one for each percent, and the longest.
    pub percentiles: Vec<f64>,
}

impl Times {
    /// Of times in seconds.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Times {
        let mut sorted: Vec<f64> = seconds.into_iter().map(|time| time * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let mean = sorted.iter().sum::<f64>() / sorted.len().max(1) as f64;
        let percentiles: Vec<f64> = (0..=100).map(|percent| percentile(&sorted, f64::from(percent))).collect();
        Times { mean, median: percentiles[50], p90: percentiles[90], p99: percentiles[99], percentiles }
    }
}

/// The least value that is no less than so many percent of all; zero where there are none.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// A load on one server, all rounds together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The server.
    pub server: String,
    /// Clients in a closed loop.
    pub max_concurrency: Option<usize>,
    /// Requests a second of a Poisson process.
    pub request_rate: Option<f64>,
    /// Seconds of all rounds.
    pub duration: f64,
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were not.
    pub failed: usize,
    /// Tokens of their prompts.
    pub total_input_tokens: usize,
    /// Tokens generated.
    pub total_output_tokens: usize,
    /// Requests answered in a second.
    pub request_throughput: f64,
    /// Tokens generated in a second.
    pub output_throughput: f64,
    /// Tokens of prompts and answers in a second.
    pub total_token_throughput: f64,
    /// Tokens generated in a second, round by round.
    pub rounds: Vec<f64>,
    /// From sending to the first token.
    pub ttft_ms: Times,
    /// Between tokens of one answer.
    pub itl_ms: Times,
    /// From sending to the end.
    pub e2el_ms: Times,
    /// The streams beside it.
    pub streams: Option<StreamGaps>,
}

/// The gaps between tokens of streams that went on while a load arrived.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StreamGaps {
    /// How many streams.
    pub count: usize,
    /// While nothing else ran.
    pub quiet_ms: Times,
    /// While the load arrived.
    pub loaded_ms: Times,
    /// How many times longer the 99th percentile got.
    pub p99_ratio: f64,
    /// Of the first round, each gap in seconds with the second in which it ended.
    pub timeline: Vec<(f64, f64)>,
    /// The second of the timeline in which the load began.
    pub load_began: f64,
}

/// Sums up the rounds of one load on one server.
pub fn row(server: &str, arrivals: Arrivals, rounds: &[Outcome], streams: &[Streams], count: usize) -> Row {
    let answers = || rounds.iter().flat_map(|round| &round.answers);
    let sum = |of: fn(&Answer) -> usize| answers().map(of).sum::<usize>();
    let (input, output) = (sum(|answer| answer.usage.prompt_tokens), sum(|answer| answer.usage.completion_tokens));
    let duration: f64 = rounds.iter().map(|round| round.took.as_secs_f64()).sum();
    let each = |round: &Outcome| {
        let tokens: usize = round.answers.iter().map(|answer| answer.usage.completion_tokens).sum();
        tokens as f64 / round.took.as_secs_f64()
    };
    let (max_concurrency, request_rate) = match arrivals {
        Arrivals::Closed(clients) => (Some(clients), None),
        Arrivals::Poisson(rate) => (None, Some(rate)),
    };
    Row {
        server: server.to_owned(),
        max_concurrency,
        request_rate,
        duration,
        completed: answers().count(),
        failed: rounds.iter().map(|round| round.failures.len()).sum(),
        total_input_tokens: input,
        total_output_tokens: output,
        request_throughput: answers().count() as f64 / duration,
        output_throughput: output as f64 / duration,
        total_token_throughput: (input + output) as f64 / duration,
        rounds: rounds.iter().map(each).collect(),
        ttft_ms: Times::of(answers().map(|answer| answer.first)),
        itl_ms: Times::of(answers().flat_map(|answer| answer.gaps.iter().copied())),
        e2el_ms: Times::of(answers().map(|answer| answer.whole)),
        streams: (count > 0).then(|| gaps(streams, count)),
    }
}

fn gaps(rounds: &[Streams], count: usize) -> StreamGaps {
    let quiet_ms = Times::of(rounds.iter().flat_map(|round| &round.quiet).map(|(_, gap)| *gap));
    let loaded_ms = Times::of(rounds.iter().flat_map(|round| &round.loaded).map(|(_, gap)| *gap));
    let first = rounds.first().cloned().unwrap_or_default();
    StreamGaps {
        count,
        p99_ratio: loaded_ms.p99 / quiet_ms.p99,
        quiet_ms,
        loaded_ms,
        load_began: first.loaded.first().map_or(0.0, |(at, _)| *at),
        timeline: [first.quiet, first.loaded].concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::Usage;
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times = Times::of((1..=200).rev().map(|n| f64::from(n) / 1000.0));
        assert_eq!((times.median, times.p90, times.p99), (100.0, 180.0, 198.0));
        assert_eq!((times.percentiles[0], times.percentiles[100], times.mean), (1.0, 200.0, 100.5));
        assert_eq!(Times::of([0.003]).percentiles, [3.0; 101]);
        assert_eq!(Times::of([]).percentiles, [0.0; 101]);
    }

    #[test]
    fn rounds_add_up() {
        let usage = Usage { prompt_tokens: 100, completion_tokens: 10 };
        let answer = Answer { first: 0.1, gaps: vec![0.01; 9], whole: 0.19, usage };
        let round = |count: usize, seconds| Outcome {
            answers: vec![answer.clone(); count],
            failures: Vec::new(),
            took: Duration::from_secs(seconds),
        };
        let row = row("a", Arrivals::Closed(2), &[round(4, 2), round(4, 2)], &[], 0);
        assert_eq!((row.completed, row.total_input_tokens, row.total_output_tokens), (8, 800, 80));
        assert_eq!((row.request_throughput, row.output_throughput, row.total_token_throughput), (2.0, 20.0, 220.0));
        assert_eq!((row.rounds, row.itl_ms.p99, row.ttft_ms.median), (vec![20.0, 20.0], 10.0, 100.0));
    }
}
