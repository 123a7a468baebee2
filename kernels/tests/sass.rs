//! What the assembler makes of the kernels for GPUs, by the disassembler: tensor cores and wide loads where the spec says so,
//! nothing in local memory, shuffles that do not ask who takes part where whole warps do, and inner loops that stay short.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use lathe_ir::ops::glu::Function;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;
use lathe_kernels::spec::{Activation, KernelSpec, Norm, Stage, Tile};
use lathe_kernels::targets::Target;
use lathe_kernels::{TextLevel, text};

/// Instructions by their names without modifiers, and with them.
#[derive(Debug, Default)]
struct Counts(BTreeMap<String, usize>);

impl Counts {
    fn of(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        for name in lines.iter().filter_map(|line| mnemonic(line)) {
            let short = name.split('.').next().unwrap_or_default();
            *counts.0.entry(short.to_owned()).or_default() += 1;
            if short != name {
                *counts.0.entry(name.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    fn get(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Instructions in all.
    fn all(&self) -> usize {
        self.0.iter().filter(|(name, _)| !name.contains('.')).map(|(_, count)| count).sum()
    }

    /// Products of the tensor cores.
    fn products(&self) -> usize {
        self.get("HMMA") + self.get("IMMA")
    }
}

/// The name of a line's instruction: `/*0010*/ @!P0 LDG.E.128 R4, … ;`.
fn mnemonic(line: &str) -> Option<&str> {
    let code =
        line.trim().strip_suffix("*/").map_or(line, |line| line.rsplit_once("/*").map_or(line, |(code, _)| code));
    let code = code.trim().strip_prefix("/*").and_then(|code| code.split_once("*/")).map_or(code, |(_, code)| code);
    let mut words = code.split_whitespace();
    let first = words.next()?;
    let name = if first.starts_with('@') { words.next()? } else { first };
    let name = name.trim_end_matches(';');
    (code.contains(';') && name.starts_with(|c: char| c.is_ascii_uppercase())).then_some(name)
}

/// The instructions of the innermost loop with the most products: from a label to a branch back to it.
fn hottest(lines: &[&str]) -> Counts {
    let label = |line: &str| line.trim().strip_suffix(':').map(str::to_owned);
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (end, line) in lines.iter().enumerate() {
        let target = line.split_once("BRA").and_then(|(_, rest)| rest.split_once("`("));
        if let Some((_, target)) = target
            && let Some((target, _)) = target.split_once(')')
            && let Some(begin) = lines[..end].iter().rposition(|line| label(line).as_deref() == Some(target))
        {
            ranges.push((begin, end));
        }
    }
    let holds =
        |outer: &(usize, usize), inner: &(usize, usize)| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1;
    let innermost = ranges.iter().filter(|range| !ranges.iter().any(|other| holds(range, other)));
    let loops = innermost.map(|&(begin, end)| Counts::of(&lines[begin..=end]));
    loops.max_by_key(Counts::products).unwrap_or_default()
}

fn tool(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} names a program; `cargo xtask test` sets it")).into()
}

/// The disassembly of a kernel for Hopper.
fn disassembled(spec: &KernelSpec, folder: &Path) -> String {
    let target = Target::parse("sm_90").expect("a known target");
    let ptx = text(std::slice::from_ref(spec), target, TextLevel::Assembly).expect("the kernel builds");
    let (source, cubin) = (folder.join("kernel.ptx"), folder.join("kernel.cubin"));
    std::fs::write(&source, ptx).expect("a writable temporary folder");
    let run = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.success(), "{spec}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    run(Command::new(tool("LATHE_PTXAS")).args(["-arch=sm_90", "-o"]).args([&cubin, &source]));
    run(Command::new(tool("LATHE_NVDISASM")).arg("-c").arg(&cubin))
}

fn linear(scheme: Scheme, act: Activation, tile: Tile, epilogue: &[Stage]) -> KernelSpec {
    KernelSpec::Linear { scheme, act, tile, epilogue: epilogue.to_vec() }
}

#[test]
fn kernels_keep_to_registers_and_use_tensor_cores_and_wide_loads() {
    let folder = std::env::temp_dir().join(format!("lathe-sass-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let int4: Scheme = "int4:g32".parse().expect("a scheme");
    let few = |narrow| Tile::Mma { tokens: 8, narrow };
    let staged = |blocks, tokens| Tile::Staged { blocks, tokens };
    let gated = [Stage::Glu(Function::Silu), Stage::Quantize];
    let (group, head_dim, dtype, scale, window, softcap) = (4, 128, DType::F16, 0.125, None, None);
    let norm = |form| KernelSpec::Rows { gather: false, norm: Some(Norm::Rms { eps: 1e-5 }), add: false, form };
    // What each must have, and most instructions of its inner loop for each product. A product of the first two takes what is
    // unpacked and scaled for it, too.
    let (int8, bf16) = (Activation::Int8, Activation::Bf16);
    let cases: [(KernelSpec, &[&str], Option<usize>); 10] = [
        (linear(int4, int8, few(false), &[Stage::Add]), &["IMMA", "LDG.E.128"], Some(34)),
        (linear(int4, int8, few(true), &[Stage::Add]), &["IMMA", "LDG.E.64"], Some(40)),
        (linear(int4, int8, few(false), &gated), &["IMMA", "LDG.E.128"], Some(34)),
        (linear(Scheme::BF16, bf16, few(false), &[Stage::Add]), &["HMMA", "LDG.E.128"], Some(8)),
        (linear(Scheme::BF16, bf16, few(true), &[Stage::Add]), &["HMMA", "LDG.E.64"], Some(7)),
        (linear(Scheme::BF16, bf16, staged(8, 128), &[Stage::Add]), &["HMMA", "LDGSTS.E.BYPASS.128"], Some(4)),
        (linear(int4, int8, staged(8, 64), &[Stage::Add]), &["IMMA", "LDGSTS.E"], Some(30)),
        (KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap }, &["HMMA", "LDSM"], None),
        (KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap }, &["HMMA", "LDSM"], None),
        (norm(int8), &["LDG.E.128"], None),
    ];
    for (spec, wanted, most) in cases {
        let listing = disassembled(&spec, &folder);
        let lines: Vec<&str> = listing.lines().collect();
        let counts = Counts::of(&lines);
        for &name in wanted {
            assert!(counts.0.keys().any(|found| found.starts_with(name)), "{spec} has no {name}: {counts:?}");
        }
        assert_eq!((counts.get("LDL"), counts.get("STL")), (0, 0), "{spec} uses local memory");
        if spec.runs_whole_warps() {
            assert_eq!(counts.get("MATCH"), 0, "{spec} asks who takes part in a shuffle");
        }
        let hottest = hottest(&lines);
        if let Some(most) = most {
            let (products, all) = (hottest.products(), hottest.all());
            assert!(products > 0 && all <= most * products, "{spec}: {all} instructions for {products} products");
        }
    }
    std::fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn instructions_and_loops_are_found() {
    let listing = "\
.text.kernel0:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/               @P1 BRA `(.L_x_0) ;
        /*0040*/               @P2 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
";
    let lines: Vec<&str> = listing.lines().collect();
    let counts = Counts::of(&lines);
    assert_eq!((counts.all(), counts.get("LDG.E.128"), counts.products()), (6, 1, 1));
    let hottest = hottest(&lines);
    assert_eq!((hottest.all(), hottest.products(), hottest.get("BRA")), (2, 1, 1));
}
