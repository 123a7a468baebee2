//! The story of a plan as text for people.

use std::collections::BTreeMap;

use lathe_plan::Manifest;
use lathe_plan::manifest::Tensor;

use super::drafters;
use super::story::{BucketStory, ProgramStory, SizeStory, Story, largest};
use crate::commands::table::{bytes, count, markdown};

/// The whole text.
pub fn write(story: &Story) -> String {
    let mut out = format!("# {}\n\n", story.file);
    line(&mut out, "size", &bytes(story.bytes));
    line(&mut out, "format", &format!("{}, runtime ABI {}", story.format, story.runtime_abi));
    line(&mut out, "root", &story.root);
    if let Some(seed) = story.random_weights {
        line(&mut out, "weights", &format!("random:{seed}, made when the plan is loaded; for `lathe bench` alone"));
    }
    if let Some(manifest) = &story.manifest {
        model(&mut out, manifest);
        decoder(&mut out, manifest);
        drafters::text(&mut out, manifest);
        weights(&mut out, story, manifest);
    }
    for entry in &story.programs {
        program(&mut out, entry);
    }
    tokenizer(&mut out, story);
    for (title, text) in [
        ("Chat template", &story.chat_template),
        ("Generation config", &story.generation_config),
        ("Licence", &story.licence_text),
    ] {
        match text {
            Some(text) => {
                heading(&mut out, "##", title);
                out.extend([text.trim_end(), "\n"]);
            }
            None if title == "Chat template" => out.extend(["\n", title, ": none\n"]),
            None => {}
        }
    }
    sections(&mut out, story);
    if !story.reports.is_empty() {
        out.extend(["\nReports, for --report: ", &story.reports.join(", "), "\n"]);
    }
    out
}

/// A heading of a level (`##`).
pub(super) fn heading(out: &mut String, level: &str, title: &str) {
    out.extend(["\n", level, " ", title, "\n\n"]);
}

/// A name and its value, which is left out when empty.
pub(super) fn line(out: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        out.extend([&format!("{name:<13} "), value, "\n"]);
    }
}

fn model(out: &mut String, manifest: &Manifest) {
    heading(out, "##", "Model");
    line(out, "name", &manifest.name);
    line(out, "architecture", &manifest.architecture);
    line(out, "parameters", &count(manifest.parameters));
    line(out, "context", &manifest.max_context.to_string());
    line(out, "vocabulary", &manifest.vocabulary.to_string());
    line(out, "licence", manifest.licence.as_deref().unwrap_or("not stated"));
    line(out, "targets", &manifest.targets.join(", "));
    line(out, "quantization", &manifest.quantization);
    line(out, "activations", &manifest.activations);
    line(out, "source", &format!("{} {}", manifest.source.format, manifest.source.blake3));
    line(out, "compiler", &manifest.compiler);
    line(out, "flags", &manifest.flags.join(" "));
}

/// The decoder's knobs, and the attention of its layers: those that attend alike share a line.
fn decoder(out: &mut String, manifest: &Manifest) {
    if manifest.knobs.is_empty() && manifest.attention.is_empty() {
        return;
    }
    heading(out, "##", "Decoder");
    for knob in &manifest.knobs {
        line(out, &knob.name, &knob.value);
    }
    let mut variants: Vec<(&str, Vec<usize>)> = Vec::new();
    for (layer, attention) in manifest.attention.iter().enumerate() {
        match variants.iter_mut().find(|(variant, _)| *variant == attention.variant) {
            Some((_, layers)) => layers.push(layer),
            None => variants.push((&attention.variant, vec![layer])),
        }
    }
    for (variant, layers) in variants {
        line(out, "attention", &format!("layers {}: {variant}", ranges(&layers)));
    }
}

/// Numbers in order as people write them: `0-3, 5, 7-9`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|before, after| before + 1 == *after);
    let run = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect(),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

fn weights(out: &mut String, story: &Story, manifest: &Manifest) {
    heading(out, "##", "Weights");
    line(
        out,
        "per token",
        &format!(
            "{} ({:.1} MB) of {} are read for a token that is decoded alone",
            bytes(manifest.weights_bytes_per_token),
            manifest.weights_bytes_per_token as f64 / 1e6,
            bytes(manifest.weights_bytes)
        ),
    );
    *out += "\n";
    let rows: Vec<Vec<String>> = story
        .schemes
        .iter()
        .map(|scheme| {
            vec![scheme.scheme.clone(), scheme.tensors.to_string(), bytes(scheme.bytes), error(scheme.max_error, story)]
        })
        .collect();
    *out += &markdown(&["scheme", "tensors", "bytes", "largest error"], &rows);
    *out += "\n`*` stands for the layers; `--report errors` gives the error of every tensor, `--json` all of it.\n\n";
    let mut groups: BTreeMap<(String, &str, &str, &[u64]), Vec<&Tensor>> = BTreeMap::new();
    for tensor in &manifest.tensors {
        let key = (pattern(&tensor.name), tensor.source.as_str(), tensor.scheme.as_str(), tensor.shape.as_slice());
        groups.entry(key).or_default().push(tensor);
    }
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|((name, source, scheme, shape), tensors)| {
            let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
            vec![
                name.clone(),
                ranges(&tensors.iter().filter_map(|tensor| layer(&tensor.name)).collect::<Vec<_>>()),
                shape.join(" × "),
                (*source).to_owned(),
                (*scheme).to_owned(),
                bytes(tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))),
                error(largest(tensors.iter().map(|tensor| tensor.error)), story),
            ]
        })
        .collect();
    *out += &markdown(&["tensor", "layers", "shape", "source", "scheme", "bytes", "largest error"], &rows);
}

