//! A bounded run of each fuzz target: the same inputs each time, a few thousand of them.

use lathe_fuzz::{TARGETS, bundle, campaign, target};

/// Tries so many inputs. At least `outcomes` different ones must come of them, or the mutators have gone blind.
fn check(name: &str, inputs: u64, outcomes: usize) {
    let target = target(name).expect("a target");
    let report = campaign::run(target, 20_260_101, |tried, _| tried < inputs);
    assert!(report.finding.is_none(), "`{name}` panicked at input {} of the seed above", report.inputs);
    assert_eq!(report.inputs, inputs);
    println!("{name}: {} of {inputs} accepted, {} outcomes", report.accepted(), report.outcomes.len());
    assert!(report.outcomes.len() >= outcomes, "only {} outcomes of `{name}`", report.outcomes.len());
    assert!(report.accepted() > inputs / 100, "only {} of {inputs} inputs of `{name}` are read", report.accepted());
}

#[test]
fn gguf() {
    check("gguf", 3000, 60);
}

#[test]
fn safetensors() {
    check("safetensors", 20_000, 20);
}

#[test]
fn config() {
    check("config", 4000, 60);
}

#[test]
fn vocabulary() {
    check("vocabulary", 4000, 30);
}

#[test]
fn tokenizer() {
    check("tokenizer", 1500, 30);
}

#[test]
fn template() {
    check("template", 4000, 10);
}

#[test]
fn plan() {
    check("plan", 2000, 30);
}

#[test]
fn ptx() {
    check("ptx", 3000, 60);
}

#[test]
fn inputs_follow_from_the_seed() {
    let mut inputs = [Vec::new(), Vec::new()];
    for seen in &mut inputs {
        campaign::run(&TARGETS[1], 7, |tried, input| {
            seen.push(input.to_vec());
            tried < 200
        });
    }
    assert_eq!(inputs[0], inputs[1]);
}

#[test]
fn files_come_out_of_a_bundle_as_they_went_in() {
    let files: [&[u8]; 3] = [b"", b"abc", &[0xff; 300]];
    assert_eq!(bundle::parts(&bundle::join(&files), 3), files);
    assert_eq!(bundle::parts(&[9, 0, 0, 0, 1, 2], 2), [&[1, 2][..], &[]]);
}
