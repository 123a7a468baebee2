//! What goes in comes out, and the same input gives the same bytes.

use std::cell::RefCell;

use lathe_plan::{
    LoadMode, PackedTokenizer, Plan, PlanError, PlanWriter, RUNTIME_ABI, RandomWeights, SectionKind, random,
};

use crate::sample::{self, LAYOUT, bytes, load, weight_byte};

#[test]
fn every_section_comes_back() {
    let plan = load(bytes()).unwrap();
    assert_eq!(plan.programs(), [sample::program()]);
    assert_eq!(plan.program("main"), Some(&sample::program()));
    let codes: Vec<_> = plan.codes("main").map(|code| (code.layout.as_str(), code.object.clone())).collect();
    assert_eq!(codes, [(LAYOUT, sample::code())]);
    assert_eq!(plan.codes("draft").count(), 0);
    check_tokenizer(plan.tokenizer().unwrap());
    assert_eq!(plan.manifest(), Some(&sample::manifest()));
    assert_eq!(plan.chat_template(), Some("{{ messages }}"));
    assert_eq!(plan.generation_config(), Some("{}"));
    assert_eq!(plan.licence(), Some("Do what you like."));
    assert_eq!(plan.reports().collect::<Vec<_>>(), [("graph", "%0 = embed"), ("schedule", "launch 0 embed")]);
    assert_eq!(plan.report("graph"), Some("%0 = embed"));
    assert_eq!(plan.report("passes"), None);
}

#[test]
fn weights_come_back_with_zeros_between_them() {
    let plan = Plan::from_bytes(bytes()).unwrap();
    let weights = plan.load_weights("main", LAYOUT, LoadMode::Read, 2).unwrap();
    let spans = sample::program().weights;
    for (index, span) in spans.iter().enumerate() {
        let expected: Vec<u8> = (0..span.bytes).map(|i| weight_byte(index, i)).collect();
        assert_eq!(weights.span(span), Some(&expected[..]));
    }
    assert_eq!(weights.len(), 812);
    assert_eq!(weights[500..512], [0; 12]);
    let missing = plan.load_weights("main", "columns", LoadMode::Read, 1).unwrap_err().to_string();
    assert_eq!(missing, "the plan has no weights of program `main` in layout `columns`");
}

#[test]
fn the_same_sections_in_any_order_give_the_same_bytes() {
    let program = sample::program();
    let mut other = PlanWriter::new();
    other.program(&program);
    other.code("main", LAYOUT, &sample::code());
    other.report("graph", "%0 = embed");
    other.tokenizer(&sample::tokenizer());
    other.chat_template("{{ messages }}");
    other.report("schedule", "launch 0 embed");
    other.generation_config("{}");
    other.licence("Do what you like.");
    other.manifest(&sample::manifest());
    other.weights(&program, LAYOUT, |index, out| {
        (0..program.weights[index].bytes).try_for_each(|i| out.write_all(&[weight_byte(index, i)]))
    });
    assert!(other.to_bytes().unwrap() == bytes());
}

#[test]
fn the_file_is_laid_out_as_documented() {
    let bytes = bytes();
    assert!(bytes.len() < 64 << 10);
    assert_eq!(bytes[..8], *b"\x89LATHE\r\n");
    assert_eq!(sample::number(&bytes, 12, 4), u64::from(RUNTIME_ABI));
    assert_eq!(sample::number(&bytes, 16, 8), bytes.len() as u64);
    assert_eq!(&bytes[sample::section(&bytes, 4)], b"{}");
    let weights = sample::section(&bytes, 8);
    assert_eq!((weights.start % 4096, weights.len()), (0, 812));
    assert_eq!(bytes[sample::section(&bytes, 7)], *blake3::hash(&bytes[weights]).as_bytes());
    let plan = Plan::from_bytes(bytes.clone()).unwrap();
    assert_eq!(plan.length(), bytes.len() as u64);
    assert_eq!(plan.root(), bytes[64..96]);
    let kinds: Vec<_> = plan.sections().iter().map(|section| section.kind).collect();
    assert!(kinds.is_sorted());
    assert_eq!(
        kinds[kinds.len() - 4..kinds.len() - 1],
        [SectionKind::Weights, SectionKind::Manifest, SectionKind::Report]
    );
}

#[test]
fn every_weight_is_asked_for_once_in_order() {
    let asked = RefCell::new(Vec::new());
    let program = sample::program();
    let mut writer = PlanWriter::new();
    writer.program(&program);
    writer.weights(&program, LAYOUT, |index, out| {
        asked.borrow_mut().push(index);
        out.write_all(&vec![0; program.weights[index].bytes as usize])
    });
    writer.to_bytes().unwrap();
    assert_eq!(asked.into_inner(), [0, 1]);
}

