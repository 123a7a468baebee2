//! Writing keys and values to the paged cache.
//!
//! How a page is laid out says [`crate::spec::page_bytes`]. Where its elements are codes of int8, each token's are computed
//! as `lathe_ir::eval::codes` says.

use inkwell::FloatPredicate;
use inkwell::values::PointerValue;
use lathe_ir::types::{DType, KEY_GROUP};

use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{CodePage, PAGE_TOKENS, SCALE_BYTES, page_bytes, paired_key_bytes};

/// The largest magnitude of a code.
const MAX_CODE: f32 = 127.0;

/// How tokens find their cache pages.
pub struct Page<'c> {
    /// Logical positions, i32[T].
    pub positions: PointerValue<'c>,
    /// Sequence of each token, i32[T].
    pub sequences: PointerValue<'c>,
    /// Page numbers, i32[S, B].
    pub block_table: PointerValue<'c>,
    /// The cache tensor.
    pub cache: PointerValue<'c>,
    /// B.
    pub table_width: Val<'c>,
}

/// The page of a token, and the token's slot in it.
pub fn page<'c>(b: &Builder<'c>, pages: &Page<'c>, token: Val<'c>, page_bytes: Val<'c>) -> (PointerValue<'c>, Val<'c>) {
    let tokens = b.int(PAGE_TOKENS as i64);
    let position = b.load_index(pages.positions, token);
    let sequence = b.load_index(pages.sequences, token);
    let entry = b.add(b.mul(sequence, pages.table_width), b.udiv(position, tokens));
    let number = b.load_index(pages.block_table, entry);
    (b.offset(pages.cache, b.mul(number, page_bytes)), b.urem(position, tokens))
}

fn to_cache<'c>(b: &Builder<'c>, value: Val<'c>, dtype: DType) -> (Kind, Val<'c>) {
    if dtype == DType::F16 { (Kind::F16, b.to_width(value, Kind::F16)) } else { (Kind::F32, value) }
}

/// A key or a value vector in blocks of 16, or some blocks of it.
#[derive(Clone, Copy)]
pub struct Vector<'a, 'c> {
    /// Elements of all of it.
    pub head_dim: usize,
    /// The blocks.
    pub values: &'a [Val<'c>],
    /// The number of each block.
    pub numbers: &'a [Val<'c>],
    /// The cache's type. One whose elements lie in pairs or share scales takes whole vectors.
    pub dtype: DType,
}

/// Writes a key to its slot of a head's part of a page.
pub fn store_key<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, key: Vector<'_, 'c>) {
    let Vector { values, dtype, .. } = key;
    match dtype {
        DType::Int8 => return store_key_codes(b, head, slot, values),
        DType::Bf16 => return store_key_pairs(b, head, slot, values),
        _ => {}
    }
    let stride = PAGE_TOKENS * dtype.bytes();
    let column = b.element(head, slot, dtype.bytes());
    for (&value, &number) in values.iter().zip(key.numbers) {
        let (kind, value) = to_cache(b, value, dtype);
        b.store_strided(kind, b.element(column, number, LANES * stride), value, stride);
    }
}

/// Writes a value vector to its slot of a head's part of a page.
pub fn store_value<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, value: Vector<'_, 'c>) {
    let Vector { head_dim, values, dtype, .. } = value;
    match dtype {
        DType::Int8 => return store_value_codes(b, head, slot, values),
        DType::Bf16 => return store_value_pairs(b, head, slot, values),
        _ => {}
    }
    let row_bytes = head_dim * dtype.bytes();
    let row = b.element(b.offset(head, b.int((PAGE_TOKENS * row_bytes) as i64)), slot, row_bytes);
    for (&value, &number) in values.iter().zip(value.numbers) {
        let (kind, value) = to_cache(b, value, dtype);
        b.store_lanes(kind, b.element(row, number, LANES * dtype.bytes()), value);
    }
}

