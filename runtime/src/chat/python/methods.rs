//! Methods of Python's texts, where the engine's own set lacks them or does otherwise.

use minijinja::value::{Tuple, Value, from_args};
use minijinja::{Error, State};
use minijinja_contrib::pycompat;

/// Calls a method that the engine does not know: Python's own way, or that of the engine's authors for the rest.
pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => of_text(text, method, args)?,
        None => None,
    };
    own.map_or_else(|| pycompat::unknown_method_callback(state, value, method, args), Ok)
}

/// What `str.isspace` holds for: Unicode's white space, and the separators of files, groups, records and units.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A text without some characters at its ends, white space unless they are named.
pub fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(goes) } else { text };
    if end { text.trim_end_matches(goes) } else { text }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            lines(text, keep == Some(true)).into_iter().map(Value::from).collect()
        }
        // With a separator the engine's own is right.
        "split" if args.first().is_none_or(Value::is_none) => {
            let (_, most): (Option<&Value>, Option<i64>) = from_args(args)?;
            words(text, most.and_then(|most| usize::try_from(most).ok())).into_iter().map(Value::from).collect()
        }
        "rsplit" if args.first().is_some_and(|first| first.as_str().is_some_and(|text| !text.is_empty())) => {
            let (separator, most): (&str, Option<i64>) = from_args(args)?;
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            let parts: Vec<&str> = text.rsplitn(most, separator).collect();
            parts.into_iter().rev().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let whole = if method == "partition" { [text, "", ""] } else { ["", "", text] };
            let parts = parts.map_or(whole, |(before, after)| [before, separator, after]);
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// Each letter after one that has no case in its title form, every other one small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            match c {
                // Two letters in one, of which the first alone is large.
                '\u{1c4}'..='\u{1c6}' => out.push('\u{1c5}'),
                '\u{1c7}'..='\u{1c9}' => out.push('\u{1c8}'),
                '\u{1ca}'..='\u{1cc}' => out.push('\u{1cb}'),
                '\u{1f1}'..='\u{1f3}' => out.push('\u{1f2}'),
                c => {
                    let mut letters = c.to_uppercase();
                    out.extend(letters.next());
                    out.extend(letters.flat_map(char::to_lowercase));
                }
            }
        }
        in_word = c.is_lowercase() || c.is_uppercase() || matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}');
    }
    out
}

/// The lines of a text by everything that Python takes for an end of one.
fn lines(text: &str, keep: bool) -> Vec<&str> {
    let is_end = |c| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") {
            at + 2
        } else {
            at + rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(if keep { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// The words of a text between white space; the last of so many cuts leaves the rest as it is.
fn words(text: &str, most: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = strip(text, None, true, false);
    while !rest.is_empty() {
        if Some(words.len()) == most {
            words.push(strip(rest, None, false, true));
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = strip(&rest[end..], None, true, false);
    }
    words
}
