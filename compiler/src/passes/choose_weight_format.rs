//! Chooses the scheme in which each matrix is stored, by `--quantize`: `source` takes the smallest scheme that holds the
//! file's own values, so integer schemes and f16 stay and other floats become bf16; `auto` does so, too, but for a CPU,
//! and with int8 activations, it re-encodes the 8-bit codes of a head that is no embedding in 6 bits: every token that is
//! decoded reads all of it, and what its logits lose is little. Other forms take the first of their schemes whose groups
//! divide the rows, but leave a matrix alone whose codes in the file are no wider. It runs before matrices are merged,
//! because those of one product share a scheme.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   @up: int4:g32+min[64, 32] = "up"
//!   @down: f32[32, 64] = "down"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = rms_norm %0, @norm {eps = 1e-5} : f32[T, 32]
//!   %2 = linear %1, @up : f32[T, 64]
//!   %3 = linear %2, @down : f32[T, 32]
//!   %4 = linear %3, @embed : f32[T, 64]
//!   return logits = %4
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   @up: int4:g32+min[64, 32] = "up"
//!   @down: bf16[32, 64] = "down"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = rms_norm %0, @norm {eps = 1e-5} : f32[T, 32]
//!   %2 = linear %1, @up : f32[T, 64]
//!   %3 = linear %2, @down : f32[T, 32]
//!   %4 = linear %3, @embed : f32[T, 64]
//!   return logits = %4
//! }
//! ```
//! With `int5` and `int4`, the embedding and the head keep 8 bits, because every token passes through them alone; what the
//! user says of a matrix by name goes before all. A matrix whose rows are no whole groups cannot be of integers and becomes
//! bf16. Vectors stay f32. Each choice is noted with its reason. It errs when something is said of matrices or layers that
//! the model does not have, and when a scheme is asked for by its name whose groups do not divide the rows.

use lathe_ir::graph::{Graph, NodeId, NodeKind, Value};
use lathe_ir::op::Op;
use lathe_ir::scheme::{Code, Scheme};
use lathe_ir::types::{DType, Elem, Type};
use lathe_kernels::targets::Machine;

use crate::pass::{Activations, Note, PassContext, PassError};
use crate::quantize::Quantize;

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    let formats = context.options.formats.clone();
    let mut used = vec![false; formats.overrides.len()];
    let mut layers = 0;
    for id in graph.order() {
        let node = graph.node(id);
        let NodeKind::Weight(weight) = &node.kind else { continue };
        let Type::Tensor { elem: Elem::Weight(source), shape } = &node.results[0] else { continue };
        let width = shape.last().and_then(|k| k.constant()).unwrap_or(0);
        let place = place(graph, id);
        layers = layers.max(layer(&weight.name).map_or(0, |layer| layer + 1));
        let mut wanted = None;
        for (of, used) in formats.overrides.iter().zip(&mut used) {
            if of.matches(&weight.name, matches!(place, Place::Head | Place::Tied)) {
                (wanted, *used) = (Some(of), true);
            }
        }
        let (form, place, asked) = match wanted {
            Some(of) => (of.form, Place::Inside, of.to_string()),
            None => (formats.base, place, formats.base.to_string()),
        };
        if let Quantize::Scheme(scheme) = form
            && !divides(scheme, width)
        {
            let (entry, weight, span) = (asked, weight.name.clone(), scheme.span());
            return Err(PassError::SchemeTooWide { entry, weight, width, span });
        }
        let form = if form == Quantize::Auto { auto(*source, place, context) } else { form };
        let (scheme, reason) = choose(*source, form, place, width, &format!("--quantize {asked}"));
        let kept = wanted.is_some() && is_kept(*source, form, place);
        context.notes.push(Note { subject: weight.name.clone(), reason: format!("{scheme}: {reason}"), kept });
        if scheme != *source {
            let ty = Type::Tensor { elem: Elem::Weight(scheme), shape: shape.clone() };
            graph.set_weight_type(id, ty);
            changed = true;
        }
    }
    for (of, used) in formats.overrides.iter().zip(used) {
        let entry = of.to_string();
        match of.layers {
            Some((_, last)) if last >= layers => return Err(PassError::NoSuchLayer { entry, layers }),
            _ if !used => return Err(PassError::NoSuchWeight { entry }),
            _ => {}
        }
    }
    Ok(changed)
}

/// The layer that a weight belongs to.
fn layer(weight: &str) -> Option<usize> {
    weight.strip_prefix("layers.")?.split('.').next()?.parse().ok()
}

