//! The small model as a plan: it opens, holds what the compiler put in, and does not depend on the number of threads.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lathe_compiler::CompileError;
use lathe_compiler::error::exit;
use lathe_compiler::options::{Options, Weights};
use lathe_compiler::pipeline::{Goal, Level, compile};
use lathe_compiler::quantize::Quantize;
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::DType;
use lathe_kernels::spec::page_bytes;
use lathe_kernels::targets::Target;
use lathe_models::ModelError;
use lathe_models::checkpoint::{Checkpoint, TensorInfo};
use lathe_models::seeded::{small_llama, small_tokenizer};
use lathe_plan::Plan;

/// A folder that is removed with its contents.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lathe-compiler-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is the system's to remove.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, options: &Options) -> Vec<u8> {
    compile(crate::common::model(Scheme::INT4), Goal::Plan(path), options).expect("the small model compiles");
    std::fs::read(path).expect("the plan is there")
}

#[test]
fn threads_change_no_byte() {
    let folder = Folder::new("threads");
    let of = |threads: usize| write(&folder.file("model.plan"), &Options { threads, ..crate::common::options() });
    let one = of(1);
    assert!(one == of(1), "two compiles differ");
    assert!(one == of(3), "three threads give other bytes than one");
}

#[test]
fn a_plan_opens_and_says_what_it_is() {
    let folder = Folder::new("opens");
    let mut options = crate::common::options();
    options.passes.formats.base = Quantize::Int4;
    options.max_context = Some(100);
    let goal = folder.file("model.plan");
    compile(crate::common::model(Scheme::BF16), Goal::Plan(&goal), &options).expect("the small model compiles");
    let plan = lathe_plan::Plan::open(&folder.file("model.plan")).expect("the plan opens");
    let manifest = plan.manifest().expect("the manifest reads");
    assert_eq!(manifest.flags, ["--quantize int4", "--max-context 100"]);
    assert_eq!(manifest.max_context, 100);
    let embed = manifest.tensors.iter().find(|tensor| tensor.name == "embed").expect("the embedding is there");
    assert_eq!((embed.source.as_str(), embed.scheme.as_str()), ("bf16", "int8:g32"));
    assert!(embed.error.is_some_and(|error| error > 0.0 && error < 0.02));
    let qkv = manifest.tensors.iter().find(|tensor| tensor.name == "layers.0.qkv").expect("qkv is merged");
    assert_eq!(qkv.scheme, "iq4:g32");
    assert!(qkv.error.is_some_and(|error| error > 0.0 && error < 0.1));
}

#[test]
fn a_chat_template_that_cannot_be_read_is_refused() {
    let folder = Folder::new("template");
    let with = |template: &str| {
        let mut model = crate::common::model(Scheme::BF16);
        model.chat_template = Some(template.to_owned());
        compile(model, Goal::Plan(&folder.file("model.plan")), &crate::common::options())
    };
    let error = with("{% for x in %}").expect_err("it is no template");
    assert_eq!(error.exit_code(), exit::MODEL);
    assert!(error.to_string().contains("chat template") && error.to_string().contains("syntax error"), "{error}");
    assert!(!folder.file("model.plan").exists());
    with("{%- generation %}{{ messages }}{% endgeneration -%}").expect("it is one");
}

/// A checkpoint one of whose tensors begins with another value.
struct Loud {
    inner: Box<dyn Checkpoint>,
    tensor: &'static str,
    value: f32,
}

impl Checkpoint for Loud {
    fn names(&self) -> BTreeSet<&str> {
        self.inner.names()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        self.inner.tensor(name)
    }

    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError> {
        let is_first = name == self.tensor && rows.start == 0;
        let mut matrix = self.inner.load_rows(name, rows)?;
        if let MatrixData::Float(values) = &mut matrix.data
            && is_first
        {
            values[0] = self.value;
        }
        Ok(matrix)
    }
}

#[test]
fn weights_too_large_for_their_form_are_refused_and_not_stored_as_infinity() {
    let folder = Folder::new("overflow");
    let path = folder.file("model.plan");
    let compiled = |value: f32, quantize: &str| {
        let mut model = crate::common::model(Scheme::F32);
        model.checkpoint = Box::new(Loud { inner: model.checkpoint, tensor: "blk.1.ffn_down.weight", value });
        let mut options = crate::common::options();
        options.passes.formats = quantize.parse().expect("it is well formed");
        compile(model, Goal::Plan(&path), &options)
    };
    for (value, quantize, wider) in [
        (7e4, "f16", "bf16"),
        (1e6, "f16", "bf16"),
        (3e38, "int8", "bf16"),
        (1e6, "int4:g32+min", "bf16"),
        (f32::MAX, "bf16", "f32"),
    ] {
        let error = compiled(value, quantize).expect_err("it is not finite there");
        assert_eq!(error.exit_code(), exit::UNSUPPORTED, "{error}");
        let form = quantize.replace("int8", "int8:g32");
        let words = ["'layers.1.down'", "blk.1.ffn_down.weight", &form, &format!("--quantize {wider}")];
        assert!(words.iter().all(|&word| error.to_string().contains(word)), "{value} as {quantize}: {error}");
        assert!(!path.exists());
    }
    compiled(7e4, "bf16").expect("bf16 holds it");
}

