//! Snapshots of the LLVM IR that templates write, and PTX as `ptxas` sees it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use lathe_ir::ops::glu::Function;
use lathe_ir::ops::rotary::Scaling;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;
use lathe_kernels::spec::{Activation, KernelSpec, MapOp, Norm, SamplePart, Stage, Tile};
use lathe_kernels::targets::{Machine, TARGETS, Target};
use lathe_kernels::{KernelError, TextLevel, text};

fn linear(scheme: Scheme, act: Activation, tile: Tile, epilogue: Vec<Stage>) -> KernelSpec {
    KernelSpec::Linear { scheme, act, tile, epilogue }
}

/// The kernels that exist for every machine.
fn portable() -> Vec<KernelSpec> {
    let stream = Tile::Stream { tokens: 4 };
    let qkv = vec![
        Stage::HeadNorm { head_dim: 64, first: 9, heads: 3, eps: 1e-6 },
        Stage::Rope { head_dim: 64, dim: 64, heads: 12 },
        Stage::AppendQkv { head_dim: 64, heads: 9, kv_heads: 3, dtype: DType::F16 },
    ];
    let rotary = |dim: usize, scaling: Scaling| KernelSpec::Rotary { dim, theta: 1e5, scaling };
    let factors = |factor: f32| vec![factor; 48];
    let longrope =
        Scaling::LongRope { original: 4096, attention_factor: 1.25, short: factors(1.0), long: factors(2.0) };
    let attention = |group, head_dim, window, softcap| KernelSpec::Attention {
        group,
        head_dim,
        dtype: DType::F16,
        scale: 0.125,
        window,
        softcap,
    };
    let mut specs = vec![
        KernelSpec::Embed { scheme: Scheme::INT8 },
        KernelSpec::Rows { gather: true, norm: Some(Norm::Rms { eps: 1e-5 }), add: false, form: Activation::Int8 },
        KernelSpec::Rows { gather: false, norm: Some(Norm::Rms { eps: 1e-5 }), add: true, form: Activation::F32 },
        rotary(64, Scaling::None),
        rotary(20, Scaling::Dynamic { factor: 2.0, original: 4096 }),
        rotary(96, longrope),
        KernelSpec::Rope { head_dim: 64, dim: 64 },
        KernelSpec::Rope { head_dim: 80, dim: 20 },
        KernelSpec::Rope { head_dim: 80, dim: 80 },
        KernelSpec::HeadNorm { head_dim: 128, eps: 1e-6 },
        KernelSpec::Rows { gather: false, norm: Some(Norm::Layer { eps: 1e-5 }), add: false, form: Activation::Int8 },
        KernelSpec::Append { head_dim: 64, dtype: DType::F16 },
        attention(3, 64, None, None),
        attention(4, 128, None, None),
        attention(16, 112, Some(512), Some(50.0)),
        attention(4, 256, Some(512), Some(50.0)),
        KernelSpec::AppendQkv { head_dim: 64, dtype: DType::F32 },
        linear(Scheme::INT4, Activation::Int8, stream, qkv),
        linear(Scheme::INT4, Activation::Int8, stream, vec![Stage::Glu(Function::Silu)]),
        linear(Scheme::INT4, Activation::Int8, stream, vec![Stage::Glu(Function::GeluTanh)]),
        linear(Scheme::INT8, Activation::Int8, stream, vec![Stage::Bias, Stage::Activate(Function::Gelu)]),
        linear(Scheme::INT8, Activation::Int8, stream, vec![Stage::Scale(0.22), Stage::Add]),
        linear(Scheme::INT8, Activation::Int8, stream, vec![Stage::Softcap(30.0)]),
        linear(Scheme::INT8, Activation::Int8, stream, vec![Stage::Add]),
        linear(Scheme::BF16, Activation::F32, stream, vec![]),
        linear(Scheme::INT4, Activation::F32, stream, vec![]),
        linear(Scheme::INT4_SUPER, Activation::Int8, stream, vec![]),
        linear(Scheme::INT6_SUPER, Activation::Int8, stream, vec![]),
        linear(Scheme::IQ4_SUPER, Activation::F32, Tile::Stream { tokens: 1 }, vec![]),
        KernelSpec::Embed { scheme: Scheme::INT2_SUPER },
    ];
    let functions = Function::ALL.into_iter().flat_map(|function| [MapOp::Activate(function), MapOp::Glu(function)]);
    let others = [MapOp::Add, MapOp::Mul, MapOp::Bias, MapOp::Scale(0.5), MapOp::Softcap(30.0)];
    specs.extend(functions.chain(others).map(|op| KernelSpec::Map { op }));
    specs
}

