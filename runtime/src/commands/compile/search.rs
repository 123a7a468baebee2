//! `lathe compile --self-draft auto`: which layers a model guesses best without.
//!
//! The plan that was compiled runs over a text: first without each single layer, then layers are left out one after the
//! other, each time the one of the most promising that keeps most guesses right. What is expected of each choice, by right
//! guesses and bytes read, is the curve that the plan keeps; its best point becomes the plan's program `self`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::anyhow;
use lathe_plan::manifest::{Drafter, LeftOut, best_gain};
use lathe_plan::{LoadMode, Plan, Program, skip};
use lathe_runtime::calibrate::Calibration;
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::tokenizer::{Control, Tokenizer};

use crate::commands::model::open_plan;

/// The text.
const TEXT: &str = include_str!("calibration.txt");
/// Layers that are tried for the next one to leave out.
const TRIED: usize = 3;
/// Layers that are left out further when none makes answers faster.
const PATIENCE: usize = 3;

/// Searches, and writes the plan again with what was found.
pub fn run(path: &Path, quiet: bool) -> anyhow::Result<()> {
    let plan = open_plan(path)?;
    let drafter = search(&plan, quiet)?;
    let main = plan.program("main").ok_or_else(|| anyhow!("{} has no main program", path.display()))?;
    let program = skip::without_layers(main, skip::PROGRAM, &drafter.left_out.iter().copied().collect())?;
    let mut manifest = plan.manifest().cloned().unwrap_or_default();
    if !quiet && let Some(point) = drafter.curve.iter().find(|point| point.layers == drafter.left_out) {
        let layers = skip::spell(&drafter.left_out.iter().copied().collect());
        eprintln!(
            "without layers {layers} {:.0} % of guesses are right, for {:.0} % of the bytes: {:.2} x at best",
            100.0 * point.right,
            100.0 * point.share,
            point.gain
        );
    }
    manifest.flags.push("--self-draft auto".to_owned());
    manifest.drafters.push(drafter);
    plan.write_with(&program, &manifest, path)?;
    Ok(())
}

/// What is known while layers are left out.
struct Search<'a> {
    calibration: Calibration,
    main: &'a Program,
    bytes: u64, // of weights that a token reads
}

impl Search<'_> {
    /// What leaving out these layers gives; `None` where the model cannot do without them.
    fn try_without(&self, layers: &BTreeSet<u32>) -> anyhow::Result<Option<LeftOut>> {
        let Ok(program) = skip::without_layers(self.main, skip::PROGRAM, layers) else { return Ok(None) };
        let right = self.calibration.agreement(&program)?;
        let saved = skip::saved_bytes(self.main, &program);
        let share = self.bytes.saturating_sub(saved) as f64 / self.bytes.max(1) as f64;
        let (gain, depth) = best_gain(right, share);
        Ok(Some(LeftOut { layers: layers.iter().copied().collect(), right, share, gain, depth }))
    }
}

fn search(plan: &Plan, quiet: bool) -> anyhow::Result<Drafter> {
    let main = plan.program("main").ok_or_else(|| anyhow!("the plan has no main program"))?;
    let tables = plan.tokenizer().cloned().ok_or_else(|| {
        anyhow!("--self-draft auto needs a tokenizer for its text, and the plan has none; name layers instead")
    })?;
    let tokens = Tokenizer::new(tables)?.encode_prompt(TEXT, Control::AsText);
    let options = DeviceOptions { load: LoadMode::Map, ..DeviceOptions::default() };
    let manifest = plan.manifest().cloned().unwrap_or_default();
    let calibration = Calibration::new(plan, &tokens, &options)
        .map_err(|error| anyhow!("--self-draft auto runs the plan on this CPU: {error}; or name layers"))?;
    let search = Search { calibration, main, bytes: manifest.weights_bytes_per_token };
    let say = |text: String| {
        if !quiet {
            eprintln!("{text}");
        }
    };

    let layers = skip::layers(main);
    say(format!("looking for layers that guesses can do without, first each of {layers} alone"));
    let mut open = Vec::new();
    for layer in 0..layers {
        open.extend(search.try_without(&BTreeSet::from([layer]))?.map(|found| (layer, found)));
    }
    let mut curve: Vec<LeftOut> = Vec::new();
    let mut best = 0;
    while !open.is_empty() && curve.len() + 1 < layers as usize {
        // A layer that was dear to lose before is not cheap now.
        open.sort_by(|(a, one), (b, other)| other.right.total_cmp(&one.right).then(a.cmp(b)));
        let without: BTreeSet<u32> =
            curve.last().map(|point| point.layers.iter().copied().collect()).unwrap_or_default();
        let tried = if curve.is_empty() { 1 } else { TRIED };
        for (layer, found) in open.iter_mut().take(tried).filter(|_| !without.is_empty()) {
            let layers = without.iter().copied().chain([*layer]).collect();
            if let Some(point) = search.try_without(&layers)? {
                *found = point;
            }
        }
        let tried = open.iter().take(tried).enumerate();
        let Some((at, _)) = tried.max_by(|(_, a), (_, b)| a.1.right.total_cmp(&b.1.right).then(b.0.cmp(&a.0))) else {
            break;
        };
        let (_, point) = open.remove(at);
        say(format!(
            "without layers {}: {:.0} % right, {:.0} % of the bytes, {:.2} x",
            skip::spell(&point.layers.iter().copied().collect()),
            100.0 * point.right,
            100.0 * point.share,
            point.gain
        ));
        curve.push(point);
        if curve[curve.len() - 1].gain > curve[best].gain {
            best = curve.len() - 1;
        }
        if curve.len() > best + PATIENCE {
            break;
        }
    }
    let point = curve.get(best).ok_or_else(|| {
        anyhow!("--self-draft auto: this model cannot do without any of its {layers} layers; leave the flag out")
    })?;
    Ok(Drafter {
        program: skip::PROGRAM.to_owned(),
        name: manifest.name,
        architecture: manifest.architecture,
        parameters: manifest.parameters,
        max_context: manifest.max_context,
        weights_bytes_per_token: (point.share * search.bytes as f64).round() as u64,
        source: manifest.source,
        left_out: point.layers.clone(),
        curve: curve.clone(),
        ..Drafter::default()
    })
}