#[test]
fn a_plan_replaces_an_older_one_and_nothing_else() {
    let folder = Folder::new("output");
    let (gguf, link) = (folder.file("keep.gguf"), folder.file("link.plan"));
    std::fs::write(&gguf, b"GGUF and so on").expect("the folder is writable");
    std::fs::hard_link(&gguf, &link).expect("the folder has links");
    let to = |path: &Path| {
        let mut model = crate::common::model(Scheme::INT4);
        model.origin.files = vec![gguf.clone()];
        compile(model, Goal::Plan(path), &crate::common::options())
    };
    let refused = |path: &Path, found: &str| {
        let error = to(path).expect_err("something is there");
        assert_eq!(error.exit_code(), exit::USAGE, "{error}");
        assert!(error.to_string().contains(found) && error.to_string().contains("choose another name"), "{error}");
    };
    refused(&gguf, "a file of the model");
    refused(&link, "a file of the model");
    refused(&folder.0, "a directory");
    std::fs::write(folder.file("notes.txt"), b"dear diary").expect("the folder is writable");
    refused(&folder.file("notes.txt"), "no plan");
    assert_eq!(std::fs::read(&gguf).expect("it is still there"), b"GGUF and so on");
    std::fs::write(folder.file("new.plan"), b"").expect("the folder is writable");
    to(&folder.file("new.plan")).expect("an empty file is nothing yet");
    to(&folder.file("new.plan")).expect("an older plan may be replaced");
}

#[test]
fn what_the_user_named_and_the_file_kept_is_told() {
    let folder = Folder::new("kept");
    let kept = |quantize: &str| {
        let mut options = crate::common::options();
        options.passes.formats = quantize.parse().expect("it is well formed");
        let goal = folder.file("model.plan");
        compile(crate::common::model(Scheme::INT4), Goal::Plan(&goal), &options).expect("it compiles").kept
    };
    assert_eq!(kept("int4,layers.0.down=int8,layers.1.down=int8:g32"), ["layers.0.down"]);
    assert!(kept("int8").is_empty(), "nothing was named");
}

#[test]
fn a_report_can_be_left_out() {
    let folder = Folder::new("report");
    let with = write(&folder.file("with.plan"), &crate::common::options());
    let without = write(&folder.file("without.plan"), &Options { report: false, ..crate::common::options() });
    let holds = |plan: &[u8], text: &str| plan.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(&with, "graph main(%tokens"));
    assert!(!holds(&without, "graph main(%tokens"));
}

#[test]
fn dumps_tell_the_story() {
    let folder = Folder::new("dumps");
    let mut options = crate::common::options();
    options.selection.dump_dir = Some(folder.0.clone());
    options.selection.stop_after = Some("merge_gate_up".to_owned());
    compile(crate::common::model(Scheme::INT4), Goal::Text(Level::Fused), &options).expect("the passes run");
    let mut names: Vec<String> = std::fs::read_dir(&folder.0)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder reads").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["0000.source.ir", "0004.after_merge_qkv.ir", "0005.after_merge_gate_up.ir", "times.txt"]);
}

fn refused(goal: Goal<'_>, change: impl FnOnce(&mut Options)) -> CompileError {
    let mut options = crate::common::options();
    change(&mut options);
    compile(crate::common::model(Scheme::INT4), goal, &options).expect_err("this is refused")
}

