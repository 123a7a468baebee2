//! What chat templates expect of Python's Jinja as Hugging Face's library sets it up, where the engine does otherwise:
//! values print as Python prints them, `tojson` is `json.dumps`, `strftime_now` writes a date, and the tags that mark an
//! assistant's words for training mark nothing.

mod methods;
mod numbers;

use std::io::{self, Write};

use minijinja::value::{Kwargs, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use self::numbers::float;

/// Adds all of it but the clock.
pub fn extend(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(print);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("int", |value: &Value, default: Option<Value>| numbers::int(value, default));
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| {
        methods::strip(&text(value), chars, true, true).to_owned()
    });
}

/// Prints a value at the place of `{{ … }}`.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&text(value))?;
        }
        _ => escape_formatter(out, state, value)?,
    }
    Ok(())
}

/// `str(value)`.
fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => repr(value),
        _ => value.to_string(),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::Seq => {
            let items = items().map(|item| repr(&item)).collect::<Vec<_>>();
            match (value.downcast_object_ref::<Tuple>(), items.as_slice()) {
                (None, items) => format!("[{}]", items.join(", ")),
                (Some(_), [item]) => format!("({item},)"),
                (Some(_), items) => format!("({})", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let pair = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            format!("{{{}}}", items().map(pair).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// A text as Python writes it in code: between single quotes, or double ones where it has single ones only.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_shown(c) => out.push(c),
            c => out.push_str(&escape(u32::from(c))),
        }
    }
    out.push(quote);
    out
}

/// A character that is not shown, by its number.
fn escape(code: u32) -> String {
    match code {
        ..0x100 => format!("\\x{code:02x}"),
        0x100..0x1_0000 => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    }
}

/// Whether `str.isprintable` holds: no control or format character, none without a meaning, no space but the usual one.
fn is_shown(c: char) -> bool {
    use unicode_general_category::{GeneralCategory as Category, get_general_category};
    let hidden = [
        Category::Control,
        Category::Format,
        Category::LineSeparator,
        Category::ParagraphSeparator,
        Category::PrivateUse,
        Category::SpaceSeparator,
        Category::Surrogate,
        Category::Unassigned,
    ];
    c == ' ' || !hidden.contains(&get_general_category(c))
}

/// `value | tojson(indent=…)` as `json.dumps` writes it; the engine's own filter escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands keyword arguments over by value")]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted = options.get::<Option<bool>>("sort_keys")? == Some(true);
    let ascii = options.get::<Option<bool>>("ensure_ascii")? == Some(true);
    options.assert_all_used()?;
    let value = if sorted { with_sorted_keys(value) } else { value.clone() };
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    let mut out = Vec::new();
    let result = match (indent, separators.as_deref()) {
        (Some(width), None) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = Indented(PrettyFormatter::with_indent(spaces.as_bytes()));
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        (None, None) => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine { item: ", ", key: ": " })),
        (None, Some([item, key])) => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine { item, key })),
        _ => return Err(failed("expected `separators` to be a pair, without `indent`".to_owned())),
    };
    result.map_err(|error| failed(error.to_string()))?;
    let json = String::from_utf8(out).map_err(|error| failed(error.to_string()))?;
    Ok(if ascii { escaped(&json) } else { json })
}

/// The same value with the names in its mappings in order.
fn with_sorted_keys(value: &Value) -> Value {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Seq => items().map(|item| with_sorted_keys(&item)).collect(),
        ValueKind::Map => {
            let mut keys: Vec<Value> = items().collect();
            keys.sort();
            let pair = |key: Value| {
                let item = with_sorted_keys(&value.get_item(&key).unwrap_or_default());
                (key, item)
            };
            Value::from_pairs(keys.into_iter().map(pair))
        }
        _ => value.clone(),
    }
}

/// JSON with each character beyond ASCII as its UTF-16 units.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let units: Vec<String> = c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
            out += &units.concat();
        }
    }
    out
}

/// JSON in one line.
struct OneLine<'a> {
    /// After each value but the last.
    item: &'a str,
    /// After each name.
    key: &'a str,
}

impl Formatter for OneLine<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// JSON with a line for each value.
struct Indented<'a>(PrettyFormatter<'a>);

impl Formatter for Indented<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time in seconds since 1970 by the directives of C's `strftime`, in English and UTC.
pub fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (weekday, name) = (DAYS[(days + 4) as usize % 7], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = characters.next();
        let is_bare = directive == Some('-');
        if is_bare {
            directive = characters.next();
        }
        let number = |value: u64, width: usize| if is_bare { value.to_string() } else { format!("{value:0width$}") };
        let piece = match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('B') => name.to_owned(),
            Some('b' | 'h') => name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(days - first_day(year) + 1, 3),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let found = other.map_or("%".to_owned(), |directive| format!("%{directive}"));
                let words = format!("strftime_now does not know `{found}` of `{format}`");
                return Err(Error::new(ErrorKind::InvalidOperation, words));
            }
        };
        out.push_str(&piece);
    }
    Ok(out)
}

/// The day since the beginning of 1970 with which a year begins.
fn first_day(year: u64) -> u64 {
    let before = year - 1;
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(before) - leaps(1969)
}

/// Year, month and day of a day since the beginning of 1970. Counted from March in eras of 400 years, leap days come
/// last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds: u64, expected: &str| {
            assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a", seconds).expect("a known format"), expected);
        };
        check(0, "1970-01-01 00:00:00 Thu");
        check(951_782_400, "2000-02-29 00:00:00 Tue");
        check(1_721_952_000 + 3661, "2024-07-26 01:01:01 Fri");
        check(4_107_542_399, "2100-02-28 23:59:59 Sun");
        check(4_107_542_400, "2100-03-01 00:00:00 Mon");
        assert_eq!(strftime("%-d %B %y%%", 1_722_556_800).expect("a known format"), "2 August 24%");
        assert_eq!(strftime("%j %R", 951_782_400 + 86_400 + 60).expect("a known format"), "061 00:01");
        assert_eq!(strftime("%-j", 4_102_444_800 - 1).expect("a known format"), "365");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}
