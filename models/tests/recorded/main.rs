//! Small checkpoints of every family, judged by the logits that another implementation computed for them.

mod case;

use std::collections::BTreeSet;
use std::path::Path;

use lathe_ir::eval::{Caches, Data, StepInputs, Tensor, evaluate};
use lathe_ir::graph::Weight;
use lathe_ir::types::{DType, Elem, Type};
use lathe_ir::verify::verify;
use lathe_models::checkpoint::assemble;
use lathe_models::families::FAMILIES;
use lathe_models::{Model, open};

/// Bound on ‖logits − recorded‖ / ‖recorded‖: both sides compute in single precision, in different orders.
const BOUND: f64 = 1e-5;

fn logits(model: &Model, step: &StepInputs, caches: &mut Caches) -> Vec<f32> {
    let weights = |weight: &Weight, ty: &Type| {
        let matrix = assemble(&*model.checkpoint, weight).map_err(|error| error.to_string())?;
        Ok(match ty.elem() {
            Some(Elem::Dense(_)) => Tensor::f32(vec![matrix.cols], matrix.to_f32()),
            _ => Tensor::matrix(matrix),
        })
    };
    match &evaluate(&model.graph, &weights, step, caches).unwrap()["logits"].data {
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
        verify(&model.graph).unwrap();
        let tokens = case.tokens();
        let step = StepInputs { rows: case.rows(), ..StepInputs::sequence(0, 0, &tokens) };
        let error = relative_error(&logits(&model, &step, &mut Caches::default()), &case.logits);
        println!("{}: {error:.1e}", case.name);
        if error.is_nan() || error > BOUND {
            faults.push(format!("{}: relative error {error:.1e}", case.name));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let families: BTreeSet<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    assert_eq!(seen, families, "every family has a case");
}
