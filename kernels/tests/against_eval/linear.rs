//! Linear kernels: every scheme, activation form, tile and epilogue; and the bits, which no tile or batch may change.

use lathe_ir::eval::{CacheState, EvalContext, Tensor};
use lathe_ir::op::Op;
use lathe_ir::ops::glu::Function;
use lathe_ir::ops::{add, append_qkv, bias, glu, linear, quantize, rope};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType};
use lathe_kernels::spec::{Activation, KernelSpec, Stage, Tile, page_bytes};

use crate::data::{F32_BOUND, Random, act_records, assert_close, f32_bytes, floats, i32_bytes, weight};
use crate::machine::Buffer::{self, Data as Bytes, Output};
use crate::machine::{self, ON_EMULATOR, run};

/// Relative error allowed where activations are rounded to bf16: half a unit of 8 bits, of products that add up at random.
const BF16_BOUND: f64 = 5e-3;

const TILES: [Tile; 2] = [Tile::Stream { tokens: 4 }, Tile::Unpack { tokens: 4 }];

/// How many of a form's tiles are compared with the reference: a CPU's third one is unpacked like the second.
const COMPARED: usize = if ON_EMULATOR { 3 } else { 2 };

/// The tiles of products of this form, in lists whose tiles give the same bits: those of lanes, and those of tensor cores.
fn tiles(scheme: Scheme, act: Activation) -> Vec<Vec<Tile>> {
    let mut tiles = vec![[&TILES[..], &[Tile::Unpack { tokens: 6 }]].concat()];
    if (act == Activation::Int8 || scheme == Scheme::BF16) && ON_EMULATOR {
        let [few, some, more] = [8, 16, 64].map(|tokens| Tile::Mma { tokens, narrow: false });
        let narrow = Tile::Mma { tokens: 8, narrow: true };
        tiles.push(vec![few, Tile::Staged { blocks: 4, tokens: 64 }, narrow, some, more]);
    }
    tiles
}

/// The form in which a tile takes activations: those of floats are rounded before where they are many.
fn taken(act: Activation, tile: Tile) -> Activation {
    match (act, tile) {
        (Activation::F32, Tile::Staged { .. } | Tile::Mma { tokens: 16.., .. }) => Activation::Bf16,
        _ => act,
    }
}

/// Each weight scheme with each form of activations that it takes.
fn forms() -> Vec<(Scheme, Activation)> {
    let integer = Scheme::ALL.into_iter().filter(|scheme| scheme.is_integer());
    let float = Scheme::ALL.into_iter().map(|scheme| (scheme, Activation::F32));
    float.chain(integer.map(|scheme| (scheme, Activation::Int8))).collect()
}

/// Activations as the kernel reads them and as the reference does.
fn activations(act: Activation, x: &[f32], k: usize) -> (Vec<u8>, Tensor) {
    let tensor = Tensor::f32(vec![x.len() / k, k], x.to_vec());
    match act {
        Activation::F32 => (f32_bytes(x), tensor),
        Activation::Bf16 => {
            // Where the kernel looks for the columns of each 32: pair 4 j + t lies at 4 t + j.
            let pair = |word: usize| 2 * (word % 4 * 4 + word / 4);
            let columns = (0..k).map(|at| at / 32 * 32 + pair(at % 32 / 2) + at % 2).collect::<Vec<usize>>();
            let of_row = |row: &[f32]| columns.iter().map(|&column| row[column]).collect::<Vec<f32>>();
            let ordered = x.chunks(k).flat_map(of_row);
            (ordered.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(), tensor)
        }
        Activation::Int8 => {
            let op: Op = quantize::Quantize { group: 32 }.into();
            let quantized = op.eval(&[tensor], &mut EvalContext::default()).unwrap().remove(0);
            (act_records(&quantized), quantized)
        }
    }
}

/// Operands of the stages: as the kernel reads them and as the reference does.
type Extra = (Vec<Buffer>, Vec<Tensor>);

/// Forms for the tests of epilogues, which see the same sums whatever the weights were.
const SOME_FORMS: [(Scheme, Activation); 3] =
    [(Scheme::INT4, Activation::Int8), (Scheme::INT6_SUPER, Activation::Int8), (Scheme::BF16, Activation::F32)];

