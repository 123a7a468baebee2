//! What is fuzzed: a file for each target.

pub mod config;
pub mod gguf;
pub mod plan;
pub mod ptx;
pub mod safetensors;
pub mod template;
pub mod tokenizer;
pub mod vocabulary;
