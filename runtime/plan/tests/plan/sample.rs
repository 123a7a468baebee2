//! A small plan with something of everything, and tools to write and to tamper with it.

use std::ops::Range;

use lathe_plan::{
    Access, Affine, Bucket, Buffer, CacheGroup, CacheTensor, CodeObject, Grid, Input, Kernel, Launch, LoadMode,
    Manifest, Merge, Operand, Plan, PlanError, PlanWriter, Program, Retention, Share, StepSize, Term, TokenKind,
    TokenizerTables, WeightSpan,
};

pub const LAYOUT: &str = "rows16";
pub const VOCABULARY: u32 = 8;
/// Numbers per token between kernels.
const WIDTH: u64 = 16;

/// `coefficient · params[0]`, or a constant.
fn extent(coefficient: u64, per_token: bool) -> Vec<Term> {
    vec![Term { coefficient, factors: [per_token.then_some(0), None] }]
}

fn kernel(name: &str, operands: &[(Access, u64, bool)]) -> Kernel {
    let operand = |&(access, bytes, per_token)| Operand { access, extent: extent(bytes, per_token) };
    Kernel {
        name: name.to_owned(),
        recipe: "sequential".to_owned(),
        params: 1,
        grid: Grid::default(),
        operands: operands.iter().map(operand).collect(),
    }
}

fn launch(kernel: u32, buffers: Vec<Buffer>, param: Affine, share: Share) -> Launch {
    Launch {
        kernel,
        buffers,
        params: vec![param],
        units: Affine { t: 1, s: 0, r: 0, c: 1 },
        share,
        barrier: true,
        flops: Affine::tokens(32),
        bytes: Affine { t: 64, s: 0, r: 0, c: 512 },
    }
}

/// Embed, write to the cache, attend in place, project to the logits.
pub fn program() -> Program {
    let hidden = |offset| Buffer::Arena { offset, bytes: Affine::tokens(4 * WIDTH) };
    let rows = Affine { t: 0, s: 0, r: 1, c: 0 };
    let bucket = |tokens: u32| {
        let slot = 64 * u64::from(tokens);
        let logits = Buffer::Arena { offset: slot, bytes: Affine { t: 0, s: 0, r: 4 * u64::from(VOCABULARY), c: 0 } };
        let cache = Buffer::Cache { group: 0, tensor: 0 };
        let claim = Share::Claim { grain: 2 };
        Bucket {
            max: StepSize { tokens, sequences: 2, rows: 2 },
            arena_bytes: 2 * slot,
            scratch_bytes: 256,
            logits,
            picks: None,
            launches: vec![
                launch(0, vec![Buffer::Input(0), Buffer::Weight(0), hidden(0)], Affine::tokens(1), Share::Even),
                launch(1, vec![hidden(0), Buffer::Input(1), Buffer::Input(3), cache], Affine::tokens(1), Share::Even),
                launch(2, vec![hidden(0), cache, Buffer::Scratch { bytes: 256 }, hidden(0)], Affine::tokens(1), claim),
                launch(3, vec![hidden(0), Buffer::Weight(1), Buffer::Input(2), logits], rows, Share::Even),
            ],
        }
    };
    Program {
        name: "main".to_owned(),
        vocabulary: VOCABULARY,
        max_context: 40,
        inputs: vec![Input::Tokens, Input::Positions, Input::Rows, Input::BlockTable { group: 0 }, Input::Sequences],
        cache_groups: vec![
            CacheGroup {
                name: "all".to_owned(),
                page_tokens: 16,
                retention: Retention::All,
                tensors: vec![CacheTensor { name: "kv.0".to_owned(), page_bytes: 1024 }],
            },
            CacheGroup {
                name: "near".to_owned(),
                page_tokens: 16,
                retention: Retention::Window { tokens: 32 },
                tensors: vec![],
            },
        ],
        weights: vec![
            WeightSpan { name: "embed".to_owned(), offset: 0, bytes: 500 },
            WeightSpan { name: "head".to_owned(), offset: 512, bytes: 300 },
        ],
        kernels: vec![
            kernel("embed", &[(Access::Read, 4, true), (Access::Read, 500, false), (Access::Write, 64, true)]),
            kernel(
                "append",
                // 3 pages of 16 tokens hold 40 positions.
                &[
                    (Access::Read, 64, true),
                    (Access::Read, 4, true),
                    (Access::Read, 24, false),
                    (Access::ReadWrite, 1024, false),
                ],
            ),
            kernel(
                "attention",
                &[
                    (Access::Read, 64, true),
                    (Access::Read, 1024, false),
                    (Access::ReadWrite, 256, false),
                    (Access::Write, 64, true),
                ],
            ),
            kernel(
                "head",
                &[
                    (Access::Read, 64, true),
                    (Access::Read, 300, false),
                    (Access::Read, 4, true),
                    (Access::Write, 32, true),
                ],
            ),
        ],
        buckets: vec![bucket(4), bucket(16)],
    }
}