/// Whether rows of a width are whole spans of a scheme.
fn divides(scheme: Scheme, width: usize) -> bool {
    !scheme.is_integer() || width.is_multiple_of(scheme.span())
}

/// Where a weight stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a layer.
    Inside,
    /// It is an embedding table and nothing else.
    Embedding,
    /// Its product is an output.
    Head,
    /// It is an embedding table whose product is an output, too.
    Tied,
}

fn place(graph: &Graph, weight: NodeId) -> Place {
    let users = graph.users(weight);
    let embeds = users.iter().any(|&user| matches!(graph.as_op(user), Some(Op::Embed(_))));
    if users.iter().any(|&user| leads_out(graph, user)) {
        return if embeds { Place::Tied } else { Place::Head };
    }
    if embeds { Place::Embedding } else { Place::Inside }
}

/// Whether a linear's result is an output, perhaps after ops on its elements.
fn leads_out(graph: &Graph, linear: NodeId) -> bool {
    let mut node = linear;
    if !matches!(graph.as_op(node), Some(Op::Linear(_))) {
        return false;
    }
    loop {
        let (users, is_output) = graph.uses(Value { node, result: 0 });
        match users[..] {
            _ if is_output => return true,
            [user] if !matches!(graph.as_op(user), Some(Op::Linear(_) | Op::Append(_) | Op::Attention(_))) => {
                node = user;
            }
            _ => return false,
        }
    }
}

/// The schemes of a form, the best first; the others are for rows that its groups do not divide.
fn schemes(form: Quantize) -> &'static [Scheme] {
    match form {
        Quantize::Auto | Quantize::Source | Quantize::Scheme(_) => &[],
        Quantize::F32 => &[Scheme::F32],
        Quantize::Bf16 => &[Scheme::BF16],
        Quantize::F16 => &[Scheme::F16],
        Quantize::Int8 => &[Scheme::INT8],
        Quantize::Int6 => &[Scheme::INT6_SUPER, Scheme::INT6_SYMMETRIC],
        Quantize::Int5 => &[Scheme::INT5_SUPER, Scheme::INT5_SYMMETRIC],
        // The codebook loses less than even steps of as many bits, or than those with minima at half a bit more.
        Quantize::Int4 => &[Scheme::IQ4],
    }
}

/// What `auto` stands for.
fn auto(source: Scheme, place: Place, context: &PassContext) -> Quantize {
    let is_wide = source.is_integer() && source.bits() == 8;
    let may_round = context.target.machine == Machine::X86 && context.options.activations == Activations::Int8;
    if is_wide && place == Place::Head && may_round { Quantize::Int6 } else { Quantize::Source }
}

/// The most bits of codes that a form leaves as they are in the file, since other ones would be larger or lose something
/// for little; none for a form that names a scheme or a type of float.
fn kept_bits(form: Quantize, place: Place) -> u8 {
    match form {
        Quantize::Int8 => 8,
        Quantize::Int6 => 6,
        Quantize::Int5 | Quantize::Int4 if place != Place::Inside => 8,
        Quantize::Int5 => 5,
        Quantize::Int4 => 4,
        Quantize::Auto | Quantize::Source | Quantize::F32 | Quantize::Bf16 | Quantize::F16 | Quantize::Scheme(_) => 0,
    }
}

/// Whether a matrix stored as `source` stays as it is in the file.
fn is_kept(source: Scheme, form: Quantize, place: Place) -> bool {
    source.is_integer() && source.bits() <= kept_bits(form, place)
}

/// The scheme of a matrix stored as `source`, and why.
fn choose(source: Scheme, form: Quantize, place: Place, width: usize, asked: &str) -> (Scheme, String) {
    let divides = |scheme: Scheme| divides(scheme, width);
    let (scheme, reason) = match form {
        _ if is_kept(source, form, place) => {
            (source, format!("holds the file's own codes, which are no wider than {asked}"))
        }
        Quantize::Auto | Quantize::Source => match source.code {
            Code::Uniform { .. } | Code::Table => (source, "holds the file's own codes and scales".to_owned()),
            Code::Float(DType::F16) => (source, "holds the file's own values".to_owned()),
            Code::Float(_) => (Scheme::BF16, "the smallest scheme for a file of floats".to_owned()),
        },
        Quantize::Scheme(scheme) => (scheme, asked.to_owned()),
        Quantize::Int5 | Quantize::Int4 if place != Place::Inside => {
            (Scheme::INT8, format!("{asked}, but embedding and head keep 8 bits"))
        }
        _ => {
            let known = schemes(form);
            let fitting = known.iter().copied().find(|&scheme| divides(scheme)).unwrap_or(Scheme::BF16);
            let reason = match known.first() {
                Some(best) if *best != fitting && fitting.is_integer() => {
                    format!("{asked}, in groups that divide rows of {width}")
                }
                _ => asked.to_owned(),
            };
            (fitting, reason)
        }
    };
    if divides(scheme) { (scheme, reason) } else { (Scheme::BF16, "its rows are no whole groups".to_owned()) }
}