#[test]
fn the_writer_refuses_what_it_cannot_write() {
    let program = sample::program();
    let mut twice = sample::writer(&program);
    twice.report("graph", "again");
    assert_eq!(twice.to_bytes().unwrap_err().to_string(), "the report `graph` was given twice");

    for (length, found) in [(499, 499), (501, 501)] {
        let mut writer = PlanWriter::new();
        writer.weights(&program, LAYOUT, move |_, out| out.write_all(&vec![1; length]));
        let error = writer.to_bytes().unwrap_err();
        assert!(matches!(error, PlanError::WeightBytes { expected: 500, found: f, .. } if f == found), "{error}");
    }

    let mut overlapping = program.clone();
    overlapping.weights[1].offset = 448;
    let error = sample::writer(&overlapping).to_bytes().unwrap_err().to_string();
    assert!(error.contains("weight `head` starts at byte 448, expected a multiple of 64 from 500"), "{error}");
}

#[test]
fn programs_without_weights_have_none() {
    let mut program = sample::program();
    program.weights.clear();
    program.kernels.clear();
    program.buckets.iter_mut().for_each(|bucket| bucket.launches.clear());
    let mut writer = PlanWriter::new();
    writer.program(&program);
    writer.weights(&program, LAYOUT, |_, _| Ok(()));
    let plan = load(writer.to_bytes().unwrap()).unwrap();
    assert!(plan.load_weights("main", LAYOUT, LoadMode::Map, 2).unwrap().is_empty());
}

#[test]
fn what_is_known_after_the_weights_makes_the_same_file() {
    let program = sample::program();
    let written = RefCell::new(0);
    let plan = |late: bool| {
        *written.borrow_mut() = 0;
        let mut writer = PlanWriter::new();
        writer.program(&program);
        writer.weights(&program, LAYOUT, |at, sink| {
            *written.borrow_mut() += 1;
            let bytes: Vec<u8> = (0..program.weights[at].bytes).map(|i| weight_byte(at, i)).collect();
            sink.write_all(&bytes)
        });
        let count = program.weights.len();
        if late {
            // Called when the last weight is there.
            writer.late_report("errors", || format!("{} spans", *written.borrow()));
            writer.late_manifest(|| {
                assert_eq!(*written.borrow(), count);
                sample::manifest()
            });
        } else {
            writer.report("errors", &format!("{count} spans"));
            writer.manifest(&sample::manifest());
        }
        writer.to_bytes().unwrap()
    };
    assert!(plan(true) == plan(false));
}

/// Compares what a plan's tokenizer gives to what was written.
fn check_tokenizer(packed: &PackedTokenizer) {
    let tables = sample::tokenizer();
    assert_eq!((packed.model, packed.pretokenizer.as_str()), (tables.model, "smollm"));
    assert_eq!(
        (packed.bos, &packed.eos, packed.add_bos, packed.unk),
        (tables.bos, &tables.eos, tables.add_bos, tables.unk)
    );
    for id in 0..=tables.len() as u32 {
        assert_eq!((packed.token(id), packed.kind(id)), (tables.token(id), tables.kinds.get(id as usize).copied()));
    }
    assert_eq!(packed.merges().collect::<Vec<_>>(), tables.merges);
    let rule = |left, right| packed.rule(left, right).map(|rule| (rule.rank, rule.merged));
    assert_eq!((rule(1, 2), rule(3, 1), rule(2, 1)), (Some((0, 3)), Some((1, 4)), None));
    let added = packed.added(0).unwrap();
    assert_eq!((packed.added_count(), added.id, added.text, added.is_control), (1, 0, "<end>", true));
}

#[test]
fn random_weights_are_made_from_their_seed_whatever_the_threads() {
    let program = sample::program();
    let plan = |seed: u64, bytes: u32| {
        let piece = |bytes| random::Piece { bytes, fixed: 0x3c00_0000, free: 0x00ff_ffff };
        let patterns =
            vec![random::Pattern { pieces: vec![piece(bytes)] }, random::Pattern { pieces: vec![piece(4), piece(8)] }];
        let mut writer = PlanWriter::new();
        writer.program(&program);
        writer.code("main", LAYOUT, &sample::code());
        writer.random_weights("main", LAYOUT, &RandomWeights { seed, patterns });
        writer.to_bytes().unwrap()
    };
    let weights = |seed, threads| {
        let plan = Plan::from_bytes(plan(seed, 20)).unwrap();
        assert_eq!(plan.seed(), Some(seed));
        plan.load_weights("main", LAYOUT, LoadMode::Map, threads).unwrap().to_vec()
    };
    assert_eq!(weights(1, 1).len(), 812);
    assert!(weights(1, 1) == weights(1, 3) && weights(1, 1) != weights(2, 1));
    assert_eq!(load(bytes()).unwrap().seed(), None);
    let error = sample::refusal(plan(1, 24));
    assert!(error.contains("the pattern of weight `embed`, of 24 bytes, does not fill its 500 bytes"), "{error}");
    let mut both = sample::writer(&program);
    both.random_weights("main", LAYOUT, &RandomWeights { seed: 1, patterns: Vec::new() });
    assert!(sample::refusal(both.to_bytes().unwrap()).contains("expected no weights of the same name and layout"));
}