#[test]
fn wrong_options_are_sentences() {
    let text = Goal::Text(Level::Schedule);
    let check = |error: CompileError, code: u8, part: &str| {
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    check(refused(text, |options| options.selection.disabled.push("fuse".to_owned())), exit::USAGE, "no pass 'fuse'");
    check(refused(text, |options| options.max_context = Some(0)), exit::USAGE, "found 0");
    check(refused(text, |options| options.max_context = Some(513)), exit::USAGE, "1 to 512");
    check(refused(Goal::Text(Level::Ptx), |_| {}), exit::USAGE, "sm target");
}

#[test]
fn a_plan_for_a_gpu_holds_its_kernels_as_ptx() {
    let folder = Folder::new("gpu");
    let path = folder.file("model.plan");
    let mut options = crate::common::options();
    options.targets = vec![Target::parse("sm_80").expect("it is known")];
    compile(crate::common::model(Scheme::INT4), Goal::Plan(&path), &options).expect("every kernel has a generator");
    let plan = Plan::open(&path).expect("the plan is sound");
    let program = plan.program("main").expect("it has a program");
    let [code] = &plan.codes("main").collect::<Vec<_>>()[..] else { panic!("one code object") };
    assert_eq!((code.object.target.as_str(), code.object.entries.len()), ("sm_80", program.kernels.len()));
    let text = std::str::from_utf8(&code.object.code).expect("PTX is text");
    assert!(text.contains(".target sm_80"), "{}", &text[..200]);
    for (index, &at) in code.object.entries.iter().enumerate() {
        assert!(text[at as usize..].starts_with(&format!("kernel{index}(")), "kernel {index} starts at {at}");
    }
    assert!(program.buckets.iter().all(|bucket| bucket.scratch_bytes == 0), "a GPU's kernels have no scratch");
}

#[test]
fn a_cache_of_codes_for_a_gpu_is_refused_by_name() {
    let folder = Folder::new("codes");
    let path = folder.file("model.plan");
    let mut options = crate::common::options();
    options.cache = Some(DType::Int8);
    compile(crate::common::model(Scheme::INT4), Goal::Plan(&path), &options).expect("CPUs have the kernels");
    let tensors = |plan: &Plan| plan.program("main").expect("a program").cache_groups[0].tensors.clone();
    let page = tensors(&Plan::open(&path).expect("the plan is sound"))[0].page_bytes;
    let lathe_models::config::ModelConfig { kv_heads, head_dim, .. } = small_llama();
    assert_eq!(page, page_bytes(kv_heads, head_dim, DType::Int8) as u64);
    options.targets = vec![Target::parse("sm_80").expect("it is known")];
    let error = compile(crate::common::model(Scheme::INT4), Goal::Plan(&folder.file("gpu.plan")), &options)
        .expect_err("GPUs have no such kernels");
    assert_eq!(error.exit_code(), exit::UNSUPPORTED, "{error}");
    assert!(error.to_string().contains("compile with --cache f16"), "{error}");
    assert!(!folder.file("gpu.plan").exists(), "a plan was begun");
}

#[test]
fn a_width_that_kernels_cannot_walk_is_refused_by_name() {
    let config = lathe_models::config::ModelConfig { ffn: 80, ..small_llama() };
    let model =
        lathe_models::seeded::model(config, small_tokenizer(), 1, &|_| Scheme::BF16).expect("bf16 has no groups");
    let goal = Goal::Text(Level::Schedule);
    let error = compile(model, goal, &crate::common::options()).expect_err("80 is no multiple of 32");
    assert_eq!(error.exit_code(), exit::UNSUPPORTED);
    assert!(error.to_string().contains("'layers.0.down' has 80 columns"), "{error}");
}

#[test]
fn some_matrices_take_another_form() {
    let schemes = |quantize: &str| {
        let mut options = crate::common::options();
        options.passes.formats = quantize.parse().expect("it is well formed");
        let outcome = compile(crate::common::model(Scheme::BF16), Goal::Text(Level::Manifest), &options)?;
        let manifest = lathe_plan::Manifest::from_json(&outcome.text).expect("a manifest");
        Ok(manifest.tensors.into_iter().map(|tensor| (tensor.name, tensor.scheme)).collect::<Vec<_>>())
    };
    let mixed = schemes("int5,head=f16,layers.1.down=bf16,q=int8").expect("these are all there");
    let of = |name: &str| mixed.iter().find(|tensor| tensor.0 == name).map(|tensor| tensor.1.as_str());
    assert_eq!((of("embed"), of("layers.0.down"), of("layers.1.down")), (Some("f16"), Some("int5:g32"), Some("bf16")));
    // Another form of q alone keeps the three projections apart.
    assert_eq!((of("layers.0.qkv"), of("layers.0.q"), of("layers.0.k")), (None, Some("int8:g32"), Some("int5:g32")));
    let refused = |quantize: &str, message: &str| {
        let error: CompileError = schemes(quantize).expect_err(quantize);
        assert_eq!(error.exit_code(), exit::USAGE);
        assert!(error.to_string().contains(message), "{error}");
    };
    refused("int4,layers.1-2.down=int8", "'layers.1-2.down=int8', but the model's layers are 0 to 1");
    refused("int4,layers.7=int8", "'layers.7=int8', but the model's layers are 0 to 1");
    refused("int4:g32s6/256+min", "rows of embed have 64 elements, and the scheme needs a multiple of 256");
    refused("int4,q=int6:g16s8/256", "'q=int6:g16s8/256', but rows of layers.0.q have 64 elements");
}

#[test]
fn a_shape_without_weights_makes_a_small_plan() {
    let folder = Folder::new("shape");
    let path = folder.file("random.plan");
    let model = lathe_models::shapes::open(Path::new("llama-3.1-8b")).expect("a known shape");
    let mut options = crate::common::options();
    options.weights = "random:5".parse().expect("a seed");
    options.report = false;
    options.passes.formats.base = Quantize::Int4;
    compile(model, Goal::Plan(&path), &options).expect("no weight is needed");
    let plan = Plan::open(&path).expect("the plan is sound");
    let manifest = plan.manifest().expect("it has a manifest");
    assert!(manifest.weights_bytes > 4 << 30 && plan.length() < 512 << 10, "{} bytes", plan.length());
    assert_eq!(plan.seed(), Some(5));
    assert_eq!(manifest.flags, ["--quantize int4", "--weights random:5", "--strip-report"]);
    assert!(manifest.tensors.iter().all(|tensor| tensor.error.is_none()));
    for wrong in ["random", "random:", "random:x", "random:-1", "zero"] {
        assert!(wrong.parse::<Weights>().expect_err(wrong).contains("random:SEED"));
    }
}