/// The numbers of the blocks of a whole vector.
pub fn numbers<'c>(b: &Builder<'c>, blocks: usize) -> Vec<Val<'c>> {
    (0..blocks).map(|block| b.int(block as i64)).collect()
}

fn store_key_pairs<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, values: &[Val<'c>]) {
    let stride = 4 * PAGE_TOKENS;
    let column = b.element(head, slot, 4);
    for (group, blocks) in values.chunks(KEY_GROUP / LANES).enumerate() {
        let at = b.offset(column, b.int((group * LANES * stride) as i64));
        b.store_strided(Kind::I32, at, b.bf16_pairs(blocks), stride);
    }
}

fn store_value_pairs<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, values: &[Val<'c>]) {
    let head_dim = values.len() * LANES;
    let two = b.int(2);
    let pair = b.element(b.offset(head, b.int(paired_key_bytes(head_dim) as i64)), b.udiv(slot, two), 4 * head_dim);
    let row = b.element(pair, b.urem(slot, two), 2);
    for (i, &value) in values.iter().enumerate() {
        let bits = b.trunc(b.to_bf16(value), Kind::I16);
        b.store_strided(Kind::I16, b.offset(row, b.int((4 * LANES * i) as i64)), bits, 4);
    }
}

fn store_key_codes<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, values: &[Val<'c>]) {
    let page = CodePage::new(values.len() * LANES);
    for (group, blocks) in values.chunks(KEY_GROUP / LANES).enumerate() {
        let (scale, codes) = to_codes(b, blocks);
        let low = b.and(codes[0], b.int_lanes(0xff));
        let high = codes.get(1).map_or(b.int_lanes(0), |&code| b.shl(code, b.int_lanes(8)));
        let pairs = b.trunc(b.or(low, high), Kind::I16);
        let (column, stride) = (b.element(head, slot, 2), 2 * PAGE_TOKENS);
        b.store_strided(Kind::I16, b.offset(column, b.int((group * LANES * stride) as i64)), pairs, stride);
        let scales = page.key_scales + group * PAGE_TOKENS * SCALE_BYTES;
        b.store(Kind::F16, b.element(b.offset(head, b.int(scales as i64)), slot, SCALE_BYTES), scale);
    }
}

fn store_value_codes<'c>(b: &Builder<'c>, head: PointerValue<'c>, slot: Val<'c>, values: &[Val<'c>]) {
    let head_dim = values.len() * LANES;
    let page = CodePage::new(head_dim);
    let (scale, codes) = to_codes(b, values);
    let two = b.int(2);
    let pair = b.element(b.offset(head, b.int(page.values as i64)), b.udiv(slot, two), 2 * head_dim);
    let row = b.offset(pair, b.urem(slot, two));
    for (i, code) in codes.into_iter().enumerate() {
        b.store_strided(Kind::I8, b.offset(row, b.int((2 * LANES * i) as i64)), b.trunc(code, Kind::I8), 2);
    }
    b.store(Kind::F16, b.element(b.offset(head, b.int(page.value_scales as i64)), slot, SCALE_BYTES), scale);
}

/// Codes of values that share a scale, and the scale.
fn to_codes<'c>(b: &Builder<'c>, values: &[Val<'c>]) -> (Val<'c>, Vec<Val<'c>>) {
    let magnitudes = values.iter().map(|&value| b.overloaded("llvm.fabs", &[value]));
    let largest = b.max(magnitudes.reduce(|a, c| b.fmax(a, c)).expect("a head has elements"));
    let scale = b.to_width(b.fdiv(largest, b.float(MAX_CODE)), Kind::F16);
    let inverse = b.splat(inverse(b, b.to_width(scale, Kind::F32), 1.0));
    let code = |&value: &Val<'c>| {
        let rounded = b.overloaded("llvm.roundeven", &[b.fmul(value, inverse)]);
        let bounded = b.overloaded("llvm.minnum", &[rounded, b.float_lanes(MAX_CODE)]);
        b.to_int(b.fmax(bounded, b.float_lanes(-MAX_CODE)), Kind::I32)
    };
    (scale, values.iter().map(code).collect())
}