fn check(
    forms: &[(Scheme, Activation)],
    epilogue: &[Stage],
    ops: &[Op],
    rows: usize,
    extra: &dyn Fn(&mut Random) -> Extra,
) {
    let n = 7 * 32;
    for &(scheme, act) in forms {
        let k = 3 * scheme.span();
        let suits =
            |tile: &Tile| !matches!(tile, Tile::Mma { narrow: true, .. }) || KernelSpec::takes_narrow_tiles(epilogue);
        for tile in tiles(scheme, act).into_iter().flat_map(|tiles| tiles.into_iter().take(COMPARED).filter(suits)) {
            let mut random = Random(rows as u64);
            let (matrix, packed) = weight(&mut random, scheme, n, k);
            let x = random.floats(rows * k);
            let taken = taken(act, tile);
            let (x_bytes, x_tensor) = activations(taken, &x, k);
            let (extra_buffers, extra_tensors) = extra(&mut random);
            let spec = KernelSpec::Linear { scheme, act: taken, tile, epilogue: epilogue.to_vec() };
            let mut buffers = vec![Bytes(x_bytes), Bytes(packed)];
            buffers.extend(extra_buffers);
            buffers.extend([Output, Output]);
            let mut params = vec![rows as i64, n as i64, (k / scheme.span()) as i64, 2, 2];
            params.truncate(spec.params().len());
            let units = n / 16 / KernelSpec::tile_blocks(tile, epilogue) * tile.parts();
            let outputs = run(&spec, buffers, &params, units as i64, 3);
            let mut inputs = vec![x_tensor, Tensor::matrix(matrix)];
            inputs.extend(extra_tensors);
            let op: Op = linear::Linear { prologue: vec![], epilogue: ops.to_vec() }.into();
            let expected = op.eval(&inputs, &mut EvalContext::default()).unwrap().remove(0);
            let found = floats(&outputs[outputs.len() - 2]);
            let is_rounded = act == Activation::F32 && matches!(tile, Tile::Mma { .. } | Tile::Staged { .. });
            let bound = if is_rounded { BF16_BOUND } else { F32_BOUND };
            assert_close(&format!("{spec} of {rows} rows"), &found, expected.as_f32().unwrap(), bound);
        }
    }
}

#[test]
fn products_of_every_form() {
    for rows in [1, 6] {
        check(&forms(), &[], &[], rows, &|_| (vec![], vec![]));
    }
}

#[test]
fn products_through_matrix_registers() {
    if ON_EMULATOR {
        return;
    }
    let before = super::tiles::products();
    let integer: Vec<_> = forms().into_iter().filter(|form| form.1 == Activation::Int8).collect();
    // Twice 16 rows, 4 and 1.
    check(&integer, &[], &[], 37, &|_| (vec![], vec![]));
    let lacks_more = machine::matrix_target().missing_here().iter().any(|feature| !feature.starts_with("amx_"));
    if lacks_more {
        println!("this CPU lacks AVX-512, VNNI or BF16: code with matrix instructions did not run");
        return;
    }
    // Blocks of 16 outputs, times 16 rows, times groups; a CPU that has the instructions needs no emulation.
    let products = |scheme: Scheme| 7 * 2 * 2 * 3 * scheme.span() / scheme.group;
    let expected: usize = integer.iter().map(|form| products(form.0)).sum();
    let found = super::tiles::products();
    assert!(
        found == (before.0 + expected, false) || found == before,
        "{found:?} after {before:?}, not {expected} more"
    );
}

#[test]
fn residual_and_activation_epilogues() {
    for rows in [1, 6] {
        check(&SOME_FORMS, &[Stage::Add], &[add::Add {}.into()], rows, &|random| {
            let residual = random.floats(rows * 224);
            (vec![Bytes(f32_bytes(&residual))], vec![Tensor::f32(vec![rows, 224], residual)])
        });
        for function in Function::ALL {
            let op = glu::Glu { function }.into();
            check(&SOME_FORMS[..1], &[Stage::Glu(function)], &[op], rows, &|_| (vec![], vec![]));
        }
        check(&SOME_FORMS, &[Stage::Bias], &[bias::Bias.into()], rows, &|random| {
            let vector = random.floats(224);
            (vec![Bytes(f32_bytes(&vector))], vec![Tensor::f32(vec![224], vector)])
        });
    }
}

