//! The executor on kernels written in Rust, and on a few bytes of machine code.

#![expect(unsafe_code, reason = "kernels work on raw memory")]

use lathe_plan::PlanWriter;
use lathe_plan::program::{
    Access, Affine, Bucket, Buffer, CacheGroup, CacheTensor, CodeObject, Input, Kernel as Signature, Launch, Operand,
    Retention, Share, StepSize,
};

use super::*;
use crate::device::StepToken;
use crate::{
    device::{PageCopy, Pick, Row},
    sample::{NoiseKey, SampleParams},
};

const VOCABULARY: u32 = 16;
const PAGE: u32 = 4;
const MAX: StepSize = StepSize { tokens: 40, sequences: 3, rows: 5 };

const TOKENS: Buffer = Buffer::Input(0);
const POSITIONS: Buffer = Buffer::Input(1);
const SEQUENCES: Buffer = Buffer::Input(2);
const ROWS: Buffer = Buffer::Input(3);
const TABLES: Buffer = Buffer::Input(4);
const CACHE: Buffer = Buffer::Cache { group: 0, tensor: 1 };
const LOGITS: Buffer = arena(0, MAX.rows as u64 * VOCABULARY as u64 * 4);
/// Two buffers of 64-bit words between which values go back and forth.
const WORDS: [Buffer; 2] = [arena(1024, 8 * 64), arena(2048, 8 * 64)];

const fn arena(offset: u64, bytes: u64) -> Buffer {
    Buffer::Arena { offset, bytes: Affine::constant(bytes) }
}

/// The operands of a kernel, typed.
unsafe fn operand<T>(buffers: *const *mut u8, index: usize) -> *mut T {
    // SAFETY: the launch passes that many buffers.
    unsafe { (*buffers.add(index)).cast() }
}

/// `(tokens, words)`: `words[t] = tokens[t] + 1` for the step's tokens; units past them are zero.
unsafe extern "C-unwind" fn embed(buffers: *const *mut u8, params: *const i64, begin: i64, end: i64) {
    for unit in begin as usize..end as usize {
        // SAFETY: 64 units, as many words; tokens are only read where there are some.
        unsafe {
            let token = if (unit as i64) < *params { i64::from(*operand::<i32>(buffers, 0).add(unit)) + 1 } else { 0 };
            *operand::<i64>(buffers, 1).add(unit) = token;
        }
    }
}

/// `(from, to, scratch)`: `to[i] = from[i] · 3 + from[63 - i] + i`, by way of the scratch.
unsafe extern "C-unwind" fn mix_words(buffers: *const *mut u8, _: *const i64, begin: i64, end: i64) {
    for unit in begin as usize..end as usize {
        // SAFETY: 64 units, as many words; the scratch holds one word.
        unsafe {
            let (from, scratch) = (operand::<i64>(buffers, 0), operand::<i64>(buffers, 2));
            *scratch = (*from.add(unit)).wrapping_mul(3);
            *operand::<i64>(buffers, 1).add(unit) =
                (*scratch).wrapping_add(*from.add(63 - unit)).wrapping_add(unit as i64);
        }
    }
}

/// `(words, logits, cache …)`: row `r`'s logits are the words' low bits, shifted by `r`.
unsafe extern "C-unwind" fn words_to_logits(buffers: *const *mut u8, _: *const i64, begin: i64, end: i64) {
    for row in begin as usize..end as usize {
        for column in 0..VOCABULARY as usize {
            // SAFETY: the row is one of the logits', the column a word.
            unsafe {
                let word = *operand::<i64>(buffers, 0).add((column + row) % 64);
                *operand::<f32>(buffers, 1).add(row * VOCABULARY as usize + column) = (word & 0xffff) as f32;
            }
        }
    }
}

/// The address of a position in the cache.
unsafe fn cached(buffers: *const *mut u8, token: usize, position: i32, stride: i64) -> *mut i32 {
    // SAFETY: the operands of `append` and `attend` start alike; the step was checked.
    unsafe {
        let sequence = *operand::<i32>(buffers, 2).add(token) as usize;
        let page = *operand::<i32>(buffers, 3).add(sequence * stride as usize + (position / PAGE as i32) as usize);
        operand::<i32>(buffers, 4).add((page * PAGE as i32 + position % PAGE as i32) as usize)
    }
}

