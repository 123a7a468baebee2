//! Passes on the layers of other families: text before, text after.

use lathe_compiler::pass::{self, PassOptions, Selection};
use lathe_ir::parse::parse;
use lathe_kernels::targets::{Machine, TARGETS};

/// Runs every pass on a graph of bf16 weights and compares with the text that is expected.
fn check(before: &str, after: &str) {
    let mut graph = parse(before).unwrap_or_else(|error| panic!("{error}"));
    let selection = Selection::default();
    pass::run(&mut graph, &TARGETS[0], &PassOptions::default(), &selection).expect("the passes run");
    assert_eq!(graph.to_string(), after);
}

#[test]
fn normed_queries_and_keys_stay_one_product() {
    let before = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @q: bf16[64, 32] = "q"
  @q_norm: f32[16] = "q_norm"
  @k: bf16[32, 32] = "k"
  @k_norm: f32[16] = "k_norm"
  @v: bf16[32, 32] = "v"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @q : f32[T, 64]
  %2 = head_norm %1, @q_norm {head_dim = 16, heads = 4, eps = 1e-6} : f32[T, 64]
  %3 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %4 = rope %2, %3 {head_dim = 16, heads = 4} : f32[T, 64]
  %5 = linear %0, @k : f32[T, 32]
  %6 = head_norm %5, @k_norm {head_dim = 16, heads = 2, eps = 1e-6} : f32[T, 32]
  %7 = rope %6, %3 {head_dim = 16, heads = 2} : f32[T, 32]
  %8 = linear %0, @v : f32[T, 32]
  $0 = append %7, %8, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %9 = attention %4, %positions, %sequences, $0 {heads = 4, scale = 0.25, window = 9} : f32[T, 64]
  return attended = %9
}
"#;
    let after = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @qkv: bf16[128, 32] = concat("q"[64], "k"[32], "v"[32])
  @q_norm: f32[16] = "q_norm"
  @k_norm: f32[16] = "k_norm"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %2, $0 = linear %0, @qkv post [head_norm(@q_norm) {head_dim = 16, heads = 4, eps = 1e-6}, head_norm(@k_norm) {head_dim = 16, first = 4, heads = 2, eps = 1e-6}, rope(%1) {head_dim = 16, heads = 6}, append_qkv(%positions, %sequences, $kv.0) {heads = 4}] : f32[T, 64], cache<f16, 2x16>
  %3 = attention %2, %positions, %sequences, $0 {heads = 4, scale = 0.25, window = 9} : f32[T, 64]
  return attended = %3
}
"#;
    check(before, after);
}

#[test]
fn a_window_has_a_cache_group_and_a_reason() {
    let text = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  cache $kv.0: cache<f16, 2x16>
  cache $kv.1: cache<f16, 2x16>
  cache $kv.2: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  $0 = append %0, %0, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %1 = attention %0, %positions, %sequences, $0 {heads = 2, scale = 0.25, window = 40} : f32[T, 32]
  $1 = append %1, %1, %positions, %sequences, $kv.1 : cache<f16, 2x16>
  %2 = attention %1, %positions, %sequences, $1 {heads = 2, scale = 0.25, softcap = 50.0} : f32[T, 32]
  $2 = append %2, %2, %positions, %sequences, $kv.2 : cache<f16, 2x16>
  %3 = attention %2, %positions, %sequences, $2 {heads = 2, scale = 0.25, window = 40} : f32[T, 32]
  return attended = %3
}
"#;
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let schedule = lathe_compiler::schedule::build(&graph, 512, Machine::X86).expect("the graph schedules");
    let groups: Vec<(&str, Option<usize>)> =
        schedule.groups.iter().map(|group| (group.name.as_str(), group.window)).collect();
    assert_eq!(groups, [("kv.window.40", Some(40)), ("kv", None)]);
    assert_eq!(schedule.caches.iter().map(|cache| cache.group).collect::<Vec<_>>(), [0, 1, 0]);
    let heads = "one key/value head per query head (2 to 2, 16 elements each, f16), scores times 0.25";
    let sliding = "sliding over 40 tokens, as the model says; no page before them is read";
    let full = "full, as the model says: other layers slide";
    let expected = format!(
        "$kv.0: {sliding}; {heads}; cache group kv.window.40\n\
         $kv.1: {full}; {heads}, bounded by 50; cache group kv\n\
         $kv.2: {sliding}; {heads}; cache group kv.window.40\n"
    );
    assert_eq!(lathe_compiler::report::attention(&schedule), expected);
}