pub fn code() -> CodeObject {
    CodeObject {
        target: "x86-64-v4".to_owned(),
        features: vec!["avx512f".to_owned(), "avx512bw".to_owned()],
        entries: vec![0, 16, 32, 48],
        code: (0..100).collect(),
    }
}

pub fn tokenizer() -> TokenizerTables {
    let mut tables = TokenizerTables { pretokenizer: "smollm".to_owned(), ..TokenizerTables::default() };
    tables.push(b"<end>", TokenKind::Control);
    for text in ["a", "b", "ab", "aba"] {
        tables.push(text.as_bytes(), TokenKind::Normal);
    }
    tables.push(b"\xff", TokenKind::Byte);
    tables.merges = vec![Merge { left: 1, right: 2, merged: 3 }, Merge { left: 3, right: 1, merged: 4 }];
    tables.bos = Some(0);
    tables.eos = vec![0];
    tables
}

pub fn manifest() -> Manifest {
    Manifest {
        name: "Sample".to_owned(),
        parameters: 200,
        targets: vec!["x86-64-v4".to_owned()],
        ..Manifest::default()
    }
}

/// Byte `i` of weight `index`.
pub fn weight_byte(index: usize, i: u64) -> u8 {
    (i.wrapping_mul(31).wrapping_add(i >> 8) + 7 * index as u64 + 1) as u8
}

/// A writer of the plan of `program`.
pub fn writer(program: &Program) -> PlanWriter<'static> {
    let mut writer = PlanWriter::new();
    let spans = program.weights.clone();
    writer.weights(program, LAYOUT, move |index, out| {
        let bytes: Vec<u8> = (0..spans[index].bytes).map(|i| weight_byte(index, i)).collect();
        bytes.chunks(100_003).try_for_each(|part| out.write_all(part))
    });
    writer.report("schedule", "launch 0 embed");
    writer.report("graph", "%0 = embed");
    writer.manifest(&manifest());
    writer.licence("Do what you like.");
    writer.generation_config("{}");
    writer.chat_template("{{ messages }}");
    writer.tokenizer(&tokenizer());
    writer.code(&program.name, LAYOUT, &code());
    writer.program(program);
    writer
}

pub fn bytes() -> Vec<u8> {
    writer(&program()).to_bytes().unwrap()
}

/// Opens a plan and loads its weights: all that stands between bytes and their use.
pub fn load(bytes: Vec<u8>) -> Result<Plan, PlanError> {
    let plan = Plan::from_bytes(bytes)?;
    plan.load_weights("main", LAYOUT, LoadMode::Read, 1)?;
    Ok(plan)
}

/// What is said about bytes that may not load.
pub fn refusal(bytes: Vec<u8>) -> String {
    load(bytes).expect_err("this must not load").to_string()
}

/// The entry of a section in the table, by the documented layout.
pub fn entry(bytes: &[u8], kind: u16) -> Range<usize> {
    let count = number(bytes, 24, 4) as usize;
    let mut entries = (0..count).map(|index| 96 + 96 * index..192 + 96 * index);
    entries.find(|entry| number(bytes, entry.start, 2) == u64::from(kind)).unwrap()
}

pub fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

pub fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// The bytes of a section.
pub fn section(bytes: &[u8], kind: u16) -> Range<usize> {
    let entry = entry(bytes, kind).start;
    let start = number(bytes, entry + 32, 8) as usize;
    start..start + number(bytes, entry + 40, 8) as usize
}

/// Makes the digest of one section right again, as whoever tampers with a plan could.
pub fn redigest(bytes: &mut [u8], kind: u16) {
    let digest = *blake3::hash(&bytes[section(bytes, kind)]).as_bytes();
    let at = entry(bytes, kind).start + 64;
    bytes[at..at + 32].copy_from_slice(&digest);
    reroot(bytes);
}

/// Makes the root digest right again, where the head is inside the file at all.
pub fn reroot(bytes: &mut [u8]) {
    let head = 96 + 96 * number(bytes, 24, 4) as usize + number(bytes, 28, 4) as usize;
    if head > bytes.len() {
        return;
    }
    bytes[64..96].fill(0);
    let root = *blake3::hash(&bytes[..head]).as_bytes();
    bytes[64..96].copy_from_slice(&root);
}