/// `one / value` for a value above zero, else zero.
pub fn inverse<'c>(b: &Builder<'c>, value: Val<'c>, one: f32) -> Val<'c> {
    let positive = b.fcmp(FloatPredicate::OGT, value, b.float(0.0));
    b.select(positive, b.fdiv(b.float(one), value), b.float(0.0))
}

fn load_head<'c>(b: &Builder<'c>, base: PointerValue<'c>, head_dim: usize) -> Vec<Val<'c>> {
    let block = |i: usize| b.load_lanes(Kind::F32, b.offset(base, b.int((4 * LANES * i) as i64)));
    (0..head_dim / LANES).map(block).collect()
}

/// Operands: k, v, positions, sequences, block table, cache. Params: T, KV, S, B.
pub fn append(b: &Builder<'_>, head_dim: usize, dtype: DType) {
    let pages = pages_from(b, 2, b.param(3));
    let heads = b.param(1);
    let side = page_bytes(1, head_dim, dtype);
    let numbers = numbers(b, head_dim / LANES);
    b.for_units(|token| {
        let (base, slot) = page(b, &pages, token, b.mul(heads, b.int(side as i64)));
        b.for_range(b.int(0), heads, b.int(1), |head| {
            let at = b.add(b.mul(token, heads), head);
            let base = b.element(base, head, side);
            let vector = |operand: usize| load_head(b, b.element(b.operand(operand), at, 4 * head_dim), head_dim);
            store_key(b, base, slot, Vector { head_dim, values: &vector(0), numbers: &numbers, dtype });
            store_value(b, base, slot, Vector { head_dim, values: &vector(1), numbers: &numbers, dtype });
        });
    });
}

/// Operands: qkv, positions, sequences, block table, cache, out. Params: T, H, KV, S, B.
pub fn append_qkv<'c>(b: &Builder<'c>, head_dim: usize, dtype: DType) {
    let pages = pages_from(b, 1, b.param(4));
    let (qkv, out) = (b.operand(0), b.operand(5));
    let (heads, kv_heads) = (b.param(1), b.param(2));
    let side = page_bytes(1, head_dim, dtype);
    let numbers = numbers(b, head_dim / LANES);
    b.for_units(|token| {
        let all = b.add(heads, b.mul(kv_heads, b.int(2)));
        let row = b.element(qkv, b.mul(token, all), 4 * head_dim);
        let out = b.element(out, b.mul(token, heads), 4 * head_dim);
        b.for_range(b.int(0), heads, b.int(1), |head| {
            let values = load_head(b, b.element(row, head, 4 * head_dim), head_dim);
            let out = b.element(out, head, 4 * head_dim);
            for (i, value) in values.into_iter().enumerate() {
                b.store_lanes(Kind::F32, b.offset(out, b.int((4 * LANES * i) as i64)), value);
            }
        });
        let (base, slot) = page(b, &pages, token, b.mul(kv_heads, b.int(side as i64)));
        b.for_range(b.int(0), kv_heads, b.int(1), |head| {
            let base = b.element(base, head, side);
            let key = b.add(heads, head);
            let value = b.add(key, kv_heads);
            let vector = |number: Val<'c>| load_head(b, b.element(row, number, 4 * head_dim), head_dim);
            store_key(b, base, slot, Vector { head_dim, values: &vector(key), numbers: &numbers, dtype });
            store_value(b, base, slot, Vector { head_dim, values: &vector(value), numbers: &numbers, dtype });
        });
    });
}

fn pages_from<'c>(b: &Builder<'c>, first: usize, table_width: Val<'c>) -> Page<'c> {
    Page {
        positions: b.operand(first),
        sequences: b.operand(first + 1),
        block_table: b.operand(first + 2),
        cache: b.operand(first + 3),
        table_width,
    }
}
