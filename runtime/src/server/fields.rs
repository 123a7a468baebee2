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
    "spaces_between_special_tokens",
    "add_generation_prompt",
    "parallel_tool_calls",
    "include_reasoning",
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
    // A template writes all control tokens itself.
    ("add_special_tokens", &["false"]),
    ("skip_special_tokens", &["true"]),
    ("return_token_ids", &["false"]),
    ("return_token_strs", &["false"]),
    ("verbosity", &["\"medium\""]),
];

/// The fields that were not asked for yet.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    unknown: Vec<String>, // inside of others
}

impl Fields {
    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Fields, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => {
                let left = map.into_iter().filter(|(_, value)| !value.is_null()).collect();
                Ok(Fields { left, unknown: Vec::new() })
            }
            Ok(_) => Err(Refusal::new(400, "the body must be a JSON object")),
            Err(error) => Err(Refusal::new(400, format!("the body is not JSON: {error}"))),
        }
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Takes a field as it stands.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name)
    }

    /// Names what nobody knows inside an object that was taken as `name`.
    pub fn nobody_knows(&mut self, name: &str, object: &Value, known: &[&str]) {
        for (key, value) in object.as_object().into_iter().flatten() {
            let name = format!("{name}.{key}");
            if !value.is_null() && !known.contains(&key.as_str()) && !self.unknown.contains(&name) {
                self.unknown.push(name);
            }
        }
    }

    /// Takes a number within a range.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Refusal> {
        self.number_that(name, &format!("from {least} to {most}"), |number| (least..=most).contains(&number))
    }

    /// Takes a number that is as `expected` says.
    pub fn number_that(
        &mut self,
        name: &str,
        expected: &str,
        is_fine: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if is_fine(number) => Ok(Some(number)),
            _ => {
                let message = format!("`{name}` must be a number {expected}, not {}", shown(&value));
                Err(Refusal::field(name, message))
            }
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
        let left = self.left.into_iter().map(|(name, _)| name).filter(|name| !HARMLESS.contains(&name.as_str()));
        Ok(left.chain(self.unknown).collect())
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
        let ours = r#"{"skip_special_tokens": true, "return_token_ids": false, "verbosity": "medium", "add_special_tokens": false}"#;
        assert_eq!(fields(ours).finish(), Ok(Vec::new()));
        for (name, value) in [
            ("tools", "[{}]"),
            ("skip_special_tokens", "false"),
            ("return_token_ids", "true"),
            ("return_token_strs", "true"),
            ("verbosity", "\"low\""),
            ("add_special_tokens", "true"),
        ] {
            let refusal = fields(&format!("{{\"{name}\": {value}}}")).finish().unwrap_err();
            assert_eq!((refusal.status, refusal.param.as_deref()), (400, Some(name)));
        }
    }

    #[test]
    fn what_nobody_knows_inside_an_object_is_named_once() {
        let mut fields = fields(r#"{"zzz": 1}"#);
        let object = serde_json::json!({"role": "user", "foo": 1, "bar": null});
        fields.nobody_knows("messages[]", &object, &["role"]);
        fields.nobody_knows("messages[]", &object, &["role"]);
        assert_eq!(fields.finish(), Ok(vec!["zzz".to_owned(), "messages[].foo".to_owned()]));
    }
}