/// `(tokens, positions, sequences, tables, cache)`: puts each token into the cache.
unsafe extern "C-unwind" fn append(buffers: *const *mut u8, params: *const i64, begin: i64, end: i64) {
    for token in begin as usize..end as usize {
        // SAFETY: the token is one of the step's.
        unsafe {
            let position = *operand::<i32>(buffers, 1).add(token);
            *cached(buffers, token, position, *params) = *operand::<i32>(buffers, 0).add(token);
        }
    }
}

/// `(rows, positions, sequences, tables, cache, logits)`: the greatest logit is at the sum of the row's history.
unsafe extern "C-unwind" fn attend(buffers: *const *mut u8, params: *const i64, begin: i64, end: i64) {
    for row in begin as usize..end as usize {
        // SAFETY: the row is one of the step's, and so is its token.
        unsafe {
            let token = *operand::<i32>(buffers, 0).add(row) as usize;
            let last = *operand::<i32>(buffers, 1).add(token);
            let sum: i32 = (0..=last).map(|position| *cached(buffers, token, position, *params) + 1).sum();
            let logits = operand::<f32>(buffers, 5).add(row * VOCABULARY as usize);
            for column in 0..VOCABULARY as usize {
                *logits.add(column) = 0.0;
            }
            *logits.add(sum as usize % VOCABULARY as usize) = 5.0;
        }
    }
}

/// Panics at the unit that its parameter names.
unsafe extern "C-unwind" fn explode(_: *const *mut u8, params: *const i64, begin: i64, end: i64) {
    // SAFETY: it has one parameter.
    let unit = unsafe { *params };
    assert!(!(begin..end).contains(&unit), "unit {unit} explodes");
}

const FUNCTIONS: [memory::Kernel; 6] = [embed, mix_words, words_to_logits, append, attend, explode];

fn launch(kernel: u32, buffers: &[Buffer], param: Option<Affine>, units: Affine, share: Share) -> Launch {
    Launch {
        kernel,
        buffers: buffers.to_vec(),
        params: param.into_iter().collect(),
        units,
        share,
        barrier: true,
        flops: Affine::default(),
        bytes: Affine::default(),
    }
}

fn program(launches: &[Launch]) -> Program {
    let signature = |(name, operands, params): (&str, usize, u32)| Signature {
        name: name.into(),
        recipe: String::new(),
        grid: lathe_plan::Grid::default(),
        params,
        operands: vec![Operand { access: Access::ReadWrite, extent: Vec::new() }; operands],
    };
    let kernels = [("embed", 2, 1), ("mix_words", 3, 0), ("words_to_logits", 2, 0), ("append", 5, 1), ("attend", 6, 1)];
    let tensor = |name: &str| CacheTensor { name: name.into(), page_bytes: u64::from(PAGE) * 4 };
    let bucket = |max| Bucket {
        max,
        arena_bytes: 4096,
        scratch_bytes: 64,
        logits: LOGITS,
        picks: None,
        launches: launches.to_vec(),
    };
    Program {
        name: "main".into(),
        vocabulary: VOCABULARY,
        max_context: 64,
        inputs: vec![Input::Tokens, Input::Positions, Input::Sequences, Input::Rows, Input::BlockTable { group: 0 }],
        cache_groups: vec![CacheGroup {
            name: "all".into(),
            page_tokens: PAGE,
            retention: Retention::All,
            tensors: vec![tensor("unused"), tensor("tokens")],
        }],
        weights: Vec::new(),
        kernels: kernels.into_iter().chain([("explode", 0, 1)]).map(signature).collect(),
        buckets: vec![bucket(StepSize { tokens: 1, sequences: 1, rows: 1 }), bucket(MAX)],
    }
}

/// Positions of the cache.
const CACHE_TOKENS: usize = 48;

