//! `lathe doctor`: what this machine has, which targets of a plan run on it and why not, and what to change.
//!
//! [`facts`] looks at the machine, [`advice`] draws conclusions from nothing but facts, [`text`] prints both.

mod advice;
mod facts;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;

use self::facts::{Facts, PlanFacts};
use super::bench::machine;
use super::failure::Unsuitable;
use super::model::open_plan;

const EXAMPLES: &str = "\
Examples:
  lathe doctor                      what this machine has, and what it reaches
  lathe doctor smol.plan            also whether the plan runs here, on which code
  lathe doctor smol.plan --quick --json | jq '.advice'

Exit code 3 says that no code of the plan runs here.";

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A plan that is to run here
    plan: Option<PathBuf>,
    /// Leave out measuring, which takes two seconds
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let facts = Facts::here();
    let plan = args.plan.as_deref().map(open_plan).transpose()?;
    let plan = plan.as_ref().map(|plan| PlanFacts::of(plan, &facts));
    let limits = if args.quick || !facts.runs_plans() { None } else { Some(machine::measure(None)?) };
    let advice = advice::advise(&facts, plan.as_ref());
    let text = if args.json {
        let machine = limits.as_ref().map(machine::to_json);
        let all = json!({ "machine": facts, "limits": machine, "plan": plan, "advice": advice });
        serde_json::to_string_pretty(&all)? + "\n"
    } else {
        text::write(&facts, limits.as_ref(), plan.as_ref(), &advice)
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    match plan {
        Some(plan) if !plan.runs() => Err(Unsuitable("no code of the plan runs on this machine".to_owned()).into()),
        _ => Ok(()),
    }
}
