//! A second model in the plan, which guesses what the first one will say: whether it can, and its schedule.
//!
//! Guesses are token ids, so both models must mean the same by each id. The draft is compiled for the same machines and in
//! the same way as its target, but for how its weights are stored: no more than its speed and how often it is right
//! depends on them.

use lathe_models::Model;
use lathe_models::tokenizer::Tokenizer;

use crate::emit;
use crate::error::CompileError;
use crate::options::Options;
use crate::pass::{self, PassOptions};
use crate::pipeline;
use crate::schedule::{self, Schedule};

/// The name of a draft model's program.
pub const PROGRAM: &str = "draft";

/// Why a model cannot guess for another one. It is the user's mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// Their vocabularies have different sizes.
    #[error(
        "{draft} has a vocabulary of {found} tokens, but {target} has one of {expected}; take a draft of the same family"
    )]
    VocabularySize {
        /// The target's name.
        target: String,
        /// The draft's.
        draft: String,
        /// Tokens of the target.
        expected: usize,
        /// Tokens of the draft.
        found: usize,
    },
    /// A token id stands for different text in both.
    #[error(
        "token {id} is {found} in {draft}, but {expected} in {target}; their vocabularies must be the same: take a draft of \
         the same family"
    )]
    Token {
        /// The target's name.
        target: String,
        /// The draft's.
        draft: String,
        /// The first id that differs.
        id: usize,
        /// What it is in the target.
        expected: String,
        /// What it is in the draft.
        found: String,
    },
    /// The draft is no smaller than what it guesses for.
    #[error(
        "{draft} has {found} parameters, more than the {expected} of {target}, so its guesses would take longer than they \
         save; give the larger model first"
    )]
    Larger {
        /// The target's name.
        target: String,
        /// The draft's.
        draft: String,
        /// Parameters of the target.
        expected: u64,
        /// Parameters of the draft.
        found: u64,
    },
}

/// A draft model, scheduled.
pub struct Draft {
    /// The model.
    pub model: Model,
    /// Its schedule.
    pub schedule: Schedule,
}

/// Schedules a draft for a target.
///
/// # Errors
/// When the draft cannot guess for the target, or cannot be scheduled.
pub fn lower(draft: Model, target: &Model, of_target: &Schedule, options: &Options) -> Result<Draft, CompileError> {
    same_vocabulary(target, &draft)?;
    let cache = options.cache_of(&draft.config);
    let model = draft.with_cache(cache)?;
    let mut graph = pipeline::checked(&model)?;
    PROGRAM.clone_into(&mut graph.name);
    let passes = PassOptions { formats: options.draft_formats.clone(), ..options.passes.clone() };
    pass::run(&mut graph, options.targets[0], &passes, &options.selection)?;
    // Answers that outgrow its context go on without guesses.
    let context = options.max_context.map_or(model.config.context, |asked| asked.min(model.config.context));
    let schedule = schedule::build(&graph, context, options.targets[0].machine)?;
    let [expected, found] = [of_target, &schedule].map(emit::parameters);
    if found > expected {
        let [target, draft] = [target, &model].map(|model| model.config.name.clone());
        return Err(DraftError::Larger { target, draft, expected, found }.into());
    }
    Ok(Draft { model, schedule })
}

/// Checks that every id stands for the same bytes in both models.
fn same_vocabulary(target: &Model, draft: &Model) -> Result<(), DraftError> {
    let [expected, found] = [target, draft].map(|model| model.tokenizer.tokens.len());
    let names = || [target, draft].map(|model| model.config.name.clone());
    if expected != found {
        let [target, draft] = names();
        return Err(DraftError::VocabularySize { target, draft, expected, found });
    }
    let differs = |id: &usize| target.tokenizer.tokens[*id].bytes != draft.tokenizer.tokens[*id].bytes;
    let Some(id) = (0..expected).find(differs) else { return Ok(()) };
    let text = |tokenizer: &Tokenizer| format!("{:?}", String::from_utf8_lossy(&tokenizer.tokens[id].bytes));
    let (expected, found) = (text(&target.tokenizer), text(&draft.tokenizer));
    let [target, draft] = names();
    Err(DraftError::Token { target, draft, id, expected, found })
}
