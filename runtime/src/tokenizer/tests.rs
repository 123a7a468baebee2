//! Encoding and decoding over small vocabularies, worked out by hand.

use lathe_plan::{Merge, TokenizerTables};

use super::*;

const END: u32 = 256;
const THINK: u32 = 257;

/// Bytes 0 to 255 are tokens 0 to 255, then `<|end|>` (control) and `<think>` (user-defined), then the merged tokens
/// in the order of `merges`, each a pair of texts.
fn tables(merges: &[(&str, &str)]) -> TokenizerTables {
    let mut tables = TokenizerTables { pretokenizer: "smollm".to_owned(), ..TokenizerTables::default() };
    for byte in 0..=255 {
        tables.push(&[byte], TokenKind::Normal);
    }
    tables.push(b"<|end|>", TokenKind::Control);
    tables.push(b"<think>", TokenKind::UserDefined);
    for (left, right) in merges {
        let find = |text: &str| (0..tables.len() as u32).find(|&id| tables.token(id) == Some(text.as_bytes()));
        let (Some(left_id), Some(right_id)) = (find(left), find(right)) else { panic!("{left} or {right}") };
        let merged = find(&format!("{left}{right}")).unwrap_or(tables.len() as u32);
        tables.merges.push(Merge { left: left_id, right: right_id, merged });
        if merged as usize == tables.len() {
            tables.push(format!("{left}{right}").as_bytes(), TokenKind::Normal);
        }
    }
    tables
}

fn tokenizer(merges: &[(&str, &str)]) -> Tokenizer {
    Tokenizer::new(tables(merges)).expect("the tables are sound")
}

/// Encodes as untrusted text and compares the tokens' texts.
fn check(tokenizer: &Tokenizer, text: &str, expected: &[&str]) {
    let tokens = tokenizer.encode(text, Control::AsText);
    let texts: Vec<_> = tokens.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes(*id))).collect();
    assert_eq!(texts, expected, "{text:?}");
    assert_eq!(tokenizer.decode(&tokens), text.as_bytes(), "{text:?}");
}

#[test]
fn merges_apply_by_rank_and_then_from_the_left() {
    let tokenizer = tokenizer(&[("b", "c"), ("a", "b"), ("a", "a"), ("aa", "a"), ("a", "bc")]);
    check(&tokenizer, "abc", &["abc"]);
    check(&tokenizer, "abd", &["ab", "d"]);
    check(&tokenizer, "aaaaa", &["aa", "aaa"]);
    check(&tokenizer, "aaa", &["aaa"]);
}

#[test]
fn an_earlier_rank_wins_even_when_its_pair_appears_late() {
    // `xy` has the last rank but makes the pair (xy, z) of the first rank possible.
    let mut tables = tables(&[("x", "y"), ("xy", "z"), ("z", "w")]);
    tables.merges.swap(0, 1);
    tables.merges.swap(1, 2); // (xy, z), (z, w), (x, y)
    let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
    check(&tokenizer, "xyzw", &["xy", "zw"]);
    check(&tokenizer, "xyz", &["xyz"]);
}

#[test]
fn merges_stay_within_a_piece() {
    let tokenizer = tokenizer(&[("a", " "), (" ", "b"), ("1", "2")]);
    check(&tokenizer, "a b12", &["a", " b", "1", "2"]);
}

#[test]
fn control_tokens_are_made_only_when_asked() {
    let tokenizer = tokenizer(&[("<", "|")]);
    let text = "a<|end|><think>b";
    let trusted = tokenizer.encode(text, Control::Recognize);
    assert_eq!(trusted, [u32::from(b'a'), END, THINK, u32::from(b'b')]);
    check(&tokenizer, text, &["a", "<|", "e", "n", "d", "|", ">", "<think>", "b"]);
    let mut decoder = Decoder::new(&tokenizer);
    assert_eq!(decoder.visible_bytes(&tokenizer, END), b"");
    assert_eq!(decoder.visible_bytes(&tokenizer, THINK), b"<think>");
}

