//! What guesses for the model, and what that gives at best.

use lathe_plan::manifest::{Drafter, Manifest, best_gain};
use lathe_plan::skip;

use super::text::{heading, line};
use crate::commands::table::{bytes, count, markdown};

/// A section for each drafter.
pub fn text(out: &mut String, manifest: &Manifest) {
    for drafter in &manifest.drafters {
        heading(out, "##", &format!("Drafter `{}`", drafter.program));
        line(out, "name", &drafter.name);
        if drafter.left_out.is_empty() {
            line(out, "architecture", &drafter.architecture);
            line(out, "parameters", &count(drafter.parameters));
            line(out, "context", &drafter.max_context.to_string());
            line(out, "quantization", &drafter.quantization);
            line(out, "weights", &bytes(drafter.weights_bytes));
        } else {
            line(out, "weights", "the model's own, and its cache");
            line(out, "left out", &format!("layers {}", spell(&drafter.left_out)));
        }
        let share = drafter.weights_bytes_per_token as f64 / manifest.weights_bytes_per_token.max(1) as f64;
        let read = bytes(drafter.weights_bytes_per_token);
        line(out, "per guess", &format!("{read} are read, {:.0} % of what a token of the model reads", 100.0 * share));
        line(out, "at best", &format!("{}, by the bytes read", gains(drafter, share)));
        line(out, "source", &format!("{} {}", drafter.source.format, drafter.source.blake3));
        curve(out, drafter);
    }
}

/// How many times faster answers get: as measured at the compile, else for some shares of right guesses.
fn gains(drafter: &Drafter, share: f64) -> String {
    let measured = drafter.curve.iter().find(|point| point.layers == drafter.left_out);
    if let Some(point) = measured {
        let right = 100.0 * point.right;
        return format!("{:.2} x with {} guesses, of which {right:.0} % are right", point.gain, point.depth);
    }
    let gains = [0.6, 0.8, 0.9].map(|right| {
        let (gain, depth) = best_gain(right, share);
        format!("{gain:.2} x with {depth} guesses if {:.0} % are right", 100.0 * right)
    });
    gains.join(", ")
}

/// How the search for layers to leave out went.
fn curve(out: &mut String, drafter: &Drafter) {
    if drafter.curve.is_empty() {
        return;
    }
    let rows = drafter.curve.iter().map(|point| {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let gain = format!("{:.2} x with {}", point.gain, point.depth);
        vec![spell(&point.layers), percent(point.right), percent(point.share), gain]
    });
    let header = ["left out", "right guesses", "bytes of a guess", "at best"];
    out.push('\n');
    out.push_str(&markdown(&header, &rows.collect::<Vec<_>>()));
}

fn spell(layers: &[u32]) -> String {
    skip::spell(&layers.iter().copied().collect())
}
