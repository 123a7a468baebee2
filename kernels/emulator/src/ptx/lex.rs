//! Splits PTX into tokens. Opcodes keep their modifiers (`ld.global.v4.f32` is one word), for the dialects differ in
//! their order only.

use super::{Position, PtxError};

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// A name, opcode, directive or register: `%r1`, `.reg`, `ld.global.b32`, `.L2::128B`.
    Word(&'a str),
    /// An integer literal; negative ones are a `-` before it.
    Int(u64),
    /// `0f3F800000`.
    Single(u32),
    /// `0d3FF0000000000000`, or a decimal literal.
    Double(u64),
    /// Text between quotes.
    Text(&'a str),
    /// A single character of punctuation.
    Punct(char),
    /// After the last token.
    End,
}

/// A token and its place.
pub(crate) type Placed<'a> = (Token<'a>, Position);

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'%' | b'$' | b'.')
}

fn continues_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%')
}

/// All tokens of a text, closed by [`Token::End`].
pub(crate) fn tokens(text: &str) -> Result<Vec<Placed<'_>>, PtxError> {
    let bytes = text.as_bytes();
    let (mut out, mut at, mut line, mut line_start) = (Vec::new(), 0, 1u32, 0);
    while at < bytes.len() {
        let c = bytes[at];
        let place = Position { line, column: (at - line_start + 1) as u32 };
        if c == b'\n' {
            at += 1;
            line += 1;
            line_start = at;
        } else if c.is_ascii_whitespace() || c == 0 && at + 1 == bytes.len() {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
        } else if bytes[at..].starts_with(b"/*") {
            let Some(length) = bytes[at + 2..].windows(2).position(|pair| pair == b"*/") else {
                return Err(PtxError::new(place, "a comment is not closed by `*/`"));
            };
            let end = at + 2 + length + 2;
            for (offset, _) in bytes[at..end].iter().enumerate().filter(|(_, b)| **b == b'\n') {
                line += 1;
                line_start = at + offset + 1;
            }
            at = end;
        } else if c == b'"' {
            let rest = &bytes[at + 1..];
            let Some(length) = rest.iter().position(|&b| b == b'"' || b == b'\n').filter(|&i| rest[i] == b'"') else {
                return Err(PtxError::new(place, "a string is not closed on its line"));
            };
            out.push((Token::Text(&text[at + 1..at + 1 + length]), place));
            at += length + 2;
        } else if c.is_ascii_digit() {
            let length = number_length(&bytes[at..]);
            out.push((number(&text[at..at + length], place)?, place));
            at += length;
        } else if starts_word(c) {
            let mut end = at + 1;
            while end < bytes.len() {
                let colons =
                    bytes[end..].starts_with(b"::") && bytes.get(end + 2).is_some_and(u8::is_ascii_alphanumeric);
                if colons {
                    end += 2;
                } else if continues_word(bytes[end]) {
                    end += 1;
                } else {
                    break;
                }
            }
            out.push((Token::Word(&text[at..end]), place));
            at = end;
        } else if b"(){}[]<>,;:@!+-|=*".contains(&c) {
            out.push((Token::Punct(c as char), place));
            at += 1;
        } else {
            let found = text[at..].chars().next().unwrap_or('?');
            return Err(PtxError::new(place, format!("the character {found:?} has no place in PTX")));
        }
    }
    out.push((Token::End, Position { line, column: (at - line_start + 1) as u32 }));
    Ok(out)
}

/// How many bytes belong to the number that starts here.
fn number_length(bytes: &[u8]) -> usize {
    let hex_float = bytes.len() > 1 && bytes[0] == b'0' && matches!(bytes[1], b'f' | b'F' | b'd' | b'D');
    let mut end = 1;
    while end < bytes.len() {
        let exponent_sign = matches!(bytes[end], b'+' | b'-')
            && matches!(bytes[end - 1], b'e' | b'E')
            && !hex_float
            && !bytes.starts_with(b"0x")
            && !bytes.starts_with(b"0X");
        if bytes[end].is_ascii_alphanumeric() || bytes[end] == b'.' || exponent_sign {
            end += 1;
        } else {
            break;
        }
    }
    end
}

fn number(text: &str, place: Position) -> Result<Token<'_>, PtxError> {
    let wrong = || PtxError::new(place, format!("`{text}` is not a number that PTX knows"));
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).map(Token::Int).map_err(|_| wrong());
    let head = text.get(..2).unwrap_or("").to_ascii_lowercase();
    if head == "0f" {
        let digits = &text[2..];
        return (digits.len() == 8)
            .then(|| u32::from_str_radix(digits, 16).ok().map(Token::Single))
            .flatten()
            .ok_or_else(wrong);
    }
    if head == "0d" {
        let digits = &text[2..];
        return (digits.len() == 16)
            .then(|| u64::from_str_radix(digits, 16).ok().map(Token::Double))
            .flatten()
            .ok_or_else(wrong);
    }
    let plain = text.trim_end_matches(['u', 'U']);
    match head.as_str() {
        "0x" => radix(&plain[2..], 16),
        "0b" => radix(&plain[2..], 2),
        _ if plain.contains(['.', 'e', 'E']) => {
            plain.parse::<f64>().map(|value| Token::Double(value.to_bits())).map_err(|_| wrong())
        }
        _ if plain.len() > 1 && plain.starts_with('0') => radix(&plain[1..], 8),
        _ => plain.parse().map(Token::Int).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Token, tokens};

    fn words(text: &str) -> Vec<Token<'_>> {
        tokens(text).expect("it is PTX").into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn numbers_of_all_kinds() {
        let found = words("0x1F 0b101 017 42U 0f3F800000 0d3FF0000000000000 1.5e-3");
        let expected = [31, 5, 15, 42].map(Token::Int);
        assert_eq!(found[..4], expected);
        assert_eq!(found[4], Token::Single(0x3f80_0000));
        assert_eq!(found[5], Token::Double(0x3ff0_0000_0000_0000));
        assert_eq!(found[6], Token::Double(1.5e-3f64.to_bits()));
    }

    #[test]
    fn words_keep_their_modifiers() {
        let found = words("cp.async.cg.shared.global.L2::128B [%r1+4]; $L:\n// x\n/* y */ %tid.x");
        assert_eq!(found[0], Token::Word("cp.async.cg.shared.global.L2::128B"));
        assert_eq!(found[7], Token::Word("$L"));
        assert_eq!(found[9], Token::Word("%tid.x"));
    }

    #[test]
    fn a_place_is_a_line_and_a_column() {
        let error = tokens("mov.u32 %r1, %r2;\n  #").expect_err("# has no place");
        assert_eq!((error.line, error.column), (2, 3));
    }
}
