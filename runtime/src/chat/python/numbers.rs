//! Numbers as Python writes and reads them.

use minijinja::value::{Value, ValueKind};

/// A number as `repr` writes it: the fewest digits that read back, with an exponent from 1e16 on and below 1e-4.
pub fn float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// The filter `int`: the whole part of a number, or of a text that is one; of anything else the default.
pub fn int(value: &Value, default: Option<Value>) -> Value {
    let whole = |number: f64| number.is_finite().then(|| Value::from(number.trunc() as i128));
    let found = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(whole),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            text.parse::<i128>().ok().map(Value::from).or_else(|| text.parse().ok().and_then(whole))
        }
        _ => None,
    };
    found.or(default).unwrap_or_else(|| Value::from(0))
}