/// The kernels for tensor cores.
fn tensor() -> Vec<KernelSpec> {
    let mma =
        |scheme, tokens, epilogue| linear(scheme, Activation::Int8, Tile::Mma { tokens, narrow: false }, epilogue);
    let narrow = |scheme, act| linear(scheme, act, Tile::Mma { tokens: 8, narrow: true }, vec![Stage::Add]);
    let staged = |scheme: Scheme, blocks, tokens, epilogue| {
        let act = if scheme.is_integer() { Activation::Int8 } else { Activation::Bf16 };
        linear(scheme, act, Tile::Staged { blocks, tokens }, epilogue)
    };
    let qkv = |head_dim| {
        vec![
            Stage::HeadNorm { head_dim, first: 9, heads: 3, eps: 1e-6 },
            Stage::Rope { head_dim, dim: head_dim, heads: 12 },
            Stage::AppendQkv { head_dim, heads: 9, kv_heads: 3, dtype: DType::F16 },
        ]
    };
    vec![
        mma(Scheme::INT4, 8, qkv(64)),
        mma(Scheme::INT4, 16, qkv(64)),
        mma(Scheme::INT4_SUPER, 8, qkv(128)),
        mma(Scheme::INT4, 8, vec![Stage::Glu(Function::Silu)]),
        mma(Scheme::INT4_SUPER, 32, vec![Stage::Glu(Function::Silu)]),
        mma(Scheme::INT6_SUPER, 32, vec![Stage::Add]),
        mma(Scheme::INT2_SUPER, 32, vec![]),
        mma(Scheme::IQ4_SUPER, 8, vec![]),
        mma(Scheme::INT8, 8, vec![]),
        mma(Scheme::INT4, 8, vec![Stage::Glu(Function::Silu), Stage::Quantize]),
        mma(Scheme::INT6_SUPER, 8, vec![Stage::Glu(Function::Silu), Stage::Quantize]),
        narrow(Scheme::INT4, Activation::Int8),
        narrow(Scheme::INT6_SUPER, Activation::Int8),
        narrow(Scheme::BF16, Activation::F32),
        linear(Scheme::BF16, Activation::F32, Tile::Mma { tokens: 8, narrow: false }, qkv(128)),
        linear(
            Scheme::BF16,
            Activation::F32,
            Tile::Mma { tokens: 32, narrow: false },
            vec![Stage::Glu(Function::Silu)],
        ),
        staged(Scheme::BF16, 8, 128, qkv(128)),
        staged(Scheme::BF16, 16, 64, qkv(256)),
        staged(Scheme::BF16, 5, 128, qkv(80)),
        staged(Scheme::BF16, 2, 64, vec![Stage::Glu(Function::Silu)]),
        staged(Scheme::BF16, 8, 128, vec![Stage::Glu(Function::Silu), Stage::Round]),
        staged(Scheme::INT4, 8, 64, vec![Stage::Glu(Function::Silu), Stage::Quantize]),
        staged(Scheme::INT8, 8, 64, qkv(64)),
        staged(Scheme::INT4, 8, 64, vec![Stage::Add]),
        staged(Scheme::IQ4, 4, 128, vec![Stage::Glu(Function::Silu)]),
        staged(Scheme::INT4_SUPER, 8, 64, vec![]),
        staged(Scheme::INT6_SUPER, 8, 64, vec![Stage::Add]),
        staged(Scheme::INT8, 4, 64, vec![]),
    ]
}

fn target(name: &str) -> &'static Target {
    Target::parse(name).expect("a known target")
}

#[test]
fn llvm_ir_of_small_kernels() {
    let norm =
        KernelSpec::Rows { gather: false, norm: Some(Norm::Rms { eps: 1e-5 }), add: false, form: Activation::F32 };
    let product = |tile| linear(Scheme::INT8, Activation::Int8, tile, vec![Stage::Add]);
    let (lanes, mma) = (product(Tile::Stream { tokens: 2 }), product(Tile::Mma { tokens: 8, narrow: false }));
    for (machine, product) in [("x86-64-v4+vnni+bf16", lanes), ("sm_80", mma)] {
        for (name, spec) in [("rms_norm", norm.clone()), ("linear_int8_add", product)] {
            let ir = text(std::slice::from_ref(&spec), target(machine), TextLevel::Llvm).expect("the kernel builds");
            insta::assert_snapshot!(format!("{name}.{machine}"), ir);
        }
    }
}

