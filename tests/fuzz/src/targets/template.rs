//! A chat template and a conversation into tokens, among which no message may smuggle in one that is structure.

use lathe_runtime::chat::{ChatTemplate, Message, Role};

use crate::exercise::runtime;
use crate::mutate::Shape;
use crate::{Outcome, Target, bundle, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "template",
    summary: "a chat template and two messages into tokens",
    shape: Shape::Bundle(&[Shape::Text(JINJA), Shape::Text(STRUCTURE), Shape::Text(STRUCTURE)]),
    seeds: seeds::template,
    run,
};

/// Words of the template's language.
const JINJA: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    " if ",
    " else ",
    " endif ",
    " for ",
    " in ",
    " endfor ",
    " set ",
    " macro x(a) ",
    " endmacro ",
    "namespace(a=1)",
    "loop.index0",
    "loop.last",
    "messages",
    "message",
    "content",
    "['role']",
    ".content",
    "|tojson",
    "|tojson(indent=4)",
    "|trim",
    "|string",
    "|length",
    "|list",
    "|upper",
    "|items",
    "|map(attribute='role')",
    "raise_exception('no')",
    "strftime_now('%d %b %Y')",
    "[0]",
    "[-1]",
    "[1:]",
    "[::-1]",
    " is defined",
    " is string",
    " is mapping",
    " is none",
    " not ",
    " and ",
    " or ",
    " ~ ",
    "+",
    "*",
    "//",
    "%",
    "**",
    "10000000000",
    "-1",
    "0.5",
    "'a'",
    "\"",
    ".split(' ')",
    ".strip()",
    ".title()",
    ".items()",
    ".startswith('a')",
    ".replace('a', 'b')",
    "range(9)",
    "{% break %}",
    "{% continue %}",
    "{% generation %}",
    "{% endgeneration %}",
    "bos_token",
    "eos_token",
    "tools",
    "none",
    "true",
];

/// Texts of tokens that are structure, and parts of them.
const STRUCTURE: &[&str] =
    &["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "|>", "<", "<|", " ", "\n", "é", "\u{e000}"];

/// Encodes one conversation; the structure that comes out.
fn structure(
    template: &ChatTemplate,
    tokenizer: &lathe_runtime::tokenizer::Tokenizer,
    texts: [&str; 2],
) -> Option<Vec<u32>> {
    let messages = [Message::new(Role::System, texts[0]), Message::new(Role::User, texts[1])];
    let tokens = template.encode(tokenizer, &messages, true).ok()?;
    let is_control = |id: &u32| tokenizer.tables().kind(*id) == Some(lathe_plan::TokenKind::Control);
    Some(tokens.into_iter().filter(is_control).collect())
}

fn run(input: &[u8]) -> Outcome {
    let files = bundle::parts(input, 3);
    let [source, system, user] = [0, 1, 2].map(|at| String::from_utf8_lossy(files[at]));
    let tokenizer = runtime(&lathe_models::seeded::small_tokenizer()).expect("the tables are sound");
    let template = match ChatTemplate::new(&source, &tokenizer) {
        Ok(template) => template.at(1_721_955_661),
        Err(error) => return Outcome::refused(&error),
    };
    // A template that writes its messages as they are treats them all alike.
    let is_plain = seeds::template().iter().any(|seed| bundle::parts(seed, 1)[0] == files[0]);
    let Some(found) = structure(&template, &tokenizer, [&system, &user]) else {
        assert!(!is_plain, "a sound template failed on {system:?} and {user:?}");
        return Outcome::accepted("a template that fails");
    };
    if is_plain {
        let expected = structure(&template, &tokenizer, ["x", "x"]).expect("a sound template renders");
        assert_eq!(found, expected, "structure came out of {system:?} and {user:?}");
    }
    Outcome::accepted(format_args!("structure of {} tokens", found.len().min(9)))
}
