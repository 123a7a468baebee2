//! The binary form of a program and of its code: the fields in the order of [`crate::program`], enums by a tag byte.

use crate::codec::{Codec, DecodeError, Decoder, encode_bytes, fields, variants};
use crate::program::{
    Access, Affine, Bucket, Buffer, CacheGroup, CacheTensor, CodeObject, Grid, Input, Kernel, Launch, Operand, Program,
    Retention, Share, StepSize, Term, WeightSpan,
};

fields!(StepSize { tokens: u32, sequences: u32, rows: u32 });
fields!(Affine { t: u64, s: u64, r: u64, c: u64 });
fields!(CacheGroup { name: String, page_tokens: u32, retention: Retention, tensors: Vec<CacheTensor> });
fields!(CacheTensor { name: String, page_bytes: u64 });
fields!(WeightSpan { name: String, offset: u64, bytes: u64 });
fields!(Term { coefficient: u64, factors: [Option<u8>; 2] });
fields!(Operand { access: Access, extent: Vec<Term> });
fields!(Grid { threads: u32, units: u32, rows: u32 });
fields!(Kernel { name: String, recipe: String, params: u32, grid: Grid, operands: Vec<Operand> });
fields!(Program {
    name: String,
    vocabulary: u32,
    max_context: u32,
    inputs: Vec<Input>,
    cache_groups: Vec<CacheGroup>,
    weights: Vec<WeightSpan>,
    kernels: Vec<Kernel>,
    buckets: Vec<Bucket>,
});
fields!(Bucket {
    max: StepSize,
    arena_bytes: u64,
    scratch_bytes: u64,
    logits: Buffer,
    picks: Option<Buffer>,
    launches: Vec<Launch>,
});
fields!(Launch {
    kernel: u32,
    buffers: Vec<Buffer>,
    params: Vec<Affine>,
    units: Affine,
    share: Share,
    barrier: bool,
    flops: Affine,
    bytes: Affine,
});

variants!(Input, "step input", {
    0 => Tokens {},
    1 => Positions {},
    2 => Sequences {},
    3 => Rows {},
    4 => BlockTable { group = group: u32 },
    5 => Picks {},
});
variants!(Retention, "retention", {
    0 => All {},
    1 => Window { tokens = tokens: u32 },
});
variants!(Access, "access", {
    0 => Read {},
    1 => Write {},
    2 => ReadWrite {},
});
variants!(Buffer, "buffer", {
    0 => Arena { offset = offset: u64, bytes = bytes: Affine },
    1 => Scratch { bytes = bytes: u64 },
    2 => Weight { 0 = index: u32 },
    3 => Input { 0 = index: u32 },
    4 => Cache { group = group: u32, tensor = tensor: u32 },
});
variants!(Share, "share", {
    0 => Even {},
    1 => Claim { grain = grain: u32 },
});

// By hand because the code is megabytes of bytes, which go in one piece.
impl Codec for CodeObject {
    const MIN_BYTES: usize = 4 * u64::MIN_BYTES;

    fn encode(&self, out: &mut Vec<u8>) {
        self.target.encode(out);
        self.features.encode(out);
        self.entries.encode(out);
        encode_bytes(&self.code, out);
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(CodeObject {
            target: String::decode(input)?,
            features: Vec::decode(input)?,
            entries: Vec::decode(input)?,
            code: input.byte_list()?.to_vec(),
        })
    }
}
