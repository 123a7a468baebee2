//! The body of a request, field by field. A field that nobody knows is named, a field that would change the answer and is
//! not supported is refused by name, and null is the same as nothing.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Fields that change nothing here.
const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "request_id",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "add_special_tokens",
    "add_generation_prompt",
    "parallel_tool_calls",
    "return_token_ids",
    "include_reasoning",
    "verbosity",
    "prompt_cache_retention",
];

/// Fields that would change the answer, and what may stand there all the same.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("grammar", &[]),
    ("json_schema", &[]),
    ("suffix", &["\"\""]),
    ("audio", &[]),
    ("modalities", &[r#"["text"]"#]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("continue_final_message", &["false"]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("typical_p", &["1", "1.0"]),
    ("truncate_prompt_tokens", &[]),
    ("logits_processors", &["[]"]),
    ("bad_words", &["[]"]),
    ("allowed_token_ids", &[]),
    ("logprob_token_ids", &[]),
    ("vllm_xargs", &["{}"]),
];

/// The fields that were not asked for yet.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Fields, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields(map.into_iter().filter(|(_, value)| !value.is_null()).collect())),
            Ok(_) => Err(Refusal::new(400, "the body must be a JSON object")),
            Err(error) => Err(Refusal::new(400, format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes a field as it stands.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Takes a number within a range.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Refusal::field(
                name,
                format!("`{name}` must be a number from {least} to {most}, not {}", shown(&value)),
            )),
        }
    }

    /// Takes a whole number within a range.
    pub fn integer(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let found = shown(&value);
                Err(Refusal::field(
                    name,
                    format!("`{name}` must be a whole number from {least} to {most}, not {found}"),
                ))
            }
        }
    }

    /// Takes true or false.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wrong = || Refusal::field(name, format!("`{name}` must be true or false, not {}", shown(&value)));
        value.as_bool().map(Some).ok_or_else(wrong)
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(Refusal::field(name, format!("`{name}` must be a string, not {}", shown(&value)))),
        }
    }

    /// Refuses what is left where it would change the answer, and names what nobody knows.
    pub fn finish(mut self) -> Result<Vec<String>, Refusal> {
        for (name, fine) in UNSUPPORTED {
            if let Some(value) = self.take(name) {
                let text = value.to_string();
                if !fine.contains(&text.as_str()) {
                    let message = format!("`{name}` is not supported by this server; leave it out");
                    return Err(Refusal::field(name, message).code("unsupported_field"));
                }
            }
        }
        Ok(self.0.into_iter().map(|(name, _)| name).filter(|name| !HARMLESS.contains(&name.as_str())).collect())
    }
}

/// A value, cut to a length that fits a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::read(body.as_bytes()).expect("an object")
    }

    #[test]
    fn null_is_nothing_and_types_and_ranges_are_kept() {
        let mut fields = fields(
            r#"{"a": null, "b": 1.5, "c": -3, "d": "x", "e": 1e400, "f": 4}"#.replace("1e400", "1e300").as_str(),
        );
        assert_eq!(fields.number("a", 0.0, 1.0), Ok(None));
        assert!(fields.number("b", 0.0, 1.0).is_err());
        assert!(fields.integer("c", 0, 9).unwrap_err().message.contains("from 0 to 9, not -3"));
        assert!(fields.flag("d").is_err());
        assert!(fields.integer("e", 0, 9).is_err());
        assert_eq!(fields.integer("f", 0, 9), Ok(Some(4)));
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for body in [&b""[..], b"[]", b"1", b"{", b"\xff", b"{\"a\": NaN}", b"{\"a\": 1e400}", b"{\"a\": \"\\ud800\"}"]
        {
            assert_eq!(Fields::read(body).unwrap_err().status, 400, "{body:?}");
        }
        let deep = "[".repeat(10_000);
        assert_eq!(Fields::read(format!("{{\"a\": {deep}").as_bytes()).unwrap_err().status, 400);
    }

    #[test]
    fn what_is_left_is_named_or_refused() {
        assert_eq!(
            fields(r#"{"user": "u", "zzz": 1, "tools": [], "length_penalty": 1.0}"#).finish(),
            Ok(vec!["zzz".to_owned()])
        );
        let refusal = fields(r#"{"tools": [{}]}"#).finish().unwrap_err();
        assert_eq!((refusal.status, refusal.param.as_deref()), (400, Some("tools")));
    }
}
