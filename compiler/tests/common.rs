//! What the tests share: the seeded model, its weights for the reference evaluation, and a run of all passes.

use lathe_compiler::options::Options;
use lathe_compiler::pass::{self, PassOptions, Selection};
use lathe_ir::eval::Tensor;
use lathe_ir::graph::{Graph, Weight};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{Elem, Type};
use lathe_kernels::packing::quantize;
use lathe_kernels::targets::TARGETS;
use lathe_models::Model;
use lathe_models::checkpoint::{Checkpoint, assemble};
use lathe_models::seeded::small_model;

/// The seeded model with its matrices in one scheme.
pub fn model(scheme: Scheme) -> Model {
    small_model(7, scheme).expect("the small model fits every scheme")
}

/// Options for the first x86-64 target, which needs no such machine to be compiled for.
pub fn options() -> Options {
    Options::new(&TARGETS[0])
}

/// The data of a weight, in the type that the graph declares.
pub fn weight(checkpoint: &dyn Checkpoint, weight: &Weight, ty: &Type) -> Result<Tensor, String> {
    let matrix = assemble(checkpoint, weight).map_err(|error| error.to_string())?;
    Ok(match ty.elem() {
        Some(Elem::Weight(scheme)) => Tensor::matrix(quantize(&matrix, *scheme)),
        _ => Tensor::f32(vec![matrix.cols], matrix.to_f32()),
    })
}

/// The model's graph after all passes but the disabled ones.
pub fn fused(model: &Model, options: &PassOptions, disabled: &[&str]) -> Graph {
    let mut graph = model.graph.clone();
    let disabled = disabled.iter().map(|&name| name.to_owned()).collect();
    let selection = Selection { disabled, ..Selection::default() };
    pass::run(&mut graph, &TARGETS[0], options, &selection).expect("the passes run on the small model");
    graph
}