#[test]
fn rope_and_append_epilogue() {
    let (head_dim, heads, kv_heads) = (32, 3, 2);
    let ty = CacheType { dtype: DType::F32, heads: kv_heads, head_dim };
    let rows = 5;
    let stages = [
        Stage::Rope { head_dim, dim: head_dim, heads: heads + kv_heads },
        Stage::AppendQkv { head_dim, heads, kv_heads, dtype: DType::F32 },
    ];
    let ops: [Op; 2] = [rope::Rope { head_dim, heads: 5 }.into(), append_qkv::AppendQkv { heads }.into()];
    check(&SOME_FORMS, &stages, &ops, rows, &|random| {
        let rotary = random.floats(rows * head_dim);
        let (positions, sequences) = (vec![0, 1, 2, 16, 17], vec![0, 0, 0, 1, 1]);
        let table = vec![3, 1, 0, 2];
        let cache = vec![0xff; 4 * page_bytes(kv_heads, head_dim, DType::F32)];
        let buffers = vec![
            Bytes(f32_bytes(&rotary)),
            Bytes(i32_bytes(&positions)),
            Bytes(i32_bytes(&sequences)),
            Bytes(i32_bytes(&table)),
            Bytes(cache),
        ];
        let tensors = vec![
            Tensor::f32(vec![rows, head_dim], rotary),
            Tensor::i32(vec![rows], positions),
            Tensor::i32(vec![rows], sequences),
            Tensor::cache(CacheState::new(ty)),
        ];
        (buffers, tensors)
    });
}

#[test]
fn a_row_has_the_same_bits_in_every_tile_and_batch() {
    // 16 rows, 4, and 3 that are left.
    let (rows, n) = (23, 64);
    for (scheme, act) in forms() {
        let k = 576usize.next_multiple_of(scheme.span());
        let mut random = Random(9);
        let (_, packed) = weight(&mut random, scheme, n, k);
        let x = random.floats(rows * k);
        let product = |tile: Tile, first: usize, count: usize| {
            let act = taken(act, tile);
            let spec = KernelSpec::Linear { scheme, act, tile, epilogue: vec![] };
            let (bytes, _) = activations(act, &x[first * k..(first + count) * k], k);
            let buffers = vec![Bytes(bytes), Bytes(packed.clone()), Output, Output];
            // As many units at once as end in the middle of a strip.
            let (units, step) = (n / 16 / KernelSpec::tile_blocks(tile, &[]) * tile.parts(), tile.parts().min(5));
            let params = [count as i64, n as i64, (k / scheme.span()) as i64];
            run(&spec, buffers, &params, units as i64, step as i64).swap_remove(2)
        };
        for tiles in tiles(scheme, act) {
            let alone = [0, 7, 18, 22].map(|row| (row, product(tiles[0], row, 1)));
            for tile in tiles {
                let all = product(tile, 0, rows);
                for (row, alone) in &alone {
                    let found = &all[4 * n * row..][..4 * n];
                    assert!(found == alone, "row {row} of {scheme} with {act:?} activations in {tile:?}");
                }
            }
        }
    }
}

#[test]
fn runs_of_any_length_have_the_same_bits() {
    if !ON_EMULATOR {
        return;
    }
    // Groups of 32 columns: fewer than a thread holds, runs that end in the middle of a turn or have several, and empty ones.
    for (scheme, act) in [(Scheme::INT4, Activation::Int8), (Scheme::BF16, Activation::F32)] {
        for groups in [1, 5, 9, 64, 85, 151] {
            let (rows, n, k) = (3, 32, 32 * groups);
            let mut random = Random(groups as u64);
            let (_, packed) = weight(&mut random, scheme, n, k);
            let x = random.floats(rows * k);
            let product = |tile: Tile| {
                let act = taken(act, tile);
                let spec = KernelSpec::Linear { scheme, act, tile, epilogue: vec![] };
                let buffers = vec![Bytes(activations(act, &x, k).0), Bytes(packed.clone()), Output, Output];
                let units = n / 16 / KernelSpec::tile_blocks(tile, &[]);
                run(&spec, buffers, &[rows as i64, n as i64, groups as i64], units as i64, 1).swap_remove(2)
            };
            let expected = product(Tile::Staged { blocks: 2, tokens: 64 });
            for narrow in [false, true] {
                let found = product(Tile::Mma { tokens: 8, narrow });
                assert!(found == expected, "{scheme} of {groups} groups, narrow: {narrow}");
            }
        }
    }
}

