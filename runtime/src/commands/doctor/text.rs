//! Facts and advice as text for people.

use std::fmt::Write;

use lathe_runtime::device::cpu::roofline::Roofline;

use super::facts::{Facts, PlanFacts};
use crate::commands::bench::machine;
use crate::commands::table;

/// The whole text.
pub fn write(facts: &Facts, limits: Option<&Roofline>, plan: Option<&PlanFacts>, advice: &[String]) -> String {
    let mut out = "# Machine\n\n".to_owned();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    line("CPU", &facts.cpu);
    line("features", &facts.features.join(" "));
    line("cores", &format!("{} ({} hardware threads that this process may use)", facts.cores, facts.cpus));
    line("quota", &facts.quota.map_or_else(|| "none".to_owned(), |quota| format!("{quota:.2} CPUs")));
    line("threads", &format!("{} unless --threads says otherwise", facts.threads));
    if let Some(governor) = &facts.governor {
        line("governor", governor);
    }
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), table::bytes);
    line("memory", &format!("{}, of which {} are free", known(facts.memory), known(facts.memory_left)));
    line("huge pages", facts.huge_pages.as_deref().unwrap_or("unknown"));
    match (&facts.gpu.name, facts.gpu.capability, &facts.gpu.problem) {
        (Some(name), Some(capability), _) => line("GPU", &format!("{name}, sm_{capability}")),
        (.., problem) => line("GPU", &format!("none: {}", problem.as_deref().unwrap_or("unknown"))),
    }
    if let Some(limits) = limits {
        let _ = write!(out, "\n# Limits\n\n{}", machine::as_table(limits));
    }
    if let Some(plan) = plan {
        let runs = |problem: &Option<String>| problem.clone().unwrap_or_else(|| "runs".to_owned());
        let rows: Vec<Vec<String>> =
            plan.targets.iter().map(|target| vec![target.target.clone(), runs(&target.problem)]).collect();
        let _ = write!(out, "\n# Plan\n\n{}\n", table::markdown(&["target", "here"], &rows));
        let chosen = plan.chosen.as_deref().unwrap_or("none");
        let _ = writeln!(out, "{:<12}{chosen}", "chosen");
        let _ = writeln!(out, "{:<12}{} with the default cache", "needs", table::bytes(plan.needs));
    }
    out += "\n# To change\n\n";
    if advice.is_empty() {
        out += "nothing\n";
    }
    for sentence in advice {
        let _ = writeln!(out, "- {sentence}");
    }
    out
}
