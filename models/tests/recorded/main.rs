//! Small checkpoints of every family, judged by the logits that another implementation computed for them.

mod as_gguf;
mod case;

use std::collections::BTreeSet;
use std::path::Path;

use lathe_ir::eval::{Caches, Data, StepInputs, Tensor, evaluate};
use lathe_ir::graph::Weight;
use lathe_ir::types::{DType, Elem, Type};
use lathe_ir::verify::verify;
use lathe_models::checkpoint::assemble;
use lathe_models::families::FAMILIES;
use lathe_models::gguf::Gguf;
use lathe_models::{Model, from_gguf, open};

use as_gguf::Projections;
use case::Case;

/// Bound on ‖logits − recorded‖ / ‖recorded‖: both sides compute in single precision, in different orders.
const BOUND: f64 = 1e-5;

/// Logits of the recorded rows of the recorded tokens.
fn logits(case: &Case, model: &Model) -> Vec<f32> {
    let weights = |weight: &Weight, ty: &Type| {
        let matrix = assemble(&*model.checkpoint, weight).map_err(|error| error.to_string())?;
        Ok(match ty.elem() {
            Some(Elem::Dense(_)) => Tensor::f32(vec![matrix.cols], matrix.to_f32()),
            _ => Tensor::matrix(matrix),
        })
    };
    verify(&model.graph).unwrap();
    let tokens = case.tokens();
    let step = StepInputs { rows: case.rows(), ..StepInputs::sequence(0, 0, &tokens) };
    match &evaluate(&model.graph, &weights, &step, &mut Caches::default()).unwrap()["logits"].data {
        Data::F32(values) => values.clone(),
        _ => panic!("logits are floats"),
    }
}

fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    norm(&mut pairs.map(|(&f, &e)| f64::from(f) - f64::from(e))) / norm(&mut expected.iter().map(|&e| f64::from(e)))
}

#[test]
fn every_family_computes_the_recorded_logits() {
    let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
    for case in case::cases() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("recorded-{}", case.name));
        case.write(&folder);
        let model = match open(&folder) {
            Ok(model) => model.with_cache(DType::F32).unwrap(),
            Err(error) => {
                faults.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        seen.insert(model.config.architecture.clone());
        let error = relative_error(&logits(&case, &model), &case.logits);
        println!("{}: {error:.1e}", case.name);
        if error.is_nan() || error > BOUND {
            faults.push(format!("{}: relative error {error:.1e}", case.name));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let families: BTreeSet<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    assert_eq!(seen, families, "every family has a case");
}

/// A case as its directory has it.
fn directory(case: &Case) -> Model {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("directory-{}", case.name));
    case.write(&folder);
    open(&folder).unwrap().with_cache(DType::F32).unwrap()
}

/// The relative error of a GGUF file's logits in the rows for which it says the same as the directory.
fn error_of_file(case: &Case, projections: Projections, expected: &[f32]) -> Result<f64, String> {
    let file = as_gguf::file(case, projections);
    let gguf = Gguf::from_bytes(file.bytes).map_err(|error| error.to_string())?;
    let model = from_gguf(gguf, &case.name).map_err(|error| error.to_string())?;
    let found = logits(case, &model.with_cache(DType::F32).unwrap());
    let told = case.rows().iter().filter(|&&row| (row as usize) < file.rows).count();
    let told = told * expected.len() / case.rows().len();
    Ok(relative_error(&found[..told], &expected[..told]))
}

/// Checks the files of these cases.
fn check_files(cases: impl IntoIterator<Item = Case>, projections: Projections) -> BTreeSet<String> {
    let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
    for case in cases {
        // What nothing was recorded of is judged by the directory, whose family was judged by what was recorded.
        let expected = if case.logits.is_empty() { logits(&case, &directory(&case)) } else { case.logits.clone() };
        match error_of_file(&case, projections, &expected) {
            Ok(error) => {
                println!("{}: {error:.1e}", case.name);
                if error.is_nan() || error > BOUND {
                    faults.push(format!("{}: relative error {error:.1e}", case.name));
                }
            }
            Err(message) => faults.push(format!("{}: {message}", case.name)),
        }
        seen.insert(case.config()["model_type"].as_str().unwrap().to_owned());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    seen
}

#[test]
fn gguf_files_of_every_family_compute_the_recorded_logits() {
    let seen = check_files(as_gguf::cases(), Projections::Apart);
    assert_eq!(seen.len(), FAMILIES.len(), "every family has a file: {seen:?}");
}

#[test]
fn gguf_files_may_join_queries_keys_and_values() {
    let apart = |case: &Case| !["gpt2", "phi3"].contains(&case.config()["model_type"].as_str().unwrap());
    let seen = check_files(as_gguf::cases().into_iter().filter(apart), Projections::Joined);
    assert_eq!(seen.len(), FAMILIES.len() - 2, "every other family has a file: {seen:?}");
}

#[test]
fn gpt2_may_be_published_without_a_prefix_and_with_its_masks() {
    let case = case::cases().into_iter().find(|case| case.name == "gpt2").unwrap();
    let bare = |(name, shape, values): case::Tensor| (name.replace("transformer.", ""), shape, values);
    let mut tensors: Vec<case::Tensor> = case.tensors().into_iter().map(bare).collect();
    for layer in 0..2 {
        tensors.push((format!("h.{layer}.attn.bias"), vec![1, 1, 64, 64], vec![1.0; 64 * 64]));
        tensors.push((format!("h.{layer}.attn.masked_bias"), Vec::new(), vec![-1e4]));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpt2-bare");
    case.write_tensors(&folder, tensors.clone());
    let error = relative_error(&logits(&case, &open(&folder).unwrap().with_cache(DType::F32).unwrap()), &case.logits);
    assert!(error <= BOUND, "relative error {error:.1e}");
    // A true bias under the mask's name is not ignored.
    tensors.retain(|(name, ..)| !name.ends_with(".attn.bias"));
    tensors.push(("h.0.attn.bias".to_owned(), vec![64], vec![1.0; 64]));
    case.write_tensors(&folder, tensors);
    let message = open(&folder).err().unwrap().to_string();
    assert!(message.contains("'h.0.attn.bias'") && message.contains("not understood"), "{message}");
}