fn options(workers: usize) -> DeviceOptions {
    DeviceOptions { threads: Some(workers), unpinned: true, poison: true, ..DeviceOptions::default() }
}

fn device(program: &Program, workers: usize) -> CpuDevice {
    beside(program, &Crew::start(&options(workers)).unwrap())
}

/// A device of workers that serve others, too.
fn beside(program: &Program, crew: &Arc<Crew>) -> CpuDevice {
    let (kernels, options) = (Kernels::of_functions(&FUNCTIONS), options(crew.workers()));
    CpuDevice::start(program, kernels, Box::new(Vec::new()), CACHE_TOKENS, &options, Arc::clone(crew)).unwrap()
}

fn greedy(token: u32) -> Row {
    Row { token, pick: Pick::Sample(SampleParams::default(), NoiseKey::default()), logits: true, ..Row::default() }
}

fn step(tokens: impl IntoIterator<Item = StepToken>, first: u32, pages: &[u32], rows: &[u32]) -> Step {
    let mut step = Step::default();
    step.clear(1);
    step.push_sequence(tokens, first, [pages]);
    step.rows.extend(rows.iter().map(|&token| greedy(token)));
    step
}

fn run(device: &mut CpuDevice, step: &Step) -> Result<StepOutput> {
    let ticket = device.submit(step)?;
    let mut output = StepOutput::default();
    device.collect(ticket, &mut output).map(|()| output)
}

/// The program that mixes words through a long chain of launches, each of which reads what other workers wrote.
fn chain(share: Share) -> Program {
    let units = Affine::constant(64);
    let mut launches = vec![launch(0, &[TOKENS, WORDS[0]], Some(Affine::tokens(1)), units, share)];
    for index in 0..60 {
        let buffers = [WORDS[index % 2], WORDS[(index + 1) % 2], Buffer::Scratch { bytes: 8 }];
        launches.push(launch(1, &buffers, None, units, share));
    }
    let rows = Affine { r: 1, ..Affine::default() };
    launches.push(launch(2, &[WORDS[0], LOGITS], None, rows, share));
    program(&launches)
}

fn chain_by_hand(tokens: &[u32], row: usize) -> Vec<f32> {
    let mut words: Vec<i64> = (0..64).map(|i| tokens.get(i).map_or(0, |&token| i64::from(token) + 1)).collect();
    for _ in 0..60 {
        words = (0..64).map(|i| words[i].wrapping_mul(3).wrapping_add(words[63 - i]).wrapping_add(i as i64)).collect();
    }
    (0..VOCABULARY as usize).map(|column| (words[(column + row) % 64] & 0xffff) as f32).collect()
}

#[test]
fn launches_see_all_that_earlier_ones_wrote() {
    for workers in [1, 2, 3] {
        for share in [Share::Even, Share::Claim { grain: 1 }, Share::Claim { grain: 7 }, Share::Claim { grain: 1000 }] {
            let mut device = device(&chain(share), workers);
            assert_eq!(device.crew.workers(), workers);
            for round in 0..40u32 {
                let tokens: Vec<u32> = (0..=round % 40).map(|t| (t * 7 + round) % VOCABULARY).collect();
                let rows: Vec<u32> = (0..(round % 6).min(tokens.len() as u32)).collect();
                let pages: Vec<u32> = (0..12).collect();
                let step = step(tokens.iter().map(|&token| StepToken::Known(token)), 0, &pages, &rows);
                let output = run(&mut device, &step).unwrap();
                assert_eq!(output.rows.len(), rows.len());
                for (index, row) in output.rows.iter().enumerate() {
                    assert_eq!(
                        row.logits,
                        chain_by_hand(&tokens, index),
                        "{workers} workers, {share:?}, round {round}"
                    );
                }
            }
        }
    }
}

/// The program whose next token is the sum of the history.
fn history() -> Program {
    let stride = Some(Affine::constant(u64::from(64 / PAGE)));
    let rows = Affine { r: 1, ..Affine::default() };
    program(&[
        launch(3, &[TOKENS, POSITIONS, SEQUENCES, TABLES, CACHE], stride, Affine::tokens(1), Share::Even),
        launch(4, &[ROWS, POSITIONS, SEQUENCES, TABLES, CACHE, LOGITS], stride, rows, Share::Claim { grain: 1 }),
    ])
}

