//! Programs of a few launches, laid out by hand.

use super::*;
use crate::program::{Affine, CacheGroup, CacheTensor, Grid, Kernel, Operand, Retention, Share, WeightSpan};

const fn arena(offset: u64) -> Buffer {
    Buffer::Arena { offset, bytes: Affine::tokens(64) }
}

/// Where the residual stream lies between layers, what is within a layer, the rotation, and the logits.
const STREAM: Buffer = arena(0);
const WITHIN: Buffer = arena(640);
const ROTATION: Buffer = arena(1280);
const LOGITS: Buffer = arena(1920);

fn launch(kernel: u32, buffers: &[Buffer]) -> Launch {
    Launch {
        kernel,
        buffers: buffers.to_vec(),
        params: Vec::new(),
        units: Affine::constant(1),
        share: Share::Even,
        barrier: true,
        flops: Affine::default(),
        bytes: Affine::default(),
    }
}

/// A program whose layers are an append, a product into `WITHIN` and one back; `outputs` is where each layer gives the
/// stream on.
fn program(outputs: &[Buffer]) -> Program {
    use Access::{Read, Write};
    let kernel = |accesses: &[Access]| Kernel {
        name: String::new(),
        recipe: String::new(),
        params: 0,
        grid: Grid::default(),
        operands: accesses.iter().map(|&access| Operand { access, extent: Vec::new() }).collect(),
    };
    let kernels =
        [&[Read, Write][..], &[Write], &[Read, Read, Write], &[Read, Read, Read, Write], &[Read, Read, Write]];
    let span = |name: String| WeightSpan { name, offset: 0, bytes: 8 };
    let mut weights = vec![span("embed".into())];
    let mut launches = vec![launch(0, &[Buffer::Weight(0), STREAM]), launch(1, &[ROTATION])];
    let mut stream = STREAM;
    for (layer, &output) in outputs.iter().enumerate() {
        let cache = Buffer::Cache { group: 0, tensor: layer as u32 };
        let weight = |n: usize| Buffer::Weight((weights.len() + n) as u32);
        let [up, down] = [weight(0), weight(1)];
        launches.push(launch(2, &[stream, ROTATION, cache]));
        launches.push(launch(3, &[stream, cache, up, WITHIN]));
        launches.push(launch(4, &[WITHIN, down, output]));
        weights.extend(["up", "down"].map(|role| span(format!("layers.{layer}.{role}"))));
        stream = output;
    }
    weights.push(span("head".into()));
    launches.push(launch(4, &[stream, Buffer::Weight(weights.len() as u32 - 1), LOGITS]));
    let tensor = |layer| CacheTensor { name: format!("kv.{layer}"), page_bytes: 64 };
    Program {
        name: "main".into(),
        vocabulary: 16,
        max_context: 64,
        cache_groups: vec![CacheGroup {
            name: "kv".into(),
            page_tokens: 16,
            retention: Retention::All,
            tensors: (0..outputs.len()).map(tensor).collect(),
        }],
        weights,
        kernels: kernels.into_iter().map(kernel).collect(),
        buckets: vec![Bucket {
            max: StepSize { tokens: 10, sequences: 1, rows: 1 },
            arena_bytes: 4096,
            scratch_bytes: 0,
            logits: LOGITS,
            picks: None,
            launches,
        }],
        ..Program::default()
    }
}

fn without(program: &Program, layers: &[u32]) -> Result<Vec<Launch>, SkipError> {
    let part = without_layers(program, PROGRAM, &layers.iter().copied().collect())?;
    assert_eq!((part.name.as_str(), &part.weights, &part.kernels), (PROGRAM, &program.weights, &program.kernels));
    Ok(part.buckets[0].launches.clone())
}

/// Checks that without these layers as many remain, each reading what the one before it wrote, with their own weights.
#[track_caller]
fn check(whole: &Program, left_out: &[u32], kept: &[u32]) {
    let part = without_layers(whole, PROGRAM, &left_out.iter().copied().collect()).unwrap();
    let straight = program(&vec![STREAM; kept.len()]);
    let sources = |program: &Program| Flow::of(program, &program.buckets[0]).sources;
    assert_eq!(sources(&part), sources(&straight));
    let outside = |buffer: &&Buffer| !matches!(buffer, Buffer::Arena { .. });
    let found: Vec<&Buffer> =
        part.buckets[0].launches.iter().flat_map(|launch| launch.buffers.iter().filter(outside)).collect();
    let launches = &whole.buckets[0].launches;
    let layers = kept.iter().flat_map(|&layer| &launches[2 + 3 * layer as usize..][..3]);
    let expected = launches[..2].iter().chain(layers).chain(launches.last());
    let expected: Vec<&Buffer> = expected.flat_map(|launch| launch.buffers.iter().filter(outside)).collect();
    assert_eq!(found, expected);
}

#[test]
fn layers_go_and_what_others_need_stays() {
    for whole in [program(&[STREAM; 4]), program(&[WITHIN, STREAM, WITHIN, STREAM])] {
        check(&whole, &[1], &[0, 2, 3]);
        check(&whole, &[0], &[1, 2, 3]);
        check(&whole, &[1, 2], &[0, 3]);
        check(&whole, &[3], &[0, 1, 2]);
        check(&whole, &[0, 2, 3], &[1]);
    }
    let whole = program(&[STREAM; 4]);
    let part = without_layers(&whole, PROGRAM, &BTreeSet::from([1, 3])).unwrap();
    assert_eq!(saved_bytes(&whole, &part), 4 * 8);
}

#[test]
fn who_waited_behind_a_layer_that_is_gone_still_waits() {
    let mut whole = program(&[STREAM; 3]);
    // Layer 2 begins without a barrier of its own.
    whole.buckets[0].launches[8].barrier = false;
    let launches = without(&whole, &[1]).unwrap();
    assert!(launches[5].barrier);
}

#[test]
fn layers_that_cannot_go_are_named() {
    let whole = program(&[STREAM; 3]);
    let check = |layers: &[u32], hint: &str| {
        let error = without(&whole, layers).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    };
    check(&[], "name at least one of the model's 3 layers, 0 to 2");
    check(&[1, 3], "layer 3 cannot be left out: the model has 3 layers, 0 to 2");
    check(&[0, 1, 2], "all 3 layers are left out");
    // A value besides the stream goes from layer 0 to layer 1.
    let mut tangled = program(&[STREAM; 3]);
    tangled.buckets[0].launches[6].buffers[1] = WITHIN;
    tangled.buckets[0].launches[4].buffers[0] = ROTATION;
    let error = without(&tangled, &[1]).unwrap_err();
    assert!(matches!(error, SkipError::Entangled { layer: 1, .. }), "{error}");
}

#[test]
fn layers_are_spelled_as_ranges() {
    assert_eq!(spell(&BTreeSet::from([3, 5, 6, 7, 9, 10])), "3,5-7,9-10");
    assert_eq!(spell(&BTreeSet::new()), "");
}
