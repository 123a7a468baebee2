//! A plan into what the runtime takes from it. Its machine code is checked as data and never run.

use lathe_plan::Plan;
use lathe_runtime::chat::ChatTemplate;
use lathe_runtime::tokenizer::Tokenizer;

use crate::exercise::exercise;
use crate::mutate::Shape;
use crate::{Outcome, Target, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "plan",
    summary: "a plan, changed under digests that are right, into its program and tokenizer",
    shape: Shape::Plan,
    seeds: seeds::plan,
    run,
};

fn run(input: &[u8]) -> Outcome {
    let plan = match Plan::from_bytes(input.to_vec()) {
        Ok(plan) => plan,
        Err(error) => return Outcome::refused(&error),
    };
    let weights = plan.verify_weights(1);
    let mut what = format!("{} programs, weights {}", plan.programs().len(), weights.is_ok());
    if let Some(tables) = plan.tokenizer() {
        match Tokenizer::new(tables.clone()) {
            Err(error) => return Outcome::refused(&error),
            Ok(tokenizer) => {
                what += &exercise(&tokenizer, |_, _| {});
                if let Some(Err(error)) = plan.chat_template().map(|source| ChatTemplate::new(source, &tokenizer)) {
                    return Outcome::refused(&error);
                }
            }
        }
    }
    Outcome::accepted(what)
}
