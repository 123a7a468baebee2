//! Every pass turns the first graph of its module's page into the second.

use lathe_ir::parse::parse;
use lathe_ir::verify::verify;
use lathe_kernels::targets::TARGETS;

use crate::pass::{PASSES, PassContext, PassOptions};

/// The page of each pass, by name.
macro_rules! pages {
    ($($name:ident),+ $(,)?) => { [$((stringify!($name), include_str!(concat!(stringify!($name), ".rs")))),+] };
}

const PAGES: [(&str, &str); 9] = pages![
    remove_dead,
    merge_qkv,
    merge_gate_up,
    choose_weight_format,
    quantize_activations,
    fuse_norm,
    fuse_rope_append,
    fuse_activation,
    fuse_residual,
];

/// The fenced blocks of a module's page.
fn blocks(source: &str) -> Vec<String> {
    let page = source.lines().take_while(|line| line.starts_with("//!"));
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in page.map(|line| line.trim_start_matches("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        match (&mut block, line) {
            (None, "```text") => block = Some(String::new()),
            (Some(_), "```") => blocks.extend(block.take()),
            (Some(text), line) => text.extend([line, "\n"]),
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn every_pass_does_what_its_page_shows() {
    assert_eq!(PAGES.map(|page| page.0).to_vec(), PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>());
    for ((name, source), pass) in PAGES.iter().zip(PASSES) {
        let blocks = blocks(source);
        let [before, after] = &blocks[..] else { panic!("{name}: expected two blocks, found {}", blocks.len()) };
        let mut graph = parse(before).unwrap_or_else(|error| panic!("{name}, before: {error}"));
        assert_eq!(graph.to_string(), *before, "{name}: the graph before is not in canonical form");
        let mut context = PassContext::new(&TARGETS[0], PassOptions::default());
        let changed = (pass.run)(&mut graph, &mut context).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(changed, "{name} changed nothing");
        verify(&graph).unwrap_or_else(|error| panic!("{name}, after: {error}"));
        assert_eq!(graph.to_string(), *after, "{name}: another graph than its page shows");
        let again = (pass.run)(&mut graph, &mut context).unwrap_or_else(|error| panic!("{name}, again: {error}"));
        assert!(!again, "{name} changed its own result");
    }
}