#[test]
fn a_layer_without_rotation_still_appends_from_its_product() {
    let before = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @norm: f32[32] = "norm"
  @norm.bias: f32[32] = "norm.bias"
  @q: bf16[32, 32] = "q"
  @q.bias: f32[32] = "q.bias"
  @k: bf16[32, 32] = "k"
  @k.bias: f32[32] = "k.bias"
  @v: bf16[32, 32] = "v"
  @v.bias: f32[32] = "v.bias"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = layer_norm %0, @norm, @norm.bias {eps = 1e-5} : f32[T, 32]
  %2 = linear %1, @q : f32[T, 32]
  %3 = bias %2, @q.bias : f32[T, 32]
  %4 = linear %1, @k : f32[T, 32]
  %5 = bias %4, @k.bias : f32[T, 32]
  %6 = linear %1, @v : f32[T, 32]
  %7 = bias %6, @v.bias : f32[T, 32]
  $0 = append %5, %7, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %8 = attention %3, %positions, %sequences, $0 {heads = 2, scale = 0.25} : f32[T, 32]
  return attended = %8
}
"#;
    let after = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @qkv: bf16[96, 32] = concat("q"[32], "k"[32], "v"[32])
  @norm: f32[32] = "norm"
  @norm.bias: f32[32] = "norm.bias"
  @qkv.bias: f32[96] = concat("q.bias"[32], "k.bias"[32], "v.bias"[32])
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1, $0 = linear %0, @qkv pre [layer_norm(@norm, @norm.bias) {eps = 1e-5}] post [bias(@qkv.bias), append_qkv(%positions, %sequences, $kv.0) {heads = 2}] : f32[T, 32], cache<f16, 2x16>
  %2 = attention %1, %positions, %sequences, $0 {heads = 2, scale = 0.25} : f32[T, 32]
  return attended = %2
}
"#;
    check(before, after);
}

#[test]
fn a_feed_forward_without_gate_takes_bias_function_factor_and_residual() {
    let before = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @up: bf16[64, 32] = "up"
  @up.bias: f32[64] = "up.bias"
  @down: bf16[32, 64] = "down"
  @down.bias: f32[32] = "down.bias"
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @up : f32[T, 64]
  %2 = bias %1, @up.bias : f32[T, 64]
  %3 = gelu %2 {tanh = true} : f32[T, 64]
  %4 = linear %3, @down : f32[T, 32]
  %5 = bias %4, @down.bias : f32[T, 32]
  %6 = scale %5 {factor = 0.22} : f32[T, 32]
  %7 = add %0, %6 : f32[T, 32]
  return next = %7
}
"#;
    let after = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @up: bf16[64, 32] = "up"
  @up.bias: f32[64] = "up.bias"
  @down: bf16[32, 64] = "down"
  @down.bias: f32[32] = "down.bias"
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @up post [bias(@up.bias), gelu {tanh = true}] : f32[T, 64]
  %2 = linear %1, @down post [bias(@down.bias), scale {factor = 0.22}, add(%0)] : f32[T, 32]
  return next = %2
}
"#;
    check(before, after);
}

