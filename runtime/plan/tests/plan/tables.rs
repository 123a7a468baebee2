//! Sections that are well formed but do not fit each other or themselves.

use lathe_plan::codec::{DecodeError, decode, encode};
use lathe_plan::{PlanWriter, TokenKind, TokenizerModel, TokenizerTables};

use crate::sample::{self, LAYOUT, refusal, tokenizer};

fn check_tokenizer(edit: impl FnOnce(&mut TokenizerTables), expected: &str) {
    let mut tables = tokenizer();
    edit(&mut tables);
    let mut writer = PlanWriter::new();
    writer.program(&sample::program());
    writer.tokenizer(&tables);
    let sentence = refusal(writer.to_bytes().unwrap());
    assert!(sentence.contains(expected), "expected: {expected}\n   found: {sentence}");
}

#[test]
fn tokenizer_tables_fit_each_other() {
    let tables = tokenizer();
    assert_eq!((tables.token(3), tables.token(5), tables.token(6)), (Some(&b"ab"[..]), Some(&b"\xff"[..]), None));
    check_tokenizer(|tables| tables.kinds.truncate(2), "2 tokens need 3 offsets, found 7");
    check_tokenizer(|tables| tables.offsets.clear(), "6 tokens need 7 offsets, found 0");
    check_tokenizer(|tables| tables.offsets[1] = 99, "the offsets must ascend from 0 to the pool's 13 bytes");
    check_tokenizer(|tables| tables.offsets[0] = 1, "the offsets must ascend");
    check_tokenizer(|tables| tables.pool.push(0), "the offsets must ascend from 0 to the pool's 14 bytes");
    check_tokenizer(|tables| tables.merges[1].right = 2, "merge 1: token 4 is not token 3 followed by token 2");
    check_tokenizer(|tables| tables.merges[0].merged = 6, "merge 0: token 6 is not token 1 followed by token 2");
    check_tokenizer(|tables| tables.eos = vec![0, 6], "special token 6 is none of the 6 tokens");
    check_tokenizer(|tables| (tables.bos, tables.add_bos) = (None, true), "but none is named");
    check_tokenizer(|tables| tables.unk = Some(6), "special token 6 is none of the 6 tokens");
    check_tokenizer(|tables| tables.ranks = vec![0; 6], "6 tokens of this model need 0 ranks, found 6");
    check_tokenizer(|tables| tables.model = TokenizerModel::Spm, "6 tokens of this model need 6 ranks, found 0");
    let ranks_and_merges = |tables: &mut TokenizerTables| {
        (tables.model, tables.ranks) = (TokenizerModel::Spm, vec![0; 6]);
    };
    check_tokenizer(ranks_and_merges, "has no merges, found 2");
    check_tokenizer(|tables| tables.kinds[4] = TokenKind::Byte, "byte token 4 must hold exactly one byte");
    let too_many = |tables: &mut TokenizerTables| (0..3).for_each(|_| tables.push(b"", TokenKind::Unused));
    check_tokenizer(too_many, "expected at most the 8 tokens of program `main`, found 9");
}

#[test]
fn sections_belong_to_programs() {
    let program = sample::program();
    let mut alone = PlanWriter::new();
    alone.tokenizer(&tokenizer());
    assert_eq!(refusal(alone.to_bytes().unwrap()), "the plan has no program");

    let mut stray = sample::writer(&program);
    stray.code("draft", LAYOUT, &sample::code());
    assert!(refusal(stray.to_bytes().unwrap()).contains("expected a program `draft`, found none"));

    let mut elsewhere = PlanWriter::new();
    elsewhere.program(&program);
    elsewhere.code("main", LAYOUT, &sample::code());
    let sentence = refusal(elsewhere.to_bytes().unwrap());
    assert!(sentence.contains("expected weights of its program and layout, found none"), "{sentence}");
}

#[test]
fn code_has_an_entry_for_each_kernel() {
    let check = |edit: fn(&mut lathe_plan::CodeObject), expected: &str| {
        let program = sample::program();
        let mut code = sample::code();
        edit(&mut code);
        let mut writer = PlanWriter::new();
        writer.program(&program);
        writer.code("main", LAYOUT, &code);
        let sentence = refusal(writer.to_bytes().unwrap());
        assert!(sentence.contains(expected), "expected: {expected}\n   found: {sentence}");
    };
    check(|code| code.entries.truncate(3), "expected 4 code entries, found 3");
    check(|code| code.entries[2] = 100, "kernel `attention` starts at byte 100 of 100 bytes of code for `x86-64-v4`");
}

#[test]
fn counts_are_not_believed() {
    // 2^61 items of 8 bytes: the product wraps to nothing.
    for count in [1_u64 << 61, u64::MAX, 3] {
        let mut bytes = encode(&count);
        bytes.extend([0; 16]);
        let error = decode::<Vec<u64>>(&bytes).unwrap_err();
        assert_eq!(error, DecodeError::Count { at: 0, count, size: 8, remaining: 16 });
    }
}

#[test]
fn values_have_one_spelling() {
    assert_eq!(decode::<Vec<u32>>(&encode(&vec![1_u32, 2])), Ok(vec![1, 2]));
    assert_eq!(decode::<Option<u32>>(&encode(&Some(9_u32))), Ok(Some(9)));
    assert_eq!(decode::<u32>(&[1, 0, 0, 0, 5]), Err(DecodeError::Trailing { bytes: 1 }));
    assert_eq!(decode::<u32>(&[1, 0]), Err(DecodeError::Truncated { at: 0, needed: 4, remaining: 2 }));
    assert_eq!(decode::<bool>(&[2]), Err(DecodeError::Tag { at: 0, what: "truth value", found: 2 }));
    assert_eq!(decode::<TokenKind>(&[6]), Err(DecodeError::Tag { at: 0, what: "token kind", found: 6 }));
    let mut string = encode(&"é".to_owned());
    string.pop();
    string[0] = 1;
    assert_eq!(decode::<String>(&string), Err(DecodeError::Utf8 { at: 0 }));
}

#[test]
fn assembled_code_belongs_to_code() {
    let with = |target: &str| {
        let mut writer = sample::writer(&sample::program());
        writer.cubin("main", target, LAYOUT, vec![1, 2, 3]);
        writer.to_bytes().unwrap()
    };
    let plan = sample::load(with("x86-64-v4")).unwrap();
    assert_eq!(plan.cubin("main", "x86-64-v4"), Some(&[1, 2, 3][..]));
    assert_eq!((plan.cubin("main", "sm_80"), plan.cubin("draft", "x86-64-v4")), (None, None));
    assert!(sample::refusal(with("sm_80")).contains("expected code of its program and target, found none"));
}
