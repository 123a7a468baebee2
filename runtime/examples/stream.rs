//! Opens a plan and streams an answer: `cargo run --release --example stream model.plan`.

use std::io::{Write, stdout};

use lathe_runtime::chat::{ChatTemplate, Message, Role};
use lathe_runtime::stream::TextStream;
use lathe_runtime::tokenizer::{Tokenizer, decoder::Decoder};
use lathe_runtime::{Engine, EngineOptions, Event, Plan, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: stream PLAN")?;
    let plan = Plan::open(path.as_ref())?;
    let tokenizer = Tokenizer::new(plan.tokenizer().ok_or("the plan has no tokenizer")?.clone())?;
    let template = ChatTemplate::new(plan.chat_template().ok_or("the plan has no chat template")?, &tokenizer)?;
    let question = [Message::new(Role::User, "What is a compiler?")];
    let mut engine = Engine::load(&plan, &EngineOptions::default())?;
    engine.submit(Request {
        tokens: template.encode(&tokenizer, &question, true)?,
        max_tokens: Some(200),
        stop: tokenizer.tables().eos.clone(),
        ..Request::default()
    })?;
    let (mut decoder, mut text) = (Decoder::new(&tokenizer), TextStream::new());
    while !engine.is_idle() {
        for event in engine.step()? {
            let Event::Token { token, .. } = event else { continue };
            print!("{}", text.push(decoder.visible_bytes(&tokenizer, *token)));
            stdout().flush()?;
        }
    }
    println!("{}", text.finish());
    Ok(())
}