#[cfg(test)]
mod tests {
    use lathe_kernels::targets::Target;

    use super::{Activations, PassContext, Place, Quantize, Scheme, auto, choose};
    use crate::pass::PassOptions;

    #[test]
    fn a_head_alone_is_narrowed_on_cpus() {
        let check = |source, place, [target, activations]: [&str; 2], expected| {
            let mut context = PassContext::new(Target::parse(target).expect("it is known"), PassOptions::default());
            context.options.activations = if activations == "f32" { Activations::F32 } else { Activations::Int8 };
            assert_eq!(auto(source, place, &context), expected, "{source}, {place:?}, {target}, {activations}");
        };
        let cpu = ["x86-64-v3", "int8"];
        check(Scheme::INT8, Place::Head, cpu, Quantize::Int6);
        check(Scheme::INT8, Place::Head, ["x86-64-v3", "f32"], Quantize::Source);
        check(Scheme::INT8, Place::Head, ["sm_80", "int8"], Quantize::Source);
        check(Scheme::INT8, Place::Tied, cpu, Quantize::Source);
        check(Scheme::INT8, Place::Embedding, cpu, Quantize::Source);
        check(Scheme::INT8, Place::Inside, cpu, Quantize::Source);
        check(Scheme::INT6_SUPER, Place::Head, cpu, Quantize::Source);
        check(Scheme::BF16, Place::Head, cpu, Quantize::Source);
    }

    #[test]
    fn each_choice() {
        let check = |source, quantize, place, width, expected| {
            assert_eq!(choose(source, quantize, place, width, "").0, expected);
        };
        check(Scheme::INT4, Quantize::Source, Place::Inside, 64, Scheme::INT4);
        check(Scheme::INT8, Quantize::Source, Place::Head, 64, Scheme::INT8);
        check(Scheme::F32, Quantize::Source, Place::Inside, 64, Scheme::BF16);
        check(Scheme::F16, Quantize::Source, Place::Inside, 48, Scheme::F16);
        check(Scheme::IQ4_SUPER, Quantize::Source, Place::Inside, 512, Scheme::IQ4_SUPER);
        check(Scheme::INT6_SUPER, Quantize::Source, Place::Head, 384, Scheme::BF16);
        check(Scheme::INT8, Quantize::Bf16, Place::Inside, 64, Scheme::BF16);
        check(Scheme::INT8, Quantize::F32, Place::Inside, 48, Scheme::F32);
        check(Scheme::INT4, Quantize::Int8, Place::Inside, 64, Scheme::INT4);
        check(Scheme::INT4, Quantize::Int4, Place::Inside, 64, Scheme::INT4);
        check(Scheme::INT5, Quantize::Int4, Place::Inside, 64, Scheme::IQ4);
        check(Scheme::INT6_SUPER, Quantize::Int4, Place::Head, 512, Scheme::INT6_SUPER);
        check(Scheme::INT4, Quantize::Scheme(Scheme::INT8), Place::Inside, 64, Scheme::INT8);
        check(Scheme::BF16, Quantize::Int6, Place::Head, 512, Scheme::INT6_SUPER);
        check(Scheme::BF16, Quantize::Int6, Place::Inside, 576, Scheme::INT6_SYMMETRIC);
        check(Scheme::BF16, Quantize::Int5, Place::Inside, 576, Scheme::INT5_SYMMETRIC);
        check(Scheme::BF16, Quantize::Int4, Place::Inside, 512, Scheme::IQ4);
        check(Scheme::BF16, Quantize::Int4, Place::Inside, 64, Scheme::IQ4);
        check(Scheme::BF16, Quantize::Int4, Place::Head, 64, Scheme::INT8);
        check(Scheme::BF16, Quantize::Int4, Place::Embedding, 64, Scheme::INT8);
        check(Scheme::BF16, Quantize::Int4, Place::Inside, 48, Scheme::BF16);
        check(Scheme::BF16, Quantize::Scheme(Scheme::INT5_SUPER), Place::Inside, 256, Scheme::INT5_SUPER);
    }
}
