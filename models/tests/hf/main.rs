//! Hugging Face directories: the same model as from GGUF, and every kind of bad file named in a sentence.

mod directory;
mod refusals;
mod same_model;
