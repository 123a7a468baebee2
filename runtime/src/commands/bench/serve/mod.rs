//! `lathe bench serve`: the same load on one server or several of `OpenAI`'s interface, Lathe's or others'.
//!
//! A seed decides prompts, lengths and arrivals, so that every server gets the same requests. With several servers the
//! rounds take turns, which spreads the noise of the machine over all of them.
//!
//! - [`workload`]: what is asked, and when; [`client`]: one request over HTTP; [`drive`]: many of them.
//! - [`summary`]: percentiles and rates; [`chart`]: the picture.

mod chart;
mod client;
mod drive;
mod summary;
mod workload;

use std::fs;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use self::client::Target;
use self::drive::{Arrivals, Outcome, Streams};
use self::summary::{Row, Times};
use self::workload::{Ask, Kind, requests, seed_of};
use crate::commands::failure::Usage;
use crate::commands::model::positive;
use crate::commands::table;

const EXAMPLES: &str = "\
Examples:
  lathe bench serve http://127.0.0.1:8000 --clients 1,8,32 --svg load.svg
  lathe bench serve http://127.0.0.1:8000 --rate 0.5,2,4 --requests 100
  lathe bench serve lathe=http://127.0.0.1:8000 other=http://127.0.0.1:8080 --rounds 3   the same load on both, in turns
  lathe bench serve http://127.0.0.1:8000 --streams 16 --clients 1 --prompt 1500 --generate 1
                                                        how long prompts disturb streams in progress
  lathe bench serve http://127.0.0.1:8000 --prefix 1000 --prompt 1032 --generate 1
                                                        prompts that share their beginning";

/// What to send, and where.
#[derive(Debug, clap::Args)]
#[group(id = "load")]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Servers of OpenAI's interface, as http://HOST:PORT or NAME=http://HOST:PORT
    #[arg(required = true, value_name = "URL")]
    servers: Vec<String>,
    /// The model to ask for [default: the first that each server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The key that the servers ask for
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Closed loops: so many clients, each with one request at a time
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = positive, default_values_t = [1, 8, 32])]
    clients: Vec<usize>,
    /// Poisson processes instead: so many requests a second on average
    #[arg(long, value_name = "R,…", value_delimiter = ',', conflicts_with = "clients", value_parser = rate)]
    rate: Vec<f64>,
    /// Requests of a round [default: 4 for each client; 64 at a rate]
    #[arg(long, value_name = "N", value_parser = positive)]
    requests: Option<usize>,
    /// Rounds, in which servers and loads take turns
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = positive)]
    rounds: usize,
    /// Tokens of a prompt: a number, or a range of equally likely ones
    #[arg(short, long, value_name = "N or N-N", default_value = "128-512", value_parser = range)]
    prompt: RangeInclusive<usize>,
    /// Tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = positive)]
    generate: usize,
    /// Tokens at the beginning of the prompts that are the same for all of a round
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefix: usize,
    /// Requests at the beginning of a round that are not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
    /// Streams that decode all the while, whose gaps are compared with those before the load
    #[arg(long, value_name = "N", default_value_t = 0)]
    streams: usize,
    /// Seconds of these streams alone
    #[arg(long, value_name = "S", default_value_t = 5)]
    quiet: u64,
    /// Prompts are made of token ids below this
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(2..))]
    vocabulary: u32,
    /// Decides prompts, lengths and arrivals
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// Draws a chart
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A Markdown table
    Md,
    /// An array of objects with the fields of vLLM's benchmark
    Json,
}

/// A rate of requests.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.ok_or_else(|| "expected a number above 0".to_owned())
}

/// `N` or `N-N`.
fn range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let ends = (least.parse().ok(), most.parse().ok());
    let (Some(least), Some(most)) = ends else { return Err("expected a whole number, or two with `-` between".into()) };
    if least == 0 || least > most { Err("expected at least 1, and the lesser first".into()) } else { Ok(least..=most) }
}