fn sum(history: &[u32]) -> u32 {
    history.iter().map(|token| token + 1).sum::<u32>() % VOCABULARY
}

#[test]
fn a_ragged_step_reads_the_pages_of_its_own_sequences() {
    for workers in [1, 2, 3] {
        let mut device = device(&history(), workers);
        run(&mut device, &step([1, 2, 3, 4, 5].map(StepToken::Known), 0, &[7, 2], &[])).unwrap();
        // The first sequence goes on across a page's end, a second one starts, one row each and one in the middle.
        let mut mixed = step([6, 7, 8, 9].map(StepToken::Known), 5, &[7, 2, 0], &[3, 0]);
        mixed.push_sequence([10, 11].map(StepToken::Known), 0, [&[5][..]]);
        mixed.rows.push(greedy(5));
        let output = run(&mut device, &mixed).unwrap();
        let tokens: Vec<u32> = output.rows.iter().map(|row| row.token).collect();
        assert_eq!(tokens, [sum(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), sum(&[1, 2, 3, 4, 5, 6]), sum(&[10, 11])]);
    }
}

#[test]
fn a_step_may_name_tokens_that_steps_in_flight_sample() {
    for workers in [1, 2, 3] {
        let mut device = device(&history(), workers);
        let pages: Vec<u32> = (0..12).collect();
        let mut tokens = vec![3, 1];
        let mut ticket = device.submit(&step([3, 1].map(StepToken::Known), 0, &pages, &[1])).unwrap();
        let mut output = StepOutput::default();
        for position in 2..40 {
            let next = step([StepToken::SampledBy(ticket, 0)], position, &pages, &[0]);
            let next = device.submit(&next).unwrap();
            device.collect(ticket, &mut output).unwrap();
            tokens.push(sum(&tokens));
            assert_eq!(output.rows[0].token, tokens[position as usize]);
            ticket = next;
        }
    }
}

#[test]
fn programs_share_workers_and_keep_their_own_steps() {
    for workers in [1, 2, 3] {
        let crew = Crew::start(&options(workers)).unwrap();
        let [mut mixing, mut summing] = [chain(Share::Even), history()].map(|program| beside(&program, &crew));
        let pages: Vec<u32> = (0..12).collect();
        let mut tokens = vec![3];
        let [mut mixed, mut summed] = [(); 2].map(|()| StepOutput::default());
        for position in 0..30 {
            let last = [StepToken::Known(tokens[position as usize])];
            let step = step(last, position, &pages, &[0]);
            // Both programs number their steps from zero, and both have a step in flight.
            let tickets = [mixing.submit(&step).unwrap(), summing.submit(&step).unwrap()];
            summing.collect(tickets[1], &mut summed).unwrap();
            mixing.collect(tickets[0], &mut mixed).unwrap();
            assert_eq!(mixed.rows[0].logits, chain_by_hand(&tokens[position as usize..], 0), "{workers}, {position}");
            assert_eq!(summed.rows[0].token, sum(&tokens), "{workers}, {position}");
            tokens.push(summed.rows[0].token);
        }
        drop(mixing);
        let next = step([StepToken::Known(tokens[30])], 30, &pages, &[0]);
        assert_eq!(run(&mut summing, &next).unwrap().rows[0].token, sum(&tokens), "after the other one is gone");
    }
}

#[test]
fn a_failure_is_one_of_all_programs() {
    let crew = Crew::start(&options(2)).unwrap();
    let failing = program(&[launch(5, &[], Some(Affine::constant(3)), Affine::constant(64), Share::Even)]);
    let [mut failing, mut other] = [failing, history()].map(|program| beside(&program, &crew));
    let one = step([StepToken::Known(1)], 0, &[0], &[0]);
    run(&mut other, &one).unwrap();
    let error = run(&mut failing, &one).unwrap_err().to_string();
    assert!(error.contains("unit 3 explodes"), "{error}");
    assert!(matches!(other.submit(&one), Err(Error::DeviceLost(_))));
}