#[test]
fn halves_of_many_rows_have_the_bits_of_few() {
    if ON_EMULATOR {
        return;
    }
    let (rows, n, k) = (203, 96, 64);
    let mut random = Random(10);
    let (_, packed) = weight(&mut random, Scheme::INT4, n, k);
    let x = activations(Activation::Int8, &random.floats(rows * k), k).0;
    let product = |tile: Tile, step: usize| {
        let spec = KernelSpec::Linear { scheme: Scheme::INT4, act: Activation::Int8, tile, epilogue: vec![] };
        let buffers = vec![Bytes(x.clone()), Bytes(packed.clone()), Output, Output];
        let units = n / 32 * tile.parts();
        run(&spec, buffers, &[rows as i64, n as i64, 2], units as i64, step as i64).swap_remove(2)
    };
    let few = product(TILES[0], 1);
    // Workers that share it in two, in three, and in pieces that end anywhere.
    for step in [24, 16, 5] {
        assert!(product(TILES[1], step) == few, "{step} units at once");
    }
}

#[test]
fn a_product_leaves_its_result_as_a_row_kernel_does() {
    let (rows, n, k) = (6, 192, 64);
    let few = Tile::Mma { tokens: 8, narrow: false };
    let tiles = |scheme: Scheme| match (ON_EMULATOR, scheme.is_integer()) {
        (false, true) => TILES.to_vec(),
        (false, false) => Vec::new(),
        (true, true) => vec![few, Tile::Staged { blocks: 4, tokens: 64 }],
        (true, false) => vec![Tile::Staged { blocks: 4, tokens: 64 }],
    };
    for (scheme, act, stage) in
        [(Scheme::INT4, Activation::Int8, Stage::Quantize), (Scheme::BF16, Activation::Bf16, Stage::Round)]
    {
        let mut random = Random(12);
        let (_, packed) = weight(&mut random, scheme, n, k);
        let x = activations(act, &random.floats(rows * k), k).0;
        for tile in tiles(scheme) {
            for (stages, columns) in [(vec![Stage::Glu(Function::Silu)], n / 2), (vec![], n)] {
                let product = |epilogue: Vec<Stage>| {
                    let units = n / 16 / KernelSpec::tile_blocks(tile, &epilogue) * tile.parts();
                    let spec = KernelSpec::Linear { scheme, act, tile, epilogue };
                    let buffers = vec![Bytes(x.clone()), Bytes(packed.clone()), Output, Output];
                    run(&spec, buffers, &[rows as i64, n as i64, 2], units as i64, 1).swap_remove(2)
                };
                let fused = product([&stages[..], &[stage]].concat());
                let spec = KernelSpec::Rows { gather: false, norm: None, add: false, form: act };
                let buffers = vec![Bytes(product(stages)), Output];
                let params = [rows as i64, rows as i64, columns as i64 / 32];
                let units = if ON_EMULATOR { rows * columns / 32 } else { rows };
                let separate = run(&spec, buffers, &params, units as i64, 1).swap_remove(1);
                assert!(fused[..separate.len()] == separate, "{tile:?}, {columns} columns");
            }
        }
    }
}

#[test]
fn large_tiles_have_the_bits_of_small_ones() {
    if !ON_EMULATOR {
        return;
    }
    // More rows than a block of threads takes, and strips that fill a block in part; heads of 80 are five blocks of rows.
    let rows = 131;
    for (scheme, act, head_dim, [blocks, tokens], n, k) in [
        (Scheme::BF16, Activation::F32, None, [8, 128], 160, 352),
        (Scheme::INT4, Activation::Int8, None, [8, 128], 160, 352),
        (Scheme::BF16, Activation::F32, Some(80), [5, 128], 240, 64),
        (Scheme::INT8, Activation::Int8, Some(256), [16, 64], 256, 64),
    ] {
        let mut random = Random(4);
        let (_, packed) = weight(&mut random, scheme, n, k);
        let x = random.floats(rows * k);
        let epilogue: Vec<Stage> =
            head_dim.map(|head_dim| Stage::HeadNorm { head_dim, first: 0, heads: 2, eps: 1e-5 }).into_iter().collect();
        let norm = head_dim.map(|head_dim| Bytes(f32_bytes(&random.floats(head_dim))));
        let product = |tile: Tile| {
            let act = taken(act, tile);
            let spec = KernelSpec::Linear { scheme, act, tile, epilogue: epilogue.clone() };
            let mut buffers = vec![Bytes(activations(act, &x, k).0), Bytes(packed.clone())];
            buffers.extend(norm.iter().map(|norm| match norm {
                Bytes(bytes) => Bytes(bytes.clone()),
                Output => Output,
            }));
            buffers.extend([Output, Output]);
            let out = buffers.len() - 2;
            let units = n / 16 / KernelSpec::tile_blocks(tile, &epilogue);
            run(&spec, buffers, &[rows as i64, n as i64, (k / 32) as i64], units as i64, 1).swap_remove(out)
        };
        let (small, large) =
            (product(Tile::Mma { tokens: 8, narrow: false }), product(Tile::Staged { blocks, tokens }));
        assert!(small == large, "{scheme} in tiles of {blocks} blocks by {tokens} rows");
    }
}