#[test]
fn a_document_starts_with_bos_once() {
    let with_bos = TokenizerTables { bos: Some(END), add_bos: true, ..tables(&[]) };
    let tokenizer = Tokenizer::new(with_bos).expect("the tables are sound");
    assert_eq!(tokenizer.encode_document("a", Control::AsText), [END, 97]);
    assert_eq!(tokenizer.encode_document("<|end|>a", Control::Recognize), [END, 97]);
}

#[test]
fn bytes_without_a_token_are_left_out() {
    let mut tables = tables(&[]);
    tables.kinds[usize::from(b'x')] = TokenKind::Unused;
    let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
    assert_eq!(tokenizer.encode("axb", Control::AsText), [97, 98]);
}

#[test]
fn tables_that_would_let_users_write_control_tokens_are_refused() {
    let mut tables = tables(&[]);
    tables.push(b"<|end|", TokenKind::Normal);
    let left = tables.len() as u32 - 1;
    tables.merges.push(Merge { left, right: u32::from(b'>'), merged: END });
    assert_eq!(Tokenizer::new(tables).unwrap_err(), TokenizerError::ControlMerge { rank: 0, token: END });
}

#[test]
fn an_unknown_pretokenizer_is_a_sentence() {
    let tables = TokenizerTables { pretokenizer: "klingon".to_owned(), ..tables(&[]) };
    let message = Tokenizer::new(tables).unwrap_err().to_string();
    assert!(message.contains("klingon") && message.contains("smollm"), "{message}");
}

