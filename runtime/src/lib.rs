//! Lathe's runtime: maps a plan and runs it. It holds no compiler: everything that runs per token was generated when the
//! plan was compiled.
//!
//! ```no_run
//! use std::io::{Write, stdout};
//!
//! use lathe_runtime::chat::{ChatTemplate, Message, Role};
//! use lathe_runtime::stream::TextStream;
//! use lathe_runtime::tokenizer::{Tokenizer, decoder::Decoder};
//! use lathe_runtime::{Engine, EngineOptions, Event, Plan, Request};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let path = std::env::args_os().nth(1).ok_or("usage: stream PLAN")?;
//!     let plan = Plan::open(path.as_ref())?;
//!     let tokenizer = Tokenizer::new(plan.tokenizer().ok_or("the plan has no tokenizer")?.clone())?;
//!     let template = ChatTemplate::new(plan.chat_template().ok_or("the plan has no chat template")?, &tokenizer)?;
//!     let question = [Message::new(Role::User, "What is a compiler?")];
//!     let mut engine = Engine::load(&plan, &EngineOptions::default())?;
//!     engine.submit(Request {
//!         tokens: template.encode(&tokenizer, &question, true)?,
//!         max_tokens: Some(200),
//!         stop: tokenizer.tables().eos.clone(),
//!         ..Request::default()
//!     })?;
//!     let (mut decoder, mut text) = (Decoder::new(&tokenizer), TextStream::new());
//!     while !engine.is_idle() {
//!         for event in engine.step()? {
//!             let Event::Token { token, .. } = event else { continue };
//!             print!("{}", text.push(decoder.visible_bytes(&tokenizer, *token)));
//!             stdout().flush()?;
//!         }
//!     }
//!     println!("{}", text.finish());
//!     Ok(())
//! }
//! ```
//!
//! In the order in which a request meets them:
//!
//! - [`engine`]: the loop: admit, draft, run, sample, retire.
//! - [`batcher`]: which tokens of which requests make up the next step.
//! - [`speculate`]: guesses of the tokens that follow, which a step verifies.
//! - [`kv`]: the pages of the cache, and who holds them.
//! - [`device`]: runs steps; [`exec`] prepares a plan's launches for it.
//! - [`sample`]: chooses tokens from logits; [`math`] is its arithmetic.
//! - [`tokenizer`]: text into tokens; [`chat`] makes prompts of conversations, [`stream`] makes text of tokens.
//! - [`server`]: all of it behind HTTP.
//! - [`calibrate`]: how often a model says the same without some layers, for the compile command.
//! - [`error`]: what can go wrong.

pub mod batcher;
pub mod calibrate;
pub mod chat;
pub mod device;
pub mod engine;
pub mod error;
pub mod exec;
pub mod kv;
pub mod math;
pub mod sample;
pub mod server;
pub mod speculate;
pub mod stream;
pub mod tokenizer;

pub use batcher::{Event, FinishReason, Request, RequestId};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, Result};
pub use lathe_plan::Plan;
pub use sample::SampleParams;