#[test]
fn ptxas_accepts_every_kernel_for_gpus_without_spills() {
    let ptxas = std::env::var("LATHE_PTXAS").expect("LATHE_PTXAS names ptxas; `cargo xtask test` sets it");
    let folder = std::env::temp_dir().join(format!("lathe-ptx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let path = folder.join("kernel.ptx");
    let check = |ptx: &str, name: &str, arch: &str, spec: &KernelSpec| {
        std::fs::write(&path, ptx).expect("a writable temporary folder");
        let mut command = Command::new(&ptxas);
        command.args(["-v", &format!("-arch={arch}"), "-o", "/dev/null"]).arg(&path);
        let output = command.output().unwrap_or_else(|error| panic!("{ptxas}: {error}"));
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} on {arch}: {report}");
        let in_registers = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        assert!(report.contains(in_registers), "{name} on {arch}: {report}");
        // The threads of as many blocks as are to work together fit a multiprocessor's 65,536 registers.
        let registers = report.split("Used ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        let registers = registers.unwrap_or_else(|| panic!("ptxas says how many registers: {report}"));
        let threads = spec.grid().threads * spec.blocks_at_once().unwrap_or(1);
        assert!(registers * threads <= 65_536, "{name} on {arch}: {report}");
    };
    let tensor: Vec<KernelSpec> = tensor();
    let gpus = TARGETS.iter().filter(|target| target.machine == Machine::Nvptx);
    let ptx = |specs: &[KernelSpec], target| text(specs, target, TextLevel::Assembly).expect("the kernels build");
    // One kernel of each kind for every architecture, and all of them for the least.
    for target in gpus {
        let kernels = ptx(&tensor[..1], target);
        assert!(kernels.contains(&format!(".target {target}\n")), "{target}: {}", &kernels[..200]);
        check(&kernels, &format!("the first kernel of {target}"), target.name, &tensor[0]);
    }
    let splits = |group, head_dim, window, softcap| {
        let (dtype, scale) = (DType::F16, 0.125);
        KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap }
    };
    let for_gpus = [
        splits(3, 64, None, None),
        splits(4, 128, None, None),
        splits(7, 128, None, None),
        splits(4, 256, Some(512), Some(50.0)),
        KernelSpec::Sample(SamplePart::Bounds),
        KernelSpec::Sample(SamplePart::Sums),
        KernelSpec::Sample(SamplePart::Merge),
        KernelSpec::AttentionMerge { group: 4, head_dim: 128, window: None, quantize: true },
        KernelSpec::AttentionMerge { group: 4, head_dim: 256, window: Some(512), quantize: false },
    ];
    for spec in tensor.iter().chain(&portable()).chain(&for_gpus) {
        let kernel = ptx(std::slice::from_ref(spec), target("sm_80"));
        assert!(kernel.contains(".version 7.0\n"), "{spec}: {}", &kernel[..200]);
        let attends = matches!(spec, KernelSpec::Attention { .. } | KernelSpec::AttentionSplits { .. });
        let by_tensor_cores = tensor.contains(spec) || (attends && !spec.to_string().contains("x256 "));
        assert_eq!(kernel.contains("mma.sync.aligned."), by_tensor_cores, "{spec}");
        // Weights of few rows come by loads of 16 bytes, the operands of many rows in bf16 by copies of as many.
        let wide = match spec {
            KernelSpec::Linear { tile: Tile::Mma { narrow: true, .. }, .. } => "ld.global.v2.b32",
            KernelSpec::Linear { tile: Tile::Mma { .. }, .. } => "ld.global.v4.b32",
            KernelSpec::Linear { tile: Tile::Staged { .. }, act: Activation::Bf16, .. } => "cp.async.cg.shared.global",
            _ => "",
        };
        assert!(kernel.contains(wide), "{spec} lacks {wide}");
        for arch in ["sm_80", "sm_90"] {
            check(&kernel, &spec.to_string(), arch, spec);
        }
    }
    std::fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn kernels_begin_early_on_chips_that_can_and_touch_weights_alone_before_they_have_waited() {
    let specs: Vec<KernelSpec> = tensor().into_iter().chain(portable()).collect();
    for spec in &specs {
        let ptx = |name: &str| {
            text(std::slice::from_ref(spec), target(name), TextLevel::Assembly).expect("the kernel builds")
        };
        let (old, new) = (ptx("sm_80"), ptx("sm_90"));
        assert!(!old.contains("griddepcontrol"), "{spec}");
        let place = |what: &str| new.find(what).unwrap_or_else(|| panic!("{spec} lacks {what}"));
        let (begin, wait) = (place("griddepcontrol.launch_dependents;"), place("griddepcontrol.wait;"));
        assert!(begin < wait, "{spec}");
        let before = &new[..wait];
        assert!(!before.contains("st.global") && !before.contains("st.shared"), "{spec} writes before it has waited");
        // Weights of few rows, and nothing else.
        assert!(spec.loads_weights_early() || !before.contains("ld.global"), "{spec} reads before it has waited");
        // Of strips that are whole heads a thread holds one group of columns, which may be loaded where it is multiplied.
        let is_of_fewest = match spec {
            KernelSpec::Linear { tile: tile @ Tile::Mma { tokens: 8, .. }, epilogue, .. } => {
                KernelSpec::tile_blocks(*tile, epilogue) <= 2
            }
            _ => false,
        };
        let is_wide = before.contains("ld.global.v4.b32") || before.contains("ld.global.v2.b32");
        assert!(!is_of_fewest || is_wide, "{spec} loads no weights before it has waited");
    }
}

#[test]
fn kernels_without_a_gpu_generator_are_refused_by_name() {
    let spec = linear(Scheme::INT4, Activation::Int8, Tile::Unpack { tokens: 4 }, vec![]);
    let error = text(&[spec], target("sm_80"), TextLevel::Assembly).expect_err("strips are unpacked on CPUs only");
    assert!(matches!(error, KernelError::Unsupported { .. }), "{error}");
    assert!(error.to_string().starts_with("no kernel for linear[int4:g32+min x int8, unpack 4] on sm_80"), "{error}");
}

#[test]
fn the_same_specs_give_the_same_code() {
    let specs = portable();
    let compile = || lathe_kernels::compile(&specs, target("x86-64-v4+vnni+bf16")).expect("the kernels compile");
    let (first, second) = (compile(), compile());
    assert!(first == second, "code differs between two runs");
    assert!(first.entries.is_sorted() && first.code.len() < 1 << 20);
}

/// Every kind of CPU kernel, with weights of all widths of codes.
fn cpu_kernels() -> Vec<KernelSpec> {
    let unpack = Tile::Unpack { tokens: 4 };
    let integer = Scheme::ALL.into_iter().filter(|scheme| scheme.is_integer());
    let mut specs: Vec<KernelSpec> = integer
        .map(|scheme| linear(scheme, Activation::Int8, unpack, vec![Stage::Glu(Function::Silu)]))
        .chain([Scheme::F16, Scheme::BF16].map(|scheme| linear(scheme, Activation::F32, unpack, vec![Stage::Add])))
        .collect();
    specs.extend([
        KernelSpec::Embed { scheme: Scheme::INT8 },
        KernelSpec::Rows { gather: true, norm: Some(Norm::Rms { eps: 1e-5 }), add: false, form: Activation::Int8 },
        KernelSpec::Rotary { dim: 64, theta: 1e5, scaling: Scaling::None },
    ]);
    for dtype in [DType::F16, DType::Bf16, DType::Int8] {
        specs.extend([
            KernelSpec::Append { head_dim: 64, dtype },
            KernelSpec::Attention { group: 3, head_dim: 64, dtype, scale: 0.125, window: None, softcap: None },
        ]);
    }
    specs
}

/// The instructions of a text with their encodings, by LLVM's assembler.
fn encoded(assembly: &str) -> String {
    let prefix = std::env::var("LLVM_SYS_221_PREFIX").expect("cargo's configuration says where LLVM is");
    let mut child = Command::new(format!("{prefix}/bin/llvm-mc"))
        .args(["--triple=x86_64-unknown-linux-gnu", "--show-encoding"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("llvm-mc, which comes with LLVM, starts");
    let mut input = child.stdin.take().expect("it is piped");
    // Instructions alone: the kernels come from modules that share the names of labels.
    let is_instruction = |line: &&str| line.starts_with('\t') && !line.starts_with("\t.");
    let text = assembly.lines().filter(is_instruction).collect::<Vec<_>>().join("\n");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("the writer does not panic").expect("it reads all");
    assert!(output.status.success(), "the assembler takes what the compiler writes");
    String::from_utf8(output.stdout).expect("text")
}

/// Instructions of AVX-512 beyond F, BW, CD, DQ and VL, by how they begin, and what they belong to.
const BEYOND_V4: [(&str, &str); 22] = [
    ("vpdpbusd", "vnni"),
    ("vpdpwssd", "vnni"),
    ("vdpbf16", "bf16"),
    ("vcvtne", "bf16"),
    ("vpmadd52", "ifma"),
    ("vpermb", "vbmi"),
    ("vpermi2b", "vbmi"),
    ("vpermt2b", "vbmi"),
    ("vpmultishift", "vbmi"),
    ("vpcompressb", "vbmi2"),
    ("vpcompressw", "vbmi2"),
    ("vpexpandb", "vbmi2"),
    ("vpexpandw", "vbmi2"),
    ("vpshld", "vbmi2"),
    ("vpshrd", "vbmi2"),
    ("vpopcnt", "bitalg"),
    ("vpshufbitqmb", "bitalg"),
    ("vgf2p8", "gfni"),
    ("vaes", "vaes"),
    ("vcvtps2phx", "fp16"),
    ("vcvtph2psx", "fp16"),
    ("t", "amx"),
];

/// The extensions beyond `x86-64-v4` that a text has instructions of.
fn extensions(assembly: &str) -> BTreeSet<&'static str> {
    // A prefix in braces may stand before the mnemonic.
    let mnemonic = |line: &'_ str| line.split_whitespace().find(|word| !word.starts_with('{')).map(str::to_owned);
    let mnemonics: BTreeSet<String> = assembly.lines().filter_map(mnemonic).collect();
    let is_general = |mnemonic: &str| mnemonic.starts_with("test") || mnemonic.starts_with("tzcnt");
    let extension = |mnemonic: &String| {
        let of = |(prefix, _): &&(&str, &str)| mnemonic.starts_with(prefix) && !is_general(mnemonic);
        BEYOND_V4.iter().find(of).map(|(_, extension)| *extension)
    };
    mnemonics.iter().filter_map(extension).collect()
}

#[test]
fn code_of_a_target_has_no_instruction_that_its_cpus_lack() {
    let specs = cpu_kernels();
    for (name, evex, allowed) in [
        ("x86-64-v3", false, &[][..]),
        ("x86-64-v3+vnni", false, &["vnni"]),
        ("x86-64-v4", true, &[]),
        ("x86-64-v4+vnni", true, &["vnni"]),
        ("x86-64-v4+vnni+bf16+amx", true, &["amx", "bf16", "vnni"]),
    ] {
        let assembly = encoded(&text(&specs, target(name), TextLevel::Assembly).expect("the kernels build"));
        // All of AVX-512, and nothing else that these targets have, is encoded with this prefix.
        assert_eq!(assembly.contains("encoding: [0x62,"), evex, "AVX-512 in {name}");
        assert_eq!(assembly.contains("%zmm"), evex, "512-bit registers in {name}");
        assert_eq!(extensions(&assembly), allowed.iter().copied().collect::<BTreeSet<_>>(), "{name}");
    }
}

#[test]
fn matrix_instructions_serve_many_rows_of_int8_and_nothing_else() {
    let amx = target("x86-64-v4+vnni+bf16+amx");
    let (many, few) = (Tile::Unpack { tokens: 4 }, Tile::Stream { tokens: 4 });
    for (scheme, act, tile, products) in [
        (Scheme::INT4, Activation::Int8, many, 1),
        // Two groups in 32 columns.
        (Scheme::INT6_SUPER, Activation::Int8, many, 2),
        (Scheme::INT4, Activation::Int8, few, 0),
        (Scheme::INT4, Activation::F32, many, 0),
    ] {
        let spec = linear(scheme, act, tile, vec![]);
        let assembly = text(std::slice::from_ref(&spec), amx, TextLevel::Assembly).expect("the kernel builds");
        let count = |mnemonic: &str| assembly.matches(&format!("\t{mnemonic}")).count();
        let found = ["tdpbsud", "tilestored", "tilezero", "tileloadd"].map(count);
        assert_eq!(found, [products, products, products, 2 * products], "{spec}");
        assert_eq!((count("ldtilecfg"), count("tilerelease")), (products.min(1), products.min(1)), "{spec}");
        // What is left of 16 rows, and all of few rows, is multiplied by VNNI.
        assert_eq!(count("vpdpbusd") > 0, act == Activation::Int8, "{spec}");
    }
}

#[test]
fn lists_of_targets() {
    let names = |list: &str| -> Vec<&str> {
        Target::parse_list(list).expect("known targets").into_iter().map(|target| target.name).collect()
    };
    assert_eq!(names("x86-64-v3, x86-64-v4,x86-64-v3"), ["x86-64-v4", "x86-64-v3"]);
    assert_eq!(names("all-cpu"), ["x86-64-v4+vnni+bf16", "x86-64-v4+vnni", "x86-64-v4", "x86-64-v3"]);
    let refused = |list: &str| Target::parse_list(list).expect_err("a wrong list").to_string();
    assert!(refused("x86-64-v3,z80").contains("unknown target 'z80'"));
    assert!(refused("").contains("unknown target ''"));
    assert!(refused("sm_80,x86-64-v3").contains("CPUs and GPUs"));
}
