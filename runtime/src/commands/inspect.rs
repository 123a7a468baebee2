//! `lathe inspect`: everything that a plan contains, for people or as JSON. It needs no machine that could run the plan.

mod drafters;
mod story;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use self::story::Story;
use super::failure::Usage;
use super::model::{in_plan, open_plan};

const EXAMPLES: &str = "\
Examples:
  lathe inspect smol.plan
  lathe inspect smol.plan --json | jq '.programs[0].buckets[].steps'
  lathe inspect smol.plan --report fused          the graph after all passes, if the plan keeps its reports
  lathe inspect smol.plan --kernels               registers, spills and predicted times
  lathe inspect smol.plan --verify                reads all weights and checks their digests too";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// Print JSON, with every tensor and launch
    #[arg(long)]
    json: bool,
    /// Print one of the compiler's reports instead
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    report: Option<String>,
    /// Print what each kernel takes and how long it is predicted to take
    #[arg(long, conflicts_with_all = ["json", "report"])]
    kernels: bool,
    /// Check the digests of the weights as well; everything else is always checked
    #[arg(long)]
    verify: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let plan = open_plan(&args.plan)?;
    if args.verify {
        let verified = plan.verify_weights(std::thread::available_parallelism().map_or(1, usize::from));
        verified.map_err(|error| in_plan(&args.plan, error.into()))?;
        eprintln!("all weights match their digests");
    }
    let mut out = io::stdout().lock();
    if let Some(name) = args.report.as_deref().or(args.kernels.then_some("kernels")) {
        let Some(report) = plan.report(name) else {
            let names: Vec<&str> = plan.reports().map(|report| report.0).collect();
            let there =
                if names.is_empty() { "it keeps none".to_owned() } else { format!("it has {}", names.join(", ")) };
            return Err(Usage(format!("the plan has no report `{name}`, {there}")).into());
        };
        write!(out, "{report}")?;
    } else if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&Story::of(&args.plan, &plan))?)?;
    } else {
        write!(out, "{}", text::write(&Story::of(&args.plan, &plan)))?;
    }
    Ok(())
}
