//! What LLVM makes of the inner loops: how many instructions, how many of them multiply, and that none of them moves a vector to
//! the stack and back or works on a single number. Counts, not texts, so that a reordering changes nothing.

use lathe_ir::ops::glu::Function;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;
use lathe_kernels::spec::{Activation, KernelSpec, Stage, Tile};
use lathe_kernels::targets::Target;
use lathe_kernels::{TextLevel, text};

/// A loop without loops inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Loop {
    /// Instructions of a turn.
    instructions: usize,
    /// Those that multiply lanes.
    products: usize,
    /// Those that reach for a vector on the stack.
    spills: usize,
    /// Those that compute with one number.
    scalars: usize,
}

/// The innermost loops of assembly in AT&T's syntax: from a label to a jump back to it.
fn loops(assembly: &str) -> Vec<Loop> {
    let lines: Vec<&str> = assembly.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let label = |line: &str| line.trim_end().strip_suffix(':').map(str::to_owned);
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (end, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [jump, target] = words[..]
            && jump.starts_with('j')
            && let Some(begin) = lines[..end].iter().rposition(|line| label(line).as_deref() == Some(target))
        {
            ranges.push((begin, end));
        }
    }
    let holds =
        |outer: &(usize, usize), inner: &(usize, usize)| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1;
    let innermost = ranges.iter().filter(|range| !ranges.iter().any(|other| holds(range, other)));
    innermost.map(|&(begin, end)| count(&lines[begin..=end])).collect()
}

fn count(lines: &[&str]) -> Loop {
    let mut found = Loop::default();
    for line in lines.iter().filter(|line| line.starts_with('\t') && !line.starts_with("\t.")) {
        let name = line.split_whitespace().next().unwrap_or_default();
        let starts = |names: &[&str]| names.iter().any(|start| name.starts_with(start));
        let is_vector = name.starts_with('v');
        let is_arithmetic = starts(&["vadd", "vsub", "vmul", "vdiv", "vfmadd", "vfnmadd"]);
        let is_scalar = is_arithmetic && (name.ends_with("ss") || name.ends_with("sd"));
        found.instructions += 1;
        found.scalars += usize::from(is_scalar);
        found.spills += usize::from(is_vector && line.contains("(%rsp)"));
        found.products += usize::from(
            starts(&["vpdpbusd", "vpdpwssd", "vpmaddubsw", "vpmaddwd", "vdpbf16ps"])
                || (name.starts_with("vfmadd") && !is_scalar),
        );
    }
    found
}

/// The loop of a kernel that multiplies most in a turn.
fn hottest(spec: &KernelSpec, target: &str) -> Loop {
    let target = Target::parse(target).expect("a known target");
    let assembly = text(std::slice::from_ref(spec), target, TextLevel::Assembly).expect("the kernel builds");
    loops(&assembly).into_iter().max_by_key(|found| found.products).expect("it loops")
}

fn linear(scheme: Scheme, tile: Tile, stage: Stage) -> KernelSpec {
    KernelSpec::Linear { scheme, act: Activation::Int8, tile, epilogue: vec![stage] }
}

#[test]
fn hot_loops_keep_to_registers_and_vectors() {
    let (stream, unpack) = (Tile::Stream { tokens: 4 }, Tile::Unpack { tokens: 4 });
    let mut table = Vec::new();
    for target in ["x86-64-v4+vnni+bf16", "x86-64-v4", "x86-64-v3"] {
        for spec in [
            linear(Scheme::INT4, stream, Stage::Add),
            linear(Scheme::INT4, unpack, Stage::Add),
            linear(Scheme::INT4, stream, Stage::Glu(Function::Silu)),
            linear(Scheme::INT4, unpack, Stage::Glu(Function::Silu)),
            linear(Scheme::INT8, stream, Stage::Add),
            linear(Scheme::INT8, unpack, Stage::Add),
        ] {
            let Loop { instructions, products, spills, scalars } = hottest(&spec, target);
            table
                .push(format!("{target}: {spec}: {instructions} instructions, {products} products, {spills} spills\n"));
            assert_eq!(scalars, 0, "{target}: {spec} computes with single numbers");
            // With sixteen registers, or without one instruction for the dot product of bytes, some do not fit.
            if target == "x86-64-v4+vnni+bf16" {
                assert_eq!(spills, 0, "{target}: {spec} keeps vectors on the stack");
            }
        }
    }
    for dtype in [DType::F16, DType::Bf16, DType::Int8] {
        let attention =
            KernelSpec::Attention { group: 3, head_dim: 64, dtype, scale: 0.125, window: None, softcap: None };
        let Loop { instructions, products, spills, .. } = hottest(&attention, "x86-64-v4+vnni+bf16");
        table.push(format!(
            "x86-64-v4+vnni+bf16: {attention}: {instructions} instructions, {products} products, {spills} spills\n"
        ));
    }
    insta::assert_snapshot!("hot_loops", table.concat());
}

#[test]
fn loops_are_found_and_counted() {
    let assembly = "\
kernel0:
\tmovq\t%rdi, %rax
.LBB0_1:
\tvmovups\t(%rax), %zmm0
.LBB0_2:                 # =>  This Inner Loop Header
\tvpdpbusd\t(%rax,%rdx){1to16}, %zmm1, %zmm2
\tvmovups\t64(%rsp), %zmm3
\tvfmadd231ss\t%xmm1, %xmm2, %xmm3
\tvfmadd231ps\t%zmm1, %zmm2, %zmm3
\t.p2align\t4
\tjne\t.LBB0_2
\taddq\t$1, %rcx
\tjb\t.LBB0_1
\tretq
";
    assert_eq!(loops(assembly), [Loop { instructions: 5, products: 2, spills: 1, scalars: 1 }]);
}