/// A tensor's name with `*` for its numbers between dots.
fn pattern(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// The layer of a tensor: the first number between the dots of its name.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

fn error(error: Option<f64>, story: &Story) -> String {
    match error {
        Some(0.0) => "0 (exact)".to_owned(),
        Some(error) => format!("{error:.6}"),
        None if story.random_weights.is_some() => "unknown".to_owned(),
        None => "not finite".to_owned(),
    }
}

fn program(out: &mut String, program: &ProgramStory) {
    heading(out, "##", &format!("Program `{}`", program.name));
    line(out, "vocabulary", &program.vocabulary.to_string());
    line(out, "context", &program.max_context.to_string());
    line(out, "weights", &format!("{} in {} tensors", bytes(program.weight_bytes), program.weights));
    line(out, "inputs", &program.inputs.join(", "));
    for code in &program.codes {
        let needs = code.features.join(" ");
        line(
            out,
            "code",
            &format!(
                "{}, {}, weights in layout `{}`, needs {needs}",
                code.target,
                bytes(code.bytes as u64),
                code.layout
            ),
        );
    }
    for cache in &program.caches {
        let text = format!(
            "`{}`: {} tensors, pages of {} tokens, retention {}, {:.0} bytes per token, {} at full context",
            cache.name,
            cache.tensors,
            cache.page_tokens,
            cache.retention,
            cache.bytes_per_token,
            bytes(cache.bytes_at_max_context)
        );
        line(out, "cache", &text);
    }
    heading(out, "###", "Kernels");
    let rows: Vec<Vec<String>> = program
        .kernels
        .iter()
        .map(|kernel| {
            vec![kernel.name.clone(), kernel.recipe.clone(), kernel.operands.to_string(), kernel.params.to_string()]
        })
        .collect();
    *out += &markdown(&["kernel", "recipe", "operands", "parameters"], &rows);
    for entry in &program.buckets {
        bucket(out, entry);
    }
}

fn bucket(out: &mut String, bucket: &BucketStory) {
    heading(out, "###", &format!("Bucket up to {}", size(bucket.max)));
    line(out, "launches", &format!("{}, with {} barriers", bucket.launches.len(), bucket.barriers));
    line(out, "arena", &bytes(bucket.arena_bytes));
    line(out, "scratch", &format!("{} per worker", bytes(bucket.scratch_bytes)));
    for step in &bucket.steps {
        let flops = spaced(&count(step.flops));
        out.extend([format!("\nA step of {}: {flops}FLOP, {} moved\n\n", size(step.size), bytes(step.bytes))]);
        let rows: Vec<Vec<String>> = step
            .kernels
            .iter()
            .map(|kernel| {
                vec![kernel.kernel.clone(), kernel.launches.to_string(), count(kernel.flops), bytes(kernel.bytes)]
            })
            .collect();
        *out += &markdown(&["kernel", "launches", "FLOP", "bytes"], &rows);
    }
}

/// A count before its unit: `12 `, but `12 M`.
fn spaced(count: &str) -> String {
    if count.ends_with(|c: char| c.is_ascii_digit()) { format!("{count} ") } else { count.to_owned() }
}

fn size(size: SizeStory) -> String {
    format!("{} tokens, {} sequences, {} rows", size.tokens, size.sequences, size.rows)
}

fn tokenizer(out: &mut String, story: &Story) {
    let Some(tokenizer) = &story.tokenizer else { return };
    heading(out, "##", "Tokenizer");
    let cut = match tokenizer.pretokenizer.as_str() {
        "" => String::new(),
        name => format!(", pre-tokenizer `{name}`"),
    };
    line(out, "model", &format!("{}{cut}", tokenizer.model));
    line(
        out,
        "tokens",
        &format!("{}, {} of them for control, {} merges", tokenizer.tokens, tokenizer.control_tokens, tokenizer.merges),
    );
    if let Some(bos) = &tokenizer.bos {
        let added = if tokenizer.add_bos { "put before texts" } else { "not put before texts" };
        line(out, "bos", &format!("{} `{}`, {added}", bos.id, bos.text));
    }
    let eos: Vec<String> = tokenizer.eos.iter().map(|token| format!("{} `{}`", token.id, token.text)).collect();
    line(out, "eos", &eos.join(", "));
}

fn sections(out: &mut String, story: &Story) {
    heading(out, "##", "Sections");
    let rows: Vec<Vec<String>> = story
        .sections
        .iter()
        .map(|section| {
            let labels = [&section.name, &section.target, &section.layout];
            let labels: Vec<&str> = labels.into_iter().map(String::as_str).filter(|label| !label.is_empty()).collect();
            vec![
                section.kind.clone(),
                labels.join(" "),
                section.offset.to_string(),
                section.bytes.to_string(),
                section.digest.clone(),
            ]
        })
        .collect();
    *out += &markdown(&["section", "labels", "offset", "bytes", "BLAKE3"], &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_told_by_their_pattern() {
        assert_eq!(pattern("blk.12.attn_q.weight"), "blk.*.attn_q.weight");
        assert_eq!(pattern("output.weight"), "output.weight");
        assert_eq!(pattern("w2.v10"), "w2.v10");
        assert_eq!((layer("blk.12.attn_q.weight"), layer("output.weight")), (Some(12), None));
    }

    #[test]
    fn a_value_stands_apart_from_its_name_however_long_that_is() {
        let mut out = String::new();
        line(&mut out, "embedding scale", "25.3");
        line(&mut out, "size", "8");
        assert_eq!(out, "embedding scale 25.3\nsize          8\n");
    }

    #[test]
    fn numbers_in_a_row_are_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[]), "");
    }
}