#[test]
fn the_fused_epilogue_writes_the_cache_that_separate_kernels_write() {
    for dtype in [DType::F16, DType::Bf16, DType::Int8] {
        check_fused_append(dtype, 64, (TILES[0], Activation::F32), &[]);
    }
}

#[test]
fn a_block_with_its_rotary_partner_is_finished_as_in_a_whole_head() {
    if !ON_EMULATOR {
        return;
    }
    let tile = (Tile::Mma { tokens: 8, narrow: false }, Activation::Int8);
    for (head_dim, before) in [(64, &[][..]), (64, &[Stage::Bias]), (128, &[Stage::Bias])] {
        check_fused_append(DType::F16, head_dim, tile, before);
    }
}

/// The cache and the queries of a product with everything behind it, against those of one kernel after the other; `before` is
/// nothing, or a bias.
fn check_fused_append(dtype: DType, head_dim: usize, (tile, act): (Tile, Activation), before: &[Stage]) {
    let (heads, kv_heads, rows, k) = (2, 1, 5, 64);
    let n = (heads + 2 * kv_heads) * head_dim;
    let mut random = Random(11);
    let (_, packed) = weight(&mut random, Scheme::INT4, n, k);
    let x = random.floats(rows * k);
    let rotary = f32_bytes(&random.floats(rows * head_dim));
    let tables = || {
        let (positions, sequences, table) = ([15, 16, 17, 0, 1], [0, 0, 0, 1, 1], [3, 1, 0, 2]);
        [positions.to_vec(), sequences.to_vec(), table.to_vec()].map(|values: Vec<i32>| Bytes(i32_bytes(&values)))
    };
    let cache = || Bytes(vec![0xff; 4 * page_bytes(kv_heads, head_dim, dtype)]);
    let bias = f32_bytes(&random.floats(n));
    let stages = [
        Stage::Rope { head_dim, dim: head_dim, heads: heads + kv_heads },
        Stage::AppendQkv { head_dim, heads, kv_heads, dtype },
    ];
    let linear = |behind: &[Stage], extra: Vec<Buffer>| {
        let epilogue = [before, behind].concat();
        let units = (n / 16 / KernelSpec::tile_blocks(tile, &epilogue)) as i64;
        let spec = KernelSpec::Linear { scheme: Scheme::INT4, act, tile, epilogue };
        let mut params = vec![rows as i64, n as i64, k as i64 / 32, 2, 2];
        params.truncate(spec.params().len());
        let mut buffers = vec![Bytes(activations(act, &x, k).0), Bytes(packed.clone())];
        buffers.extend(before.iter().map(|_| Bytes(bias.clone())));
        buffers.extend(extra);
        buffers.extend([Output, Output]);
        run(&spec, buffers, &params, units, 1).split_off(before.len())
    };
    let [positions, sequences, table] = tables();
    let fused = linear(&stages, vec![Bytes(rotary.clone()), positions, sequences, table, cache()]);

    let product = linear(&[], vec![]).swap_remove(2);
    let buffers = vec![Bytes(product), Bytes(rotary), Output];
    let turned = run(&KernelSpec::Rope { head_dim, dim: head_dim }, buffers, &[5, 4, 3], 5, 5).swap_remove(2);
    let [positions, sequences, table] = tables();
    let buffers = vec![Bytes(turned), positions, sequences, table, cache(), Output];
    let separate = run(&KernelSpec::AppendQkv { head_dim, dtype }, buffers, &[5, 2, 1, 2, 2], 5, 5);
    assert!(fused[6] == separate[4], "{dtype} cache contents");
    assert!(fused[7] == separate[5], "{dtype}: queries");
}