#[test]
fn a_megabyte_without_a_break_is_encoded() {
    // Quadratic merging would take minutes here.
    let tokenizer = tokenizer(&[(" ", " "), ("  ", "  "), ("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]);
    let spaces = " ".repeat(1 << 20);
    assert_eq!(tokenizer.encode(&spaces, Control::AsText).len(), 1 << 18);
    let letters = "a".repeat(1 << 20);
    assert_eq!(tokenizer.encode(&letters, Control::AsText).len(), 1 << 17);
    let brackets = "<".repeat(1 << 20);
    assert_eq!(tokenizer.encode(&brackets, Control::Recognize).len(), 1 << 20);
}

/// A `SentencePiece` vocabulary: unknown, control and user-defined tokens, all bytes, then `texts` with their scores.
fn spm(space_prefix: bool, texts: &[(&str, u32)]) -> Tokenizer {
    Tokenizer::new(spm_tables(space_prefix, texts)).expect("the tables are sound")
}

fn spm_tables(space_prefix: bool, texts: &[(&str, u32)]) -> TokenizerTables {
    let mut tables = TokenizerTables {
        model: TokenizerModel::Spm,
        space_prefix: if space_prefix { SpacePrefix::Always } else { SpacePrefix::Never },
        unk: Some(0),
        ..TokenizerTables::default()
    };
    tables.push(b"<unk>", TokenKind::Unknown);
    tables.push(b"<s>", TokenKind::Control);
    tables.push(b"\n\n", TokenKind::UserDefined);
    for byte in 0..=255 {
        tables.push(&[byte], TokenKind::Byte);
    }
    tables.ranks = vec![0; tables.len()];
    for (text, rank) in texts {
        tables.push(text.as_bytes(), TokenKind::Normal);
        tables.ranks.push(*rank);
    }
    tables
}

#[test]
fn the_best_rank_joins_first_and_the_leftmost_among_equals() {
    let letters = [("a", 9), ("b", 9), ("c", 9)];
    let check_with = |more: &[(&str, u32)], text: &str, expected: &[&str]| {
        check(&spm(false, &[&letters[..], more].concat()), text, expected);
    };
    check_with(&[("ab", 1), ("bc", 0)], "abc", &["a", "bc"]);
    check_with(&[("ab", 1), ("bc", 1)], "abc", &["ab", "c"]);
    check_with(&[("aa", 1)], "aaaaa", &["aa", "aa", "a"]);
    check_with(&[("ab", 2), ("abc", 1), ("bc", 3)], "abc", &["abc"]);
    // Characters without a token of their own may still join.
    check_with(&[("xy", 1)], "axyx", &["a", "xy", "x"]);
}

#[test]
fn what_no_token_spells_becomes_bytes() {
    let tokenizer = spm(false, &[("a", 0)]);
    let tokens = tokenizer.encode("a\u{e9}", Control::AsText);
    assert_eq!(tokens, [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&tokens), "a\u{e9}".as_bytes());
    assert_eq!(shown(&tokenizer, Decoder::new(&tokenizer), &tokens), ["a", "", "\u{e9}"]);
}

/// The text that comes of each token of a stream.
fn shown(tokenizer: &Tokenizer, mut decoder: Decoder, tokens: &[u32]) -> Vec<String> {
    let mut stream = crate::stream::TextStream::new();
    tokens.iter().map(|id| stream.push(decoder.visible_bytes(tokenizer, *id))).collect()
}

/// What a prompt and its answer say as text, and the pieces in which the answer streams, in a chat and going on.
fn check_stream(tokenizer: &Tokenizer, prompt: &str, answer: &str, in_chat: &[&str], going_on: &[&str]) {
    let prompt = tokenizer.encode(prompt, Control::Recognize);
    let whole = [&prompt[..], &tokenizer.encode(answer, Control::Recognize)].concat();
    let tokens = &whole[prompt.len()..];
    assert_eq!(shown(tokenizer, Decoder::new(tokenizer), tokens), in_chat);
    let streamed = shown(tokenizer, Decoder::after(tokenizer, &prompt), tokens);
    assert_eq!(streamed, going_on);
    let text = [tokenizer.decode(&prompt), streamed.concat().into_bytes()].concat();
    assert_eq!(text, tokenizer.decode(&whole), "a stream goes on as the whole text does");
}

#[test]
fn a_stream_leaves_out_the_space_that_encoding_puts_in_front() {
    let tokenizer = spm(true, &[(" ", 9), ("a", 9), (" a", 0), ("b", 9), (" b", 0)]);
    // An answer in a chat is a text of its own; what goes on after a word keeps its space.
    check_stream(&tokenizer, "<s>b", "a b", &["a", " b"], &[" a", " b"]);
    check_stream(&tokenizer, "b\n\n", "a b", &["a", " b"], &["a", " b"]);
    check_stream(&tokenizer, "", " a", &["", " a"], &["", " a"]);
    check_stream(&tokenizer, "b", "a\n\nb", &["a", "\n\n", "b"], &[" a", "\n\n", "b"]);
    let bare = spm(false, &[(" ", 9), ("a", 9), (" a", 0)]);
    check_stream(&bare, "a", " a", &[" a"], &[" a"]);
}

#[test]
fn a_character_is_unknown_where_a_byte_is_missing() {
    let mut tables = spm_tables(false, &[("a", 0)]);
    tables.kinds[3 + 0xa9] = TokenKind::Unused;
    let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
    assert_eq!(tokenizer.encode("a\u{e9}a", Control::AsText), [259, 0, 259]);
}

#[test]
fn a_space_goes_before_text_and_comes_off_again() {
    let tokenizer = spm(true, &[(" ", 9), ("a", 9), (" a", 0)]);
    let texts = |text: &str| -> Vec<String> {
        let tokens = tokenizer.encode(text, Control::Recognize);
        assert_eq!(tokenizer.decode(&tokens), text.replace('\u{2581}', " ").as_bytes(), "{text:?}");
        tokens.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes(*id)).into_owned()).collect()
    };
    assert_eq!(texts("aa"), [" a", "a"]);
    assert_eq!(texts(" a"), [" ", " a"]);
    assert_eq!(texts("a\u{2581}a"), [" a", " a"]);
    assert_eq!(texts("<s>a\n\n a"), ["<s>", " a", "\n\n", " ", " a"]);
    assert_eq!(texts(""), [""; 0]);
}

#[test]
fn sentencepiece_makes_no_control_token_of_plain_text() {
    let tokenizer = spm(false, &[("<", 9), ("s", 9), (">", 9), ("<s", 0), ("s>", 1)]);
    check(&tokenizer, "<s>", &["<s", ">"]);
    assert_eq!(tokenizer.encode("<s><unk>\n\n", Control::Recognize), [1, 0, 2]);
}

#[test]
fn pieces_that_are_tokens_are_kept_whole_where_the_model_says_so() {
    let mut tables = tables(&[("b", "c")]);
    tables.push(b"abc", TokenKind::Normal);
    tables.push(b"<x>", TokenKind::Control);
    let merging = Tokenizer::new(tables.clone()).expect("the tables are sound");
    check(&merging, "abc abc", &["a", "bc", " ", "a", "bc"]);
    tables.whole_pieces = true;
    let keeping = Tokenizer::new(tables).expect("the tables are sound");
    check(&keeping, "abc abc", &["abc", " ", "a", "bc"]);
    check(&keeping, "<x>", &["<", "x", ">"]);
}

/// A vocabulary that merges characters, with all bytes: `a`, `b`, space and what the merges make.
fn characters(space_prefix: SpacePrefix, merges: &[(&str, &str)]) -> Tokenizer {
    let mut tables = spm_tables(false, &[(" ", 0), ("a", 0), ("b", 0)]);
    (tables.model, tables.ranks, tables.space_prefix) = (TokenizerModel::Characters, Vec::new(), space_prefix);
    for (left, right) in merges {
        let find = |text: &str| (3 + 256..tables.len() as u32).find(|&id| tables.token(id) == Some(text.as_bytes()));
        let (Some(left_id), Some(right_id)) = (find(left), find(right)) else { panic!("{left} or {right}") };
        tables.merges.push(Merge { left: left_id, right: right_id, merged: tables.len() as u32 });
        tables.push(format!("{left}{right}").as_bytes(), TokenKind::Normal);
    }
    Tokenizer::new(tables).expect("the tables are sound")
}

#[test]
fn characters_merge_by_rank_and_others_are_spelled_before() {
    let tokenizer = characters(SpacePrefix::Never, &[("a", "b"), ("b", "a"), (" ", "ab")]);
    check(&tokenizer, "aba bab", &["ab", "a", " ", "b", "ab"]);
    check(&tokenizer, "ab ab", &["ab", " ab"]);
    assert_eq!(tokenizer.encode("\u{e9}a", Control::AsText), [3 + 0xc3, 3 + 0xa9, 260]);
}

#[test]
fn a_space_goes_in_front_where_the_model_says() {
    let texts = |prefix: SpacePrefix, text: &str| -> Vec<String> {
        let tokenizer = characters(prefix, &[(" ", "a")]);
        let tokens = tokenizer.encode(text, Control::Recognize);
        tokens.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes(*id)).into_owned()).collect()
    };
    assert_eq!(texts(SpacePrefix::Never, "a<s>a"), ["a", "<s>", "a"]);
    assert_eq!(texts(SpacePrefix::Always, "a<s> a"), [" a", "<s>", " ", " a"]);
    assert_eq!(texts(SpacePrefix::Missing, " a<s>a"), [" a", "<s>", " a"]);
    assert_eq!(texts(SpacePrefix::MissingAtStart, "a<s>a"), [" a", "<s>", "a"]);
    assert_eq!(texts(SpacePrefix::MissingAtStart, "<s>a"), ["<s>", "a"]);
}

#[test]
fn text_is_composed_where_the_model_says_so() {
    let mut tables = tables(&[]);
    check(&Tokenizer::new(tables.clone()).expect("the tables are sound"), "e\u{301}", &["e", "\u{fffd}", "\u{fffd}"]);
    tables.nfc = true;
    let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
    assert_eq!(tokenizer.decode(&tokenizer.encode("e\u{301}\u{2126}", Control::AsText)), "\u{e9}\u{3a9}".as_bytes());
}

#[test]
fn a_document_may_end_with_a_token_and_a_prompt_does_not() {
    let with_ends = TokenizerTables { bos: Some(END), add_bos: true, add_eos: Some(THINK), ..tables(&[]) };
    let tokenizer = Tokenizer::new(with_ends).expect("the tables are sound");
    assert_eq!(tokenizer.encode_document("a", Control::AsText), [END, 97, THINK]);
    assert_eq!(tokenizer.encode_prompt("a", Control::AsText), [END, 97]);
}
