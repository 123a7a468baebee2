//! Every pass turns the first graph of its module's page into the second.

use lathe_ir::parse::parse;
use lathe_ir::verify::verify;
use lathe_kernels::targets::TARGETS;

use crate::pass::{PASSES, PassContext, PassOptions};

/// The page of each pass, by name.
macro_rules! pages {
    ($($name:ident),+ $(,)?) => { [$((stringify!($name), include_str!(concat!(stringify!($name), ".rs")))),+] };
}

const PAGES: [(&str, &str); 11] = pages![
    remove_dead,
    fuse_bias,
    choose_weight_format,
    merge_qkv,
    merge_gate_up,
    quantize_activations,
    fuse_norm,
    fuse_rope_append,
    fuse_activation,
    fuse_scale,
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

#[test]
fn merged_projections_keep_their_biases() {
    let before = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @q: bf16[64, 32] = "q"
  @q.bias: f32[64] = "q.bias"
  @k: bf16[32, 32] = "k"
  @k.bias: f32[32] = "k.bias"
  @v: bf16[32, 32] = "v"
  @v.bias: f32[32] = "v.bias"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @q : f32[T, 64]
  %2 = bias %1, @q.bias : f32[T, 64]
  %3 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %4 = rope %2, %3 {head_dim = 16, heads = 4} : f32[T, 64]
  %5 = linear %0, @k : f32[T, 32]
  %6 = bias %5, @k.bias : f32[T, 32]
  %7 = rope %6, %3 {head_dim = 16, heads = 2} : f32[T, 32]
  %8 = linear %0, @v : f32[T, 32]
  %9 = bias %8, @v.bias : f32[T, 32]
  $0 = append %7, %9, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %10 = attention %4, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
  return attended = %10
}
"#;
    let mut graph = parse(before).expect("the graph parses");
    let mut context = PassContext::new(&TARGETS[0], PassOptions::default());
    for name in ["fuse_bias", "merge_qkv", "fuse_rope_append"] {
        let pass = PASSES.iter().find(|pass| pass.name == name).expect("a pass of the table");
        assert!((pass.run)(&mut graph, &mut context).expect("the pass runs"), "{name} changed nothing");
        verify(&graph).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let text = graph.to_string();
    let weight = r#"concat("q.bias"[64], "k.bias"[32], "v.bias"[32])"#;
    assert!(text.contains(weight), "{text}");
    assert!(text.contains("post [bias(@qkv.bias), rope("), "{text}");
}
