//! Snapshots of the LLVM IR that templates write, and PTX as `ptxas` sees it.

use std::process::Command;

use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;
use lathe_kernels::spec::{Activation, KernelSpec, MapOp, Stage, Tile};
use lathe_kernels::targets::Target;
use lathe_kernels::{KernelError, TextLevel, text};

fn linear(scheme: Scheme, act: Activation, tile: Tile, epilogue: Vec<Stage>) -> KernelSpec {
    KernelSpec::Linear { scheme, act, tile, epilogue }
}

/// The kernels that exist for every machine.
fn portable() -> Vec<KernelSpec> {
    let stream = Tile::Stream { tokens: 4 };
    let qkv = vec![
        Stage::Rope { head_dim: 64, heads: 12 },
        Stage::AppendQkv { head_dim: 64, heads: 9, kv_heads: 3, dtype: DType::F16 },
    ];
    let mut specs = vec![
        KernelSpec::Embed { scheme: Scheme::INT8 },
        KernelSpec::Rows { gather: true, norm: Some(1e-5), quantize: true },
        KernelSpec::Rows { gather: false, norm: Some(1e-5), quantize: false },
        KernelSpec::Rotary { head_dim: 64, theta: 1e5 },
        KernelSpec::Rope { head_dim: 64 },
        KernelSpec::Append { head_dim: 64, dtype: DType::F16 },
        KernelSpec::AppendQkv { head_dim: 64, dtype: DType::F32 },
        linear(Scheme::INT4, Activation::Int8, stream, qkv),
        linear(Scheme::INT4, Activation::Int8, stream, vec![Stage::SwiGlu]),
        linear(Scheme::INT8, Activation::Int8, stream, vec![Stage::Add]),
        linear(Scheme::BF16, Activation::F32, stream, vec![]),
        linear(Scheme::INT4, Activation::F32, stream, vec![]),
        linear(Scheme::INT4_SUPER, Activation::Int8, stream, vec![]),
        linear(Scheme::INT6_SUPER, Activation::Int8, stream, vec![]),
        linear(Scheme::IQ4_SUPER, Activation::F32, Tile::Stream { tokens: 1 }, vec![]),
        KernelSpec::Embed { scheme: Scheme::INT2_SUPER },
    ];
    specs.extend([MapOp::Add, MapOp::Mul, MapOp::Silu, MapOp::SwiGlu].map(|op| KernelSpec::Map { op }));
    specs
}

fn target(name: &str) -> &'static Target {
    Target::parse(name).expect("a known target")
}

#[test]
fn llvm_ir_of_small_kernels() {
    let norm = KernelSpec::Rows { gather: false, norm: Some(1e-5), quantize: false };
    let product = linear(Scheme::INT8, Activation::Int8, Tile::Stream { tokens: 2 }, vec![Stage::Add]);
    for (name, spec) in [("rms_norm", norm), ("linear_int8_add", product)] {
        for machine in ["x86-64-v4+vnni+bf16", "sm_80"] {
            let ir = text(std::slice::from_ref(&spec), target(machine), TextLevel::Llvm).expect("the kernel builds");
            insta::assert_snapshot!(format!("{name}.{machine}"), ir);
        }
    }
}

#[test]
fn ptxas_accepts_every_portable_kernel_without_spills() {
    let ptxas = std::env::var("LATHE_PTXAS").expect("LATHE_PTXAS names ptxas; `cargo xtask test` sets it");
    let folder = std::env::temp_dir().join(format!("lathe-ptx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    for (index, spec) in portable().into_iter().enumerate() {
        let ptx = text(std::slice::from_ref(&spec), target("sm_80"), TextLevel::Assembly).expect("the kernel builds");
        assert!(ptx.contains(".target sm_80") && ptx.contains(".version 7.0"), "{spec}: {}", &ptx[..200]);
        let path = folder.join(format!("{index}.ptx"));
        std::fs::write(&path, ptx).expect("a writable temporary folder");
        for arch in ["sm_80", "sm_90"] {
            let output = Command::new(&ptxas)
                .args(["-v", &format!("-arch={arch}"), "-o", "/dev/null"])
                .arg(&path)
                .output()
                .unwrap_or_else(|error| panic!("{ptxas}: {error}"));
            let report = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{spec} on {arch}: {report}");
            assert!(report.contains("0 bytes spill stores, 0 bytes spill loads"), "{spec} on {arch}: {report}");
        }
    }
    std::fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn kernels_without_a_gpu_generator_are_refused_by_name() {
    let spec = KernelSpec::Attention { group: 3, head_dim: 64, dtype: DType::F16, scale: 0.125 };
    let error = text(&[spec], target("sm_80"), TextLevel::Assembly).expect_err("attention has no PTX yet");
    assert!(matches!(error, KernelError::Unsupported { .. }), "{error}");
    assert!(error.to_string().starts_with("no kernel for attention[3x64 f16, scale=0.125] on sm_80"), "{error}");
}

#[test]
fn the_same_specs_give_the_same_code() {
    let specs = portable();
    let compile = || lathe_kernels::compile(&specs, target("x86-64-v4+vnni+bf16")).expect("the kernels compile");
    let (first, second) = (compile(), compile());
    assert!(first == second, "code differs between two runs");
    assert!(first.entries.is_sorted() && first.code.len() < 1 << 20);
}