#[test]
fn page_copies_come_first() {
    let mut device = device(&history(), 2);
    run(&mut device, &step([1, 2].map(StepToken::Known), 0, &[4], &[])).unwrap();
    let mut fork = step([9].map(StepToken::Known), 2, &[6], &[0]);
    fork.copies.push(PageCopy { group: 0, from: 4, to: 6 });
    assert_eq!(run(&mut device, &fork).unwrap().rows[0].token, sum(&[1, 2, 9]));
    let parent = step([5].map(StepToken::Known), 2, &[4], &[0]);
    assert_eq!(run(&mut device, &parent).unwrap().rows[0].token, sum(&[1, 2, 5]));
}

#[test]
fn tickets_are_checked() {
    let mut device = device(&history(), 2);
    let one = step([StepToken::Known(1)], 0, &[0], &[0]);
    let mut output = StepOutput::default();
    assert!(matches!(device.collect(Ticket(0), &mut output), Err(Error::Ticket(0))));
    let future = step([StepToken::SampledBy(Ticket(0), 0)], 0, &[0], &[0]);
    assert!(matches!(device.submit(&future), Err(Error::Ticket(0))));
    let (first, second) = (device.submit(&one).unwrap(), device.submit(&one).unwrap());
    assert!(matches!(device.submit(&one), Err(Error::InFlight(2))));
    device.collect(second, &mut output).unwrap();
    device.collect(first, &mut output).unwrap();
    assert!(matches!(device.collect(first, &mut output), Err(Error::Ticket(0))));
    let no_row = step([StepToken::SampledBy(second, 1)], 0, &[0], &[0]);
    assert!(device.submit(&no_row).unwrap_err().to_string().contains("has 1 rows"));
    let third = device.submit(&one).unwrap();
    device.collect(third, &mut output).unwrap();
    let old = step([StepToken::SampledBy(first, 0)], 0, &[0], &[0]);
    assert!(matches!(device.submit(&old), Err(Error::Ticket(0))));
}

#[test]
fn a_worker_that_panics_is_an_error_and_not_a_hang() {
    for workers in [1, 2, 3] {
        for unit in [0, 63] {
            let share = Share::Even;
            let mut program = chain(share);
            let units = Affine::constant(64);
            for bucket in &mut program.buckets {
                bucket.launches.insert(9, launch(5, &[], Some(Affine::constant(unit)), units, share));
            }
            let mut device = device(&program, workers);
            let one = step([StepToken::Known(1)], 0, &[0], &[0]);
            let tickets = (device.submit(&one).unwrap(), device.submit(&one));
            let mut output = StepOutput::default();
            let error = device.collect(tickets.0, &mut output).unwrap_err().to_string();
            assert!(error.contains(&format!("unit {unit} explodes")), "{error}");
            // The second was accepted only if it came before the failure; either way it fails.
            if let Ok(second) = tickets.1 {
                assert!(matches!(device.collect(second, &mut output), Err(Error::DeviceLost(_))));
            }
            assert!(matches!(device.submit(&one), Err(Error::DeviceLost(_))));
        }
    }
}

/// `mov rax, [rdi]; mov r8, [rsi]; mov dword [rax + 4·r8], 1.0f; ret`: sets one logit.
const SET_LOGIT: [u8; 15] = [0x48, 0x8b, 0x07, 0x4c, 0x8b, 0x06, 0x42, 0xc7, 0x04, 0x80, 0x00, 0x00, 0x80, 0x3f, 0xc3];