#[test]
fn unmerged_queries_are_normed_and_turned_by_their_own_product() {
    let before = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @q: bf16[64, 32] = "q"
  @q_norm: f32[16] = "q_norm"
  @k: f16[32, 32] = "k"
  @v: bf16[32, 32] = "v"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @q : f32[T, 64]
  %2 = head_norm %1, @q_norm {head_dim = 16, heads = 4, eps = 1e-6} : f32[T, 64]
  %3 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %4 = rope %2, %3 {head_dim = 16, heads = 4} : f32[T, 64]
  %5 = linear %0, @k : f32[T, 32]
  %6 = rope %5, %3 {head_dim = 16, heads = 2} : f32[T, 32]
  %7 = linear %0, @v : f32[T, 32]
  $0 = append %6, %7, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %8 = attention %4, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
  return attended = %8
}
"#;
    let after = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @q: bf16[64, 32] = "q"
  @q_norm: f32[16] = "q_norm"
  @k: f16[32, 32] = "k"
  @v: bf16[32, 32] = "v"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %2 = linear %0, @q post [head_norm(@q_norm) {head_dim = 16, heads = 4, eps = 1e-6}, rope(%1) {head_dim = 16, heads = 4}] : f32[T, 64]
  %3 = linear %0, @k post [rope(%1) {head_dim = 16, heads = 2}] : f32[T, 32]
  %4 = linear %0, @v : f32[T, 32]
  $0 = append %3, %4, %positions, %sequences, $kv.0 : cache<f16, 2x16>
  %5 = attention %2, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
  return attended = %5
}
"#;
    check(before, after);
}

#[test]
fn the_norm_of_a_block_adds_the_residual() {
    let before = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @o: bf16[32, 32] = "o"
  @norm: f32[32] = "norm" plus_one
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @o : f32[T, 32]
  %2 = rms_norm %1, @norm {eps = 1e-6} : f32[T, 32]
  %3 = add %2, %0 : f32[T, 32]
  return next = %3
}
"#;
    let after = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @o: bf16[32, 32] = "o"
  @norm: f32[32] = "norm" plus_one
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @o : f32[T, 32]
  %2 = norm_add %1, @norm, %0 {eps = 1e-6} : f32[T, 32]
  return next = %2
}
"#;
    check(before, after);
}

#[test]
fn a_gate_of_gelu_is_one_glu() {
    let before = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @gate: bf16[64, 32] = "gate"
  @up: bf16[64, 32] = "up"
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @gate : f32[T, 64]
  %2 = gelu %1 {tanh = true} : f32[T, 64]
  %3 = linear %0, @up : f32[T, 64]
  %4 = mul %2, %3 : f32[T, 64]
  return gated = %4
}
"#;
    let after = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @gate_up: bf16[128, 32] = interleave 16("gate"[64], "up"[64])
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = linear %0, @gate_up post [glu {function = "gelu_tanh"}] : f32[T, 64]
  return gated = %1
}
"#;
    check(before, after);
}

#[test]
fn a_norm_that_products_share_is_quantized_in_its_own_launch() {
    let text = r#"graph main(%tokens: i32[T]) {
  @embed: bf16[64, 32] = "embed"
  @norm: f32[32] = "norm"
  @a: int8:g32[32, 32] = "a"
  @b: int4:g32+min[32, 32] = "b"
  %0 = embed %tokens, @embed : f32[T, 32]
  %1 = rms_norm %0, @norm {eps = 1e-5} : f32[T, 32]
  %2 = quantize %1 {group = 32} : int8[32][T, 32]
  %3 = linear %2, @a : f32[T, 32]
  %4 = linear %2, @b : f32[T, 32]
  %5 = add %3, %4 : f32[T, 32]
  return sum = %5
}
"#;
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let schedule = lathe_compiler::schedule::build(&graph, 512, Machine::X86).expect("the graph schedules");
    let kernels: Vec<String> = schedule.buckets[0].launches.iter().map(|launch| launch.kernel.to_string()).collect();
    let rows: Vec<&String> = kernels.iter().filter(|kernel| kernel.starts_with("rows")).collect();
    assert_eq!(rows, ["rows[rms_norm(1e-5), quantize(int8 g32)]"]);
    assert_eq!(kernels.len(), 5, "{kernels:?}");
}
