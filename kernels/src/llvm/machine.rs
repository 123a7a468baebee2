//! Modules to text, objects and code: LLVM's target machine.

use std::fmt::Write as _;

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple,
};

use super::builder::Builder;
use super::link::link;
use crate::spec::KernelSpec;
use crate::targets::{Machine, Target};
use crate::{KernelError, Object, TextLevel, templates};

/// LLVM's optimizer, without the vectorizers: templates say what is a vector.
const PASSES: &str = "default<O2>";

fn internal(spec: &str, message: &(impl ToString + ?Sized)) -> KernelError {
    KernelError::Internal { spec: spec.to_string(), message: message.to_string() }
}

fn machine(target: &Target) -> Result<TargetMachine, KernelError> {
    match target.machine {
        Machine::X86 => LlvmTarget::initialize_x86(&InitializationConfig::default()),
        Machine::Nvptx => LlvmTarget::initialize_nvptx(&InitializationConfig::default()),
    }
    let triple = TargetTriple::create(target.triple);
    LlvmTarget::from_triple(&triple)
        .map_err(|error| internal(target.name, &error))?
        .create_target_machine(
            &triple,
            target.cpu,
            target.llvm_features,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| internal(target.name, "LLVM has no such target machine"))
}

/// The function name of kernel `index`.
fn symbol(index: usize) -> String {
    format!("kernel{index}")
}

fn build<'c>(
    context: &'c Context,
    target: &'static Target,
    machine: &TargetMachine,
    specs: &[(usize, &KernelSpec)],
) -> Result<Module<'c>, KernelError> {
    let mut builder = Builder::new(context, target);
    builder.module.set_triple(&machine.get_triple());
    builder.module.set_data_layout(&machine.get_target_data().get_data_layout());
    for (index, spec) in specs {
        if let Some(reason) = templates::missing(spec, builder.is_vector()) {
            let (spec, target) = (spec.to_string(), target.to_string());
            return Err(KernelError::Unsupported { spec, target, reason: reason.to_string() });
        }
        templates::generate(&mut builder, &symbol(*index), spec);
    }
    let names = || specs.iter().map(|(_, spec)| spec.to_string()).collect::<Vec<_>>().join(", ");
    builder.module.verify().map_err(|error| internal(&names(), &error))?;
    Ok(builder.module)
}

fn optimize(module: &Module<'_>, machine: &TargetMachine) -> Result<(), KernelError> {
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(false);
    options.set_loop_slp_vectorization(false);
    options.set_loop_unrolling(false);
    module.run_passes(PASSES, machine, options).map_err(|error| internal("module", &error))
}

/// All kernels as one code object: position-independent code for a CPU, the text of one PTX module for a GPU.
pub fn object(specs: &[KernelSpec], target: &'static Target) -> Result<Object, KernelError> {
    let machine = machine(target)?;
    let context = Context::create();
    let indexed: Vec<(usize, &KernelSpec)> = specs.iter().enumerate().collect();
    let module = build(&context, target, &machine, &indexed)?;
    optimize(&module, &machine)?;
    let file = match target.machine {
        Machine::X86 => FileType::Object,
        Machine::Nvptx => FileType::Assembly,
    };
    let output = machine.write_to_memory_buffer(&module, file).map_err(|error| internal("module", &error))?;
    let symbols: Vec<String> = (0..specs.len()).map(symbol).collect();
    let object = match target.machine {
        Machine::X86 => link(output.as_slice(), &symbols),
        Machine::Nvptx => ptx(output.as_slice(), &symbols),
    };
    object.map_err(|message| internal("module", &message))
}

/// A PTX module as a code object: its text, and where each kernel's name stands in it.
fn ptx(text: &[u8], symbols: &[String]) -> Result<Object, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?.trim_end_matches('\0');
    let entry = |name: &String| {
        let head = format!(".entry {name}(");
        let at = text.find(&head).ok_or_else(|| format!("kernel '{name}' is missing"))?;
        Ok((at + ".entry ".len()) as u64)
    };
    let entries = symbols.iter().map(entry).collect::<Result<Vec<u64>, String>>()?;
    Ok(Object { entries, code: text.as_bytes().to_vec() })
}

/// The text of each kernel, one module each, headed by its spec.
pub fn text(specs: &[KernelSpec], target: &'static Target, level: TextLevel) -> Result<String, KernelError> {
    let machine = machine(target)?;
    let comment = match (level, target.machine) {
        (TextLevel::Llvm, _) => ";",
        (TextLevel::Assembly, Machine::X86) => "#",
        (TextLevel::Assembly, Machine::Nvptx) => "//",
    };
    let mut out = String::new();
    for entry in specs.iter().enumerate() {
        let context = Context::create();
        let module = build(&context, target, &machine, &[entry])?;
        let _ = writeln!(out, "{comment} {}", entry.1);
        match level {
            TextLevel::Llvm => out.push_str(&module.print_to_string().to_string()),
            TextLevel::Assembly => {
                optimize(&module, &machine)?;
                let buffer = machine
                    .write_to_memory_buffer(&module, FileType::Assembly)
                    .map_err(|error| internal(&entry.1.to_string(), &error))?;
                out.push_str(String::from_utf8_lossy(buffer.as_slice()).trim_end_matches('\0'));
            }
        }
        out.push('\n');
    }
    Ok(out)
}