/// What came of one load on one server.
#[derive(Default)]
struct Record {
    outcomes: Vec<Outcome>,
    streams: Vec<Streams>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut targets = args.servers.iter().map(|text| Target::read(text)).collect::<anyhow::Result<Vec<_>>>();
    for target in targets.iter_mut().flatten() {
        (target.model, target.key) = (args.model.clone().unwrap_or_default(), args.api_key.clone());
    }
    let targets = targets.map_err(|error| Usage(format!("{error:#}")))?;
    // One thread: what this program takes is taken from a server beside it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(measure(args, targets))?;
    if let Some(path) = &args.svg {
        fs::write(path, chart::svg(&rows)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?,
        Output::Md => write!(out, "{}", as_table(&rows))?,
    }
    Ok(())
}

/// Runs all rounds of all loads on all servers.
async fn measure(args: &Args, mut targets: Vec<Target>) -> anyhow::Result<Vec<Row>> {
    for target in targets.iter_mut().filter(|target| target.model.is_empty()) {
        target.model = target.first_model().await?;
    }
    let targets: Vec<Arc<Target>> = targets.into_iter().map(Arc::new).collect();
    let loads: Vec<Arrivals> = if args.rate.is_empty() {
        args.clients.iter().copied().map(Arrivals::Closed).collect()
    } else {
        args.rate.iter().copied().map(Arrivals::Poisson).collect()
    };
    let style = ProgressStyle::with_template("{bar:40} run {pos} of {len}, {eta} left");
    let bar = ProgressBar::new((args.rounds * loads.len() * targets.len()) as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut records: Vec<Vec<Record>> =
        loads.iter().map(|_| targets.iter().map(|_| Record::default()).collect()).collect();
    for round in 0..args.rounds {
        for (load, arrivals) in loads.iter().enumerate() {
            let seed = seed_of(args.seed, &[round as u64, load as u64]);
            // Each server is the first in its turn.
            for turn in 0..targets.len() {
                let server = (round + turn) % targets.len();
                one(args, &targets[server], *arrivals, seed, &mut records[load][server]).await?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let mut rows = Vec::new();
    for (arrivals, servers) in loads.iter().zip(&records) {
        for (target, record) in targets.iter().zip(servers) {
            let row = summary::row(&target.name, *arrivals, &record.outcomes, &record.streams, args.streams);
            if let Some(failure) = record.outcomes.iter().flat_map(|outcome| &outcome.failures).next() {
                let all = row.completed + row.failed;
                anyhow::ensure!(row.completed > 0, "none of {all} requests was answered: {failure:#}");
                eprintln!("warning: {} of {all} requests to {} failed: {failure:#}", row.failed, target.name);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Runs one round of one load on one server.
async fn one(
    args: &Args,
    target: &Arc<Target>,
    arrivals: Arrivals,
    seed: u64,
    record: &mut Record,
) -> anyhow::Result<()> {
    let usual = match arrivals {
        Arrivals::Closed(clients) => 4 * clients,
        Arrivals::Poisson(_) => 64,
    };
    let kind =
        Kind { prompt: args.prompt.clone(), generate: args.generate, prefix: args.prefix, vocabulary: args.vocabulary };
    let mut asks = requests(&kind, args.warm_up + args.requests.unwrap_or(usual), seed);
    let rest: Arc<[Ask]> = asks.split_off(args.warm_up).into();
    for ask in &asks {
        target.complete(ask, |_| ()).await?;
    }
    let load = drive::run(target, &rest, arrivals);
    if args.streams == 0 {
        record.outcomes.push(load.await);
    } else {
        let quiet = Duration::from_secs(args.quiet);
        let (streams, outcome) = drive::beside_streams(target, args.streams, quiet, &kind, seed, load).await?;
        record.streams.push(streams);
        record.outcomes.push(outcome);
    }
    Ok(())
}

fn as_table(rows: &[Row]) -> String {
    let times = |times: &Times| format!("{:.1} / {:.1} / {:.1}", times.median, times.p90, times.p99);
    let cells = |row: &Row| {
        vec![
            row.server.clone(),
            chart::load(row),
            row.completed.to_string(),
            format!("{:.1}", row.output_throughput),
            format!("{:.1}", row.total_token_throughput),
            times(&row.ttft_ms),
            times(&row.itl_ms),
            times(&row.e2el_ms),
        ]
    };
    let header = [
        "server",
        "load",
        "requests",
        "output t/s",
        "total t/s",
        "first token ms (p50 / p90 / p99)",
        "between tokens ms",
        "end to end ms",
    ];
    let mut text = table::markdown(&header, &rows.iter().map(cells).collect::<Vec<_>>());
    let streams = rows.iter().filter_map(|row| Some((row, row.streams.as_ref()?)));
    let gaps: Vec<Vec<String>> = streams
        .map(|(row, gaps)| {
            vec![
                row.server.clone(),
                chart::load(row),
                gaps.count.to_string(),
                times(&gaps.quiet_ms),
                times(&gaps.loaded_ms),
                format!("{:.2}", gaps.p99_ratio),
            ]
        })
        .collect();
    if !gaps.is_empty() {
        let header = ["server", "load", "streams", "their gaps alone, ms", "beside the load, ms", "p99, times"];
        text = text + "\n" + &table::markdown(&header, &gaps);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_rates_are_read() {
        assert_eq!(range("128-512"), Ok(128..=512));
        assert_eq!(range("7"), Ok(7..=7));
        for wrong in ["", "0", "5-4", "a", "1-2-3", "-3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "x"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