fn machine_code(entry: u64, poison: bool) -> Result<CpuDevice> {
    let mut code = vec![0xcc; 32];
    code.extend_from_slice(&SET_LOGIT);
    let object = CodeObject { entries: vec![entry], code, ..CodeObject::default() };
    let mut program = program(&[launch(0, &[LOGITS], Some(Affine::constant(11)), Affine::constant(1), Share::Even)]);
    program.kernels = vec![Signature {
        name: "set_logit".into(),
        recipe: String::new(),
        params: 1,
        grid: lathe_plan::Grid::default(),
        operands: vec![Operand { access: Access::Write, extent: Vec::new() }],
    }];
    let kernels = Kernels::map(&object, 1)?;
    let options = DeviceOptions { poison, ..options(2) };
    CpuDevice::start(&program, kernels, Box::new(Vec::new()), CACHE_TOKENS, &options, Crew::start(&options)?)
}

#[test]
fn mapped_code_runs() {
    let mut device = machine_code(32, false).unwrap();
    let output = run(&mut device, &step([StepToken::Known(1)], 0, &[0], &[0])).unwrap();
    assert_eq!(output.rows[0].token, 11);
}

/// A plan of that code for two targets, the second of which needs more.
fn two_targets() -> Plan {
    let mut program = program(&[launch(0, &[LOGITS], Some(Affine::constant(11)), Affine::constant(1), Share::Even)]);
    program.kernels = vec![Signature {
        name: "set_logit".into(),
        recipe: String::new(),
        params: 1,
        grid: lathe_plan::Grid::default(),
        operands: vec![Operand { access: Access::Write, extent: Vec::new() }],
    }];
    let mut writer = PlanWriter::new();
    writer.program(&program);
    for (target, features) in [("x86-64-v3", &["avx2"][..]), ("x86-64-v4", &["avx2", "avx512f"])] {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let object = CodeObject { target: target.into(), features, entries: vec![0], code: SET_LOGIT.to_vec() };
        writer.code("main", "plain", &object);
    }
    writer.weights(&program, "plain", |_, _| Ok(()));
    let path = std::env::temp_dir().join(format!("lathe-two-targets-{}.plan", std::process::id()));
    writer.write(&path).unwrap();
    let plan = Plan::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    plan
}

#[test]
fn a_cpu_runs_the_code_that_it_has_the_features_for() {
    let plan = two_targets();
    let load = |target: Option<&str>, features: &[&str]| {
        let options = DeviceOptions { poison: false, target: target.map(str::to_owned), ..options(1) };
        CpuDevice::load_where(&plan, "main", &options, Crew::start(&options)?, |feature| features.contains(&feature))
    };
    for (target, features) in [(None, &["avx2"][..]), (None, &["avx2", "avx512f"]), (Some("x86-64-v3"), &["avx2"])] {
        let mut device = load(target, features).unwrap();
        let output = run(&mut device, &step([StepToken::Known(1)], 0, &[0], &[0])).unwrap();
        assert_eq!(output.rows[0].token, 11);
    }
    let refused = |target, features: &[&str], hint: &str| {
        let error = load(target, features).map(drop).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    };
    refused(None, &[], "`x86-64-v3` needs avx2,");
    refused(Some("x86-64-v4"), &["avx2"], "`x86-64-v4` needs avx512f,");
    refused(Some("amx"), &["avx2"], "no code for `amx`, only for x86-64-v3, x86-64-v4;");
}

#[test]
fn an_entry_outside_the_code_is_refused() {
    let error = machine_code(47, false).unwrap_err().to_string();
    assert!(error.contains("47"), "{error}");
}

#[test]
fn poison_shows_logits_that_nobody_wrote_and_the_device_lives_on() {
    let mut device = machine_code(32, true).unwrap();
    let one = step([StepToken::Known(1)], 0, &[0], &[0]);
    assert!(run(&mut device, &one).unwrap().rows[0].is_broken);
    // A step that builds on a broken row runs all the same: what it says is for nobody.
    let broken = device.submit(&one).unwrap();
    let next = device.submit(&step([StepToken::SampledBy(broken, 0)], 1, &[0], &[0])).unwrap();
    for ticket in [broken, next] {
        let mut output = StepOutput::default();
        device.collect(ticket, &mut output).unwrap();
        assert!(output.rows[0].is_broken);
    }
    assert!(run(&mut device, &step([StepToken::Known(1)], 0, &[0], &[])).is_ok());
}
