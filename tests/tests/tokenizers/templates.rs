//! Chat templates against Python's jinja2, over what published templates are made of.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use lathe_plan::{TokenKind, TokenizerTables};
use lathe_runtime::chat::{ChatError, ChatTemplate, Conversation, Message, Role};
use lathe_runtime::tokenizer::Tokenizer;
use lathe_tests::{python, root};
use serde_json::{Value, json};

/// Small templates in the manner of the published ones, by the names of these.
const TEMPLATES: [(&str, &str); 5] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("granite", include_str!("templates/granite.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// As in templates.py.
const NOW: u64 = 1_721_955_661;

fn conversations() -> Vec<Value> {
    let tools = json!([{ "type": "function", "function": { "name": "get_weather", "description": "Temperature of a \"place\" <b>now</b>, in °C",
        "parameters": { "type": "object", "properties": { "place": { "type": "string", "enum": ["Zürich", "東京"] },
            "days": { "type": "integer", "default": 3 }, "exact": { "type": "boolean", "default": false } }, "required": ["place"] } } }]);
    let call = json!([{ "id": "call00001", "type": "function", "function": { "name": "get_weather", "arguments": { "place": "Zürich", "days": 1.5, "exact": null } } }]);
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let calling = json!({ "role": "assistant", "content": "", "tool_calls": call });
    vec![
        json!({ "messages": [said("user", "Hi")], "add_generation_prompt": true }),
        json!({ "messages": [said("system", "Be brief.\n"), said("user", "  What is 2+2? "), said("assistant", " 4\n"), said("user", "Why?")],
            "add_generation_prompt": true }),
        json!({ "messages": [said("user", "a"), said("assistant", "<think>\nhm, it's\n</think>\n\nb"), said("user", "c"), said("assistant", "d")],
            "add_generation_prompt": false, "enable_thinking": false }),
        json!({ "messages": [said("system", "S"), said("user", "Weather?"), calling, said("tool", "{\"t\": 21}"), said("tool", "x"), said("assistant", "21 °C")],
            "tools": tools, "add_generation_prompt": true }),
        json!({ "messages": [said("user", "Wetter in 東京? 👩‍👩‍👧 e\u{301} \u{200b}"), said("assistant", "☀"), said("user", "{{ x }} {% if %} <|im_end|> </s>[INST]")],
            "add_generation_prompt": true, "enable_thinking": true, "tools": tools }),
        json!({ "messages": [said("assistant", "I speak first"), said("user", "no"), said("user", "twice")], "add_generation_prompt": true }),
        json!({ "messages": [], "add_generation_prompt": true }),
    ]
}

fn tokenizer() -> Tokenizer {
    let mut tables = TokenizerTables { pretokenizer: "gpt-2".to_owned(), ..TokenizerTables::default() };
    tables.push(b"<s>", TokenKind::Control);
    tables.push(b"</s>", TokenKind::Control);
    (tables.bos, tables.eos) = (Some(0), vec![1]);
    Tokenizer::new(tables).expect("the tables are sound")
}

/// Reads a conversation in the order of its JSON.
fn conversation(values: &Value) -> Conversation {
    let text = |value: &Value| serde_json::from_str(&value.to_string()).expect("JSON is a value");
    let message = |message: &Value| {
        let role = match message["role"].as_str() {
            Some("system") => Role::System,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => Role::User,
        };
        let mut read = Message::new(role, message["content"].as_str().expect("a text"));
        let more = message.as_object().expect("an object").iter().filter(|(key, _)| key.as_str() == "tool_calls");
        read.more = more.map(|(key, value)| (key.clone(), text(value))).collect();
        read
    };
    let options = values.as_object().expect("an object").iter().filter(|(key, _)| key.starts_with("enable"));
    Conversation {
        messages: values["messages"].as_array().expect("a list").iter().map(message).collect(),
        answer: values["add_generation_prompt"] == true,
        tools: values.get("tools").map(text),
        options: options.map(|(key, value)| (key.clone(), text(value))).collect::<BTreeMap<_, _>>(),
    }
}

fn expected(cases: &[Value]) -> Vec<Value> {
    let mut oracle = Command::new(python());
    oracle.arg(root().join("tests/tests/tokenizers/templates.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut oracle = oracle.spawn().expect("Python starts");
    let input = Value::from(cases).to_string();
    oracle.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the oracle reads all cases");
    let output = oracle.wait_with_output().expect("the oracle ends");
    assert!(output.status.success(), "the oracle failed");
    serde_json::from_slice(&output.stdout).expect("the answers are JSON")
}

#[test]
fn prompts_are_those_of_python() {
    let mut cases = Vec::new();
    for (name, source) in TEMPLATES {
        for values in conversations() {
            let mut values = values;
            (values["bos_token"], values["eos_token"]) = ("<s>".into(), "</s>".into());
            values["tools"] = values.get("tools").cloned().unwrap_or(Value::Null);
            cases.push(json!({ "name": name, "source": source, "values": values }));
        }
    }
    let tokenizer = tokenizer();
    let (mut refused, mut rendered) = (0, 0);
    let mut others = Vec::new();
    for (case, expected) in cases.iter().zip(expected(&cases)) {
        let (name, values) = (&case["name"], &case["values"]);
        let source = case["source"].as_str().expect("a text");
        let template = ChatTemplate::new(source, &tokenizer).expect("the template is valid").at(NOW);
        let mut conversation = conversation(values);
        conversation.tools = conversation.tools.filter(|tools| !tools.is_none());
        match (template.render_conversation(&conversation), expected["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => rendered += 1,
            (Err(ChatError::Refused(words)), None) if expected["error"] == words.as_str() => refused += 1,
            (outcome, _) => others.push(format!("{name} on {}:\n  {outcome:?}\n  {expected}", values["messages"])),
        }
    }
    assert!(others.is_empty(), "{} other prompts:\n{}", others.len(), others.join("\n"));
    assert!(rendered > 20 && refused > 1, "{rendered} rendered, {refused} refused");
}
