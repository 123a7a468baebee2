//! `lathe compile --self-draft auto`: which layers a model guesses best without.
//!
//! The plan that was compiled runs over a text: first, at a few places, without each single layer, which tells how promising
//! it is to do without. Then layers are left out one after the other, each time the one of the most promising that keeps
//! most guesses right. What is expected of each choice, by right guesses and bytes read, is the curve that the plan keeps;
//! its best point becomes the plan's program `self`.

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
/// Places of the text where the model runs without each single layer.
const SCREENED: usize = 32;
/// Places where it runs without a choice of layers: as many as share a step.
const COMPARED: usize = 64;
/// Layers that are tried for the next one to leave out.
const TRIED: usize = 2;
/// Layers that are left out further when none makes answers faster.
const PATIENCE: usize = 2;

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
    /// How likely the model without this layer says what the whole one says; `None` where it cannot do without.
    fn promise_of(&self, layer: u32) -> anyhow::Result<Option<f64>> {
        let Ok(program) = skip::without_layers(self.main, skip::PROGRAM, &BTreeSet::from([layer])) else {
            return Ok(None);
        };
        Ok(Some(self.calibration.likelihood(&program, SCREENED)?))
    }

    /// What leaving out these layers gives; `None` where the model cannot do without them.
    fn try_without(&self, layers: &BTreeSet<u32>) -> anyhow::Result<Option<LeftOut>> {
        let Ok(program) = skip::without_layers(self.main, skip::PROGRAM, layers) else { return Ok(None) };
        let right = self.calibration.agreement(&program, COMPARED)?;
        let saved = skip::saved_bytes(self.main, &program);
        let share = self.bytes.saturating_sub(saved) as f64 / self.bytes.max(1) as f64;
        let (gain, depth) = best_gain(right, share);
        Ok(Some(LeftOut { layers: layers.iter().copied().collect(), right, share, gain, depth }))
    }
}

/// A layer that is not left out yet.
struct Open {
    layer: u32,
    lost: usize,  // how often another one was better
    promise: f64, // the mean log-probability of what the whole model says
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
        open.extend(search.promise_of(layer)?.map(|promise| Open { layer, lost: 0, promise }));
    }
    let mut curve: Vec<LeftOut> = Vec::new();
    let mut best = 0;
    while !open.is_empty() && curve.len() + 1 < layers as usize {
        // What was tried and was worse than others waits until the others have been tried as often.
        open.sort_by(|a, b| a.lost.cmp(&b.lost).then(b.promise.total_cmp(&a.promise)).then(a.layer.cmp(&b.layer)));
        let without: BTreeSet<u32> =
            curve.last().map(|point| point.layers.iter().copied().collect()).unwrap_or_default();
        let mut found: Option<(usize, LeftOut)> = None;
        for (at, open) in open.iter_mut().enumerate().take(TRIED) {
            open.lost += 1;
            let layers = without.iter().copied().chain([open.layer]).collect();
            let point = search.try_without(&layers)?;
            found = match (found, point) {
                (Some(found), Some(point)) if point.right <= found.1.right => Some(found),
                (_, Some(point)) => Some((at, point)),
                (found, None) => found,
            };
        }
        let Some((at, point)) = found else { break };
        open.remove(at);
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
