//! A plan that always answers "A", with one kernel assembled by hand, so that no compiler is needed.

use std::path::Path;

use lathe_plan::manifest::Tensor;
use lathe_plan::{
    Access, Affine, Bucket, Buffer, CodeObject, Grid, Input, Kernel, Launch, Manifest, Operand, PlanWriter, Program,
    Share, StepSize, Term, TokenKind, TokenizerTables,
};

/// Bytes, and the two ends of a turn.
pub const VOCABULARY: u32 = 258;
/// What the model always answers, whatever comes before.
pub const ANSWER: u8 = b'A';
/// Ends a turn.
pub const END: u32 = 257;

/// The most rows of a step.
const ROWS: u32 = 64;

/// `logits[row][ANSWER] = 1.0` for every row that there may be; all other logits stay as the arena is mapped, zero.
fn kernel() -> Vec<u8> {
    let mut code = vec![
        0x48, 0x8b, 0x07, // mov rax, [rdi]      the first buffer
        0xb9, // mov ecx, …
    ];
    code.extend(ROWS.to_le_bytes());
    code.extend([0xc7, 0x80]); // next: mov dword [rax + …], …
    code.extend((u32::from(ANSWER) * 4).to_le_bytes());
    code.extend(1.0f32.to_le_bytes());
    code.extend([0x48, 0x05]); // add rax, …
    code.extend((4 * VOCABULARY).to_le_bytes());
    code.extend([
        0xff, 0xc9, // dec ecx
        0x75, 0xec, // jnz next
        0xc3, // ret
    ]);
    code
}

/// The program: one kernel, and positions up to `max_context`.
pub fn program(max_context: u32) -> Program {
    let logits = Buffer::Arena { offset: 0, bytes: Affine { r: 4 * u64::from(VOCABULARY), ..Affine::default() } };
    let per_row = vec![Term { coefficient: 4 * u64::from(VOCABULARY), factors: [Some(0), None] }];
    let launch = Launch {
        kernel: 0,
        buffers: vec![logits],
        params: vec![Affine { r: 1, ..Affine::default() }],
        units: Affine::constant(1),
        share: Share::Even,
        barrier: true,
        flops: Affine::tokens(1000),
        bytes: Affine::constant(4),
    };
    Program {
        name: "main".to_owned(),
        vocabulary: VOCABULARY,
        max_context,
        inputs: vec![Input::Tokens, Input::Positions, Input::Sequences, Input::Rows],
        kernels: vec![Kernel {
            name: "always_the_same".to_owned(),
            recipe: String::new(),
            params: 1,
            grid: Grid::default(),
            operands: vec![Operand { access: Access::Write, extent: per_row }],
        }],
        buckets: vec![Bucket {
            max: StepSize { tokens: 64, sequences: 1, rows: ROWS },
            arena_bytes: 4 * u64::from(ROWS * VOCABULARY),
            scratch_bytes: 0,
            logits,
            picks: None,
            launches: vec![launch],
        }],
        ..Program::default()
    }
}

/// Every byte is a token; 256 and 257 start and end a turn.
pub fn tokenizer() -> TokenizerTables {
    let mut tables = TokenizerTables { pretokenizer: "smollm".to_owned(), ..TokenizerTables::default() };
    for byte in 0..=255 {
        tables.push(&[byte], TokenKind::Normal);
    }
    tables.push(b"<|im_start|>", TokenKind::Control);
    tables.push(b"<|im_end|>", TokenKind::Control);
    tables.eos = vec![END];
    tables
}

/// Writes a plan of a program, whose code needs `features`, with what `with` adds.
pub fn write(path: &Path, program: &Program, features: &[&str], with: impl FnOnce(&mut PlanWriter)) {
    let mut writer = PlanWriter::new();
    writer.program(program);
    let features = features.iter().map(|feature| (*feature).to_owned()).collect();
    writer.code(
        "main",
        "plain",
        &CodeObject { target: "x86-64".to_owned(), features, entries: vec![0], code: kernel() },
    );
    writer.weights(program, "plain", |_, _| Ok(()));
    writer.tokenizer(&tokenizer());
    with(&mut writer);
    writer.write(path).expect("the plan is sound");
}

/// A template whose prompt is no longer than its messages.
pub fn chat(writer: &mut PlanWriter) {
    writer.chat_template("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}");
    let tensor =
        Tensor { name: "layers.0.q".to_owned(), scheme: "int4:g32+min".to_owned(), bytes: 320, ..Tensor::default() };
    writer.manifest(&Manifest { name: "Parrot".to_owned(), tensors: vec![tensor], ..Manifest::default() });
    writer.report("graph", "%0 = nothing\n");
}
