//! Each parse error names its place and says what was expected and what was found.

use lathe_ir::parse::parse;
use lathe_ir::scheme::Scheme;

const VALID: &str = "graph g(%tokens: i32[T]) {
  @t: f32[8, 4] = \"t\"
  cache $kv.0: cache<f16, 1x2>
  %0 = embed %tokens, @t : f32[T, 4]
  %1 = linear %0, @t post [silu] : f32[T, 8]
  return y = %1
}
";

/// The valid text with `from` replaced by `to` fails with this message.
fn check(from: &str, to: &str, expected: &str) {
    assert_eq!(VALID.matches(from).count(), 1, "'{from}' occurs once");
    let error = parse(&VALID.replace(from, to)).expect_err(to);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_text_that_they_start_from_is_valid() {
    assert_eq!(parse(VALID).unwrap().to_string(), VALID);
}

#[test]
fn structure() {
    check("graph g", "grph g", "line 1, column 1: expected 'graph', found 'grph'");
    check(") {", ")", "line 2, column 3: expected '{', found @t");
    check("return y = %1\n}", "return y = %1", "line 7, column 1: expected '}', found the end of the text");
    check("return", "retrun", "line 6, column 3: expected a weight, a cache, an op or 'return', found 'retrun'");
    check("}\n", "} x", "line 7, column 3: expected the end of the text, found 'x'");
    check("\"t\"", "\"t", "line 2, column 19: expected a closing quote, found the end of the text");
    check("$kv.0", "$", "line 3, column 9: expected a name after the sigil, found the end of the text");
}

#[test]
fn declarations() {
    let inputs = "a step input (%tokens, %positions, %sequences, %rows)";
    check("(%tokens: i32", "(%tokns: i32", &format!("line 1, column 9: expected {inputs}, found %tokns"));
    check("(%tokens: i32[T]", "(%tokens: f32[T]", "line 1, column 18: expected i32[T], found f32[T]");
    check("= \"t\"", "= t", "line 2, column 19: expected a tensor name in quotes, 'concat' or 'interleave', found 't'");
    check("\"t\"", "concat(\"t\")", "line 2, column 29: expected '[', found ')'");
    check("\"t\"", "\"t\"\n @t: f32[4] = \"t\"", "line 3, column 2: @t is already defined; choose another name");
    check("$kv.0", "$0", "line 3, column 9: expected a cache name that begins with a letter, found $0");
}

#[test]
fn types() {
    check("1x2", "1by2", "line 3, column 27: expected heads and elements per head (3x64), found '1by2'");
    check("f16", "int4", "line 3, column 22: expected an element type, found 'int4'");
    check("f32[8, 4]", "g32[8, 4]", "line 2, column 7: expected an element type, found 'g32'");
    check(
        "f32[8, 4]",
        "int4:g64[8, 4]",
        &format!(
            "line 2, column 7: expected a scheme ({}), found int4:g64",
            Scheme::ALL.map(|s| s.to_string()).join(", ")
        ),
    );
    check("8, 4", "8, K", "line 2, column 14: expected one of the symbols T, S and R, found 'K'");
    check(
        "8, 4",
        "T+2*T, 4",
        "line 2, column 13: expected each symbol and the constant at most once, found another one",
    );
    check(
        "8, 4",
        "99999999999999999999, 4",
        "line 2, column 11: expected a number (a number up to 1073741824), found '99999999999999999999'",
    );
}

#[test]
fn ops() {
    check(
        "embed",
        "embde",
        &format!("line 4, column 8: unknown op 'embde'; ops are {}", lathe_ir::op::Op::NAMES.join(", ")),
    );
    check("embed %tokens", "embed %0", "line 4, column 14: %0 is not defined; define it on an earlier line");
    check("y = %1", "y = %2", "line 6, column 14: %2 is not defined; define it on an earlier line");
    check(
        "embed %tokens, @t",
        "embed @t, @t",
        "line 4, column 8: embed: operand 'tokens' expects i32[M], found f32[8, 4]",
    );
    check(
        "embed %tokens, @t",
        "embed %tokens",
        "line 4, column 8: embed: expected 2 operands (tokens, table), found 1",
    );
    check(
        "@t : f32[T, 4]",
        "@t : f32[T, 5]",
        "line 4, column 28: the results are f32[T, 4], but the text declares f32[T, 5]",
    );
    check("  %1 =", "  %1, %2 =", "line 5, column 3: the results are f32[T, 8], but the text declares %1, %2");
    check("  %1 =", "  %0 =", "line 5, column 3: %0 is already defined; choose another name");
    check(
        "embed %tokens, @t",
        "embed %tokens, @t pre [silu]",
        "line 4, column 8: expected linear before 'pre' or 'post', found 'embed'",
    );
    check("[silu]", "[linear]", "line 5, column 28: expected a stage other than linear, found 0 of 'linear'");
    check(
        "[silu]",
        "[add]",
        "line 5, column 28: expected 1 operands of stage add besides the running value, found 0 of 'add'",
    );
}

#[test]
fn attributes() {
    let quantize = |braces: &str| format!("quantize {braces}");
    let at = "line 5, column 28: quantize: attribute 'group'";
    check("silu", &quantize(""), &format!("{at} is missing; expected a whole number from 0 to 2^30"));
    check("silu", &quantize("{group = -2}"), &format!("{at} expects a whole number from 0 to 2^30, found -2"));
    check(
        "silu",
        &quantize("{group = 1073741825}"),
        &format!("{at} expects a whole number from 0 to 2^30, found 1073741825"),
    );
    check("silu", &quantize("{group = 2.0}"), &format!("{at} expects a whole number from 0 to 2^30, found 2.0"));
    check("silu", &quantize("{group = 2, group = 2}"), &format!("{at} is given twice; keep one"));
    check("silu", "silu {x = \"a\"}", "line 5, column 28: silu: unknown attribute 'x'; remove it");
    check("silu", "silu {x = inf}", "line 5, column 38: expected a number, a string, true or false, found 'inf'");
}

/// Any text gives a graph or an error: cut the fused decoder everywhere, and damage each character.
#[test]
fn damaged_text_never_panics() {
    let text = crate::fixtures::fused(Scheme::INT4, true);
    let mut refused = 0;
    for end in 0..text.len() {
        refused += usize::from(parse(&text[..end]).is_err());
    }
    assert_eq!(refused, text.len() - 1, "only the text without its last line end still parses");
    for at in 0..text.len() {
        for damage in ["0", "}", "\"", "-", "é"] {
            let damaged = format!("{}{damage}{}", &text[..at], &text[at + 1..]);
            if let Ok(graph) = parse(&damaged) {
                assert_eq!(parse(&graph.to_string()).unwrap().to_string(), graph.to_string());
            }
        }
    }
}
